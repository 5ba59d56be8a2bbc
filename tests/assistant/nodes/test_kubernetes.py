"""The Kubernetes launcher against a stand-in for the API whose pods are real processes; every fault leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from assistant.nodes.site_group import try_site
from assistant.nodes.verdict import judge
from knowledge.catalog import load
from tests.assistant.nodes.fake_cluster import FakeCluster, can_run_pods, serving
from tests.assistant.nodes.serving import command
from tests.assistant.nodes.sites import TORCH, base_environment, checked, children, in_group, need_torch, rows
from tools.addresses import Policy
from tools.launchers import kubernetes_site as launched
from tools.launchers.kubernetes_api import Api
from tools.launchers.kubernetes_objects import JobPlan, config_map, job, service
from tools.launchers.site import SiteError
from tools.outbound import Outbound

pods = pytest.mark.skipif(not can_run_pods(), reason="pods of the stand-in need a mount namespace, which needs root")


def plan(**more: Any) -> JobPlan:
    given = {"name": "vllm-diagnose-test", "namespace": "tests", "image": "vllm", "count": 2, "cpu_only": True, "deadline_s": 120.0}  # fmt: skip
    return JobPlan(**{**given, "ports": (29660, 29661), **more})


def word(key: str, **values: object) -> str:
    return load().sentences[key]["en"].format(**values)


def go(cluster: FakeCluster, **more: Any) -> tuple[dict[str, Any], str]:
    """The report and what was left, of one run in this process."""

    async def main(file: Path) -> tuple[dict[str, Any], str]:
        found, allowance = launched.cluster_of(str(file), "")
        made = plan(**more)
        left: list[str] = []
        async with Outbound(Policy(allowed=(allowance,))) as out:
            async with launched.kubernetes_site(Api(found, made.namespace, out), made, left.append) as site:
                gathered = await try_site(site, launcher="kubernetes", lang="en", word=word, options={}, ranks_per_node=1, ports=made.ports)  # fmt: skip
            return judge(gathered, "en").model_dump(mode="json"), "".join(left)

    with serving(cluster) as file:
        return asyncio.run(asyncio.wait_for(main(file), 120))


def refused(cluster: FakeCluster, **more: Any) -> SiteError:
    with pytest.raises(SiteError) as error:
        go(cluster, **more)
    assert not cluster.objects or {kind for kind, _ in cluster.objects} <= {"events"}
    return error.value


def test_objects_hold_together() -> None:
    made = plan(count=3, ranks_per_node=8, cpu_only=False, nodes=("a", "b", "c"), stage_s=20)
    spec = job(made)["spec"]
    pod = spec["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"], spec["backoffLimit"]) == (
        3,
        3,
        "Indexed",
        0,
    )
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert (
        pod["subdomain"] == service(made, "u")["metadata"]["name"] and service(made, "u")["spec"]["clusterIP"] == "None"
    )
    assert service(made, "u")["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert config_map(made, "u")["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert len(json.dumps(config_map(made, "u"))) < 1 << 20  # the most that a ConfigMap holds
    names = pod["containers"][0]["command"][pod["containers"][0]["command"].index("--names") + 1]
    assert names.split(",")[2] == "vllm-diagnose-test-2.vllm-diagnose-test.tests.svc"
    assert (
        pod["automountServiceAccountToken"] is False
        and spec["activeDeadlineSeconds"]
        and spec["ttlSecondsAfterFinished"]
    )
    secured = pod["containers"][0]["securityContext"]
    assert secured["capabilities"] == {"drop": ["ALL"]} and secured["allowPrivilegeEscalation"] is False


@pods
def test_a_pod_without_torch_is_named_and_nothing_is_left() -> None:
    cluster = FakeCluster(images={"vllm": sys.executable})
    report, left = go(cluster)
    assert "torch" in report["summary"] and rows(report, "rank")[0].startswith("node-")
    assert not cluster.objects and not left
    assert all(process.poll() is not None for process in cluster.processes.values())


@pods
def test_a_watch_that_breaks_or_is_forgotten_and_logs_that_break_change_nothing() -> None:
    cluster = FakeCluster(images={"vllm": sys.executable}, drop_watches=3, forget=2, drop_logs=4)
    report, left = go(cluster)
    assert "torch" in report["summary"] and len(rows(report, "place")) == 2
    assert not cluster.objects and not left and not cluster.forget and not cluster.drop_logs
    assert cluster.asked.count("GET /api/v1/namespaces/tests/pods") > 4


@pods
def test_a_cleanup_that_fails_says_what_is_left_and_how_to_remove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "_CLEAN_S", 2.0)
    cluster = FakeCluster(images={"vllm": sys.executable}, no_deletion=("services",), no_collector=True)
    _, left = go(cluster)
    assert left == "kubectl -n tests delete job,service,configmap,pod -l vllm-diagnose/run=vllm-diagnose-test"
    assert ("services", "vllm-diagnose-test") in cluster.objects


def test_what_may_not_be_made_is_said_and_what_was_made_is_removed() -> None:
    error = refused(FakeCluster(forbidden=("jobs",)), count=2)
    assert error.kind == "kubernetes-forbidden" and error.values["what"] == "jobs"
    error = refused(FakeCluster(forbidden=("services",), no_pods="x"))
    assert error.kind == "kubernetes-forbidden" and error.values["what"] == "services"
    assert refused(FakeCluster(), namespace="other").kind == "kubernetes-forbidden"


def test_a_quota_that_keeps_pods_out_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "_NO_PODS_S", 0.5)
    said = 'pods "x" is forbidden: exceeded quota: gpus, requested: limits.nvidia.com/gpu=8'
    error = refused(FakeCluster(no_pods=said))
    assert error.kind == "kubernetes-no-pods" and "exceeded quota" in str(error.values["text"])


@pods
def test_a_quota_that_lets_only_some_pods_in_is_quoted_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "UNPLACED_S", 1.0)
    cluster = FakeCluster(
        images={"vllm": sys.executable}, no_pods='pods "x" is forbidden: exceeded quota: gpus', pods_at_most=1
    )
    report, left = go(cluster)
    assert "exceeded quota" in report["summary"] and not left
    assert {kind for kind, _ in cluster.objects} <= {"events"}


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (FakeCluster(images={}), "ImagePullBackOff"),
        (
            FakeCluster(unschedulable="0/4 nodes are available: 4 Insufficient nvidia.com/gpu."),
            "Insufficient nvidia.com/gpu",
        ),
    ],
)
def test_pods_that_do_not_start_say_why(cluster: FakeCluster, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "UNPLACED_S", 1.0)
    report, left = go(cluster)
    assert words in report["summary"] and not left and not cluster.objects


# --- the checks, through the command ----------------------------------------------------------------------------------


def checking(file: Path, *more: str) -> list[str]:
    return command("check", "--launcher", "kubernetes", "--yes", "-o", "json", "--kube", str(file), "--image", "vllm", *more)  # fmt: skip


def wrapper(folder: Path, second: str) -> str:
    """An interpreter that does something else first in the second pod."""
    path = folder / "python3"
    path.write_text(f'#!/bin/sh\n[ "$JOB_COMPLETION_INDEX" != 1 ] || {{ {second}; }}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pods
def test_a_fault_of_one_pod_is_named_and_everything_is_removed(tmp_path: Path) -> None:
    faults = "ulimit -n 300; export CUDA_LAUNCH_BLOCKING=1; mount -t tmpfs -o size=64k none /dev/shm"
    cluster = FakeCluster(images={"vllm": wrapper(tmp_path, faults)}, drop_watches=1, drop_logs=1)
    with serving(cluster) as file:
        ran = subprocess.run(checking(file, "--nodes", "2"), env=base_environment(tmp_path), capture_output=True, text=True, timeout=90, check=False)  # fmt: skip
        assert not cluster.objects
        assert {line.partition(" ")[0] for line in cluster.asked if "/services" in line} == {"POST", "DELETE"}
    faulty, sound = checked(ran, "node-1"), checked(ran, "node-0")
    assert [node["name"] for node in json.loads(ran.stdout)["nodes"]] == ["node-1", "node-0"]
    assert faulty["host.shm"] == [("bad", "64 KiB / 64 KiB")] and faulty["host.files"] == [("note", 300)]
    assert ("bad", "CUDA_LAUNCH_BLOCKING=1") in faulty["host.lingering"] and "host.lingering" not in sound
    assert all(any(name.startswith(f"{area}.") for name in sound) for area in ("gpu", "host", "net"))


@pods
def test_a_pod_that_dies_or_never_runs_costs_only_its_own_answer(tmp_path: Path) -> None:
    cluster = FakeCluster(images={"vllm": wrapper(tmp_path, "echo no such device; exit 3")})
    with serving(cluster) as file:
        ran = subprocess.run(checking(file, "--nodes", "2", "--exit-code"), env=base_environment(tmp_path), capture_output=True, text=True, timeout=90, check=False)  # fmt: skip
        assert not cluster.objects
    assert ran.returncode == 1, ran.stderr
    found = {node["name"]: node for node in json.loads(ran.stdout)["nodes"]}
    assert "exit code 3" in found["node-1"]["lost"] and len(found["node-0"]["checks"]) > 5
    nothing = FakeCluster(images={})
    with serving(nothing) as file:
        ran = subprocess.run(checking(file, "--nodes", "2", "--deadline", "6"), env=base_environment(tmp_path), capture_output=True, text=True, timeout=90, check=False)  # fmt: skip
        assert not nothing.objects
    assert ran.returncode == 3 and "Kubernetes" in ran.stderr.title(), ran.stderr


@pods
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_checks_that_are_interrupted_remove_everything(tmp_path: Path, by: signal.Signals) -> None:
    cluster = FakeCluster(images={"vllm": wrapper(tmp_path, "exec sleep 600")})
    with serving(cluster) as file:
        process = subprocess.Popen(checking(file, "--nodes", "2"), env=base_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        end = time.monotonic() + 60
        while len(cluster.processes) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(by)
        process.communicate(timeout=60)
        assert not cluster.objects
        assert all(one.poll() is not None for one in cluster.processes.values())


@pods
@pytest.mark.slow
def test_sixty_four_pods_are_checked(tmp_path: Path) -> None:
    """As many real programs on this machine as a cluster has nodes; one of them has a fault."""
    cluster = FakeCluster(images={"vllm": wrapper(tmp_path, "export CUDA_LAUNCH_BLOCKING=1")})
    began = time.monotonic()
    with serving(cluster) as file:
        ran = subprocess.run(checking(file, "--nodes", "64"), env=base_environment(tmp_path), capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
        assert not cluster.objects
    print(f"\n64 pods checked and removed in {time.monotonic() - began:.1f} s")
    assert ("bad", "CUDA_LAUNCH_BLOCKING=1") in checked(ran, "node-1")["host.lingering"]
    nodes = json.loads(ran.stdout)["nodes"]
    assert len(nodes) == 64 and not any(node["lost"] for node in nodes) and nodes[0]["name"] == "node-1"
    assert not [node["name"] for node in nodes if any(check["id"] == "cluster.check" for check in node["checks"])]


def test_pods_that_only_look_ask_for_no_gpu_and_may_stand_on_gpu_nodes() -> None:
    pod = job(plan(checks_s=15.0))["spec"]["template"]["spec"]
    words = pod["containers"][0]["command"]
    assert words[words.index("--checks") + 1] == "15.0" and "--names" not in words
    assert "limits" not in pod["containers"][0]["resources"] and pod["tolerations"]
    held = job(plan(checks_s=15.0, cpu_only=False, ranks_per_node=8))["spec"]["template"]["spec"]
    assert held["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}


# --- through the command, with torch ----------------------------------------------------------------------------------


def started(file: Path, folder: Path, *more: str) -> list[str]:
    return command("sanity", "nccl", "--launcher", "kubernetes", "--cpu-only", "--yes", "-o", "json", "--kube", str(file), "--ports", "29670-29672", *more)  # fmt: skip


@pods
@pytest.mark.slow
def test_two_pods_pass(tmp_path: Path) -> None:
    need_torch()
    cluster = FakeCluster(images={"vllm": str(TORCH)})
    with serving(cluster) as file:
        ran = subprocess.run(started(file, tmp_path, "--image", "vllm", "--nodes", "2"), env=base_environment(tmp_path), capture_output=True, text=True, timeout=150, check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)["report"]
    assert report["verdict"] == "ok" and "2 ranks on 2 nodes" in report["summary"]
    assert not cluster.objects


@pods
@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_a_rank_or_a_pod_that_is_killed_is_named(tmp_path: Path, whole: bool) -> None:
    """``whole`` is the pod, as the kernel kills it at its memory limit: its log ends without a verdict."""
    need_torch()
    cluster = FakeCluster(images={"vllm": str(TORCH)})
    with serving(cluster) as file:
        process = subprocess.Popen(started(file, tmp_path, "--image", "vllm", "--nodes", "2"), env=base_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        supervisor = in_group(1, 29670)
        (rank,) = children(supervisor)
        time.sleep(0.5)
        if whole:
            name = next(name for name in cluster.processes if name.split("-")[-2] == "1")
            os.killpg(cluster.processes[name].pid, signal.SIGKILL)
        else:
            os.kill(rank, signal.SIGKILL)
        out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    report = json.loads(out)["report"]
    if whole:
        assert rows(report, "died") == ["node-1"] and "OOMKilled" in report["summary"]
    else:
        assert rows(report, "rank") == ["node-1: rank 1"] and "SIGKILL" in report["summary"]
    assert not cluster.objects


@pods
@pytest.mark.slow
def test_a_command_that_is_interrupted_removes_everything(tmp_path: Path) -> None:
    need_torch()
    cluster = FakeCluster(images={"vllm": str(TORCH)})
    with serving(cluster) as file:
        process = subprocess.Popen(started(file, tmp_path, "--image", "vllm", "--nodes", "2"), env=base_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        in_group(1, 29670)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert not cluster.objects
        assert all(one.poll() is not None for one in cluster.processes.values())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    env = base_environment(tmp_path)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command("sanity", "nccl", "--launcher", "kubernetes", "--yes", *more), env=env, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip

    assert "--image" in run("--nodes", "2").stderr
    nowhere = run("--nodes", "2", "--image", "x", "--lang", "zh")
    assert nowhere.returncode == 3 and "无法访问 Kubernetes" in nowhere.stderr
