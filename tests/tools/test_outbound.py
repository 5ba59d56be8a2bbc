"""The way out: what is allowed, what ends a request, and what the person reads when there is no answer."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gzip
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tools.outbound import Allowance, Limits, Outbound, OutboundError, Policy

Answer = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
ROOT = Path(__file__).resolve().parents[2]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


class Server:
    """A loopback server that counts connections and keeps the request heads it got."""

    def __init__(self, answer: Answer | bytes) -> None:
        self._answer = answer
        self.port = 0
        self.connections = 0
        self.heads: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            if isinstance(self._answer, bytes):
                writer.write(self._answer)
            else:
                await self._answer(head, reader, writer)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def serving(answer: Answer | bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def reply(body: bytes = b"ok", *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def names(**known: str | list[str]) -> Callable[[str, int], Coroutine[Any, Any, list[str]]]:
    async def resolve(host: str, port: int) -> list[str]:
        found = known.get(host.replace(".", "_"))
        if found is None:
            raise OSError("no such name")
        return [found] if isinstance(found, str) else found

    return resolve


async def fetch(url: str, *allowed: Allowance, **options: Any) -> Any:
    limits = options.pop("limits", None)
    resolve = options.pop("resolve", names())
    async with Outbound(Policy(allowed, **options), resolve=resolve, limits=limits) as way_out:
        return await way_out.get(url)


def refusal(work: Coroutine[Any, Any, Any], kind: str) -> str:
    with pytest.raises(OutboundError) as caught:
        run(work)
    sentence = str(caught.value)
    assert caught.value.kind == kind, sentence
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_a_name_is_pinned_and_kept_in_the_host_header() -> None:
    async def work() -> None:
        async with serving(reply(b"vllm:x 1\n")) as server:
            url = f"http://model.test:{server.port}/metrics?a=b"
            got = await fetch(url, Allowance.of(url, private=True), resolve=names(model_test="127.0.0.1"))
            assert (got.status, got.text, got.address) == (200, "vllm:x 1\n", "127.0.0.1")
            assert server.heads[0].startswith("GET /metrics?a=b HTTP/1.1\r\n")
            assert f"Host: model.test:{server.port}\r\n" in server.heads[0]

    run(work())


def test_localhost_and_a_private_literal_say_themselves_that_they_are_private() -> None:
    assert Allowance.of("http://localhost:8000").private
    assert Allowance.of("http://10.1.2.3:8000").private
    assert Allowance.of("http://[::1]:8000").private
    assert not Allowance.of("http://model.internal:8000").private
    assert not Allowance.of("http://8.8.8.8").private


def test_a_server_that_nobody_allowed_is_refused_and_never_dialled() -> None:
    async def work() -> None:
        async with serving(reply()) as server:
            for url in (f"http://127.0.0.1:{server.port}/", f"http://other.test:{server.port}/"):
                with pytest.raises(OutboundError, match="not among the allowed targets"):
                    await fetch(url, Allowance.of("http://127.0.0.1:1"))
            assert server.connections == 0

    run(work())


def test_the_environment_gives_neither_proxy_nor_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")

    async def work() -> None:
        async with serving(reply()) as server:
            url = f"http://127.0.0.1:{server.port}/"
            assert (await fetch(url, Allowance.of(url))).body == b"ok"

    run(work())


def test_redirects_stay_on_the_same_host_and_pass_the_gates_again() -> None:
    async def work() -> None:
        async with serving(reply()) as other:

            async def answer(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                path = head.split(" ")[1]
                where = {
                    "/here": "/metrics",
                    "/relative": "metrics",
                    "/port": f"http://model.test:{other.port}/",
                    "/host": f"http://evil.test:{other.port}/",
                    "/slashes": f"//evil.test:{other.port}/",
                    "/metadata": "http://169.254.169.254/latest/meta-data/",
                    "/file": "file:///etc/passwd",
                    "/unix": "http+unix://%2Frun%2Fdocker.sock/info",
                    "/loop": "/loop",
                }.get(path)
                writer.write(reply(b"", f"Location: {where}", status="302 Found") if where else reply(b"found"))

            async with serving(answer) as server:
                base = f"http://model.test:{server.port}"
                allowed = Allowance.of(base, private=True), Allowance.of(f"http://evil.test:{other.port}", private=True)
                resolve = names(model_test="127.0.0.1", evil_test="127.0.0.1")
                assert (await fetch(f"{base}/here", *allowed, resolve=resolve)).text == "found"
                assert (await fetch(f"{base}/relative", *allowed, resolve=resolve)).text == "found"
                for path, kind in {
                    "port": "refused",
                    "host": "redirect",
                    "slashes": "redirect",
                    "metadata": "redirect",
                    "file": "refused",
                    "unix": "refused",
                    "loop": "redirect",
                }.items():
                    with pytest.raises(OutboundError) as caught:
                        await fetch(f"{base}/{path}", *allowed, resolve=resolve)
                    assert caught.value.kind == kind, path
            assert other.connections == 0

    run(work())


def test_credentials_do_not_follow_to_another_port() -> None:
    async def work() -> None:
        async with serving(reply()) as second:

            async def answer(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(reply(b"", f"Location: http://127.0.0.1:{second.port}/", status="307 Temporary Redirect"))

            async with serving(answer) as first:
                urls = [f"http://127.0.0.1:{s.port}/" for s in (first, second)]
                async with Outbound(Policy(tuple(Allowance.of(url) for url in urls))) as way_out:
                    await way_out.get(urls[0], headers={"Authorization": "Bearer abc", "X-Trace": "1"})
                assert "Authorization" in first.heads[0]
                assert "Authorization" not in second.heads[0] and "X-Trace: 1" in second.heads[0]

    run(work())


@pytest.mark.parametrize("drip", ["head", "body", "silence"])
def test_a_slow_server_is_ended_at_the_deadline(drip: str) -> None:
    async def answer(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if drip == "silence":
            await asyncio.sleep(10)
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 1000\r\n\r\n" if drip == "body" else b""))
        for number in range(1000):
            writer.write(b"x" if drip == "body" else f"X-{number}: y\r\n".encode())
            await writer.drain()
            await asyncio.sleep(0.02)

    async def work() -> None:
        async with serving(answer) as server:
            url = f"http://127.0.0.1:{server.port}/"
            started = time.monotonic()
            with pytest.raises(OutboundError) as caught:
                await fetch(url, Allowance.of(url), limits=Limits(deadline_s=0.3))
            assert caught.value.kind == "timeout" and time.monotonic() - started < 2
            assert ("bytes after 0.3 s" if drip == "body" else "took the connection") in str(caught.value)
            assert caught.value.connected

    run(work())


def test_sizes_are_limited_compressed_and_decompressed() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)

    async def work() -> None:
        async with serving(reply(b"a" * 5000)) as plain, serving(reply(bomb, "Content-Encoding: gzip")) as packed:
            for server, limits in (
                (plain, Limits(max_bytes=1000)),
                (plain, Limits(max_decompressed_bytes=1000)),
                (packed, Limits(max_decompressed_bytes=1_000_000)),
            ):
                url = f"http://127.0.0.1:{server.port}/"
                with pytest.raises(OutboundError) as caught:
                    await fetch(url, Allowance.of(url), limits=limits)
                assert caught.value.kind == "size"
            url = f"http://127.0.0.1:{plain.port}/"
            got = await fetch(url, Allowance.of(url), limits=Limits(max_decompressed_bytes=1000, cut=True))
            assert got.truncated and got.body == b"a" * 1000
            url = f"http://127.0.0.1:{packed.port}/"
            assert len((await fetch(url, Allowance.of(url))).body) == 50_000_000

    run(work())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (reply(b"x", "Content-Encoding: br"), "only gzip is taken"),
        (reply(b"xxxx", "Content-Encoding: gzip"), "broken gzip"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, "does not speak HTTP"),
    ],
)
def test_strange_answers_are_sentences(answer: bytes, words: str) -> None:
    async def work() -> None:
        async with serving(answer) as server:
            url = f"http://127.0.0.1:{server.port}/"
            await fetch(url, Allowance.of(url))

    assert words in refusal(work(), "protocol")


def test_a_closed_port_and_an_unknown_name_are_told_apart() -> None:
    async def closed_port() -> int:
        async with serving(b"") as server:
            return server.port

    url = f"http://127.0.0.1:{run(closed_port())}/"
    assert "refuses connections" in refusal(fetch(url, Allowance.of(url)), "connect")
    url = "http://nowhere.test/"
    assert "could not be resolved" in refusal(fetch(url, Allowance.of(url)), "name")


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_post_is_json_and_is_never_redirected(method: Any) -> None:
    async def answer(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await reader.readexactly(8)
        writer.write(reply(body, "Location: /elsewhere", status="307 Temporary Redirect"))

    async def work() -> None:
        async with serving(answer) as server:
            url = f"http://127.0.0.1:{server.port}/v1/completions"
            async with Outbound(Policy((Allowance.of(url),))) as way_out:
                got = await way_out.request(method, url, body={"a": 1})
            assert server.heads[0].startswith(f"{method} ")
            assert (got.status, got.json()) == (307, {"a": 1}) and len(server.heads) == 1

    run(work())


def test_headers_cannot_smuggle() -> None:
    for headers in ({"X": "a\r\nHost: evil"}, {"Host": "evil.test"}, {"Transfer-Encoding": "chunked"}, {"a b": "c"}):

        async def work(headers: dict[str, str] = headers) -> None:
            async with Outbound(Policy((Allowance.of("http://127.0.0.1:9"),))) as way_out:
                await way_out.get("http://127.0.0.1:9/", headers=headers)

        assert "header" in refusal(work(), "refused")


def test_cancelling_closes_the_connection() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def answer(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        assert await reader.read() == b""
        gone.set()

    async def work() -> None:
        async with serving(answer) as server:
            url = f"http://127.0.0.1:{server.port}/"
            task = asyncio.create_task(fetch(url, Allowance.of(url)))
            await asyncio.wait_for(asked.wait(), 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(gone.wait(), 5)

    run(work())


def test_reach_connects_and_says_what_it_took() -> None:
    async def work() -> None:
        async with serving(b"") as server:
            url = f"http://model.test:{server.port}"
            policy = Policy((Allowance.of(url, private=True),))
            async with Outbound(policy, resolve=names(model_test=["::1", "127.0.0.1"])) as way_out:
                got = await way_out.reach(url)
            assert (got.address, got.addresses) == ("127.0.0.1", ("::1", "127.0.0.1"))
            assert 0 <= got.connect_s < 3

    run(work())


def _tunnel(dialled: list[str], port: int) -> Answer:
    async def answer(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.append(head)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        there_writer.write(await reader.readuntil(b"\r\n\r\n"))
        writer.write(await there_reader.read())
        there_writer.close()

    return answer


def test_a_configured_proxy_is_asked_for_the_checked_address() -> None:
    dialled: list[str] = []

    async def work() -> None:
        async with serving(reply(b"through")) as server, serving(_tunnel(dialled, server.port)) as proxy:
            url = f"http://model.test:{server.port}/"
            allowed, resolve = Allowance.of(url, private=True), names(model_test="127.0.0.1")
            address = f"http://user:pass@127.0.0.1:{proxy.port}"
            got = await fetch(url, allowed, resolve=resolve, proxy=address)
            assert got.text == "through" and "through 127.0.0.1" in got.address
            assert dialled[0].startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1")
            assert "Proxy-Authorization: Basic dXNlcjpwYXNz" in dialled[0]
            assert f"Host: model.test:{server.port}" in server.heads[0]
            await fetch(url, allowed, resolve=resolve, proxy=address, no_proxy=(".test",))
            assert len(dialled) == 1
            with pytest.raises(OutboundError, match="is refused"):
                await fetch(url, allowed, resolve=names(model_test="169.254.169.254"), proxy=address)
            with pytest.raises(OutboundError, match="could not be resolved"):
                await fetch(url, allowed, proxy=address)
            await fetch(url, allowed, proxy=address, proxy_resolves_names=True)
            assert dialled[1].startswith(f"CONNECT model.test:{server.port} HTTP/1.1")

    run(work())


def test_a_proxy_that_says_no_is_named_without_its_password() -> None:
    async def work() -> None:
        async with serving(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
            url = "http://127.0.0.1:9/"
            await fetch(url, Allowance.of(url), proxy=f"http://user:hunter2@127.0.0.1:{proxy.port}")

    sentence = refusal(work(), "proxy")
    assert "407" in sentence and "hunter2" not in sentence


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for model.test and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=model.test "
        "-addext subjectAltName=DNS:model.test -keyout key.pem -out cert.pem"
    )
    made = subprocess.run(command.split(), cwd=folder, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    return folder / "cert.pem", folder / "key.pem"


def test_tls_checks_the_name_against_the_configured_authority(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)

    async def work() -> None:
        async with serving(reply(b"safe"), tls=context) as server:
            url, wrong = f"https://model.test:{server.port}/", f"https://other.test:{server.port}/"
            resolve = names(model_test="127.0.0.1", other_test="127.0.0.1")
            trusted = str(certificate[0])
            got = await fetch(url, Allowance.of(url, private=True, ca_file=trusted), resolve=resolve)
            assert got.text == "safe" and asked == ["model.test"]
            for refused in (Allowance.of(url, private=True), Allowance.of(wrong, private=True, ca_file=trusted)):
                with pytest.raises(OutboundError) as caught:
                    await fetch(f"https://{refused.host}:{server.port}/", refused, resolve=resolve)
                assert caught.value.kind == "tls" and "not trusted" in str(caught.value)
            plain = f"http://127.0.0.1:{server.port}/"
            with pytest.raises(OutboundError):
                await fetch(plain, Allowance.of(plain))

    run(work())


FORBIDDEN_IMPORTS = {
    "socket", "ssl", "socketserver", "http", "httpx", "httpcore", "urllib.request", "urllib3", "requests", "aiohttp",
    "websockets", "ftplib", "smtplib", "telnetlib", "imaplib", "poplib", "nntplib", "xmlrpc", "anyio", "grpc",
    "paramiko",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "open_connection", "open_unix_connection", "create_connection", "create_unix_connection", "urlopen", "getaddrinfo",
    "create_datagram_endpoint", "start_server", "start_unix_server",
}  # fmt: skip


def connections_of(source: str) -> list[str]:
    """What a module uses that could open a connection, by its syntax tree."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("__import__", "import_module"):
            modules = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for module in modules:
            if any(module == name or module.startswith(f"{name}.") for name in FORBIDDEN_IMPORTS):
                found.append(module)
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_CALLS:
            found.append(node.attr)
    return found


def test_only_the_way_out_can_open_a_connection() -> None:
    doors = {ROOT / "tools" / "outbound.py", ROOT / "tools" / "pinned.py"}
    # Text that another interpreter runs: its ranks connect to each other. Nothing here imports it but for its table of
    # stages, which tests/tools/sanity/test_nccl.py holds.
    doors.add(ROOT / "tools" / "sanity" / "rank_worker.py")
    # A program of its own, too: nodes try each other's ports after an operator has agreed to exactly these addresses.
    doors.add(ROOT / "tools" / "launchers" / "link_worker.py")
    # The same on nodes that Ray, Slurm or Kubernetes reach: the name of a peer and the interface of an address are looked
    # up there, and Ray's driver knocks at the cluster that a person named.
    doors.add(ROOT / "tools" / "launchers" / "node_worker.py")
    doors.add(ROOT / "tools" / "launchers" / "ray_driver.py")
    # What such a node resolves its own name to, and whether it reaches the model hub, can only be found out there.
    doors.add(ROOT / "tools" / "launchers" / "checks_worker.py")
    found = {
        str(path.relative_to(ROOT)): used
        for path in sorted((ROOT / "tools").rglob("*.py"))
        if path not in doors and (used := connections_of(path.read_text("utf-8")))
    }
    assert not found, f"these modules open connections past tools/outbound.py: {found}"
    assert all(connections_of(door.read_text("utf-8")) for door in doors)


def test_the_lint_sees_the_usual_ways_around_it() -> None:
    for source in (
        "import socket",
        "import urllib.request as r",
        "from urllib import request",
        "from http.client import HTTPConnection",
        "def f():\n    import httpx",
        "__import__('requests')",
        "import asyncio\nasyncio.open_connection('a', 1)",
    ):
        assert connections_of(source), source
    assert not connections_of("from urllib.parse import urlsplit\nimport asyncio\nfrom tools.outbound import Outbound")
