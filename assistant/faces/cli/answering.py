"""What `ask`, `logs` and `batch` do: read, diagnose, show."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from assistant import __version__
from assistant.diagnosis.captures import captured_in
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import log_inputs, read_case
from assistant.diagnosis.model import Language
from assistant.faces.cli.options import fail
from assistant.faces.cli.showing import EXIT as EXIT
from assistant.faces.cli.showing import Shown as Shown
from assistant.faces.cli.showing import catalogue as catalogue
from assistant.faces.cli.showing import conclude as conclude
from assistant.faces.cli.showing import show as show
from knowledge.catalog import Catalog
from tools.logs import LogInput, ReadOptions

if TYPE_CHECKING:
    from assistant.diagnosis.looking import Found
    from assistant.targets import Target
    from tools.addresses import Policy

#: A question on standard input is read up to this many characters; logs have no such limit.
MOST_TEXT = 4_000_000
#: A line of a batch file is refused beyond this many characters.
MOST_LINE = 16_000_000
#: From this size on, reading shows its progress on a terminal.
_PROGRESS_BYTES = 64 << 20


def parse_answers(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` pairs; refuses names that are no question and values that are no choice."""
    answers: dict[str, str] = {}
    known = catalogue() if given else None
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or known is None:
            fail(f"--answer {pair!r} is not NAME=VALUE; for example --answer incident.phase=startup")
        declared = known.observable(name)
        if declared is None or declared.ask is None:
            asked = ", ".join(o.name for o in known.observables.values() if o.ask)
            fail(f"--answer {name!r} is no question that is asked. These are: {asked}")
        if value == "unknown":
            continue
        if declared.choices and value not in declared.choices:
            fail(f"--answer {name}={value!r} is not one of its choices: {', '.join(declared.choices)}, unknown")
        answers[name] = value
    return answers


def parse_run(run: str) -> int | Literal["last", "all"]:
    """``last``, ``all`` or a number from 1."""
    if run == "last" or run == "all":
        return "last" if run == "last" else "all"
    if run.isascii() and run.isdigit() and int(run) >= 1:
        return int(run)
    return fail(f"--run {run!r} is neither last, all, nor the number of a run (1 is the first)")


def parse_time(value: str | None, option: str) -> datetime | None:
    """A date and time in ISO form, or a time of today."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", value):
        today = datetime.now().astimezone().date()  # the person's own day
        value = f"{today.isoformat()}T{value.rjust(5, '0') if value.count(':') == 1 else value.rjust(8, '0')}"
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        fail(f"{option} {value!r} is no time; write 2026-11-21T14:05 or 14:05")


def answer(
    *,
    text: str,
    paths: Sequence[Path],
    language: str | None,
    vllm_version: str | None,
    answers: dict[str, str],
    shown: Shown,
    deadline_s: float,
    run: int | Literal["last", "all"] = "last",
    since: datetime | None = None,
    until: datetime | None = None,
    compare: Path | None = None,
    target: str | None = None,
    live: bool = True,
) -> None:
    """Reads, diagnoses and prints one incident, then ends with its exit status.

    Of a ``target`` the logs and events that it names are read, and with ``live`` its metrics over some seconds.
    """
    known = catalogue()
    inputs = _open_inputs(paths)
    options = ReadOptions(run=run, since=since, until=until, deadline_s=deadline_s, progress=_progress(inputs))
    place, policy = _target(target)
    if not live and place is not None and not place.logs:
        fail(f"the target {place.name} has no logs in the targets file; add a logs: entry to it")
    try:
        with _looked_at(place, policy, options) as found:
            case, reading = read_case(
                known,
                text=text,
                logs=[*inputs, *found.logs],
                options=options,
                language=language,  # type: ignore[arg-type]
                vllm_version=vllm_version,
                target=target,
                answers=answers,
                beside=found.reading,
            )
            if not live and found.places and not found.answered and not text.strip() and not inputs:
                fail("; ".join(why for _, why in found.reading.not_measured), 3)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'the log'} cannot be read: {error.strerror or error}", 3)
    if target is not None and live:
        from assistant.faces.cli.live import with_target

        case = with_target(case, target, deadline_s)

    case = replace(case, reading=case.reading + captured_in(paths))
    engine = Engine(known)
    if compare is not None:
        from assistant.diagnosis.compare import compare_logs

        good = _read_one(known, compare, deadline_s)
        notes, evidence = compare_logs(good, case, known)
        case = replace(case, reading=replace(case.reading, evidence=case.reading.evidence + evidence))
        diagnosis = engine.diagnose(case)
        diagnosis = replace(diagnosis, notes=(*diagnosis.notes, *notes))
    else:
        diagnosis = engine.diagnose(case)
    if target is None and (not reading or not diagnosis.looked_at and not text):
        fail("nothing could be read from what was given", 3)
    conclude(diagnosis, known, shown, text)
    if shown.exit_code:
        raise typer.Exit(EXIT[diagnosis.verdict])


def _target(given: str | None) -> tuple[Target | None, Policy | None]:
    """The target that a name or an address means and what may be connected to for it; ends with a sentence if none."""
    if given is None:
        return None, None
    from assistant.faces.cli.live import named
    from assistant.fleet.naming import known_targets, policy_of
    from assistant.settings import SettingsError, load

    try:
        settings = load()
        targets = known_targets(settings)
    except SettingsError as error:
        fail("; ".join(error.problems))
    target = named(given, targets)
    return target, policy_of(settings, targets, target)


def _looked_at(target: Target | None, policy: Policy | None, options: ReadOptions) -> AbstractContextManager[Found]:
    """What the target's own logs and events show, while the context is open; nothing without a target."""
    from assistant.diagnosis.looking import Found, looked_at
    from assistant.settings import SettingsError
    from tools.evidence import Reading

    if target is None or policy is None:
        return nullcontext(Found(Reading(), (), 0, 0))
    try:
        for access in target.logs:
            access.headers()  # a credential that is not there is said before anything is asked
    except SettingsError as error:
        fail(str(error))
    return looked_at(target, policy, options)


def _read_one(known: Catalog, path: Path, deadline_s: float) -> Any:
    try:
        return read_case(known, logs=_open_inputs([path]), options=ReadOptions(deadline_s=deadline_s))[0]
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}", 3)


def _open_inputs(paths: Sequence[Path]) -> list[LogInput]:
    for path in paths:
        if str(path) != "-" and not path.exists():
            fail(f"{path} does not exist; give the path of a log file or folder, or - for standard input", 3)
    try:
        return log_inputs(paths)
    except OSError as error:
        fail(f"{error.filename} cannot be read: {error.strerror}", 3)


def _progress(inputs: Sequence[LogInput]) -> Callable[[int, int | None], None] | None:
    """A progress line on standard error, for large inputs on a terminal only."""
    size = sum(i.path.stat().st_size for i in inputs if i.path is not None and i.path.is_file())
    if size < _PROGRESS_BYTES or not sys.stderr.isatty():
        return None

    def report(done: int, total: int | None) -> None:
        share = f"{done * 100 // total} %" if total else ""
        end = "\r" if total is None or done < total else "\r\x1b[K"
        print(f"\r\x1b[Kreading {done >> 20} MiB {share}", end=end, file=sys.stderr, flush=True)

    return report


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    handle = sys.stdin if str(file) == "-" else None
    try:
        handle = handle or file.open(encoding="utf-8", errors="replace")
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}", 3)
    with handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            if len(line) > MOST_LINE:
                fail(f"{file}:{number}: a line of {len(line):,} characters; at most {MOST_LINE:,} are read")
            try:
                row = json.loads(line)
            except ValueError as error:
                fail(f"{file}:{number}: this is no JSON ({error})")
            if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "id" not in row:
                fail(f'{file}:{number}: expected an object with "id" and "text" (a string)')
            yield number, row


def batch(file: Path, *, full: bool, language: str | None) -> None:
    """Diagnoses line after line; an answer is printed as soon as it is there."""
    known = catalogue()
    engine = Engine(known)
    for _, row in _rows(file):
        version = row.get("vllm_version")
        case, _ = read_case(
            known,
            text=row["text"],
            language=language,  # type: ignore[arg-type]
            vllm_version=version if isinstance(version, str) else None,
        )
        diagnosis = engine.diagnose(case)
        if full:
            out = {"id": row["id"], **diagnosis.to_json(engine=__version__, full=True)}
        else:
            out = {
                "id": row["id"],
                "verdict": diagnosis.verdict,
                "causes": [{"id": f.id, "confidence": round(f.confidence, 4)} for f in diagnosis.causes],
            }
        print(json.dumps(out, ensure_ascii=False), flush=True)


def follow_log(paths: Sequence[Path], language: str, shown: Shown) -> None:
    """Reads on as the log grows and diagnoses the run whenever a failure is added; ends on an interruption."""
    from threading import Event

    from assistant.diagnosis.gather import case_of_reading
    from tools.logs import LogReading, follow

    if len(paths) != 1 or str(paths[0]) == "-":
        fail("--follow takes exactly one log file")
    known = catalogue()
    engine = Engine(known)
    lang: Language = "zh" if language == "zh" else "en"
    told: set[str] = set()

    def announce(reading: LogReading) -> None:
        first = reading.failures[0] if reading.failures else None
        diagnosis = engine.diagnose(case_of_reading(reading, lang))
        label = diagnosis.causes[0].id if diagnosis.verdict == "cause" else diagnosis.verdict
        if label in told:
            return
        told.add(label)
        if first is not None:
            text = first.quotes[-1][1] if first.quotes else ""
            print(known.word("follow-failure", lang, line=first.first_line, text=text), flush=True)
        show(diagnosis, known, shown)
        sys.stdout.flush()

    try:
        follow(paths[0], tuple(known.messages.values()), announce, Event())
    except OSError as error:
        fail(f"{paths[0]} cannot be read: {error.strerror or error}", 3)
