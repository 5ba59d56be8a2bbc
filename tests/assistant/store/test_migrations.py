"""Migrations: forwards, in one transaction each, with a backup before, and together they make what the code uses."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from assistant.store.backup import restore
from assistant.store.database import Database, StoreError
from assistant.store.incidents import Incidents
from assistant.store.migrations import Migration, migrate, migrations, newest, version_of
from assistant.store.schema import METADATA


def shape(connection: sa.Connection) -> dict[str, object]:
    """Everything about the tables that a difference would matter in."""
    inspector = sa.inspect(connection)
    return {
        table: (
            sorted((c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)),
            sorted(inspector.get_pk_constraint(table)["constrained_columns"]),
            sorted((tuple(i["column_names"]), bool(i["unique"])) for i in inspector.get_indexes(table)),
            sorted(tuple(u["column_names"]) for u in inspector.get_unique_constraints(table)),
            sorted((tuple(f["constrained_columns"]), f["referred_table"], f["options"].get("ondelete"))
                   for f in inspector.get_foreign_keys(table)),
        )
        for table in sorted(inspector.get_table_names())
    }  # fmt: skip


def test_the_migrations_make_what_the_schema_says(url: str, new_url: object) -> None:
    by_steps, at_once = Database(url), Database(new_url())  # type: ignore[operator]
    assert migrate(by_steps).after == newest() == len(migrations())
    with at_once.write() as connection:
        METADATA.create_all(connection)
    with by_steps.read() as one, at_once.read() as other:
        assert shape(one) == shape(other)
    by_steps.close()
    at_once.close()


def test_migrating_twice_changes_nothing(database: Database) -> None:
    assert migrate(database) == migrate(database)
    assert migrate(database).backup is None


def _later(body: object) -> tuple[Migration, ...]:
    return (*migrations(), Migration(newest() + 1, "later", body))  # type: ignore[arg-type]


def test_a_step_takes_a_backup_first_and_the_backup_restores(
    database: Database, new_url: object, tmp_path: Path
) -> None:
    incident = Incidents(database).save({"verdict": "unknown", "summary": "沒有 \ud800 \0"}, [{"name": "x"}])

    def upgrade(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE incidents ADD COLUMN later TEXT"))

    done = migrate(database, steps=_later(upgrade), backup_folder=tmp_path / "backups")
    assert (done.before, done.after) == (newest(), newest() + 1)
    assert done.backup is not None and "before-schema" in done.backup.name
    assert done.backup.stat().st_mode & 0o077 == 0
    other = Database(new_url())  # type: ignore[operator]
    restored = restore(other, done.backup)
    assert restored.schema == newest() and restored.replaced is None
    assert Incidents(other).get(incident).evidence == [{"name": "x"}]
    other.close()


def test_a_step_that_fails_leaves_everything_as_it_was(database: Database, tmp_path: Path) -> None:
    Incidents(database).save({"verdict": "unknown"})

    def upgrade(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE half (x INTEGER)"))
        connection.execute(sa.text("DELETE FROM incidents"))
        connection.execute(sa.text("ALTER TABLE nowhere ADD COLUMN x TEXT"))

    with pytest.raises(StoreError):
        migrate(database, steps=_later(upgrade), backup_folder=tmp_path)
    with database.read() as connection:
        assert version_of(connection) == newest()
        assert "half" not in sa.inspect(connection).get_table_names()
    assert len(Incidents(database).recent()) == 1


def test_without_room_for_the_backup_nothing_is_changed(database: Database, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StoreError, match="No backup could be written"):
        migrate(database, steps=_later(lambda connection: None), backup_folder=blocked / "below")
    with database.read() as connection:
        assert version_of(connection) == newest()


def test_a_newer_database_is_refused(database: Database) -> None:
    with pytest.raises(StoreError, match="use a newer vllm-diagnose"):
        migrate(database, steps=migrations()[:-1])


def test_a_foreign_database_is_refused(url: str) -> None:
    database = Database(url)
    with database.write() as connection:
        connection.execute(sa.text("CREATE TABLE customers (x INTEGER)"))
    with pytest.raises(StoreError, match="a database of its own"):
        migrate(database)
    database.close()


def test_processes_that_start_together_migrate_once(url: str) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def work() -> None:
        database = Database(url)
        try:
            start.wait()
            migrate(database)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
