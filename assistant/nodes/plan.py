"""Who is rank what, where the ranks meet, and which pairs of nodes are tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.launchers.node import NodeDescription

#: Up to here every node tries every other one; beyond it the first node tries all and all try it.
MESH = 16
#: The port at which ranks meet unless a range is given: torchrun's own default.
PORTS = (29500, 29501, 29502)


class PlanError(ValueError):
    """The nodes cannot form a group. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Place:
    """One node's part: its ranks are ``first_rank`` to ``first_rank + here - 1``."""

    name: str
    address: str
    first_rank: int
    here: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The group. ``peers`` maps a node to the nodes that it tries; ``star`` says that not every pair is tried."""

    places: tuple[Place, ...]
    ranks: int
    master: str
    ports: tuple[int, ...]
    peers: dict[str, tuple[str, ...]]
    star: bool

    def place(self, name: str) -> Place:
        """The part of the node of this name."""
        return next(place for place in self.places if place.name == name)

    def node_of(self, rank: int) -> str:
        """The node on which a rank runs."""
        return next((p.name for p in self.places if p.first_rank <= rank < p.first_rank + p.here), "?")


def make_plan(
    nodes: Sequence[tuple[str, NodeDescription]],
    *,
    ranks_per_node: int | None = None,
    ports: Sequence[int] = PORTS,
    master_port: int | None = None,
) -> Plan:
    """The first node holds rank 0. One rank a GPU, and one on a node without GPUs, unless said otherwise.

    Raises :class:`PlanError`.
    """
    if len(nodes) < 2:
        raise PlanError("A test between nodes needs two nodes at least.")
    places: list[Place] = []
    seen: dict[str, str] = {}
    first = 0
    for name, node in nodes:
        if not node.address:
            raise PlanError(f"{name} has no address that other nodes could reach; set VLLM_HOST_IP there.")
        if node.address in seen:
            raise PlanError(f"{name} and {seen[node.address]} both name {node.address} as theirs; set VLLM_HOST_IP on each.")  # fmt: skip
        seen[node.address] = name
        here = ranks_per_node or max(1, node.gpus)
        places.append(Place(name, node.address, first, here))
        first += here
    names = [place.name for place in places]
    star = len(names) > MESH
    peers = {
        name: tuple(other for other in names if other != name and (not star or names[0] in (name, other)))
        for name in names
    }
    host = f"[{places[0].address}]" if ":" in places[0].address else places[0].address
    return Plan(tuple(places), first, f"{host}:{master_port or ports[0]}", tuple(ports), peers, star)
