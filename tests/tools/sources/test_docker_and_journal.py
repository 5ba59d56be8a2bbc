"""Docker's socket and the journal: frames, ends, refusals, and that nothing else on a socket is opened."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.tools.sources.conftest import facts, look
from tests.tools.sources.fakes import FakeDocker, serving_socket
from tools.outbound import Outbound, OutboundError, Policy
from tools.sources.base import Bounds, SourceFailedError
from tools.sources.docker import Docker
from tools.sources.journal import Journal

Recorded = Callable[[str], Any]


def test_frames_are_put_together_and_carry_their_times(tmp_path: Path, recorded: Recorded) -> None:
    texts = [(1 + n % 2, f"2026-11-21T09:00:{n:02}.5Z line {n}\n".encode()) for n in range(50)]
    texts.append((2, b"2026-11-21T09:01:00Z two\n2026-11-21T09:01:01Z lines\n"))
    texts.append((1, "2026-11-21T09:01:02Z 中文\n".encode()))
    fake = FakeDocker(recorded("container"), texts)
    with serving_socket(tmp_path / "d.sock", fake) as socket:
        found, lines = look(Docker("container vllm", socket, "vllm"), socket=socket)
    ((name, read),) = lines.items()
    assert name == "container vllm" and len(read) == 53
    assert [line.text for line in read[-3:]] == ["two", "lines", "中文"]
    assert read[0].at == datetime(2026, 11, 21, 9, 0, 0, 500000, tzinfo=UTC)
    known = facts(found)
    assert known["container.memory_limit_gib"] == 16.0 and known["container.shm_bytes"] == 64 << 20
    assert known["container.lived_s"] == 1800 and set(fake.asked) == {
        "/containers/vllm/json", "/containers/vllm/logs", "/events",
    }  # fmt: skip


def test_a_terminal_has_no_frames(tmp_path: Path, recorded: Recorded) -> None:
    container = recorded("container")
    container["Config"]["Tty"] = True
    fake = FakeDocker(container, [(1, b"2026-11-21T09:00:00Z one\r\n2026-11-21T09:00:01Z two\r\n")])
    with serving_socket(tmp_path / "d.sock", fake) as socket:
        _, lines = look(Docker("c", socket, "vllm"), socket=socket)
    assert [line.text for line in lines["container vllm"]] == ["one", "two"]


def test_who_ended_the_container(tmp_path: Path, recorded: Recorded) -> None:
    def of(code: int, oom: bool, *events: dict[str, Any], ipc: str = "private") -> dict[str, Any]:
        container = recorded("container")
        container["State"] |= {"ExitCode": code, "OOMKilled": oom}
        container["HostConfig"]["IpcMode"] = ipc
        with serving_socket(tmp_path / "d.sock", FakeDocker(container, [], list(events))) as socket:
            known = facts(look(Docker("c", socket, "vllm"), socket=socket)[0])
        (tmp_path / "d.sock").unlink()
        return known

    end = int(datetime(2026, 11, 21, 9, 30, 1, tzinfo=UTC).timestamp())
    kill = {"Action": "kill", "time": end - 10, "Actor": {"Attributes": {"signal": "15"}}}
    assert of(137, True)["container.stopped_by"] == "out-of-memory"
    assert (
        of(137, False, kill, {**kill, "time": end, "Actor": {"Attributes": {"signal": "9"}}})["container.stopped_by"]
        == "request"
    )
    assert of(137, False, {"Action": "oom", "time": end})["container.stopped_by"] == "out-of-memory"
    assert of(1, False, {**kill, "time": end - 5000})["container.stopped_by"] == "itself"
    assert "container.stopped_by" not in of(137, False), "a signal from nobody known"
    assert "container.shm_bytes" not in of(0, False, ipc="host"), "the machine's own /dev/shm"


def test_what_docker_refuses_is_one_sentence(tmp_path: Path, recorded: Recorded) -> None:
    fake = FakeDocker(recorded("container"), readable=False)
    with serving_socket(tmp_path / "d.sock", fake) as socket:
        with pytest.raises(SourceFailedError, match="knows no container 'other'"):
            look(Docker("c", socket, "other"), socket=socket)
        with pytest.raises(SourceFailedError, match="does not let logs be read back"):
            look(Docker("c", socket, "vllm"), socket=socket)


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (struct.pack(">BxxxL", 1, 100) + b"short", "inside a frame"),
        (b"plain text without any frame\n", "cannot be read"),
        (struct.pack(">BxxxL", 1, 4_000_000_000) + b"x" * 100, "announces a frame of 4000000000 bytes"),
    ],
)
def test_broken_frames_end_in_a_sentence(tmp_path: Path, recorded: Recorded, log: bytes, sentence: str) -> None:
    whole = FakeDocker(recorded("container"))

    def respond(path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Any:
        answer = whole(path, query, headers, body)
        return (
            (200, {"Content-Type": "application/vnd.docker.multiplexed-stream"}, log)
            if path.endswith("/logs")
            else answer
        )

    with serving_socket(tmp_path / "d.sock", respond) as socket, pytest.raises(SourceFailedError, match=sentence):
        look(Docker("c", socket, "vllm"), socket=socket)


# --- the socket itself ------------------------------------------------------------------------------------------------


async def _ask(path: str, route: str, allowed: tuple[str, ...], url: str = "http://docker") -> int:
    async with Outbound(Policy(sockets=allowed)) as outbound, outbound.stream(url + route, socket=path) as answer:
        return answer.status


def test_only_a_named_socket_is_opened_and_only_to_look(tmp_path: Path, recorded: Recorded) -> None:
    fake = FakeDocker(recorded("container"))
    with serving_socket(tmp_path / "d.sock", fake) as socket:
        assert asyncio.run(_ask(socket, "/containers/vllm/json", (socket,))) == 200
        for route in (
            "/containers/vllm/exec", "/containers/vllm/archive?path=/etc/shadow", "/images/json", "/containers/../images/json",
            "/v1.41/containers/vllm/attach", "/secrets", "/containers/vllm/json/../../../secrets", "/",
        ):  # fmt: skip
            with pytest.raises(OutboundError, match="is not asked for on a Unix socket"):
                asyncio.run(_ask(socket, route, (socket,)))
        with pytest.raises(OutboundError, match="not among those that a target names"):
            asyncio.run(_ask(socket, "/version", ()))
        with pytest.raises(OutboundError, match="is not asked for"):
            asyncio.run(_ask(socket, "/version", (socket,), "https://docker"))
        assert fake.asked == ["/containers/vllm/json"]


def test_a_socket_that_others_could_replace_is_refused(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    with serving_socket(folder / "d.sock", FakeDocker(recorded("container"))) as socket:
        folder.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
        with pytest.raises(OutboundError, match="everybody may write to its folder"):
            asyncio.run(_ask(socket, "/version", (socket,)))
    plain = tmp_path / "file"
    plain.write_text("")
    for path, why in (
        (str(plain), "it is no socket"),
        ("d.sock", "must be absolute"),
        (str(tmp_path / "gone"), "cannot be looked at"),
    ):
        with pytest.raises(OutboundError, match=why):
            asyncio.run(_ask(path, "/version", (path,)))
    if os.geteuid() == 0:
        with serving_socket(tmp_path / "theirs.sock", FakeDocker(recorded("container"))) as socket:
            os.chown(socket, 65534, 65534)
            with pytest.raises(OutboundError, match="belongs to another user"):
                asyncio.run(_ask(socket, "/version", (socket,)))


# --- the journal ------------------------------------------------------------------------------------------------------

JOURNALCTL = """#!/bin/sh
printf '%s\\n' "$@" > "$0.arguments"
case " $* " in *" --reverse "*) cat "$0.unit" ;; *) cat "$0.lines" ;; esac
exit "$(cat "$0.status")"
"""


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called journalctl that prints what a test says; the journal itself is systemd's and not here."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(JOURNALCTL)
    program.chmod(0o755)
    for name, content in (("unit", ""), ("lines", ""), ("status", "0")):
        program.with_name(f"journalctl.{name}").write_text(content)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def entry(message: object, **fields: str) -> str:
    return (
        json.dumps({"__REALTIME_TIMESTAMP": "1795251600000000", "_HOSTNAME": "gpu1", "MESSAGE": message, **fields})
        + "\n"
    )


def test_entries_become_lines_of_the_short_form(journalctl: Path) -> None:
    rows = entry("INFO start", SYSLOG_IDENTIFIER="vllm", _PID="812") + "not json\n[1]\n"
    rows += entry([228, 189, 160, 10, 120], _COMM="python3", _PID="9") + entry(
        "Killed process 812", _TRANSPORT="kernel"
    )
    journalctl.with_name("journalctl.lines").write_text(rows)
    journalctl.with_name("journalctl.unit").write_text(
        entry("vllm.service: Failed with result 'oom-kill'.", UNIT_RESULT="oom-kill", UNIT="vllm.service")
    )
    found, lines = look(Journal("j", "vllm.service"), bounds=Bounds(datetime(2026, 11, 21, tzinfo=UTC), deadline_s=10))
    assert facts(found)["container.stopped_by"] == "out-of-memory"
    assert [line.text for line in lines["journal of vllm.service"]] == [
        "gpu1 vllm[812]: INFO start", "gpu1 python3[9]: 你\ngpu1 python3[9]: x", "gpu1 kernel: Killed process 812",
    ]  # fmt: skip
    given = journalctl.with_name("journalctl.arguments").read_text().splitlines()
    assert "--output=json" in given and "--since=@1795219200.000000" in given and "_SYSTEMD_UNIT=vllm.service" in given


def test_a_journal_that_cannot_be_read_is_one_sentence(journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journalctl.with_name("journalctl.status").write_text("1")
    with pytest.raises(SourceFailedError, match="journalctl ended with 1"):
        look(Journal("j", "vllm.service"))
    for unit in ("-D/etc", "a b", "x;y", ""):
        with pytest.raises(SourceFailedError, match="is not the name of a unit"):
            look(Journal("j", unit))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SourceFailedError, match="has no journalctl"):
        look(Journal("j", "vllm.service"))


def test_an_endless_journal_ends_at_the_deadline(journalctl: Path) -> None:
    journalctl.write_text('#!/bin/sh\nwhile :; do echo \'{"MESSAGE": "again"}\'; done\n')
    with pytest.raises(SourceFailedError, match="was not finished within"):
        look(Journal("j", "vllm.service"), bounds=Bounds(deadline_s=0.7))


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="no journalctl on this machine")
def test_the_real_journalctl_understands_what_it_is_asked(tmp_path: Path) -> None:
    found, lines = look(Journal("j", "no-such-unit.service", str(tmp_path)))
    assert lines == {"journal of no-such-unit.service": []} and found.reading.evidence == ()
