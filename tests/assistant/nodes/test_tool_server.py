"""A node's tools from afar: the real command serves, the assistant's own client asks, over loopback."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant.nodes.remote import Node, RemoteError, RemoteTools, _last_event
from tests.assistant.nodes.serving import Served, command, tool_server
from tools import registry
from tools.addresses import Allowance, Policy
from tools.outbound import Outbound

registry.discover()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with tool_server(tmp_path_factory.mktemp("node")) as server:
        yield server


def talk(served: Served, token: str, work: Any) -> Any:
    async def main() -> Any:
        async with Outbound(Policy(allowed=(Allowance.of(served.address),))) as out:
            return await work(RemoteTools(Node("n1", served.address, {"Authorization": f"Bearer {token}"}), out))

    return asyncio.run(main())


def links(**more: Any) -> dict[str, Any]:
    return {"address": "127.0.0.1", "peers": [], "ports": [29871], "seconds": 2, **more}


def test_a_remote_check_has_the_form_of_a_local_one(served: Served) -> None:
    there = talk(served, served.viewer, lambda tools: tools.call("check_host", {"lang": "zh", "pid": os.getpid()}))
    here = asyncio.run(registry.get("check_host").call({"lang": "zh", "pid": os.getpid()}))
    assert type(there) is type(here)
    assert [row.id for row in there.checks] == [row.id for row in here.checks]
    described = talk(served, served.viewer, lambda tools: tools.call("describe_node", {}))
    assert described.settings["kernel"]


def test_what_touches_the_node_needs_its_operator_and_is_written_down(served: Served) -> None:
    with pytest.raises(RemoteError, match="operator"):
        talk(served, served.viewer, lambda tools: tools.run("check_links", links(), deadline_s=30))
    report = talk(served, served.operator, lambda tools: tools.run("check_links", links(), deadline_s=30))
    assert report.peers == [] and report.mtu
    (database,) = Path(served.environment["HOME"]).rglob("*.db")
    with sqlite3.connect(database) as opened:
        lines = opened.execute("SELECT did, outcome FROM audit").fetchall()
    assert ("check_links", "refused") in lines and ("check_links", "allowed") in lines


def test_without_a_ticket_nothing_runs(served: Served) -> None:
    answer = talk(served, served.operator, lambda tools: tools._tool("check_links", links(), 10))
    assert answer["needs_confirmation"] is True and "job" not in answer
    with pytest.raises(RemoteError, match="another call"):
        talk(served, served.operator, lambda t: t._tool("check_links", links(seconds=3, confirm=answer["confirm"]), 10))


@pytest.mark.slow
def test_one_test_at_a_time(served: Served) -> None:
    async def both(tools: RemoteTools) -> Any:
        first = asyncio.create_task(tools.run("check_links", links(peers=["127.0.0.9"], seconds=20), deadline_s=60))
        await asyncio.sleep(2)
        try:
            with pytest.raises(RemoteError) as busy:
                await tools.run("check_links", links(ports=[29872]), deadline_s=60)
            return busy.value.kind
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    assert talk(served, served.operator, both) == "busy"
    # What was cancelled here ended there: the next one gets its turn.
    assert talk(served, served.operator, lambda tools: tools.run("check_links", links(), deadline_s=30)).peers == []


def test_a_wrong_token_an_unknown_tool_and_nobody(served: Served) -> None:
    with pytest.raises(RemoteError, match="token") as refused:
        talk(served, "vdg_wrong", lambda tools: tools.call("check_host", {}))
    assert refused.value.kind == "refused"
    with pytest.raises(RemoteError, match="memory"):
        talk(served, served.operator, lambda tools: tools.call("estimate_memory", {}))
    nobody = Served("http://127.0.0.1:9/mcp", "", "", {})
    with pytest.raises(RemoteError) as unreachable:
        talk(nobody, "x", lambda tools: tools.call("check_host", {}))
    assert unreachable.value.kind == "unreachable"


def test_the_way_out_decides_what_a_node_may_be(served: Served) -> None:
    async def main() -> None:
        async with Outbound(Policy()) as out:
            await RemoteTools(Node("n1", served.address), out).call("check_host", {})

    with pytest.raises(RemoteError):
        asyncio.run(main())


def test_the_last_message_of_a_stream_counts() -> None:
    text = 'event: message\ndata: {"method": "notifications/progress"}\n\ndata: {"id": 1,\ndata:  "result": {}}\n\n: end\n\n'
    assert _last_event(text) == {"id": 1, "result": {}}


def test_every_call_leaves_a_line_here(served: Served) -> None:
    lines: list[tuple[Any, ...]] = []

    def note(*line: Any) -> None:
        lines.append(line[:4])

    async def main(token: str, work: Any) -> None:
        async with Outbound(Policy(allowed=(Allowance.of(served.address),))) as out:
            await work(RemoteTools(Node("n1", served.address, {"Authorization": f"Bearer {token}"}), out, note))

    asyncio.run(main(served.viewer, lambda tools: tools.call("describe_node", {})))
    for token, kind in ((served.viewer, "operator"), ("vdg_wrong", "token")):
        with pytest.raises(RemoteError, match=kind):
            asyncio.run(main(token, lambda tools: tools.run("check_links", links(), deadline_s=30)))
    assert lines[0] == ("describe_node", "reads", "n1", "done")
    assert [line[:3] for line in lines[1:]] == [("check_links", "loads", "n1")] * 2
    assert {line[3] for line in lines[1:]} <= {"refused", "failed"}


def test_ask_gathers_from_the_node_of_its_target(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "targets.yaml"
    tools = {"mcp": served.address, "token_env": "T"}
    dead = {"mcp": "http://127.0.0.1:9/mcp", "token_env": "T"}
    file.write_text(json.dumps({"targets": {
        "one": {"address": "http://127.0.0.1:9", "node_tools": tools},
        "two": {"address": "http://127.0.0.1:9", "node_tools": dead},
    }}))  # fmt: skip
    env = served.environment | {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "T": served.viewer}
    env |= {"VLLM_DIAGNOSE_TARGETS_FILE": str(file)}

    def ask(target: str) -> dict[str, Any]:
        ran = subprocess.run(command("ask", "it does not start", "--target", target, "-o", "json", "--full"), env=env, capture_output=True, text=True, timeout=90, check=False)  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    one = ask("one")
    assert {"check_gpu", "check_host", "check_network"} <= {place["source"] for place in one["looked_at"]}, one["looked_at"]  # fmt: skip
    assert any(fact["origin"]["source"] == "check_host" for fact in one["evidence"]["reading"]["evidence"])
    assert "check_host (two)" in json.dumps(ask("two")["not_measured"])
    (database,) = tmp_path.rglob("*.db")
    with sqlite3.connect(database) as opened:
        lines = opened.execute("SELECT who, face, did, target, outcome FROM audit").fetchall()
    assert ("local", "cli", "check_host", "one", "done") in lines
    assert ("local", "cli", "check_host", "two", "failed") in lines
