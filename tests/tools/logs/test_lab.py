"""Logs of a real server, captured in the laboratory: failures, processes, coverage and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from knowledge import catalog
from knowledge.shapes import Message
from tools.logs import LogInput, expand, read_logs

LAB = Path(__file__).resolve().parents[2] / "data" / "lab"
CAPTURES: dict[str, dict[str, Any]] = yaml.safe_load((LAB / "manifest.yaml").read_text(encoding="utf-8"))
HEALTHY = [name for name, expected in CAPTURES.items() if expected["verdict"] == "healthy"]
FAILED_STARTS = [
    name for name, expected in CAPTURES.items() if not expected["came_up"] and expected["exit_status"] in (1, 2)
]


@pytest.fixture(scope="module")
def table() -> tuple[Message, ...]:
    return tuple(catalog.load().messages.values())


def values(name: str, table: tuple[Message, ...], before: str = "") -> dict[str, Any]:
    data = before.encode() + (LAB / name / "server.log").read_bytes()
    reading = read_logs([LogInput(name, data=data)], table)
    found: dict[str, Any] = {fact.name: fact.value for fact in reading.reading.evidence}
    failing = {message.id for message in table if message.kind in ("failure", "consequence", "wrapper", "request")}
    found["messages"] = {
        (fact.name, fact.origin.process)
        for fact in reading.reading.evidence
        if fact.name.removeprefix("message:") in failing
    }
    return found


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(name: str, table: tuple[Message, ...]) -> None:
    found = values(name, table)
    assert found["log.failures"] == 0
    assert found["log.coverage"] == "through-ready"
    assert "log.unrecognised" not in found
    assert "log.exception" not in found
    assert found["server.version"] == "0.32.0"


@pytest.mark.parametrize("name", FAILED_STARTS)
def test_failed_start(name: str, table: tuple[Message, ...]) -> None:
    found = values(name, table)
    assert found["log.failures"] >= 1
    assert found["log.coverage"] == "start-to-exit"
    assert found["log.ended"] == "failed"


@pytest.mark.parametrize(
    ("name", "exception", "process"),
    [
        ("tp2-truncated", "safetensors._safetensors_rust.SafetensorError", "Worker_TP1"),
        ("kv-cache-too-small", "ValueError", "EngineCore"),
        ("lora-missing", "vllm.exceptions.LoRAAdapterNotFoundError", "Worker"),
        ("port-in-use", "OSError", "APIServer"),
        ("main-guard", "RuntimeError", "EngineCore"),
        ("tp-indivisible", "pydantic_core._pydantic_core.ValidationError", "APIServer"),
    ],
)
def test_the_exception_and_its_process(name: str, exception: str, process: str, table: tuple[Message, ...]) -> None:
    reading = read_logs([LogInput(name, path=LAB / name / "server.log")], table)
    blocks = {(block.exceptions[-1].type, (block.process or "").split(" ")[0]) for block in reading.failures}
    assert (exception, process) in blocks


@pytest.mark.parametrize(
    "name", ["tp2-truncated", "kv-cache-too-small", "main-guard", "unknown-argument", "healthy-forced-end"]
)
def test_an_earlier_run_and_much_traffic_change_nothing(name: str, table: tuple[Message, ...]) -> None:
    alone = values(name, table)
    healthy = (LAB / "healthy" / "server.log").read_text(encoding="utf-8")
    traffic = 'INFO:     192.0.2.9:4711 - "POST /v1/completions HTTP/1.1" 200 OK\n' * 70_000
    other = (LAB / ("port-in-use" if name != "port-in-use" else "no-config") / "server.log").read_text(encoding="utf-8")
    for before in (other, healthy.replace("INFO:     Shutting down\n", traffic + "INFO:     Shutting down\n")):
        behind = values(name, table, before)
        for key in ("log.failures", "log.coverage", "log.ended", "log.stage", "messages", "log.exception"):
            assert behind.get(key) == alone.get(key), key
        assert behind["log.runs"] == 2


def test_every_capture_is_understood_as_a_folder(table: tuple[Message, ...]) -> None:
    kinds = {source.kind for source in expand([LAB / "wrong-model-name"])}
    assert {"log", "responses"} <= kinds
    reading = read_logs(expand([LAB / "wrong-model-name"]), table)
    refused = [fact for fact in reading.reading.evidence if fact.name == "requests.refused"]
    assert {fact.value for fact in refused} >= {1}
