"""Backups: one compressed text file that either kind of database can be restored from.

The file is read from a single consistent state, written beside its final name, synchronised and only then renamed, so
a file that has its name is whole. It is JSON lines: a header with the schema version, then for each table a line with
its columns and one line a row, and a last line that counts the rows.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from assistant.settings import state_folder
from assistant.store.database import Database, StoreError
from assistant.store.migrations import migrate, migrations, newest, refuse_newer, set_version, version_of

FORMAT = 1
_MARK = "vllm-diagnose-backup"
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Restored:
    """What :func:`restore` did: rows written, the schema of the backup, and a backup of what was there before."""

    rows: int
    schema: int
    replaced: Path | None


def backup_to(database: Database, folder: Path | None = None, *, label: str = "backup") -> Path:
    """Write a backup into ``folder`` (the state folder's ``backups`` unless given) and return its path.

    Raises :class:`StoreError` when the database is empty or the file cannot be written; no part of it stays then.
    """
    folder = folder or state_folder() / "backups"
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    final = folder / f"vllm-diagnose-{stamp}-{label}.jsonl.gz"
    number = 1
    while final.exists():
        number += 1
        final = folder / f"vllm-diagnose-{stamp}-{label}-{number}.jsonl.gz"
    part = final.with_name(f"{final.name}.{os.getpid()}.part")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6) as packed:
                for line in _lines(database):
                    packed.write(line)
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(final)
        _sync_folder(folder)
    except OSError as error:
        raise StoreError(f"No backup could be written to {folder}: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return final


def restore(database: Database, file: Path, *, replace: bool = False, backup_folder: Path | None = None) -> Restored:
    """Put the content of ``file`` into ``database`` and bring it to the newest schema.

    A database that holds anything is left alone unless ``replace`` is given, and is backed up first then. The file is
    read to its end before anything is touched, and everything happens in one transaction. Raises :class:`StoreError`.
    """
    header = _check(file)
    schema = int(header["schema"])
    refuse_newer(schema, newest())
    replaced = None
    with database.read() as connection:
        there = version_of(connection)
        holds = _holds_something(connection) if there else False
    if holds:
        if not replace:
            raise StoreError(
                f"The database {database.shown} is not empty; restoring replaces it, say so with --replace."
            )
        replaced = backup_to(database, backup_folder, label="before-restore")
    with database.write() as connection:
        _drop_everything(connection)
        for step in migrations()[:schema]:
            step.upgrade(connection)
        rows = _insert(connection, file)
        set_version(connection, schema)
        if database.is_postgres:
            _continue_counters(connection)
    migrate(database, take_backup=False)
    return Restored(rows, schema, replaced)


def _tables(connection: sa.Connection) -> list[sa.Table]:
    """The tables as they are, whatever their version, parents before children."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return list(metadata.sorted_tables)


def _lines(database: Database) -> Iterator[bytes]:
    rows = 0
    with database.read() as connection:
        schema = version_of(connection)
        if schema == 0:
            raise StoreError(f"The database {database.shown} is empty; there is nothing to back up.")
        yield _line({_MARK: FORMAT, "schema": schema, "created_at_ms": database.clock(connection)})
        for table in _tables(connection):
            yield _line({"table": table.name, "columns": [column.name for column in table.columns]})
            streamed = connection.execution_options(yield_per=_BATCH)
            for row in streamed.execute(sa.select(table).order_by(*table.primary_key.columns)):
                rows += 1
                yield _line(list(row))
    yield _line({"end": rows})


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parsed(file: Path) -> Iterator[Any]:
    try:
        with gzip.open(file, "rb") as packed:
            for line in packed:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise StoreError(f"The backup {file} cannot be read to its end: {error}.") from None


def _check(file: Path) -> dict[str, Any]:
    """The header of a backup whose every line could be read and whose rows are all there."""
    lines = _parsed(file)
    header = next(lines, None)
    if not isinstance(header, dict) or header.get(_MARK) != FORMAT or not isinstance(header.get("schema"), int):
        raise StoreError(f"{file} is not a backup of vllm-diagnose.")
    rows, ended = 0, None
    for value in lines:
        if isinstance(value, list):
            rows += 1
        elif "end" in value:
            ended = value["end"]
    if ended != rows:
        raise StoreError(
            f"The backup {file} is cut off: it holds {rows} rows of {ended if ended is not None else 'more'}."
        )
    return header


def _holds_something(connection: sa.Connection) -> bool:
    return any(
        connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first()
        for table in _tables(connection)
        if table.name != "meta"
    )


def _drop_everything(connection: sa.Connection) -> None:
    for table in reversed(_tables(connection)):
        table.drop(connection)


def _insert(connection: sa.Connection, file: Path) -> int:
    by_name = {table.name: table for table in _tables(connection)}
    rows, columns, batch = 0, [""], []
    table: sa.Table | None = None
    for value in _parsed(file):
        if isinstance(value, list):
            batch.append(dict(zip(columns, value, strict=True)))
            rows += 1
        if table is not None and batch and (not isinstance(value, list) or len(batch) == _BATCH):
            connection.execute(sa.insert(table), batch)
            batch = []
        if isinstance(value, dict) and "table" in value:
            table, columns = by_name.get(value["table"]), list(value["columns"])
            if table is None or not set(columns) <= set(table.columns.keys()):
                raise StoreError(
                    f"The backup {file} names the table {value['table']!r}, which its schema does not have."
                )
    return rows


def _continue_counters(connection: sa.Connection) -> None:
    """PostgreSQL counts beside its tables: after rows came with their numbers, counting goes on behind them."""
    for table in _tables(connection):
        for column in table.primary_key.columns:
            name = connection.execute(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name))).scalar()
            if name:
                last = connection.execute(sa.select(sa.func.max(column))).scalar()
                connection.execute(sa.select(sa.func.setval(name, last or 1, last is not None)))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
