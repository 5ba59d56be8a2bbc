"""`feedback`, `feedback-report`, `feedback-export`: what people say of diagnoses, and what can be learned from it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from assistant.faces.cli.options import fail


class Helped(StrEnum):
    """Whether a diagnosis was right."""

    yes = "yes"
    partly = "partly"
    no = "no"


def mount(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(feedback)
    app.command("feedback-report")(report)
    app.command("feedback-export")(export)


def feedback(
    incident: Annotated[str, typer.Argument(help="the id that `--save` printed")],
    helped: Annotated[Helped, typer.Argument(help="whether the diagnosis was right")],
    comment: Annotated[str, typer.Argument(help="the fix that worked, or the id of the cause that it was")] = "",
) -> None:
    """Say whether the diagnosis of a saved incident was right."""
    from assistant.faces.cli.admin import opened_store
    from assistant.settings import load
    from assistant.store.incidents import Incidents
    from assistant.store.saving import cleaner
    from tools.redaction import clean

    with opened_store() as database:
        words = cleaner(load())(clean(comment))
        Incidents(database).feedback(incident, helped.value, comment=words, given_by="command line")
    print(f"kept with incident {incident}", file=sys.stderr)


def report(as_json: Annotated[bool, typer.Option("--json", help="print JSON for programs")] = False) -> None:
    """Show for every cause how often people agreed with it."""
    from assistant.faces.cli.admin import opened_store
    from assistant.store.feedback import Feedback

    with opened_store() as database:
        rows = Feedback(database).per_cause()
    if as_json:
        found = [
            {"cause": r.cause, "incidents": r.incidents, "yes": r.yes, "partly": r.partly, "no": r.no} for r in rows
        ]
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    width = max([len(row.cause) for row in rows] + [5])
    print(f"{'cause':{width}}  incidents   yes  partly    no")
    for row in rows:
        print(f"{row.cause:{width}}  {row.incidents:9}  {row.yes:4}  {row.partly:6}  {row.no:4}")


def export(
    file: Annotated[Path, typer.Argument(help="JSON lines are written there; - is standard output")],
) -> None:
    """Write judged incidents as labelled ones, redacted: what `batch` reads and accuracy is measured with."""
    from assistant.faces.cli.admin import opened_store
    from assistant.faces.cli.answering import catalogue
    from assistant.labelling import labelled
    from assistant.store.feedback import Feedback
    from tools.redaction import Redactor

    clean = Redactor(addresses=True, emails=True).redact
    with opened_store() as database:
        rows = list(labelled(Feedback(database).judged(), catalogue(), clean))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row is not None)
    if str(file) == "-":
        print(lines, end="")
    else:
        try:
            file.write_text(lines, encoding="utf-8", errors="replace")
        except OSError as error:
            fail(f"{file} cannot be written: {error.strerror}", 3)
    kept = sum(row is not None for row in rows)
    rest = len(rows) - kept
    print(f"{kept} labelled incidents; {rest} left out, because nobody said what it was instead", file=sys.stderr)
