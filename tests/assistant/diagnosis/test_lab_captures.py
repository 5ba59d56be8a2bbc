"""Every capture of a real server gets the diagnosis that its manifest names, alone and under harder circumstances."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import log_inputs, read_case
from assistant.diagnosis.model import Diagnosis
from knowledge.catalog import load
from tools.logs import LogInput

LAB = Path(__file__).resolve().parents[2] / "data" / "lab"
MANIFEST: dict[str, Any] = yaml.safe_load((LAB / "manifest.yaml").read_text(encoding="utf-8"))
ENGINE = Engine(load())


def accepted(entry: dict[str, Any]) -> set[str]:
    return {entry.get("cause") or entry["verdict"], *entry.get("also", ())}


def label(diagnosis: Diagnosis) -> str:
    return diagnosis.causes[0].id if diagnosis.verdict == "cause" else diagnosis.verdict


def given(name: str) -> list[LogInput]:
    """What a person has of an incident: the log and the answers that requests got."""
    folder = LAB / name
    return log_inputs([folder / part for part in ("server.log", "responses.jsonl") if (folder / part).exists()])


def diagnose(inputs: list[LogInput]) -> Diagnosis:
    return ENGINE.diagnose(read_case(ENGINE.catalog, logs=inputs)[0])


@pytest.mark.parametrize("name", MANIFEST)
def test_capture(name: str) -> None:
    diagnosis = diagnose(given(name))
    assert label(diagnosis) in accepted(MANIFEST[name]), diagnosis.summary


FAILED = [name for name, entry in MANIFEST.items() if entry.get("cause")]


def behind(name: str, before: bytes) -> list[LogInput]:
    inputs = given(name)
    log = (LAB / name / "server.log").read_bytes()
    return [LogInput(name="server.log", data=before + b"\n" + log), *inputs[1:]]


@pytest.mark.parametrize("name", FAILED)
def test_an_older_recovered_failure_in_the_same_file_changes_nothing(name: str) -> None:
    """A different start failed before; the last run is what counts."""
    older = (
        "tp-indivisible"
        if "tp-indivisible" not in accepted(MANIFEST[name]) and name != "tp-indivisible"
        else "port-in-use"
    )
    before = (LAB / older / "server.log").read_bytes() + b"\n" + (LAB / "healthy" / "server.log").read_bytes()
    diagnosis = diagnose(behind(name, before))
    alone = label(diagnose(given(name)))
    assert label(diagnosis) == alone


def healthy_traffic(minutes: int) -> bytes:
    """What a serving server prints: statistics and answered requests, some refused or aborted by clients."""
    rows = []
    for second in range(0, minutes * 60, 10):
        clock = f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
        rows.append(
            f"(APIServer pid=90001) INFO 11-20 {clock} [loggers.py:335] Engine 000: Avg prompt throughput: 812.4 tokens/s, "
            "Avg generation throughput: 640.2 tokens/s, Running: 7 reqs, Waiting: 0 reqs, GPU KV cache usage: 31.5%, "
            "Prefix cache hit rate: 55.1%"
        )
        rows += [f'INFO:     192.0.2.{n}:51000 - "POST /v1/chat/completions HTTP/1.1" 200 OK' for n in range(9)]
        if second % 300 == 0:
            rows.append('INFO:     192.0.2.77:51000 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request')
    return "\n".join(rows).encode()


def test_the_answer_is_the_same_behind_a_day_of_healthy_traffic() -> None:
    day = (LAB / "healthy-serving" / "server.log").read_bytes() + b"\n" + healthy_traffic(24 * 60)
    for name in ("truncated-weights", "worker-killed", "kv-cache-too-small"):
        assert label(diagnose(behind(name, day))) in accepted(MANIFEST[name])
    assert label(diagnose([LogInput(name="server.log", data=day)])) == "healthy"


def test_the_same_case_gives_the_same_answer_from_saved_evidence() -> None:
    from assistant.diagnosis.model import case_from_json

    case, _ = read_case(ENGINE.catalog, logs=given("truncated-weights"))
    first = ENGINE.diagnose(case).to_json(engine="0", created="then", full=True)
    again = ENGINE.diagnose(case_from_json(first["evidence"])).to_json(engine="0", created="then", full=True)
    assert again == first


def test_paths_processes_and_line_numbers_decide_nothing() -> None:
    """The same log from another machine: other pids, hosts, stamps, line numbers and folders."""
    for name in FAILED:
        log = (LAB / name / "server.log").read_text(encoding="utf-8", errors="replace")
        log = re.sub(r"pid=(\d+)", lambda m: f"pid={int(m.group(1)) + 4242}", log)
        log = re.sub(r"(\.py):(\d+)\]", lambda m: f"{m.group(1)}:{int(m.group(2)) + 17}]", log)
        log = re.sub(r'(\.py", line )(\d+)', lambda m: f"{m.group(1)}{int(m.group(2)) + 17}", log)
        log = log.replace("/opt/venv/lib/python3.11/site-packages", "/usr/local/lib/python3.12/dist-packages")
        log = (
            log.replace("/srv/models/tiny", "/mnt/store/llm-8b")
            .replace("192.0.2.", "198.51.100.")
            .replace("11-21 ", "03-04 ")
        )
        moved = [LogInput(name="server.log", data=log.encode()), *given(name)[1:]]
        assert label(diagnose(moved)) in accepted(MANIFEST[name]), name
