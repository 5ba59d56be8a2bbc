"""Where diagnosed alerts go. A face that has a place for them brings a :class:`Channel` of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tools.addresses import Allowance
from tools.outbound import Limits, Outbound, OutboundError

if TYPE_CHECKING:
    from assistant.render.blocks import Block
    from assistant.settings import Settings
    from tools.addresses import Policy

_LIMITS = Limits(deadline_s=10.0, max_bytes=1 << 20, max_decompressed_bytes=1 << 20, cut=True)


class ChannelError(Exception):
    """A message was not taken. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class AlertMessage:
    """One message about a group of alerts, or (``rest``) about those for which there was no message of their own.

    ``blocks`` is the whole message for a face that draws; ``text`` the same as Markdown; ``data`` the same for
    programs. ``url`` leads to the incident, or to the list of groups.
    """

    id: str
    event: Literal["opened", "updated", "resolved", "rest"]
    title: str
    blocks: tuple[Block, ...]
    text: str
    url: str
    incident: str | None
    started: datetime
    ended: datetime | None
    data: Mapping[str, Any]


class Channel(Protocol):
    """A place for messages. Both methods raise :class:`ChannelError` and end within a few seconds.

    ``post`` returns a reference of the channel's own, with which ``update`` finds the message again, in another process
    too; an update may become a further message in the same thread.
    """

    name: str

    async def post(self, message: AlertMessage) -> str:
        """Bring a new message."""
        ...

    async def update(self, reference: str, message: AlertMessage) -> None:
        """Bring news of an earlier one."""
        ...


class Webhook:
    """Any program that takes JSON: every message and every news of it is one POST."""

    name = "webhook"

    def __init__(self, url: str, token: str, policy: Policy) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._policy = policy

    async def post(self, message: AlertMessage) -> str:
        """Send it; the group's id is the reference."""
        await _send("POST", self._url, dict(message.data), self._headers, self._policy)
        return message.id

    async def update(self, reference: str, message: AlertMessage) -> None:
        """Send it again as it is now."""
        await _send("POST", self._url, dict(message.data), self._headers, self._policy)


class Grafana:
    """Annotations in Grafana: one for each incident, from its first alert to its end.

    Grafana's HTTP API: ``POST /api/annotations`` and ``PATCH /api/annotations/{id}`` with a service-account token;
    times in milliseconds.
    """

    name = "grafana"

    def __init__(self, url: str, token: str, policy: Policy) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._policy = policy

    async def post(self, message: AlertMessage) -> str:
        """Make the annotation; its number is the reference."""
        answer = await _send("POST", f"{self._url}/api/annotations", _note(message), self._headers, self._policy)
        number = answer.get("id") if isinstance(answer, Mapping) else None
        if not isinstance(number, int):
            raise ChannelError("Grafana took the annotation and did not say which number it has.")
        return str(number)

    async def update(self, reference: str, message: AlertMessage) -> None:
        """Change the annotation."""
        address = f"{self._url}/api/annotations/{int(reference)}"
        await _send("PATCH", address, _note(message), self._headers, self._policy)


def _note(message: AlertMessage) -> dict[str, Any]:
    at = int(message.started.timestamp() * 1000)
    end = int(message.ended.timestamp() * 1000) if message.ended else at
    return {"time": at, "timeEnd": end, "tags": ["vllm-diagnose", message.event], "text": message.text[:8000]}


async def _send(
    method: Literal["POST", "PATCH"], url: str, body: object, headers: Mapping[str, str], policy: Policy
) -> Any:
    try:
        async with Outbound(policy, limits=_LIMITS) as out:
            reply = await out.request(method, url, body=body, headers=headers)
    except OutboundError as error:
        raise ChannelError(str(error)) from None
    if not 200 <= reply.status < 300:
        raise ChannelError(f"{reply.url} answered {reply.status}.")
    try:
        return reply.json()
    except OutboundError:
        return None


def configured(settings: Settings, policy: Policy) -> tuple[Channel, ...]:
    """The channels that the settings name. Raises ``AddressError``."""
    private = True if settings.yes("alerts.allow_private") else None
    made: list[Channel] = []
    for name, kind in (("webhook", Webhook), ("grafana", Grafana)):
        url = settings.text(f"alerts.{name}_url")
        if url:
            allowed = policy.allowing(Allowance.of(url, private=private))
            made.append(kind(url, settings.text(f"alerts.{name}_token"), allowed))
    return tuple(made)


def moment(at_ms: int) -> datetime:
    """Milliseconds since 1970 as a time."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
