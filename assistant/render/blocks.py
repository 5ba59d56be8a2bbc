"""A diagnosis as blocks. Every face draws these; none composes a sentence of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from assistant.diagnosis.model import Advice, Collect, Diagnosis, Finding, Language, NextStep
from knowledge.catalog import Catalog
from knowledge.shapes import Cause

Tone = Literal["plain", "good", "bad", "unsure", "quiet"]


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    tone: Tone = "plain"
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Quotation:
    """Text from outside. A face shows it as quoted, never as its own words."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """Something to copy; ``changed`` are pieces of it that are new, to be marked."""

    text: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One numbered or bulleted entry with what belongs to it."""

    title: str
    tags: tuple[str, ...] = ()
    body: tuple[Block, ...] = ()
    number: int | None = None


Block = Heading | Text | Quotation | Command | Item


def diagnosis_blocks(
    diagnosis: Diagnosis, catalog: Catalog, *, show_path: bool = False, typed: bool = False
) -> Iterator[Block]:
    """The whole answer, most important first; ``typed`` adds to each question how the command line is answered."""
    word, lang = catalog.word, diagnosis.language
    first = diagnosis.causes[0] if diagnosis.causes else None
    if diagnosis.verdict == "cause" and first is not None:
        yield from _cause(first, diagnosis, catalog)
    else:
        tone: Tone = "good" if diagnosis.verdict == "healthy" else "unsure"
        yield Heading(word(f"heading-{diagnosis.verdict}", lang), tone, 1)
        yield Text(diagnosis.summary)
    if diagnosis.notes:
        yield Heading(word("heading-notes", lang))
        for note in diagnosis.notes:
            yield Text(note, "quiet")
    if diagnosis.next_steps:
        yield Heading(word("heading-next", lang))
        for number, step in enumerate(diagnosis.next_steps, 1):
            labels = tuple(label for _, label in step.choices or ())
            body: tuple[Text, ...] = (Text(" / ".join(labels), "quiet"),) if labels else ()
            if typed and step.action == "ask" and step.choices:
                body += (Text(_answered(step), "quiet"),)
            yield Item(step.text, body=body, number=number)
    rest = diagnosis.causes[1:] if diagnosis.verdict == "cause" else diagnosis.causes
    for relation, heading in (("also", "heading-also"), (None, "heading-others")):
        rows = [f for f in rest if (f.relation == "also") == (relation == "also") and f.relation != "consequence"]
        if rows and diagnosis.verdict != "healthy":
            yield Heading(word(heading, lang))
            for finding in rows[:4]:
                yield Item(
                    f"{finding.title} ({finding.id})", (word("label-confidence", lang, percent=_percent(finding)),)
                )
    if diagnosis.ruled_out:
        yield Heading(word("heading-ruled-out", lang))
        for row in diagnosis.ruled_out:
            yield Item(row.title, body=(Text(row.why, "quiet"),))
    if diagnosis.not_measured:
        for what, why in diagnosis.not_measured:
            yield Text(f"{what}: {why}", "quiet")
    if show_path:
        yield Heading(word("heading-path", lang))
        for step_ in diagnosis.path:
            yield Item(f"{step_.question} {step_.answer}")
    if diagnosis.verdict == "cause" and first is not None and first.sources:
        yield Heading(word("heading-sources", lang))
        for source in first.sources:
            section = f" § {source.section}" if source.section else ""
            yield Text(f"{source.document}{section}" + (f"  {source.url}" if source.url else ""), "quiet")


def _answered(step: NextStep) -> str:
    """The option that answers a question, safe to paste: the first choice, the others behind it as a comment."""
    first, *others = [value for value, _ in step.choices or ()]
    return f"--answer {step.id}={first}  # {', '.join(others)}" if others else f"--answer {step.id}=..."


def _percent(finding: Finding) -> int:
    return min(99, round(finding.confidence * 100))


def _cause(first: Finding, diagnosis: Diagnosis, catalog: Catalog) -> Iterator[Block]:
    word, lang = catalog.word, diagnosis.language
    yield Heading(first.title, "bad", 1)
    sure = word("label-confidence", lang, percent=_percent(first))
    yield Text(f"{first.id} · {sure} · {diagnosis.version_label}", "quiet")
    yield Text(first.explanation)
    if first.because:
        yield Heading(word("heading-why", lang))
        for quote in first.because:
            yield Quotation(_where(quote.source, quote.line, quote.process, catalog, diagnosis), quote.text)
    for against in first.against:
        yield Text(against, "unsure")
    if diagnosis.collect_first:
        yield Heading(word("heading-save", lang), "unsure")
        for item in diagnosis.collect_first:
            yield Item(item.text, body=(Command(item.command),) if item.command else ())
    if first.fixes:
        yield Heading(word("heading-fixes", lang), "good")
        told: set[str] = set()
        for number, fix in enumerate(first.fixes, 1):
            yield _fix(number, fix, catalog, lang, told)
    yield Heading(word("heading-check", lang))
    yield Text(first.check)


def _where(source: str, line: int | None, process: str | None, catalog: Catalog, diagnosis: Diagnosis) -> str:
    lang = diagnosis.language
    name = catalog.word("label-you-wrote", lang) if source == "text" else source
    parts = [name]
    if line is not None:
        parts.append(catalog.word("label-line", lang, line=line))
    if process:
        parts.append(process)
    return ", ".join(parts)


def _fix(number: int, fix: Advice, catalog: Catalog, lang: Language, told: set[str] | None = None) -> Item:
    """One fix. ``told`` holds the notes that stood under an earlier one: the same note is not repeated."""
    word = catalog.word
    told = set() if told is None else told
    tags = [word(f"label-impact-{fix.impact}", lang)]
    if fix.work_around:
        tags.append(word("label-work-around", lang))
    body: list[Block] = [Text(fix.why)]
    if fix.command:
        body.append(Command(fix.command, fix.changed))
        if fix.change:
            body.append(Text(word("label-changed", lang, pieces=fix.change)))
    elif fix.flags:
        body.append(Text(word("label-choose-value", lang, flag=", ".join(fix.flags))))
    for note in fix.notes:
        if note not in told:
            told.add(note)
            body.append(Text(f"{word('label-notes', lang)}: {note}", "unsure"))
    if fix.effect:
        body.append(Text(fix.effect, "quiet"))
    if fix.trade_off:
        body.append(Text(f"{word('label-price', lang)}: {fix.trade_off}", "quiet"))
    if fix.undo and fix.undo not in (word("undo-nothing", lang), word("undo-by-hand", lang)):
        body.append(Text(f"{word('label-undo', lang)}: {fix.undo}", "quiet"))
    return Item(fix.title, tuple(tags), tuple(body), number)


def cause_blocks(
    cause: Cause, fixes: Sequence[Advice], collect: Sequence[Collect], catalog: Catalog, lang: Language
) -> Iterator[Block]:
    """One cause by itself, as the knowledge base shows it."""
    word = catalog.word
    yield Heading(cause.title[lang], "bad", 1)
    yield Text(cause.id, "quiet")
    yield Text(cause.explanation[lang])
    if collect:
        yield Heading(word("heading-save", lang), "unsure")
        for item in collect:
            yield Item(item.text, body=(Command(item.command),) if item.command else ())
    if fixes:
        yield Heading(word("heading-fixes", lang), "good")
        for number, fix in enumerate(fixes, 1):
            yield _fix(number, fix, catalog, lang)
    yield Heading(word("heading-check", lang))
    yield Text(cause.check[lang])
