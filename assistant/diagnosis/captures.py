"""Captured moments among what a person hands over: their facts join those of the logs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.evidence import Reading

_NAME = "capture.json"


def captured_in(paths: Sequence[Path]) -> Reading:
    """The facts of every bundle among ``paths``; none are read, and nothing is imported, where there is no bundle."""
    folders = [path for path in paths if (path / _NAME).is_file()]
    if not folders:
        return Reading()
    from tools.capture.bundle import read_bundle
    from tools.sanity.results import reading_of

    reports = (read_bundle(folder) for folder in folders)
    return reading_of(report for report in reports if report is not None)
