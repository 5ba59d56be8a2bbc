"""`bundle create` and `bundle open`: one incident in one file, and the same answer from it on another machine."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assistant.faces.cli.options import (
    AnswerOption,
    DeadlineOption,
    ExitCodeOption,
    LangOption,
    Output,
    OutputOption,
    PathOption,
    VersionOption,
    fail,
)

if TYPE_CHECKING:
    from assistant.diagnosis.model import Case
    from tools.logs import LogInput

app = typer.Typer(help="One incident in one redacted file that gives the same answer elsewhere.", no_args_is_help=True)


@app.callback()
def _bundle() -> None:
    """One incident in one redacted file that gives the same answer elsewhere."""


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="the bundle is written there (.zip); an existing file is left alone")],
    incident: Annotated[str | None, typer.Option("--incident", help="a saved incident")] = None,
    text: Annotated[str, typer.Option("--text", help="what you see, in English or Chinese")] = "",
    log: Annotated[list[Path] | None, typer.Option("--log", help="a log of the incident; may be given again")] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="a live server: its address or configured name")
    ] = None,
    lang: LangOption = None,
    vllm_version: VersionOption = None,
    answer: AnswerOption = None,
    addresses: Annotated[bool, typer.Option("--addresses", help="keep IP and e-mail addresses")] = False,
    deadline: DeadlineOption = 60.0,
) -> None:
    """Put logs, live figures and their diagnosis, or a saved incident, into one file without secrets."""
    from assistant import bundles
    from assistant.diagnosis.diagnose import Engine
    from assistant.faces.cli.answering import catalogue
    from tools.redaction import Redactor

    if incident and (text or log or target):
        fail("--incident stands alone: a saved incident has its own words and evidence")
    if not incident and not (text.strip() or log or target):
        fail("nothing was given. Give --log FILE, --target NAME, --text WORDS, or --incident ID.")
    logs: list[tuple[str, bytes]] = []
    if incident:
        case = _saved(incident)
    else:
        case, logs = _read(text, log or [], target, lang.value if lang else None, vllm_version, answer or [], deadline)
    clean = Redactor(addresses=not addresses, emails=not addresses)
    try:
        data = bundles.pack(case, Engine(catalogue()), clean.redact, logs=logs, incident=incident)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except bundles.BundleError as error:
        fail(str(error), 3)
    except FileExistsError:
        fail(f"{file} exists already; name another file")
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}", 3)
    kept = f"{len(data):,} bytes, {clean.replaced} secrets and addresses replaced"
    print(f"wrote {file} ({kept})", file=sys.stderr)


@app.command("open")
def open_(
    file: Annotated[Path, typer.Argument(help="a bundle")],
    report: Annotated[bool, typer.Option("--report", help="print a bug report in the form of vLLM's template")] = False,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    path: PathOption = False,
    exit_code: ExitCodeOption = False,
) -> None:
    """Diagnose the incident of a bundle again. Nothing of it is written to this machine."""
    from assistant import bundles
    from assistant.diagnosis.diagnose import Engine
    from assistant.faces.cli.answering import EXIT, Shown, catalogue, show
    from assistant.report import bug_report

    known = catalogue()
    try:
        with file.open("rb") as stream:
            data = stream.read(bundles.MOST_BYTES + 1)
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}", 3)
    try:
        bundle = bundles.unpack(data)
        diagnosis, same = bundles.replay(bundle, Engine(known), "en" if report else lang.value if lang else None)
    except bundles.BundleError as error:
        fail(f"{file}: {error}", 3)
    if report:
        print(bug_report(diagnosis, bundle.environment, known), end="")
        return
    show(diagnosis, known, Shown(output.value, False, path))
    if same:
        said = known.word("bundle-same", diagnosis.language)
    else:
        causes = bundle.diagnosis.get("causes") or [{}]
        named = causes[0].get("id", "-") if isinstance(causes, list) and isinstance(causes[0], dict) else "-"
        said = known.word(
            "bundle-differs",
            diagnosis.language,
            verdict=str(bundle.diagnosis.get("verdict"))[:20],
            cause=json.dumps(str(named)[:80]),
            engine=json.dumps(str(bundle.manifest.get("engine"))[:20]),
        )
    print(said, file=sys.stderr)
    if exit_code:
        raise typer.Exit(EXIT[diagnosis.verdict])


def _saved(incident: str) -> Case:
    from assistant.diagnosis.model import case_from_json
    from assistant.faces.cli.admin import opened_store
    from assistant.store.incidents import Incidents

    with opened_store() as database:
        saved = Incidents(database).get(incident)
    try:
        case = case_from_json(saved.evidence[0])
    except (KeyError, ValueError, TypeError, IndexError) as error:
        fail(f"incident {incident} was saved in a form that cannot be read back ({error!r})", 3)
    return replace(case, answers={**case.answers, **{a.question: a.value for a in saved.answers}})


def _read(
    text: str,
    paths: list[Path],
    target: str | None,
    language: str | None,
    vllm_version: str | None,
    answers: list[str],
    deadline_s: float,
) -> tuple[Case, list[tuple[str, bytes]]]:
    from assistant.bundles import MOST_UNPACKED
    from assistant.diagnosis.gather import log_inputs, read_case
    from assistant.faces.cli.answering import catalogue, parse_answers
    from tools.logs import ReadOptions

    for path in paths:
        if not path.exists():
            fail(f"{path} does not exist; give the path of a log file or folder", 3)
    try:
        inputs = log_inputs(paths)
        case, _ = read_case(
            catalogue(),
            text=text,
            logs=inputs,
            options=ReadOptions(deadline_s=deadline_s),
            language=language,  # type: ignore[arg-type]
            vllm_version=vllm_version,
            answers=parse_answers(answers),
        )
        logs = [(given.name, _tail(given, MOST_UNPACKED // 4)) for given in inputs if given.path is not None]
    except (OSError, ValueError) as error:
        fail(f"the logs cannot be read: {error}", 3)
    if target is not None:
        from assistant.faces.cli.live import with_target

        case = with_target(case, target, deadline_s)
    return case, logs


def _tail(given: LogInput, most: int) -> bytes:
    """The end of a log as it is read: unpacked, and as UTF-8 where it was UTF-16."""
    from tools.logs.source import opened, read_up_to

    kept = b""
    with opened(given) as (stream, _):
        while piece := read_up_to(stream, 1 << 20):
            kept = (kept + piece)[-most:] if len(kept) + len(piece) > most else kept + piece
    return kept
