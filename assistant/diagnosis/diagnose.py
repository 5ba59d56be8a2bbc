"""Evidence in, diagnosis out. Pure: no input or output, no clock; the same case gives the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assistant.advice.debugging import debug_settings
from assistant.advice.fixes import advise, collect_first
from assistant.advice.started import Started, read_started
from assistant.diagnosis import measured
from assistant.diagnosis.confidence import confidence, doubted, features, threshold
from assistant.diagnosis.defects import defect_notes, raised
from assistant.diagnosis.model import (
    Case,
    Diagnosis,
    Finding,
    Language,
    NextStep,
    Quote,
    Reference,
    Relation,
    RuledOut,
    Verdict,
)
from assistant.diagnosis.score import POINTS, Candidate, candidates
from assistant.diagnosis.tool_steps import tool_steps
from assistant.diagnosis.truth import Facts, gather_facts, judge
from assistant.diagnosis.version import Resolved, resolve
from assistant.diagnosis.version import label as version_label
from assistant.diagnosis.version import notes as version_notes
from assistant.diagnosis.walk import open_questions, walk
from knowledge.catalog import Catalog
from knowledge.excluded import remaining, without_setup
from knowledge.quoted import around
from knowledge.search import ConceptReader, rank
from knowledge.shapes import Source
from knowledge.supposed import seen
from knowledge.text import normalise
from tools.evidence import Evidence, Origin

#: Guesses below this confidence are not worth a person's time.
LEAST_GUESS = 0.03
#: A guess below this confidence stays in the list and out of the summary.
LEAST_NAMED = 0.5
MOST_CAUSES = 5
MOST_QUOTES = 3
#: A second cause is "also" there, not an alternative, when its own evidence would carry it alone.
ALSO_SUPPORT = POINTS["decisive"] * 0.7
#: Programs around vLLM, which people name beside its failures too: a failure that only an inference stack prints outweighs them.
NEIGHBOURS = frozenset({"foreign-stores", "foreign-building", "foreign-platform", "foreign-client-code"})
#: Sources of messages that any program may print.
ANYBODYS = frozenset(
    {"python", "operating system", "os", "linux", "kernel", "requests", "urllib3", "clients", "kubernetes"}
)
#: Who says both has a question and no failure, unless something of the second line is said as well.
REASSURED = frozenset({"works-fine", "may-i-ignore"})
ONLY_ASKS = "incident.only_asks"
COMPLAINTS = frozenset({"rejected", "trouble", "out-of-memory"})


@dataclass(slots=True)
class Engine:
    """The knowledge with what is prepared from it once per process."""

    catalog: Catalog
    _reader: ConceptReader | None = None

    def concepts(self, normalised: str) -> frozenset[str]:
        """The concepts of a text; the reader is only built when a text is there."""
        if not normalised:
            return frozenset()
        if self._reader is None:
            self._reader = ConceptReader(self.catalog.concepts)
        return self._reader.read(normalised)

    def consider(self, case: Case) -> tuple[Facts, list[Candidate]]:
        """The facts of a case and all causes with any support, best first."""
        facts, found, _version = self.weigh(case)
        return facts, found

    def weigh(self, case: Case) -> tuple[Facts, list[Candidate], Resolved]:
        """Like :meth:`consider`, with the version that was found."""
        text = seen(normalise(case.text))
        rest = remaining(text)
        if only_asks := self._only_asks(text, rest):
            text = around(text)
            rest = remaining(text)
        said = self._heard(text, rest)
        facts = gather_facts(case, self.catalog, said)
        if only_asks:
            facts.values[ONLY_ASKS] = Evidence(ONLY_ASKS, "present", "notice", Origin("text"), case.text[:200])
        version = resolve(case, self.catalog)
        story = without_setup(rest)
        alike = rank(story, self.catalog.symptoms, self._heard(text, story)) if story else []
        return facts, candidates(facts, self.catalog, alike, raised(version.version, self.catalog)), version

    def _heard(self, text: str, rest: str) -> frozenset[str]:
        """The concepts of ``rest``; what was excluded of ``text`` is only heard by what is about exclusions."""
        said = self.concepts(rest)
        return said if rest == text else said | (self.concepts(text) & self.catalog.denials)

    def _only_asks(self, text: str, rest: str) -> bool:
        """Whether a person to whom all works asks if a line of the log may be ignored, and complains of nothing."""
        said, own = self._heard(text, rest), around(text)
        if not said.issuperset(REASSURED) or (own == text and "notice-said" not in said):
            return False
        said = self._heard(own, remaining(own))
        return said.issuperset(REASSURED) and not any(
            "incident.kind" in self.catalog.meanings.get(concept, ()) or concept in COMPLAINTS for concept in said
        )

    def diagnose(self, case: Case) -> Diagnosis:
        """The whole answer for one case."""
        facts, found, version = self.weigh(case)
        return _Answer(self.catalog, case, facts, found, version).build()


class _Answer:
    """Builds the answer of one case; only holds what its parts share."""

    def __init__(
        self, catalog: Catalog, case: Case, facts: Facts, found: Sequence[Candidate], version: Resolved
    ) -> None:
        self.catalog, self.case, self.facts = catalog, case, facts
        self.language: Language = case.language
        self.resolved = version
        # None means the newest to whoever writes commands; an interval means the newest in it.
        self.version = version.version or (version.high if version.source == "style" else None)
        self._started: Started | None = None
        self.kept = [c for c in found if c.excluded_by is None]
        self.excluded = [c for c in found if c.excluded_by is not None]
        sure = [confidence(features(c, self.kept, facts), catalog.calibration) for c in self.kept]
        self.order = sorted(range(len(self.kept)), key=lambda i: (-round(sure[i], 9), i))
        #: What is stated; a doubt takes an answer away and gives none to the next one.
        self.sure = [doubted(value, c, facts, catalog.calibration) for value, c in zip(sure, self.kept, strict=True)]

    @property
    def started(self) -> Started:
        """The start command; read once, and only where there is anything to advise."""
        if self._started is None:
            self._started = read_started(self.facts, self.version)
        return self._started

    def build(self) -> Diagnosis:
        verdict, leader = self._verdict()
        findings = self._findings(verdict)
        return Diagnosis(
            verdict=verdict,
            summary=self._summary(verdict, leader, findings),
            language=self.language,
            knowledge=self.catalog.digest,
            vllm_version=self.resolved.version,
            version_source=self.resolved.to_json(),
            version_label=version_label(self.resolved, self.catalog, self.language),
            target=self.case.target,
            stage=_text(self.facts.value("log.stage")),
            causes=findings if verdict != "healthy" else (),
            looked_at=self.case.reading.looked_at,
            collect_first=collect_first(leader.cause, self.catalog, self.language, self.version, self.facts)
            if verdict == "cause" and leader
            else (),
            ruled_out=self._ruled_out(),
            path=walk(self.facts, self.catalog, self.language),
            next_steps=self._next_steps(verdict),
            not_measured=tuple((what, self._why(why)) for what, why in self.case.reading.not_measured),
            notes=self._notes(verdict, leader),
            case=self.case,
        )

    def _verdict(self) -> tuple[Verdict, Candidate | None]:
        limit = threshold(self.catalog.calibration)
        foreign = self._is_foreign()
        for index in self.order[:1]:
            leader = self.kept[index]
            if self.sure[index] >= limit and not foreign and not leader.cause.draft:
                return ("healthy" if leader.cause.is_normal else "cause"), leader
        if not foreign and judge(self.catalog.tree.healthy, self.facts).truth is True and not self._complains():
            return "healthy", None
        return "unknown", self.kept[self.order[0]] if self.order else None

    def _is_foreign(self) -> bool:
        """Whether what was given speaks of another program and nothing in it is vLLM's own."""
        foreign = any(self._kind(name) == "foreign" for name in self.facts.messages)
        own = any(
            self._kind(name) != "foreign" and self.catalog.messages[name].source == "vllm"
            for name in self.facts.messages
            if name in self.catalog.messages
        )
        # Programs that have taken over code of vLLM's print its messages, too.
        own = "log.writer" in self.facts.names() or (own and (not foreign or self._names_vllm()))
        said = any(name.startswith("foreign-") and name not in NEIGHBOURS for name in self.facts.said)
        beside = not self.facts.said.keys().isdisjoint(NEIGHBOURS)
        serves = "inference-said" in self.facts.said and "vllm-is-fine-said" not in self.facts.said
        if not said and beside and not serves:
            said = all(
                self._kind(name) != "failure" or self.catalog.messages[name].source in ANYBODYS
                for name in self.facts.messages
            )
        named = "speaks-of-vllm" in self.facts.said and "vllm-is-fine-said" not in self.facts.said
        return (foreign or said) and not own and not named

    def _names_vllm(self) -> bool:
        """Whether anything that was read bears vLLM's name: its banner, a path, the person's words."""
        if "speaks-of-vllm" in self.facts.said or "vllm" in self.case.text.lower():
            return True
        if not self.facts.names().isdisjoint(("server.version", "server.command", "server.arguments")):
            return True
        return any("vllm" in item.quote.lower() for items in self.facts.messages.values() for item in items)

    def _kind(self, message: str) -> str:
        known = self.catalog.messages.get(message)
        return known.kind if known is not None else "state"

    def _complains(self) -> bool:
        """A person who describes trouble over a healthy log has trouble: silence of the log is no all-clear."""
        said = self.facts.said
        trouble = any("incident.kind" in self.catalog.meanings.get(concept, ()) for concept in said)
        trouble = trouble or "trouble" in said or "rejected" in said
        return trouble and "works-fine" not in said and "may-i-ignore" not in said

    def _findings(self, verdict: Verdict) -> tuple[Finding, ...]:
        out: list[Finding] = []
        for position, index in enumerate(self.order):
            candidate, sure = self.kept[index], self.sure[index]
            if candidate.cause.is_normal or len(out) >= MOST_CAUSES or (sure < LEAST_GUESS and position > 2):
                continue
            out.append(self._finding(candidate, sure, self._relation(candidate, not out, verdict)))
        return tuple(out)

    def _relation(self, candidate: Candidate, is_first: bool, verdict: Verdict) -> Relation:
        if is_first:
            return "primary" if verdict == "cause" else "alternative"
        leader = self.kept[self.order[0]]
        if candidate.messages and candidate.messages <= frozenset(leader.cause.explains):
            return "consequence"
        own = candidate.messages - leader.messages - frozenset(leader.cause.explains)
        return "also" if own and candidate.support >= ALSO_SUPPORT and candidate.has_decisive else "alternative"

    def _finding(self, candidate: Candidate, sure: float, relation: Relation) -> Finding:
        cause = candidate.cause
        against = []
        if candidate.phase_differs:
            against.append(self.catalog.word(f"phase-differs-{cause.begins}", self.language))
        return Finding(
            id=cause.id,
            title=cause.title[self.language],
            explanation=cause.explanation[self.language],
            confidence=sure,
            severity=cause.severity,
            relation=relation,
            because=_quotes(candidate),
            against=tuple(against),
            fixes=advise(cause, self.facts, self.catalog, self.version, self.language, self.started),
            check=cause.check[self.language],
            sources=tuple(_reference(s) for s in cause.sources),
        )

    def _summary(self, verdict: Verdict, leader: Candidate | None, findings: Sequence[Finding]) -> str:
        word, lang = self.catalog.word, self.language
        said = measured.summary(verdict, self.facts, self.catalog, lang)
        if said is not None:
            return said
        if verdict == "cause" and findings:
            others = [f.title for f in findings[1:] if f.relation == "also"]
            if others:
                return word("summary-cause-and", lang, title=findings[0].title, others=", ".join(others))
            return word("summary-cause", lang, title=findings[0].title)
        if verdict == "healthy":
            if leader is not None:
                return word("summary-normal", lang, title=leader.cause.title[lang])
            return word("summary-healthy", lang)
        if self._is_foreign():
            return word("summary-foreign", lang)
        if self.facts.value("log.coverage") == "start-only" and not self.facts.value("log.failures"):
            return self._loading()
        if self.facts.value("log.ended") == "clean-shutdown" and not self.facts.value("log.failures"):
            return word("summary-shutdown", lang)
        # Likeness alone does not name a guess: too little was said.
        told = any(r.signal.when is not None for i in self.order[:1] for r in self.kept[i].reasons)
        if findings and told and findings[0].confidence >= LEAST_NAMED:
            return word("summary-unknown-guess", lang, title=findings[0].title)
        unknown = _text(self.facts.value("log.unrecognised"))
        if unknown:
            return word("summary-unrecognised", lang, text=unknown[:200])
        return word("summary-unknown", lang)

    def _why(self, why: str) -> str:
        """A tool names why something was not measured by a word of its own, or says it in a sentence."""
        return self.catalog.word(f"live-{why}", self.language) if f"live-{why}" in self.catalog.sentences else why

    def _loading(self) -> str:
        lang, stage = self.language, _text(self.facts.value("log.stage")) or "starting"
        declared = self.catalog.observables["log.stage"].choices.get(stage)
        label = declared[lang] if declared else stage
        left, rate = self.facts.value("log.seconds_left"), self.facts.value("log.seconds_per_shard")
        if left is None or rate is None:
            return self.catalog.word("summary-loading", lang, stage=label)
        minutes = round(float(left) / 60)
        key, n = ("duration-minutes", minutes) if minutes >= 2 else ("duration-seconds", round(float(left)))
        return self.catalog.word(
            "summary-loading-left",
            lang,
            stage=label,
            progress=_short(self.facts.value("log.progress_percent") or 0),
            rate=_short(rate),
            left=self.catalog.word(key, lang, n=n),
        )

    def _ruled_out(self) -> tuple[RuledOut, ...]:
        rows = []
        for candidate in self.excluded[:MOST_CAUSES]:
            exclusion = candidate.excluded_by
            if exclusion is None or candidate.cause.is_normal:
                continue
            values = judge(exclusion.when, self.facts).support
            because = exclusion.because[self.language]
            if "{value}" in because:
                because = because.replace("{value}", _short(values[0].value) if values else "?")
            rows.append(RuledOut(candidate.cause.id, candidate.cause.title[self.language], because))
        return tuple(rows)

    def _next_steps(self, verdict: Verdict) -> tuple[NextStep, ...]:
        if verdict != "unknown":
            return ()
        word, lang = self.catalog.word, self.language
        steps: list[NextStep] = []
        coverage = self.case.reading.coverage
        has_log = any(c.lines > 0 and (not c.pasted or self.facts.messages) for c in coverage)
        steps.extend(measured.next_steps(verdict, self.facts, self.catalog, lang, self.case.target))
        if has_log and not any(c.from_start for c in coverage):
            steps.append(NextStep("collect-above", "collect", word("collect-above", lang)))
        elif not has_log:
            steps.append(NextStep("collect-log", "collect", word("collect-log", lang)))
        steps.extend(open_questions(self.kept, self.facts, self.catalog, lang))
        steps.extend(tool_steps([self.kept[i] for i in self.order], self.facts, self.catalog, lang))
        if not self.order and not self.facts.said:
            steps.append(NextStep("collect-symptom", "collect", word("collect-symptom", lang)))
        if self.facts.value("log.unrecognised") and self.resolved.version is None:
            steps.append(NextStep("collect-version", "collect", word("collect-version", lang)))
        return tuple(steps)

    def _notes(self, verdict: Verdict, leader: Candidate | None) -> tuple[str, ...]:
        notes = []
        for coverage in self.case.reading.coverage:
            if coverage.runs > 1:
                notes.append(self.catalog.word("runs-before", self.language, runs=coverage.runs, run=coverage.run))
        event = self.catalog.gpu_events.get(f"xid-{self.facts.value('gpu.xid')}")
        if event is not None:
            notes.append(
                self.catalog.word(
                    "gpu-event",
                    self.language,
                    code=f"Xid {self.facts.value('gpu.xid')}",
                    name=event.name,
                    meaning=event.meaning[self.language],
                    action=event.action[self.language],
                )
            )
        notes.extend(version_notes(self.resolved, self.catalog, self.language))
        notes.extend(defect_notes(self.resolved.version, self.facts, self.catalog, self.language))
        settings = debug_settings(self.facts, self.started, self.catalog) if verdict == "cause" else ()
        if settings:
            notes.append(self.catalog.word("debug-on", self.language, names=", ".join(settings)))
        notes.extend(measured.notes(verdict, self.facts, self.catalog, self.language))
        if verdict == "healthy" and leader is not None:
            notes.insert(0, leader.cause.explanation[self.language])
        return tuple(notes)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _short(value: Any) -> str:
    """A number as people write it: no trailing zeros, thousands apart."""
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _quotes(candidate: Candidate) -> tuple[Quote, ...]:
    """The lines behind the heaviest reasons, each once, in the order of the reasons."""
    rows: dict[str, Quote] = {}
    for reason in candidate.reasons:
        for item in reason.support:
            if not item.quote:
                continue
            rows.setdefault(item.quote.strip(), _quote(item))
            if len(rows) >= MOST_QUOTES:
                return tuple(rows.values())
    return tuple(rows.values())


def _quote(item: Evidence) -> Quote:
    at = item.origin.at
    return Quote(item.origin.source, item.origin.line, item.origin.process, at.isoformat() if at else None, item.quote)


def _reference(source: Source) -> Reference:
    if source.document:
        return Reference(source.document, source.section, None)
    if source.file:
        return Reference(f"{source.file} (vLLM {source.version})" if source.version else source.file, None, source.url)
    return Reference(source.title or source.url or "", None, source.url)
