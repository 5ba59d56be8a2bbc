"""`vllm-diagnose sync` as a command: its report, its refusals. The tables of the repository are never written here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "knowledge" / "sync"))
import releases

from assistant.faces.cli.main import app
from knowledge.sources import ROOT

RUN = CliRunner()


def tables() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (ROOT / "vllm").glob("*.json")}


@pytest.mark.slow
def test_a_release_from_a_wheel_is_compared_with_the_newest_one(tmp_path: Path) -> None:
    before = tables()
    wheel = releases.as_wheel(releases.by_fields(tmp_path / "r"), tmp_path / "vllm-9.9.0-py3-none-any.whl")
    result = RUN.invoke(app, ["sync", "9.9.0", "--from", str(wheel), "--dry-run", "-o", "json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["known_before"] is False
    assert report["written"] == []
    assert "--extra-1" in report["tables"]["flags"]["new"]
    assert "--tensor-parallel-size" in report["tables"]["flags"]["gone"]
    touched = {row["name"]: row for row in report["touched"]}
    assert touched["--tensor-parallel-size"]["intents_to_mend"]
    assert touched["--tensor-parallel-size"]["documents"]
    assert tables() == before

    result = RUN.invoke(app, ["sync", "9.9.0", "--from", str(wheel), "--dry-run"])
    assert "new: --extra-1" in result.stdout
    assert "MEND: " in result.stdout
    assert "Nothing was written" in result.stdout


def test_refusals_are_sentences(tmp_path: Path) -> None:
    folder = releases.by_fields(tmp_path / "r")
    cases = [
        (["sync", "newest"], 2, "is no version"),
        (["sync", "9.9.0", "-o", "yaml"], 2, "give text or json"),
        (["sync", "9.9.0", "--from", str(tmp_path / "no.whl")], 3, "does not exist"),
        (["sync", "9.9.0", "--from", str(tmp_path)], 3, "holds no package vllm"),
        (["sync", "9.8.0", "--from", str(folder)], 2, "calls itself 9.9.0"),
    ]
    for arguments, status, words in cases:
        result = RUN.invoke(app, arguments)
        assert result.exit_code == status, arguments
        assert words in result.stderr
        assert "Traceback" not in result.output
