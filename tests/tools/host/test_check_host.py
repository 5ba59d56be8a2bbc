"""`check_host` on this machine, in namespaces with real limits, and through the /proc of a process that looks like a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.host.check import HostInput, View, look, model_folder
from tools.host.facts import cgroup_memory, file_system, read_mounts
from tools.host.loading import measure_loading
from tools.host.packages import unmet
from tools.processes import Process, Server, interpreter, server_of, servers
from tools.registry import get

COMMAND = str(Path(sys.executable).with_name("vllm-diagnose"))


def here(*command: str, **environment: str) -> Any:
    ran = subprocess.run(
        [*command, COMMAND, "sanity", "host", "-o", "json"], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def alone() -> list[str]:
    """Where somebody else's server runs on this machine: a /proc of our own, in which there is none."""
    if not servers():
        return []
    command = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:  # fmt: skip
        pytest.skip("a vLLM server runs on this machine, and namespaces need root here")
    return command


def rows(report: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in report["checks"]:
        found.setdefault(row["id"], []).append(row)
    return found


def needs_namespaces() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:  # fmt: skip
        pytest.skip("namespaces need root here")


@contextlib.contextmanager
def pretending(tmp_path: Path, script: str = "true", **environment: str) -> Iterator[Process]:
    """A process whose command line is that of `vllm serve`, in a mount namespace of its own."""
    needs_namespaces()
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    model = tmp_path / "model"
    model.mkdir()
    command = ["unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh", sys.executable, str(program), "serve", str(model)]  # fmt: skip
    started = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment})
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == b"up\n"
        found = server_of(started.pid)
        assert found is not None
        yield found.main
    finally:
        started.kill()
        started.wait()
        if started.stdout is not None:
            started.stdout.close()


def test_without_a_server_it_says_that_it_measured_here() -> None:
    body = here(*alone())
    found = rows(body["report"])
    assert "measured here, not in a server's container" in found["host.no-server"][0]["text"]
    assert {"host.shm", "host.files", "host.ram", "host.cpu", "host.cache", "host.compiler"} <= set(found)
    assert all(row["where"] == "here" for row in body["report"]["checks"])


def test_shared_memory_of_64_kib_is_measured_and_becomes_evidence() -> None:
    needs_namespaces()
    body = here("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@" --pid $$', "sh")
    (row,) = rows(body["report"])["host.shm"]
    assert (row["status"], row["value"]) == ("bad", "64 KiB / 64 KiB")
    (fact,) = [fact for fact in body["report"]["facts"] if fact["name"] == "host.shm_bytes"]
    assert fact["value"] == 65536


def test_a_server_is_seen_through_its_own_mounts_limits_and_environment(tmp_path: Path) -> None:
    script = "mount -t tmpfs -o size=128k none /dev/shm && ulimit -n 300"
    with pretending(tmp_path, script, NCCL_P2P_DISABLE="1", CUDA_LAUNCH_BLOCKING="0", NCCL_DEBUG="INFO") as server:
        report = look(HostInput(pid=server.pid)).model_dump(mode="json")
    found = rows(report)
    assert found["host.shm"][0]["value"] == "128 KiB / 128 KiB"
    assert found["host.shm"][0]["where"] == "server"
    assert found["host.files"][0]["value"] == 300
    assert {(row["value"], row["status"]) for row in found["host.lingering"]} == {("NCCL_P2P_DISABLE=1", "bad"), ("NCCL_DEBUG=INFO", "note")}  # fmt: skip
    assert str(tmp_path / "model") in found["host.model-files"][0]["value"]
    assert {f["name"]: f["value"] for f in report["facts"]}["environment.NCCL_P2P_DISABLE"] == "1"


def test_a_read_only_cache_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with pretending(tmp_path, f"mount -t tmpfs -o ro,size=1m none {cache}", VLLM_CACHE_ROOT=str(cache)) as server:
        report = look(HostInput(pid=server.pid)).model_dump(mode="json")
    (row,) = rows(report)["host.cache-readonly"]
    assert (row["status"], "vllm" in row["value"], "tmpfs" in row["value"]) == ("bad", True, True)
    assert {f["name"]: f["value"] for f in report["facts"]}["host.cache_writable"] == "no"


def test_the_interpreter_is_that_of_the_virtual_environment(tmp_path: Path) -> None:
    """/proc/PID/exe leads to the base interpreter, where the packages are not."""
    with pretending(tmp_path) as server:
        assert Path(f"/proc/{server.pid}/exe").resolve() == Path(sys.executable).resolve()
        assert interpreter(server.pid) == Path(sys.executable)


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    """A real memory group where one can be made here."""
    base = next(
        (b for b in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if (b / "cgroup.procs").exists()), None
    )
    if base is None:
        pytest.skip("no control groups here")
    group = base / f"vllm-diagnose-{os.getpid()}"
    name = "memory.max" if base.name == "cgroup" else "memory.limit_in_bytes"
    try:
        group.mkdir()
        (group / name).write_text(str(512 << 20))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error.strerror}")
    held = subprocess.Popen(["sleep", "600"])
    try:
        (group / "cgroup.procs").write_text(str(held.pid))
        view = View(Server(Process(held.pid, 0, "S", ("vllm", "serve"), 0.0, 0.0)))
        assert cgroup_memory(view)[0] == 512 << 20
    finally:
        held.kill()
        held.wait()
        time.sleep(0.1)
        group.rmdir()


def test_the_model_of_a_command_line() -> None:
    def of(*command: str) -> str | None:
        return model_folder(Server(Process(os.getpid(), 1, "S", command, 0, 0)))

    assert of("python", "vllm", "serve", "/models/a", "--port", "1") == "/models/a"
    assert of("python", "-m", "vllm.entrypoints.openai.api_server", "--model=/models/b") == "/models/b"
    assert of("vllm", "serve", "org/name") == f"{Path.cwd()}/org/name"
    assert model_folder(None) is None


def test_the_file_system_of_a_path_is_that_of_its_longest_mount() -> None:
    mounts = [
        ("/", "ext4", "rw"),
        ("/data", "nfs4", "rw"),
        ("/data/local", "xfs", "rw"),
        ("/data/local", "tmpfs", "rw"),
    ]
    assert file_system("/data/x", mounts) == "nfs4"
    assert file_system("/database", mounts) == "ext4"
    assert file_system("/data/local/y", mounts) == "tmpfs"
    assert file_system("/proc", read_mounts(View(None))) == "proc"


def test_pins_that_are_not_met_are_found_and_conditions_are_respected() -> None:
    metadata = (
        "Requires-Dist: torch (==2.13.0)\nRequires-Dist: xgrammar==0.2.1; platform_machine == \"x86_64\"\n"
        "Requires-Dist: numpy\nRequires-Dist: ray==9.9; extra == \"ray\"\nRequires-Dist: protobuf!=4.24.*,>=5\n"
        "Requires-Dist: setuptools==77.*\n"
    )  # fmt: skip
    installed = {
        "torch": "2.12.0+cu129",
        "xgrammar": "0.2.1",
        "numpy": "2.0",
        "ray": "1",
        "protobuf": "5",
        "setuptools": "80",
    }
    assert unmet(metadata, installed) == [("torch", "2.13.0")]
    assert unmet(metadata, {"torch": "2.13.0+cpu"}) == []


def test_reading_speed_is_measured_on_real_files(tmp_path: Path) -> None:
    import asyncio

    from assistant.security.consent import agree
    from assistant.security.roles import LOCAL
    from tools.registry import ActionError, Context

    action = get("measure_loading")
    assert action.function is measure_loading
    assert action.effect == "loads"

    def measure(**given: Any) -> Any:
        return asyncio.run(action.call(given, Context(consent=agree(LOCAL, action, given))))

    with pytest.raises(ActionError, match="holds no weights"):
        measure(model=str(tmp_path))
    with pytest.raises(ActionError, match="no local folder of a model"):
        measure(model=str(tmp_path / "missing"))
    (tmp_path / "model.safetensors").write_bytes(os.urandom(24 << 20))
    report = measure(model=str(tmp_path), took_s=1000.0)
    facts = {fact.name: fact.value for fact in report.facts}
    assert facts["loading.disk_gib_per_s"] > 0
    assert facts["loading.limit"] == "device"  # 24 MiB do not take 1,000 s to read
    assert re.fullmatch(r"0\.02 GiB, \w+", str(next(c.value for c in report.checks if c.id == "loading.files")))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("printed", "limit", "says"),
    [
        (
            "Time spent downloading weights for org/m: 93.2 seconds\nLoading weights took 7.5 seconds",
            "download",
            "93.2 s",
        ),
        ("Loading weights took 812.50 seconds", "device", "Reading takes only"),
        ("Loading weights took 0.00001 seconds", "disk", "the disk is the limit"),
    ],
)
def test_what_a_server_printed_says_what_its_start_waited_for(
    tmp_path: Path, printed: str, limit: str, says: str
) -> None:
    """A server of a model from the hub: its weights are found in the cache, and its times in the log it prints into."""
    from assistant.security.consent import agree
    from assistant.security.roles import LOCAL
    from tools.registry import Context

    repository = tmp_path / "hub" / "models--org--m"
    weights = repository / "snapshots" / COMMIT
    weights.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (weights / "model.safetensors").write_bytes(os.urandom(8 << 20))
    program = tmp_path / "vllm"
    program.write_text(f"import time\nprint({printed!r}, flush=True)\ntime.sleep(600)\n")
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, str(program), "serve", "org/m", "-tp", "2"], stdout=out, stderr=out,
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")},
        )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while not log.read_bytes() and time.monotonic() < end:
            time.sleep(0.05)
        given = {"pid": started.pid}
        action = get("measure_loading")
        report = asyncio.run(action.call(given, Context(consent=agree(LOCAL, action, given))))
    finally:
        started.kill()
        started.wait()
    row = next(row for row in report.checks if row.id.startswith("loading.limit"))
    assert (row.id, says in row.text) == (f"loading.limit-{limit}", True), row
    assert {fact.name: fact.value for fact in report.facts}["loading.limit"] == limit
