"""`show` and `answer`: a saved incident again, and on from there with an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant import __version__
from assistant.faces.cli.options import ExitCodeOption, Output, OutputOption, PathOption

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis
    from assistant.store.database import Database


def mount(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(show)
    app.command()(answer)


def show(
    incident: Annotated[str, typer.Argument(help="the id that `--save` printed")],
    output: OutputOption = Output.text,
    path: PathOption = False,
    exit_code: ExitCodeOption = False,
) -> None:
    """Show a saved incident again, diagnosed from its saved evidence."""
    _again(incident, {}, output, path, exit_code)


def answer(
    incident: Annotated[str, typer.Argument(help="the id that `--save` printed")],
    question: Annotated[str, typer.Argument(help="the id of the question, for example incident.phase")],
    value: Annotated[str, typer.Argument(help="one of its choices")],
    output: OutputOption = Output.text,
    path: PathOption = False,
    exit_code: ExitCodeOption = False,
) -> None:
    """Answer a question of a saved incident and diagnose it again with that."""
    from assistant.faces.cli.answering import parse_answers

    given = parse_answers([f"{question}={value}"])
    _again(incident, given, output, path, exit_code)


def _again(incident: str, given: dict[str, str], output: Output, path: bool, exit_code: bool) -> None:
    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.model import case_from_json
    from assistant.faces.cli.admin import opened_store
    from assistant.faces.cli.answering import EXIT, Shown, catalogue
    from assistant.faces.cli.answering import show as print_diagnosis
    from assistant.faces.cli.options import fail
    from assistant.store.incidents import Incidents

    known = catalogue()
    with opened_store() as database:
        incidents = Incidents(database)
        saved = incidents.get(incident)
        try:
            case = case_from_json(saved.evidence[0])
        except (KeyError, ValueError, TypeError, IndexError) as error:
            fail(f"incident {incident} was saved in a form that cannot be read back ({error!r})", 3)
        before = {a.question: a.value for a in saved.answers}
        case = replace(case, answers={**case.answers, **before, **given})
        diagnosis = Engine(known).diagnose(case)
        revision = saved.revision
        for question, value in given.items():
            body = {**diagnosis.to_json(engine=__version__), "incident": incident}
            revision = incidents.answer(
                incident,
                revision=revision,
                question=question,
                value=value,
                given_by="command line",
                diagnosis=body,
                evidence=saved.evidence,
            )
        seen = _seen(database, diagnosis, incident)
    print_diagnosis(diagnosis, known, Shown(output.value, False, path), incident, revision, seen_before=seen)
    if exit_code:
        raise typer.Exit(EXIT[diagnosis.verdict])


def _seen(database: Database, diagnosis: Diagnosis, incident: str) -> list[dict[str, Any]]:
    """Earlier incidents with the same cause."""
    from assistant.store.feedback import Feedback

    if diagnosis.verdict != "cause":
        return []
    found = Feedback(database).seen_before(diagnosis.causes[0].id, diagnosis.target, besides=incident)
    return [seen.to_json() for seen in found]
