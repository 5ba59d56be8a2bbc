"""Loki: pages, tenants, several pods, starts, and what it answers when it does not answer with lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.tools.sources.conftest import look
from tests.tools.sources.fakes import FakeLoki, answer, nano, serving
from tools.sources.base import Bounds, SourceFailedError
from tools.sources.loki import Loki

T0 = datetime(2026, 11, 21, 10, tzinfo=UTC)
WHILE = Bounds(T0 - timedelta(hours=1), T0 + timedelta(hours=1), deadline_s=10)


def entries(count: int, start: datetime = T0, step_us: int = 1000, word: str = "line") -> list[tuple[int, str]]:
    return [(nano(start + timedelta(microseconds=i * step_us)), f"{word} {i}") for i in range(count)]


def test_pages_are_joined_without_loss_or_repetition() -> None:
    # Seven lines share each moment, so pages end in the middle of one.
    rows = [(nano(T0 + timedelta(milliseconds=i // 7)), f"line {i}") for i in range(12_345)]
    fake = FakeLoki([({"app": "vllm", "pod": "vllm-0"}, rows)], most=500)
    with serving(fake) as url:
        survey, lines = look(Loki("Loki", url, '{app="vllm"}'), url=url, bounds=WHILE)
    (found,) = lines.values()
    assert [line.text for line in found] == [text for _, text in rows]
    assert found[0].at == T0 and found[0].origin == "vllm-0"
    assert found[0].stamped() == b"2026-11-21T10:00:00.000000Z line 0\n"
    assert survey.reading.not_measured == ()
    limits = {int(asked["limit"][0]) for asked in fake.asked if "limit" in asked}
    assert limits == {20, 5000, 500}, "the server's own limit was learnt from its refusal"


def test_a_moment_with_more_lines_than_a_page_ends_in_a_sentence_and_not_in_a_circle() -> None:
    fake = FakeLoki([({"app": "vllm"}, [(nano(T0), f"line {i}") for i in range(600)])], most=500)
    with serving(fake) as url, pytest.raises(SourceFailedError, match="more than 500 lines of one moment"):
        look(Loki("Loki", url, '{app="vllm"}'), url=url, bounds=WHILE)


def test_stdout_and_stderr_are_one_log_and_pods_are_several() -> None:
    streams = [
        ({"app": "vllm", "pod": pod, "stream": stream}, [(nano(T0 + timedelta(seconds=2 * i + odd)), f"{pod} {stream} {i}") for i in range(3)])
        for pod in ("vllm-0", "vllm-1")
        for odd, stream in enumerate(("stdout", "stderr"))
    ]  # fmt: skip
    with serving(FakeLoki(streams)) as url:
        _, lines = look(Loki("Loki", url, '{app="vllm"}'), url=url, bounds=WHILE)
    assert sorted(lines) == ["Loki vllm-0", "Loki vllm-1"]
    assert [line.text.split(" ", 1)[1] for line in lines["Loki vllm-1"]] == [
        "stdout 0", "stderr 0", "stdout 1", "stderr 1", "stdout 2", "stderr 2",
    ]  # fmt: skip


def test_reading_begins_shortly_before_the_last_start_but_one() -> None:
    rows: list[tuple[int, str]] = []
    for hour in range(4):
        start = T0 - timedelta(minutes=50) + timedelta(minutes=20 * hour)
        rows += entries(5, start - timedelta(minutes=5), word=f"serving {hour}")
        rows.append((nano(start), "(APIServer pid=1) INFO 11-21 09:00:00 [api.py:1] vLLM API server version 0.32.0"))
        rows += entries(5, start + timedelta(seconds=1), word=f"start {hour}")
    with serving(FakeLoki([({"app": "vllm"}, rows)])) as url:
        _, lines = look(Loki("Loki", url, '{app="vllm"}'), url=url, bounds=WHILE)
    (found,) = lines.values()
    assert found[0].text.endswith("vLLM API server version 0.32.0")
    assert sum("vLLM API server version" in line.text for line in found) == 2


def test_credentials_and_tenant_are_sent_and_missed() -> None:
    fake = FakeLoki([({"app": "vllm"}, entries(3))], tenant="search", token="t0k")
    headers = {"Authorization": "Bearer t0k", "X-Scope-OrgID": "search"}
    with serving(fake) as url:
        _, lines = look(Loki("Loki", url, '{app="vllm"}', headers), url=url, bounds=WHILE)
        assert [len(found) for found in lines.values()] == [3]
        with pytest.raises(SourceFailedError, match="401: it wants credentials or a tenant"):
            look(Loki("Loki", url, '{app="vllm"}'), url=url, bounds=WHILE)
        with pytest.raises(SourceFailedError, match="holds nothing for"):
            look(Loki("Loki", url, '{app="vllm"}', {**headers, "X-Scope-OrgID": "else"}), url=url, bounds=WHILE)


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Sign in</title>"), "an HTML page"),
        ((200, {"Content-Type": "application/json"}, b'{"status": "success", "data": [{"app":'), "no complete JSON"),
        ((200, {}, b""), "an empty body"),
        ((200, {}, b"[" * 100_000), "no complete JSON"),
        (answer(200, {"kind": "PodList"}), "JSON that is not Loki's"),
        (answer(200, {"status": "success", "data": {"resultType": "matrix", "result": []}}), "holds nothing for"),
        ((404, {}, b"404 page not found"), "no Loki API at this address"),
        ((302, {"Location": "http://169.254.169.254/latest"}, b""), "169.254.169.254, another server"),
        ((500, {}, b"ring is empty"), "answered 500: it says 'ring is empty'"),
    ],
)
def test_what_is_no_answer_of_loki_is_one_sentence(reply: Any, sentence: str) -> None:
    with serving(lambda *_: reply) as url, pytest.raises(Exception, match=sentence) as caught:
        look(Loki("Loki", url, '{app="vllm"}'), url=url, bounds=WHILE)
    assert type(caught.value).__name__ in ("SourceFailedError", "OutboundError")


def test_a_query_that_is_no_selector_is_said_before_anything_is_asked() -> None:
    fake = FakeLoki()
    with serving(fake) as url, pytest.raises(SourceFailedError, match="no stream selector"):
        look(Loki("Loki", url, "app=vllm"), url=url)
    assert fake.asked == []


def test_filters_after_the_selector_stay_and_braces_in_quotes_do_not_end_it() -> None:
    fake = FakeLoki([({"app": "a}b"}, entries(2))])
    with serving(fake) as url:
        _, lines = look(Loki("Loki", url, '{app="a}b"}'), url=url, bounds=WHILE)
    assert [len(found) for found in lines.values()] == [2]
