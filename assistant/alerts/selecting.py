"""Which configured targets an alert is about. Labels choose among them; nothing in an alert becomes an address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tools.addresses import AddressError, parse_url

if TYPE_CHECKING:
    from assistant.targets import Target

#: Targets that one alert may be about; one that fits more names a fleet and not a server.
MOST_TARGETS = 20
#: The label with which an alert rule may name a target of the targets file outright.
NAME_LABEL = "vllm_target"


def targets_of(labels: Mapping[str, str], targets: Mapping[str, Target]) -> tuple[str, ...]:
    """Names of the targets that an alert with ``labels`` means, in the order of their names.

    The label ``vllm_target`` names one. Otherwise all whose configured labels stand in the alert with the same values,
    and those whose address is the alert's ``instance``.
    """
    named = labels.get(NAME_LABEL, "")
    if named:
        return (named,) if named in targets else ()
    instance = labels.get("instance", "").lower()
    found = []
    for name, target in sorted(targets.items()):
        by_label = bool(target.labels) and all(labels.get(key) == value for key, value in target.labels.items())
        if by_label or (instance and instance in _instances(target)):
            found.append(name)
    return tuple(found[:MOST_TARGETS])


def _instances(target: Target) -> set[str]:
    """What Prometheus would call the target: host and port of the server and of what exports its metrics."""
    found = set()
    scraped = target.metrics.address if target.metrics is not None and target.metrics.kind == "vllm" else ""
    for address in (target.address, scraped):
        if not address:
            continue
        try:
            where = parse_url(address)
        except AddressError:
            continue
        host = f"[{where.host}]" if ":" in where.host else where.host
        found.add(f"{host}:{where.port}".lower())
    return found
