"""Incidents: what goes in comes out, answers do not overwrite each other, and saving never stands in the way."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from assistant.settings import load
from assistant.store import saving
from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.feedback import _OF_CAUSE, _OF_CAUSE_AND_TARGET, Feedback
from assistant.store.incidents import Incidents, StaleRevisionError
from assistant.store.migrations import migrate
from assistant.store.saving import Saved, save_incident
from assistant.store.schema import FEEDBACK, INCIDENTS

DIAGNOSIS = {
    "verdict": "cause",
    "summary": "KV 缓存放不下 \0 \ud83d",
    "language": "zh",
    "target": "prod",
    "causes": [{"id": "memory/no-room-for-kv-cache", "confidence": 0.97}],
}


def test_what_goes_in_comes_out(database: Database) -> None:
    incidents = Incidents(database)
    evidence = [{"name": "message:x", "value": 1.5, "quote": "a\0b\udcff" * 3}, {"name": "n", "value": None}]
    incident = incidents.save(DIAGNOSIS, evidence, question="why\0 ?\ud800", saved_by="ada")
    got = incidents.get(incident)
    assert got.diagnosis == {**DIAGNOSIS, "incident": incident, "revision": 1}
    assert got.evidence == evidence
    assert (got.revision, got.language, got.target, got.saved_by) == (1, "zh", "prod", "ada")
    assert got.question == "why ??"
    assert abs(got.created_at_ms / 1000 - time.time()) < 60
    (row,) = incidents.recent()
    assert (row["id"], row["verdict"], row["cause"]) == (incident, "cause", "memory/no-room-for-kv-cache")


def test_answers_raise_the_revision_and_stale_ones_are_refused(database: Database) -> None:
    incidents = Incidents(database)
    incident = incidents.save(DIAGNOSIS)
    assert incidents.answer(incident, 1, "scope", "all", diagnosis={"verdict": "unknown"}, given_by="ada") == 2
    with pytest.raises(StaleRevisionError) as caught:
        incidents.answer(incident, 1, "scope", "some", diagnosis=DIAGNOSIS)
    assert caught.value.current == 2
    got = incidents.get(incident)
    assert [(a.revision, a.question, a.value, a.given_by) for a in got.answers] == [(2, "scope", "all", "ada")]
    assert got.diagnosis["revision"] == 2 and got.diagnosis["verdict"] == "unknown"


def test_of_many_answers_to_one_revision_exactly_one_counts(database: Database) -> None:
    incidents = Incidents(database)
    incident = incidents.save(DIAGNOSIS)
    outcomes: list[str] = []

    def work(value: int) -> None:
        try:
            incidents.answer(incident, 1, "scope", str(value), diagnosis=DIAGNOSIS)
            outcomes.append("kept")
        except StaleRevisionError:
            outcomes.append("stale")

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["kept", "stale", "stale", "stale"]
    assert len(incidents.get(incident).answers) == 1


def test_feedback_is_kept(database: Database) -> None:
    incidents = Incidents(database)
    incident = incidents.save(DIAGNOSIS)
    incidents.feedback(incident, "partly", comment="the second fix helped", given_by="ada")
    (kept,) = incidents.feedback_on(incident)
    assert (kept["helped"], kept["revision"]) == ("partly", 1)


def test_earlier_incidents_of_a_cause_are_the_newest_with_the_last_that_was_said(database: Database) -> None:
    incidents, feedback = Incidents(database), Feedback(database)
    other = {**DIAGNOSIS, "target": "test"}
    made = [incidents.save(diagnosis) for diagnosis in (DIAGNOSIS, other, DIAGNOSIS, DIAGNOSIS, DIAGNOSIS)]
    incidents.save({**DIAGNOSIS, "causes": [{"id": "gpu/ecc-error"}]})
    with database.write() as connection:  # the clock may not have moved between two of them
        for place, incident in enumerate(made):
            connection.execute(sa.update(INCIDENTS).where(INCIDENTS.c.id == incident).values(created_at=place))
    for helped in ("yes", "no"):
        incidents.feedback(made[2], helped, comment=f"said {helped}")
        with database.write() as connection:
            connection.execute(sa.update(FEEDBACK).values(at=FEEDBACK.c.at - 1))
    incidents.feedback(made[0], "partly", comment="  more   blocks ")
    cause = "memory/no-room-for-kv-cache"
    seen = feedback.seen_before(cause, None, besides=made[4])
    assert [(one.incident, one.helped, one.fix) for one in seen] == [
        (made[3], None, ""),
        (made[2], "no", ""),
        (made[1], None, ""),
    ]
    assert [one.incident for one in feedback.seen_before(cause, "prod", besides=made[4])] == [made[3], made[2], made[0]]
    assert feedback.seen_before(cause, "prod", besides=made[4])[2].fix == "more blocks"
    assert feedback.seen_before("gpu/no-such", None) == ()


def test_a_rare_cause_is_looked_up_and_not_searched_for(tmp_path: Path) -> None:
    """Each diagnosis looks for earlier ones of its cause, which among 100,000 others must not mean to read them all."""
    database = Database(f"sqlite:///{tmp_path}/store.db")
    migrate(database)
    for statement in (_OF_CAUSE, _OF_CAUSE_AND_TARGET):
        given = statement.params(cause="memory/rare", besides="", target="prod")
        plain = str(given.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
        with database.read() as connection:
            plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {plain}")]
        assert any("incidents_by_cause" in step for step in plan), plan
        assert not any(step.startswith("SCAN incidents") for step in plan), plan
    database.close()


def test_what_is_not_there_is_said(database: Database) -> None:
    incidents = Incidents(database)
    for work in (
        lambda: incidents.get("nope"),
        lambda: incidents.feedback("nope", "yes"),
        lambda: incidents.answer("nope", 1, "q", "v", diagnosis=DIAGNOSIS),
    ):
        with pytest.raises(NotFoundError, match="no incident 'nope'"):
            work()


def test_an_enormous_incident_is_refused(database: Database) -> None:
    with pytest.raises(StoreError, match="larger than 8 MiB"):
        Incidents(database).save(DIAGNOSIS, ["x" * 9_000_000])


# --- saving never stands between a person and an answer ---------------------------------------------------------------


def save(url: str, **more: str) -> Saved:
    settings = load({"VLLM_DIAGNOSE_STORE_URL": url, "VLLM_DIAGNOSE_STORE_TIMEOUT_S": "0.5", **more})
    started = time.monotonic()
    saved = save_incident(DIAGNOSIS, settings=settings)
    assert time.monotonic() - started < 6
    if saved.incident_id is None:
        assert saved.why.startswith("Not saved: ") and saved.why.endswith(".") and "\n" not in saved.why
    return saved


def test_a_first_save_makes_a_private_database_where_nobody_made_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    saved = save_incident({**DIAGNOSIS, "note": "Authorization: Bearer " + "hf_" + "a1B2" * 9}, question="q")
    assert saved.incident_id is not None and saved.why == ""
    path = tmp_path / ".local/state/vllm-diagnose/store.db"
    assert path.stat().st_mode & 0o077 == 0
    got = Incidents(Database(f"sqlite:///{path}")).get(saved.incident_id)
    assert "a1B2a1B2" not in str(got.diagnosis), "secrets are removed before anything is written"


def test_saved_on_both(url: str) -> None:
    assert save(url).incident_id is not None


def test_a_read_only_place(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    url = "sqlite:////proc/nowhere/store.db" if os.geteuid() == 0 else f"sqlite:///{folder}/a/store.db"
    assert "cannot be opened" in save(url).why


def test_a_full_disk(tmp_path: Path) -> None:
    """/dev/full is no file; SQLite's own page limit stands for the disk."""
    url = f"sqlite:///{tmp_path / 'full.db'}"
    assert save(url).incident_id
    connection = sqlite3.connect(tmp_path / "full.db")
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()

    import sqlalchemy as sa

    @sa.event.listens_for(sa.Engine, "connect")
    def no_more_pages(dbapi: sqlite3.Connection, _: object) -> None:
        dbapi.execute(f"PRAGMA max_page_count = {pages}")

    try:
        settings = load({"VLLM_DIAGNOSE_STORE_URL": url})
        saved = save_incident({**DIAGNOSIS, "long": "x" * 100_000}, settings=settings)
    finally:
        sa.event.remove(sa.Engine, "connect", no_more_pages)
    assert saved.incident_id is None and "the disk is full" in saved.why


def test_a_locked_database(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    assert save(f"sqlite:///{path}").incident_id
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert "locked by another process" in save(f"sqlite:///{path}").why
    other.close()
    assert save(f"sqlite:///{path}").incident_id


@pytest.mark.parametrize("content", [b"this is no database, only a text that is long enough" * 40, b"\0" * 8192])
def test_a_damaged_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.db"
    path.write_bytes(content)
    assert save(f"sqlite:///{path}").incident_id is None
    assert path.read_bytes() == content


def test_a_database_that_is_down_or_hangs(tmp_path: Path) -> None:
    import socket

    pytest.importorskip("psycopg")
    assert "cannot be reached" in save("postgresql://u:hunter2@127.0.0.1:9/x").why
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never says a word
        why = save(f"postgresql://u:hunter2@127.0.0.1:{silent.getsockname()[1]}/x").why
    assert "hunter2" not in why and "did not answer" in why


def test_wrong_settings_and_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "only sqlite and postgresql" in save("mysql://a/b").why
    assert "names no file" in save("sqlite://").why
    monkeypatch.setenv("VLLM_DIAGNOSE_STORE_ULR", "x")
    assert "VLLM_DIAGNOSE_STORE_URL is the nearest" in save_incident(DIAGNOSIS).why
    monkeypatch.delenv("VLLM_DIAGNOSE_STORE_ULR")
    monkeypatch.setitem(__import__("sys").modules, "assistant.store.incidents", None)
    assert save(f"sqlite:///{tmp_path / 'x.db'}").incident_id is None


def test_a_thread_that_never_comes_back_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = threading.Event()
    monkeypatch.setattr(saving, "_save", lambda *_: release.wait(30))
    try:
        assert "did not answer within 2 s" in save(f"sqlite:///{tmp_path / 'x.db'}").why
    finally:
        release.set()
