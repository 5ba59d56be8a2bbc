"""The logs and events of a configured target as a server fetches them: into memory, bounded, without holding anybody up.

The command line streams a target's logs while it reads them (:mod:`assistant.diagnosis.looking`). A server has many to
answer and reads in processes of its own, so it fetches first: some hours, or where that is too much the last minutes,
because what a person asks about has just happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.diagnosis.looking import sources_of
from assistant.settings import SettingsError
from tools.evidence import Reading
from tools.outbound import Limits, Outbound, OutboundError
from tools.sources.base import Bounds, SourceFailedError

if TYPE_CHECKING:
    from assistant.targets import Target
    from tools.addresses import Policy
    from tools.sources.base import Source, Stream, Survey

#: How far back is looked, and how many seconds that may take; the next where the one before did not come to its end.
WINDOWS = ((timedelta(hours=6), 10.0), (timedelta(minutes=15), 8.0))
#: Bytes of all logs of one place together.
MOST_BYTES = 24 * 1024 * 1024
#: Bytes of one file.
MOST_FILE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Collected:
    """A log as it was fetched; ``broke_off`` says why there was more."""

    name: str
    data: bytes
    broke_off: str = ""


async def collect(target: Target, policy: Policy, *, deadline_s: float = 30.0) -> tuple[Reading, tuple[Collected, ...]]:
    """What all places of ``target.logs`` hold: facts, and logs of the last hours. What cannot be had is ``not_measured``.

    No place is asked for longer than ``deadline_s`` at a time.
    """
    if not target.logs:
        return Reading(), ()
    try:
        sources, allowances, reading = sources_of(target)
    except SettingsError as error:
        return Reading(not_measured=tuple((target.name, problem) for problem in error.problems)), ()
    files = [path for access in target.logs if access.kind == "files" for path in access.paths]
    allowed = policy.allowing(*allowances)
    fetched = await asyncio.gather(
        asyncio.to_thread(_read_files, files), *(_collect_one(source, allowed, deadline_s) for source in sources)
    )
    logs: list[Collected] = []
    for found, held in fetched:
        reading += found
        logs += held
    return reading, tuple(logs)


async def _collect_one(source: Source, policy: Policy, deadline_s: float) -> tuple[Reading, list[Collected]]:
    """One place, over the longest window that comes to its end in time."""
    reading, logs = Reading(), list[Collected]()
    for back, most_s in WINDOWS:
        seconds = min(most_s, deadline_s)
        bounds = Bounds(datetime.now(UTC) - back, deadline_s=seconds, max_bytes=MOST_BYTES)
        began = time.monotonic()
        try:
            async with asyncio.timeout(seconds), Outbound(policy, limits=Limits(seconds)) as out:
                survey: Survey = await source.survey(out, bounds)
                found = await _fetch(survey.streams, out, bounds)
        except (SourceFailedError, OutboundError, TimeoutError) as error:
            if not logs:
                why = str(error) or f"there was no answer within {seconds:g} s"
                reading = Reading(not_measured=((source.name, why),))
            if time.monotonic() - began < seconds / 2:
                break
            continue  # it was late, and less of it may come in time
        reading, logs = survey.reading, found
        if not any(log.broke_off for log in found):
            break
    return reading, logs


async def _fetch(streams: Sequence[Stream], out: Outbound, bounds: Bounds) -> list[Collected]:
    """All streams at once, each with its share of the room, until shortly before the deadline."""
    until = time.monotonic() + bounds.deadline_s * 0.8
    most = bounds.max_bytes // max(1, len(streams))
    return list(await asyncio.gather(*(_take(stream, out, bounds, most, until) for stream in streams)))


async def _take(stream: Stream, out: Outbound, bounds: Bounds, most: int, until: float) -> Collected:
    pieces: list[bytes] = []
    size, why = 0, ""
    try:
        async with (
            asyncio.timeout(max(0.0, until - time.monotonic())),
            contextlib.aclosing(stream.lines(out, bounds)) as batches,
        ):
            async for batch in batches:
                block = b"".join(line.stamped() for line in batch)
                pieces.append(block)
                size += len(block)
                if size > most:
                    why = f"more than {most >> 20} MiB were written in this time; what came later was not read"
                    break
    except TimeoutError:
        why = f"not all of it came within {bounds.deadline_s:g} s"
    except (SourceFailedError, OutboundError) as error:
        why = str(error).rstrip(".")
    return Collected(stream.name, b"".join(pieces), why)


def _read_files(paths: Sequence[str]) -> tuple[Reading, list[Collected]]:
    """The ends of files of this machine; a log in a folder is one of its files."""
    from tools.logs import expand

    logs: list[Collected] = []
    missed: list[tuple[str, str]] = []
    for path in paths:
        try:
            for file in expand([path]):
                if file.path is not None and file.kind == "log":
                    logs.append(Collected(file.name, _end_of(file.path)))
        except OSError as error:
            missed.append((Path(path).name, f"it cannot be read: {error.strerror or 'it does not exist'}"))
    return Reading(not_measured=tuple(missed)), logs


def _end_of(path: Path) -> bytes:
    """The last :data:`MOST_FILE` bytes, from a line's beginning; a packed file cannot be entered in its middle."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_FILE:
            file.seek(size - MOST_FILE)
            file.readline()
        return file.read(MOST_FILE)
