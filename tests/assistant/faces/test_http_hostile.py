"""What the API does with input that nobody sends by accident, and what its documentation says to send."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from assistant.faces import patience
from tests.assistant.alerts.conftest import alert, serving, webhook

ROOT = Path(__file__).parents[3]
LOG = ROOT / "tests" / "data" / "lab" / "tp2-truncated" / "server.log"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    given = {"VLLM_DIAGNOSE_SERVER_RECEIVE_S": "3", "VLLM_DIAGNOSE_SERVER_MAX_BODY_BYTES": "4194304"}
    with serving(tmp_path_factory.mktemp("hostile"), given) as found:
        yield found


NESTED = b"[" * 100_000 + b"]" * 100_000
HOSTILE: tuple[bytes, ...] = (
    b"",
    b"null",
    b"[]",
    b"\x00",
    b'{"text": "\\u0000 a \\u0000"}',
    b'{"text": "\\ud800 lone \\udfff"}',
    b'{"text": "\xff\xfe\xc3\x28"}',
    b'{"logs": [{"name": "\\u0000\\u202e", "content": "\\ud800\\u0000"}]}',
    b'{"logs": [{"name": "../../etc/passwd", "content": "x"}]}',
    b'{"text": ' + NESTED + b"}",
    b'{"answers": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"text": 1e999999}',
    b'{"text": ' + b"9" * 100_000 + b"}",
    b'{"revision": NaN, "answers": {"incident.phase": "startup"}}',
    json.dumps({"text": "a" * 3_000_000}).encode(),
    json.dumps({"text": "\u202e\u2066 \x1b[31m", "language": "zh"}).encode(),
    json.dumps({"incident": "\x00' OR 1=1 --"}).encode(),
    json.dumps({**webhook(alert(1, alertname="\x00\ud800\x1b")), "groupKey": "\ud800"}).encode(),
    json.dumps(webhook(*[alert(n) for n in range(3000)])).encode(),
    json.dumps(webhook(alert(1, **{f"l{n}": "x" * 1000 for n in range(500)}))).encode(),
    b'{"version": "4", "groupKey": "g", "status": "firing", "alerts": ' + NESTED + b"}",
)
PLACES = (
    "/v1/diagnoses",
    "/v1/alerts",
    "/v1/bundles",
    "/v1/jobs",
    "/v1/tools/search_knowledge",
    "/v1/diagnoses/x/answers",
)


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_no_body_is_ever_an_error_of_ours(client: httpx.Client, body: bytes) -> None:
    for path in PLACES:
        for kind in (
            "application/json",
            "application/json; charset=utf-16",
            "multipart/form-data; boundary=x",
            "text/x",
        ):
            answer = client.post(path, content=body, headers={"Content-Type": kind})
            assert answer.status_code < 500, (path, kind, answer.text[:300])
            assert answer.status_code < 300 or answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/v1/diagnoses/%00", "/v1/diagnoses/%ff%fe", "/v1/alerts/%ed%a0%80", "/v1/search?q=%00%ff"]
)
def test_no_address_is_ever_an_error_of_ours(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code < 500
    assert client.get(path, headers={"X-Request-Id": b"\xe9\x80" * 40, "traceparent": b"00-zz"}).status_code < 500


def connected(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30)


def test_a_body_that_never_ends_in_size_or_time_is_cut_off(client: httpx.Client) -> None:
    head = (
        f"POST /v1/diagnoses HTTP/1.1\r\nHost: {client.base_url.host}\r\nContent-Type: application/json\r\n"
        f"Authorization: {client.headers['authorization']}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0
    with connected(client) as wire:  # a gibibyte, as far as anybody takes it
        wire.sendall(head)
        piece = b"%x\r\n" % (1 << 20) + b"a" * (1 << 20) + b"\r\n"
        try:
            while sent < 1 << 30:
                wire.sendall(piece)
                sent += 1 << 20
        except OSError:
            pass
    assert sent < 64 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    began = time.monotonic()
    with connected(client) as wire:
        wire.sendall(head)
        wire.sendall(b"1\r\n{\r\n")
        assert b" 408 " in wire.recv(4096)
    assert time.monotonic() - began < 20
    assert client.get("/v1/runbooks").status_code == 200


@pytest.mark.slow
def test_slow_heads_are_hung_up_on_and_do_not_keep_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` itself, because the connection is its part."""
    environment = {**os.environ, "HOME": str(tmp_path), "VLLM_DIAGNOSE_SERVER_READERS": "1"}
    program = (
        "from assistant.faces import patience; patience.HEAD_S = 1.0\nfrom assistant.faces.cli.main import main; main()"
    )
    errors = tmp_path / "err"
    with errors.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--port", "0"], env=environment, stderr=stream, cwd=ROOT
        )
    try:
        port = 0
        for _ in range(200):
            found = re.search(r"serves http://[^:]+:(\d+)", errors.read_text())
            if found:
                port = int(found.group(1))
                break
            time.sleep(0.1)
        for _ in range(100):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        wires = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(200)]
        for wire in wires:
            wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:  # blank lines behind an answer
            wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok\n"):
                answer += wire.recv(4096)
            wire.sendall(b"\r\n")
            assert wire.recv(100) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:  # blanks behind a value, as allowed
            blanks = b"GET /v1/runbooks HTTP/1.1\r\nHost: 127.0.0.1  \r\nAuthorization:  Bearer  nonsense \t\r\n\r\n"
            wire.sendall(blanks)
            assert b" 401 " in wire.recv(4096)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:  # a head without an end
            wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
            with contextlib.suppress(OSError):
                for _ in range(64):
                    wire.sendall(b"a" * 64 * 1024)
            with contextlib.suppress(ConnectionResetError):
                assert b" 400 " in wire.recv(4096)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=10).status_code == 200
        ended = 0
        for wire in wires:
            with wire:
                try:
                    ended += wire.recv(100) == b""
                except ConnectionResetError:
                    ended += 1
        assert ended == 200
    finally:
        server.terminate()
        server.wait(30)
    assert patience.HEAD_S == 20.0


def test_whoever_asks_too_often_is_told_how_long_to_wait(tmp_path: Path) -> None:
    with serving(tmp_path, {"VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "5"}) as client:
        answers = [client.get("/v1/runbooks") for _ in range(8)]
    assert [answer.status_code for answer in answers[:5]] == [200] * 5
    refused = answers[-1]
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["status"] == 429


def test_a_trace_is_echoed_and_nonsense_is_not(client: httpx.Client) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert client.get("/healthz", headers={"traceparent": trace}).headers["traceparent"] == trace
    for wrong in ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", trace.upper(), trace + "-x", "a"):
        assert "traceparent" not in client.get("/healthz", headers={"traceparent": wrong}).headers


def test_the_examples_of_the_documentation_work(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (ROOT / "docs" / "http.md").read_text("utf-8")
    script = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    assert script.count("curl ") > 15
    shutil.copy(LOG, tmp_path / "server.log")
    with serving(tmp_path, {}) as client:
        environment: dict[str, Any] = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "DIAGNOSE": str(client.base_url).rstrip("/"),
            "TOKEN": client.headers["authorization"].removeprefix("Bearer "),
        }
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout[-1500:] + ran.stderr[-1500:]
    assert (tmp_path / "incident.zip").read_bytes()[:2] == b"PK"
    assert "model/corrupt-checkpoint" in ran.stdout
