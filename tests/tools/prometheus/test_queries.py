"""Label matchers, expressions, change points, and what is no answer of Prometheus."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from tests.tools.sources.fakes import answer, serving
from tools.outbound import Allowance, Outbound, Policy
from tools.prometheus import promql
from tools.prometheus.client import Prometheus, PrometheusError, Series
from tools.prometheus.history import differs, turning_point
from tools.prometheus.windows import server_windows


async def _query(url: str, headers: dict[str, str] | None = None) -> list[Series]:
    async with Outbound(Policy((Allowance.of(url),))) as outbound:
        return await Prometheus(url, outbound, headers or {}).query("up", 1.0)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ('job="vllm"', 'job="vllm"'),
        ("{job='vllm', pod=~\"vllm-.*\"}", "job='vllm',pod=~\"vllm-.*\""),
        ('a!="x}\\"y", b!~"z,"', 'a!="x}\\"y",b!~"z,"'),
        ("", ""),
        ("{}", ""),
    ],
)
def test_matchers_are_read_as_prometheus_reads_them(given: str, read: str) -> None:
    assert promql.matchers(given) == read


@pytest.mark.parametrize(
    "given",
    ["vllm", 'job="a"} or vector(1) or up{x="', 'job="a" b="c"', 'job="a"[5m]', 'job="a', 'sum(up{job="a"})', "job=a"],
)
def test_nothing_else_becomes_part_of_an_expression(given: str) -> None:
    with pytest.raises(ValueError, match="are no label matchers"):
        promql.matchers(given)


def test_old_and_new_names_are_joined() -> None:
    names = ["vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"]
    expression = promql.over("increase", names, 'job="a"', 90.0)
    assert expression.count(" or ") == 1 and expression.count('job="a"') == 2 and "[90000ms]" in expression
    known = promql.known([*names, "node_load1"])
    assert {known[name][0].key for name in known} == {"prefix_hits"} and [known[n][1] for n in names] == [0, 1]


def test_the_turning_point_lies_where_the_level_changes() -> None:
    def series(*values: float) -> tuple[tuple[float, float], ...]:
        return tuple((1000.0 + 15 * i, v) for i, v in enumerate(values))

    assert turning_point(series(*[0, 1, 0, 1, 0, 0, 1, 0], *[60, 62, 61, 63, 60, 62])) == 1000.0 + 15 * 8
    assert turning_point(series(*[5, 5, 5, 5, 5, 5, 5, 5])) is None, "nothing changed"
    assert turning_point(series(*[1, 9, 1, 9, 1, 9, 1, 9, 1, 9])) is None, "it swings, it does not turn"
    assert turning_point(series(1, 2)) is None
    assert differs(0.0, 63.0, 1.0) and differs(4.0, 1.0, 1.0)
    assert not differs(100.0, 130.0, 1.0) and not differs(0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((401, {}, b""), "401: it wants a token"),
        ((403, {}, b""), "403: these credentials"),
        ((200, {}, b"<!DOCTYPE html><title>Sign in</title>"), "200 with an HTML page"),
        ((200, {}, b'{"status": "success", "data": {"resul'), "200 with no JSON"),
        ((200, {}, b"[" * 200_000), "no JSON"),
        ((404, {}, b"404 page not found"), "404 with no JSON"),
        (answer(200, {"kind": "PodList"}), "JSON that is not Prometheus'"),
        (answer(422, {"status": "error", "errorType": "execution", "error": "query timed out"}), "422 execution"),
        (answer(400, {"status": "error", "errorType": "bad_data", "error": "no org id"}), "no org id"),
    ],
)
def test_what_is_no_answer_is_one_sentence(reply: Any, sentence: str) -> None:
    with serving(lambda *_: reply) as url, pytest.raises(PrometheusError, match=sentence):
        asyncio.run(_query(url))


def test_values_that_are_no_numbers_and_rows_that_are_none_are_passed_over() -> None:
    rows = [
        {"metric": {"a": "b", "n": 3}, "value": [1.0, "NaN"]},
        {"metric": {}, "value": [1.0, "x"]},
        {"metric": {}, "value": "no"},
        {"metric": {}, "values": [[1.0, "+Inf"], None, [2.0]]},
        None,
    ]
    body = answer(200, {"status": "success", "data": {"resultType": "vector", "result": rows}})
    with serving(lambda *_: body) as url:
        found = asyncio.run(_query(url))
    assert [len(row.samples) for row in found] == [1, 1, 1]
    assert math.isnan(found[0].value) and math.isnan(found[1].value) and math.isinf(found[2].value)
    assert found[0].labels == {"a": "b"}


def test_credentials_and_tenant_reach_the_server_and_queries_are_forms() -> None:
    seen: list[tuple[str, Any]] = []

    def respond(path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Any:
        seen.append(
            (path, (query, headers.get("X-Scope-OrgID"), headers.get("Authorization"), headers["Content-Type"]))
        )
        return answer(200, {"status": "success", "data": {"resultType": "vector", "result": []}})

    with serving(respond) as url:
        asyncio.run(_query(f"{url}/prometheus", {"X-Scope-OrgID": "t", "Authorization": "Basic eA=="}))
    ((path, (query, tenant, credentials, kind)),) = seen
    assert path == "/prometheus/api/v1/query" and query["query"] == ["up"]
    assert (tenant, credentials, kind) == ("t", "Basic eA==", "application/x-www-form-urlencoded")


def test_a_server_that_keeps_nothing_of_vllms_gives_no_window() -> None:
    row = {"metric": {"__name__": "process_start_time_seconds"}, "value": [1.0, "40"]}
    body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": [row]}}).encode()

    async def ask(url: str) -> Any:
        async with Outbound(Policy((Allowance.of(url),))) as outbound:
            return await server_windows(Prometheus(url, outbound), "", window_s=5, at=1.0)

    with serving(lambda *_: (200, {}, body)) as url:
        assert asyncio.run(ask(url)) == {}
