"""Reads vLLM's logs: any size, in bounded memory, from a start's first line to the exception that ended it."""

from __future__ import annotations

from tools.logs.follow import follow
from tools.logs.inputs import expand, recognise
from tools.logs.reading import read_logs
from tools.logs.shapes import (
    FailureBlock,
    Frame,
    InputKind,
    LogInput,
    LogReading,
    Raised,
    ReadOptions,
    RunSummary,
)
from tools.logs.source import SourceError

__all__ = [
    "FailureBlock",
    "Frame",
    "InputKind",
    "LogInput",
    "LogReading",
    "Raised",
    "ReadOptions",
    "RunSummary",
    "SourceError",
    "expand",
    "follow",
    "read_logs",
    "recognise",
]
