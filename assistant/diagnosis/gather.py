"""From what a person gives (words, files) to a case. Reading is the only effect here; deciding comes after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from assistant.diagnosis.model import Case, Language
from knowledge.catalog import Catalog
from knowledge.text import language_of
from tools.evidence import Reading
from tools.logs import LogInput, LogReading, ReadOptions, SourceError, read_logs

#: The name under which the person's own words appear as a source.
WORDS = "text"


def read_case(
    catalog: Catalog,
    *,
    text: str = "",
    logs: Sequence[LogInput] = (),
    options: ReadOptions | None = None,
    language: Language | None = None,
    vllm_version: str | None = None,
    target: str | None = None,
    answers: dict[str, str] | None = None,
    beside: Reading | None = None,
) -> tuple[Case, LogReading | None]:
    """Reads everything once. Log lines inside the text are read as a log, the rest as the person's words.

    ``beside`` is what other tools brought. Raises ``OSError`` where no log can be opened and nothing else was brought.
    """
    inputs = list(logs)
    if text.strip():
        inputs.append(LogInput(name=WORDS, data=text.encode("utf-8", "replace"), pasted=True))
    more = beside or Reading()
    reading = None
    if inputs:
        try:
            reading = read_logs(inputs, tuple(catalog.messages.values()), options or ReadOptions())
        except SourceError as error:
            if not more.evidence:
                raise
            more += Reading(not_measured=(("log", str(error)),))
    prose = reading.prose if reading is not None else text
    if prose:
        from tools.redaction import clean, redact

        prose = redact(clean(prose))  # before it is kept, shown or compared with anything
    if language is None:
        language = "zh" if language_of(prose) == "zh" else "en"
    case = Case(
        reading=more if reading is None else reading.reading + more,
        text=prose,
        language=language,
        vllm_version=vllm_version,
        target=target,
        answers=answers or {},
    )
    return case, reading


def case_of_reading(reading: LogReading, language: Language) -> Case:
    """A case that consists of one reading of a log."""
    return Case(reading=reading.reading, language=language)


def log_inputs(paths: Sequence[Path]) -> list[LogInput]:
    """Files as inputs, in the order given; folders are expanded by the reader's own rules."""
    from tools.logs import expand

    return expand(paths)
