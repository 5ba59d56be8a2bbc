"""The interactive view in a real browser, inside a sandboxed frame whose host speaks the handshake of MCP Apps."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from assistant.faces.mcp.door import LocalDoor
from assistant.faces.mcp.server import build
from assistant.faces.mcp.tools import VIEW
from assistant.settings import load
from tests.assistant.faces.mcp.serving import LAB, ROOT

pytestmark = pytest.mark.mcp
NODE = ROOT / ".node" / "node_modules"
HOST = Path(__file__).parent / "clients" / "view.mjs"
HOSTILE = (
    "<img src=x onerror=\"alert(1)\"><script>fetch('http://127.0.0.1:9/x')</script><a href='javascript:alert(2)'>x</a>"
)


def chromium() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None or not (NODE / "playwright-core").exists():
        pytest.skip("Chromium and playwright-core (scripts/node_setup.sh .node) are needed")
    return found


def plain(result: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The view as it is served, and real answers of the tools that it draws."""

    async def main() -> dict[str, Any]:
        door = LocalDoor(load())
        hostile = (
            (LAB / "tp2-truncated" / "server.log")
            .read_text("utf-8")
            .replace("SafetensorError: ", f"SafetensorError: {HOSTILE} ")
        )
        try:
            async with Client(build(door)) as client:
                tools = {tool.name: tool for tool in (await client.list_tools()).tools}
                assert all(tools[name].meta["ui"]["resourceUri"] == VIEW for name in ("diagnose", "estimate_memory"))
                return {
                    "view": (await client.read_resource(VIEW)).contents[0].text,
                    "cause": plain(
                        await client.call_tool("diagnose", {"logs": [{"name": HOSTILE, "content": hostile}]})
                    ),
                    "question": plain(await client.call_tool("diagnose", {"text": "vllm 启动报错"})),
                    "memory": plain(await client.call_tool("estimate_memory", {"model": "Qwen/Qwen3-8B", "gpu": "L4"})),
                }
        finally:
            await door.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield asyncio.run(main())


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request: pytest.FixtureRequest, answers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    browser = chromium()
    task = {
        "view": answers["view"],
        "theme": request.param,
        "screenshots": str(tmp_path_factory.mktemp("screenshots")),
        "results": [
            {"result": answers["cause"]},
            {"result": answers["question"], "reply": answers["cause"]},
            {"result": answers["memory"]},
        ],
    }
    done = subprocess.run(
        [str(NODE / "node" / "bin" / "node"), str(HOST)],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PLAYWRIGHT": str(NODE / "playwright-core" / "index.js"), "CHROMIUM": browser},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cause, question, memory = json.loads(done.stdout)
    return request.param, cause, question, memory


def test_it_draws_the_diagnosis_and_leaves_markup_as_text(seen: Any) -> None:
    theme, cause, _, _ = seen
    assert cause["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 31)"}[theme]
    assert HOSTILE[:60] in cause["text"].replace("\n", " ")
    assert not {"script", "img", "a", "iframe", "form"} & set(cause["tags"])
    assert not cause["dialogs"] and not cause["wide"]
    assert "Copy" in cause["buttons"]


def test_it_reaches_neither_its_host_nor_the_network(seen: Any) -> None:
    for page in seen[1:]:
        assert not page["reached"] and not page["requests"]
        assert "Failed to fetch" in page["network"]
        assert all("127.0.0.1:9" in line for line in page["errors"])  # what the test itself tried
        methods = [message.get("method") for message in page["sent"]]
        assert methods[:3] == ["ui/initialize", "ui/notifications/initialized", "ui/notifications/size-changed"]


def test_an_answered_question_calls_diagnose_and_draws_what_comes_back(seen: Any, answers: dict[str, Any]) -> None:
    question = seen[2]
    call = next(message for message in question["sent"] if message.get("method") == "tools/call")
    step = next(s for s in answers["question"]["structuredContent"]["next_steps"] if s["action"] == "ask")
    assert call["params"] == {
        "name": "diagnose",
        "arguments": {
            "incident": answers["question"]["structuredContent"]["incident"],
            "answers": {step["question"]: step["choices"][0]},
        },
    }
    assert step["labels"][0] in question["buttons"]
    assert any(message.get("method") == "ui/update-model-context" for message in question["sent"])
    assert answers["cause"]["structuredContent"]["summary"] in question["after"]


def test_it_draws_the_memory_breakdown(seen: Any, answers: dict[str, Any]) -> None:
    memory = seen[3]
    estimate = answers["memory"]["structuredContent"]
    assert "table" in memory["tags"] and not memory["wide"]
    for part in estimate["components"]:
        assert f"{part['gib']['value']:.2f} GiB" in memory["text"]
    assert estimate["alternatives"][0]["flags"] in memory["text"]
