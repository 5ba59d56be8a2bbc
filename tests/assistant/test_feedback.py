"""What people say of diagnoses: kept, counted per cause, shown beside the next incident, and exported as labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOG = Path(__file__).parents[1] / "data" / "lab" / "tp2-truncated" / "server.log"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        program = "from assistant.faces.cli.main import main; main()"
        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == code, ran.stderr
        return ran

    return call


def saved(run: Any, *arguments: str) -> str:
    said: str = run(*arguments, "--save", "-o", "json").stderr
    return said.split("saved as ")[1].split()[0]


def test_what_somebody_said_comes_back_with_the_next_incident_and_as_a_label(run: Any, tmp_path: Path) -> None:
    first = saved(run, "logs", str(LOG))
    assert json.loads(run("show", first, "-o", "json").stdout)["seen_before"] == []
    run("feedback", first, "yes", "downloaded it again, token hf_abcdefghijklmnopqrstuvwxyz0123456789")
    second = saved(run, "logs", str(LOG))
    seen = json.loads(run("show", second, "-o", "json").stdout)["seen_before"]
    assert [row["incident"] for row in seen] == [first]
    assert seen[0]["helped"] == "yes" and seen[0]["fix"].startswith("downloaded it again")
    assert "hf_abcdefgh" not in seen[0]["fix"]
    text = run("show", second).stdout
    assert "Seen before here" in text and "downloaded it again" in text

    asked = run("ask", "--log", str(LOG), "--save", "--lang", "zh").stdout  # the answer itself says so
    assert "以前出现过" in asked and "downloaded it again" in asked
    plain = run("ask", "--log", str(LOG), "-o", "json").stdout
    assert "seen_before" not in json.loads(plain)

    run("feedback", second, "no", "it was model/weights-mismatch")
    third = saved(run, "ask", "the server is strange")
    run("feedback", third, "no", "no idea")
    file = tmp_path / "labelled.jsonl"
    assert "2 labelled incidents; 1 left out" in run("feedback-export", str(file)).stderr
    rows = {row["id"]: row for row in map(json.loads, file.read_text("utf-8").splitlines())}
    assert rows[first]["primary"] == "model/corrupt-checkpoint"
    assert rows[second]["primary"] == "model/weights-mismatch" and rows[second]["found"] == "model/corrupt-checkpoint"
    again = [json.loads(line) for line in run("batch", str(file)).stdout.splitlines()]
    assert {row["id"]: row["causes"][0]["id"] for row in again}[first] == "model/corrupt-checkpoint"

    report = json.loads(run("feedback-report", "--json").stdout)
    assert report[0] == {"cause": "model/corrupt-checkpoint", "incidents": 3, "yes": 1, "partly": 0, "no": 1}
    assert "model/corrupt-checkpoint" in run("feedback-report").stdout


def test_feedback_on_nothing_is_a_sentence(run: Any) -> None:
    assert "There is no incident" in run("feedback", "nothing", "yes", code=2).stderr
