"""The commands of whoever runs the program, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from assistant.faces.cli import admin
from assistant.settings import load
from assistant.store.audit import Audit
from assistant.store.incidents import Incidents
from assistant.store.jobs import Jobs
from assistant.store.opening import open_store


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def command(*arguments: str) -> Result:
    app = typer.Typer()
    admin.mount(app)
    return CliRunner().invoke(app, list(arguments))


def test_config_check_shows_every_value_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DIAGNOSE_STORE_URL", "postgresql://u:hunter2@db/x")
    monkeypatch.setenv("VLLM_DIAGNOSE_DEADLINE_S", "30")
    shown = command("config", "check")
    assert shown.exit_code == 0, shown.output
    assert "hunter2" not in shown.output and "(set, hidden)" in shown.output
    assert "VLLM_DIAGNOSE_DEADLINE_S" in shown.output and "default" in shown.output
    table = json.loads(command("config", "check", "--json").stdout)
    assert table["settings"]["deadline_s"] == {"value": "30.0", "source": "VLLM_DIAGNOSE_DEADLINE_S"}
    assert table["problems"] == []


def test_config_check_says_everything_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.yaml").write_text("targets: {a: {address: 'http://h:8000', api_key_env: NOT_SET_ANYWHERE}}")
    for name, value in {
        "TARGETS_FILE": str(tmp_path / "t.yaml"),
        "OUTBOUND_PROXY": "socks5://u:hunter2@p:1080",
        "STORE_URL": "mysql://x/y",
        "JOBS_AT_ONC": "3",
    }.items():
        monkeypatch.setenv(f"VLLM_DIAGNOSE_{name}", value)
    shown = command("config", "check")
    assert shown.exit_code == 2
    for words in (
        "NOT_SET_ANYWHERE",
        "proxy cannot be used",
        "only sqlite and postgresql",
        "VLLM_DIAGNOSE_JOBS_AT_ONCE is",
    ):
        assert words in shown.stderr, words
    assert "hunter2" not in shown.output
    assert "target a: http://h:8000" in shown.stdout
    assert command("jobs", "list").exit_code == 2


def test_tokens_are_made_shown_and_revoked() -> None:
    made = command("token", "create", "ci", "--role", "operator", "--scope", "check_*", "--days", "30")
    text = made.stdout.strip()
    assert made.exit_code == 0 and text.startswith("vdg_")
    listed = command("token", "list")
    assert text not in listed.output and "operator" in listed.output and "active" in listed.output
    (entry,) = json.loads(command("token", "list", "--json").stdout)
    assert command("token", "revoke", entry["id"]).exit_code == 0
    assert "revoked" in command("token", "list").output
    assert command("token", "revoke", "nope").exit_code == 2
    wrong = command("token", "create", "x", "--role", "root")
    assert wrong.exit_code == 2 and "expected viewer, operator, admin" in wrong.stderr
    with open_store(load()) as database:
        assert [line["did"] for line in Audit(database).recent()] == ["token revoke", "token create"]
        assert text not in str(Audit(database).recent())


def test_the_store_is_migrated_backed_up_restored_and_pruned(tmp_path: Path) -> None:
    assert command("store", "backup").exit_code == 0
    assert "already" in command("store", "migrate").stdout
    with open_store(load()) as database:
        incident = Incidents(database).save({"verdict": "unknown"})
    file = command("store", "backup", "--folder", str(tmp_path / "b")).stdout.strip()
    assert Path(file).is_file()
    refused = command("store", "restore", file)
    assert refused.exit_code == 3 and "--replace" in refused.stderr
    done = command("store", "restore", file, "--replace")
    assert done.exit_code == 0 and "What was there before" in done.stdout
    with open_store(load()) as database:
        assert Incidents(database).get(incident).id == incident
    assert command("store", "prune").stdout == "Removed: 0 incidents, 0 jobs, 0 audit lines.\n"
    assert command("store", "restore", str(tmp_path / "none.gz")).exit_code == 3


def test_jobs_are_listed_shown_and_cancelled() -> None:
    assert command("jobs", "list").stdout == "There are no jobs.\n"
    with open_store(load()) as database:
        jobs = Jobs(database)
        job = jobs.submit("look", {"x": "显存"}, effect="reads", deadline_s=5, requested_by="ada")
        lease = jobs.claim("w", 30)
        assert lease is not None
        jobs.report(lease, 0.5, "half \x1b[31mway")
    shown = command("jobs", "show", job.id)
    assert "50%" in shown.stdout and "显存" in shown.stdout and "\x1b" not in shown.stdout
    assert json.loads(command("jobs", "show", job.id, "--json").stdout)["log"][0]["line"] == 1
    assert "asked to stop" in command("jobs", "cancel", job.id).stdout
    assert "running" in command("jobs", "list").stdout
    missing = command("jobs", "show", "nope")
    assert missing.exit_code == 2 and "no job 'nope'" in missing.stderr


def test_every_command_has_its_line_in_the_documentation() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = "".join((docs / name).read_text("utf-8") for name in ("settings.md", "security.md", "store.md"))
    for name, group in (("config", admin.config), ("token", admin.token), ("store", admin.store), ("jobs", admin.jobs)):
        for entry in group.registered_commands:
            assert f"{name} {entry.name}" in text, f"{name} {entry.name}"
