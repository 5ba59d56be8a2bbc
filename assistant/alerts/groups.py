"""A group of alerts as one incident: pure state and what may happen to it. The store keeps it as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from assistant.alerts.webhook import Alert, Status

#: Alerts of one group that are kept word for word; of all further ones only whether they are over.
MOST_SHOWN = 100
#: Alerts and targets that one group may have; what comes beyond is counted.
MOST_KEPT, MOST_TARGETS = 5000, 50
#: How often a message is tried again before a channel is given up for it.
MOST_TRIES = 5

Announced = Literal["", "alone", "counted"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a diagnosis of one target said, as much of it as a table shows."""

    verdict: str
    cause: str | None = None
    title: str = ""
    confidence: float = 0.0
    severity: str = ""
    summary: str = ""

    @property
    def rank(self) -> tuple[int, int, float]:
        """The worst first."""
        order = {"cause": 0, "unknown": 1, "healthy": 2}
        grave = {"critical": 0, "warning": 1, "info": 2}
        return order.get(self.verdict, 1), grave.get(self.severity, 3), -self.confidence


@dataclass(frozen=True, slots=True)
class Row:
    """One target of the group: which of its alerts there are, what was found, and what was found after they ended."""

    alerts: tuple[str, ...] = ()
    found: Found | None = None
    after: Found | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What a channel has got: its own reference for updates, up to which version, and failures since then."""

    reference: str = ""
    version: int = 0
    tries: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One incident of alerts. Times are milliseconds since 1970; ``version`` grows with everything worth telling.

    ``keys`` says of every alert whether it still fires; ``shown`` holds the first of them; ``targets`` maps names of
    configured targets (or "" where no target was meant) to what is known of them. ``owner`` works on it until
    ``lease_until_ms``.
    """

    title: str
    started_ms: int
    keys: Mapping[str, Status] = field(default_factory=dict)
    shown: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    targets: Mapping[str, Row] = field(default_factory=dict)
    more: int = 0
    resolved_ms: int | None = None
    version: int = 1
    announced: Announced = ""
    channels: Mapping[str, Sent] = field(default_factory=dict)
    lead: str | None = None
    fix: Mapping[str, Any] | None = None
    owner: str = ""
    lease_until_ms: int = 0

    @property
    def firing(self) -> int:
        """Alerts that are not over, those that were only counted included."""
        return sum(status == "firing" for status in self.keys.values())

    @property
    def over(self) -> bool:
        return self.firing == 0

    @property
    def to_look_at(self) -> tuple[str, ...]:
        """Targets that somebody has to look at now: for the first time, or again because everything is over."""
        if self.over and self.announced:
            return tuple(name for name, row in self.targets.items() if row.after is None and row.found is not None)
        return tuple(name for name, row in self.targets.items() if row.found is None)

    def due_for(self, channels: Iterable[str]) -> tuple[str, ...]:
        """The channels that have not heard the newest and have not failed too often."""
        if self.announced == "counted" or self.to_look_at:
            return ()
        sent = {name: self.channels.get(name, Sent()) for name in channels}
        return tuple(name for name, got in sent.items() if got.version < self.version and got.tries < MOST_TRIES)

    def done(self, channels: Iterable[str]) -> bool:
        """Whether nothing is left to do unless something happens."""
        return not self.to_look_at and bool(self.announced) and not self.due_for(channels)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :func:`group_from_json` is its inverse."""
        return asdict(self)


def group_from_json(raw: Mapping[str, Any]) -> Group:
    """A group as it was kept."""
    targets = {
        name: Row(
            tuple(row["alerts"]),
            Found(**row["found"]) if row["found"] else None,
            Found(**row["after"]) if row["after"] else None,
        )
        for name, row in raw["targets"].items()
    }
    channels = {name: Sent(**sent) for name, sent in raw["channels"].items()}
    return Group(**{**raw, "targets": targets, "channels": channels})


def joined(group: Group, alerts: Iterable[tuple[Alert, tuple[str, ...]]], now_ms: int, more: int = 0) -> Group:
    """The group with these alerts, each with the targets that it means; alerts that are known change nothing.

    ``more`` counts alerts that were not sent.
    """
    keys, shown, targets = dict(group.keys), dict(group.shown), dict(group.targets)
    news, over_before = False, group.over
    for alert, names in alerts:
        before = keys.get(alert.key)
        if before is None and len(keys) >= MOST_KEPT:
            more += 1
            continue
        if before == alert.status or (before == "resolved" and alert.status == "firing"):
            continue  # a repetition, or a notice that was overtaken by the end of the same firing
        keys[alert.key] = alert.status
        if alert.key in shown:
            shown[alert.key] = {**shown[alert.key], "status": alert.status, "ends_at": alert.ends_at}
        elif len(shown) < MOST_SHOWN:
            shown[alert.key] = _shown(alert, names)
        if before is None:
            news = True
            for name in names or ("",):
                if name in targets or len(targets) < MOST_TARGETS:
                    row = targets.get(name, Row())
                    targets[name] = replace(row, alerts=tuple(dict.fromkeys((*row.alerts, alert.name)))[:20])
    changed = replace(group, keys=keys, shown=shown, targets=targets, more=group.more + more)
    if changed.over and not over_before:
        return replace(changed, resolved_ms=now_ms, version=group.version + 1)
    if news:
        back = {name: replace(row, after=None) for name, row in targets.items()}
        return replace(changed, targets=back, resolved_ms=None, version=group.version + 1)
    return changed


def _shown(alert: Alert, names: tuple[str, ...]) -> dict[str, Any]:
    kept = asdict(alert)
    del kept["key"]
    return {**kept, "targets": list(names)}


def looked(group: Group, name: str, found: Found) -> Group:
    """The group with what was found at one target, before or after its alerts ended."""
    row = group.targets[name]
    again = group.over and bool(group.announced) and row.found is not None
    row = replace(row, after=found) if again else replace(row, found=found)
    return replace(group, targets={**group.targets, name: row}, version=group.version + (not again))


def worst(group: Group) -> str | None:
    """The target that is worst off, as it was found first."""
    found = [(row.found.rank, name) for name, row in group.targets.items() if row.found is not None]
    return min(found)[1] if found else None
