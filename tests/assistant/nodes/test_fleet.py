"""`check` over many nodes: one real tool server under many addresses of loopback, and some that are dead."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from assistant.nodes.fleet import CHECKS, Fleet, NodeChecked, look_at_fleet
from assistant.nodes.gather import describe_all
from assistant.nodes.gathered import Gathered
from assistant.nodes.plan import make_plan
from assistant.nodes.remote import Node, RemoteTools
from tests.assistant.nodes.serving import command, tool_server
from tools import registry
from tools.addresses import Allowance, Policy
from tools.outbound import Outbound
from tools.sanity.results import Check

registry.discover()


def test_the_worst_comes_first() -> None:
    def node(name: str, *statuses: str, lost: str = "") -> NodeChecked:
        return NodeChecked(name, tuple(Check.model_validate({"id": "x", "status": s, "title": "x"}) for s in statuses), lost)  # fmt: skip

    nodes = [node("good", "ok"), node("notes", "note", "note"), node("bad", "bad"), node("worse", "bad", "bad"), node("dead", lost="x")]  # fmt: skip
    assert [n.name for n in sorted(nodes, key=lambda n: n.rank)] == ["dead", "worse", "bad", "notes", "good"]


def test_the_command_shows_a_node_and_names_the_dead_one(tmp_path: Path) -> None:
    with tool_server(tmp_path / "node") as served:
        file = tmp_path / "targets.json.yaml"
        tools = {"mcp": served.address, "token_env": "T"}
        dead = {"mcp": "http://127.0.0.1:9/mcp", "token_env": "T"}
        file.write_text(json.dumps({"targets": {
            "one": {"address": "http://127.0.0.1:8000", "node_tools": tools},
            "same-node": {"address": "http://127.0.0.1:8001", "node_tools": tools},
            "gone": {"address": "http://127.0.0.1:8002", "node_tools": dead},
            "without": {"address": "http://127.0.0.1:8003"},
        }}))  # fmt: skip
        env = served.environment | {"VLLM_DIAGNOSE_TARGETS_FILE": str(file), "T": served.viewer}

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(command("check", *arguments), env=env, capture_output=True, text=True, timeout=90, check=False)  # fmt: skip

        both = run("-o", "json", "--exit-code")
        assert both.returncode == 1, both.stderr
        rows = json.loads(both.stdout)["nodes"]
        assert [row["name"] for row in rows] == ["gone", "one"] and rows[0]["lost"]
        assert {check["id"].split(".")[0] for check in rows[1]["checks"]} & {"host", "net", "gpu", "cluster"}
        chinese = run("--lang", "zh")
        assert "没有应答" in chinese.stdout and "gone" in chinese.stdout
        unknown = run("--node", "nobody")
        assert unknown.returncode == 2 and "one" in unknown.stderr
        assert run("--node", "without").returncode == 2
        there = subprocess.run(command("sanity", "host", "--node", "one", "--pid", str(os.getpid()), "-o", "json"), env=env, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert json.loads(there.stdout)["report"]["tool"] == "check_host", there.stderr
        refused = subprocess.run(command("sanity", "compile", "--node", "one", "--yes"), env=env, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert refused.returncode == 3 and "operator" in refused.stderr


@pytest.mark.slow
def test_sixty_four_nodes_are_planned_and_gathered(tmp_path: Path) -> None:
    addresses = [f"127.0.1.{number}" for number in range(1, 65)]
    allowed = {"VLLM_DIAGNOSE_SERVER_ALLOWED_HOSTS": ",".join(addresses), "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "6000"}  # fmt: skip
    with tool_server(tmp_path / "node", host="0.0.0.0", **allowed) as served:
        port = urlsplit(served.address).port
        nodes = [
            Node(f"n{k:02}", f"http://{address}:{port}/mcp", {"Authorization": f"Bearer {served.viewer}"})
            for k, address in enumerate(addresses)
        ]
        policy = Policy(allowed=tuple(Allowance.of(node.address) for node in nodes))

        async def gather() -> Gathered:
            async with Outbound(policy) as out:
                found = Gathered(tuple(node.name for node in nodes))
                await describe_all([RemoteTools(node, out) for node in nodes], found)
                return found

        async def check() -> Fleet:
            async with Outbound(policy) as out:
                return await look_at_fleet([RemoteTools(node, out) for node in nodes], "en")

        started = time.monotonic()
        found = asyncio.run(gather())
        assert not found.lost and len(found.described) == 64
        apart = [(n, found.described[n].model_copy(update={"address": f"10.0.1.{k}"})) for k, n in enumerate(found.names)]  # fmt: skip
        plan = make_plan(apart)
        assert plan.star and plan.ranks >= 64
        planned = time.monotonic()
        print(f"\n64 nodes described and planned in {planned - started:.1f} s")
        fleet = asyncio.run(check())
        assert len(fleet.nodes) == 64 and fleet.lost == 0 and len(CHECKS) == 3
        print(f"64 nodes checked in {time.monotonic() - planned:.1f} s")
