"""Diagnoses and what is done with them: the first answer, then every button under it.

A talk is a conversation in the store: its incident, the answers given so far, what is shown. Buttons name the talk and
the revision they were drawn for; any member of the channel and any replica goes on with it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.answer import Shown, answer_message, places, read_value
from assistant.faces.slack.drawing import draw, pages
from assistant.faces.slack.elements import Piece, cut, paragraph, rich, words
from assistant.faces.slack.files import File, Unread, files_in
from assistant.faces.slack.line import Line
from assistant.faces.slack.results import figure_files
from assistant.faces.slack.text import readable
from assistant.readers import Ask, ReadersError
from assistant.security.roles import ForbiddenError
from assistant.service import QuestionError
from assistant.store.database import NotFoundError, StoreError
from assistant.store.incidents import StaleRevisionError

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis
    from assistant.faces.slack.work import Work
    from assistant.service import Answered
    from assistant.store.conversations import Conversation
    from assistant.store.feedback import Seen
    from assistant.store.incidents import Incident
    from tools.evidence import Reading

FACE = "slack"
#: Pages of a full report that go into the thread; a longer one becomes a file.
MOST_PAGES = 3
_MOST_THREAD = 50


@dataclass(frozen=True, slots=True)
class Talk:
    """The state of one conversation."""

    lang: str
    line: Line
    asked: str = ""
    notes: tuple[str, ...] = ()
    answers: tuple[tuple[str, str], ...] = ()
    place: int = 0
    helped: str = ""

    def to_json(self) -> dict[str, Any]:
        """The talk as plain data."""
        return {
            "lang": self.lang,
            "line": self.line.to_json(),
            "asked": self.asked,
            "notes": list(self.notes),
            "answers": [list(pair) for pair in self.answers],
            "place": self.place,
            "helped": self.helped,
        }

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Talk:
        """What :meth:`to_json` made."""
        return cls(
            lang=str(table["lang"]),
            line=Line.of(table["line"]),
            asked=str(table.get("asked", "")),
            notes=tuple(map(str, table.get("notes", ()))),
            answers=tuple((str(question), str(value)) for question, value in table.get("answers", ())),
            place=int(table.get("place", 0)),
            helped=str(table.get("helped", "")),
        )


async def diagnose(work: Work) -> None:
    """Read what was given, answer, and begin a talk about it; or go on with the talk that more was told about."""
    order = work.order
    text, files = str(order.get("text", "")), [File(**entry) for entry in order.get("files", ())]
    await work.show(*_progress(work, "slack-looking", what=_what(work, text, files)))
    if order.get("thread_of"):
        more, found = await _thread(work, str(order["thread_of"]))
        text = "\n\n".join(part for part in (more, text) if part and part not in text) or text
        files += [file for file in found if file.url not in {known.url for known in files}]
    logs = [("log", str(order["log"]).encode())] if order.get("log") else []
    unread: list[Unread] = []
    if files:
        names = cut(", ".join(file.name for file in files), 300)
        await work.show(*_progress(work, "slack-fetching", files=names))
        read, unread = await work.fetcher.fetch(work.client, files)
        logs += read
        await work.show(*_progress(work, "slack-reading", files=names))
    notes = tuple(_unread(work, one) for one in unread)
    earlier = await _earlier(work)
    if not (text.strip() or logs or order.get("target")) and earlier is None:
        sentence = work.word("slack-nothing")
        await work.show([rich(paragraph(words(" ".join((sentence, *notes)))))], sentence)
        return
    ask = Ask(
        text=text,
        logs=tuple(logs),
        vllm_version=order.get("version") or None,
        language=work.lang if order.get("lang_given") else None,
        target=order.get("target") or None,
    )
    if earlier is not None:
        ask = _with(ask, earlier[1], Talk.of(earlier[0].state))
    answered = await _answered(work, work.service.diagnose(work.who, ask, face=FACE))
    if answered is None:
        return
    diagnosis = answered.diagnosis
    if answered.not_saved:
        notes = (*notes, _not_kept(work, diagnosis, answered.not_saved))
    notes = (*notes, *_seen(work, diagnosis, answered.seen_before))
    talk = Talk(diagnosis.language, work.line, _asked(work, diagnosis.language, text, files), notes)
    if earlier is not None:
        talk = replace(talk, answers=Talk.of(earlier[0].state).answers)
    same_message = earlier is not None and order.get("talk") is not None
    await _begin(work, talk, diagnosis, answered.incident, earlier[0] if earlier and same_message else None)
    drawn = await work.service.in_thread(lambda: list(figure_files(diagnosis, answered.window, work.catalog)))
    for name, content, title in drawn:
        await work.speaker.attach(work.client, work.line, name, content, title)


async def go_on(work: Work, incident: str, found: Ask, title: str) -> None:
    """Decide an incident anew with what a check of it has found, as a talk of its own below the result."""
    work.line = replace(work.line, thread=work.line.root, ts="", url="")
    await work.show(*_progress(work, "slack-looking", what=title))
    asking = work.service.more(work.who, incident, replace(found, language=work.lang), face=FACE)
    answered = await _answered(work, asking, StoreError)
    if answered is None:
        return
    diagnosis = answered.diagnosis
    notes = (_not_kept(work, diagnosis, answered.not_saved),) if answered.not_saved else ()
    talk = Talk(diagnosis.language, work.line, work.word("slack-with-check", title=title), notes)
    await _begin(work, talk, diagnosis, answered.incident, None)


#: What a person is told in the error's own words.
TOLD: tuple[type[Exception], ...] = (ReadersError, QuestionError, NotFoundError, ForbiddenError)


async def _answered(work: Work, asking: Coroutine[Any, Any, Answered], *also: type[Exception]) -> Answered | None:
    """What ``asking`` brings; None where the person was told instead why it brings nothing."""
    try:
        return await asking
    except TOLD + also as error:
        said = work.told(error)
        await work.show([rich(paragraph(words(cut(said, 1500))))], said)
    except TimeoutError:
        await work.say("slack-late", seconds=f"{work.service.settings.number('deadline_s'):g}")
    return None


async def _begin(
    work: Work, talk: Talk, diagnosis: Diagnosis, incident: str | None, earlier: Conversation | None
) -> None:
    identifier, revision = "", 0
    if incident is not None:
        try:
            if earlier is not None:
                revision = await work.service.in_thread(
                    lambda: work.service.conversations.change(
                        earlier.id, earlier.revision, talk.to_json(), incident=incident
                    )
                )
                identifier = earlier.id
            else:
                begun = await work.service.in_thread(
                    lambda: work.service.conversations.begin(FACE, talk.line.place, talk.to_json(), incident=incident)
                )
                identifier, revision = begun.id, begun.revision
        except StaleRevisionError:
            await work.whisper("slack-stale")
            return
        except StoreError as error:
            talk = replace(talk, notes=(*talk.notes, _not_kept(work, diagnosis, str(error))))
    await work.show(*answer_message(diagnosis, work.catalog, _shown(talk, identifier, revision)))


def _seen(work: Work, diagnosis: Diagnosis, seen: Sequence[Seen]) -> Iterator[str]:
    """The earlier incident that tells most: one whose fix is known, else one that was judged, else the newest."""
    if not seen:
        return
    word, lang = work.catalog.word, diagnosis.language
    row = min(seen, key=lambda one: (not one.fix, one.helped is None)).to_json()
    date, target = str(row["date"])[:10], row["target"]
    title = (
        word("seen-before", lang, date=date, target=target) if target else word("seen-before-anywhere", lang, date=date)
    )
    said = [f"{word('heading-seen-before', lang)} · {title}"]
    if row["fix"]:
        said.append(f"{word('seen-before-fix', lang)}{'：' if lang == 'zh' else ': '}{row['fix']}")
    elif row["helped"] in ("yes", "no"):
        said.append(word("seen-before-confirmed" if row["helped"] == "yes" else "seen-before-wrong", lang))
    yield cut(" · ".join(said), 380)


def _not_kept(work: Work, diagnosis: Diagnosis, why: str) -> str:
    lang = diagnosis.language
    return work.catalog.word("slack-not-kept", lang, why=work.catalog.told(why, lang))


async def press(work: Work) -> None:
    """A button or a menu under an answer."""
    try:
        identifier, revision, more = read_value(str(work.order["value"]))
        conversation = await work.service.in_thread(work.service.conversations.get, identifier)
        talk = Talk.of(conversation.state)
        saved = await work.service.in_thread(work.service.incidents.get, str(conversation.incident))
    except (ValueError, KeyError, NotFoundError):
        await work.whisper("slack-gone")
        return
    except StoreError as error:
        await work.whisper_text(work.told(error))
        return
    here = talk.line
    if here.team != work.line.team or (here.channel != work.line.channel and here.ts):
        await work.whisper("slack-elsewhere")
        return
    work.lang = "zh" if talk.lang == "zh" else "en"
    # The click brings a fresh response_url, and with it five more uses.
    talk = replace(talk, line=replace(work.line, ts=here.ts or work.line.ts, thread=here.thread or work.line.thread))
    action = str(work.order["action"]).partition(":")[0]
    if action in ("path", "report", "run"):
        diagnosis = await _again(work, saved, talk)
        work.line = talk.line
        if action == "run":
            from assistant.faces.slack.tooling import propose

            await propose(work, diagnosis, more, saved.id)
        else:
            await (_path if action == "path" else _report)(work, diagnosis)
        return
    changed, now = await _changed(work, action, more, talk, saved, stale=conversation.revision != revision)
    if changed is None:
        return
    try:
        revision = await work.service.in_thread(
            lambda: work.service.conversations.change(
                identifier, conversation.revision, changed.to_json(), place=changed.line.place
            )
        )
    except StaleRevisionError:
        await work.whisper("slack-stale")
        return
    work.line = changed.line
    diagnosis = now or await _again(work, saved, changed)
    await work.show(*answer_message(diagnosis, work.catalog, _shown(changed, identifier, revision)))


async def _changed(
    work: Work, action: str, more: str, talk: Talk, saved: Incident, *, stale: bool
) -> tuple[Talk | None, Diagnosis | None]:
    """The talk after the button, with the diagnosis where it was computed; None where nothing changes."""
    if stale:
        await work.whisper("slack-stale")
        return talk, None  # drawn again as it is now, with buttons that work
    if action in ("answer", "choose"):
        question, _, value = more.partition("=")
        try:
            work.service.check_answers({question: value})
        except QuestionError as error:
            await work.whisper_text(work.told(error))
            return None, None
        talk = replace(talk, answers=(*talk.answers, (question, value)), place=0)
        now = await _again(work, saved, talk)
        await _record(work, saved.id, question, value, now)
        return talk, now
    if action == "back" and talk.answers:
        question, _ = talk.answers[-1]
        talk = replace(talk, answers=talk.answers[:-1], place=0)
        now = await _again(work, saved, talk)
        await _record(work, saved.id, question, "unknown", now)
        return talk, now
    if action == "over":
        return replace(talk, answers=(), place=0, helped=""), None
    if action == "language":
        other = "en" if talk.lang == "zh" else "zh"
        return replace(talk, lang=other), None
    if action in ("next", "worked", "failed"):
        now = await _again(work, saved, talk)
        if action != "worked":
            talk = replace(talk, place=(talk.place + 1) % places(now))
        if action != "next":
            helped = "yes" if action == "worked" else "no"
            await _feedback(work, saved.id, helped)
            said = work.word(f"slack-helped-{helped}", name=work.who.name)
            talk = replace(talk, helped=said if helped == "yes" else "", notes=_noted(talk.notes, said, helped))
        return talk, now
    return talk, None


def _noted(notes: tuple[str, ...], said: str, helped: str) -> tuple[str, ...]:
    return notes if helped == "yes" or said in notes else (*notes[-3:], said)


async def _again(work: Work, saved: Incident, talk: Talk) -> Diagnosis:
    """The diagnosis from the saved evidence with exactly the answers of the talk and those given elsewhere."""
    elsewhere = {a.question: a.value for a in saved.answers if not a.given_by.startswith(f"{FACE}:")}
    case = {**saved.evidence[0], "language": talk.lang}
    return await work.service.readers.again(case, {**elsewhere, **dict(talk.answers)})


async def _record(work: Work, incident: str, question: str, value: str, diagnosis: Diagnosis) -> None:
    """Keep the answer with the incident too, so that the other faces know it."""
    from assistant import __version__

    body = diagnosis.to_json(engine=__version__)
    for _ in range(3):
        try:
            saved = await work.service.in_thread(work.service.incidents.get, incident)
            await work.service.in_thread(
                lambda saved=saved: work.service.incidents.answer(
                    incident,
                    saved.revision,
                    question,
                    value,
                    diagnosis=body,
                    evidence=saved.evidence,
                    given_by=f"{FACE}: {work.who.id}",
                )
            )
            return
        except StaleRevisionError:
            continue
        except StoreError:
            return  # the talk itself is kept or not kept by what comes next


async def _feedback(work: Work, incident: str, helped: Any) -> None:
    import contextlib

    with contextlib.suppress(StoreError):
        await work.service.in_thread(
            lambda: work.service.incidents.feedback(incident, helped, given_by=f"{FACE}: {work.who.id}")
        )


async def _path(work: Work, diagnosis: Diagnosis) -> None:
    from assistant.render.blocks import Block, Heading, Item

    heading = work.catalog.word("heading-path", diagnosis.language)
    blocks: list[Block] = [Heading(heading)]
    blocks += [Item(f"{step.question} {step.answer}") for step in diagnosis.path]
    for page in pages(draw(blocks)):
        await work.speaker.below(work.client, work.line, page, heading)


async def _report(work: Work, diagnosis: Diagnosis) -> None:
    """The whole answer in the thread, as messages where few are enough, as a file otherwise."""
    from assistant.render.blocks import diagnosis_blocks
    from assistant.render.markdown import to_markdown

    whole = list(diagnosis_blocks(diagnosis, work.catalog, show_path=True))
    made = pages(draw(whole))
    if len(made) > MOST_PAGES:
        content = to_markdown(whole).encode()
        title = work.catalog.word("slack-report", diagnosis.language)
        if await work.speaker.attach(work.client, work.line, "report.md", content, title):
            return
        note = work.catalog.word("slack-report-cut", diagnosis.language)
        made = [[rich(paragraph(words(note, italic=True)))], *made[:MOST_PAGES]]
    for page in made:
        await work.speaker.below(work.client, work.line, page, diagnosis.summary)


def _shown(talk: Talk, identifier: str, revision: int) -> Shown:
    return Shown(identifier, revision, talk.place, talk.asked, talk.notes, len(talk.answers), talk.helped)


def _progress(work: Work, key: str, **values: object) -> tuple[list[Piece], str]:
    text = work.word(key, **values)
    return [rich(paragraph(words(f"🔎 {text}")))], text


def _what(work: Work, text: str, files: Sequence[File]) -> str:
    parts = [work.word("slack-what-words")] if text.strip() or work.order.get("log") else []
    if files:
        parts.append(cut(", ".join(file.name for file in files), 200))
    if target := work.order.get("target"):
        parts.append(work.word("slack-what-target", target=target))
    return ("、" if work.lang == "zh" else ", ").join(parts) or "…"


def _asked(work: Work, lang: str, text: str, files: Sequence[File]) -> str:
    name = work.who.name
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if first:
        return cut(work.catalog.word("slack-asked", lang, name=name, text=cut(first, 160)), 260)
    if files:
        named = cut(", ".join(file.name for file in files), 160)
        return cut(work.catalog.word("slack-asked-files", lang, name=name, files=named), 260)
    return ""


def _unread(work: Work, unread: Unread) -> str:
    most = work.service.settings.whole("slack.max_file_bytes")
    return work.word(unread.sentence, name=unread.name, most=f"{most / 2**20:.3g} MiB")


async def _thread(work: Work, thread: str) -> tuple[str, list[File]]:
    """What a thread began with, and every file in it that is not from this app."""
    from slack_sdk.errors import SlackClientError

    try:
        said = await work.client.conversations_replies(channel=work.line.channel, ts=thread, limit=_MOST_THREAD)
    except (SlackClientError, OSError, TimeoutError):
        return "", []
    messages = [message for message in said.get("messages") or () if isinstance(message, Mapping)]
    people = [message for message in messages if not message.get("bot_id") or message.get("subtype") == "file_share"]
    files = [file for message in people for file in files_in(message)]
    first = next((str(message.get("text") or "") for message in people if message.get("ts") == thread), "")
    return work.service.clean(readable(first)), files


async def _earlier(work: Work) -> tuple[Conversation, Incident] | None:
    """The talk that this adds to: the one that a form names, or the newest one in the thread."""
    identifier = work.order.get("talk")
    service = work.service
    try:
        if identifier:
            conversation = await service.in_thread(service.conversations.get, str(identifier))
        elif work.line.thread:
            held = await service.in_thread(service.conversations.at, FACE, work.line.place, 1)
            if not held:
                return None
            conversation = held[0]
        else:
            return None
        if not conversation.incident or Talk.of(conversation.state).line.team != work.line.team:
            return None
        return conversation, await service.in_thread(service.incidents.get, conversation.incident)
    except StoreError:
        return None


def _with(ask: Ask, saved: Incident, talk: Talk) -> Ask:
    """The question together with what is known from before."""
    from assistant.diagnosis.model import case_from_json

    case = case_from_json(saved.evidence[0])
    readings: tuple[Reading, ...] = (case.reading,)
    return replace(
        ask,
        text="\n\n".join(part for part in (case.text, ask.text) if part.strip()),
        readings=readings,
        vllm_version=ask.vllm_version or case.vllm_version,
        target=ask.target,
        language="zh" if talk.lang == "zh" else "en",
        answers={**case.answers, **dict(talk.answers)},
    )
