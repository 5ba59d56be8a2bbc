"""Clients that others wrote, each with its own stack: they list, diagnose a captured log, estimate memory, and are
refused without a token."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.assistant.faces.mcp.serving import LAB, ROOT, Served, serving

pytestmark = pytest.mark.mcp
NODE = ROOT / ".node" / "node_modules"
PYTHON_1 = ROOT / ".node" / "python-mcp-1" / "bin" / "python"
CLIENTS = Path(__file__).parent / "clients"
LOG = (LAB / "tp2-truncated" / "server.log").read_text("utf-8")
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("diagnose", {"logs": [{"name": "server.log", "content": LOG}]}),
    ("estimate_memory", {"model": "Qwen/Qwen3-8B", "gpu": "L4"}),
]
TOOLS = {"diagnose", "parse_logs", "estimate_memory", "search_knowledge", "get_job"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("mcp")) as served:
        yield served


def needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"scripts/node_setup.sh .node has not put {path.relative_to(ROOT)} here")
    return path


def right(tools: Any, answers: Any) -> None:
    """What every client has to have received."""
    assert set(tools) >= TOOLS
    found, estimate = answers
    assert found["causes"][0]["id"] == "model/corrupt-checkpoint"
    assert estimate["verdict"] in ("fits", "does-not-fit", "unsure")
    assert any(part["name"] == "weights" for part in estimate["components"])


def exchange(command: list[str], task: dict[str, Any], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        command,
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("mode", "protocol"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
def test_the_python_client_2(server: Served, mode: Any, protocol: str) -> None:
    statuses: set[int] = set()

    async def note(response: httpx2.Response) -> None:
        statuses.add(response.status_code)

    async def talk(headers: dict[str, str]) -> tuple[str, Any, Any]:
        hooks = {"response": [note]}
        async with httpx2.AsyncClient(headers=headers, timeout=60, event_hooks=hooks) as http:
            transport = streamable_http_client(server.url, http_client=http)
            async with Client(transport, mode=mode) as client:
                tools = [tool.name for tool in (await client.list_tools()).tools]
                answers = [(await client.call_tool(name, given)).structured_content for name, given in CALLS]
                return str(client.protocol_version), tools, answers

    spoken, tools, answers = asyncio.run(talk(server.headers("viewer")))
    assert spoken == protocol
    right(tools, answers)
    statuses.clear()
    with pytest.raises(ExceptionGroup):
        asyncio.run(talk({}))
    assert statuses == {401}


def test_the_python_client_1(server: Served) -> None:
    task = {"url": server.url, "token": server.tokens["viewer"], "calls": CALLS}
    answer = exchange([str(needs(PYTHON_1)), str(CLIENTS / "python_1.py")], task)
    assert answer["protocol"] == "2025-11-25"
    right(answer["tools"], answer["answers"])
    assert "401" in answer["refused"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_typescript_client_2(server: Served, mode: str) -> None:
    module = needs(NODE / "@modelcontextprotocol" / "client" / "dist" / "index.mjs")
    task = {"url": server.url, "token": server.tokens["viewer"], "calls": CALLS, "mode": mode}
    command = [str(NODE / "node" / "bin" / "node"), str(CLIENTS / "typescript.mjs")]
    answer = exchange(command, task, CLIENT=str(module))
    right(answer["tools"], answer["answers"])
    assert answer["refused"]


def inspector(tmp_path: Path, target: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    program = needs(NODE / ".bin" / "mcp-inspector")
    command = [
        str(NODE / "node" / "bin" / "node"),
        str(program),
        "--cli",
        "--connect-timeout",
        "60000",
        *target,
        *options,
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_the_inspector(server: Served, tmp_path: Path) -> None:
    target = [server.url, "--transport", "http"]
    token = ["--header", f"Authorization: Bearer {server.tokens['viewer']}"]
    for era in ("legacy", "modern"):
        more = [*token, "--protocol-era", era, "--format", "json", "-q"]
        listed = inspector(tmp_path, target, *more, "--method", "tools/list", "--strict")
        assert listed.returncode == 0, listed.stderr  # 6 would be a schema that some client cannot read
        tools = [tool["name"] for tool in json.loads(listed.stdout)["result"]["tools"]]
        answers = []
        for name, given in CALLS:
            call = ["--method", "tools/call", "--tool-name", name, "--tool-args-json", json.dumps(given)]
            called = inspector(tmp_path, target, *more, *call)
            assert called.returncode == 0, called.stderr
            answers.append(json.loads(called.stdout)["result"]["structuredContent"])
        right(tools, answers)
    refused = inspector(tmp_path, target, "--method", "tools/list")
    assert refused.returncode != 0
    assert "auth_required" in refused.stderr


def test_mcp_remote(server: Served, tmp_path: Path) -> None:
    """The bridge that gives clients without HTTP a server on standard input and output."""
    program = needs(NODE / ".bin" / "mcp-remote")
    node = str(NODE / "node" / "bin" / "node")
    flags = [str(program), server.url, "--allow-http", "--transport", "http-only"]

    def bridge(*more: str) -> StdioServerParameters:
        return StdioServerParameters(
            command=node, args=[*flags, *more], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        )

    async def talk() -> tuple[Any, Any]:
        header = f"Authorization:Bearer {server.tokens['viewer']}"
        async with asyncio.timeout(90), Client(bridge("--header", header)) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            return tools, [(await client.call_tool(name, given)).structured_content for name, given in CALLS]

    right(*asyncio.run(talk()))
    process = subprocess.Popen(
        [node, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    try:  # without a token it looks for an authorization server, finds none, and ends or waits; it never answers
        said, noise = process.communicate(b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}\n', timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        said, noise = process.communicate()
    assert b'"tools"' not in said
    assert b"401" in noise or b"nauthorized" in noise or b"uthoriz" in noise or process.returncode != 0


def test_over_stdio_from_the_inspector(tmp_path: Path) -> None:
    target = [sys.executable, "-m", "assistant.faces.cli.main", "mcp", "-e", f"PYTHONPATH={ROOT}"]
    target += ["-e", f"XDG_STATE_HOME={tmp_path}"]
    listed = inspector(tmp_path, target, "--method", "tools/list", "--format", "json", "-q")
    assert listed.returncode == 0, listed.stderr
    assert {tool["name"] for tool in json.loads(listed.stdout)["result"]["tools"]} >= TOOLS
