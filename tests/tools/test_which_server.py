"""Which of several servers on one machine is meant: by process, by port, or not at all and then all are listed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.pinned import is_here
from tools.processes import servers
from tools.registry import ActionError
from tools.sanity.choose import choose, find_server, server_at

#: Its command line is that of `vllm serve`; it listens, says where, and waits.
PROGRAM = """
import socket, sys, time
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[tuple[int, int]]:
    """(pid, port) of a process that looks like a server."""
    folder.mkdir()
    program = folder / "vllm"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(program), "serve", "m"], stdout=subprocess.PIPE, env={**os.environ, **environment}
    ) as started:
        try:
            assert started.stdout is not None
            yield started.pid, int(started.stdout.readline())
        finally:
            started.kill()


def test_several_servers_are_told_apart_by_pid_and_port(tmp_path: Path) -> None:
    with serving(tmp_path / "one", NCCL_MARK="1") as (one, port), serving(tmp_path / "two") as (two, other):
        if len(servers()) <= 8:  # of more, the first eight are listed
            with pytest.raises(ActionError) as refused:
                find_server(None)
            assert f"{one} (port {port})" in str(refused.value)
            assert f"{two} (port {other})" in str(refused.value)
        found = [server_at(f"http://127.0.0.1:{number}/v1") for number in (port, other)]
        assert [server.main.pid for server in found if server is not None] == [one, two]
        # An interpreter that is given needs no server, so none is asked for, and nothing is taken over from either.
        assert choose(sys.executable, None).server is None
        assert choose(sys.executable, one).environment["NCCL_MARK"] == "1"
    assert server_at(f"http://127.0.0.1:{port}") is None


def test_a_server_elsewhere_is_none_of_this_machine(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as (_, port):
        assert server_at(f"http://192.0.2.1:{port}") is None
        assert server_at(f"http://no-such-host.invalid:{port}") is None


def test_what_leads_to_this_machine() -> None:
    assert all(is_here(host) for host in ("localhost", "127.0.0.1", "::1"))
    assert not is_here("192.0.2.1")
    assert not is_here("")
