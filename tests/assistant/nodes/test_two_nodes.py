"""Two nodes in two network namespaces: the whole command against two real tool servers, over a cable that can be cut.

Each node has a cable to this side, over which it is asked, and one to the other node, over which ranks talk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.assistant.nodes.serving import Served, command, tool_server

LAB = Path(__file__).parents[3] / ".lab" / "venv" / "bin"
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"),
    pytest.mark.skipif(not (LAB / "python").exists(), reason="torch is that of the laboratory (make lab)"),
]
PREFIX = f"vd{os.getpid() % 100000}"
PORTS = "29600-29602"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@dataclass(frozen=True)
class Pair:
    folder: Path
    servers: dict[str, Served]

    def inside(self, node: str, *arguments: str) -> None:
        ip("-n", f"{PREFIX}{node}", *arguments)

    def test(self, *nodes: str, seconds: float = 200) -> dict[str, Any]:
        targets = {
            name: {"address": "http://127.0.0.1:8000", "node_tools": {"mcp": served.address, "token_env": f"T_{name}"}}
            for name, served in self.servers.items()
        }
        file = self.folder / "targets.yaml"
        file.write_text(json.dumps({"targets": targets}))
        env = self.servers["a"].environment | {"HOME": str(self.folder), "VLLM_DIAGNOSE_TARGETS_FILE": str(file)}
        env |= {f"T_{name}": served.operator for name, served in self.servers.items()}
        named = [part for node in nodes for part in ("--node", node)]
        ran = subprocess.run(
            command("sanity", "nccl", "--launcher", "nodes", *named, "--cpu-only", "--yes", "--ports", PORTS, "-o", "json"),
            env=env, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        report: dict[str, Any] = json.loads(ran.stdout)["report"]
        return report


def rows(report: dict[str, Any], identity: str) -> list[str]:
    return [str(check["value"]) for check in report["checks"] if check["id"] == f"cluster.{identity}"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    try:
        subprocess.run(["ip", "netns", "add", f"{PREFIX}a"], check=True, capture_output=True, timeout=20)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode()[:200]}")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: ip("netns", "del", f"{PREFIX}a"))
        ip("netns", "add", f"{PREFIX}b")
        stack.callback(lambda: ip("netns", "del", f"{PREFIX}b"))
        ip(
            "link",
            "add",
            "data0",
            "netns",
            f"{PREFIX}a",
            "type",
            "veth",
            "peer",
            "name",
            "data0",
            "netns",
            f"{PREFIX}b",
        )
        for number, node in enumerate("ab", 1):
            inside = ("-n", f"{PREFIX}{node}")
            ip("link", "add", f"{PREFIX}{node}", "type", "veth", "peer", "name", "asked0", "netns", f"{PREFIX}{node}")
            ip("addr", "add", f"10.213.{number}.1/30", "dev", f"{PREFIX}{node}")
            ip("link", "set", f"{PREFIX}{node}", "up")
            ip(*inside, "addr", "add", f"10.213.{number}.2/30", "dev", "asked0")
            ip(*inside, "addr", "add", f"10.213.9.{number}/30", "dev", "data0")
            for link in ("lo", "asked0", "data0"):
                ip(*inside, "link", "set", link, "up")
        servers = {}
        chosen = {"NCCL_SOCKET_IFNAME": "data0", "GLOO_SOCKET_IFNAME": "data0", "PATH": f"{LAB}:{os.environ['PATH']}"}
        for name, node, more in (("a", "a", {}), ("b", "b", {}), ("other", "b", {"NCCL_IB_TIMEOUT": "14"})):
            # Processes of their own as well: servers that happen to run on this machine are none of theirs.
            apart = ("ip", "netns", "exec", f"{PREFIX}{node}", "unshare", "--pid", "--fork", "--mount-proc", "--kill-child")  # fmt: skip
            host = f"10.213.{'ab'.index(node) + 1}.2"
            server = tool_server(folder / name, inside=apart, host=host, **chosen, **more)
            servers[name] = stack.enter_context(server)
        yield Pair(folder, servers)


def test_two_nodes_pass(pair: Pair) -> None:
    report = pair.test("a", "b")
    assert report["verdict"] == "ok", report
    assert "2 ranks on 2 nodes" in report["summary"]


def test_a_setting_that_differs_is_named(pair: Pair) -> None:
    report = pair.test("a", "other")
    (row,) = [value for value in rows(report, "differs") if "NCCL_IB_TIMEOUT" in value]
    assert "other: 14" in row


def test_a_wrong_mtu_is_named_with_the_way_it_hurts(pair: Pair) -> None:
    pair.inside("a", "link", "set", "data0", "mtu", "9000")
    try:
        report = pair.test("a", "b")
    finally:
        pair.inside("a", "link", "set", "data0", "mtu", "1500")
    assert rows(report, "mtu") == ["a → b"]
    assert any("MTU" in value and "9000" in value for value in rows(report, "differs"))


def test_a_blocked_port_is_named_with_its_direction(pair: Pair) -> None:
    # What would answer from that port gets nowhere: to the other side it looks as a firewall that drops.
    rule = ("ipproto", "tcp", "sport", "29601", "to", "10.213.9.1", "blackhole")
    pair.inside("b", "rule", "add", *rule)
    try:
        report = pair.test("a", "b")
    finally:
        pair.inside("b", "rule", "del", *rule)
    assert rows(report, "port") == ["a → b"]
    (text,) = [check["text"] for check in report["checks"] if check["id"] == "cluster.port"]
    assert "29601" in text and "29600" not in text


def test_a_cable_that_is_cut_in_the_middle_is_named_and_not_the_ranks(pair: Pair) -> None:
    cut = threading.Event()

    def cut_while_ranks_run() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not cut.is_set():
            if any("--first-rank" in line for line in command_lines()):
                pair.inside("b", "link", "set", "data0", "down")
                cut.set()
            time.sleep(0.1)

    thread = threading.Thread(target=cut_while_ranks_run)
    thread.start()
    try:
        report = pair.test("a", "b")
    finally:
        cut.set()
        thread.join()
        pair.inside("b", "link", "set", "data0", "up")
    assert rows(report, "cut") == ["a ↔ b"]
    assert "cut" in report["summary"]


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if "10.213.9.1:29600" in text:
                found.append(text)
    return found
