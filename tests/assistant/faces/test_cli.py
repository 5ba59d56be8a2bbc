"""The command line as a person and as a program meet it: real processes, real logs."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

LAB = Path(__file__).resolve().parents[2] / "data" / "lab"
LOG = LAB / "truncated-weights" / "server.log"


def run(
    *arguments: str, given: str | None = None, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "assistant.faces.cli.main", *arguments],
        input=given if given is not None else "",
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def answer(*arguments: str, given: str | None = None) -> dict[str, Any]:
    done = run(*arguments, "-o", "json", given=given)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert isinstance(body, dict)
    return body


def test_a_log_becomes_an_answer_for_people() -> None:
    done = run("logs", str(LOG))
    assert done.returncode == 0
    assert "model/corrupt-checkpoint" in done.stdout
    assert "SafetensorError" in done.stdout
    assert "What to do" in done.stdout
    assert "\x1b[" not in done.stdout, "a pipe gets no colour"
    assert not re.search(r"[ \t]+$", done.stdout, re.MULTILINE), "no trailing blanks in a pipe"


def test_chinese_on_request_and_by_itself() -> None:
    assert "处理办法" in run("logs", str(LOG), "--lang", "zh").stdout
    assert answer("ask", "端口 8000 被占用，服务起不来")["language"] == "zh"


def test_the_json_answer_has_the_promised_shape() -> None:
    body = answer("logs", str(LOG), "--full")
    assert body["schema"] == 1
    assert body["verdict"] == "cause"
    first = body["causes"][0]
    assert first["id"] == "model/corrupt-checkpoint"
    assert first["relation"] == "primary"
    assert 0 < first["confidence"] <= 1
    assert {"source", "line", "process", "time", "text"} <= set(first["because"][0])
    assert {"title", "why", "command", "flags", "expected", "trade_off", "impact", "undo", "work_around"} <= set(
        first["fixes"][0]
    )
    assert {"node", "question", "answer", "from", "tool"} <= set(body["path"][0])
    assert body["looked_at"][0]["bytes"] == LOG.stat().st_size
    assert body["evidence"]["reading"]["evidence"]


def test_standard_input_gzip_and_folders(tmp_path: Path) -> None:
    assert answer("logs", "-", given=LOG.read_text(encoding="utf-8"))["causes"][0]["id"] == "model/corrupt-checkpoint"
    packed = tmp_path / "server.log.gz"
    packed.write_bytes(gzip.compress(LOG.read_bytes()))
    assert answer("logs", str(packed))["causes"][0]["id"] == "model/corrupt-checkpoint"
    assert answer("logs", str(LAB / "wrong-model-name"))["causes"][0]["id"] == "serving/model-name-mismatch"


def test_words_and_a_log_together() -> None:
    body = answer("ask", "昨天同步模型的时候断网了", "--log", str(LOG))
    assert body["causes"][0]["id"] == "model/corrupt-checkpoint"
    assert body["language"] == "zh"


def test_what_is_not_known_is_said_with_what_would_help() -> None:
    body = answer("ask", "it does not work, please help")
    assert body["verdict"] == "unknown"
    assert any(step["action"] == "collect" for step in body["next_steps"])


def test_the_option_that_answers_a_question_stands_under_it_and_works_as_pasted() -> None:
    words = "it hangs at start"
    asked = run("ask", words).stdout
    pasted = re.search(r"--answer (incident\.cured_by_p2p_off=yes)  # no, unknown$", asked, re.MULTILINE)
    assert pasted, asked
    assert "--answer server.version=..." in asked
    assert "distributed/p2p-or-custom-allreduce · confidence" in run("ask", words, "--answer", pasted[1]).stdout


def test_an_answer_to_a_question_becomes_evidence() -> None:
    done = run("ask", "it hangs at start", "--answer", "scope.gpus=several", "-o", "json", "--full")
    body = json.loads(done.stdout)
    assert body["evidence"]["answers"] == {"scope.gpus": "several"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["logs", "/nowhere/x.log"], 3, "does not exist"),
        (["ask"], 2, "nothing was given"),
        (["ask", "x", "--answer", "nonsense"], 2, "is not NAME=VALUE"),
        (["ask", "x", "--answer", "no.such=1"], 2, "is no question"),
        (["ask", "x", "--answer", "scope.gpus=seven"], 2, "not one of its choices"),
        (["logs", str(LOG), "--run", "first"], 2, "neither last, all, nor"),
        (["logs", str(LOG), "--since", "yesterday"], 2, "is no time"),
        (["kb", "show", "memory/nothing"], 2, "there is no cause"),
        (["kb", "new", "No Id"], 2, "is no id"),
        (["batch", "/nowhere.jsonl"], 3, "cannot be read"),
        (["logs"], 2, "PATHS"),
    ],
)
def test_wrong_use_is_one_sentence_and_an_exit_status(arguments: list[str], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert says.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_exit_codes_by_verdict() -> None:
    assert run("logs", str(LOG), "--exit-code").returncode == 1
    assert run("logs", str(LAB / "healthy" / "server.log"), "--exit-code").returncode == 0
    assert run("ask", "help", "--exit-code").returncode == 4


def test_batch_answers_line_by_line(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "RuntimeError: CUDA error: uncorrectable ECC error encountered"},
        {"id": "b", "text": "help"},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    out = [json.loads(line) for line in run("batch", str(file)).stdout.splitlines()]
    assert [row["id"] for row in out] == [1, "b"]
    assert out[0]["causes"][0]["id"] == "gpu/uncorrectable-ecc"
    assert out[1]["verdict"] == "unknown"
    file.write_text('{"id": 1}\n', encoding="utf-8")
    assert 'expected an object with "id" and "text"' in run("batch", str(file)).stderr


def test_a_good_log_beside_it_shows_what_differs() -> None:
    done = run("logs", str(LAB / "kv-cache-too-small" / "server.log"), "--compare", str(LAB / "healthy" / "server.log"))
    assert "num_gpu_blocks_override: - in the good log" in done.stdout


def test_secrets_and_control_characters_do_not_come_back() -> None:
    token = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"
    text = f"\x1b[31mit fails\x1b[0m with HF_TOKEN={token} \u202eevil\nRuntimeError: CUDA error: an illegal memory access, token {token}"
    done = run("ask", text, "-o", "json", "--full")
    assert token not in done.stdout
    assert "\\u001b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_markdown_quotes_cannot_be_closed_from_inside() -> None:
    done = run("ask", "ValueError: No available memory for the cache blocks ``` # owned ```", "-o", "markdown")
    assert "````" in done.stdout


def test_a_read_only_home_and_a_full_disk_change_nothing() -> None:
    done = run("logs", str(LOG), "--save", env={"HOME": "/proc/nowhere", "XDG_STATE_HOME": "/proc/nowhere"})
    assert done.returncode == 0
    assert "model/corrupt-checkpoint" in done.stdout
    assert "Not saved" in done.stderr


def test_a_saved_incident_is_shown_and_answered_again(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    saved = run("ask", "it hangs at start", "--save", env=env)
    incident = re.search(r"saved as (\S+)", saved.stderr)
    assert incident, saved.stderr
    shown = run("show", incident.group(1), "-o", "json", env=env)
    assert json.loads(shown.stdout)["incident"] == incident.group(1)
    answered = run("answer", incident.group(1), "scope.gpus", "several", "-o", "json", env=env)
    assert json.loads(answered.stdout)["revision"] == 2, answered.stderr
    again = run("answer", incident.group(1), "scope.nodes", "one", "-o", "json", env=env)
    assert json.loads(again.stdout)["revision"] == 3


def test_follow_announces_a_failure_as_it_is_written(tmp_path: Path) -> None:
    growing = tmp_path / "server.log"
    lines = LOG.read_text(encoding="utf-8").splitlines(keepends=True)
    growing.write_text("".join(lines[:30]), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "assistant.faces.cli.main", "logs", str(growing), "--follow"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(3)
        with growing.open("a", encoding="utf-8") as more:
            more.write("".join(lines[30:]))
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "First failure at line" in first
        assert "model/corrupt-checkpoint" in "".join(process.stdout.readline() for _ in range(6))
    finally:
        process.terminate()
        process.wait(10)
