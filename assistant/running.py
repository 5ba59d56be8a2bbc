"""The life of a service: its store and reading processes are there before it is asked, and what it does by the way ends with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from assistant.readers import InProcess, Readers
from assistant.service import Service
from knowledge.catalog import load

if TYPE_CHECKING:
    from assistant.settings import Settings

#: Seconds after which memory that large requests left is given back to the system.
TIDY_EVERY_S = 15.0
#: Seconds between two clearings of what is old enough to go.
PRUNE_EVERY_S = 6 * 3600.0


@contextlib.asynccontextmanager
async def opened(
    settings: Settings, *, work: bool = True, readers: Readers | InProcess | None = None
) -> AsyncIterator[Service]:
    """A service that is ready to be asked; with ``work`` it also carries jobs out and clears old ones.

    ``readers`` are closed with the service; without any it makes its own. Raises ``StoreError``, ``SettingsError`` and
    ``KnowledgeError`` before anything is served.
    """
    from assistant.store.database import open_database
    from assistant.store.migrations import migrate
    from assistant.store.opening import backup_folder
    from tools.registry import discover

    catalog = load()
    database = open_database(settings)
    service: Service | None = None
    worker: asyncio.Task[None] | None = None
    others: list[asyncio.Task[None]] = []
    stop = asyncio.Event()
    try:
        await asyncio.to_thread(migrate, database, backup_folder=backup_folder(settings))
        readers = readers or Readers(settings.whole("server.readers"), deadline_s=settings.number("deadline_s"))
        service = Service(settings, catalog, database, readers)
        if isinstance(readers, Readers):
            others.append(asyncio.create_task(_tidy()))
        if work:
            discover()
            worker = service.work(stop)
            others.append(asyncio.create_task(_prune(service, stop)))
        yield service
    finally:
        stop.set()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, *([worker] if worker else ()), return_exceptions=True)
        if service is not None:
            service.close()
        if readers is not None:
            await asyncio.to_thread(readers.close)
        database.close()


async def _tidy() -> None:
    """Give memory back now and then; a server lives for months, and its largest request should not last as long."""
    from assistant.reading_process import give_back_memory

    while True:
        await asyncio.sleep(TIDY_EVERY_S)
        await asyncio.to_thread(give_back_memory)


async def _prune(service: Service, stop: asyncio.Event) -> None:
    """Clear what is old, at the beginning and every few hours; a store that is away is tried again later."""
    from assistant.store.database import StoreError
    from assistant.store.retention import prune

    while not stop.is_set():
        with contextlib.suppress(StoreError):
            await service.in_thread(prune, service.database, service.settings)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PRUNE_EVERY_S):
                await stop.wait()
