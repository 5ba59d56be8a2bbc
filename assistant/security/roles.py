"""Roles: a viewer looks, an operator touches, an admin also decides who may.

Effects come from the action's declaration: ``reads`` needs a viewer, ``loads`` and ``runs`` an operator and a consent
to the very call. A principal may be limited further by scopes, which name actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase

from tools.registry import Effect


class Role(IntEnum):
    """What somebody may do; a higher role may do all that a lower one may."""

    viewer = 1
    operator = 2
    admin = 3

    @classmethod
    def of(cls, name: str) -> Role:
        """The role of this name; raises :class:`ValueError` as a sentence."""
        try:
            return cls[name]
        except KeyError:
            raise ValueError(f"{name!r} is not a role; expected {', '.join(role.name for role in cls)}.") from None


NEEDED: dict[Effect, Role] = {"reads": Role.viewer, "loads": Role.operator, "runs": Role.operator}


class ForbiddenError(Exception):
    """Somebody asked for what they may not do. The message is a sentence and says what would be needed."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``id`` is the token's id, a Slack user or ``local``; ``scopes`` are action names or patterns.

    No scope at all means every action that the role allows.
    """

    id: str
    name: str
    role: Role
    scopes: tuple[str, ...] = ()

    def in_scope(self, action: str) -> bool:
        """Whether the scopes let this principal use ``action``."""
        return not self.scopes or any(fnmatchcase(action, scope) for scope in self.scopes)


#: Whoever runs the command line on a machine can already do everything there that this program can.
LOCAL = Principal("local", "local user", Role.admin)


def require(principal: Principal, action: str, effect: Effect) -> None:
    """Raise :class:`ForbiddenError` unless ``principal`` may use ``action`` at all."""
    if not principal.in_scope(action):
        raise ForbiddenError(
            f"{principal.name} may not use {action}: the token is limited to {', '.join(principal.scopes)}."
        )
    require_role(principal, NEEDED[effect], f"use {action}, which {effect}")


def require_role(principal: Principal, role: Role, what: str) -> None:
    """Raise :class:`ForbiddenError` unless ``principal`` has at least ``role``."""
    if principal.role < role:
        raise ForbiddenError(f"{principal.name} is {principal.role.name} and may not {what}; that needs {role.name}.")
