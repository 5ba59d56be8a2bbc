"""`check_links`: which ports of its peers a node reaches, and how large a packet gets there."""

from __future__ import annotations

import asyncio
import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tools.network.interfaces import interfaces
from tools.registry import ActionError, Context, action
from tools.sanity.launch import LaunchError, run_program
from tools.sanity.results import plain

WORKER = Path(__file__).with_name("link_worker.py")
#: Seconds over the worker's own for starting and ending it.
_MARGIN_S = 10.0


class LinksInput(BaseModel):
    """``peers`` run the same check at the same time, on the same ports."""

    address: str = Field(description="address of this node that its peers know")
    peers: list[str] = Field(max_length=63, description="their addresses")
    ports: list[int] = Field(min_length=1, max_length=16, description="ports to listen on and to try")
    seconds: float = Field(12.0, ge=2, le=60, description="seconds that the check may take")


class PeerSeen(BaseModel):
    """One peer as seen from here: a port is ``open``, ``refused``, ``silent`` or the name of an errno; ``largest`` is the
    largest packet in bytes that got there whole, None where none did."""

    peer: str
    ports: dict[str, str]
    largest: int | None = None


class LinksReport(BaseModel):
    """``mtu`` of the interface with this node's address; ``taken`` maps ports that could not be listened on to why."""

    address: str
    mtu: int | None
    taken: dict[str, str] = Field(default_factory=dict)
    peers: list[PeerSeen] = Field(default_factory=list)


@action(name="check_links", title="Ports and packet size between nodes", effect="loads", deadline_s=90)
async def check_links(given: LinksInput, context: Context) -> LinksReport:
    """Listens on some ports for a few seconds and connects to the same ports of the peers, which do the same; finds the
    largest packet that gets there. Raises ``ActionError`` where the address is not one of this node."""
    for text in (given.address, *given.peers):
        try:
            usable = ip_address(text).version == 4
        except ValueError:
            usable = False
        if not usable:
            raise ActionError(f"{plain(text, 60)!r} is not an IPv4 address; peers are named by their addresses.")
    if not all(1024 <= port <= 65535 for port in given.ports):
        raise ActionError("ports must lie between 1024 and 65535.")
    row = next((row for row in await asyncio.to_thread(interfaces) if given.address in row.addresses), None)
    if row is None:
        raise ActionError(f"{given.address} is not an address of this node.")
    try:
        ran = await run_program(
            (sys.executable,),
            WORKER.read_text("utf-8"),
            [
                *(
                    "--address",
                    given.address,
                    "--peers",
                    ",".join(given.peers),
                    "--mtu",
                    str(min(row.mtu or 1500, 65535)),
                ),
                *("--ports", ",".join(map(str, given.ports)), "--seconds", str(given.seconds)),
            ],
            environment={"PATH": os.environ.get("PATH", "")},
            deadline_s=given.seconds + _MARGIN_S,
        )
    except LaunchError as error:
        raise ActionError(str(error)) from None
    listening: dict[str, Any] = next((e for e in ran.events if e["event"] == "listening"), {})
    if not listening:
        raise ActionError(f"The check could not start: {plain(ran.stderr[-300:])}")
    peers = [PeerSeen(peer=e["peer"], ports=e["ports"], largest=e["largest"]) for e in ran.events if e["event"] == "peer"]  # fmt: skip
    return LinksReport(address=given.address, mtu=row.mtu, taken=listening.get("taken", {}), peers=peers)
