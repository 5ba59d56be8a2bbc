"""Orders that come many at a time, from several replicas, some of them twice."""

from __future__ import annotations

import threading

from assistant.store.database import Database
from assistant.store.orders import Held, Order, Orders


def order(key: str) -> Order:
    return Order(key, "slack", {"asked": key})


def test_each_key_is_one_order_also_within_one_batch(database: Database) -> None:
    orders = Orders(database)
    found = orders.accept([order("a"), order("b"), order("a")], "here", 30)
    assert [held is not None for held in found] == [True, True, False]
    again = orders.accept([order("b"), order("c")], "there", 30)
    assert again[0] is None and again[1] is not None and again[1].state == {"asked": "c"}
    assert orders.accept([order("c")], "here", 30) == [None]
    assert orders.free("slack", "there", 30) == []  # all of them are held


def test_replicas_that_accept_the_same_at_once_share_it_out(database: Database) -> None:
    keys = [f"k{number}" for number in range(40)]
    taken: list[Held] = []
    barrier = threading.Barrier(4)

    def replica(number: int) -> None:
        barrier.wait()
        turned = keys[number * 10 :] + keys[: number * 10]
        taken.extend(held for held in Orders(database).accept([order(key) for key in turned], f"r{number}", 30) if held)

    threads = [threading.Thread(target=replica, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held.state["asked"] for held in taken) == sorted(keys)


def test_what_is_held_no_more_is_taken_once_and_gone_when_done(database: Database) -> None:
    orders = Orders(database)
    orders.accept([order("a")], "dead", 0)
    taken = orders.free("slack", "here", 30)
    assert [held.attempts for held in taken] == [2] and orders.free("slack", "there", 30) == []
    orders.done(taken[0])
    assert orders.free("slack", "there", 0) == []
