"""What people depend on dies in every way: each face still answers in time, with what is known and what is not."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.store.database import Database
from assistant.store.migrations import migrate
from tests.assistant.faces.serving import Served, served
from tests.assistant.faces.slack.driver import SECRET, User, wait_for, words
from tests.assistant.faces.slack.standin import Slack
from tests.assistant.faces.web.conftest import Page
from tests.assistant.store.conftest import _postgres_database, postgres_server  # noqa: F401 (a fixture)
from tests.endurance.faulty import FAILURES, Faulty, failing

ROOT = Path(__file__).resolve().parents[2]
#: What everybody asks: words that name a cause by themselves, whatever else is away.
QUESTION = "双卡起服务卡住，单卡正常，关掉 P2P 就好"
CAUSE = "nccl"
#: Deadlines as they are set here, and seconds after which a face counts as hanging: all of them together and a slow machine.
DEADLINE_S, OUTBOUND_S, HANGS_S = 4, 2, 60.0
#: A name that the tables of models do not hold, so that the hub has to be asked.
MODEL = "nobody/no-such-model-1b"


@dataclass
class Site:
    """A server with everything that people depend on behind it, each a server that fails as it is told."""

    server: Served
    slack: Slack
    failing: dict[str, Faulty]
    environment: dict[str, str]
    token: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def command(self, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "assistant.faces.cli.main", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=HANGS_S, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.address}{path}", json=body, headers=headers, timeout=HANGS_S)

    def tool(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A call over MCP; the result."""
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        wanted = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
        answer = self.post("/mcp", call, **wanted)
        assert answer.status_code == 200, answer.text[:500]
        text = answer.text
        if answer.headers["content-type"].startswith("text/event-stream"):
            text = [line[6:] for line in text.splitlines() if line.startswith("data: ")][-1]
        result: dict[str, Any] = json.loads(text)["result"]
        return result


def site_of(folder: Path, slack: Slack, given: dict[str, Faulty], **settings: str) -> Iterator[Site]:
    targets = {
        "by-prometheus": {
            "address": "http://127.0.0.1:9",
            "metrics": {"prometheus": given["prometheus"].address, "query": 'job="vllm"'},
        },
        "by-loki": {
            "address": "http://127.0.0.1:9",
            "logs": {"loki": given["loki"].address, "query": '{app="vllm"}'},
        },
        "live": {"address": given["server"].address},
        "node": {"address": "http://127.0.0.1:9", "node_tools": {"mcp": given["node"].address + "/mcp"}},
    }
    (folder / "targets.yaml").write_text(json.dumps({"targets": targets}))
    given_settings = {
        "store_url": f"sqlite:///{folder}/store.db",
        "targets_file": str(folder / "targets.yaml"),
        "deadline_s": str(DEADLINE_S),
        "outbound_deadline_s": str(OUTBOUND_S),
        "outbound_connect_s": "1",
        "store_timeout_s": "1",
        "slack_signing_secret": SECRET,
        "slack_bot_token": "xoxb-good",
        "slack_api_url": slack.api_url,
        **settings,
    }
    database = Database(given_settings["store_url"])
    migrate(database)
    token = Tokens(database).create("on call", Role.viewer)[0]
    database.close()
    os.environ["HF_ENDPOINT"] = given["hub"].address
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        with served(folder, **given_settings) as server:
            server.until_ready()
            environment = {f"VLLM_DIAGNOSE_{name.upper()}": value for name, value in given_settings.items()}
            environment |= {name: os.environ[name] for name in ("PATH", "HF_ENDPOINT")}
            environment |= {"HOME": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT)}
            yield Site(server, slack, given, environment, token)
    finally:
        os.environ.pop("HF_ENDPOINT", None)
        os.environ.pop("HF_HUB_DISABLE_TELEMETRY", None)


@pytest.fixture(scope="module")
def slack() -> Iterator[Slack]:
    standin = Slack().start()
    yield standin
    standin.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, slack: Slack) -> Iterator[Site]:
    with failing("prometheus", "loki", "hub", "node", "server") as given:
        yield from site_of(tmp_path_factory.mktemp("dying"), slack, given)


# --- every face asks the same, and says what it got -------------------------------------------------------------------


def by_command(site: Site, target: str) -> str:
    status, out, err = site.command(
        "ask", QUESTION, "--target", target, "-o", "json", "--deadline", str(DEADLINE_S)
    )  # fmt: skip
    assert status == 0, (status, err)
    return known_and_not(json.loads(out))


def by_http(site: Site, target: str) -> str:
    answer = site.post("/v1/diagnoses", {"text": QUESTION, "target": target})
    assert answer.status_code == 201, answer.text[:500]
    return known_and_not(answer.json())


def by_mcp(site: Site, target: str) -> str:
    result = site.tool("diagnose", {"text": QUESTION, "target": target})
    assert not result.get("isError"), result
    return known_and_not(result["structuredContent"])


def by_slack(site: Site, target: str) -> str:
    user = User(site.slack, site.address)
    known = list(site.slack.answers())
    assert user.command(target or QUESTION).status_code == 200  # a target is named alone

    def finished() -> str | None:
        for message in site.slack.answers():
            text = words(message.blocks)
            # One that could not be kept has no buttons, but says how sure it is.
            if message not in known and ("about:" in json.dumps(message.blocks) or "置信度" in text):
                return text
        return None

    try:
        return str(wait_for(finished, HANGS_S))
    except AssertionError:
        raise AssertionError([words(m.blocks) for m in site.slack.answers() if m not in known]) from None


def by_web(site: Site, target: str) -> str:
    with httpx.Client(base_url=site.address, timeout=HANGS_S, headers={"Accept-Language": "en"}) as client:
        page = Page(client)
        assert page.post("/login", {"token": site.token}, on="/login").status_code == 303
        sent = page.post("/ask", {"text": QUESTION, "target": target}, on="/", files=[("logs", ("", b""))])
        if sent.status_code != 303:  # it could not be kept, and is shown all the same
            assert sent.status_code == 200, sent.text[:500]
            return sent.text
        shown = page.get(sent.headers["location"])
        assert shown.status_code == 200
        return shown.text


def known_and_not(body: dict[str, Any]) -> str:
    """The whole answer as text; what words alone tell is in it."""
    assert CAUSE in json.dumps(body["causes"]).lower(), body["causes"]
    return json.dumps(body, ensure_ascii=False)


FACES: dict[str, Callable[[Site, str], str]] = {
    "CLI": by_command,
    "HTTP": by_http,
    "MCP": by_mcp,
    "Slack": by_slack,
    "web": by_web,
}


def everybody(*asking: Callable[[], Any]) -> list[Any]:
    """All at once, as it is when something dies; a face that hangs ends its own call."""
    with ThreadPoolExecutor(len(asking)) as threads:
        return [future.result() for future in [threads.submit(one) for one in asking]]


QUICK = ("hang", "500")


def slow_unless_quick(failures: tuple[str, ...]) -> list[Any]:
    return [failure if failure in QUICK else pytest.param(failure, marks=pytest.mark.slow) for failure in failures]


@pytest.mark.parametrize("failure", slow_unless_quick(FAILURES))
@pytest.mark.parametrize(
    ("dependency", "target"), [("prometheus", "by-prometheus"), ("server", "live"), ("loki", "by-loki")]
)
def test_every_face_answers_when_what_it_looks_at_fails(site: Site, dependency: str, target: str, failure: str) -> None:
    broken = site.failing[dependency]
    broken.become(failure)
    before = broken.asked
    told = everybody(*(lambda ask=ask: ask(site, target) for ask in FACES.values()))  # type: ignore[misc]
    assert broken.asked - before >= len(FACES), "somebody did not even look"
    for face, text in zip(FACES, told, strict=True):
        # Or in words alone: what came instead of metrics.
        named = re.search(
            rf"127.0.0.1:{broken.port}|Prometheus|Loki|web page came back|no metrics page|none of vLLM", text
        )
        assert named, (face, text[:3000])


@pytest.mark.parametrize("failure", slow_unless_quick(FAILURES))
def test_logs_that_cannot_be_fetched_cost_their_lines_and_not_the_answer(site: Site, failure: str) -> None:
    """What the command line says of them; the other faces are asked above."""
    site.failing["loki"].become(failure)
    status, out, err = site.command("ask", QUESTION, "--target", "by-loki", "-o", "json", "--deadline", str(DEADLINE_S))
    assert status == 0, err
    body = json.loads(out)
    known_and_not(body)
    assert any("Loki" in row["what"] for row in body["not_measured"]), body["not_measured"]
    status, out, err = site.command("logs", "--target", "by-loki", "--deadline", str(DEADLINE_S))
    assert status == 3 and not out and len(err.strip().splitlines()) == 1, (status, out, err)


@pytest.mark.parametrize("failure", slow_unless_quick(FAILURES))
def test_a_node_that_fails_is_named_and_the_report_comes(site: Site, failure: str) -> None:
    """Only the command line looks at nodes."""
    site.failing["node"].become(failure)
    status, out, err = site.command("check", "-o", "json", "--deadline", "8")
    assert status == 0, err
    (node,) = json.loads(out)["nodes"]
    assert node["name"] == "node" and node["lost"], node


@pytest.mark.parametrize("failure", [pytest.param(f, marks=() if f == "reset" else pytest.mark.slow) for f in FAILURES])
def test_a_hub_that_fails_is_a_sentence_in_every_face(site: Site, failure: str) -> None:
    site.failing["hub"].become(failure)
    wanted = {"model": MODEL, "gpu": "H100", "ask_hub": True}

    def command() -> str:
        status, out, err = site.command("memory", MODEL, "--gpu", "H100")
        assert status in (2, 3) and not out, (status, out, err)
        return err

    def http() -> str:
        answer = site.post("/v1/tools/estimate_memory", wanted)
        assert answer.status_code in (409, 422, 504), answer.text[:500]
        return str(answer.json()["detail"])

    def mcp() -> str:
        result = site.tool("estimate_memory", wanted)
        assert result["isError"], result
        return str(result["content"][0]["text"])

    def web() -> str:
        with httpx.Client(base_url=site.address, timeout=HANGS_S, headers={"Accept-Language": "en"}) as client:
            page = Page(client)
            page.post("/login", {"token": site.token}, on="/login")
            shown = page.post("/memory", {"model": MODEL, "gpu": "H100", "ask_hub": "yes"}, on="/memory")
            assert shown.status_code == 422, shown.status_code
            return shown.text

    for said in everybody(command, http, mcp, web):
        assert MODEL in said and re.search(r"hub", said), said[:2000]
        assert "config.json" in said, "what to give instead"


def test_a_database_that_hangs_costs_the_incident_and_not_the_answer(site: Site) -> None:
    """Another process holds the file's lock for as long as everybody asks."""
    free, held = threading.Event(), threading.Event()

    def hold() -> None:
        connection = sqlite3.connect(site.environment["VLLM_DIAGNOSE_STORE_URL"].removeprefix("sqlite:///"))
        connection.execute("BEGIN EXCLUSIVE")
        held.set()
        free.wait(HANGS_S * 2)
        connection.rollback()
        connection.close()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(10)
    try:
        told = everybody(*database_away(site))
        assert httpx.get(f"{site.address}/readyz", timeout=HANGS_S).status_code == 503
        assert httpx.get(f"{site.address}/healthz", timeout=HANGS_S).status_code == 200
    finally:
        free.set()
        holder.join(10)
    said = ("locked", "did not answer", "锁住", "没有及时响应")  # Slack answers in the language of its command
    assert all(any(words in text for words in said) for text in told), told
    site.server.until_ready()


def database_away(site: Site) -> list[Callable[[], str]]:
    """What each face says when the answer cannot be kept: the answer, and why there is no incident."""

    def command() -> str:
        status, out, err = site.command("ask", QUESTION, "--save", "-o", "json")
        assert status == 0, err
        known_and_not(json.loads(out))
        return err

    def http() -> str:
        answer = site.post("/v1/diagnoses", {"text": QUESTION})
        assert answer.status_code == 201, answer.text[:500]
        assert answer.json()["incident"] is None
        known_and_not(answer.json())
        return str(answer.json()["not_saved"])

    def mcp() -> str:
        result = site.tool("diagnose", {"text": QUESTION})
        assert not result.get("isError"), result
        known_and_not(result["structuredContent"])
        return json.dumps(result, ensure_ascii=False)

    def slack() -> str:
        return by_slack(site, "")

    return [command, http, mcp, slack]


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory, postgres_server: str, slack: Slack) -> Iterator[Site]:  # noqa: F811
    """The same on a PostgreSQL that is reached through a server that fails as it is told."""
    with _postgres_database(postgres_server) as url, failing("prometheus", "loki", "hub", "node", "server") as given:
        host, port = url.split("@")[1].split("/")[0].split(":")
        with Faulty("works", (host, int(port))) as between:
            given["database"] = between
            folder = tmp_path_factory.mktemp("away")
            yield from site_of(folder, slack, given, store_url=url.replace(f":{port}/", f":{between.port}/"))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("failure", ("hang", "reset", "garbage", "500"))
def test_a_postgresql_that_fails_costs_the_incident_and_not_the_answer(away: Site, failure: str) -> None:
    between = away.failing["database"]
    between.become(failure)
    try:
        told = everybody(*database_away(away))
        assert httpx.get(f"{away.address}/readyz", timeout=HANGS_S).status_code == 503
    finally:
        between.become("works")
    assert all("The database" in text or "database" in text or "数据库" in text for text in told), told
    away.server.until_ready(60)
    assert away.post("/v1/diagnoses", {"text": QUESTION}).json()["incident"], "it is kept again"
