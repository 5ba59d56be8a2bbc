"""How strongly the evidence supports each cause: points per signal, place in the order of failures, explaining away.

The points are the same for every cause. What a cause may say is only decisive, strong or weak; several signals of one
cause add up with diminishing returns, because they usually are one fact in several voices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from assistant.diagnosis.truth import Facts, judge
from knowledge.catalog import Catalog
from knowledge.search import Likeness
from knowledge.shapes import Cause, Exclusion, Signal
from tools.evidence import Evidence

POINTS = {"decisive": 5.0, "strong": 2.6, "weak": 1.0}
#: What the second, third ... signal of one cause still adds.
DIMINISHING = (1.0, 0.45, 0.25, 0.15, 0.1, 0.05)
#: A failure after the first one of its run still counts, but less: it may only follow.
LATER_FAILURE = 0.72
#: Something that usually follows from another failure, when such a failure was seen.
EXPLAINED = 0.08
#: A parent's notice of a child's death may be printed some lines before the child's own traceback.
NOTICE_LINES = 40
#: A refused request says nothing about a server that answers nearly all others, nor about one that ended with a failure.
FEW_REFUSED = 0.12
MANY_REQUESTS = 20
#: ... unless the refusal stands there once or twice: then it is what the person asks about, not a client's habit.
SINGULAR = 3
REFUSED_SHARE = 0.15
#: Likeness of a description below which it says nothing, and from which it counts as a strong signal.
LIKENESS_FLOOR, LIKENESS_FULL = 0.12, 0.55
#: A cause of the other phase (a startup failure on a server that serves) is still possible, but less so.
OTHER_PHASE = 0.6

#: What a person only supposes counts less where a decisive message says something else.
SUPPOSED = 0.6
#: What remains of a failure that was printed where a person to whom all works asks whether a printed line may be ignored.
ONLY_ASKED = 0.3

_FAILING = ("failure", "consequence", "wrapper")


@dataclass(frozen=True, slots=True)
class Reason:
    """One signal that held: what it was worth here, and the evidence behind it."""

    signal: Signal
    points: float
    support: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One cause with what speaks for it."""

    cause: Cause
    support: float
    reasons: tuple[Reason, ...]
    likeness: float = 0.0
    phase_differs: bool = False
    excluded_by: Exclusion | None = None

    @property
    def has_decisive(self) -> bool:
        return any(r.signal.weight == "decisive" and r.points >= POINTS["decisive"] * 0.5 for r in self.reasons)

    @property
    def messages(self) -> frozenset[str]:
        """The ids of the messages behind the reasons."""
        return frozenset(e.name[8:] for r in self.reasons for e in r.support if e.name.startswith("message:"))


@dataclass(frozen=True, slots=True)
class Order:
    """Which failure came first in the run, and which others it makes mere consequences."""

    names: frozenset[str]  # all that is there, to pass quickly over what cannot be true
    first_root: int | None  # order of the first failure that can be a root
    unrecognised: int | None  # order of the first failure that no message knows
    request_factor: float = 1.0  # what refused requests weigh, by their share of all
    ready: int | None = None  # when the server came up, in a log without failures and without a word of complaint

    def place(self, message: str, item: Evidence, kind: str) -> float:
        """The weight of one message for its place among the failures."""
        if kind == "wrapper":
            return 0.0
        if self.ready is not None and item.origin.order < self.ready and "WARNING" in item.quote:
            return EXPLAINED  # the start went through in spite of it
        roots = [o for o in (self.first_root, self.unrecognised) if o is not None]
        if kind == "consequence":
            return EXPLAINED if any(o <= item.origin.order + NOTICE_LINES for o in roots) else 0.95
        if kind == "failure" and self.first_root is not None and item.origin.order > self.first_root:
            return LATER_FAILURE
        return 1.0


def order_of(facts: Facts, catalog: Catalog) -> Order:
    """Finds the first failures of the run."""
    roots = [
        item.origin.order
        for name, items in facts.messages.items()
        if name in catalog.messages and catalog.messages[name].kind == "failure"
        for item in items
    ]
    unknown = facts.values.get("log.unrecognised")
    return Order(
        facts.names(),
        min(roots, default=None),
        unknown.origin.order if unknown is not None and unknown.state == "present" else None,
        _request_factor(facts),
        _came_up(facts),
    )


def _came_up(facts: Facts) -> int | None:
    if (
        facts.value("incident.words") != "none"
        or facts.value("log.failures") != 0
        or facts.value("log.ended") != "open"
    ):
        return None
    return max((item.origin.order for item in facts.messages.get("stage-ready", ())), default=None)


def _request_factor(facts: Facts) -> float:
    if facts.value("log.ended") == "failed":
        return FEW_REFUSED  # no refused request ends a server
    total, share = facts.value("requests.total"), facts.value("requests.refused_share")
    if (
        isinstance(total, (int, float))
        and isinstance(share, (int, float))
        and total >= MANY_REQUESTS
        and share < REFUSED_SHARE
    ):
        return FEW_REFUSED
    return 1.0


def _points(signal: Signal, support: tuple[Evidence, ...], order: Order, catalog: Catalog) -> float:
    """What a true signal is worth: by the best placed of the failures it rests on; requests by their share."""
    places = []
    factor = 1.0
    for item in support:
        if not item.name.startswith("message:"):
            continue
        message = catalog.messages.get(item.name[8:])
        if message is None:
            continue
        if message.kind in _FAILING:
            places.append(order.place(message.id, item, message.kind))
        elif message.kind == "request" and item.count > SINGULAR:
            factor = min(factor, order.request_factor)
    return POINTS[signal.weight] * signal.share * (max(places) if places else 1.0) * factor


def likeness_points(score: float) -> float:
    """Likeness of the description, on the scale of the other signals: never more than a strong one."""
    share = (score - LIKENESS_FLOOR) / (LIKENESS_FULL - LIKENESS_FLOOR)
    return POINTS["strong"] * min(1.0, max(0.0, share))


def weigh(
    cause: Cause,
    facts: Facts,
    catalog: Catalog,
    order: Order,
    likeness: float,
    hidden: frozenset[str] = frozenset(),
    more: Sequence[Signal] = (),
) -> Candidate:
    """Supports one cause; messages in ``hidden`` are explained by another cause and count for nothing here.

    ``more`` are signals that do not stand in the cause's file: those of known defects of this version.
    """
    reasons: list[Reason] = []
    for signal in (*cause.signals, *more):
        if signal.when is None:
            points = likeness_points(likeness)
            if points > 0:
                reasons.append(Reason(signal, points, ()))
            continue
        if not signal.needs <= order.names:
            continue
        found = judge(signal.when, facts)
        if found.truth is not True:
            continue
        if hidden and any(e.name[8:] in hidden for e in found.support if e.name.startswith("message:")):
            continue
        points = _points(signal, found.support, order, catalog)
        if points > 0:
            reasons.append(Reason(signal, points, found.support))
    reasons.sort(key=lambda r: -r.points)
    heaviest: dict[str, Reason] = {}
    counted: list[Reason] = []
    for reason in reasons:
        group = reason.signal.group
        if group is None or group not in heaviest:
            counted.append(reason)
        if group is not None:
            heaviest.setdefault(group, reason)
    support = sum(r.points * (DIMINISHING[i] if i < len(DIMINISHING) else 0.0) for i, r in enumerate(counted))
    differs = _phase_differs(cause, facts, counted)
    excluded = next((e for e in cause.ruled_out if judge(e.when, facts).truth is True), None) if support > 0 else None
    return Candidate(cause, support * (OTHER_PHASE if differs else 1.0), tuple(counted), likeness, differs, excluded)


def _may_hold(cause: Cause, order: Order, likeness: float) -> bool:
    """Whether any signal can be true; of a hundred causes nearly all are done with here."""
    known = cause.clues is None or not cause.clues.isdisjoint(order.names)
    return known or likeness_points(likeness) > 0


def candidates(
    facts: Facts, catalog: Catalog, likeness: list[Likeness], more: Mapping[str, Sequence[Signal]] | None = None
) -> list[Candidate]:
    """All causes with any support, best first; those ruled out come with ``excluded_by`` set, after the others.

    ``more`` maps causes to signals of known defects (:mod:`assistant.diagnosis.defects`).
    """
    more = more or {}
    order = order_of(facts, catalog)
    alike: Mapping[str, float] = {item.cause: item.score for item in likeness}
    # Something harmless beside a failure explains nothing, and nobody asked about it who gave a whole log.
    normal = facts.asked and not facts.value("log.failures")
    found = [
        weigh(cause, facts, catalog, order, alike.get(cause.id, 0.0), more=more.get(cause.id, ()))
        for cause in catalog.causes.values()
        if (normal or not cause.is_normal) and (cause.id in more or _may_hold(cause, order, alike.get(cause.id, 0.0)))
    ]
    found = [c for c in found if c.support > 0]
    if normal and facts.value("incident.only_asks"):  # the printed words of trouble are no trouble then
        found = [
            replace(c, support=c.support * ONLY_ASKED) if c.messages and not c.cause.is_normal else c for c in found
        ]
    found = _discount_suppositions(found)
    found.sort(key=_rank)
    found = _explain_away(found, facts, catalog, order, alike, more)
    found.sort(key=_rank)
    return found


def _phase_differs(cause: Cause, facts: Facts, reasons: list[Reason]) -> bool:
    """Whether the cause belongs to the other phase. What a person says of the phase yields to a decisive message."""
    phase = facts.values.get("incident.phase")
    if phase is None or phase.state != "present" or cause.begins == "any" or phase.value == cause.begins:
        return False
    return phase.origin.line is not None or not any(printed(r) and r.signal.weight == "decisive" for r in reasons)


def printed(reason: Reason) -> bool:
    """Whether a reason rests on what a program printed or a tool measured, at least in part."""
    return any(e.origin.line is not None or e.origin.source not in ("text", "person") for e in reason.support)


def _is_decided(candidate: Candidate) -> bool:
    return candidate.excluded_by is None and any(
        r.points >= POINTS["decisive"] and any(e.name.startswith("message:") for e in r.support)
        for r in candidate.reasons
    )


def _discount_suppositions(found: list[Candidate]) -> list[Candidate]:
    """People who paste a log often add what they suspect. Beside a decisive message that is a guess among others."""
    if not any(map(_is_decided, found)):
        return found
    return [
        candidate if any(map(printed, candidate.reasons)) else replace(candidate, support=candidate.support * SUPPOSED)
        for candidate in found
    ]


def _rank(candidate: Candidate) -> tuple[bool, float, int, str]:
    first = min((e.origin.order for r in candidate.reasons for e in r.support), default=1 << 60)
    return (candidate.excluded_by is not None, -round(candidate.support, 6), first, candidate.cause.id)


def _explain_away(
    found: list[Candidate],
    facts: Facts,
    catalog: Catalog,
    order: Order,
    alike: Mapping[str, float],
    more: Mapping[str, Sequence[Signal]],
) -> list[Candidate]:
    """A message that a well supported cause explains counts for no other cause, if that cause was seen no later."""
    for leader in [c for c in found if c.excluded_by is None and c.support >= POINTS["strong"]][:4]:
        explained = frozenset(leader.cause.explains) - leader.messages
        if not explained:
            continue
        found = [
            other
            if other.cause.id == leader.cause.id or not (other.messages & explained) or other.support > leader.support
            else weigh(
                other.cause,
                facts,
                catalog,
                order,
                alike.get(other.cause.id, 0.0),
                explained,
                more.get(other.cause.id, ()),
            )
            for other in found
        ]
    return [c for c in found if c.support > 0]
