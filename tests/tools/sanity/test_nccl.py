"""`run_nccl_test` without torch: what it refuses, what it reads, and that every fault has its sentence."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assistant.security.consent import agree
from assistant.security.roles import LOCAL, Principal, Role
from assistant.store.audit import Audit
from assistant.store.database import Database
from knowledge.catalog import load
from tools import registry
from tools.registry import ActionError, ConsentError, Context, get
from tools.sanity import compiling, nccl, rank_worker
from tools.sanity.choose import LOCAL_USER
from tools.sanity.launch import Ran
from tools.sanity.nccl_bisect import changes_for
from tools.sanity.nccl_output import read_nccl

ROOT = Path(__file__).resolve().parents[3]
SOURCE = nccl.WORKER.read_text("utf-8")
COMMAND = str(Path(sys.executable).with_name("vllm-diagnose"))


def test_the_worker_stands_alone() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 9))
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).split(".")[0])
    assert modules - set(sys.stdlib_module_names) == {"torch", "vllm"}


def test_nothing_of_ours_imports_what_the_ranks_run() -> None:
    """It may open connections because it runs elsewhere; in our own process it is only text and a table of stages."""
    users = [p for p in (ROOT / "tools").rglob("*.py") if "rank_worker import" in p.read_text("utf-8")]
    assert {p.name for p in users} == {"nccl.py", "kubernetes_site.py"}
    for user in users:
        lines = [line.strip() for line in user.read_text("utf-8").splitlines() if "rank_worker import" in line]
        assert lines == ["from tools.sanity.rank_worker import STAGES"]


def test_an_interpreter_without_torch_is_named(bare_python: str, act: Any) -> None:
    report = act("run_nccl_test", {"python": bare_python, "ranks": 2, "cpu_only": True})
    (bad,) = [f for f in report.findings if f.severity == "bad"]
    assert (bad.kind, bad.stage, bad.ranks) == ("no-torch", "import", [0, 1])
    assert "Give --python the interpreter that vLLM uses" in report.summary
    assert report.verdict == "bad"


def test_it_does_not_start_without_consent() -> None:
    action = get("run_nccl_test")
    assert LOCAL.id == LOCAL_USER
    assert action.effect == "loads"
    with pytest.raises(ConsentError):
        asyncio.run(action.call({"ranks": 2}, Context()))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run_nccl_test", {"python": "/tmp/python3"}),
        ("run_compile_test", {"python": "/tmp/python3"}),
        ("capture", {"bundle": "/etc/cron.d/x"}),
        ("profile_server", {"url": "http://127.0.0.1:1", "trace_folder": "/etc"}),
        ("measure_loading", {"model": "/etc"}),
    ],
)
def test_paths_are_not_taken_from_elsewhere(name: str, arguments: dict[str, Any]) -> None:
    """An operator over HTTP may run the tests, but not choose the program that is run or the file that is written."""
    registry.discover()
    action = registry.get(name)
    afar = Principal("token-1", "somebody", Role.operator)
    with pytest.raises(ActionError, match="can only be given on its own command line"):
        asyncio.run(action.call(arguments, Context(consent=agree(afar, action, arguments))))


def test_the_interpreter_must_be_one(act: Any) -> None:
    for program in ("/bin/sh", "/nonexistent/python3"):
        with pytest.raises(ActionError, match="is not a Python interpreter that can be run"):
            act("run_nccl_test", {"python": program, "cpu_only": True})


@pytest.mark.parametrize("master", ["10.0.0.1", ":29500", "host:0", "host:99999", "host:port"])
def test_a_master_that_is_no_host_and_port_is_refused(master: str, bare_python: str, act: Any) -> None:
    with pytest.raises(ActionError, match="is not HOST:PORT"):
        act("run_nccl_test", {"python": bare_python, "master": master})


def test_ranks_that_do_not_fit_are_refused_by_the_worker(bare_python: str) -> None:
    ran = subprocess.run(
        [bare_python, "-I", "-", "--ranks", "2", "--first-rank", "1", "--here", "2", "--master", "h:1"],
        input=SOURCE, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "do not fit into a group of 2" in ran.stderr


def test_a_busy_gpu_is_refused_and_its_user_named(bare_python: str, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.gpu import holders
    from tools.gpu.cards import Holder

    monkeypatch.setattr(holders, "busy", lambda module=None: [Holder(1, 733, "vllm serve other", 20 << 30)])
    with pytest.raises(ActionError, match=r"GPU 1 is in use: process 733 \(vllm serve other\) holds 20.0 GiB"):
        act("run_nccl_test", {"python": bare_python, "ranks": 2})
    report = act("run_nccl_test", {"python": bare_python, "ranks": 2, "on_busy_gpu": True})
    assert report.findings[0].kind == "no-torch"  # it went on


NCCL = """node1:733:733 [0] NCCL INFO cudaDriverVersion 12080
node1:733:733 [0] NCCL INFO Bootstrap: Using eth0:10.0.0.4<0>
node1:733:733 [0] NCCL INFO NCCL version 2.27.3+cuda12.9
node1:733:812 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.4<0>
node1:733:812 [0] NCCL INFO Using network Socket
node1:733:812 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
node1:733:812 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM
"""
OTHER = """node1:734:813 [1] NCCL INFO Channel 00/0 : 1[1] -> 0[0] via SHM/direct/direct
node1:734:813 [1] transport/p2p.cc:275 NCCL WARN Cuda failure 217 'peer access is not supported'
node1:734:813 [1] transport/p2p.cc:280 NCCL WARN a later one
"""


def test_what_nccl_prints_is_read() -> None:
    said = read_nccl({0: NCCL, 1: OTHER})
    assert said.version == "2.27.3"
    assert said.interface == "eth0 10.0.0.4"
    assert said.network.startswith("Socket")
    assert said.transports == {"0->1": "P2P/CUMEM", "1->0": "SHM/direct/direct"}
    assert said.warning == (1, "Cuda failure 217 'peer access is not supported'")


def test_changes_are_tried_most_telling_first_and_never_twice() -> None:
    shown = [c.shown for c in changes_for("nccl", {"NCCL_CUMEM_ENABLE": "0"}, ["eth0"])]
    assert shown[0] == "NCCL_P2P_DISABLE=1"
    assert "NCCL_CUMEM_ENABLE=0" not in shown
    assert shown[-1] == "NCCL_SOCKET_IFNAME=eth0"
    assert [c.shown for c in changes_for("gloo", {"GLOO_SOCKET_IFNAME": "x"}, ["eth0", "lo"])] == [
        "unset GLOO_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME=eth0", "GLOO_SOCKET_IFNAME=lo",
    ]  # fmt: skip
    assert changes_for("rendezvous", {}, ["eth0"]) == []


def kinds() -> set[str]:
    """Every kind that the worker can say."""
    found = set(re.findall(r'(?:Fault|_finding)\(\s*"([a-z0-9-]+)"', SOURCE)) | {kind for kind, _ in rank_worker.TEXTS}
    found |= set(re.findall(r'"([a-z-]+)" if [^\n]+ else "([a-z-]+)"', SOURCE)[0])
    return found | {"stage-failed", "rank-died", "rank-never-started", "rank-behind", "stage-hang", "shm-failed"}


def test_every_fault_stage_and_skip_has_its_sentence() -> None:
    words = load().sentences
    assert len(kinds()) > 20
    for kind in kinds() - {"ranks-missing"}:  # it always becomes a kind that names the ranks
        for lang in ("en", "zh"):
            text = words[f"nccl-{kind}"][lang].format(ranks="1", stage="gloo", detail="x")
            assert text.strip(), kind
    assert all(f"nccl-stage-{stage}" in words for stage in rank_worker.STAGES)
    skips = {reason.partition(":")[0] for reason in re.findall(r'Skip\(f?"([^"{]+)', SOURCE)}
    assert skips
    assert all(f"nccl-skip-{reason.strip()}" in words for reason in skips)


def watched(rank: int, **values: Any) -> rank_worker.Watched:
    made = rank_worker.Watched(rank, 0, -1, -1, -1)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def told(stage: str, kind: str, ranks: list[int] | None = None) -> dict[str, Any]:
    return {"stage": stage, "kind": kind, "text": "t", "ranks": ranks, "facts": {}}


def blame(*ranks: rank_worker.Watched) -> list[tuple[str, str, list[int]]]:
    options = rank_worker.parse(["--ranks", str(len(ranks))])
    return [(f["kind"], f["stage"], f["ranks"]) for f in rank_worker.name_the_fault(list(ranks), options)]


def test_the_dead_are_blamed_before_those_who_miss_them() -> None:
    dead = watched(1, stage="nccl", status=9)
    victim = watched(0, stage="nccl", status=256, fault=told("nccl", "peer-lost"))
    assert blame(victim, dead) == [("rank-died", "nccl", [1])]


def test_a_bus_error_is_shared_memory() -> None:
    assert blame(watched(0, stage="nccl", status=7))[0][0] == "shm-too-small"


def test_the_stopped_one_is_blamed_not_those_who_wait() -> None:
    assert blame(watched(0, stage="gloo", state="S"), watched(1, stage="gloo", state="T")) == [("rank-stopped", "gloo", [1])]  # fmt: skip


def test_the_one_behind_is_blamed() -> None:
    passed = {"import": 1.0}
    waiting = watched(0, stage="nccl", passed=passed)
    assert blame(waiting, watched(1, stage="cuda", passed=passed)) == [("rank-behind", "cuda", [1])]


def test_where_all_wait_in_one_stage_nobody_is_blamed_alone() -> None:
    passed = {"import": 1.0}
    assert blame(*(watched(r, stage="nccl", passed=passed) for r in range(3))) == [("stage-hang", "nccl", [0, 1, 2])]


def test_a_rank_that_only_lost_its_peer_is_shown_when_nobody_else_explains_it() -> None:
    assert blame(watched(0, status=256, fault=told("nccl", "peer-lost"))) == [("peer-lost", "nccl", [0])]


def test_an_output_that_ends_early_is_no_pass() -> None:
    report = nccl.judged(
        "en", Ran(events=[{"event": "start", "ranks": 2, "stages": {"import": 1}}], stderr="Killed"), "p"
    )
    assert report.verdict == "bad"
    assert report.findings[0].kind == "test-broken"
    assert "Killed" in report.summary


def test_the_printed_test_runs_from_standard_input_and_is_read_back(bare_python: str, tmp_path: Path) -> None:
    printed = subprocess.run([COMMAND, "sanity", "nccl", "--print-script"], capture_output=True, text=True, check=True)
    assert printed.stdout == SOURCE
    ran = subprocess.run(
        [bare_python, "-I", "-", "--ranks", "2"], input=printed.stdout, capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    saved = tmp_path / "result.jsonl"
    saved.write_text(ran.stdout)
    read = subprocess.run([COMMAND, "sanity", "nccl", "--read", str(saved), "-o", "json", "--exit-code"], capture_output=True, text=True, check=False)  # fmt: skip
    assert read.returncode == 1
    assert json.loads(read.stdout)["report"]["findings"][0]["kind"] == "no-torch"
    saved.write_text("something else\n")
    other = subprocess.run(
        [COMMAND, "sanity", "nccl", "--read", str(saved)], capture_output=True, text=True, check=False
    )
    assert other.returncode == 3
    assert "no line with the event start" in other.stderr


def test_a_store_that_went_away_blames_nobody() -> None:
    """What torch 2.13 says to the ranks that wait in the store when rank 0 ends; rank 0 has said why."""
    said = "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"
    kind = rank_worker.kind_of("shm", RuntimeError(said))
    assert kind == "peer-lost"
    ranks = [rank_worker.Watched(n, 0, 0, 0, 0) for n in range(2)]
    ranks[0].fault = {"stage": "shm", "kind": "shm-too-small", "text": "No space left on device", "ranks": None}
    ranks[1].fault = {"stage": "shm", "kind": kind, "text": said, "ranks": None}
    for rank in ranks:
        rank.status = 256
    assert [(f["kind"], f["ranks"]) for f in rank_worker._bad(ranks)] == [("shm-too-small", [0])]


@pytest.mark.parametrize("program", [nccl.WORKER, compiling.WORKER])
def test_a_real_python_3_9_runs_what_other_interpreters_get(oldest_python: str, program: Path) -> None:
    """Ranks start, fail for want of torch, and are judged: all of it but what torch itself would do."""
    arguments = ["--ranks", "2"] if program == nccl.WORKER else []
    ran = subprocess.run(
        [oldest_python, "-I", "-", *arguments], input=program.read_text("utf-8"), capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    verdict = json.loads(ran.stdout.splitlines()[-1])
    assert (verdict["event"], verdict["passed"]) == ("verdict", False)
    assert "no-torch" in json.dumps(verdict)


def test_the_command_asks_first_and_writes_the_call_down(bare_python: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{tmp_path}/store.db"}
    command = [COMMAND, "sanity", "nccl", "--python", bare_python, "--ranks", "2", "--cpu-only"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "give --yes to agree" in refused.stderr
    done = subprocess.run(
        [*command, "--yes", "--lang", "zh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "这个解释器里没有 torch" in done.stdout
    with contextlib.closing(Database(f"sqlite:///{tmp_path}/store.db")) as database:
        (line,) = Audit(database).recent()
    assert (line["did"], line["effect"], line["outcome"], line["face"]) == ("run_nccl_test", "loads", "done", "cli")
