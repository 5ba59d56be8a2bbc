"""Writers of one SQLite file wait for each other and not for the disk."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import sqlalchemy as sa

from assistant.store.database import Database, StoreError
from assistant.store.migrations import migrate


def test_work_that_shares_a_transaction_fails_alone_and_is_kept_together(tmp_path: Path) -> None:
    """Those who wait for the one writer are committed by the next of them; one that fails takes nobody with it."""

    database = Database(f"sqlite:///{tmp_path}/store.db")
    migrate(database)
    held, go = threading.Event(), threading.Event()
    commits: list[int] = []
    sa.event.listen(database._engine, "commit", lambda _: commits.append(1))
    ended: dict[int, object] = {}

    def hold(connection: sa.Connection) -> None:
        held.set()
        go.wait(20)

    def insert(number: int) -> None:
        def work(connection: sa.Connection) -> int:
            connection.execute(sa.text("INSERT INTO meta_test VALUES (:n)"), {"n": number % 90})
            return number

        try:
            ended[number] = database.together(work)
        except StoreError as error:
            ended[number] = error

    with database.write() as connection:
        connection.execute(sa.text("CREATE TABLE meta_test (n INTEGER PRIMARY KEY)"))
    first = threading.Thread(target=database.together, args=(hold,))
    first.start()
    assert held.wait(20)
    others = [threading.Thread(target=insert, args=(number,)) for number in range(100)]
    for thread in others:
        thread.start()
    while len(database._waiting) < len(others):
        time.sleep(0.01)
    commits.clear()
    go.set()
    for thread in [first, *others]:
        thread.join(20)
    failed = [number for number, what in ended.items() if isinstance(what, StoreError)]
    assert len(ended) == 100 and len(failed) == 10  # each of 0 to 9 came twice
    assert all(what == number for number, what in ended.items() if number not in failed)
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT COUNT(*) FROM meta_test")).scalar() == 90
    assert len(commits) <= 4
    database.close()
