"""What touches a machine and what takes long, over HTTP: consent by ticket, jobs of their owner, progress, cancellation,
and a line in the audit for every call."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from pydantic import BaseModel, Field

from assistant.faces.mcp.door import HttpDoor
from assistant.faces.mcp.tools import ActionTool
from tests.assistant.faces.mcp.serving import Served, serving
from tools import registry
from tools.registry import Context, action
from tools.sanity.results import Fact, Report

ended = threading.Event()


class Wait(BaseModel):
    seconds: float = Field(30, ge=0, le=60)


class Waited(BaseModel):
    seconds: float


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:

    async def wait(given: Wait, context: Context) -> Waited:
        """Wait, saying how far it is."""
        try:
            for step in range(1, 21):
                context.report(step / 20, f"step {step}")
                await asyncio.sleep(given.seconds / 20)
        finally:
            ended.set()
        return Waited(seconds=given.seconds)

    looks = action(name="wait_and_look", title="Wait", effect="reads", deadline_s=60)(wait)

    async def load(given: Wait, context: Context) -> Waited:
        """Wait under load."""
        return await looks(given, context)

    action(name="wait_under_load", title="Load the machine", effect="loads", deadline_s=60)(load)

    async def find(given: Wait, context: Context) -> Report:
        """Find out how many GPUs there are."""
        return Report(tool="find_under_load", verdict="ok", summary="", facts=[Fact(name="gpu.count", value=2)])

    action(name="find_under_load", title="Find", effect="loads", deadline_s=60)(find)

    def mount(app: Any, shared: Any) -> None:
        for name in ("wait_and_look", "wait_under_load", "find_under_load"):
            app.state.mcp._tool_manager._tools[name] = ActionTool.of(registry.get(name), HttpDoor(shared))

    with serving(tmp_path_factory.mktemp("acting"), faces=(mount,)) as served:
        yield served
    for name in ("wait_and_look", "wait_under_load", "find_under_load"):
        del registry._ACTIONS[name]


@contextlib.asynccontextmanager
async def client_of(server: Served, role: str, mode: Any = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers=server.headers(role), timeout=60) as http,
        Client(streamable_http_client(server.url, http_client=http), mode=mode) as client,
    ):
        yield client


def data(result: Any) -> dict[str, Any]:
    assert not result.is_error, result.content[0].text
    found: dict[str, Any] = result.structured_content
    return found


def test_what_loads_a_machine_runs_once_for_the_operator_who_agreed(server: Served) -> None:
    call = ("wait_under_load", {"seconds": 0.2})

    async def main() -> None:
        async with (
            client_of(server, "viewer") as viewer,
            client_of(server, "operator") as operator,
            client_of(server, "other") as other,
        ):
            refused = await viewer.call_tool(*call)
            assert refused.is_error and "operator" in refused.content[0].text
            offer = data(await operator.call_tool(*call))
            assert offer["needs_confirmation"] and offer["effect"] == "loads"
            ticket = offer["confirm"]
            changed = await operator.call_tool(call[0], {"seconds": 5, "confirm": ticket})
            assert changed.is_error and "another call" in changed.content[0].text
            foreign = await other.call_tool(call[0], {**call[1], "confirm": ticket})
            assert foreign.is_error and "somebody else" in foreign.content[0].text
            forged = await operator.call_tool(call[0], {**call[1], "confirm": ticket[:-4] + "AAAA"})
            assert forged.is_error
            job = data(await operator.call_tool(call[0], {**call[1], "confirm": ticket}))
            again = await operator.call_tool(call[0], {**call[1], "confirm": ticket})
            assert again.is_error or again.structured_content["job"] == job["job"]  # never a second job
            done = data(await operator.call_tool("get_job", {"job": job["job"], "wait_s": 30}))
            assert (done["state"], done["result"]) == ("done", {"seconds": 0.2})
            for stranger in (viewer, other):
                unseen = await stranger.call_tool("get_job", {"job": job["job"]})
                assert unseen.is_error and "There is no job" in unseen.content[0].text

    asyncio.run(main())


def test_what_a_check_has_found_decides_anew(server: Served) -> None:
    async def main() -> None:
        async with client_of(server, "operator") as operator, client_of(server, "other") as other:

            async def run(name: str) -> dict[str, Any]:
                ticket = data(await operator.call_tool(name, {"seconds": 0}))["confirm"]
                job = data(await operator.call_tool(name, {"seconds": 0, "confirm": ticket}))["job"]
                return data(await operator.call_tool("get_job", {"job": job, "wait_s": 30}))

            asked = data(await operator.call_tool("diagnose", {"text": "my server hangs at start"}))
            done = await run("find_under_load")
            assert f"diagnose with job {done['job']}" in done["next"]
            given = {"incident": asked["incident"], "job": done["job"]}
            decided = data(await operator.call_tool("diagnose", given))
            assert decided["incident"] not in (None, asked["incident"])
            kept = server.app.state.shared.service.incidents.get(decided["incident"]).evidence[0]
            assert kept["text"] == "my server hangs at start"
            assert ("gpu.count", 2) in {(fact["name"], fact["value"]) for fact in kept["reading"]["evidence"]}
            alone = data(await operator.call_tool("diagnose", {"job": done["job"]}))
            assert alone["incident"] not in (None, decided["incident"])
            foreign = await other.call_tool("diagnose", given)
            assert foreign.is_error and "There is no job" in foreign.content[0].text
            nothing = await run("wait_under_load")
            assert "next" not in nothing
            refused = await operator.call_tool("diagnose", {"job": nothing["job"]})
            assert refused.is_error and "nothing that a diagnosis could use" in refused.content[0].text

    asyncio.run(main())


def test_a_job_reports_progress_and_ends_when_it_is_cancelled(server: Served) -> None:
    async def main() -> None:
        seen: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        async with client_of(server, "operator") as operator:
            ticket = data(await operator.call_tool("wait_under_load", {"seconds": 60}))["confirm"]
            ended.clear()
            job = data(await operator.call_tool("wait_under_load", {"seconds": 60, "confirm": ticket}))["job"]
            still = data(await operator.call_tool("get_job", {"job": job, "wait_s": 5}, progress_callback=progress))
            assert still["state"] in ("running", "queued") and still["next"]
            assert seen == sorted(seen) and len(seen) >= 2
            data(await operator.call_tool("get_job", {"job": job, "cancel": True, "wait_s": 0}))
            end = data(await operator.call_tool("get_job", {"job": job, "wait_s": 30}))
            assert end["state"] == "cancelled"
            assert await asyncio.to_thread(ended.wait, 20)

    asyncio.run(main())


def test_a_client_that_gives_up_ends_the_tool(server: Served) -> None:
    async def main() -> None:
        seen: list[str | None] = []
        began = asyncio.Event()

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append(message)
            began.set()

        async with client_of(server, "viewer") as viewer:
            ended.clear()
            call = viewer.call_tool("wait_and_look", {"seconds": 60}, progress_callback=progress)
            task = asyncio.create_task(call)
            await asyncio.wait_for(began.wait(), 20)
            assert seen[0] == "step 1"
            assert not ended.is_set()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(ended.wait, 10)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_every_call_is_written_down_without_what_it_brought(server: Served) -> None:
    async def main() -> None:
        async with client_of(server, "viewer") as viewer:
            log = "ERROR 11-21 10:00:00 [x.py:1] RuntimeError: sk-live-0123456789abcdef0123456789abcdef\n"
            first = data(await viewer.call_tool("diagnose", {"logs": [{"name": "a.log", "content": log}]}))
            await viewer.call_tool(
                "diagnose", {"incident": first["incident"], "answers": {"incident.phase": "startup"}}
            )
            await viewer.call_tool("search_knowledge", {"query": "NCCL"})
            await viewer.call_tool("get_job", {"job": "nobody"})

    asyncio.run(main())
    lines = server.app.state.shared.service.audit.recent(4)
    assert [line["did"] for line in reversed(lines)] == ["diagnose", "diagnose", "search_knowledge", "get_job"]
    assert [line["outcome"] for line in reversed(lines)] == ["done", "done", "done", "failed"]
    assert {line["face"] for line in lines} == {"mcp"}
    assert "sk-live" not in str(lines)


@pytest.mark.parametrize(
    ("tool", "arguments", "next_step"),
    [
        ("diagnose", {}, "send a question"),
        ("diagnose", {"logs": "x"}, "Give text, logs"),
        ("diagnose", {"text": "slow", "target": "nowhere"}, "none is configured"),
        ("diagnose", {"incident": "x" * 80}, "There is no incident"),
        ("diagnose", {"paths": ["/etc/passwd"]}, "this is no argument"),
        ("search_knowledge", {"query": ""}, "query"),
        ("parse_logs", {}, "logs"),
        ("get_job", {"job": "x", "wait_s": 1e9}, "0 to 50"),
    ],
)
def test_an_error_says_what_to_do_next(server: Served, tool: str, arguments: dict[str, Any], next_step: str) -> None:
    async def main() -> Any:
        async with client_of(server, "viewer") as viewer:
            return await viewer.call_tool(tool, arguments)

    answer = asyncio.run(main())
    assert answer.is_error
    assert next_step in answer.content[0].text
    assert len(answer.content[0].text) < 1000
    assert "Traceback" not in answer.content[0].text


def test_a_session_belongs_to_whoever_opened_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    accept = {"Accept": "application/json, text/event-stream"}

    def say(http: httpx2.Client, url: str, method: str, params: Any, **headers: str) -> httpx2.Response:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return http.post(url, json=body, headers={**accept, **headers})

    with serving(tmp_path_factory.mktemp("sessions"), SERVER_MCP_SESSIONS="yes") as server, httpx2.Client() as http:
        opened = say(http, server.url, "initialize", hello, **server.headers("operator"))
        session = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        mine = say(http, server.url, "tools/list", {}, **session, **server.headers("operator"))
        foreign = say(http, server.url, "tools/list", {}, **session, **server.headers("other"))
        assert (mine.status_code, foreign.status_code) == (200, 404)
