"""What every server face needs, once: diagnoses, incidents, questions, jobs and who may have them.

A face turns its own kind of request into these calls and draws what comes back; it neither opens the store nor decides
who may do what. Blocking work leaves the event loop: reading goes to :class:`~assistant.readers.Readers`, the database
to threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from assistant import __version__
from assistant.acting import carrier
from assistant.readers import Ask, InProcess, Readers, ReadersError, clean_input
from assistant.security.roles import Principal, Role, require
from knowledge.catalog import Catalog

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis, Language
    from assistant.security.consent import Consents
    from assistant.settings import Settings
    from assistant.store.audit import Audit, Line, Outcome
    from assistant.store.database import Database
    from assistant.store.feedback import Feedback, Seen
    from assistant.store.incidents import Incidents
    from assistant.store.jobs import Job, Jobs
    from assistant.store.kept import Kept
    from assistant.store.worker import Worker
    from assistant.targets import Target
    from tools.addresses import Policy
    from tools.metrics.window import ServerWindow
    from tools.registry import FindServer

Result = TypeVar("Result")
#: Characters of an answer in a person's own words.
MOST_ANSWER = 200


class QuestionError(ValueError):
    """An answer names no question that is asked, or no choice of it. The message is a sentence."""


class UndecidedError(QuestionError):
    """There is nothing (yet) to decide by. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A diagnosis with the incident it was saved as; ``not_saved`` says why there is none, ``window`` what a server showed."""

    diagnosis: Diagnosis
    incident: str | None
    revision: int
    not_saved: str = ""
    seen_before: tuple[Seen, ...] = ()
    window: ServerWindow | None = None

    def to_json(self, *, full: bool = False) -> dict[str, Any]:
        """The diagnosis as interfaces know it."""
        body: dict[str, Any] = self.diagnosis.to_json(
            engine=__version__, full=full, incident=self.incident, revision=self.revision
        )
        body["seen_before"] = [seen.to_json() for seen in self.seen_before]
        if self.not_saved:
            body["not_saved"] = self.not_saved
        return body


@dataclass(slots=True)
class Note:
    """An audit line about a call that is under way; ``written`` where it was kept together with what the call made."""

    who: str
    role: str
    face: str
    did: str
    detail: Mapping[str, Any]
    written: bool = False

    def fields(self, outcome: Outcome) -> Line:
        """The line, when it is known how the call ended."""
        return {
            "who": self.who, "role": self.role, "face": self.face, "did": self.did, "detail": self.detail,
            "outcome": outcome,
        }  # fmt: skip


#: Seconds that a target is watched for a diagnosis.
LOOK_S = 5.0


class Service:
    """The assistant as a running server. Made by :func:`assistant.running.opened`; its attributes are there to be used by faces."""

    def __init__(self, settings: Settings, catalog: Catalog, database: Database, readers: Readers | InProcess) -> None:
        from assistant.security.consent import Consents
        from assistant.security.keys import consent_key
        from assistant.security.tokens import Tokens
        from assistant.store.audit import Audit
        from assistant.store.claims import Claims
        from assistant.store.conversations import Conversations
        from assistant.store.feedback import Feedback
        from assistant.store.incidents import Incidents
        from assistant.store.jobs import Jobs

        self.settings = settings
        self.catalog = catalog
        self.database = database
        self.readers = readers
        self.targets = _targets(settings)
        self.policy = _policy(settings, self.targets)
        self.incidents: Incidents = Incidents(database)
        self.feedback: Feedback = Feedback(database)
        self.jobs: Jobs = Jobs(database)
        self.audit: Audit = Audit(database)
        self.tokens = Tokens(database)
        self.claims = Claims(database)
        self.conversations = Conversations(database)
        self.consents: Consents = Consents(consent_key(database))
        #: Set when the server begins to stop: it still answers, says so at /readyz and takes no further job.
        self.draining = False
        self._carrying: tuple[Worker, asyncio.Task[None]] | None = None
        self._store_threads = ThreadPoolExecutor(16, thread_name_prefix="store")

    async def diagnose(self, principal: Principal, ask: Ask, *, face: str, save: bool = True) -> Answered:
        """Read what was given, decide, and keep the incident.

        Raises ``ForbiddenError``, :class:`QuestionError`, ``ReadersError`` and ``TimeoutError``. A store that is away
        costs the incident's id and not the answer.
        """
        from assistant.store.database import StoreError
        from assistant.store.incidents import new_incident

        brought = {"logs": [name for name, _ in ask.logs], "bytes": sum(len(data) for _, data in ask.logs)}
        async with self.noted(principal, face, "diagnose", {**brought, "target": ask.target}) as note:
            require(principal, "diagnose", "reads")
            self.check_answers(ask.answers)
            ask, window = await self._looked(ask, principal, face)
            if not save:
                return Answered(await self.readers.diagnose(clean_input(ask)), None, 1, window=window)
            incident, others = new_incident(), self.settings.yes("redact_addresses")
            diagnosis, kept = await self.readers.diagnose_to_keep(clean_input(ask), incident, others)
            try:
                seen = await self.in_thread(self._put, kept, diagnosis, f"{face}: {principal.id}", note)
            except StoreError as error:
                return Answered(diagnosis, None, 1, str(error), window=window)
        return Answered(diagnosis, incident, 1, seen_before=seen, window=window)

    async def keep(self, diagnosis: Diagnosis, question: str, principal: Principal, *, face: str) -> Answered:
        """Keep a diagnosis that was made without being saved. Raises ``StoreError``."""
        incident, seen = await self.in_thread(self._save_new, diagnosis, question, f"{face}: {principal.id}")
        return Answered(diagnosis, incident, 1, seen_before=seen)

    async def bundle(self, principal: Principal, ask: Ask, incident: str | None = None, *, face: str) -> bytes:
        """A redacted bundle of a saved incident, or of what is given. Raises what :meth:`diagnose` raises."""
        require(principal, "diagnose", "reads")
        if incident is not None:
            saved = await self.in_thread(self.incidents.get, incident)
            answers = {a.question: a.value for a in saved.answers}
            case = {**saved.evidence[0], "answers": {**saved.evidence[0].get("answers", {}), **answers}}
            return await self.readers.pack(ask, case, saved.id)
        self.check_answers(ask.answers)
        ask, _ = await self._looked(ask, principal, face)
        return await self.readers.pack(clean_input(ask), None, None)

    async def more(self, principal: Principal, incident: str, ask: Ask, *, face: str) -> Answered:
        """A new incident of what a saved one knows and what ``ask`` brings besides: the log that was asked for, say.

        Raises what :meth:`diagnose` and :meth:`incident` raise, and ``ReadersError`` for an unreadable saved case.
        """
        require(principal, "diagnose", "reads")
        from assistant.diagnosis.model import case_from_json

        saved = await self.in_thread(self.incidents.get, incident)
        try:
            case = case_from_json(saved.evidence[0])
        except (IndexError, KeyError, ValueError, TypeError) as error:
            raise ReadersError(f"The incident was saved in a form that cannot be read back ({error!r}).") from None
        answered = {answer.question: answer.value for answer in saved.answers}
        whole = replace(
            ask,
            text="\n".join(part for part in (case.text, ask.text) if part),
            vllm_version=ask.vllm_version or case.vllm_version,
            language=ask.language or case.language,
            target=ask.target or (case.target if case.target in self.targets else None),
            answers={**case.answers, **answered, **ask.answers},
            readings=(*ask.readings, case.reading),
        )
        return await self.diagnose(principal, whole, face=face)

    async def with_check(
        self, principal: Principal, job: str, ask: Ask, incident: str | None = None, *, face: str
    ) -> Answered:
        """A new incident of what a check has found, what ``ask`` brings besides and what a saved incident knows.

        That is ``incident``, or the one that the check was made for; without either the check alone decides. Raises what
        :meth:`job` and :meth:`more` raise, and :class:`UndecidedError` where the check has found nothing to decide by.
        """
        from assistant.checked import found_by

        done = await self.job(principal, job)
        if not done.finished:
            raise UndecidedError(f"The check {done.action} is not finished; its state is {done.state}.")
        found = found_by(done)
        if found is None:
            raise UndecidedError(f"The check {done.action} has found nothing that a diagnosis could use.")
        ask = replace(ask, logs=(*ask.logs, *found.logs), readings=(*ask.readings, *found.readings))
        incident = incident or done.incident
        if incident is None:
            return await self.diagnose(principal, ask, face=face)
        return await self.more(principal, incident, ask, face=face)

    async def incident(self, principal: Principal, incident: str, language: Language | None = None) -> Answered:
        """A saved incident, diagnosed again from its evidence, in another language where one is asked for.

        Raises ``NotFoundError`` and ``ForbiddenError``.
        """
        require(principal, "diagnose", "reads")
        saved = await self.in_thread(self.incidents.get, incident)
        case = {**saved.evidence[0], "language": language} if language else saved.evidence[0]
        diagnosis = await self.readers.again(case, {a.question: a.value for a in saved.answers})
        seen = await self.in_thread(self._seen, diagnosis, saved.id)
        return Answered(diagnosis, saved.id, saved.revision, seen_before=seen)

    async def answer(
        self, principal: Principal, incident: str, answers: Mapping[str, str], *, face: str, revision: int | None = None
    ) -> Answered:
        """Answer questions of a saved incident; ``revision`` is the one the person saw, None the newest.

        Raises :class:`QuestionError`, ``StaleRevisionError``, ``NotFoundError`` and ``ForbiddenError``.
        """
        async with self.noted(principal, face, "diagnose", {"incident": incident, "answers": dict(answers)}):
            return await self._answer(principal, incident, answers, face, revision)

    async def _answer(
        self, principal: Principal, incident: str, answers: Mapping[str, str], face: str, revision: int | None
    ) -> Answered:
        require(principal, "diagnose", "reads")
        self.check_answers(answers)
        saved = await self.in_thread(self.incidents.get, incident)
        seen = saved.revision if revision is None else revision
        if seen != saved.revision:
            from assistant.store.incidents import StaleRevisionError

            raise StaleRevisionError(incident, seen, saved.revision)
        given = {a.question: a.value for a in saved.answers} | dict(answers)
        diagnosis = await self.readers.again(saved.evidence[0], given)
        body = diagnosis.to_json(engine=__version__)
        for question, value in answers.items():
            seen = await self.in_thread(
                lambda question=question, value=value, seen=seen: self.incidents.answer(
                    incident,
                    seen,
                    question,
                    value,
                    diagnosis=body,
                    evidence=saved.evidence,
                    given_by=f"{face}: {principal.id}",
                )
            )
        before = await self.in_thread(self._seen, diagnosis, incident)
        return Answered(diagnosis, incident, seen, seen_before=before)

    @contextlib.asynccontextmanager
    async def noted(self, principal: Principal, face: str, did: str, detail: Mapping[str, Any]) -> AsyncIterator[Note]:
        """Write down who did ``did`` and how it ended; a database that is away costs the note and not the call."""
        from assistant.security.roles import ForbiddenError
        from assistant.store.database import StoreError

        note = Note(principal.id, principal.role.name, face, did, detail)
        outcome: Outcome = "failed"
        try:
            yield note
            outcome = "done"
        except ForbiddenError:
            outcome = "refused"
            raise
        finally:
            if not note.written:
                with contextlib.suppress(StoreError):
                    await self.in_thread(lambda: self.audit.note(**note.fields(outcome)))

    def target(self, name: str) -> Target:
        """The configured target of this name; raises ``NotFoundError``."""
        from assistant.store.database import NotFoundError

        found = self.targets.get(name)
        if found is None:
            known = ", ".join(sorted(self.targets)[:20]) or "none is configured"
            raise NotFoundError(f"There is no target {name[:80]!r}; known are: {known}.")
        return found

    @property
    def server(self) -> FindServer:
        """For actions: where a configured server is, and the credentials for it."""
        from assistant.fleet.naming import server_of

        return server_of(self.targets)

    async def _looked(self, ask: Ask, principal: Principal, face: str) -> tuple[Ask, ServerWindow | None]:
        """The question with what its target shows: metrics over some seconds, its node, its logs; and the window seen."""
        if ask.target is None or not ask.target.strip():
            return ask, None
        from assistant.diagnosis.collecting import collect
        from assistant.nodes.looking import audited, read_target_and_node

        target, note = self.target(ask.target), audited(self.audit, principal, face)
        (reading, window), (beside, logs) = await asyncio.gather(
            read_target_and_node(target, self.policy, self.settings, window_s=LOOK_S, note=note),
            collect(target, self.policy, deadline_s=self.settings.number("outbound.deadline_s")),
        )
        return replace(ask, readings=(*ask.readings, reading, beside), collected=(*ask.collected, *logs)), window

    async def job(self, principal: Principal, job: str) -> Job:
        """A job of ``principal``'s own, or any job for an admin; raises ``NotFoundError`` for every other."""
        from assistant.store.database import NotFoundError

        found = await self.in_thread(self.jobs.get, job)
        if found.requested_by != principal.id and principal.role < Role.admin:
            raise NotFoundError(f"There is no job {job[:80]!r}.")  # the same words as for one that is not there
        return found

    def clean(self, text: str) -> str:
        """A person's text without control characters and secrets, as it may be kept."""
        from assistant.store.saving import cleaner
        from tools.redaction import clean

        return cleaner(self.settings)(clean(text))

    def check_answers(self, answers: Mapping[str, str]) -> None:
        """Raise :class:`QuestionError` for an answer to no question, or with no choice of it."""
        for name, value in answers.items():
            declared = self.catalog.observable(name)
            if declared is None or declared.ask is None:
                raise QuestionError(f"{name[:80]!r} is no question that is asked.")
            if len(value) > MOST_ANSWER:
                raise QuestionError(
                    f"The answer to {name} has {len(value)} characters; at most {MOST_ANSWER} are taken."
                )
            if declared.choices and value != "unknown" and value not in declared.choices:
                choices = ", ".join((*declared.choices, "unknown"))
                raise QuestionError(f"{value[:80]!r} is no answer to {name}; its choices are {choices}.")

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a blocking call of the store off the event loop; raises ``StoreError`` where it takes too long.

        A database that takes connections and says nothing holds its threads, which are these and nobody else's.
        """
        from assistant.store.database import StoreError

        seconds = self.settings.number("store.timeout_s") * 2 + 1
        work = partial(contextvars.copy_context().run, function, *arguments)  # its spans belong to this request's
        call = asyncio.get_running_loop().run_in_executor(self._store_threads, work)
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError:
            raise StoreError(f"The database {self.database.shown} did not answer within {seconds:g} s.") from None

    async def start(self) -> None:
        """Prepare now what the first requests would have to wait for: reading processes and the search index."""
        await asyncio.gather(self.readers.start(), _prepare_search(self.settings.text("runbooks_folder")))

    async def ready(self) -> tuple[str, ...]:
        """What is not ready, one sentence each; empty when requests can be served."""
        from assistant.store.database import StoreError

        problems: list[str] = []
        if self.draining:
            problems.append("The server is stopping; it finishes what it has and takes nothing new.")
        if self._carrying is not None and self._carrying[1].done():
            problems.append("Jobs are no longer carried out by this process; restart it.")
        try:
            async with asyncio.timeout(self.settings.number("store.timeout_s") + 1):
                await self.in_thread(self._touch)
        except (StoreError, TimeoutError) as error:
            problems.append(str(error) or "The database does not answer.")
        return (*problems, *self.readers.problems())

    def close(self) -> None:
        """Wait for no call of the store any more."""
        self._store_threads.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Begin to stop: other replicas take what comes from now on."""
        self.draining = True
        if self._carrying is not None:
            self._carrying[0].paused = True

    def work(self, stop: asyncio.Event) -> asyncio.Task[None]:
        """Carry jobs out until ``stop``."""
        worker = self.worker()
        worker.paused = self.draining
        task = asyncio.create_task(worker.run(stop))
        self._carrying = (worker, task)
        return task

    def worker(self) -> Worker:
        """A worker on this service's jobs."""
        from assistant.store.worker import Worker

        return Worker(
            self.jobs,
            carrier(self.policy, self.settings.text("runbooks_folder"), self.server),
            lease_s=self.settings.number("jobs.lease_s"),
            at_once=self.settings.whole("jobs.at_once"),
        )

    def _put(self, kept: Kept, diagnosis: Diagnosis, saved_by: str, note: Note) -> tuple[Seen, ...]:
        """Keep an incident and the note about it at once; returns earlier ones of the same cause."""
        self.incidents.put(kept, saved_by=saved_by, also=self.audit.adding(**note.fields("done")))
        note.written = True
        return self._seen(diagnosis, kept.id)

    def _save_new(self, diagnosis: Diagnosis, question: str, saved_by: str) -> tuple[str, tuple[Seen, ...]]:
        from assistant.store.incidents import new_incident
        from assistant.store.kept import as_kept
        from assistant.store.saving import cleaner

        evidence = [diagnosis.case.to_json()] if diagnosis.case is not None else []
        body = diagnosis.to_json(engine=__version__)
        kept = as_kept(new_incident(), 1, body, evidence, question=question, clean=cleaner(self.settings))
        self.incidents.put(kept, saved_by=saved_by)
        return kept.id, self._seen(diagnosis, kept.id)

    def _seen(self, diagnosis: Diagnosis, incident: str) -> tuple[Seen, ...]:
        """Earlier incidents of the same cause; a store that fails here costs this list and nothing else."""
        from assistant.store.database import StoreError

        if diagnosis.verdict != "cause" or not diagnosis.causes:
            return ()
        with contextlib.suppress(StoreError):
            return self.feedback.seen_before(diagnosis.causes[0].id, diagnosis.target, besides=incident)
        return ()

    def _touch(self) -> None:
        """Reach the tables with a write that changes nothing: a standby or a read-only file could keep no incident."""
        import sqlalchemy as sa

        with self.database.write() as connection:
            connection.execute(sa.text("UPDATE jobs SET state = state WHERE number = -1"))


async def _prepare_search(folder: str) -> None:
    """Make the search index, which takes a second, before somebody waits for it."""
    from tools.knowledge_search import retriever

    with contextlib.suppress(OSError):  # said again, in words, to whoever searches
        await asyncio.to_thread(retriever, folder)


def _targets(settings: Settings) -> dict[str, Target]:
    from assistant.targets import load_targets

    file = settings.text("targets_file")
    return load_targets(Path(file)) if file else {}


def _policy(settings: Settings, targets: Mapping[str, Target]) -> Policy:
    from assistant.targets import policy_for

    return policy_for(settings, targets)
