"""Consent: a person with the right role agrees to one call, and what they agreed to is what runs.

A face shows the call with a ticket, the person presses the button, and the ticket comes back. A ticket is bound to the
person, the action, its arguments and a time, by an HMAC under a key of the server; so nothing has to be stored, a
changed argument makes it worthless, and another person cannot use it. A ticket becomes one job at most: its nonce is
the job's key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assistant.security.roles import ForbiddenError, Principal, require
from tools.registry import Action, Consent, digest_of

#: Seconds between showing a call and agreeing to it, and between agreeing and the call's beginning.
TICKET_S = 600.0


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A consent and the ``key`` under which it may be turned into a job, once."""

    consent: Consent
    key: str


class Consents:
    """Hands out tickets and takes them back. ``key`` is at least 32 random bytes, the same in all replicas."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError("the key of the consents must have at least 32 bytes")
        self._key = key

    def ask(self, principal: Principal, action: Action, arguments: Mapping[str, Any]) -> str:
        """A ticket for ``principal`` to agree with. Raises :class:`ForbiddenError` and ``InputError``.

        ``arguments`` are validated first, so the ticket stands for the whole call with its defaults.
        """
        require(principal, action.name, action.effect)
        body = {
            "by": principal.id,
            "action": action.name,
            "arguments": _digest(action, arguments),
            "until": int(time.time() + TICKET_S),
            "nonce": secrets.token_hex(16),
        }
        text = _pack(json.dumps(body, sort_keys=True).encode())
        return f"{text}.{self._sign(text)}"

    def accept(self, principal: Principal, ticket: str, action: Action, arguments: Mapping[str, Any]) -> Confirmed:
        """Turn a ticket into a consent to exactly this call. Raises :class:`ForbiddenError` and ``InputError``."""
        require(principal, action.name, action.effect)
        text, _, signature = ticket.partition(".")
        if not hmac.compare_digest(self._sign(text).encode(), signature.encode()):
            raise ForbiddenError("The confirmation was not made by this server; ask for the call again.")
        body = json.loads(_unpack(text))
        if body["by"] != principal.id:
            raise ForbiddenError("The confirmation was shown to somebody else; ask for the call yourself.")
        if body["action"] != action.name or body["arguments"] != _digest(action, arguments):
            raise ForbiddenError("The confirmation belongs to another call; ask for this one again.")
        now = time.time()
        if now >= body["until"]:
            raise ForbiddenError("The confirmation is too old; ask for the call again.")
        return Confirmed(Consent(action.name, body["arguments"], principal.id, now + TICKET_S), body["nonce"])

    def _sign(self, text: str) -> str:
        return _pack(hmac.new(self._key, text.encode(), hashlib.sha256).digest())


def agree(principal: Principal, action: Action, arguments: Mapping[str, Any]) -> Consent:
    """The consent of somebody who was asked and said yes on the spot: a prompt, or ``--yes`` on the command line.

    Raises :class:`ForbiddenError` and ``InputError``.
    """
    require(principal, action.name, action.effect)
    return Consent(action.name, _digest(action, arguments), principal.id, time.time() + TICKET_S)


def to_json(consent: Consent) -> dict[str, Any]:
    """A consent as a job keeps it."""
    return {"action": consent.action, "arguments": consent.arguments, "by": consent.by, "until": consent.until}


def from_json(table: Mapping[str, Any]) -> Consent:
    """What :func:`to_json` made."""
    return Consent(str(table["action"]), str(table["arguments"]), str(table["by"]), float(table["until"]))


def _digest(action: Action, arguments: Mapping[str, Any]) -> str:
    return digest_of(action.validate(arguments).model_dump(mode="json"))


def _pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
