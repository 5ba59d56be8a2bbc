"""Every store test runs on SQLite and on PostgreSQL, whose server is started for the tests and ends with them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from assistant.store.database import Database
from assistant.store.migrations import migrate

ROOT = Path(__file__).resolve().parents[3]
INITDB = "-U tester -A trust -E UTF8 --locale=C --no-sync"
SERVER = "-F -c listen_addresses=127.0.0.1 -c max_connections=60 -c jit=off"
UNPACKED = ROOT / ".lab" / "postgres"


def _installed() -> tuple[Path, Path] | None:
    """(programs, share) of the newest PostgreSQL that Debian's package or an earlier unpacking left, 15 preferred."""
    for root in (Path("/"), UNPACKED):
        found = sorted(root.glob("usr/lib/postgresql/*/bin/initdb"), key=lambda p: (p.parts[-3] != "15", p.parts[-3]))
        if found:
            return found[0].parent, root / "usr/share/postgresql" / found[0].parts[-3]
    return None


def _unpack() -> str:
    """Fetch Debian's package and unpack it into the checkout, without installing anything; returns why it failed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return "PostgreSQL is not installed and this is not Debian"
    with tempfile.TemporaryDirectory() as folder:
        fetched = subprocess.run(
            ["apt-get", "download", "postgresql-15", "libpq5"],
            cwd=folder,
            capture_output=True,
            timeout=180,
            check=False,
        )
        if fetched.returncode:
            return "PostgreSQL is not installed and Debian's package cannot be fetched"
        UNPACKED.mkdir(parents=True, exist_ok=True)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(UNPACKED)], check=True, timeout=120)
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL, without a database, of a PostgreSQL server that belongs to this test run."""
    pytest.importorskip("psycopg")
    found = _installed()
    if found is None:
        why = _unpack()
        found = _installed()
        if found is None:
            pytest.skip(why or "the unpacked PostgreSQL lacks its programs")
    programs, share = found
    home = Path(tempfile.mkdtemp(prefix="vllm-diagnose-postgres-"))
    home.chmod(0o755)
    data, port = home / "data", _free_port()
    data.mkdir()
    before: list[str] = []
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
    if programs.is_relative_to(UNPACKED):
        libraries = UNPACKED / "usr/lib" / f"{os.uname().machine}-linux-gnu"
        environment["LD_LIBRARY_PATH"] = str(libraries)
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        before = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(data, "nobody", "nogroup")
    server: subprocess.Popen[bytes] | None = None
    try:
        made = subprocess.run(
            [*before, str(programs / "initdb"), "-D", str(data), "-L", str(share), *INITDB.split()],
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"initdb failed: {made.stderr.strip().splitlines()[-1:]}")
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [*before, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", "", *SERVER.split()],
                env=environment,
                cwd=home,
                stdout=log,
                stderr=log,
            )
        url = f"postgresql+psycopg://tester@127.0.0.1:{port}"
        _wait_for(url, server, home / "log")
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
            server.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    engine = sa.create_engine(f"{url}/postgres", connect_args={"connect_timeout": 2})
    until = time.monotonic() + 60
    while True:
        try:
            engine.connect().close()
            engine.dispose()
            return
        except sa.exc.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                pytest.skip(f"PostgreSQL did not start: {log.read_text('utf-8', 'replace')[-300:]}")
            time.sleep(0.1)


@contextlib.contextmanager
def _postgres_database(server: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    engine = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield f"{server}/{name}".replace("+psycopg", "")
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()


MakeUrl = Callable[[], str]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeUrl]:
    """Makes the URL of one more empty database."""
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            yield lambda: f"sqlite:///{tmp_path / secrets.token_hex(4)}.db"
        else:
            server = request.getfixturevalue("postgres_server")
            yield lambda: stack.enter_context(_postgres_database(server))


@pytest.fixture
def url(new_url: MakeUrl) -> str:
    """The URL of an empty database."""
    return new_url()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A database with all tables."""
    database = Database(url)
    migrate(database)
    yield database
    database.close()
