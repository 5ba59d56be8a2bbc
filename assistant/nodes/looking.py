"""What the tool server on a target's node sees: the reading checks, as evidence for a diagnosis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from assistant.nodes.fleet import CHECKS
from assistant.nodes.remote import Node, Note, RemoteError, RemoteTools, unnoted
from tools.evidence import Reading
from tools.outbound import Outbound
from tools.sanity.results import reading_of

if TYPE_CHECKING:
    from assistant.security.roles import Principal
    from assistant.settings import Settings
    from assistant.store.audit import Audit, Outcome
    from assistant.targets import Target
    from tools.addresses import Policy
    from tools.metrics.window import ServerWindow
    from tools.sanity.results import Report


def audited(audit: Audit, principal: Principal, face: str) -> Note:
    """Writes calls to nodes into the assistant's own audit; a database that is away costs the line and not the call."""
    from assistant.store.database import StoreError

    def note(did: str, effect: str, target: str, outcome: Outcome, detail: Mapping[str, Any]) -> None:
        with contextlib.suppress(StoreError):
            audit.note(
                who=principal.id, role=principal.role.name, face=face, did=did, effect=effect, target=target,
                outcome=outcome, detail=detail,
            )  # fmt: skip

    return note


async def read_target_and_node(
    target: Target, policy: Policy, settings: Settings, *, window_s: float, note: Note = unnoted
) -> tuple[Reading, ServerWindow | None]:
    """What a configured target and its node show, as evidence, and the window of its metrics.

    A credential that cannot be read costs that look and not the answer. Raises :class:`~tools.addresses.AddressError`.
    """
    from assistant.fleet.looking import read_target
    from assistant.settings import SettingsError

    async def node() -> Reading:
        try:
            return await look_at_node(target, policy, note=note)
        except SettingsError as error:
            return Reading(not_measured=tuple((target.name, problem) for problem in error.problems))

    (reading, window), beside = await asyncio.gather(read_target(target, policy, settings, window_s=window_s), node())
    return reading + beside, window


async def look_at_node(target: Target, policy: Policy, *, lang: str = "en", deadline_s: float = 20.0, note: Note = unnoted) -> Reading:  # fmt: skip
    """The facts of GPUs, host and network of the node that ``target`` runs on; nothing where it names no tool server.

    What cannot be had is ``not_measured``. Raises ``SettingsError`` where the credential of the tool server is not there.
    """
    if target.node_tools is None:
        return Reading()
    from tools import registry

    registry.discover()
    node = Node(target.name, target.node_tools.address, target.node_tools.headers())
    async with Outbound(policy) as out:
        tools = RemoteTools(node, out, note)

        async def one(check: str) -> Reading:
            try:
                report = cast("Report", await tools.call(check, {"lang": lang}, deadline_s=deadline_s))
            except RemoteError as error:
                return Reading(not_measured=((f"{check} ({target.name})", str(error)),))
            return reading_of([report])

        whole = Reading()
        for found in await asyncio.gather(*(one(check) for check in CHECKS)):
            whole += found
    return whole
