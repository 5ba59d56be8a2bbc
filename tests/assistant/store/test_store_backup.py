"""Backups: whole or not there, and good for either kind of database."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from assistant.security.keys import consent_key
from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.store.audit import Audit
from assistant.store.backup import backup_to, restore
from assistant.store.database import Database, StoreError
from assistant.store.incidents import Incidents
from assistant.store.jobs import Jobs
from assistant.store.migrations import migrate


def fill(database: Database) -> tuple[str, str, str]:
    incidents, jobs = Incidents(database), Jobs(database)
    incident = incidents.save({"verdict": "unknown", "summary": "显存 \0 \udcff"}, [1, {"a": None}], question="为什么?")
    incidents.answer(incident, 1, "scope", "all", diagnosis={"verdict": "unknown"})
    incidents.feedback(incident, "yes", comment="thanks")
    job = jobs.submit("look", {"x": 1}, effect="reads", deadline_s=5, requested_by="ada")
    lease = jobs.claim("w", 30)
    assert lease is not None
    jobs.report(lease, 0.5, "half")
    jobs.finish(lease, "done", result={"ok": True})
    Audit(database).note(who="ada", role="viewer", face="http", did="look", outcome="done", detail={"n": 1})
    text, _ = Tokens(database).create("ada", Role.viewer)
    consent_key(database)
    return incident, job.id, text


def test_a_backup_holds_everything(database: Database, new_url: object, tmp_path: Path) -> None:
    incident, job, token = fill(database)
    file = backup_to(database, tmp_path / "backups")
    other = Database(new_url())  # type: ignore[operator]
    done = restore(other, file)
    assert done.rows == 9
    assert Incidents(other).get(incident) == Incidents(database).get(incident)
    assert Incidents(other).feedback_on(incident) == Incidents(database).feedback_on(incident)
    assert Jobs(other).get(job) == Jobs(database).get(job)
    assert Jobs(other).log(job) == Jobs(database).log(job)
    assert Audit(other).recent() == Audit(database).recent()
    assert Tokens(other).check(token).name == "ada"
    assert consent_key(other) == consent_key(database)
    # Counting goes on behind what was restored.
    assert Jobs(other).submit("look", {}, effect="reads", deadline_s=5, requested_by="ada").state == "queued"
    Audit(other).note(who="ada", role="viewer", face="http", did="look", outcome="done")
    assert len(Audit(other).recent()) == 2
    other.close()


@pytest.mark.postgres
def test_a_backup_moves_from_sqlite_to_postgres(postgres_server: str, tmp_path: Path, request: object) -> None:
    small = Database(f"sqlite:///{tmp_path / 'small.db'}")
    migrate(small)
    incident, *_ = fill(small)
    file = backup_to(small, tmp_path)
    big = Database(f"{postgres_server}/postgres")
    restore(big, file)
    assert Incidents(big).get(incident) == Incidents(small).get(incident)
    small.close()
    big.close()


def test_a_full_database_is_replaced_only_when_told_and_backed_up_first(database: Database, tmp_path: Path) -> None:
    old, *_ = fill(database)
    file = backup_to(database, tmp_path)
    new = Incidents(database).save({"verdict": "healthy"})
    with pytest.raises(StoreError, match="--replace"):
        restore(database, file)
    done = restore(database, file, replace=True, backup_folder=tmp_path)
    assert [row["id"] for row in Incidents(database).recent()] == [old]
    assert done.replaced is not None
    restore(database, done.replaced, replace=True, backup_folder=tmp_path)
    assert {row["id"] for row in Incidents(database).recent()} == {old, new}


def test_a_damaged_backup_changes_nothing(database: Database, tmp_path: Path) -> None:
    incident, *_ = fill(database)
    file = backup_to(database, tmp_path)
    whole = file.read_bytes()
    lines = gzip.decompress(whole).splitlines()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "short": gzip.compress(b"\n".join(lines[:-2] + lines[-1:])),
        "unended": gzip.compress(b"\n".join(lines[:-1])),
        "foreign": gzip.compress(b'{"a": 1}\n'),
        "text": b"hello",
        "empty": b"",
        "newer": gzip.compress(json.dumps({**json.loads(lines[0]), "schema": 999}).encode() + b'\n{"end":0}'),
    }
    for name, content in damaged.items():
        bad = tmp_path / f"{name}.gz"
        bad.write_bytes(content)
        with pytest.raises(StoreError):
            restore(database, bad, replace=True, backup_folder=tmp_path)
    assert Incidents(database).get(incident).revision == 2


def test_an_empty_database_has_nothing_to_back_up(url: str, tmp_path: Path) -> None:
    database = Database(url)
    with pytest.raises(StoreError, match="nothing to back up"):
        backup_to(database, tmp_path)
    assert list(tmp_path.glob("*.part")) == list(tmp_path.glob("*.gz")) == []
    database.close()
