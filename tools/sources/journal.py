"""Lines of a unit from the systemd journal of this machine, with the kernel's beside them.

``journalctl`` is started without a shell, reads only, and is ended with the reading. Fields: systemd.journal-fields(7);
``-o json`` writes one object a line, with a list of bytes where a message is not UTF-8: journalctl(1).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tools.evidence import Evidence, LookedAt, Reading
from tools.outbound import Outbound
from tools.sources.base import LONGEST_LINE, Bounds, Line, Lines, SourceFailedError, Stream, Survey, fact, text

WINDOW = timedelta(hours=24)
#: A unit's name as systemd.unit(5) allows it; it never begins with a dash, so it is no option.
UNIT = re.compile(r"[A-Za-z0-9_:.\\@][A-Za-z0-9_:.\\@-]{0,254}")
_BATCH = 512
_FIELDS = "MESSAGE,_PID,_COMM,SYSLOG_IDENTIFIER,_HOSTNAME,_TRANSPORT,UNIT,UNIT_RESULT,EXIT_CODE,EXIT_STATUS,CODE_FUNC"
#: systemd's own words for the end of a unit (src/core/service.c); the result is also in UNIT_RESULT.
_RESULTS = {"oom-kill": "out-of-memory", "watchdog": "itself", "core-dump": "itself", "exit-code": "itself"}


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of ``unit``; ``folder`` reads files of another machine (``journalctl --directory``)."""

    name: str
    unit: str
    folder: str = ""

    @property
    def source(self) -> str:
        """How evidence names this place."""
        return f"journal of {self.unit}"

    async def survey(self, outbound: Outbound, bounds: Bounds) -> Survey:
        """How systemd says that the unit last ended, and its lines."""
        if not UNIT.fullmatch(self.unit):
            raise SourceFailedError(f"{self.unit!r:.100} is not the name of a unit.")
        last: dict[str, Any] = {}
        seen = False
        # systemd's own messages about a unit; the newest result counts.
        async for entry in self._entries(bounds, ("_PID=1", f"UNIT={self.unit}"), ("--reverse", "--lines=200")):
            seen = True
            if entry.get("UNIT_RESULT") or entry.get("EXIT_STATUS"):
                last = entry
                break
            if "Started " in text(entry.get("MESSAGE")):
                break  # it runs: what ended before is not this incident
        evidence = tuple(self._facts(last)) if last else ()
        looked = LookedAt(self.source, bounds.since or datetime.now(UTC) - WINDOW, bounds.until)
        missed = () if seen else ((self.source, "systemd says nothing about this unit in this window"),)
        return Survey(Reading(evidence, looked_at=(looked,), not_measured=missed), (Stream(self.source, self._lines),))

    def _facts(self, entry: dict[str, Any]) -> Iterator[Evidence]:
        at, said = _at(entry), text(entry.get("MESSAGE"), 300)
        result, status = text(entry.get("UNIT_RESULT"), 40), text(entry.get("EXIT_STATUS"), 10)
        if status.isdigit():
            code = int(status) + (128 if text(entry.get("EXIT_CODE")) in ("killed", "dumped") else 0)
            yield fact("container.exit_code", code, self.source, said, at)
        if result in _RESULTS:
            yield fact("container.stopped_by", _RESULTS[result], self.source, said, at)

    async def _lines(self, outbound: Outbound, bounds: Bounds) -> Lines:
        batch: list[Line] = []
        matches = (f"_SYSTEMD_UNIT={self.unit}", "+", "_PID=1", f"UNIT={self.unit}", "+", "_TRANSPORT=kernel")
        async for entry in self._entries(bounds, matches, ()):
            batch.append(_line(entry))
            if len(batch) >= _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _entries(self, bounds: Bounds, matches: tuple[str, ...], more: tuple[str, ...]) -> Any:
        program = shutil.which("journalctl")
        if program is None:
            raise SourceFailedError("This machine has no journalctl, so its journal cannot be read.")
        since = bounds.since or datetime.now(UTC) - WINDOW
        command = [program, "--output=json", f"--output-fields={_FIELDS}", "--no-pager", "--quiet", *more]
        command.append(f"--since=@{since.timestamp():.6f}")
        if bounds.until is not None:
            command.append(f"--until=@{bounds.until.timestamp():.6f}")
        if self.folder:
            command.append(f"--directory={self.folder}")
        process = await asyncio.create_subprocess_exec(
            *command, *matches,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE * 8, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        )  # fmt: skip
        try:
            async with asyncio.timeout(bounds.deadline_s):
                async for entry in _objects(process):
                    yield entry
                said = await process.stderr.read(2000) if process.stderr is not None else b""
                if await process.wait() != 0:
                    reason = " ".join(said.decode("utf-8", "replace").split())[:300] or "it says no reason"
                    raise SourceFailedError(f"journalctl ended with {process.returncode}: {reason}.")
        except TimeoutError:
            raise SourceFailedError(f"journalctl was not finished within {bounds.deadline_s:g} s.") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _objects(process: asyncio.subprocess.Process) -> Any:
    if process.stdout is None:
        return
    while True:
        try:
            raw = await process.stdout.readline()
        except ValueError:  # a line beyond the limit is dropped by the reader of the stream
            continue
        if not raw:
            return
        try:
            entry = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def _at(entry: dict[str, Any]) -> datetime | None:
    stamp = entry.get("__REALTIME_TIMESTAMP")
    if not isinstance(stamp, str) or not stamp.isdigit():
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=min(int(stamp), 10**17))


def _line(entry: dict[str, Any]) -> Line:
    """The entry in journald's short form after the time: ``host ident[pid]: message``."""
    message = entry.get("MESSAGE")
    if isinstance(message, list):
        message = bytes(b for b in message if isinstance(b, int) and 0 <= b < 256).decode("utf-8", "replace")
    words = message if isinstance(message, str) else ""
    kernel = entry.get("_TRANSPORT") == "kernel"
    ident = (
        "kernel" if kernel else text(entry.get("SYSLOG_IDENTIFIER"), 80) or text(entry.get("_COMM"), 80) or "unknown"
    )
    pid = text(entry.get("_PID"), 10)
    host = text(entry.get("_HOSTNAME"), 80) or "host"
    head = f"{host} {ident}" + (f"[{pid}]" if pid.isdigit() and not kernel else "") + ": "
    return Line(_at(entry), ident, "\n".join(head + part for part in words[: LONGEST_LINE * 4].split("\n")))
