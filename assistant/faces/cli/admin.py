"""Commands of whoever runs this program: settings, tokens, the store and its jobs.

:func:`mount` adds them to the command line. What they need is imported inside them, so that mounting costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from assistant.settings import Settings
    from assistant.store.database import Database
    from assistant.store.jobs import Job

config = typer.Typer(help="The settings: what is in force and where it comes from.", no_args_is_help=True)
token = typer.Typer(help="Bearer tokens for the HTTP and MCP servers.", no_args_is_help=True)
store = typer.Typer(help="The database: migrate, back up, restore, clear out.", no_args_is_help=True)
jobs = typer.Typer(help="Jobs: what runs, what ran, and how it went.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for programs")]


def mount(app: typer.Typer) -> None:
    """Add the groups ``config``, ``token``, ``store`` and ``jobs`` to the command line."""
    for name, group in (("config", config), ("token", token), ("store", store), ("jobs", jobs)):
        app.add_typer(group, name=name)


# --- config -----------------------------------------------------------------------------------------------------------


@config.callback()
def _config() -> None:
    """The settings: what is in force and where it comes from."""


@config.command("check")
def config_check(as_json: JsonOption = False) -> None:
    """Show every setting with its source, secrets hidden, and say what cannot be used (exit status 2)."""
    from assistant.settings import load_what_works

    settings, problems = load_what_works()
    targets, more = _checked_targets(settings)
    problems += more + _checked_rest(settings)
    if as_json:
        table = {
            "file": str(settings.file) if settings.file else None,
            "settings": {
                name: {"value": setting.shown, "source": setting.source} for name, setting in settings.values.items()
            },
            "targets": targets,
            "problems": list(problems),
        }
        typer.echo(json.dumps(table, ensure_ascii=False, indent=2))
    else:
        typer.echo(f"Settings file: {settings.file or 'none'}")
        rows = [(name, setting.shown, setting.source) for name, setting in settings.values.items()]
        _table(("setting", "value", "from"), rows)
        for name, address in targets.items():
            typer.echo(f"target {name}: {address}")
    for problem in problems:
        typer.echo(f"vllm-diagnose: {problem}", err=True)
    if problems:
        raise typer.Exit(2)


def _checked_targets(settings: Settings) -> tuple[dict[str, str], tuple[str, ...]]:
    """Every target's address by name, and what is wrong with the targets file or the credentials it names."""
    from assistant.settings import SettingsError
    from assistant.targets import load_targets

    if not settings.text("targets_file"):
        return {}, ()
    try:
        targets = load_targets(Path(settings.text("targets_file")))
    except SettingsError as error:
        return {}, error.problems
    problems: list[str] = []
    for target in targets.values():
        ways = [way for way in (target.metrics, *target.logs, target.node_tools) if way]
        for secret in (target.api_key, *(way.token for way in ways), *(way.password for way in ways)):
            try:
                if secret is not None:
                    secret.read()
            except SettingsError as error:
                problems += [f"Target {target.name}: {problem}" for problem in error.problems]
    return {name: target.address for name, target in targets.items()}, tuple(problems)


def _checked_rest(settings: Settings) -> tuple[str, ...]:
    """What is wrong with settings that only show it when they are used: proxy, authorities, database URL."""
    from tools.outbound import OutboundError
    from tools.pinned import split_proxy, tls_context

    problems: list[str] = []
    try:
        if proxy := settings.text("outbound.proxy"):
            split_proxy(proxy)
        if ca_file := settings.text("outbound.ca_file"):
            tls_context(ca_file)
    except OutboundError as error:
        problems.append(str(error))
    try:
        from assistant.store.database import StoreError, open_database
    except ImportError as error:
        return (*problems, f"Nothing can be saved: the package {error.name} is missing.")
    try:
        open_database(settings).close()
    except StoreError as error:
        problems.append(str(error))
    return tuple(problems)


# --- token ------------------------------------------------------------------------------------------------------------


@token.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="whom or what it is for")],
    role: Annotated[str, typer.Option("--role", help="viewer, operator or admin")] = "viewer",
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="an action it may use, or check_*; may be given again")
    ] = None,
    days: Annotated[float | None, typer.Option("--days", min=0.01, help="days after which it ends")] = None,
) -> None:
    """Make a token and print it: the only time that it can be seen."""
    from assistant.security.roles import Role
    from assistant.security.tokens import Tokens

    try:
        chosen = Role.of(role)
    except ValueError as error:
        _fail(str(error), 2)
    with opened_store() as database:
        text, made = Tokens(database).create(name, chosen, scopes=scope or (), expires_in_days=days)
        _note(database, "token create", {"token": made.id, "role": chosen.name})
    typer.echo(f"Token {made.id} for {name}, {chosen.name}. Keep it now; it is not shown again:", err=True)
    typer.echo(text)


@token.command("list")
def token_list(as_json: JsonOption = False) -> None:
    """Show all tokens, never their text."""
    from assistant.security.tokens import Tokens

    with opened_store() as database:
        found = Tokens(database).all()
    rows = [
        {
            "id": entry.id,
            "name": entry.name,
            "role": entry.role.name,
            "scopes": " ".join(entry.scopes) or "(all)",
            "created": _time(entry.created_at_ms),
            "expires": _time(entry.expires_at_ms) or "never",
            "state": state,
        }
        for entry, state in found
    ]
    _rows(rows, as_json, "There are no tokens.")


@token.command("revoke")
def token_revoke(identifier: Annotated[str, typer.Argument(metavar="ID", help="as `token list` shows it")]) -> None:
    """Make a token worthless at once."""
    from assistant.security.tokens import Tokens

    with opened_store() as database:
        entry = Tokens(database).revoke(identifier)
        _note(database, "token revoke", {"token": entry.id})
    typer.echo(f"Token {entry.id} for {entry.name} is revoked.")


# --- store ------------------------------------------------------------------------------------------------------------


@store.command("migrate")
def store_migrate(
    no_backup: Annotated[bool, typer.Option("--no-backup", help="change the database without a backup")] = False,
) -> None:
    """Bring the database to this version's schema, after a backup."""
    from assistant.store.database import open_database
    from assistant.store.migrations import migrate
    from assistant.store.opening import backup_folder

    settings = _settings()
    with _in_words():
        database = open_database(settings)
        done = migrate(database, backup_folder=backup_folder(settings), take_backup=not no_backup)
        database.close()
    if done.backup:
        typer.echo(f"Backup: {done.backup}")
    if done.before == done.after:
        typer.echo(f"The database {database.shown} has schema {done.after} already.")
    else:
        typer.echo(f"The database {database.shown} went from schema {done.before} to {done.after}.")


@store.command("backup")
def store_backup(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="where to; the configured folder unless given")
    ] = None,
) -> None:
    """Write everything into one compressed file that any of the databases can be restored from."""
    from assistant.store.backup import backup_to
    from assistant.store.opening import backup_folder

    with opened_store() as database:
        typer.echo(str(backup_to(database, folder or backup_folder(_settings()))))


@store.command("restore")
def store_restore(
    file: Annotated[Path, typer.Argument(help="a file that `store backup` or a migration wrote")],
    replace: Annotated[bool, typer.Option("--replace", help="replace what is there, after a backup of it")] = False,
) -> None:
    """Put a backup into the configured database."""
    from assistant.store.backup import restore
    from assistant.store.database import open_database
    from assistant.store.opening import backup_folder

    settings = _settings()
    with _in_words():
        database = open_database(settings)
        done = restore(database, file, replace=replace, backup_folder=backup_folder(settings))
        database.close()
    if done.replaced:
        typer.echo(f"What was there before: {done.replaced}")
    typer.echo(f"{done.rows} rows restored into {database.shown}.")


@store.command("prune")
def store_prune() -> None:
    """Remove what is older than the settings keep it."""
    from assistant.store.retention import prune

    with opened_store() as database:
        gone = prune(database, _settings())
    typer.echo(f"Removed: {gone.incidents} incidents, {gone.jobs} jobs, {gone.audit} audit lines.")


# --- jobs -------------------------------------------------------------------------------------------------------------


@jobs.command("list")
def jobs_list(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="how many, newest first")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show the newest jobs."""
    from assistant.store.jobs import Jobs

    with opened_store() as database:
        found = Jobs(database).recent(limit)
    rows = [
        {
            "id": job.id,
            "action": job.action,
            "state": job.state,
            "progress": _share(job),
            "created": _time(job.created_at_ms),
            "by": job.requested_by,
            "doing": job.error or job.doing,
        }
        for job in found
    ]
    _rows(rows, as_json, "There are no jobs.")


@jobs.command("show")
def jobs_show(job: Annotated[str, typer.Argument(metavar="ID")], as_json: JsonOption = False) -> None:
    """Show one job with its log and result."""
    from dataclasses import asdict

    from assistant.store.jobs import Jobs

    with opened_store() as database:
        found, lines = Jobs(database).get(job), Jobs(database).log(job, limit=2000)
    if as_json:
        table = {**asdict(found), "log": [asdict(line) for line in lines]}
        typer.echo(json.dumps(table, ensure_ascii=False, indent=2))
        return
    typer.echo(f"{found.id}  {found.action}  {found.state}  {_share(found)}".rstrip())
    typer.echo(f"arguments: {json.dumps(found.arguments, ensure_ascii=False)}")
    for label, moment in (
        ("created", found.created_at_ms),
        ("started", found.started_at_ms),
        ("ended", found.finished_at_ms),
    ):
        if moment:
            typer.echo(f"{label}: {_time(moment)}")
    for line in lines:
        typer.echo(f"{_time(line.at_ms)}  {_printable(line.text)}")
    if found.error:
        typer.echo(f"error: {_printable(found.error)}")
    if found.result is not None:
        typer.echo(json.dumps(found.result, ensure_ascii=False, indent=2))


@jobs.command("cancel")
def jobs_cancel(job: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Ask for a job's end."""
    from assistant.store.jobs import Jobs

    with opened_store() as database:
        found = Jobs(database).cancel(job)
        _note(database, "jobs cancel", {"job": found.id})
    if found.state == "running":
        typer.echo(f"Job {found.id} is asked to stop.")
    else:
        typer.echo(f"Job {found.id} is {found.state}.")


# --- what the commands share ------------------------------------------------------------------------------------------


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(f"vllm-diagnose: {sentence}", err=True)
    raise typer.Exit(code)


def _settings() -> Settings:
    from assistant.settings import SettingsError, load

    try:
        return load()
    except SettingsError as error:
        _fail("\nvllm-diagnose: ".join(error.problems), 2)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        from assistant.store.database import NotFoundError, StoreError
    except ImportError as error:
        _fail(f"The store needs the package {error.name}, which is missing.", 3)
    try:
        yield
    except NotFoundError as error:
        _fail(str(error), 2)
    except StoreError as error:
        _fail(str(error), 3)


@contextlib.contextmanager
def opened_store() -> Iterator[Database]:
    """The configured store, opened; every failure ends the program with its sentence."""
    settings = _settings()
    with _in_words():
        from assistant.store.opening import open_store

        with open_store(settings) as database:
            yield database


def _note(database: Database, did: str, detail: dict[str, Any]) -> None:
    from assistant.security.roles import LOCAL
    from assistant.store.audit import Audit

    Audit(database).note(who=LOCAL.id, role=LOCAL.role.name, face="cli", did=did, outcome="done", detail=detail)


def _time(milliseconds: int | None) -> str:
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _share(job: Job) -> str:
    return "" if job.progress is None else f"{job.progress:.0%}"


def _printable(text: str) -> str:
    from tools.redaction import clean

    return clean(text).replace("\n", " ")


def _rows(rows: list[dict[str, str]], as_json: bool, nothing: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif rows:
        _table(tuple(rows[0]), [tuple(_printable(value) for value in row.values()) for row in rows])
    else:
        typer.echo(nothing)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
