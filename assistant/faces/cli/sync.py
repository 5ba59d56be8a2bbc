"""`vllm-diagnose sync`: brings the tables of vLLM's versions up to a release."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from knowledge.sync.touched import Touched
    from knowledge.sync.update import Changes

#: Names of one kind that are listed in text; the JSON answer has them all.
MOST_LISTED = 25


def mount(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(sync)


def sync(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="a release of vLLM, for example 0.33.0")],
    given: Annotated[
        Path | None,
        typer.Option("--from", metavar="WHEEL-OR-FOLDER", help="a wheel, source archive or checkout instead of pip"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would change and write nothing")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json")] = "text",
    deadline: Annotated[float, typer.Option("--deadline", help="seconds until fetching is given up")] = 600.0,
) -> None:
    """Read a published vLLM release (never run it) and update the tables of its names.

    Fetches the package with pip, reads arguments, environment variables, metrics and messages from its sources, enters
    them in knowledge/vllm, and says what is new, gone and renamed and what here names it.
    """
    from assistant.faces.cli.options import fail
    from knowledge.sources import ROOT
    from knowledge.sync.release import read_release
    from knowledge.sync.touched import touched
    from knowledge.sync.tree import SourceError
    from knowledge.sync.update import update
    from knowledge.versions import parse
    from tools.packages import PackageError, fetch_release, open_release, workplace

    if output not in ("text", "json"):
        fail(f"-o {output!r} is not known here; give text or json.")
    if parse(version) is None:
        fail(f"{version!r} is no version; give one such as 0.33.0 or 0.6.3.post1.")
    if not (ROOT / "causes").is_dir():
        fail(f"{ROOT} is an installed package without its sources; run sync in a checkout of vllm-diagnose.", 3)
    say = _progress()
    try:
        with workplace() as folder:
            began = time.monotonic()
            if given is not None:
                root, what = open_release(given, folder), given.name
            else:
                fetched = fetch_release(version, folder, deadline_s=deadline, report=say)
                root, what = fetched.root, fetched.what
            fetched_s, began = time.monotonic() - began, time.monotonic()
            found = read_release(root, lambda part: say(f"reading {part}"))
            if found.stated_version and parse(found.stated_version) not in (None, parse(version), (0, 0, 0, 0)):
                fail(f"{what} calls itself {found.stated_version}, not {version}; nothing was written.")
            changes = update(version, found, dry_run=dry_run)
            rows = touched(changes)
    except PackageError as error:
        fail(str(error), 3)
    except SourceError as error:
        fail(str(error), 3)
    except OSError as error:
        fail(f"{error.filename or 'the tables'}: {error.strerror or error}", 3)
    finally:
        say("")
    taken = {"fetching_s": round(fetched_s, 1), "reading_s": round(time.monotonic() - began, 1)}
    if output == "json":
        import json

        typer.echo(json.dumps({**as_data(changes, rows), "package": what, "dry_run": dry_run, **taken}))
    else:
        typer.echo(f"vLLM {version} from {what}, fetched in {taken['fetching_s']} s, read in {taken['reading_s']} s")
        typer.echo(as_text(changes, rows, dry_run))


def _progress() -> Any:
    """Writes one line over itself on a terminal, and nothing elsewhere."""
    import sys

    if not sys.stderr.isatty():
        return lambda text: None

    def say(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text[:100]}")
        sys.stderr.flush()

    return say


def as_data(changes: Changes, rows: list[Touched]) -> dict[str, Any]:
    """The changes as one JSON object."""
    from dataclasses import asdict

    from knowledge.sync.touched import all_names

    return {
        "version": changes.version,
        "compared_with": changes.before,
        "known_before": changes.known,
        "written": changes.written,
        "tables": {
            name.removesuffix(".json"): {
                "new": difference.new,
                "gone": difference.gone,
                "changed": difference.changed,
                "renamed": [{"old": a, "new": b, "certain": c} for a, b, c in difference.renamed],
            }
            for name, difference in changes.tables.items()
        },
        "touched": [asdict(row) for row in rows],
        "touches": {kind: all_names(rows, kind) for kind in ("intents", "causes", "documents", "conditions")},
        "to_mend": all_names(rows, "intents_to_mend"),
        "failures_nobody_tracks": changes.not_tracked,
    }


def as_text(changes: Changes, rows: list[Touched], dry_run: bool) -> str:
    """The changes for a person: what a release changed against the one before, and who names it."""
    lines = []
    for table, difference in changes.tables.items():
        if not difference:
            continue
        since = f"since {changes.before}" if changes.before else "in the first version"
        lines.append(f"\n{table.removesuffix('.json')} {since}")
        lines += _listed("new", difference.new) + _listed("gone", difference.gone)
        lines += _listed("renamed", [f"{a} -> {b}{'' if c else ' (perhaps)'}" for a, b, c in difference.renamed])
        lines += _listed("changed", [f"{name}: {'; '.join(rows_)}" for name, rows_ in difference.changed.items()])
    if rows:
        lines.append("\ntouched here")
        for row in rows:
            parts = [
                f"{kind} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
                for kind in ("intents", "causes", "documents", "conditions")
                if (names := getattr(row, kind))
            ]
            mend = f"  MEND: {', '.join(row.intents_to_mend)}" if row.intents_to_mend else ""
            lines.append(f"  {row.how} {row.name}: {'; '.join(parts)}{mend}")
    if changes.not_tracked:
        lines.append(f"\n{changes.not_tracked} failure texts of this release have no id in messages.json.")
    if dry_run:
        lines.append("Nothing was written (--dry-run).")
    elif changes.written:
        lines.append(f"Written: {', '.join(changes.written)}. See them with `git diff knowledge/vllm`.")
    else:
        lines.append("The tables held all of this already; nothing was written.")
    return "\n".join(lines)


def _listed(word: str, names: list[str]) -> list[str]:
    shown = [f"  {word}: {name}" for name in names[:MOST_LISTED]]
    return [*shown, f"  {word}: {len(names) - MOST_LISTED} more (-o json)"] if len(names) > MOST_LISTED else shown
