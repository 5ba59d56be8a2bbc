"""Who may do what: roles, tokens, consent, and one way in for all faces."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from assistant.acting import carrier, enqueue, perform
from assistant.security import consent as consents
from assistant.security.consent import Consents, agree
from assistant.security.keys import consent_key
from assistant.security.roles import LOCAL, ForbiddenError, Principal, Role, require, require_role
from assistant.security.tokens import PREFIX, BadTokenError, Tokens
from assistant.settings import load
from assistant.store.audit import Audit
from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.jobs import Jobs
from assistant.store.migrations import migrate
from assistant.store.retention import prune
from assistant.store.worker import Worker
from tools import registry
from tools.addresses import Policy
from tools.registry import Action, ConsentError, Context, action

VIEWER = Principal("v", "vera", Role.viewer)
OPERATOR = Principal("o", "oskar", Role.operator)
ADMIN = Principal("a", "ada", Role.admin)
KEY = b"k" * 32


class Asked(BaseModel):
    size: int = 1


class Answered(BaseModel):
    size: int


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Action:
    """An action that only reads; ``burn`` and ``trace`` beside it touch."""
    monkeypatch.setattr(registry, "_ACTIONS", {})
    for name, effect in (("look", "reads"), ("burn", "loads"), ("trace", "runs")):

        @action(name, name.title(), effect, 5)  # type: ignore[arg-type]
        async def function(asked: Asked, context: Context) -> Answered:
            """Do it."""
            context.report(1.0, "did it")
            return Answered(size=asked.size)

    return registry.get("look")


@pytest.fixture
def burn(look: Action) -> Action:
    return registry.get("burn")


# --- roles ------------------------------------------------------------------------------------------------------------


def test_effects_need_roles() -> None:
    for effect, allowed in (
        ("reads", (VIEWER, OPERATOR, ADMIN)),
        ("loads", (OPERATOR, ADMIN)),
        ("runs", (OPERATOR, ADMIN)),
    ):
        for principal in (VIEWER, OPERATOR, ADMIN, LOCAL):
            if principal in allowed or principal is LOCAL:
                require(principal, "x", effect)  # type: ignore[arg-type]
            else:
                with pytest.raises(ForbiddenError, match="that needs operator"):
                    require(principal, "x", effect)  # type: ignore[arg-type]
    with pytest.raises(ForbiddenError, match="that needs admin"):
        require_role(OPERATOR, Role.admin, "make tokens")
    with pytest.raises(ValueError, match="expected viewer, operator, admin"):
        Role.of("root")


def test_scopes_limit_whatever_the_role() -> None:
    limited = Principal("x", "x", Role.admin, ("check_*", "look"))
    require(limited, "check_gpu", "reads")
    require(limited, "look", "runs")
    with pytest.raises(ForbiddenError, match="limited to"):
        require(limited, "burn", "reads")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_known_by_its_digest_only(database: Database, tmp_path: Path) -> None:
    text, token = Tokens(database).create("ci", Role.operator, scopes=["check_*"])
    assert text.startswith(PREFIX) and len(text) > 40
    assert Tokens(database).check(text) == Principal(token.id, "ci", Role.operator, ("check_*",))
    database.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert text.encode() not in raw and text.removeprefix(PREFIX).encode() not in raw
    assert hashlib.sha256(text.encode()).hexdigest().encode() in raw


def test_bad_tokens_are_all_the_same(database: Database) -> None:
    tokens = Tokens(database)
    revoked, entry = tokens.create("r", Role.viewer)
    tokens.revoke(entry.id)
    tokens.revoke(entry.id)
    expired, _ = tokens.create("e", Role.viewer, expires_in_days=1e-9)
    good, _ = tokens.create("g", Role.viewer, expires_in_days=1)
    time.sleep(0.01)
    for text in (
        revoked,
        expired,
        "",
        "vdg_",
        good + "x",
        good[:-1],
        good.upper(),
        "Bearer " + good,
        "\ud800",
        "x" * 10**6,
    ):
        with pytest.raises(BadTokenError, match=r"^The token is not valid\.$"):
            tokens.check(text)
    assert tokens.check(good).name == "g"
    assert sorted(state for _, state in tokens.all()) == ["active", "expired", "revoked"]


def test_wrong_tokens_are_not_made(database: Database) -> None:
    for name, scopes in (("", []), ("a\nb", []), ("x" * 81, []), ("ok", ["Bad Scope"]), ("ok", ["*a"])):
        with pytest.raises(StoreError):
            Tokens(database).create(name, Role.viewer, scopes=scopes)
    with pytest.raises(NotFoundError, match="token list"):
        Tokens(database).revoke("nope")


# --- consent ----------------------------------------------------------------------------------------------------------


def test_a_ticket_is_good_for_its_person_and_call_only(burn: Action, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Consents(KEY)
    ticket = server.ask(OPERATOR, burn, {})
    confirmed = server.accept(OPERATOR, ticket, burn, {"size": 1})  # the default written out is the same call
    assert confirmed.consent.covers("burn", {"size": 1}) and confirmed.consent.by == "o"
    body, _, signature = ticket.partition(".")
    for principal, text, chosen, arguments in (
        (ADMIN, ticket, burn, {}),
        (OPERATOR, ticket, burn, {"size": 2}),
        (OPERATOR, ticket, registry.get("trace"), {}),
        (OPERATOR, body + "A." + signature, burn, {}),
        (OPERATOR, body + ".", burn, {}),
        (OPERATOR, "", burn, {}),
        (OPERATOR, "é.é", burn, {}),
        (OPERATOR, Consents(b"z" * 32).ask(OPERATOR, burn, {}), burn, {}),
    ):
        with pytest.raises(ForbiddenError):
            server.accept(principal, text, chosen, arguments)
    later = time.time() + consents.TICKET_S + 1
    monkeypatch.setattr(consents.time, "time", lambda: later)
    with pytest.raises(ForbiddenError, match="too old"):
        server.accept(OPERATOR, ticket, burn, {})


def test_a_viewer_gets_no_ticket_and_no_consent(burn: Action) -> None:
    with pytest.raises(ForbiddenError):
        Consents(KEY).ask(VIEWER, burn, {})
    with pytest.raises(ForbiddenError):
        agree(VIEWER, burn, {})
    with pytest.raises(ForbiddenError):  # demoted in between
        Consents(KEY).accept(VIEWER, Consents(KEY).ask(OPERATOR, burn, {}), burn, {})


def test_all_replicas_share_one_key(database: Database) -> None:
    assert consent_key(database) == consent_key(database) and len(consent_key(database)) == 32
    with pytest.raises(ValueError, match="32 bytes"):
        Consents(b"short")


# --- acting -----------------------------------------------------------------------------------------------------------


def act(principal: Principal, chosen: Action, arguments: dict[str, Any], **more: Any) -> BaseModel:
    return asyncio.run(perform(principal, chosen, arguments, face="http", policy=Policy(), **more))


def test_touching_needs_role_and_consent_and_leaves_a_note(burn: Action, look: Action, database: Database) -> None:
    audit = Audit(database)
    assert act(VIEWER, look, {}, audit=audit) == Answered(size=1)
    with pytest.raises(ForbiddenError):
        act(VIEWER, burn, {}, audit=audit)
    with pytest.raises(ConsentError):
        act(OPERATOR, burn, {}, audit=audit)
    with pytest.raises(ConsentError):
        act(OPERATOR, burn, {"size": 2}, audit=audit, consent=agree(OPERATOR, burn, {"size": 1}))
    assert act(OPERATOR, burn, {"size": 2}, audit=audit, consent=agree(OPERATOR, burn, {"size": 2})) == Answered(size=2)
    notes = [(line["who"], line["did"], line["outcome"]) for line in reversed(audit.recent())]
    assert notes == [
        ("v", "look", "done"),
        ("v", "burn", "refused"),
        ("o", "burn", "refused"),
        ("o", "burn", "refused"),
        ("o", "burn", "done"),
    ]
    assert [line["who"] for line in audit.recent(who="v")] == ["v", "v"]


def test_a_ticket_becomes_one_job_and_the_worker_has_the_consent(burn: Action, database: Database) -> None:
    jobs, server, audit = Jobs(database), Consents(consent_key(database)), Audit(database)
    with pytest.raises(ConsentError):
        enqueue(jobs, OPERATOR, burn, {}, face="slack")
    with pytest.raises(ForbiddenError):
        enqueue(jobs, VIEWER, burn, {}, face="slack")
    confirmed = server.accept(OPERATOR, server.ask(OPERATOR, burn, {"size": 3}), burn, {"size": 3})
    one, same = (
        enqueue(jobs, OPERATOR, burn, {"size": 3}, face="slack", confirmed=confirmed, audit=audit) for _ in "ab"
    )
    assert one.id == same.id
    plain = enqueue(jobs, VIEWER, registry.get("look"), {}, face="http")

    async def work() -> None:
        stop = asyncio.Event()
        worker = asyncio.create_task(Worker(jobs, carrier(Policy()), look_every_s=0.02).run(stop))
        for _ in range(500):
            await asyncio.sleep(0.02)
            if jobs.get(one.id).finished and jobs.get(plain.id).finished:
                break
        stop.set()
        await worker

    asyncio.run(work())
    assert (jobs.get(one.id).state, jobs.get(one.id).result) == ("done", {"size": 3})
    assert jobs.get(plain.id).state == "done"
    assert [line.text for line in jobs.log(one.id)] == ["did it"]


def test_a_consent_that_grew_old_in_the_queue_is_not_used(burn: Action, database: Database) -> None:
    jobs = Jobs(database)
    old = consents.to_json(agree(OPERATOR, burn, {})) | {"until": time.time() - 1}
    job = jobs.submit("burn", {"size": 1}, effect="loads", deadline_s=5, requested_by="o", consent=old)
    lease = jobs.claim("w", 30)
    assert lease is not None
    asyncio.run(Worker(jobs, carrier(Policy())).carry_out(lease))
    assert jobs.get(job.id).state == "failed" and "agree" in (jobs.get(job.id).error or "")


def test_a_note_holds_no_secret_and_a_lost_database_stops_nobody(look: Action, database: Database) -> None:
    audit = Audit(database)
    secret = "hf_" + "a1B2" * 9
    audit.note(who="v", role="viewer", face="http", did="x", outcome="done", target=secret, detail={"t": secret})
    audit.note(who="v", role="viewer", face="http", did="x", outcome="done", detail={"deep": [{"t": secret}]})
    audit.note(who="v", role="viewer", face="http", did="x", outcome="done", detail={"log": ["x" * 5000] * 9})
    assert secret not in str(audit.recent())
    assert "characters)" in audit.recent()[0]["detail"]["log"]

    class Away(Audit):
        def note(self, **_: Any) -> None:
            raise StoreError("The database is away.")

    assert act(VIEWER, look, {}, audit=Away(database)) == Answered(size=1)


# --- retention --------------------------------------------------------------------------------------------------------


def test_what_is_old_goes_and_what_is_unfinished_stays(database: Database) -> None:
    from assistant.store.incidents import Incidents

    incidents, jobs, audit = Incidents(database), Jobs(database), Audit(database)
    old = [incidents.save({"verdict": "unknown"}) for _ in range(450)]
    incidents.answer(old[0], 1, "q", "v", diagnosis={"verdict": "unknown"})
    incidents.feedback(old[0], "no")
    ended = jobs.submit("look", {}, effect="reads", deadline_s=5, requested_by="v")
    lease = jobs.claim("w", 30)
    assert lease is not None
    jobs.report(lease, 0.1, "line")
    jobs.finish(lease, "done")
    audit.note(who="v", role="viewer", face="http", did="x", outcome="done")
    waiting = jobs.submit("look", {}, effect="reads", deadline_s=5, requested_by="v")
    with database.write() as connection:
        for statement in (
            "UPDATE incidents SET updated_at = 1, created_at = 1",
            "UPDATE jobs SET created_at = 1, finished_at = CASE WHEN finished_at IS NULL THEN NULL ELSE 1 END",
            "UPDATE audit SET at = 1",
        ):
            connection.execute(sa.text(statement))
    kept = incidents.save({"verdict": "unknown"})
    forever = load(
        {"HOME": "/n", **{f"VLLM_DIAGNOSE_STORE_KEEP_{what}_DAYS": "0" for what in ("INCIDENTS", "JOBS", "AUDIT")}}
    )
    gone = prune(database, forever)
    assert (gone.incidents, gone.jobs, gone.audit) == (0, 0, 0)
    gone = prune(database, load({"HOME": "/n"}))
    assert (gone.incidents, gone.jobs, gone.audit) == (450, 1, 1)
    assert [row["id"] for row in incidents.recent()] == [kept] and jobs.get(waiting.id).state == "queued"
    with pytest.raises(NotFoundError):
        jobs.get(ended.id)
    with database.read() as connection:
        for table in ("answers", "feedback", "job_log", "audit"):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar() == 0  # noqa: S608
