"""A real Slurm and a real Ray of two nodes on this machine, for tests; skipped with the reason where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.assistant.nodes.serving import ROOT, command

LAB = ROOT / ".lab"
SLURM = ROOT / ".slurm" / "usr"
TORCH = LAB / "venv" / "bin" / "python"
RAY = LAB / "ray" / "bin"


@dataclass
class Cluster:
    """What the command needs to reach the nodes, and how to end one of them."""

    launcher: str
    environment: dict[str, str]
    options: list[str]
    kill: Callable[[str], None] = lambda node: None
    python: str = str(TORCH)
    extra: dict[str, Any] = field(default_factory=dict)

    def command(self, *options: str) -> list[str]:
        return command("sanity", "nccl", "--launcher", self.launcher, "--cpu-only", "--yes", "-o", "json", *self.options, *options)  # fmt: skip

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*options), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *options: str, seconds: float = 200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*options), env=self.environment, capture_output=True, text=True, timeout=seconds, check=False)  # fmt: skip

    def report(self, *options: str) -> dict[str, Any]:
        return report_of(self.run("--python", self.python, *options))


def report_of(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)["report"]
    return report


def finished(process: subprocess.Popen[str], seconds: float = 200) -> dict[str, Any]:
    out, err = process.communicate(timeout=seconds)
    return report_of(subprocess.CompletedProcess(process.args, process.returncode, out, err))


def checked(ran: subprocess.CompletedProcess[str], node: str) -> dict[str, list[tuple[str, Any]]]:
    """Of one node of `check -o json`: status and value of its rows by their id."""
    assert ran.returncode == 0, ran.stderr
    (found,) = [row for row in json.loads(ran.stdout)["nodes"] if node in (row["name"], row["name"].partition("(")[2].rstrip(")"))]  # fmt: skip
    assert not found["lost"], found
    by_id: dict[str, list[tuple[str, Any]]] = {}
    for check in found["checks"]:
        by_id.setdefault(check["id"], []).append((check["status"], check["value"]))
    return by_id


def rows(report: dict[str, Any], identity: str) -> list[str]:
    return [str(check["value"]) for check in report["checks"] if check["id"] == f"cluster.{identity}"]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if parent(int(path.name)) == pid:
                found.append(int(path.name))
    return found


def in_group(first_rank: int, port: int, seconds: float = 90) -> int:
    """The supervisor that starts ranks from ``first_rank`` on, of the group that meets at ``port``, once its ranks run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError, ValueError):
                words = path.read_bytes().decode("utf-8", "replace").split("\0")
                here = "--first-rank" in words and words[words.index("--first-rank") + 1] == str(first_rank)
                here = here and any(word.endswith(f":{port}") for word in words)
                if here and children(int(path.parent.name)):
                    return int(path.parent.name)
        time.sleep(0.05)
    raise AssertionError(f"no ranks from {first_rank} on meet at {port}")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def base_environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT)}


def need_torch() -> None:
    if not TORCH.exists():
        pytest.skip("torch is that of the laboratory (make lab)")


# --- Slurm ------------------------------------------------------------------------------------------------------------

_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={run}/munge.socket
PluginDir={plugins}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/spool.%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={run}/prolog
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=10
KillWait=5
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm(count: int = 2) -> Iterator[Cluster]:
    """munged, slurmctld and ``count`` slurmd, from Debian's packages; each node's ranks have an address of their own."""
    need_torch()
    if not (SLURM / "sbin" / "slurmd-wlm").exists():
        pytest.skip("there is no Slurm here; scripts/slurm_setup.sh .slurm unpacks Debian's")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts the tasks of users and must be root")
    run = Path(tempfile.mkdtemp(prefix="vds-"))  # short: the path of munge's socket has at most 107 characters
    (run / "state").mkdir()
    key = run / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(256))
    libraries = SLURM / "lib" / "x86_64-linux-gnu"
    plugins = libraries / "slurm-wlm"
    prolog = run / "prolog"
    prolog.write_text('#!/bin/sh\necho "export VLLM_HOST_IP=127.0.61.${SLURMD_NODENAME#n}"\n')
    prolog.chmod(0o755)
    names = [f"n{number}" for number in range(1, count + 1)]
    host, ports = socket.gethostname().split(".")[0], free_ports(1 + count)
    lines = [
        f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=1 RealMemory=50\n"
        for name, port in zip(names, ports[1:], strict=True)
    ]
    config = _CONFIG.format(host=host, ports=ports, run=run, plugins=plugins).partition("PartitionName")
    (run / "slurm.conf").write_text("".join((config[0], *lines, *config[1:])))
    env = base_environment(run) | {
        "SLURM_CONF": str(run / "slurm.conf"),
        "LD_LIBRARY_PATH": f"{libraries}:{plugins}:{SLURM.parent}/lib/x86_64-linux-gnu",
    }
    env["PATH"] = f"{SLURM}/bin:{env['PATH']}"
    started: list[subprocess.Popen[bytes]] = []
    daemons: dict[str, subprocess.Popen[bytes]] = {}

    def daemon(*words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=run, start_new_session=True)  # fmt: skip
        started.append(process)
        return process

    def node(name: str) -> None:
        daemons[name] = daemon(f"{SLURM}/sbin/slurmd-wlm", "-D", "-N", name, "-d", f"{SLURM}/sbin/slurmstepd-wlm")

    def kill(name: str) -> None:
        os.kill(daemons[name].pid, signal.SIGKILL)

    def ask(*words: str) -> str:
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=20, check=False).stdout

    def up() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if sorted(ask("sinfo", "-h", "-N", "-o", "%N=%T").split()) == sorted(f"{name}=idle" for name in names):
                return
            time.sleep(0.3)
        logs = "".join(path.read_text()[-1500:] for path in run.glob("*.log"))
        pytest.skip(f"Slurm does not come up here: {logs}")

    try:
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "seed"}  # fmt: skip
        daemon(f"{SLURM}/sbin/munged", "--foreground", "--force", *(f"--{k}={run / v}" for k, v in files.items()))
        daemon(f"{SLURM}/sbin/slurmctld-wlm", "-D", "-c")
        for name in names:
            node(name)
        up()
        extra = {"ask": ask, "node": node, "up": up}
        yield Cluster("slurm", env, ["--ports", "29630-29632", "--nodes", str(count)], kill, extra=extra)
    finally:
        ask("scancel", "--user=root")
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        shutil.rmtree(run, ignore_errors=True)


# --- Ray --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ray(*more: str, second: str = "true") -> Iterator[Cluster]:
    """A head and a second node, each with an address of loopback; ``more`` are options of both (``--num-gpus=1``), and
    ``second`` is what a shell does before it starts the second."""
    need_torch()
    if not (RAY / "ray").exists():
        pytest.skip("there is no Ray here; scripts/ray_setup.sh .lab installs it beside the laboratory")
    folder = Path(tempfile.mkdtemp(prefix="vdr-"))  # short, for Ray's sockets
    (port,) = free_ports(1)
    env = base_environment(folder) | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)}
    nodes = {"127.0.62.1": ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}/r"]}
    nodes["127.0.62.2"] = [f"--address=127.0.62.1:{port}"]
    started: dict[str, subprocess.Popen[bytes]] = {}

    def kill(address: str) -> None:
        """The raylet of a node, as a machine that loses its power: its workers end with it."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = path.read_bytes().decode("utf-8", "replace")
                if "raylet/raylet" in text.split("\0")[0] and str(folder) in text and f"={address}" in text:
                    os.kill(int(path.parent.name), signal.SIGKILL)

    try:
        for address, options in nodes.items():
            words = [str(RAY / "ray"), "start", "--block", f"--node-ip-address={address}", "--num-cpus=1", "--disable-usage-stats", *options, *more]  # fmt: skip
            if "--head" not in options:
                words = ["sh", "-c", f'{second} && exec "$@"', "sh", *words]
            log = (folder / f"{address}.log").open("wb")
            started[address] = subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)
            end = time.monotonic() + 90
            while time.monotonic() < end and b"Ray runtime started" not in (folder / f"{address}.log").read_bytes():
                if started[address].poll() is not None:
                    pytest.skip(f"Ray does not start here: {(folder / f'{address}.log').read_text()[-1500:]}")
                time.sleep(0.2)
        where = f"127.0.62.1:{port}"
        yield Cluster("ray", env, ["--ports", "29640-29642", "--address", where], kill, str(RAY / "python"))
    finally:
        for process in started.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
