"""From the targets file to the nodes with a tool server, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from assistant.nodes.remote import Node
from assistant.settings import SettingsError

if TYPE_CHECKING:
    from assistant.targets import Target


def nodes_of(targets: Mapping[str, Target], wanted: Sequence[str] = ()) -> list[Node]:
    """Nodes of the targets named in ``wanted``, in that order, or of all; several servers on one node are one node.

    Raises :class:`SettingsError` where one is not known, has no tool server, or its credential cannot be read.
    """
    found: dict[str, Node] = {}
    for name in wanted or targets:
        target = targets.get(name)
        if target is None:
            known = ", ".join(sorted(n for n, t in targets.items() if t.node_tools)[:20]) or "none"
            raise SettingsError(f"There is no target {name[:80]!r}; targets with a tool server: {known}.")
        if target.node_tools is None:
            if wanted:
                raise SettingsError(f"The target {name} has no node_tools, the address of the tool server on its node.")
            continue
        address = target.node_tools.address
        found.setdefault(address, Node(name, address, target.node_tools.headers()))
    return list(found.values())
