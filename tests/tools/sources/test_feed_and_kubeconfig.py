"""Streams as files for the log reader, and how a cluster is reached."""

from __future__ import annotations

import base64
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from knowledge.catalog import load
from tools.logs import LogInput, ReadOptions, read_logs
from tools.outbound import Outbound, Policy
from tools.sources.base import Bounds, Line, Lines, SourceFailedError, Stream, moment
from tools.sources.feed import Feed
from tools.sources.kubeconfig import from_kubeconfig, in_cluster


def stream_of(make: Callable[[], Any]) -> Stream:
    async def lines(outbound: Outbound, bounds: Bounds) -> Lines:
        for batch in make():
            yield batch

    return Stream("s", lines)


def batches(count: int) -> Any:
    for number in range(count):
        yield [Line(datetime(2026, 11, 21, 10, tzinfo=UTC), "x", f"INFO line {number} {'.' * 900}") for _ in range(100)]


def test_a_large_stream_passes_in_bounded_memory() -> None:
    tracemalloc.start()
    with Feed(Policy(), Bounds(deadline_s=60)) as feed, feed.opened(stream_of(lambda: batches(500))) as file:
        total = sum(len(block) for block in iter(lambda: file.read(1 << 16), b""))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 45_000_000
    assert most < 12_000_000, most


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (Bounds(max_bytes=300_000, deadline_s=60), "most that is read"),
        (Bounds(max_lines=500, deadline_s=60), "most that is read"),
    ],
)
def test_a_stream_beyond_its_bounds_ends_with_an_error(bounds: Bounds, said: str) -> None:
    with Feed(Policy(), bounds) as feed, feed.opened(stream_of(lambda: batches(100))) as file:
        with pytest.raises(OSError, match=said):
            while file.read(1 << 16):
                pass
        with pytest.raises(OSError, match=said):
            file.read(1)


def test_whatever_goes_wrong_while_fetching_reaches_the_reader() -> None:
    def broken() -> Any:
        yield [Line(None, "x", "first")]
        raise KeyError("status")

    with Feed(Policy(), Bounds()) as feed, feed.opened(stream_of(broken)) as file:
        assert file.read(6) == b"first\n"
        with pytest.raises(OSError, match="broke off: KeyError"):
            file.read(1)


def test_leaving_early_stops_the_fetching() -> None:
    began = time.monotonic()
    with Feed(Policy(), Bounds(deadline_s=60)) as feed:
        file = feed.opened(stream_of(lambda: batches(10**9)))
        assert file.read(10)
    assert time.monotonic() - began < 5


def test_the_log_reader_reads_a_stream_and_knows_when_it_broke_off(captured: Path) -> None:
    rows = (captured / "healthy-serving" / "server.log").read_text().splitlines()
    at = datetime(2026, 11, 21, 10, tzinfo=UTC)

    def read(count: int, end: Exception | None) -> Any:
        def make() -> Any:
            yield [Line(at, "x", row) for row in rows[:count]]
            if end is not None:
                raise end

        with Feed(Policy(), Bounds(deadline_s=60)) as feed:
            source = LogInput("s", stream=lambda: feed.opened(stream_of(make)))
            return read_logs([source], tuple(load().messages.values()), ReadOptions()).reading

    whole, cut = read(len(rows), None), read(len(rows) - 5, SourceFailedError("gone."))
    assert not whole.coverage[0].truncated and whole.not_measured == ()
    assert cut.coverage[0].truncated and "gone" in cut.not_measured[0][1]
    ended = next(item for item in cut.evidence if item.name == "log.ended")
    assert ended.state == "unknown"


def test_times_of_apis() -> None:
    assert moment("2026-11-21T10:00:00.123456789Z") == datetime(2026, 11, 21, 10, 0, 0, 123456, tzinfo=UTC)
    assert moment("2026-11-21T11:00:00+01:00") == datetime(2026, 11, 21, 10, tzinfo=UTC)
    for wrong in (
        "0001-01-01T00:00:00Z",
        "2026-11-21T10:00:00",
        "yesterday, at ten o'clock",
        None,
        5,
        "2026-11-21T10:00:00.1x3Z",
        "",
    ):
        assert moment(wrong) is None, wrong


# --- clusters ---------------------------------------------------------------------------------------------------------


def kubeconfig(folder: Path, user: str, cluster: str = "server: https://10.0.0.1:6443") -> Path:
    path = folder / "config"
    path.write_text(
        f"current-context: prod\ncontexts: [{{name: prod, context: {{cluster: c, user: u, namespace: inference}}}}]\n"
        f"clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
    )
    return path


def test_tokens_files_and_certificates_are_taken(tmp_path: Path) -> None:
    found = from_kubeconfig(kubeconfig(tmp_path, "token: s3cret"))
    assert (found.address, found.namespace) == ("https://10.0.0.1:6443", "inference")
    assert found.headers == {"Authorization": "Bearer s3cret"} and "s3cret" not in repr(found)
    (tmp_path / "tok").write_text("fresh\n")
    assert from_kubeconfig(kubeconfig(tmp_path, "tokenFile: tok")).headers == {"Authorization": "Bearer fresh"}
    data = base64.b64encode(b"-----BEGIN X-----\n").decode()
    both = f"client-certificate-data: {data}, client-key-data: {data}"
    found = from_kubeconfig(
        kubeconfig(tmp_path, both, f"server: 'https://10.0.0.1', certificate-authority-data: {data}")
    )
    assert found.client_cert == ("-----BEGIN X-----\n",) * 2 and found.ca_data == "-----BEGIN X-----\n"


@pytest.mark.parametrize(
    ("user", "cluster", "said"),
    [
        ("exec: {command: aws}", "server: https://k", "which is not run here"),
        ("token: t", "server: https://k, insecure-skip-tls-verify: true", "switches off the check"),
        ("token: t", "server: ftp://k", "http"),
        ("client-certificate-data: '%%'", "server: https://k", "not base64"),
    ],
)
def test_what_a_kubeconfig_may_not_say(tmp_path: Path, user: str, cluster: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        from_kubeconfig(kubeconfig(tmp_path, user, cluster))


def test_outside_of_a_pod_there_is_no_service_account(tmp_path: Path) -> None:
    with pytest.raises(SourceFailedError, match="runs in no pod"):
        in_cluster(tmp_path)
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "namespace").write_text("inference")
    found = in_cluster(tmp_path)
    assert found.namespace == "inference" and found.ca_file == str(tmp_path / "ca.crt")


def test_a_client_certificate_from_memory_is_shown_to_its_server_only(tmp_path: Path) -> None:
    import asyncio
    import ssl

    from tools.outbound import Allowance, OutboundError

    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    made = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    certificate, key = (tmp_path / "cert.pem").read_text(), (tmp_path / "key.pem").read_text()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    context.load_verify_locations(tmp_path / "cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def ask() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        with_it = Allowance.of(url, ca_data=certificate, client_cert=(certificate, key))
        async with Outbound(Policy((with_it,))) as outbound:
            assert (await outbound.get(url)).text == "ok"
        async with Outbound(Policy((Allowance.of(url, ca_data=certificate),))) as outbound:
            with pytest.raises(OutboundError):
                await outbound.get(url)
        server.close()

    asyncio.run(ask())
    assert "PRIVATE" not in repr(Allowance.of("https://h", client_cert=(certificate, key)))
