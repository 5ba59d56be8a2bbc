"""A client that hangs up ends the reading that it asked for; the reading process stays for the next one."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.assistant.faces.mcp.serving import LAB, Served, serving

#: Some seconds of reading: many runs, each with its failures.
LARGE = (LAB / "tp2-truncated" / "server.log").read_text("utf-8") * 700
MCP = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("abandoned")) as found:
        yield found


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests() -> dict[str, tuple[str, Any, dict[str, str]]]:
    log = {"name": "large.log", "content": LARGE}
    call = {"name": "diagnose", "arguments": {"logs": [log]}}
    return {
        "HTTP": ("/v1/diagnoses", {"logs": [log]}, {}),
        "bundle": ("/v1/bundles", {"logs": [log]}, {}),
        "MCP": ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}, MCP),
    }


@pytest.mark.parametrize("kind", ["HTTP", "bundle", "MCP"])
def test_reading_ends_when_the_client_hangs_up(served: Served, kind: str) -> None:
    path, body, more = requests()[kind]
    where = urlsplit(served.url)
    assert where.hostname and where.port
    data = json.dumps(body).encode()
    headers = {
        "Host": f"127.0.0.1:{where.port}",
        "Content-Type": "application/json",
        **served.headers("viewer"),
        **more,
    }
    head = f"POST {path} HTTP/1.1\r\nContent-Length: {len(data)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    readers = served.app.state.shared.service.readers
    (pid,) = readers.pids
    replaced, before = readers.replaced, processor_seconds(pid)
    with socket.create_connection((where.hostname, where.port), timeout=30) as wire:
        wire.sendall(head.encode() + data)
        until = time.monotonic() + 30
        while processor_seconds(pid) - before < 0.2:
            assert time.monotonic() < until, "the reader never began"
            time.sleep(0.02)
    until = time.monotonic() + 20
    while True:  # the reader stands still, although a few seconds of reading were left
        was = processor_seconds(pid)
        time.sleep(0.4)
        if processor_seconds(pid) - was < 0.05:
            break
        assert time.monotonic() < until, "it reads on for nobody"
    spent = processor_seconds(pid) - before
    if kind == "HTTP":
        assert readers.asked == 0
    assert readers.pids == (pid,) and readers.replaced == replaced
    base = served.url.removesuffix("/mcp")
    before = processor_seconds(pid)
    answer = httpx.post(
        f"{base}/v1/diagnoses",
        json={"logs": [{"name": "large.log", "content": LARGE}], "save": False},
        headers=served.headers("viewer"),
        timeout=90,
    )
    assert answer.status_code == 201
    assert spent < (processor_seconds(pid) - before) * 0.8, "the abandoned one was read to its end"


@pytest.mark.parametrize("path", ["/v1/diagnoses", "/v1/tools/search_knowledge", "/ask"])
def test_a_client_that_goes_in_the_middle_of_its_request_is_no_error_of_ours(
    served: Served, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    where = urlsplit(served.url)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
    head += f"Authorization: {served.headers('viewer')['Authorization']}\r\nAccept: application/json, text/event-stream\r\n\r\n{{"
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as wire:
        wire.sendall(head.encode())
        time.sleep(0.2)
    assert httpx.get(f"{served.url.removesuffix('/mcp')}/healthz", timeout=30).status_code == 200
    time.sleep(0.5)
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
