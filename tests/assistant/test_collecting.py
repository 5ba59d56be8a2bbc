"""A server's look at a target: its logs and events beside its metrics, bounded, and the newest where all is too much."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from assistant.diagnosis import collecting
from assistant.diagnosis.collecting import Collected, collect
from assistant.readers import Ask
from assistant.running import opened
from assistant.security.roles import LOCAL
from assistant.service import Service
from assistant.settings import load
from assistant.targets import load_targets, policy_for
from tests.tools.sources.fakes import Answer, FakeLoki, nano, serving
from tools.evidence import Reading

LOG = (Path(__file__).parents[1] / "data" / "lab" / "tp2-truncated" / "server.log").read_text("utf-8")


def entries(lines: list[str], ago: timedelta, step: timedelta = timedelta(milliseconds=1)) -> list[tuple[int, str]]:
    start = datetime.now(UTC) - ago
    return [(nano(start + step * place), line) for place, line in enumerate(lines)]


def looked_at(folder: Path, logs: str) -> tuple[Reading, tuple[Collected, ...]]:
    file = folder / "targets.yaml"
    file.write_text(f"targets:\n  prod:\n    address: http://127.0.0.1:9\n    private: true\n    logs: {logs}\n")
    targets = load_targets(file)
    policy = policy_for(load({"HOME": str(folder)}), targets)
    return asyncio.run(collect(targets["prod"], policy))


def loki(url: str) -> str:
    return f"""{{loki: "{url}", query: '{{app="vllm"}}', private: true}}"""


def test_a_server_tells_the_cause_from_the_log_that_its_target_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    fake = FakeLoki([({"app": "vllm", "pod": "vllm-0"}, entries(LOG.splitlines(), timedelta(minutes=3)))])
    with serving(fake) as url:
        file = tmp_path / "targets.yaml"
        file.write_text(
            f"targets:\n  prod:\n    address: http://127.0.0.1:9\n    private: true\n    logs: {loki(url)}\n"
        )
        environment = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "VLLM_DIAGNOSE_SERVER_READERS": "1"}
        settings = load({**environment, "VLLM_DIAGNOSE_TARGETS_FILE": str(file)})

        async def work(service: Service) -> Any:
            answered = await service.diagnose(LOCAL, Ask(target="prod"), face="test")
            packed = await service.bundle(LOCAL, Ask(target="prod"), face="test")
            return answered, packed

        async def main() -> Any:
            async with opened(settings, work=False) as service:
                return await work(service)

        answered, packed = asyncio.run(main())
    assert answered.diagnosis.verdict == "cause" and answered.diagnosis.causes[0].id != "serving/endpoint-unreachable"
    assert any("vllm-0" in looked.source for looked in answered.diagnosis.looked_at)
    assert len(packed) > 1000


def test_where_six_hours_do_not_come_in_time_the_last_minutes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "MOST_BYTES", 40_000)
    old = entries([f"INFO old {place}" for place in range(2000)], timedelta(hours=2))
    new = entries([f"INFO new {place}" for place in range(20)], timedelta(minutes=2))
    with serving(FakeLoki([({"app": "vllm"}, old + new)])) as url:
        reading, (log,) = looked_at(tmp_path, loki(url))
    assert b"new 19" in log.data and b"old" not in log.data and log.broke_off == ""
    assert reading.looked_at and reading.not_measured == ()


def test_a_log_that_breaks_off_is_kept_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_BYTES", 1_000)
    rows = entries([f"INFO line {place}" for place in range(2000)], timedelta(minutes=2))
    with serving(FakeLoki([({"app": "vllm"}, rows)])) as url:
        _, (log,) = looked_at(tmp_path, loki(url))
    assert log.data.startswith(b"20") and "what came later was not read" in log.broke_off


def test_a_place_that_hangs_or_refuses_costs_its_own_line_and_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "WINDOWS", ((timedelta(hours=6), 0.5), (timedelta(minutes=15), 0.5)))
    log = tmp_path / "server.log"
    log.write_text("INFO a line\n" * 10)

    def hang(path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Answer:
        import time

        time.sleep(3)
        return 200, {}, b"{}"

    with serving(hang) as url:
        places = f"[{loki(url)}, {loki('http://127.0.0.1:9')}, {{files: {log}}}, {{files: {tmp_path / 'none.log'}}}]"
        reading, logs = looked_at(tmp_path, places)
    assert [held.data.count(b"\n") for held in logs] == [10]
    assert sorted(name for name, _ in reading.not_measured) == ["Loki", "Loki", "none.log"]
    assert all(why for _, why in reading.not_measured)


def test_of_a_large_file_the_end_is_read_from_a_line_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_FILE", 100)
    log = tmp_path / "server.log"
    log.write_text("".join(f"INFO line {place}\n" for place in range(100)))
    _, (held,) = looked_at(tmp_path, f"{{files: {log}}}")
    assert held.data.startswith(b"INFO line ") and held.data.endswith(b"INFO line 99\n") and len(held.data) <= 100
