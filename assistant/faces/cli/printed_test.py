"""`sanity nccl --read`: what the printed test has printed elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from assistant.faces.cli.options import fail
from tools.sanity.launch import Ran
from tools.sanity.nccl import NcclReport, judged


def judged_file(path: Path, lang: str) -> NcclReport:
    """The report of a test that ran elsewhere, from the JSON lines that it printed."""
    try:
        text = sys.stdin.read(32 << 20) if str(path) == "-" else path.read_text("utf-8", "replace")[: 32 << 20]
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}", 3)
    events = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                events.append(event)
    if not any(event["event"] == "start" for event in events):
        fail(f"{path} does not hold the output of the printed test: no line with the event start", 3)
    try:
        return judged("zh" if lang == "zh" else "en", Ran(events=events), "-")
    except (KeyError, TypeError, ValueError) as error:
        fail(f"{path} does not hold the output of the printed test: {error!r}", 3)
