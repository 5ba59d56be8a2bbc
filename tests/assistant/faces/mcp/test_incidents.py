"""Whole incidents, solved by a client that understands nothing: it makes the first call that ``next_steps`` names and
that it can fill in, and stops at an answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from assistant.faces.mcp.door import LocalDoor
from assistant.faces.mcp.server import build
from assistant.settings import load
from tests.assistant.faces.mcp.serving import LAB

MOST_CALLS = 4
MOST_CHARACTERS = 6000


@dataclass(frozen=True)
class Incident:
    """What somebody says first, what they have and know when asked, and what it was."""

    says: str
    cause: str
    log: str | None = None
    knows: dict[str, str] = field(default_factory=dict)


INCIDENTS = (
    Incident("vllm does not start any more, I do not know why", "model/corrupt-checkpoint", log="tp2-truncated"),
    Incident("服务起不来了，求助", "install/port-in-use", log="port-in-use"),
    Incident("it stopped answering some time in the night", "distributed/worker-died", log="worker-killed"),
    Incident("clients get errors now and then", "serving/context-length-exceeded", log="context-length"),
    Incident("启动失败，之前还好好的", "memory/kv-cache-below-max-model-len", log="kv-cache-too-small"),
    Incident("new model, the container exits at once", "model/architecture-unsupported", log="unknown-architecture"),
    Incident("it hangs with two GPUs", "distributed/p2p-or-custom-allreduce",
             knows={"incident.phase": "serving", "incident.cured_by_p2p_off": "yes"}),
    Incident("多卡卡住", "distributed/p2p-or-custom-allreduce", knows={"incident.cured_by_p2p_off": "yes"}),
    Incident("server is slow", "performance/first-request-warmup",
             knows={"incident.phase": "serving", "incident.changed": "nothing", "scope.requests_affected": "first"}),
    Incident("tool calls come back as plain text", "serving/tool-calling-not-enabled"),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def filled(step: dict[str, Any], incident: Incident, given: set[str]) -> dict[str, Any] | None:
    """The arguments of a step's call with what this person has, or None where they have nothing for it."""
    call = step.get("call")
    if call is None:
        return None
    arguments = dict(call["arguments"])
    if "paths" in arguments:
        if incident.log is None or "log" in given:
            return None
        given.add("log")
        return {**arguments, "paths": [str(LAB / incident.log)]}
    answers = {name: incident.knows.get(name, "unknown") for name in arguments.get("answers", {})}
    return {**arguments, "answers": answers} if answers else None


async def solve(client: Client, incident: Incident) -> tuple[int, list[int], dict[str, Any]]:
    """Calls made, characters of each answer, and the last answer."""
    arguments: dict[str, Any] | None = {"text": incident.says}
    tool, sizes, given = "diagnose", [], set[str]()
    while arguments is not None and len(sizes) < MOST_CALLS:
        answer = await client.call_tool(tool, arguments)
        assert not answer.is_error, answer.content[0].text
        data = answer.structured_content
        sizes.append(len(json.dumps(data, ensure_ascii=False)) + sum(len(part.text) for part in answer.content))
        if data["verdict"] == "cause":
            break
        arguments = None
        for step in data["next_steps"]:
            arguments = filled(step, incident, given)
            if arguments is not None:
                tool = step["call"]["tool"]
                break
    return len(sizes), sizes, data


@pytest.mark.parametrize("incident", INCIDENTS, ids=[incident.says for incident in INCIDENTS])
def test_following_the_next_steps_leads_to_the_cause(incident: Incident) -> None:
    async def main() -> tuple[int, list[int], dict[str, Any]]:
        door = LocalDoor(load())
        try:
            async with Client(build(door)) as client:
                return await solve(client, incident)
        finally:
            await door.close()

    calls, sizes, data = asyncio.run(main())
    assert data["verdict"] == "cause", [(cause["id"], cause["confidence"]) for cause in data["causes"]]
    assert data["causes"][0]["id"] == incident.cause
    assert calls <= MOST_CALLS
    assert max(sizes) <= MOST_CHARACTERS
    assert data["causes"][0]["fixes"]


def test_there_are_ten_and_their_logs_exist() -> None:
    assert len(INCIDENTS) == 10
    assert all(Path(LAB / incident.log / "server.log").is_file() for incident in INCIDENTS if incident.log)
