"""Addresses that must never be reached, in every spelling: the corpus behind docs/security.md.

Every case runs against the real way out with a resolver of its own and a dialler that records instead of connecting.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tools.addresses import AddressError, kind_of, literal, parse_url
from tools.outbound import Allowance, Outbound, OutboundError, Policy

PUBLIC = "93.184.215.14"


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that would have been connected to; nothing leaves the test."""
    import httpcore

    seen: list[str] = []

    async def connect_tcp(self: Any, host: str, port: int, **_: Any) -> Any:
        seen.append(host)
        raise httpcore.ConnectError("recorded")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
    return seen


def attempt(url: str, answers: list[list[str]], *, private: bool | None = False, policy: Policy | None = None) -> str:
    """The kind of error of a request to ``url`` whose successive look-ups give ``answers``."""
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    async def work() -> str:
        allowed = policy
        if allowed is None:
            try:
                allowed = Policy((Allowance.of(url, private=private),))
            except AddressError:
                allowed = Policy((Allowance.of("http://model.test", private=private),))
        async with Outbound(allowed, resolve=resolve) as way_out:
            try:
                await way_out.get(url)
            except OutboundError as error:
                return error.kind
        raise AssertionError("a recorded dial cannot answer")

    return asyncio.run(work())


UNREADABLE = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "ftp://model.test/x",
    "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "unix:/var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "http://unix:/var/run/docker.sock:/info",
    "jar:http://model.test!/",
    "ws://model.test/",
    "//169.254.169.254/",
    "169.254.169.254/latest",
    "http:169.254.169.254",
    "http:///etc/passwd",
    "http:/169.254.169.254/",
    "http://2130706433/",
    "http://2852039166/",
    "http://0x7f000001/",
    "http://0X7F.0.0.1/",
    "http://0x7f.1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0177.0.0.01/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://0x0/",
    "http://10.1/",
    "http://169.254.43518/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://0xa9.0xfe.0xa9.0xfe/",
    "http://425.510.425.510/",
    "http://256.256.256.256/",
    "http://1.2.3.4.5/",
    "http://127.0.0.1.0x/",
    "http://00000177.0.0.1/",
    "http://127.000.000.001/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://１２７.0.0.1/",
    "http://ⓔⓧⓐⓜⓟⓛⓔ.com/",
    "http://127%2e0%2e0%2e1/",
    "http://%31%32%37.0.0.1/",
    "http://model.test%00.evil.test/",
    "http://model.test@169.254.169.254/",
    "http://model.test:80@169.254.169.254/",
    "http://169.254.169.254#@model.test/\n",
    "http://model.test\\@169.254.169.254/",
    "http://169.254.169.254\\.model.test/",
    "http://model.test /",
    " http://model.test/",
    "http://model.test/\r\nHost: evil",
    "http://model.test\t/",
    "http://[::1/",
    "http://[::1]]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[::ffff:127.0.0.1.]/",
    "http://[v1.abc]/",
    "http://[0x7f000001]/",
    "http://::1/",
    "http://model..test/",
    "http://.model.test/",
    "http://model.test:99999/",
    "http://model.test:0/",
    "http://model.test:-1/",
    "http://model.test:٨٠/",
    "http://" + "a" * 64 + ".test/",
    "http://model.test/" + "a" * 5000,
    "",
    "http://",
    "http://?",
]

# Refused however much is allowed.
NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "fec0::1",
    "ff02::1",
    "ff05::2",
    "100::1",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "2001:0:5ef5:79fb::1",
    "64:ff9b:1::a9fe:a9fe",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:0.0.0.0",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::6464:64c8",
    "2002:a9fe:a9fe::1",
    "2002:e000:1::",
    "2001:db8::5efe:169.254.169.254",
    "2001:db8::200:5efe:169.254.169.254",
    "::ffff:224.0.0.1",
    "::ffff:100.100.100.200",
]

# Refused unless private addresses are allowed for the target.
PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.254",
    "192.168.1.1",
    "100.64.0.1",
    "100.127.255.254",
    "198.18.0.1",
    "192.0.2.1",
    "203.0.113.9",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "2002:7f00:1::",
    "2002:c0a8:101::1",
    "2606:4700::5efe:10.0.0.1",
]

OPEN = [PUBLIC, "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("url", UNREADABLE)
def test_what_is_not_a_plain_url_is_refused(url: str, dialled: list[str]) -> None:
    assert attempt(url, [["127.0.0.1"]], private=True) == "refused"
    assert not dialled
    with pytest.raises(AddressError) as caught:
        parse_url(url)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_refused_whatever_is_allowed(address: str, dialled: list[str]) -> None:
    assert attempt("http://model.test/", [[address]], private=True) == "refused"
    host = f"[{address}]" if ":" in address else address
    policy = Policy((Allowance.of(f"http://{host}/", private=True),), private=True)
    assert attempt(f"http://{host}/", [[]], policy=policy) == "refused"
    assert not dialled


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_need_permission(address: str, dialled: list[str]) -> None:
    assert attempt("http://model.test/", [[address]]) == "refused"
    assert not dialled
    assert attempt("http://model.test/", [[address]], private=True) == "connect"
    assert len(dialled) == 1


@pytest.mark.parametrize("address", OPEN)
def test_public_addresses_are_dialled(address: str, dialled: list[str]) -> None:
    assert attempt("http://model.test/", [[address]]) == "connect"
    assert dialled == [address.removeprefix("::ffff:")]


@pytest.mark.parametrize("hidden", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"])
@pytest.mark.parametrize("place", [0, 1])
def test_one_bad_address_among_good_ones_refuses_them_all(hidden: str, place: int, dialled: list[str]) -> None:
    answer = [PUBLIC, "8.8.8.8"]
    answer.insert(place, hidden)
    assert attempt("http://model.test/", [answer]) == "refused"
    assert not dialled


def test_a_name_that_changes_its_answer_gains_nothing(dialled: list[str]) -> None:
    """Rebinding: what was checked is what is dialled, and a later connection is checked afresh."""
    assert attempt("http://model.test/", [[PUBLIC], ["127.0.0.1"], ["169.254.169.254"]]) == "connect"
    assert dialled == [PUBLIC]
    assert attempt("http://model.test/", [["127.0.0.1"], [PUBLIC]]) == "refused"
    assert dialled == [PUBLIC]


def test_a_kept_client_checks_again_for_each_connection() -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def work() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://model.test:{listener.sockets[0].getsockname()[1]}/"
        async with Outbound(Policy((Allowance.of(url, private=True),)), resolve=resolve) as way_out:
            assert (await way_out.get(url)).status == 200
            with pytest.raises(OutboundError, match="metadata"):
                await way_out.get(url)
        listener.close()

    asyncio.run(work())


def test_an_empty_or_broken_answer_is_an_error(dialled: list[str]) -> None:
    for answer in ([], ["not-an-address"], [PUBLIC, "fe80::1%eth0"]):
        assert attempt("http://model.test/", [answer], private=True) in ("name", "refused")
    assert not dialled


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("HTTP://Model.Test./metrics", "http://model.test/metrics"),
        ("https://model.test:443", "https://model.test/"),
        ("http://[0:0:0:0:0:0:0:1]:8000?x=1", "http://[::1]:8000/?x=1"),
        ("http://8.8.8.8:8000/a#b", "http://8.8.8.8:8000/a"),
        ("http://a_b.svc.cluster.local:8000", "http://a_b.svc.cluster.local:8000/"),
        ("http://gpu-01:8000", "http://gpu-01:8000/"),
    ],
)
def test_good_urls_have_one_spelling(text: str, same: str) -> None:
    assert str(parse_url(text)) == same


def test_urls_agree_with_the_standard_parser() -> None:
    from urllib.parse import urlsplit

    for text in ("http://a.b:81/c?d=e", "https://[2606:4700::1]/", "http://1.2.3.4/@x", "http://a/?u=http://b/"):
        ours, theirs = parse_url(text), urlsplit(text)
        assert ours.host == theirs.hostname


def test_what_is_accepted_means_the_same_to_other_parsers() -> None:
    """Mutated addresses: whatever passes here has the host, port and path that urllib and httpx see in it."""
    from urllib.parse import urlsplit

    import httpx

    chance = random.Random(20)
    good = ["http://model.test:8000/metrics?a=b#c", "https://[2606:4700::1]:443/x", "http://1.2.3.4/@x/..//"]
    seeds = [*UNREADABLE, *good * 30]
    pieces = [*"@:/?#[]\\%.0x1a-_ \t\n\0é。", "%2f", "%00", "::", "//", "127.0.0.1", "localhost", "0x7f", "http://"]
    accepted = 0
    for _ in range(20_000):
        text = chance.choice(seeds)
        for _ in range(chance.randint(0, 4)):
            at, cut = chance.randint(0, len(text)), chance.randint(0, 3)
            text = text[:at] + chance.choice(["", *pieces]) + text[at + cut :]
        try:
            ours = parse_url(text)
        except AddressError:
            continue
        accepted += 1
        standard, other = urlsplit(text), httpx.URL(text)
        host = (standard.hostname or "").removesuffix(".")
        assert ours.host == (str(literal(host)) if literal(host) else host), text
        assert ours.port == (standard.port or {"http": 80, "https": 443}[standard.scheme]), text
        assert ours.host == (str(literal(other.host)) if literal(other.host) else other.host.removesuffix(".")), text
        assert parse_url(str(ours)) == ours
    assert accepted > 1000


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(AddressError) as caught:
        parse_url("http://admin:hunter2@model.test/")
    assert "hunter2" not in str(caught.value)


def test_every_kind_has_a_reason_in_words() -> None:
    expected = dict.fromkeys(NEVER, "forbidden") | dict.fromkeys(PRIVATE, "private") | dict.fromkeys(OPEN, "public")
    for text, kind in expected.items():
        address = literal(text)
        assert address is not None
        got, why = kind_of(address)
        assert got == kind, text
        assert why.startswith(("a ", "an "))
