"""A captured moment as a folder that can be sent on and diagnosed again: `vllm-diagnose logs FOLDER` reads all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.redaction import clean, redact
from tools.registry import ActionError
from tools.sanity.results import Report

if TYPE_CHECKING:
    from tools.capture.capture import CaptureReport

#: What is recognised as a captured moment: the name, and the mark inside.
NAME = "capture.json"
MARK = "vllm-diagnose capture"
_MOST_BYTES = 16 << 20


def write_bundle(folder: Path, report: CaptureReport, pages: Sequence[str], kernel: Sequence[str]) -> str:
    """Write the bundle into a new folder that only its owner can read; returns its path.

    Raises :class:`ActionError` where it cannot be made.
    """
    files = {NAME: json.dumps({"kind": MARK, "report": report.model_dump(mode="json", exclude={"log", "bundle"})}, ensure_ascii=False, indent=1)}  # fmt: skip
    if report.log:
        files["server.log"] = report.log
    for number, page in enumerate(pages, 1):
        files[f"metrics-{number}.txt"] = page
    if kernel:
        files["kernel.log"] = redact(clean("\n".join(kernel))) + "\n"
    files["stacks.txt"] = "".join(
        f"# {row.name} pid {row.pid} state {row.state} {row.doing} {row.cpu_percent} % CPU {row.wchan} {row.why}\n"
        + "".join(f"#   {redact(clean(frame))}\n" for frame in row.frames)
        for row in report.processes
    )
    try:
        folder.mkdir(mode=0o700, parents=True)
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
    except OSError as error:
        raise ActionError(f"The bundle {folder} cannot be written: {error.strerror or error}.") from None
    return str(folder)


def read_bundle(folder: Path) -> Report | None:
    """The captured report of a folder; None where there is none or it is none of ours."""
    path = folder / NAME
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        raw = json.loads(path.read_text("utf-8"))
        return Report.model_validate(raw["report"]) if raw.get("kind") == MARK else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
