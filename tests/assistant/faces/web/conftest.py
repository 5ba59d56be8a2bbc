"""A running server with pages: two targets, a site's own runbooks, tokens, and everything kept in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.settings import load
from assistant.store.database import open_database
from assistant.store.migrations import migrate
from tests.assistant.faces.inside import Inside

LAB = Path(__file__).parents[3] / "data" / "lab"
#: Markup in the places where strangers write.
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'>&{{7*7}}"
SITE = f"""# Our gateway {{#top}}

Call **the desk**. {HOSTILE}

<script>alert(3)</script>

[good](https://example.com/x) [bad](javascript:alert(4)) [worse](data:text/html,<b>) [local](/runbooks) ![p](https://example.com/p.png)

| a | b |
|---|---|
| 1 | `memory/no-room-for-kv-cache` |

## Second part

```
<b>not bold</b>
```
"""


@dataclass
class Site:
    """A running server; ``visitor`` makes a client that is signed in as one of ``tokens``."""

    address: str
    tokens: dict[str, str]
    app: object
    folder: Path
    clients: list[httpx.Client] = field(default_factory=list)

    def visitor(self, name: str = "", **headers: str) -> Page:
        client = httpx.Client(base_url=self.address, timeout=60, headers={"Accept-Language": "en", **headers})
        self.clients.append(client)
        page = Page(client)
        if name:
            page.post("/login", {"token": self.tokens[name]}, on="/login")
        return page


class Page:
    """A browser without a script: reads pages, sends their forms with what is hidden in them."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def proof(self, path: str) -> str:
        found = re.search(r'name="proof" value="([0-9a-f]{64})"', self.get(path).text)
        assert found, f"no form on {path}"
        return found[1]

    def post(self, path: str, data: dict[str, str], *, on: str, files: object = None, **headers: str) -> httpx.Response:
        whole = {"proof": self.proof(on), **data}
        origin = str(self.client.base_url).rstrip("/")
        return self.client.post(path, data=whole, files=files, headers={"Origin": origin, **headers})  # type: ignore[arg-type]


Serve = Callable[..., Site]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts servers; all of them end with the tests."""
    running: list[tuple[Inside, Site]] = []

    def start(**settings: str) -> Site:
        folder = tmp_path_factory.mktemp("web")
        runbooks = folder / "runbooks"
        (runbooks / "team").mkdir(parents=True)
        (runbooks / "team" / "gateway.md").write_text(SITE, encoding="utf-8")
        (folder / "outside.md").write_text("# Nobody may see this\n", encoding="utf-8")
        (runbooks / "link.md").symlink_to(folder / "outside.md")
        targets = folder / "targets.yaml"
        targets.write_text(
            "targets:\n  prod:\n    address: http://127.0.0.1:9\n    labels: {team: '<b>search</b>'}\n"
            "  staging:\n    address: http://127.0.0.1:10\n",
            encoding="utf-8",
        )
        environment = {
            "HOME": str(folder),
            "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
            "VLLM_DIAGNOSE_SERVER_READERS": "1",
            "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "100000",
            "VLLM_DIAGNOSE_RUNBOOKS_FOLDER": str(runbooks),
            "VLLM_DIAGNOSE_TARGETS_FILE": str(targets),
            "VLLM_DIAGNOSE_DEADLINE_S": "20",
            **settings,
        }
        loaded = load(environment)
        database = open_database(loaded)
        migrate(database)
        made = Tokens(database)
        tokens = {
            "viewer": made.create("on call", Role.viewer)[0],
            "operator": made.create("operator", Role.operator)[0],
            "hostile": made.create(HOSTILE[:80], Role.viewer)[0],
            "narrow": made.create("narrow", Role.viewer, scopes=("search_knowledge",))[0],
        }
        database.close()
        server = Inside(loaded)
        site = Site(server.address, tokens, server.app, folder)
        running.append((server, site))
        return site

    yield start
    for server, site in running:
        for client in site.clients:
            client.close()
        server.stop()


@pytest.fixture(scope="session")
def site(serve: Serve) -> Site:
    """A server that lets nobody look without a token."""
    return serve()


@pytest.fixture(scope="session")
def open_site(serve: Serve) -> Site:
    """A server where everybody may look."""
    return serve(VLLM_DIAGNOSE_SERVER_ANONYMOUS="viewer")
