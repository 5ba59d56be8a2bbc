"""Opening the configured database, brought to the newest schema."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from assistant.settings import Settings
from assistant.store.database import Database, open_database
from assistant.store.migrations import migrate


@contextlib.contextmanager
def open_store(settings: Settings) -> Iterator[Database]:
    """The configured database, migrated if need be, closed at the end. Raises ``StoreError``."""
    database = open_database(settings)
    try:
        migrate(database, backup_folder=backup_folder(settings))
        yield database
    finally:
        database.close()


def backup_folder(settings: Settings) -> Path | None:
    """Where backups go; None means the state folder's ``backups``."""
    folder = settings.text("store.backup_folder")
    return Path(folder) if folder else None
