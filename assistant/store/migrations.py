"""Bringing a database to the form that this version uses: forwards only, one transaction each, with a backup before.

Migrations are found by their file name in ``versions/``. Two processes that start together do not disturb each other:
the second waits for the first and finds nothing left to do.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from assistant.store.database import Database, StoreError

_FILE = re.compile(r"v(\d{4})_([a-z0-9_]+)\.py")
# Any number will do as long as every process uses the same one: "vlldiag" as digits.
_POSTGRES_LOCK = 855_343_424
_META = sa.table("meta", sa.column("key", sa.Text), sa.column("value", sa.Text))


@dataclass(frozen=True, slots=True)
class Migration:
    """One step; ``number`` is the schema version that it leads to."""

    number: int
    name: str
    upgrade: Callable[[sa.Connection], None]


@dataclass(frozen=True, slots=True)
class Migrated:
    """What :func:`migrate` did: the versions before and after, and the backup if one was taken."""

    before: int
    after: int
    backup: Path | None = None


def migrations() -> tuple[Migration, ...]:
    """All steps in order. Raises :class:`RuntimeError` if a number is missing or there twice."""
    found = sorted(
        (int(match[1]), match[2], path.stem)
        for path in Path(__file__).with_name("versions").glob("v*.py")
        if (match := _FILE.fullmatch(path.name))
    )
    if [number for number, *_ in found] != list(range(1, len(found) + 1)):
        raise RuntimeError(f"the migrations are not numbered 1, 2, 3…: {[stem for *_, stem in found]}")
    package = f"{__package__}.versions"
    return tuple(
        Migration(number, name, importlib.import_module(f"{package}.{stem}").upgrade) for number, name, stem in found
    )


def newest() -> int:
    """The schema version of this program."""
    return len(migrations())


def version_of(connection: sa.Connection) -> int:
    """The schema version of a database; 0 for an empty one. Raises :class:`StoreError` for a foreign one."""
    tables = set(sa.inspect(connection).get_table_names())
    if "meta" not in tables:
        if tables:
            raise StoreError("The database holds tables of something else; give this program a database of its own.")
        return 0
    value = connection.execute(sa.select(_META.c.value).where(_META.c.key == "schema")).scalar()
    if value is None or not value.isdigit():
        raise StoreError("The database has a table meta that this program did not make.")
    return int(value)


def migrate(
    database: Database,
    *,
    backup_folder: Path | None = None,
    take_backup: bool = True,
    up_to: int | None = None,
    steps: tuple[Migration, ...] | None = None,
) -> Migrated:
    """Bring ``database`` to the newest schema; an up-to-date one costs a single look.

    A database that already holds something is backed up first, into ``backup_folder``; when that fails nothing is
    changed. Raises :class:`StoreError`, also for a database made by a newer version.
    """
    steps = migrations() if steps is None else steps
    goal = len(steps) if up_to is None else up_to
    with database.read() as connection:
        before = version_of(connection)
    refuse_newer(before, goal if up_to is None else before)
    if before >= goal:
        return Migrated(before, before)
    backup = None
    if before > 0 and take_backup:
        from assistant.store.backup import backup_to

        backup = backup_to(database, backup_folder, label=f"before-schema-{goal}")
    for step in steps[before:goal]:
        with database.write() as connection:
            if database.is_postgres:
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})"))
            current = version_of(connection)
            if current >= step.number:
                continue  # another process was faster
            step.upgrade(connection)
            set_version(connection, step.number)
    return Migrated(before, goal, backup)


def refuse_newer(version: int, known: int) -> None:
    """Raise :class:`StoreError` when the database was made by a newer program."""
    if version > known:
        raise StoreError(
            f"The database has schema {version} and this program knows {known}; use a newer vllm-diagnose, "
            "or restore the backup that was taken before the upgrade."
        )


def set_version(connection: sa.Connection, number: int) -> None:
    """Write the schema version down."""
    connection.execute(sa.delete(_META).where(_META.c.key == "schema"))
    connection.execute(sa.insert(_META).values(key="schema", value=str(number)))
