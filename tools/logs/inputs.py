"""Which files of a folder are what: logs, saved responses, metrics pages, a model's config.json, or none of these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tools.logs.shapes import InputKind, LogInput
from tools.logs.source import SourceError, opened, read_up_to

#: Files below a folder beyond this many are left out (and said so by :func:`expand`'s caller through ``ignored``).
MOST_FILES = 2_000
_HEAD = 8_192
_LOG_SUFFIXES = {".log", ".txt", ".out", ".err", ".gz", ".zst", ""}


def expand(paths: Iterable[str | Path]) -> list[LogInput]:
    """Inputs for ``paths``; folders are walked, "-" is standard input, every file is recognised by its content.

    Raises :class:`FileNotFoundError` for a path that does not exist.
    """
    inputs: list[LogInput] = []
    for path in paths:
        if str(path) == "-":
            inputs.append(LogInput("standard input", path=Path("-")))
            continue
        path = Path(path)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
            inputs += [_recognised(LogInput(str(file), path=file), asked_for=False) for file in files[:MOST_FILES]]
        elif path.exists():
            inputs.append(_recognised(LogInput(str(path), path=path), asked_for=True))
        else:
            raise FileNotFoundError(f"{path} does not exist; give a log file, a folder, or - for standard input")
    return inputs


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def _recognised(source: LogInput, asked_for: bool) -> LogInput:
    """``source`` with its kind; a file named on the command line is a log unless its content says otherwise."""
    if source.path is None or not source.path.is_file():
        return source  # a pipe or device is read as a log and must not be opened twice
    try:
        with opened(source) as (stream, _):
            head = read_up_to(stream, _HEAD)
    except (SourceError, OSError, ValueError, EOFError):
        return source
    return replace(source, kind=recognise(source.path.name, head, asked_for))


def recognise(name: str, head: bytes, asked_for: bool = True) -> InputKind:
    """What a file called ``name`` that begins with ``head`` is."""
    text = head.lstrip()
    lower = name.lower()
    if text.startswith((b"# HELP ", b"# TYPE ")):
        return "metrics"
    if text.startswith(b"{"):
        first = text.split(b"\n", 1)[0]
        if b'"status"' in first and (b'"body"' in first or b'"path"' in first):
            return "responses"
        if b'"architectures"' in head or b'"model_type"' in head:
            return "config"
        if lower.endswith(".json") and not asked_for:
            return "ignored"
        return "log"
    if asked_for:
        return "log"
    if b"\x00\x00\x00" in head[:512] and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "ignored"
    suffix = Path(lower).suffix
    if suffix in _LOG_SUFFIXES or suffix[1:].isdigit():
        return "log"
    return "ignored"
