"""What happens once, and conversations that several go on with."""

from __future__ import annotations

import threading
import time

import pytest

from assistant.store.claims import Claims
from assistant.store.conversations import Conversations
from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.incidents import StaleRevisionError


def test_exactly_one_of_many_is_first(database: Database) -> None:
    claims, first, barrier = Claims(database), [], threading.Barrier(8)

    def try_it(number: int) -> None:
        barrier.wait()
        if claims.take("event", str(number), keep_s=60) is None:
            first.append(number)

    threads = [threading.Thread(target=try_it, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(first) == 1
    assert claims.take("event", "late", keep_s=60) == str(first[0])
    assert claims.get("event") == str(first[0])


def test_a_claim_ends_is_changed_and_given_up(database: Database) -> None:
    claims = Claims(database)
    assert claims.take("a", "1", keep_s=0.02) is None
    time.sleep(0.05)
    assert claims.get("a") is None
    assert claims.take("a", "2", keep_s=60) is None
    assert claims.put("a", "3") and claims.get("a") == "3"
    assert claims.put("a", "5", keep_s=0.02)
    time.sleep(0.05)
    assert claims.get("a") is None
    assert claims.take("a", "6", keep_s=60) is None
    claims.drop("a")
    assert claims.get("a") is None and not claims.put("a", "4")


def test_a_conversation_goes_on_from_the_revision_that_was_seen(database: Database) -> None:
    talks = Conversations(database)
    begun = talks.begin("slack", "C1:1.2", {"node": "phase", "text": "a\x00b \ud800"})
    assert talks.get(begun.id).state["node"] == "phase"
    assert talks.change(begun.id, 1, {"node": "next"}, incident="i1") == 2
    with pytest.raises(StaleRevisionError):
        talks.change(begun.id, 1, {"node": "other"})
    assert [talk.id for talk in talks.at("slack", "C1:1.2")] == [begun.id]
    assert talks.about("i1")[0].state == {"node": "next"}
    with pytest.raises(NotFoundError):
        talks.change("none", 1, {})
    with pytest.raises(StoreError, match="larger"):
        talks.begin("slack", "x", {"a": "x" * 2_000_000})
