"""What stands before the message of a line: stamps of the container runtime, the process, level, time and place.

All expressions are anchored and free of nested repetition, so that a hostile line costs linear time. They are tried
in layers, outermost first, because the layers combine freely::

    vllm-1  | (APIServer pid=1) INFO 11-21 00:55:59 [launcher.py:186] Available routes are:
    2026-11-21T00:55:59.123Z stderr F (EngineCore_DP0 pid=387) (RayWorkerWrapper pid=473) ERROR 06-10 ...
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

LEVELS = {
    "D": "DEBUG", "I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL", "C": "CRITICAL", "WARN": "WARNING",
    "FATAL": "CRITICAL", "TRACE": "DEBUG",
}  # fmt: skip

_LEVEL = r"(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL|TRACE)"
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

_FAST = re.compile(
    r"(?:\(([A-Za-z_][\w.\-]* (?:rank=\d+ )?pid=\d+)\) )?"
    r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,]\d+)? \[?([^\s\]]{1,120}:\d+)\] ?"
)

_ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
_COMPOSE = re.compile(r"([A-Za-z0-9][\w.\-]{0,80}) *\| ?(?=\S|$)")
_STAMP = re.compile(rf"\[?({_ISO})\]?[ \t]+(?:std(?:out|err) [FP] ?)?(?:[-|] )?")
_POD = re.compile(r"\[pod/([^\]\s]{1,200})\] ?")
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_JOURNAL = re.compile(
    r"([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d\d:\d\d(?::\d\d)?"
    r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)) "
    r"([\w.\-]{1,100}) ([\w@.\-/\\:]{1,100}?)(?:\[(\d+)\])?: "
)
_SRUN = re.compile(r" {0,3}(\d{1,5}): (?=[(\[A-Z ])")
_RANK = re.compile(r"\[(rank\d+|default\d+)\]: ?")
_PROCESS = re.compile(r"\(([A-Za-z_][\w.\-]*[ ,][^()]{0,80}?pid=\d+[^()]{0,80}|raylet[^()]{0,60})\) ?")
_VLLM = re.compile(rf"({_LEVEL}) ((?:\d{{2,4}}-)?\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,]\d+)? \[?([^\s\]]{{1,120}}:\d+)\] ?")
# torch's C++ logger pads the day and not the month: `[W603 08:00:00.1 ProcessGroupNCCL.cpp:4561]`.
_GLOG = re.compile(
    r"\[?([WEIFD])(\d{3,4}) (\d\d:\d\d:\d\d)(?:\.\d+)? +(?:(\d+) )?([^\]\s]{1,160}:\d+)\] ?(?:\[[^\]]{0,200}\] ?)?"
)
_NCCL = re.compile(r"([\w.\-]{1,100}):(\d+):(\d+) \[(\d+)\] (?:\S{1,80} )?NCCL (INFO|WARN|ERROR|TRACE|ABORT) ?")
_RAY_CORE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ([DIWEFC]) \d+ \d+\] ?(?:\((\w{1,40})\) )?")
_RAY_PYTHON = re.compile(rf"({_LEVEL}) ([\w.\-/]{{1,120}}:\d+) -- ")
_UVICORN = re.compile(rf"({_LEVEL}):(?: +|[\w.]{{1,80}}: ?)")
_NAMED = re.compile(rf"(?:[\w.\-]{{1,80}} - )?\[?({_LEVEL})\]?(?: - |: | +- +|  +| (?=[A-Z\[(]))")
_KERNEL = re.compile(r"\[ *\d{1,9}\.\d{3,6}\] ")
_MOST_KNOWN = 2048
_PID = re.compile(r"pid=(\d+)")


@dataclass(slots=True)
class Prefix:
    """What a line states before its message; ``body`` is the offset at which the message begins.

    ``process`` is the label as printed ("Worker_TP1 pid=405", "rank0"); ``clock`` the time as printed; ``where`` the
    place in the program; ``outer`` the container, pod or host the line came through; ``stamped`` that anything at all
    was recognised.
    """

    process: str | None = None
    level: str | None = None
    clock: str | None = None
    where: str | None = None
    outer: str | None = None
    origin: str = ""  # "vllm", "uvicorn", "glog", "nccl", "kernel", "ray", "named" or ""
    body: int = 0

    @property
    def stamped(self) -> bool:
        return self.body > 0


def strip_ansi(text: str) -> str:
    """Without colours and cursor movements: ``"\\x1b[1;36m(EngineCore pid=4)\\x1b[0;0m INFO"`` keeps its words."""
    return _ANSI.sub("", text) if "\x1b" in text else text


def clean(text: str) -> str:
    """Without colours, control and bidirectional characters; tabs become blanks."""
    return _CONTROL.sub("", strip_ansi(text)).replace("\t", " ")


def pid_of(process: str) -> str | None:
    found = _PID.search(process)
    return found.group(1) if found else None


def parse_prefix(text: str) -> Prefix:
    """Read the prefix of one line that is free of ANSI sequences.

    >>> parse_prefix("(Worker_TP1 pid=405) ERROR 06-10 21:32:17 [worker.py:88] boom").process
    'Worker_TP1 pid=405'
    >>> parse_prefix("INFO 06-10 21:32:17 llm_engine.py:161] Initializing an LLM engine").where
    'llm_engine.py:161'
    """
    return Prefix() if _is_indented(text) else _of_vllm(text) or _in_layers(text)


def _is_indented(text: str) -> bool:
    """A line of a traceback or of a listing: every layer but srun's begins with its own first character."""
    return text[:1] == " " and _SRUN.match(text) is None


def _of_vllm(text: str) -> Prefix | None:
    """``(Worker_TP1 pid=405) ERROR 06-10 21:32:17 [worker.py:88] ``, with nothing around it: nearly every line."""
    found = _FAST.match(text)
    if found is None:
        return None
    process, level, clock, where = found.groups()
    return Prefix(process, level, clock, where, None, "vllm", found.end())


#: What an indented line has.
_NONE = Prefix()


class Prefixes:
    """Reads prefixes like :func:`parse_prefix` and remembers vLLM's own: the lines of a record share theirs to the letter.

    What is handed out may be shared; only a prefix that names a bare pid (never vLLM's own) may be changed.
    """

    def __init__(self) -> None:
        self._known: dict[str, Prefix] = {}

    def read(self, text: str) -> Prefix:
        if _is_indented(text):
            return _NONE
        cut = text.find("] ", 0, 240) + 2
        known = self._known.get(text[:cut])
        if known is not None:
            return known
        prefix = _of_vllm(text)
        if prefix is None:
            return _in_layers(text)
        if prefix.body == cut:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            self._known[text[:cut]] = prefix
        return prefix


def _in_layers(text: str) -> Prefix:
    prefix = Prefix()
    at = _outer_layers(text, prefix)
    at = _process_layers(text, prefix, at)
    at = _level_layer(text, prefix, at)
    prefix.body = at
    return prefix


def _outer_layers(text: str, prefix: Prefix) -> int:
    """Stamps added on the way: Docker Compose, Kubernetes (CRI and kubectl), journald, srun, torchrun.

    ``vllm-1  | ...``, ``2026-11-21T00:55:59.1Z stderr F ...``, ``[pod/vllm-0/server] ...``,
    ``Nov 21 00:55:59 gpu07 vllm[812]: ...``, ``3: ...``, ``[rank0]: ...``
    """
    at = 0
    for _ in range(6):
        head = text[at : at + 1]
        if not head:
            return at
        found = None
        if head.isalnum() or head == " ":
            if found := _JOURNAL.match(text, at):
                if not found.group(1).startswith(_WEEKDAYS):  # such a stamp states no date
                    prefix.clock = prefix.clock or found.group(1)
                prefix.outer = found.group(2)
                if found.group(3) == "kernel":
                    prefix.origin = "kernel"
            elif found := _STAMP.match(text, at) or _SRUN.match(text, at):
                if len(found.group(1)) >= 19:
                    prefix.clock = prefix.clock or found.group(1)
                else:
                    prefix.process = prefix.process or f"task {found.group(1)}"
            elif found := _COMPOSE.match(text, at) if at == 0 else None:
                prefix.outer = found.group(1)
        elif head == "[":
            if found := _RANK.match(text, at):
                prefix.process = found.group(1)
            elif found := _POD.match(text, at):
                prefix.outer = found.group(1)
            elif found := _KERNEL.match(text, at):
                prefix.origin = "kernel"
            elif found := None if _RAY_CORE.match(text, at) else _STAMP.match(text, at):
                prefix.clock = prefix.clock or found.group(1)
        if not found:
            return at
        at = found.end()
    return at


def _process_layers(text: str, prefix: Prefix, at: int) -> int:
    """``(EngineCore_DP0 pid=387) (RayWorkerWrapper pid=473, ip=10.0.0.2)``: the innermost names the process."""
    for _ in range(3):
        found = _PROCESS.match(text, at)
        if found is None:
            return at
        prefix.process = found.group(1)
        at = found.end()
        rank = _RANK.match(text, at)
        if rank:
            at = rank.end()
    return at


def _level_layer(text: str, prefix: Prefix, at: int) -> int:
    """Level, time and place as vLLM, glog and torch, NCCL, Ray, uvicorn or Python's logging write them.

    ``ERROR 06-10 21:32:17 worker.py:88]``, ``[E1121 00:56:13.5 ProcessGroupNCCL.cpp:1834] [PG ID 0]``,
    ``gpu07:812:990 [0] NCCL WARN``, ``[2026-11-21 00:55:59,1 E 12 34] (raylet)``, ``INFO worker.py:1821 --``,
    ``INFO:     Started server process [1]``, ``ERROR:root:``, ``myapp - ERROR -``
    """
    if found := _VLLM.match(text, at):
        prefix.level, prefix.where, prefix.origin = found.group(1), found.group(3), "vllm"
        prefix.clock = prefix.clock or found.group(2)  # an outer stamp states year and zone
    elif found := _GLOG.match(text, at):
        prefix.level, prefix.where, prefix.origin = found.group(1), found.group(5), "glog"
        prefix.clock = prefix.clock or f"{found.group(2)[:-2]:0>2}-{found.group(2)[-2:]} {found.group(3)}"
        if prefix.process is None and found.group(4):
            prefix.process = f"pid={found.group(4)}"
    elif found := _NCCL.match(text, at):
        prefix.level, prefix.origin = found.group(5), "nccl"
        if prefix.process is None:
            prefix.process = f"pid={found.group(2)}"
    elif found := _RAY_CORE.match(text, at):
        prefix.level, prefix.origin = found.group(2), "ray"
        prefix.clock = prefix.clock or found.group(1)
        if prefix.process is None and found.group(3):
            prefix.process = found.group(3)
    elif found := _RAY_PYTHON.match(text, at):
        prefix.level, prefix.where, prefix.origin = found.group(1), found.group(2), "ray"
    elif found := _UVICORN.match(text, at):
        prefix.level, prefix.origin = found.group(1), "uvicorn"
    elif prefix.clock is not None and (found := _NAMED.match(text, at)):
        prefix.level, prefix.origin = found.group(1), "named"
    else:
        return at
    if prefix.level is not None:
        prefix.level = LEVELS.get(prefix.level, prefix.level)
    return found.end()


_MONTHS = {name: place for place, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_CLOCK = re.compile(r"(?:(\d{2,4})-)?(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6})\d*)?(Z|[+-]\d\d:?\d\d)?")
_JOURNAL_CLOCK = re.compile(r"([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d)")


def read_clock(clock: str, year: int) -> datetime | None:
    """The time a line states; ``year`` fills in where it states none. UTC where a zone is given, else without zone.

    >>> read_clock("11-21 00:55:59", 2026)
    datetime.datetime(2026, 11, 21, 0, 55, 59)
    """
    try:
        found = _CLOCK.match(clock)
        if found:
            stated = int(found.group(1)) if found.group(1) else year
            stated += 2000 if stated < 100 else 0
            month, day, hour, minute, second = (int(found.group(place)) for place in range(2, 7))
            micro = int((found.group(7) or "0").ljust(6, "0"))
            at = datetime(stated, month, day, hour, minute, second, micro)
            zone = found.group(8)
            if zone is None:
                return at
            if zone == "Z":
                return at.replace(tzinfo=UTC)
            sign = -1 if zone[0] == "-" else 1
            digits = zone[1:].replace(":", "")
            offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:])) * sign
            return at.replace(tzinfo=timezone(offset)).astimezone(UTC)
        found = _JOURNAL_CLOCK.match(clock)
        if found and found.group(1) in _MONTHS:
            day, hour, minute, second = (int(found.group(place)) for place in range(2, 6))
            return datetime(year, _MONTHS[found.group(1)], day, hour, minute, second)
    except ValueError:
        return None
    return None


def seconds_between(first: datetime | None, last: datetime | None) -> float | None:
    """Seconds from ``first`` to ``last``; ``None`` when either is unknown or only one of them states its zone."""
    if first is None or last is None or (first.tzinfo is None) != (last.tzinfo is None):
        return None
    return (last - first).total_seconds()
