"""One message for one diagnosis: the answer as it stands in the channel, with its buttons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from assistant.faces.slack.drawing import COLUMNS, fitted
from assistant.faces.slack.elements import (
    MOST_COMMAND,
    MOST_QUOTE,
    MOST_VALUE,
    Piece,
    actions,
    bullets,
    button,
    cut,
    divider,
    fixed,
    header,
    option,
    paragraph,
    prose,
    quiet,
    rich,
    select,
    words,
)
from assistant.render.commands import broken

if TYPE_CHECKING:
    from assistant.diagnosis.model import Advice, Collect, Diagnosis, Finding, NextStep
    from knowledge.catalog import Catalog

#: Evidence, things to save and choices that stand in the message itself; the rest is in the full report.
MOST_QUOTES, MOST_SAVED, MOST_BUTTONS, MOST_MISSED = 3, 2, 6, 2
_MARKS = {"cause": "🔴", "healthy": "✅", "unknown": "🔎"}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a message shows of a talk besides the diagnosis.

    ``talk`` and ``revision`` go into every button; without a talk (nothing could be saved) there are no buttons.
    ``place`` is the cause that is shown, 0 the first. ``notes`` are finished sentences.
    """

    talk: str = ""
    revision: int = 0
    place: int = 0
    asked: str = ""
    notes: tuple[str, ...] = ()
    answered: int = 0
    helped: str = ""

    def value(self, more: str = "") -> str:
        """What a button carries; it means something only together with the talk in the store."""
        return cut(f"{self.talk}:{self.revision}:{more}", MOST_VALUE)


def read_value(value: str) -> tuple[str, int, str]:
    """Talk, revision and the rest of what a button carries; raises ``ValueError`` for anything else."""
    talk, revision, more = value.split(":", 2)
    if len(talk) != 20 or not talk.isalnum() or not revision.isdecimal():
        raise ValueError("not a value of ours")
    return talk, int(revision[:9]), more


def answer_message(diagnosis: Diagnosis, catalog: Catalog, shown: Shown) -> tuple[list[Piece], str]:
    """The blocks of the message and its text for notifications."""
    word, lang = catalog.word, diagnosis.language
    finding = finding_at(diagnosis, shown.place)
    mark = _MARKS[diagnosis.verdict]
    if finding is not None:
        title = finding.title
        if shown.place:
            mark, title = "❔", word("slack-perhaps", lang, title=title)
        start = [header(f"{mark} {title}"), quiet(_facts(finding, diagnosis, catalog))]
        middle = list(_cause(finding, diagnosis, catalog, first=not shown.place))
    else:
        start = [header(f"{mark} {word(f'heading-{diagnosis.verdict}', lang)}")]
        middle = [rich(paragraph(*prose(cut(diagnosis.summary, 1500))))]
        if diagnosis.verdict == "unknown":
            middle += _guesses(diagnosis, catalog)
            middle += _wanted(diagnosis, catalog)
    if shown.asked:
        start.insert(1, quiet(shown.asked))
    for note in (*shown.notes, *diagnosis.notes)[:6]:
        middle.append(quiet(cut(f"ℹ️ {note}", 400)))
    if diagnosis.target and diagnosis.not_measured:
        middle.append(quiet(cut(f"⚠️ {_not_measured(diagnosis, catalog)}", 400)))
    end: list[Piece] = []
    if shown.helped:
        end.append(quiet(shown.helped))
    if shown.talk:
        end += _question(diagnosis, catalog, shown)
        end.append(divider())
        end += _buttons(diagnosis, catalog, shown)
    text = f"{mark} {diagnosis.summary}" if not shown.place or finding is None else f"{mark} {finding.title}"
    return fitted(start, middle, end), text


def _not_measured(diagnosis: Diagnosis, catalog: Catalog) -> str:
    """What of a target could not be seen; the reasons of all of it are in the full report."""
    lang = diagnosis.language
    missed = [f"{what} ({why})" for what, why in diagnosis.not_measured[:MOST_MISSED]]
    more = len(diagnosis.not_measured) - len(missed)
    if more:
        missed.append(catalog.word("slack-more", lang, n=more))
    return f"{catalog.word('heading-not-measured', lang)}{_colon(lang)}{('；' if lang == 'zh' else '; ').join(missed)}"


def finding_at(diagnosis: Diagnosis, place: int) -> Finding | None:
    """The cause at a place; where none is sure, place 0 is the question and the guesses come after it."""
    row = ranked(diagnosis)
    index = place if diagnosis.verdict == "cause" else place - 1
    return row[index] if 0 <= index < len(row) else None


def places(diagnosis: Diagnosis) -> int:
    """How many places there are to look at."""
    return max(1, len(ranked(diagnosis)) + (diagnosis.verdict != "cause"))


def ranked(diagnosis: Diagnosis) -> list[Finding]:
    """The causes that `next cause` walks through: no consequences, and nothing where all is well."""
    if diagnosis.verdict == "healthy":
        return []
    return [finding for finding in diagnosis.causes if finding.relation != "consequence"][:6]


def questions(diagnosis: Diagnosis) -> list[NextStep]:
    """What a person is asked, the best question first."""
    return [step for step in diagnosis.next_steps if step.action == "ask"]


def checks(diagnosis: Diagnosis) -> list[NextStep]:
    """Checks that a tool could make."""
    return [step for step in diagnosis.next_steps if step.action == "run_tool" and step.tool]


def _facts(finding: Finding, diagnosis: Diagnosis, catalog: Catalog) -> str:
    word, lang = catalog.word, diagnosis.language
    percent = min(99, round(finding.confidence * 100))
    parts = [
        finding.id,
        word("label-confidence", lang, percent=percent),
        diagnosis.version_label,
        diagnosis.target or "",
    ]
    return " · ".join(part for part in parts if part)


def _cause(finding: Finding, diagnosis: Diagnosis, catalog: Catalog, *, first: bool) -> Iterator[Piece]:
    word, lang = catalog.word, diagnosis.language
    yield rich(paragraph(*prose(cut(finding.explanation, 1200))))
    if finding.because:
        rows: list[Piece] = [paragraph(words(word("heading-why", lang), bold=True))]
        for quote in finding.because[:MOST_QUOTES]:
            rows += [paragraph(words(_where(quote, catalog, diagnosis))), fixed(quote.text, MOST_QUOTE)]
        yield rich(*rows)
    for sentence in finding.against[:2]:
        yield quiet(cut(f"⚠️ {sentence}", 400))
    if first and diagnosis.collect_first:
        yield rich(*_save(diagnosis.collect_first, catalog, lang))
    if finding.fixes:
        yield rich(*_fix(finding.fixes, catalog, lang))
    yield rich(
        paragraph(
            words(f"{word('heading-check', lang)}{_colon(lang)}", bold=True), *prose(cut(finding.check or "…", 800))
        )
    )


def _where(quote: object, catalog: Catalog, diagnosis: Diagnosis) -> str:
    source = str(getattr(quote, "source", ""))
    line, process = getattr(quote, "line", None), getattr(quote, "process", None)
    lang = diagnosis.language
    parts = [catalog.word("label-you-wrote", lang) if source == "text" else source]
    if line is not None:
        parts.append(catalog.word("label-line", lang, line=line))
    if process:
        parts.append(process)
    return cut(("，" if lang == "zh" else ", ").join(parts), 200)


def _tags(tags: Sequence[str]) -> list[Piece]:
    return [piece for tag in tags for piece in (words("  "), words(tag, code=True))]


def _colon(lang: str) -> str:
    return "：" if lang == "zh" else ": "


def _save(items: Sequence[Collect], catalog: Catalog, lang: str) -> Iterator[Piece]:
    yield paragraph(words(f"💾 {catalog.word('heading-save', lang)}", bold=True))
    for item in items[:MOST_SAVED]:
        yield bullets([prose(cut(item.text, 400))])
        if item.command:
            yield fixed(item.command, 600)
    if len(items) > MOST_SAVED:
        yield paragraph(words(catalog.word("slack-more", lang, n=len(items) - MOST_SAVED)))


def _fix(fixes: Sequence[Advice], catalog: Catalog, lang: str) -> Iterator[Piece]:
    word, fix = catalog.word, fixes[0]
    tags = [word(f"label-impact-{fix.impact}", lang)]
    if fix.work_around:
        tags.append(word("label-work-around", lang))
    yield paragraph(words(f"🔧 {word('heading-fixes', lang)}", bold=True))
    yield paragraph(words(cut(fix.title, 400), bold=True), *_tags(tags))
    yield paragraph(*prose(cut(fix.why, 600)))
    if fix.command:
        yield fixed(broken(fix.command, COLUMNS), MOST_COMMAND)
        if fix.change:
            yield paragraph(*prose(cut(word("label-changed", lang, pieces=fix.change), 400)))
    elif fix.flags:
        yield paragraph(words(word("label-choose-value", lang, flag=", ".join(fix.flags))))
    for note in fix.notes[:3]:
        yield paragraph(*prose(cut(f"⚠️ {note}", 400)))
    if fix.effect:
        yield paragraph(*prose(cut(fix.effect, 400)))
    if fix.trade_off:
        yield paragraph(*prose(cut(f"{word('label-price', lang)}{_colon(lang)}{fix.trade_off}", 400)))
    if fix.undo and fix.undo not in (word("undo-nothing", lang), word("undo-by-hand", lang)):
        yield paragraph(*prose(cut(f"{word('label-undo', lang)}{_colon(lang)}{fix.undo}", 400)))
    if len(fixes) > 1:
        others = [[words(cut(other.title, 200))] for other in fixes[1:4]]
        yield paragraph(words(word("slack-other-fixes", lang)))
        yield bullets(others)


def _guesses(diagnosis: Diagnosis, catalog: Catalog) -> list[Piece]:
    lang = diagnosis.language
    rows = [
        [
            words(cut(finding.title, 200)),
            *_tags([catalog.word("label-confidence", lang, percent=min(99, round(finding.confidence * 100)))]),
        ]
        for finding in ranked(diagnosis)[:3]
    ]
    if not rows:
        return []
    return [rich(paragraph(words(catalog.word("slack-guesses", lang), bold=True)), bullets(rows))]


def _wanted(diagnosis: Diagnosis, catalog: Catalog) -> list[Piece]:
    """What would help and is no question: logs to give, things to switch on."""
    wanted = [step for step in diagnosis.next_steps if step.action == "collect"]
    if not wanted:
        return []
    # How a log is given depends on the face: here it is a file in the thread.
    word = catalog.word("slack-give-log", diagnosis.language)
    rows = [prose(cut(word if step.id == "collect-log" else step.text, 400)) for step in wanted[:4]]
    return [rich(paragraph(words(catalog.word("heading-next", diagnosis.language), bold=True)), bullets(rows))]


def _question(diagnosis: Diagnosis, catalog: Catalog, shown: Shown) -> list[Piece]:
    """The next question of the tree with its answers, where the cause is not known."""
    lang = diagnosis.language
    asked = questions(diagnosis)
    if diagnosis.verdict != "unknown" or not asked:
        return []
    step = asked[0]
    title = rich(paragraph(*prose(f"❓ {cut(step.text, 600)}", bold=True)))
    choices = [(value, label) for value, label in step.choices or ()]
    if len(choices) <= 1:  # only "I do not know": a number or a text is wanted
        elements = [button("open", catalog.word("slack-type-answer", lang), shown.value(step.id), style="primary")]
        elements += [button("answer:0", label, shown.value(f"{step.id}={value}")) for value, label in choices]
    elif len(choices) <= MOST_BUTTONS:
        elements = [
            button(f"answer:{place}", label, shown.value(f"{step.id}={value}"))
            for place, (value, label) in enumerate(choices)
        ]
    else:
        # An option's value has 150 characters at most, so talk and revision stand in the block's id.
        options = [option(cut(f"{step.id}={value}", 150), label) for value, label in choices]
        menu = select("choose", catalog.word("slack-choose", lang), options)
        return [title, actions(cut(f"question:{shown.value()}", 255), [menu])]
    return [title, actions(cut(f"question:{shown.value()}", 255), elements)]


def _buttons(diagnosis: Diagnosis, catalog: Catalog, shown: Shown) -> list[Piece]:
    word, lang = catalog.word, diagnosis.language
    row: list[Piece] = []
    if places(diagnosis) > 1:
        label = "slack-next-cause" if shown.place + 1 < places(diagnosis) else "slack-first-cause"
        row.append(button("next", word(label, lang), shown.value()))
    row.append(button("path", word("slack-path", lang), shown.value()))
    row.append(button("report", word("slack-report", lang), shown.value()))
    row.append(button("details", word("slack-details", lang), shown.value()))
    row.append(button("language", word("slack-language", lang), shown.value()))
    if shown.answered:
        row.append(button("back", word("slack-back", lang), shown.value()))
        row.append(button("over", word("slack-over", lang), shown.value()))
    made = [actions(f"about:{shown.value()}", row)]
    second: list[Piece] = []
    for place, step in enumerate(checks(diagnosis)[:3]):
        what = step.text.replace("：", ": ").partition(": ")[0]  # behind it stands how it is typed elsewhere
        second.append(button(f"run:{place}", cut(f"▶ {what}", 75), shown.value(step.id)))
    if diagnosis.verdict == "cause" and not shown.helped:
        second.append(button("worked", word("slack-worked", lang), shown.value(), style="primary"))
        second.append(button("failed", word("slack-failed", lang), shown.value()))
    if second:
        made.append(actions(f"did:{shown.value()}", second))
    return made
