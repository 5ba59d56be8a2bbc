"""From what a person typed to a server: a name of the targets file, or an address."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from assistant.settings import Settings, SettingsError
from assistant.targets import Access, Secret, Target, load_targets, policy_for
from tools.addresses import AddressError, Allowance, Policy
from tools.metrics.look import LOOKS, PAGE, Look
from tools.outbound import Limits
from tools.registry import FindServer
from tools.vllm_server import base_of


class TargetError(ValueError):
    """No server can be meant by this. The message is a sentence."""


def known_targets(settings: Settings) -> dict[str, Target]:
    """The servers of the targets file; empty without one. Raises :class:`SettingsError`."""
    path = settings.text("targets_file")
    return load_targets(Path(path)) if path else {}


def target_of(given: str, targets: Mapping[str, Target]) -> Target:
    """The named server, or an unnamed one at this address. Raises :class:`TargetError`."""
    if given in targets:
        return targets[given]
    if "://" not in given and "/" not in given and not _has_port(given):
        import difflib

        near = difflib.get_close_matches(given, targets, n=1)
        hint = f"; {near[0]} is meant perhaps" if near else ""
        raise TargetError(
            f"{given!r} is no target{hint}. Give an address such as http://host:8000, or a name of the targets file."
        )
    address = given if "://" in given else f"http://{given}"
    try:
        base_of(address)
    except AddressError as error:
        raise TargetError(str(error)) from None
    # An address that a person types is meant, wherever its name leads; link-local and metadata stay refused.
    return Target(name=given, address=address, private=True)


def _has_port(given: str) -> bool:
    host, colon, port = given.rpartition(":")
    return bool(colon and host and port.isascii() and port.isdigit())


def policy_of(settings: Settings, targets: Mapping[str, Target], target: Target | None = None) -> Policy:
    """What may be connected to: the configured servers and this one."""
    extra: tuple[Allowance, ...] = target.allowances() if target is not None and target.name not in targets else ()
    return policy_for(settings, targets, *extra)


def server_of(targets: Mapping[str, Target]) -> FindServer:
    """For ``Context.server``: a configured server by name or address, with its credential; others as they are."""

    def find(given: str) -> tuple[str, Mapping[str, str]]:
        if given in targets:
            return targets[given].address, bearer(targets[given].api_key)
        where = base_of(given)
        for target in targets.values():
            known = base_of(target.address)
            if (known.scheme, known.host, known.port) == (where.scheme, where.host, where.port):
                return given, bearer(target.api_key)
        return given, {}

    return find


def limits_of(settings: Settings) -> Limits:
    """What one request may take, from the settings; a page that is larger is read up to there."""
    return Limits(
        deadline_s=settings.number("outbound.deadline_s"),
        connect_s=settings.number("outbound.connect_s"),
        max_bytes=settings.whole("outbound.max_bytes"),
        max_decompressed_bytes=settings.whole("outbound.max_decompressed_bytes"),
        cut=True,
    )


def look_for(
    target: Target,
    *,
    window_s: float,
    deadline_s: float,
    looks: int = LOOKS,
    brief: bool = False,
    limits: Limits = PAGE,
) -> Look:
    """How this target is looked at. Raises :class:`SettingsError` where a credential cannot be read."""
    access = target.metrics if target.metrics is not None and target.metrics.kind == "vllm" else None
    return Look(
        address=target.address,
        window_s=window_s,
        deadline_s=deadline_s,
        headers=bearer(target.api_key),
        metrics_address=_page(access) if access is not None else "",
        metrics_headers=bearer(access.token) if access is not None else {},
        looks=looks,
        brief=brief,
        limits=limits,
    )


def _page(access: Access) -> str:
    base = base_of(access.address)
    return str(base.at("metrics"))


def bearer(secret: Secret | None) -> dict[str, str]:
    """The header that carries a credential; none without one. Raises :class:`SettingsError`."""
    if secret is None:
        return {}
    token = secret.read()
    if not token.isprintable() or not token.isascii():
        raise SettingsError("A credential contains a character that a header cannot carry.")
    return {"Authorization": f"Bearer {token}"}
