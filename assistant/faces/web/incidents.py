"""Incidents: the list with its search, one diagnosis with everything around it, answers and feedback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from starlette.responses import Response

from assistant.faces.web.checks import runnable
from assistant.faces.web.figures import charts
from assistant.faces.web.tree import picture
from assistant.faces.web.visit import PageError
from assistant.render.blocks import diagnosis_blocks
from assistant.render.markdown import to_markdown
from assistant.store.finding import Wanted, find
from tools.redaction import clean

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis, Reference
    from assistant.faces.web.visit import Visit
    from assistant.service import Answered
    from tools.evidence import Evidence

_PAGE = 30
_CURSOR = re.compile(r"(\d{1,15})-([0-9a-f]{20})")
#: Log lines that are shown around the quoted ones.
_MOST_LINES = 60
_HELPED: tuple[Literal["yes", "partly", "no"], ...] = ("yes", "partly", "no")
_MOST_COMMENT = 2000


@dataclass(frozen=True, slots=True)
class Line:
    """One recognised line of a log; ``quoted`` when the diagnosis rests on it, ``gap`` when lines are left out before."""

    number: int
    process: str
    text: str
    count: int
    quoted: bool
    gap: bool


async def listed(visit: Visit) -> Response:
    """Saved incidents, newest first, narrowed by what the form says."""
    service = visit.service
    text = service.clean(visit.field("q")).strip()
    wanted = Wanted(
        text=text,
        titles=_titled(visit, text),
        target=visit.field("target"),
        cause=visit.field("cause"),
        verdict=visit.field("verdict") if visit.field("verdict") in ("cause", "healthy", "unknown") else "",
        since_ms=_day(visit.field("since")),
        until_ms=_day(visit.field("until"), after=1),
    )
    cursor = _CURSOR.fullmatch(visit.field("cursor"))
    before = (int(cursor[1]), cursor[2]) if cursor else None
    found = await service.in_thread(lambda: find(service.database, wanted, _PAGE + 1, before=before))
    page, more = found[:_PAGE], len(found) > _PAGE
    return visit.page(
        "incidents.html",
        title=visit.word("web-incidents"),
        rows=rows(visit, page),
        following=visit.address(cursor=f"{page[-1]['created_at']}-{page[-1]['id']}") if more else "",
        newest=visit.address(cursor="") if before else "",
        given={name: visit.field(name) for name in ("q", "target", "cause", "verdict", "since", "until")},
        targets=sorted(service.targets),
        causes=sorted(service.catalog.causes),
    )


def rows(visit: Visit, found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Incidents as a list shows them."""
    known = visit.service.catalog.causes
    shown = []
    for row in found:
        cause = known.get(row["cause"] or "")
        title = cause.title[visit.lang] if cause else visit.word(f"web-verdict-{row['verdict']}")
        shown.append(
            {
                **row,
                "title": title,
                "when": when(row["created_at"]),
                "first_words": " ".join(clean(str(row["question"])).split())[:160],
            }
        )
    return shown


def when(at_ms: int) -> str:
    """A time for people, in UTC because several people in several places look at it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


async def one(visit: Visit) -> Response:
    """One incident in the visitor's language."""
    answered = await visit.service.incident(visit.principal, visit.request.path_params["incident"], visit.lang)
    return await shown(visit, answered)


async def shown(visit: Visit, answered: Answered) -> Response:
    """A diagnosis as a page; one that could not be kept has no address and takes no answers."""
    service, diagnosis = visit.service, answered.diagnosis
    incident, feedback, saved = answered.incident, [], None
    if incident is not None:
        saved = await service.in_thread(service.incidents.get, incident)
        feedback = await service.in_thread(service.incidents.feedback_on, incident)
    first = diagnosis.causes[0] if diagnosis.verdict == "cause" and diagnosis.causes else None
    rest = diagnosis.causes[1:] if first else diagnosis.causes
    evidence = diagnosis.case.reading.evidence if diagnosis.case is not None else ()
    bars, numbers = charts(evidence, service.catalog, visit.lang)
    end = first.title if first else visit.word(f"web-verdict-{diagnosis.verdict}")
    return visit.page(
        "incident.html",
        title=first.title if first else diagnosis.summary,
        d=diagnosis,
        first=first,
        percent=None if first is None else min(99, round(first.confidence * 100)),
        version=version_of(visit, diagnosis),
        also=[finding for finding in rest if finding.relation == "also"],
        others=[f for f in rest if f.relation not in ("also", "consequence")][:4]
        if diagnosis.verdict != "healthy"
        else [],
        tree=picture(diagnosis.path, end, service.catalog, visit.lang),
        lines=in_context(diagnosis),
        charts=bars,
        numbers=numbers,
        sources=[(source, _address(visit, source)) for source in (first.sources if first else ())],
        incident=incident,
        checks=runnable(visit, diagnosis.next_steps),
        seen=[seen.to_json() for seen in answered.seen_before],
        revision=answered.revision,
        not_saved=answered.not_saved,
        share=visit.shared.url(f"/incidents/{incident}") if incident else "",
        created=when(saved.created_at_ms) if saved else "",
        question=clean(saved.question) if saved else "",
        answers=[(_asked(visit, a.question), _chosen(visit, a.question, a.value)) for a in saved.answers]
        if saved
        else [],
        feedback=feedback,
        thanked=visit.field("thanks") == "1",
        markdown=to_markdown(diagnosis_blocks(diagnosis, service.catalog)),
    )


async def answer(visit: Visit) -> Response:
    """An answer to an open question of the revision that was seen."""
    incident = visit.request.path_params["incident"]
    revision = visit.field("revision", 10)
    question, value = visit.field("question"), visit.field("value", 300)
    if not revision.isdigit() or not value:
        raise PageError(422, visit.word("web-error-answer"))
    await visit.service.answer(
        visit.principal, incident, {question: visit.service.clean(value)}, face="web", revision=int(revision)
    )
    return visit.to(f"/incidents/{incident}")


async def feedback(visit: Visit) -> Response:
    """Whether the diagnosis was right."""
    incident = visit.request.path_params["incident"]
    service, said = visit.service, visit.field("helped")
    helped = next((value for value in _HELPED if value == said), None)
    if helped is None:
        raise PageError(422, visit.word("web-error-feedback"))
    comment = service.clean(visit.field("comment", _MOST_COMMENT))
    given_by = f"web: {visit.principal.id}"
    await service.in_thread(lambda: service.incidents.feedback(incident, helped, comment=comment, given_by=given_by))
    return visit.to(f"/incidents/{incident}?thanks=1#feedback")


def in_context(diagnosis: Diagnosis) -> list[Line]:
    """The recognised lines of the log that the diagnosis quotes most, in order, with those it rests on marked."""
    first = diagnosis.causes[0] if diagnosis.causes else None
    quoted = {(quote.source, quote.line) for quote in (first.because if first else ()) if quote.line is not None}
    evidence = diagnosis.case.reading.evidence if diagnosis.case is not None else ()
    sources = [source for source, _ in quoted] or [item.origin.source for item in evidence if item.origin.line]
    if not sources:
        return []
    source = max(sources, key=lambda name: (sources.count(name), name))
    by_line: dict[int, Evidence] = {}
    for item in evidence:
        line = item.origin.line
        if (
            item.origin.source == source
            and line is not None
            and item.quote.strip()
            and item.name.startswith("message:")
        ):
            by_line.setdefault(line, item)
    numbers = _around(sorted(by_line), [line for name, line in quoted if name == source and line is not None])
    lines, before = [], 0
    for number in numbers:
        item = by_line[number]
        is_quoted = (source, number) in quoted
        text = " ".join(item.quote.split())
        lines.append(
            Line(number, item.origin.process or "", text, item.count, is_quoted, before > 0 and number > before + 1)
        )
        before = number
    return lines if len(lines) > 1 else []


def _around(numbers: Sequence[int], centres: Sequence[int]) -> Sequence[int]:
    """At most so many of the sorted numbers, those nearest to the centres."""
    if len(numbers) <= _MOST_LINES or not centres:
        return numbers[:_MOST_LINES]
    return sorted(sorted(numbers, key=lambda n: min(abs(n - centre) for centre in centres))[:_MOST_LINES])


def version_of(visit: Visit, diagnosis: Diagnosis) -> str:
    """For which vLLM version the advice is."""
    return diagnosis.version_label or visit.word("label-version-unknown")


def _address(visit: Visit, source: Reference) -> str:
    if source.url and source.url.startswith(("https://", "http://")):
        return source.url
    from assistant.faces.web.reading import documents

    if source.document in documents():
        return f"/documents/{visit.lang}/{source.document}" + (f"#{source.section}" if source.section else "")
    return ""


def _asked(visit: Visit, question: str) -> str:
    declared = visit.service.catalog.observable(question)
    return declared.ask[visit.lang] if declared and declared.ask else question


def _chosen(visit: Visit, question: str, value: str) -> str:
    declared = visit.service.catalog.observable(question)
    if value == "unknown":
        return visit.word("choice-unknown")
    return declared.choices[value][visit.lang] if declared and value in declared.choices else clean(value)


def _titled(visit: Visit, text: str) -> list[str]:
    words = text.casefold().split()
    if not words:
        return []
    known = visit.service.catalog.causes
    return [
        name
        for name, cause in known.items()
        if all(any(word in title.casefold() for title in cause.title.values()) for word in words)
    ]


def _day(text: str, after: int = 0) -> int | None:
    """The beginning of a day (or of the one ``after`` it) in milliseconds; None where it is no day."""
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=after)
    except (ValueError, OverflowError):
        return None
    return int(day.timestamp() * 1000)
