"""`check_network` in real network namespaces: what is missing there is named, and what vLLM would choose is said."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.network.interfaces import Interface, candidates, in_network_of, interfaces
from tools.pinned import source_address

COMMAND = str(Path(sys.executable).with_name("vllm-diagnose"))
#: An interface that could connect nodes, and one of a container engine; both are cables whose other end is up.
TWO = (
    "ip link set lo up && ip link add eth7 type veth peer name peer7 && ip link set peer7 up "
    "&& ip addr add 10.77.0.4/24 dev eth7 && ip link set eth7 up "
    "&& ip link add docker0 type veth peer name vethx && ip link set vethx up "
    "&& ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up"
)


def inside(script: str, *, options: str = "-n", **environment: str) -> Any:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare or ip is missing")
    if subprocess.run(["unshare", *options.split(), "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces need root here")
    if subprocess.run(["unshare", "-n", "ip", "link", "add", "eth7", "type", "veth", "peer", "name", "peer7"], capture_output=True, check=False).returncode:  # fmt: skip
        pytest.skip("no interface can be made here")
    ran = subprocess.run(
        ["unshare", *options.split(), "sh", "-c", f'{script} && exec "$@" --pid $$', "sh", COMMAND, "sanity", "network", "--no-hub",
         "-o", "json"],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def status(body: Any) -> dict[str, str]:
    return {row["id"]: row["status"] for row in body["report"]["checks"]}


def facts(body: Any) -> dict[str, Any]:
    return {fact["name"]: fact["value"] for fact in body["report"]["facts"]}


def test_without_a_route_vllm_would_take_no_address() -> None:
    body = inside(TWO)
    assert status(body)["net.address-none"] == "note"
    assert facts(body)["network.address_problem"] == "no-route"
    assert facts(body)["network.candidates"] == "eth7"  # a bridge of a container engine is none


def test_the_default_route_decides() -> None:
    body = inside(f"{TWO} && ip route add default via 10.77.0.1")
    assert facts(body)["network.address"] == "10.77.0.4"
    assert status(body)["net.address-route"] == "ok"


def test_a_route_through_a_bridge_is_pointed_out() -> None:
    body = inside(f"{TWO} && ip route add default via 172.17.0.9")
    assert facts(body)["network.address_problem"] == "virtual"
    assert "docker0" in next(row["text"] for row in body["report"]["checks"] if row["id"] == "net.address-virtual")


def test_loopback_that_is_down_is_named() -> None:
    assert status(inside("true"))["net.loopback-down"] == "bad"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("NCCL_SOCKET_IFNAME", "eth", "ok"),  # NCCL takes beginnings
        ("NCCL_SOCKET_IFNAME", "=eth", "bad"),
        ("NCCL_SOCKET_IFNAME", "^docker0", "ok"),
        ("NCCL_SOCKET_IFNAME", "ib0", "bad"),
        ("GLOO_SOCKET_IFNAME", "eth7", "ok"),
        ("GLOO_SOCKET_IFNAME", "eth", "bad"),  # GLOO takes whole names
    ],
)
def test_a_chosen_interface_must_be_there(name: str, value: str, expected: str) -> None:
    body = inside(TWO, **{name: value})
    assert status(body)["net.ifname"] == expected
    if expected == "bad":
        assert body["diagnosis"]["causes"][0]["id"] == "distributed/wrong-network-interface"


def test_a_host_ip_that_is_not_ours_is_refused() -> None:
    assert status(inside(TWO, VLLM_HOST_IP="10.77.0.99"))["net.address"] == "bad"
    assert status(inside(TWO, VLLM_HOST_IP="10.77.0.4"))["net.address-given"] == "ok"


@pytest.mark.parametrize(
    ("address", "row", "resolves"),
    [("127.0.1.1", "net.host-loopback", "loopback"), ("10.77.0.4", "net.host-name", "own"), ("10.9.9.9", "net.host-foreign", "foreign")],
)  # fmt: skip
def test_where_the_host_name_leads(address: str, row: str, resolves: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n{address} a-test-node\n")
    script = f"{TWO} && mount --bind {tmp_path}/hosts /etc/hosts && hostname a-test-node"
    body = inside(script, options="-n -m -u")
    assert row in status(body)
    assert facts(body)["host.name_resolves"] == resolves


def test_another_network_is_looked_at_from_inside() -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces need root here")
    script = "ip link set lo up && echo up && exec sleep 600"
    with subprocess.Popen(["unshare", "-n", "sh", "-c", script], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            there = in_network_of(other.pid, lambda: {row.name for row in interfaces()})
        finally:
            other.kill()
    assert there == {"lo"}
    assert {row.name for row in interfaces()} >= {"lo"}  # this process did not move
    assert in_network_of(4194303, lambda: 1) is None


def test_candidates_leave_out_what_connects_nothing() -> None:
    def row(name: str, up: bool = True, address: str = "10.0.0.1") -> Interface:
        return Interface(name, up, name == "lo", (address,) if address else ())

    rows = [
        row("lo"),
        row("docker0"),
        row("vethab"),
        row("eth0"),
        row("ib0"),
        row("eth1", up=False),
        row("eth2", address="fd00::1"),
    ]
    assert [r.name for r in candidates(rows)] == ["eth0", "ib0"]


def test_the_source_address_is_one_of_ours() -> None:
    assert source_address("127.0.0.1") == "127.0.0.1"


def with_hub(*options: str, **environment: str) -> Any:
    """The check of a process with this environment: itself."""
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" --pid $$', "sh", COMMAND, "sanity", "network", "-o", "json", *options],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return {row["id"]: row for row in json.loads(ran.stdout)["report"]["checks"]}


def test_the_hub_is_only_tried_when_wanted_and_not_when_offline() -> None:
    assert with_hub(HF_HUB_OFFLINE="1")["net.hub"]["status"] == "skipped"
    assert "net.hub" not in with_hub("--no-hub")


def test_a_hub_at_a_metadata_address_is_not_connected_to() -> None:
    """The server's environment names the hub; it must not lead us to where clouds hand out credentials."""
    row = with_hub(HF_ENDPOINT="http://169.254.169.254")["net.hub"]
    assert row["status"] == "bad"
    assert "link-local" in row["text"]


def test_a_hub_that_answers_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        row = with_hub(HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}")["net.hub"]
    assert row["status"] == "ok", row
