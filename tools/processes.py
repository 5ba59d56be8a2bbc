"""Processes of this machine as /proc shows them: which of them are a vLLM server, and what each is about to do.

Everything here only reads. A process may end or deny us at any moment, so every function answers with what it could
get; what could not be read is empty or None.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.proc import PROC as PROC
from tools.proc import read as read
from tools.redaction import clean, redact

#: Command lines of a server's own process: `vllm serve`, and the older module entry points.
_SERVES = re.compile(r"(?:^|/)vllm\s+serve\b|vllm\.entrypoints\.(?:openai\.api_server|cli\.main|api_server)\b")
#: Titles that vLLM gives its processes (set_process_title in vllm/utils/system_utils.py, 0.10 to 0.33).
_TITLE = re.compile(r"^VLLM::(?P<name>\S+)")
#: Bytes of a log's end that are kept.
_LOG_TAIL = 256 << 10
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. ``state`` is the letter of proc(5): R, S, D, T, t, Z; ``cpu_s`` the seconds of CPU so far."""

    pid: int
    parent: int
    state: str
    command: tuple[str, ...]
    cpu_s: float
    started_s: float  # seconds after the machine's start
    session: int = 0

    @property
    def title(self) -> str:
        """What it is called in vLLM's own words ("EngineCore", "Worker_TP0"), or its program."""
        line = " ".join(self.command)
        if found := _TITLE.match(line):
            return found["name"]
        if _SERVES.search(line):
            return "APIServer"
        return Path(self.command[0]).name if self.command else "?"

    @property
    def is_server(self) -> bool:
        return bool(_SERVES.search(" ".join(self.command)))


@dataclass(frozen=True, slots=True)
class Server:
    """A vLLM server: the process that was started, and all below it."""

    main: Process
    below: tuple[Process, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def processes(self) -> tuple[Process, ...]:
        return (self.main, *self.below)


def process(pid: int) -> Process | None:
    """The process, or None where there is none."""
    stat = read(PROC / str(pid) / "stat")
    head, bracket, rest = stat.rpartition(")")
    if not bracket:
        return None
    values = rest.split()
    raw = read(PROC / str(pid) / "cmdline").rstrip("\0 ")
    command = tuple(part for part in raw.split("\0") if part) or (head.partition("(")[2],)
    return Process(
        pid=pid,
        parent=int(values[1]),
        state=values[0],
        command=command,
        cpu_s=(int(values[11]) + int(values[12])) / _TICKS,
        started_s=int(values[19]) / _TICKS,
        session=int(values[3]),
    )


def all_processes() -> list[Process]:
    """Every process that /proc shows, by number."""
    numbers = sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return [found for number in numbers if (found := process(number)) is not None]


def environment(pid: int) -> dict[str, str]:
    """The environment the process was started with; empty where it may not be read."""
    pairs = (entry.partition("=") for entry in read(PROC / str(pid) / "environ", 1 << 20).split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def below(pid: int, known: list[Process]) -> tuple[Process, ...]:
    """The descendants of a process among ``known``, parents first."""
    found: list[Process] = []
    parents = {pid}
    pending = list(known)
    while True:
        children = [p for p in pending if p.parent in parents]
        if not children:
            return tuple(found)
        found += children
        parents |= {p.pid for p in children}
        pending = [p for p in pending if p.pid not in parents]


def servers() -> list[Server]:
    """The vLLM servers of this machine. A launcher above a server and its forks below it are not counted again."""
    known = all_processes()
    mains = [p for p in known if p.is_server]
    numbers = {p.pid for p in mains}
    tops = [p for p in mains if p.parent not in numbers and not _is_shell(p)]
    return [Server(p, below(p.pid, known), environment(p.pid)) for p in tops]


def _is_shell(found: Process) -> bool:
    name = Path(found.command[0]).name
    return name in ("sh", "bash", "dash", "zsh", "timeout", "nohup", "sudo", "tini", "dumb-init", "unshare", "nsenter")


def server_of(pid: int) -> Server | None:
    """The server that a process belongs to, or the process itself with all below it; None where there is none."""
    given = process(pid)
    if given is None:
        return None
    for server in servers():
        if any(p.pid == pid for p in server.processes):
            return server
    return Server(given, below(pid, all_processes()), environment(pid))


def listeners() -> dict[int, set[int]]:
    """TCP ports that somebody listens on, with the processes (as far as /proc lets us see their descriptors)."""
    inodes: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        for line in read(PROC / "net" / name, 4 << 20).splitlines()[1:]:
            values = line.split()
            if len(values) > 9 and values[3] == "0A":  # TCP_LISTEN
                inodes[values[9]] = int(values[1].rpartition(":")[2], 16)
    found: dict[int, set[int]] = {port: set() for port in inodes.values()}
    if inodes:
        for pid, inode in _sockets():
            if inode in inodes:
                found[inodes[inode]].add(pid)
    return found


def _sockets() -> Iterator[tuple[int, str]]:
    for entry in PROC.iterdir():
        name = entry.name
        if not name.isdigit():
            continue
        try:
            for descriptor in os.scandir(PROC / name / "fd"):
                target = os.readlink(descriptor.path)  # noqa: PTH115 (thousands of them: a Path for each is felt)
                if target.startswith("socket:["):
                    yield int(name), target[8:-1]
        except OSError:
            continue


def log_tail(pid: int) -> str:
    """The newest part of the file that the server prints into; nothing where it prints into a pipe or terminal."""
    for descriptor in (1, 2):
        path = PROC / str(pid) / "fd" / str(descriptor)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                continue
            with path.open("rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(max(0, size - _LOG_TAIL))
                data = handle.read(_LOG_TAIL)
        except OSError:
            continue
        text = data.decode("utf-8", "replace")
        return redact(clean(text if size <= _LOG_TAIL else text.partition("\n")[2]))
    return ""


def same_namespace(pid: int, kind: str) -> bool | None:
    """Whether a process lives in our namespace of that kind ("mnt", "net", "pid"); None where it may not be seen."""
    try:
        return (PROC / str(pid) / "ns" / kind).readlink() == (PROC / "self" / "ns" / kind).readlink()
    except OSError:
        return None


def interpreter(pid: int) -> Path | None:
    """The Python that a process runs on, as it must be called so that its packages are found.

    /proc/PID/exe leads past a virtual environment to the base interpreter, so the way it was called, its environment and
    the place of the torch it has mapped are asked first. Paths are as the process sees them.
    """
    root = PROC / str(pid) / "root"
    try:
        base = (PROC / str(pid) / "exe").readlink()
    except OSError:
        return None
    found = process(pid)
    guesses = [Path(found.command[0])] if found is not None and found.command else []
    for line in read(PROC / str(pid) / "maps", 8 << 20).splitlines():
        if match := re.search(r"(/\S*?)/lib(?:64)?/python3\.\d+/(?:site|dist)-packages/", line):
            guesses.append(Path(match[1]) / "bin" / base.name)
            guesses.append(Path(match[1]) / "bin" / "python")
            break
    if prefix := environment(pid).get("VIRTUAL_ENV"):
        guesses.append(Path(prefix) / "bin" / "python")
    for guess in guesses:
        if guess.is_absolute() and "python" in guess.name and os.access(root / str(guess)[1:], os.X_OK):
            return guess
    return base if "python" in base.name else None
