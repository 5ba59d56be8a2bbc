"""A product server on loopback for the tests of the MCP face: real sockets, a store of its own, a token of each role."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.settings import load
from assistant.store.database import open_database
from assistant.store.migrations import migrate
from tests.assistant.faces.inside import Inside

ROOT = Path(__file__).parents[4]
LAB = ROOT / "tests" / "data" / "lab"


@dataclass(frozen=True)
class Served:
    """A running server: the address of ``/mcp``, tokens by role, and its application."""

    url: str
    tokens: dict[str, str]
    app: Any

    def headers(self, role: str) -> dict[str, str]:
        """What a client of ``role`` sends along."""
        return {"Authorization": f"Bearer {self.tokens[role]}"}


@contextlib.contextmanager
def serving(folder: Path, *, faces: tuple[Callable[..., None], ...] = (), **settings: str) -> Iterator[Served]:
    """Run ``create_app`` until the block ends; ``settings`` are variables without their common beginning."""
    environment = {
        "HOME": str(folder),
        "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
        "VLLM_DIAGNOSE_SERVER_READERS": "1",
        "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "100000",
        **{f"VLLM_DIAGNOSE_{name}": value for name, value in settings.items()},
    }
    loaded = load(environment)
    database = open_database(loaded)
    migrate(database)
    made = Tokens(database)
    tokens = {role.name: made.create(role.name, role)[0] for role in Role}
    tokens["other"] = made.create("other", Role.operator)[0]
    database.close()
    server = Inside(loaded, graceful_s=2, faces=faces)
    try:
        yield Served(f"{server.address}/mcp", tokens, server.app)
    finally:
        server.stop()
