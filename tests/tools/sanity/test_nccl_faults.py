"""Real ranks with real torch, and real faults: each is named with its rank and stage, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.processes import all_processes, read
from tools.sanity import nccl
from tools.sanity.launch import run_program

pytestmark = pytest.mark.lab
ROOT = Path(__file__).resolve().parents[3]
COMMAND = str(Path(sys.executable).with_name("vllm-diagnose"))
#: Seconds that each stage may take in these tests; the import of torch has its own.
STAGE_S = 5
MAIN = '\nif __name__ == "__main__":'


def broken(change: str) -> str:
    """The test's text with one rank made to misbehave; everything else is as it is shipped."""
    assert nccl.script().count(MAIN) == 1
    return nccl.script().replace(MAIN, f"\n{change}\n{MAIN}")


#: Rank 1 does something to itself at the very call of the all-reduce, while rank 0 is inside it.
AT_ALL_REDUCE = """
_whole = Rank.stage_gloo
def _at_all_reduce(self):
    if self.rank == 1:
        import torch.distributed as dist
        def instead(*a, **k): {act}
        dist.all_reduce = instead
    return _whole(self)
Rank.stage_gloo = _at_all_reduce
"""
NEVER = """
_started = run_rank
def _never(rank, *rest):
    if rank == 1: time.sleep(600)
    _started(rank, *rest)
run_rank = _never
"""


#: Every process that these tests start carries it in its environment, so that other people's runs are not counted.
TOKEN = f"SANITY_TEST_TOKEN={secrets.token_hex(8)}"


def left() -> tuple[list[int], list[str]]:
    """What the tests have left: processes of theirs (and so their ports), and shared memory whose maker is gone."""
    processes = [p.pid for p in all_processes() if p.state != "Z" and TOKEN in read(f"/proc/{p.pid}/environ", 1 << 20)]
    segments = [p.name for p in Path("/dev/shm").glob("vllm-diagnose-*")]
    return processes, [name for name in segments if not Path(f"/proc/{name.split('-')[2]}").exists()]


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(*TOKEN.split("="))
    yield
    assert left() == ([], [])


def test_what_is_left_would_be_seen() -> None:
    """The check itself: a process and a segment of a dead maker are found, and gone again they are not."""
    with subprocess.Popen(["sleep", "600"]) as child:
        time.sleep(0.2)
        segment = Path(f"/dev/shm/vllm-diagnose-{4194303}-test")
        segment.touch()
        found = left()
        segment.unlink()
        child.kill()
    assert found == ([child.pid], [segment.name])


@pytest.fixture
def run(torch_python: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the test, with a changed text and in a changed environment, and judges it."""

    def go(*arguments: str, change: str = "", environment: dict[str, str] | None = None) -> Any:
        source = broken(change) if change else nccl.script()
        ran = asyncio.run(
            run_program(
                [torch_python], source, ["--child", "--stage-seconds", str(STAGE_S), *arguments],
                environment={**os.environ, **(environment or {})}, deadline_s=120,
            )
        )  # fmt: skip
        return nccl.judged("en", ran, torch_python)

    return go


def faults(report: Any) -> list[tuple[str, str, list[int]]]:
    return [(f.kind, f.stage, f.ranks) for f in report.findings if f.severity == "bad"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_sound_ranks_pass(run: Callable[..., Any], ranks: int) -> None:
    started = time.monotonic()
    report = run("--ranks", str(ranks))
    print(f"{ranks} ranks: {time.monotonic() - started:.1f} s")
    assert faults(report) == []
    status = {row.stage: row.status for row in report.stages}
    assert [status[s] for s in ("import", "rendezvous", "barrier", "shm", "gloo")] == ["ok"] * 5
    assert all(row.status != "skipped" or row.why for row in report.stages)
    for row in report.stages:
        assert [(r.rank, r.status) for r in row.ranks] == [(n, row.status) for n in range(ranks)]
        assert row.status != "ok" or max(r.seconds for r in row.ranks) == row.seconds
    assert report.facts[0].value == "none"


#: Comes to vLLM's class without the GPU that the stage asks for before.
WITHOUT_GPU = "Rank.stage_custom = lambda self: {'made': self.custom_communicator() is not None}"


def test_the_real_vllm_declines_its_custom_all_reduce_in_its_own_words(run: Callable[..., Any], torch_python: str) -> None:  # fmt: skip
    """The class of the installed vLLM over a real group: a build without its kernels says so, and the stage is skipped."""
    probe = (
        "import torch, importlib.util as u; print(u.find_spec('vllm') is not None and not torch.cuda.is_available())"
    )
    ran = subprocess.run([torch_python, "-I", "-c", probe], capture_output=True, text=True, check=False)
    if ran.stdout.strip() != "True":
        pytest.skip("this needs a vLLM on a machine without a GPU")
    usual = {row.stage: row for row in run("--ranks", "2").stages}
    assert (usual["custom"].status, usual["custom"].why) == ("skipped", "needs the GPU stage before it")
    report = run("--ranks", "2", "--stage-seconds", "110", change=WITHOUT_GPU)
    row = {row.stage: row for row in report.stages}["custom"]
    assert faults(report) == []
    wanted = "vLLM does not use it here: Custom allreduce is disabled because of missing custom allreduce library"
    assert (row.status, row.why, [r.rank for r in row.ranks]) == ("skipped", wanted, [0, 1])


def test_a_rank_that_never_starts(run: Callable[..., Any]) -> None:
    assert faults(run("--ranks", "2", change=NEVER)) == [("rank-never-started", "barrier", [1])]


def test_a_rank_that_nobody_started(run: Callable[..., Any]) -> None:
    report = run("--ranks", "3", "--here", "2", "--master", f"127.0.0.1:{free_port()}")
    assert faults(report) == [("rank-never-started", "barrier", [2])]


#: Rank 1 comes to the barrier when rank 0, and the store with it, is already gone.
LATE = """
_wait = Rank._wait
def _late(self, keys, seconds):
    if self.rank == 1: time.sleep({seconds} * 0.9)
    _wait(self, keys, seconds)
Rank._wait = _late
"""


def test_a_store_that_is_gone_hides_nobody(run: Callable[..., Any]) -> None:
    change = LATE.format(seconds=STAGE_S)
    report = run("--ranks", "3", "--here", "2", "--master", f"127.0.0.1:{free_port()}", change=change)
    assert faults(report) == [("rank-never-started", "barrier", [2])]


def test_a_rank_that_dies_in_the_all_reduce(run: Callable[..., Any]) -> None:
    change = AT_ALL_REDUCE.format(act="os.kill(os.getpid(), signal.SIGKILL)")
    report = run("--ranks", "2", change=change)
    assert faults(report) == [("rank-died", "gloo", [1])]
    assert "SIGKILL" in report.summary
    ranks = {row.stage: [(r.rank, r.status) for r in row.ranks] for row in report.stages}
    assert ranks["shm"] == [(0, "ok"), (1, "ok")]
    assert ranks["gloo"][1] == (1, "bad")
    assert ranks["cuda"] == []  # nobody came so far


def test_a_rank_that_is_stopped_in_the_all_reduce(run: Callable[..., Any]) -> None:
    change = AT_ALL_REDUCE.format(act="os.kill(os.getpid(), signal.SIGSTOP)")
    report = run("--ranks", "2", change=change)
    assert faults(report) == [("rank-stopped", "gloo", [1])]
    (finding,) = [f for f in report.findings if f.severity == "bad"]
    assert "instead" in finding.stacks["1"]  # the frame in which it stood


def test_a_rank_that_hangs_in_python(run: Callable[..., Any]) -> None:
    report = run("--ranks", "2", change=AT_ALL_REDUCE.format(act="time.sleep(600)"))
    assert [(kind, stage) for kind, stage, _ in faults(report)] == [("stage-hang", "gloo")]
    assert "instead" in report.findings[0].stacks["1"]
    assert "all_reduce" in report.findings[0].stacks["0"]


def test_a_wrong_master_address(run: Callable[..., Any]) -> None:
    report = run("--ranks", "2", "--master", f"192.0.2.77:{free_port()}")
    assert faults(report)[0][:2] == ("wrong-master", "rendezvous")


def test_a_master_whose_name_is_unknown(run: Callable[..., Any]) -> None:
    report = run("--ranks", "2", "--master", f"no-such-host.invalid:{free_port()}")
    assert faults(report) == [("master-name-unknown", "rendezvous", [0, 1])]


def test_a_wrong_interface_and_the_change_that_cures_it(torch_python: str, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    report = act("run_nccl_test", {"python": torch_python, "ranks": 2, "stage_s": STAGE_S, "cpu_only": True})
    assert faults(report) == [("wrong-interface", "gloo", [0, 1])]
    assert report.cure == "unset GLOO_SOCKET_IFNAME"
    assert [t.passed for t in report.tried] == [True]
    assert report.cost
    assert next(f.value for f in report.facts if f.name == "collective.cure") == "GLOO_SOCKET_IFNAME"


def test_two_that_want_one_port(run: Callable[..., Any]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        report = run("--ranks", "2", "--master", f"127.0.0.1:{port}")
    assert faults(report) == [("port-in-use", "rendezvous", [0])]
    assert f"pid {os.getpid()}" in report.summary  # the owner is named


def test_a_rank_that_is_started_twice(run: Callable[..., Any], torch_python: str) -> None:
    port = free_port()
    other = subprocess.Popen(
        [torch_python, "-I", "-", "--ranks", "3", "--here", "2", "--master", f"127.0.0.1:{port}", "--stage-seconds", "15"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write(nccl.script())
    other.stdin.close()
    for line in other.stdout:
        if json.loads(line)["event"] == "done" and json.loads(line)["stage"] == "rendezvous":
            break
    report = run("--ranks", "3", "--first-rank", "1", "--here", "1", "--master", f"127.0.0.1:{port}")
    other.stdout.read()
    other.wait(30)
    assert faults(report) == [("rank-twice", "rendezvous", [1])]


def run_inside(command: list[str], *arguments: str) -> Any:
    """The command line in other namespaces; its report."""
    ran = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def fault_of(body: Any) -> list[tuple[str, str, list[int]]]:
    return [(f["kind"], f["stage"], f["ranks"]) for f in body["report"]["findings"] if f["severity"] == "bad"]


def command_line(torch_python: str) -> list[str]:
    return [COMMAND, "sanity", "nccl", "--python", torch_python, "--ranks", "2", "--yes", "--no-bisect", "--cpu-only",
            "--stage-seconds", str(STAGE_S), "-o", "json"]  # fmt: skip


def test_a_blocked_port(torch_python: str, unshare: Callable[..., list[str]]) -> None:
    """In a network of its own, a routing rule prohibits this one port as a firewall would."""
    rules = (
        "ip link set lo up && ip rule add pref 10 lookup local && ip rule del pref 0 "
        "&& ip rule add pref 5 ipproto tcp dport 29511 prohibit"
    )
    body = run_inside(unshare("-n", rules, *command_line(torch_python)), "--master", "127.0.0.1:29511")
    assert fault_of(body) == [("port-blocked", "rendezvous", [0, 1])]
    assert body["diagnosis"]["causes"][0]["id"] == "distributed/rendezvous-failed"


def test_shared_memory_of_64_kib(torch_python: str, unshare: Callable[..., list[str]]) -> None:
    body = run_inside(unshare("-m", "mount -t tmpfs -o size=64k none /dev/shm", *command_line(torch_python)))
    assert fault_of(body) == [("shm-too-small", "shm", [0])]
    assert body["diagnosis"]["causes"][0]["id"] == "distributed/shm-too-small"


def hosts(address: str, tmp_path: Path) -> str:
    file = tmp_path / "hosts"
    file.write_text(f"127.0.0.1 localhost\n{address} a-test-node\n")
    return f"mount --bind {file} /etc/hosts && hostname a-test-node"


def test_a_host_name_that_leads_to_loopback(torch_python: str, unshare: Callable[..., list[str]], tmp_path: Path) -> None:  # fmt: skip
    """One node works all the same; the finding says what would happen with several."""
    command = unshare("-m -u", hosts("127.0.1.1", tmp_path), *command_line(torch_python))
    findings = run_inside(command)["report"]["findings"]
    assert [(f["kind"], f["stage"], f["ranks"], f["severity"]) for f in findings] == [("host-name-loopback", "gloo", [0, 1], "note")]  # fmt: skip
    assert "a-test-node is 127.0.1.1" in findings[0]["text"]


def test_a_sound_host_name_is_no_finding(torch_python: str, unshare: Callable[..., list[str]], tmp_path: Path) -> None:
    from tools.network.interfaces import candidates

    own = next((a for row in candidates() for a in row.addresses if "." in a), None)
    if own is None:
        pytest.skip("no interface but loopback here")
    assert run_inside(unshare("-m -u", hosts(own, tmp_path), *command_line(torch_python)))["report"]["findings"] == []


def free_port() -> int:
    """A port that nobody has, below those that the kernel hands out: importing torch takes long enough to lose one."""
    for _ in range(100):
        port = random.randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    pytest.fail("no free port was found")


def test_cancelling_a_job_leaves_nothing(torch_python: str, tmp_path: Path) -> None:
    """As a job of the store: queued with a consent, cancelled while ranks run, and every process gone."""
    from assistant import acting
    from assistant.security.consent import Consents
    from assistant.security.roles import LOCAL
    from assistant.store.audit import Audit
    from assistant.store.database import Database
    from assistant.store.jobs import Jobs
    from assistant.store.migrations import migrate
    from assistant.store.worker import Worker
    from tools import registry
    from tools.addresses import Policy

    registry.discover()
    database = Database(f"sqlite:///{tmp_path}/store.db")
    migrate(database)
    jobs, audit, consents = Jobs(database), Audit(database), Consents(b"k" * 32)
    action = registry.get("run_nccl_test")
    arguments = {"python": torch_python, "ranks": 2, "here": 1, "master": f"127.0.0.1:{free_port()}", "stage_s": 60.0}
    confirmed = consents.accept(LOCAL, consents.ask(LOCAL, action, arguments), action, arguments)
    job = acting.enqueue(jobs, LOCAL, action, arguments, face="cli", confirmed=confirmed, audit=audit)

    async def work() -> None:
        stop = asyncio.Event()
        worker = asyncio.create_task(Worker(jobs, acting.carrier(Policy()), lease_s=5, look_every_s=0.1).run(stop))
        while jobs.get(job.id).progress is None:  # noqa: ASYNC110 (the ranks report into the database)
            await asyncio.sleep(0.1)
        jobs.cancel(job.id)
        while not jobs.get(job.id).finished:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        stop.set()
        await worker

    asyncio.run(asyncio.wait_for(work(), 60))
    assert jobs.get(job.id).state == "cancelled"
    assert [line["outcome"] for line in audit.recent()] == ["allowed"]
    database.close()


@pytest.mark.endure
def test_twenty_runs_in_a_row_leave_nothing(run: Callable[..., Any]) -> None:
    died, stopped = ("os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGSTOP)")
    changes = ["", AT_ALL_REDUCE.format(act=died), AT_ALL_REDUCE.format(act=stopped), ""]
    for number in range(20):
        report = run("--ranks", str(2 + number % 3), change=changes[number % 4])
        assert bool(faults(report)) == bool(changes[number % 4]), report.findings
        assert left() == ([], [])


def test_real_gpu_stages(torch_python: str, act: Any) -> None:
    """On a machine with a GPU: NCCL with one rank, and real NVML."""
    probe = subprocess.run([torch_python, "-I", "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True, check=False)  # fmt: skip
    if probe.stdout.strip() in ("", "0"):
        pytest.skip("no GPU here")
    report = act("run_nccl_test", {"python": torch_python, "ranks": 1})
    status = {row.stage: row.status for row in report.stages}
    assert status["cuda"] == status["nccl"] == "ok"
    assert act("check_gpu", {}).facts
