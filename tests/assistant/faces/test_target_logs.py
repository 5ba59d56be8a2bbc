"""`ask --target` and `logs --target`: the places that the targets file names, through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.tools.sources.fakes import FakeDocker, FakeKubernetes, FakeLoki, nano, serving, serving_socket

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT / "tests" / "data" / "sources"


def run(
    tmp_path: Path, targets: dict[str, Any], *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "targets.yaml").write_text(json.dumps({"targets": targets}))  # JSON is YAML
    more = {"VLLM_DIAGNOSE_TARGETS_FILE": str(tmp_path / "targets.yaml"), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "assistant.faces.cli.main", *arguments],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **more}, timeout=60, check=False,
    )  # fmt: skip


def stamped(log: bytes, start: datetime) -> bytes:
    """A log as a container runtime hands it on: each line with its time."""
    rows = []
    for number, line in enumerate(log.splitlines()):
        at = start + timedelta(milliseconds=20 * number)
        rows.append(f"{at:%Y-%m-%dT%H:%M:%S.%f}000Z ".encode() + line)
    return b"\n".join(rows) + b"\n"


def test_a_pod_killed_by_its_startup_probe(tmp_path: Path, captured: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    start = now - timedelta(seconds=400)
    pod = json.loads((RECORDED / "pod.json").read_text())
    state = pod["status"]["containerStatuses"][1]
    finished = start + timedelta(seconds=331)
    state.update(ready=False, restartCount=1, state={"running": {"startedAt": f"{finished:%Y-%m-%dT%H:%M:%SZ}"}})
    state["lastState"] = {
        "terminated": {"exitCode": 137, "reason": "Error", "startedAt": f"{start:%Y-%m-%dT%H:%M:%SZ}", "finishedAt": f"{finished:%Y-%m-%dT%H:%M:%SZ}"}
    }  # fmt: skip
    killing = {
        "metadata": {"name": "e1"}, "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"]}, "reason": "Killing",
        "message": "Container server failed startup probe, will be restarted", "lastTimestamp": f"{finished:%Y-%m-%dT%H:%M:%SZ}", "count": 1,
    }  # fmt: skip
    log = (captured / "still-starting" / "server.log").read_bytes()
    fake = FakeKubernetes([pod], [killing], {("server", True): stamped(log, start), ("server", False): b""})
    (tmp_path / "token").write_text("good\n")
    with serving(fake) as url:
        place = {"kubernetes": url, "namespace": "inference", "selector": "app=vllm", "token_file": "token"}
        target = {"prod": {"address": "http://localhost:1", "logs": place}}
        ran = run(tmp_path, target, "ask", "why does it restart", "--target", "prod", "-o", "json", "--path")
        assert ran.returncode == 0, ran.stderr
        answer = json.loads(ran.stdout)
        assert (answer["verdict"], answer["causes"][0]["id"]) == ("cause", "serving/killed-by-probe"), answer["summary"]
        assert answer["target"] == "prod"
        fix = answer["causes"][0]["fixes"][0]
        # 331 s were not enough; twice that, asked every 10 s, are 67 failures.
        assert (
            fix["command"].startswith("kubectl -n inference patch deployment/vllm ")
            and '"failureThreshold":67' in fix["command"]
        )
        assert any("failed startup probe" in quote["text"] for quote in answer["causes"][0]["because"])
        assert answer["path"][0]["node"] == "stopped"
        text = run(tmp_path, target, "ask", "为什么一直重启", "--target", "prod", COLUMNS="100").stdout
        assert "探针失败" in text and '"failureThreshold":67' in text.replace("\n", "").replace(" ", "")


def test_a_container_that_was_stopped_and_one_out_of_memory(tmp_path: Path, captured: Path) -> None:
    container = json.loads((RECORDED / "container.json").read_text())
    now = datetime.now(UTC).replace(microsecond=0)
    container["State"] |= {
        "ExitCode": 143,
        "StartedAt": f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        "FinishedAt": f"{now:%Y-%m-%dT%H:%M:%SZ}",
    }
    log = stamped((captured / "sigterm" / "server.log").read_bytes(), now - timedelta(hours=1))
    kill = {
        "Type": "container",
        "Action": "kill",
        "Actor": {"ID": container["Id"], "Attributes": {"signal": "15"}},
        "time": int(now.timestamp()),
    }
    fake = FakeDocker(container, [(1 + n % 2, line + b"\n") for n, line in enumerate(log.splitlines())], [kill])
    with serving_socket(tmp_path / "docker.sock", fake) as socket:
        target = {"box": {"address": "http://localhost:1", "logs": {"docker": "vllm", "socket": socket}}}
        ran = run(tmp_path, target, "logs", "--target", "box", "-o", "json")
        assert ran.returncode == 0, ran.stderr
        answer = json.loads(ran.stdout)
        assert (answer["verdict"], answer["causes"][0]["id"]) == ("cause", "serving/stopped-on-request"), answer
        container["State"] |= {"ExitCode": 137, "OOMKilled": True}
        answer = json.loads(run(tmp_path, target, "logs", "--target", "box", "-o", "json").stdout)
        assert answer["causes"][0]["id"] == "memory/host-ram-exhausted"
        gone = run(
            tmp_path,
            {"box": {"address": "http://localhost:1", "logs": {"docker": "other", "socket": socket}}},
            "logs",
            "--target",
            "box",
        )
        assert gone.returncode == 3 and "knows no container 'other'" in gone.stderr


def test_a_log_in_loki_gives_the_answer_of_the_file(tmp_path: Path, captured: Path) -> None:
    now = datetime.now(UTC)
    log = (captured / "tp2-truncated" / "server.log").read_text().splitlines()
    rows = [(nano(now - timedelta(hours=1) + timedelta(milliseconds=20 * n)), line) for n, line in enumerate(log)]
    fake = FakeLoki([({"app": "vllm", "pod": "vllm-0"}, rows)], most=100, tenant="t1")
    file = json.loads(run(tmp_path, {}, "logs", str(captured / "tp2-truncated" / "server.log"), "-o", "json").stdout)
    with serving(fake) as url:
        place = {"loki": url, "query": '{app="vllm"}', "tenant": "t1"}
        target = {"prod": {"address": "http://localhost:1", "logs": place}}
        ran = run(tmp_path, target, "logs", "--target", "prod", "-o", "json")
    answer = json.loads(ran.stdout)
    assert answer["causes"][0]["id"] == file["causes"][0]["id"] == "model/corrupt-checkpoint"
    assert answer["looked_at"][0]["source"] == "Loki vllm-0"
    away = run(tmp_path, target, "logs", "--target", "prod", "-o", "json")
    assert away.returncode == 3 and "refuses connections" in away.stderr


def test_a_log_that_breaks_off_is_never_called_healthy(tmp_path: Path, captured: Path) -> None:
    log = stamped((captured / "healthy" / "server.log").read_bytes(), datetime.now(UTC) - timedelta(hours=1))
    pod = json.loads((RECORDED / "pod.json").read_text())
    whole = FakeKubernetes([pod], [], {("server", False): log})

    def cut(path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Any:
        status, more, content = whole(path, query, headers, body)
        if path.endswith("/log"):  # more is announced than comes
            more = {**more, "Content-Encoding": "gzip"}
            import gzip

            content = gzip.compress(content)
            content = content[: len(content) // 2]
        return status, more, content

    (tmp_path / "token").write_text("good")
    for respond, verdict in ((whole, "healthy"), (cut, "unknown")):
        with serving(respond) as url:
            place = {"kubernetes": url, "namespace": "inference", "pod": pod["metadata"]["name"], "token_file": "token"}
            ran = run(
                tmp_path,
                {"prod": {"address": "http://localhost:1", "logs": place}},
                "logs",
                "--target",
                "prod",
                "-o",
                "json",
            )
        answer = json.loads(ran.stdout)
        assert answer["verdict"] == verdict, answer["not_measured"]
    assert any("ends too early" in row["why"] for row in answer["not_measured"])


def test_wrong_targets_are_one_sentence(tmp_path: Path) -> None:
    targets = {
        "prod": {
            "address": "http://localhost:1",
            "logs": {"loki": "http://localhost:1", "query": '{a="b"}', "token_env": "NO_SUCH"},
        }
    }
    for arguments, status, said in (
        (["logs", "--target", "prd"], 2, "prod is meant perhaps"),
        (["logs", "--target", "prod"], 2, "NO_SUCH"),
        (["ask", "--target", "prod"], 2, "NO_SUCH"),
        (["logs", "--target", "http://localhost:1"], 2, "has no logs in the targets file"),
    ):
        ran = run(tmp_path, targets, *arguments)
        assert (ran.returncode, ran.stderr.count("\n")) == (status, 1) and said in ran.stderr, ran.stderr


def test_all_looks_at_every_pod_that_a_selector_finds(tmp_path: Path) -> None:
    pods = []
    for number in range(3):
        pod = json.loads((RECORDED / "pod.json").read_text())
        pod["metadata"]["name"] = f"vllm-{number}"
        pod["status"]["podIP"] = "127.0.0.1"
        pods.append(pod)
    pods[2]["status"]["phase"] = "Pending"
    (tmp_path / "token").write_text("good")
    with (
        serving(lambda *_: (200, {"Content-Type": "text/html"}, b"<html>not vLLM")) as other,
        serving(FakeKubernetes(pods)) as url,
    ):
        for pod in pods:
            pod["spec"]["containers"][1]["ports"][0]["containerPort"] = int(other.rsplit(":", 1)[1])
        place = {
            "kubernetes": url,
            "namespace": "inference",
            "selector": "app=vllm",
            "token_file": "token",
            "discover": "pods",
        }
        ran = run(
            tmp_path,
            {"prod": {"address": "http://localhost:1", "logs": place}},
            "metrics",
            "--all",
            "--window",
            "0",
            "-o",
            "json",
        )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)["targets"]
    assert [row["target"] for row in rows] == ["prod/vllm-0", "prod/vllm-1"]
    assert all(row["address"] == other for row in rows)
    gone = run(
        tmp_path,
        {"prod": {"address": "http://localhost:1", "logs": place}},
        "metrics",
        "--all",
        "--window",
        "0",
        "-o",
        "json",
    )
    assert gone.returncode == 0 and "prod: " in gone.stderr and gone.stderr.count("\n") == 1
    assert json.loads(gone.stdout)["targets"][0]["target"] == "prod"
