"""One database, SQLite or PostgreSQL: how it is opened, and what its errors mean in words.

SQLite runs in WAL mode with full synchronisation, so what was committed survives a killed process and a lost power
supply; every writing transaction takes the lock at its beginning (``BEGIN IMMEDIATE``), because one that starts by
reading and then wants to write fails at once when another got in between. PostgreSQL gets timeouts for connecting,
waiting for locks and whole statements, so a database that hangs costs a few seconds and not an answer.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from assistant.settings import Settings, state_folder

_SQLITE_NOW = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"
_POSTGRES_NOW = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


#: Pieces of work that share a transaction at most.
_MOST_TOGETHER = 64
Result = TypeVar("Result")


class _Work:
    """A piece of work that waits for its transaction; ``done`` says that ``result`` or ``error`` is final."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[sa.Connection], Any]) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def do(self, connection: sa.Connection) -> None:
        try:
            self.result = self.work(connection)
        except Exception as error:
            self.error = error
            raise


class StoreError(Exception):
    """Something could not be kept or found. The message is a sentence."""


class NotFoundError(StoreError):
    """There is nothing with this id."""


class Database:
    """Connections to one database. ``url`` is ``sqlite:///path`` or ``postgresql://user:password@host/name``.

    ``timeout_s`` is how many seconds a caller waits for a connection, for a lock and for a statement. Opening is lazy;
    :class:`StoreError` is raised where it is used.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self.url = _read_url(url)
        self.timeout_s = timeout_s
        #: Is told of every transaction: ``read`` or ``write``, its seconds, and whether it failed.
        self.observer: Callable[[str, float, bool], None] | None = None
        self.is_postgres = self.url.get_backend_name() == "postgresql"
        self._engine = self._postgres() if self.is_postgres else self._sqlite()
        self._clock = sa.select(self.now_ms)
        self._turn = threading.Lock()
        self._waiting: deque[_Work] = deque()

    @property
    def path(self) -> Path | None:
        """The SQLite file, None for PostgreSQL."""
        return None if self.is_postgres else Path(str(self.url.database))

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def now_ms(self) -> sa.TextClause:
        """The database's clock in milliseconds since 1970, as SQL: one clock for all processes and machines."""
        return sa.text(_POSTGRES_NOW if self.is_postgres else _SQLITE_NOW)

    def clock(self, connection: sa.Connection) -> int:
        """The database's clock in milliseconds since 1970."""
        return int(connection.execute(self._clock).scalar_one())

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that is committed when the block ends well. Raises :class:`StoreError`."""
        with self._in_words("write"), self._our_turn(), self._engine.begin() as connection:
            yield connection

    def together(self, work: Callable[[sa.Connection], Result]) -> Result:
        """What ``work`` returns, committed. Raises :class:`StoreError` and what ``work`` raises.

        Where a file has one writer at a time and each commit waits for the disk, those who wait meanwhile are done in
        one transaction by the next of them, whose commit is everybody's. Where a piece of work fails, all of them are
        done once more and kept apart, so ``work`` must change nothing but the database.
        """
        if self.is_postgres:
            with self.write() as connection:
                return work(connection)
        mine = _Work(work)
        self._waiting.append(mine)
        with self._in_words("write"):
            try:
                with self._our_turn():
                    while not mine.done:
                        self._do_waiting()
            except BaseException:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(mine)
                raise
            if mine.error is not None:
                raise mine.error
        found: Result = mine.result
        return found

    def _do_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_TOGETHER))]
        try:
            try:
                self._do(batch)
            except Exception:
                # Nearly every batch ends well, so savepoints are made only where one piece has failed and the others
                # must not: their work is done anew, what was done before is rolled back.
                if len(batch) == 1 or not any(item.error for item in batch):
                    raise
                self._do(batch, apart=True)
        except BaseException as error:
            for item in batch:
                item.error = item.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for item in batch:
                item.done = True

    def _do(self, batch: list[_Work], *, apart: bool = False) -> None:
        """Do the work of ``batch`` in one transaction; ``apart``: so that what fails leaves the others alone."""
        with self._engine.begin() as connection:
            for item in batch:
                item.error = None
                if apart:
                    # Its own error is raised where the work came from; what the rollback adds to it says less.
                    with contextlib.suppress(Exception), connection.begin_nested():
                        item.do(connection)
                else:
                    item.do(connection)

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the whole database and changes nothing. Raises :class:`StoreError`."""
        with self._in_words("read"), self._engine.connect() as plain:
            options: dict[str, Any] = (
                {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                if self.is_postgres
                else {"only_reads": True}
            )
            connection = plain.execution_options(**options)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _our_turn(self) -> Iterator[None]:
        """One writer of this process at a time: SQLite has one place anyway, and whoever finds it taken sleeps there
        for up to 100 ms between two looks."""
        if self.is_postgres:
            yield
            return
        if not self._turn.acquire(timeout=self.timeout_s):
            raise sqlite3.OperationalError("database is locked")
        try:
            yield
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _in_words(self, kind: str) -> Iterator[None]:
        began, failed = time.monotonic(), True
        try:
            yield
            failed = False
        except StoreError:
            failed = False  # the caller's own: what was asked for is not there, and the database said so
            raise
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StoreError(f"The database {self.shown} {_what_happened(error)}.") from error
        except OSError as error:
            raise StoreError(f"The database {self.shown} cannot be opened: {error.strerror or error}.") from error
        finally:
            if self.observer is not None:
                self.observer(kind, time.monotonic() - began, failed)

    def _sqlite(self) -> sa.Engine:
        engine = sa.create_engine(
            self.url, connect_args={"timeout": self.timeout_s, "check_same_thread": False}, pool_timeout=self.timeout_s
        )
        path, milliseconds = Path(str(self.url.database)), int(self.timeout_s * 1000)

        @sa.event.listens_for(engine, "do_connect")
        def private_file(*_: Any) -> None:
            _make_private(path)

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, _: Any) -> None:
            connection.isolation_level = None  # this module says BEGIN itself
            connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            _use_wal(connection, self.timeout_s)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            only_reads = connection.get_execution_options().get("only_reads")
            connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

        return engine

    def _postgres(self) -> sa.Engine:
        milliseconds = int(self.timeout_s * 1000)
        arguments = {
            "connect_timeout": max(2, math.ceil(self.timeout_s)),  # libpq takes whole seconds and no fewer than 2
            "tcp_user_timeout": milliseconds,
            "application_name": "vllm-diagnose",
            "options": f"-c lock_timeout={milliseconds} -c statement_timeout={milliseconds * 4}"
            f" -c idle_in_transaction_session_timeout={milliseconds * 12}",
        }
        try:
            return sa.create_engine(
                self.url,
                connect_args=arguments,
                pool_pre_ping=True,
                pool_timeout=self.timeout_s,
                pool_recycle=1800,
            )
        except ImportError:
            raise StoreError(
                "PostgreSQL needs the package psycopg; install vllm-diagnose with its extra postgres."
            ) from None


def open_database(settings: Settings) -> Database:
    """The database that the settings name; by default ``store.db`` in the state folder. Raises :class:`StoreError`."""
    url = settings.text("store.url") or f"sqlite:///{state_folder() / 'store.db'}"
    return Database(url, timeout_s=settings.number("store.timeout_s"))


def _read_url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except SQLAlchemyError:
        raise StoreError("store.url is not a database URL; write sqlite:///path or postgresql://….") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if not url.database or url.database == ":memory:":
            raise StoreError("store.url names no file; write sqlite:///path with three or four slashes.")
        return url
    raise StoreError(f"store.url begins with {url.drivername}://; only sqlite and postgresql are known.")


def _make_private(path: Path) -> None:
    """Create the file so that only its owner can read it: incidents hold pieces of logs."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _use_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Switch the file to WAL once. The switch does not wait for locks as other statements do, so this does."""
    until = time.monotonic() + timeout_s
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _what_happened(error: BaseException) -> str:
    """The end of the sentence "The database … ". What a driver prints can hold parameters, so it is not passed on."""
    if isinstance(error, PoolTimeoutError):
        return "has no free connection"
    original = error.orig if isinstance(error, DBAPIError) else error
    text = str(original).lower()
    for words, meaning in (
        ("database or disk is full", "cannot grow: the disk is full"),
        ("no space left", "cannot grow: the disk is full"),
        ("readonly database", "is read-only"),
        ("read-only", "is read-only"),
        ("unable to open database file", "cannot be opened"),
        ("database is locked", "is locked by another process"),
        ("not a database", "is not a SQLite database"),
        ("malformed", "is damaged"),
        ("disk i/o error", "cannot be read or written: the disk reports an error"),
        ("timeout", "did not answer in time"),
        ("canceling statement", "did not answer in time"),
        ("password authentication", "refuses the user or password"),
        ("does not exist", "lacks a table, database or user that was expected"),
        ("no such table", "lacks a table that was expected"),
        ("connection", "cannot be reached"),
    ):
        if words in text:
            return meaning
    return f"reports {type(original).__name__}"
