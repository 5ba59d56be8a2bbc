"""Three-valued truth: unknown is never read as false."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from assistant.diagnosis.truth import Facts, judge
from tools.evidence import Evidence, Origin

HERE = Origin("server.log", line=3)


def facts(*, exhaustive: bool = False, has_text: bool = False, **values: Any) -> Facts:
    """Facts with the given observables; dots are written as double underscores."""
    out = Facts(exhaustive=exhaustive, has_text=has_text)
    for name, value in values.items():
        key = name.replace("__", ".")
        out.values[key] = Evidence(key, "present", value, HERE)
    return out


TRUE = {"memory.free_gib": {"above": 1}}
FALSE = {"memory.free_gib": {"above": 99}}
UNKNOWN = {"memory.total_gib": {"above": 1}}
GIVEN = facts(memory__free_gib=10.0)


@pytest.mark.parametrize(("part", "truth"), [(TRUE, True), (FALSE, False), (UNKNOWN, None)])
def test_not_turns_known_truth_only(part: dict[str, Any], truth: bool | None) -> None:
    assert judge(part, GIVEN).truth is truth
    assert judge({"not": part}, GIVEN).truth is (None if truth is None else not truth)


def test_all_and_any_follow_the_strong_kleene_tables() -> None:
    parts = {True: TRUE, False: FALSE, None: UNKNOWN}
    for a, b in itertools.product(parts, repeat=2):
        both = judge({"all": [parts[a], parts[b]]}, GIVEN).truth
        either = judge({"any": [parts[a], parts[b]]}, GIVEN).truth
        assert both is (False if False in (a, b) else None if None in (a, b) else True)
        assert either is (True if True in (a, b) else None if None in (a, b) else False)


def test_a_message_that_was_not_seen_is_false_only_in_a_log_read_from_its_start() -> None:
    assert judge({"message": "x"}, facts(exhaustive=True)).truth is False
    assert judge({"message": "x"}, facts()).truth is None


def test_what_was_not_said_is_unknown_without_any_words() -> None:
    assert judge({"said": "slow"}, facts()).truth is None
    assert judge({"said": "slow"}, facts(has_text=True)).truth is False


def test_after_compares_places_of_one_source_only() -> None:
    def seen(name: str, order: int, source: str = "server.log", last: int = 0) -> Evidence:
        return Evidence(name, "present", 1, Origin(source, line=order, order=order), last=last)

    late, early = {"memory.free_gib": {"above": 0}}, {"memory.total_gib": {"above": 0}}
    order = {"after": [late, early]}
    out = Facts()
    out.values["memory.free_gib"] = seen("memory.free_gib", 9)
    assert judge(order, out).truth is None  # nobody knows whether the other was there
    out.values["memory.total_gib"] = seen("memory.total_gib", 4)
    assert judge(order, out).truth is True
    out.values["memory.total_gib"] = seen("memory.total_gib", 4, last=12)  # it came back later
    assert judge(order, out).truth is False
    out.values["memory.total_gib"] = seen("memory.total_gib", 4, "other.log")
    assert judge(order, out).truth is None


@pytest.mark.parametrize(
    ("test", "value", "truth"),
    [
        ({"is": "startup"}, "startup", True),
        ({"is": 0}, 0, True),
        ({"is": True}, "True", True),
        ({"is_not": "a"}, "b", True),
        ({"one_of": [8, 16]}, 16, True),
        ({"at_most": 3, "at_least": 1}, 2, True),
        ({"above": 3}, 3, False),
        ({"below": 3}, "not a number", False),
        ({"matches": "Assertion|Index"}, "IndexError: list index out of range", True),
    ],
)
def test_comparisons(test: dict[str, Any], value: Any, truth: bool) -> None:
    assert judge({"log.exception": test}, facts(log__exception=value)).truth is truth


def test_evidence_marked_unknown_stays_unknown_and_absent_is_false() -> None:
    given = Facts()
    given.values["gpu.xid"] = Evidence("gpu.xid", "unknown", None, HERE, why_unknown="the kernel log was not read")
    given.values["gpu.name"] = Evidence("gpu.name", "absent", None, HERE)
    assert judge({"gpu.xid": {"is": 79}}, given).truth is None
    assert judge({"gpu.name": {"is": "A100"}}, given).truth is False
    assert judge({"gpu.name": {"absent": True}}, given).truth is True


def test_unknown_evidence_must_say_why() -> None:
    with pytest.raises(ValueError, match="does not say why"):
        Evidence("gpu.xid", "unknown", None, HERE)
