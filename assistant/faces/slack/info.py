"""``help``, ``status`` and ``runbook``: what needs no reading and no talk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assistant import __version__
from assistant.faces.slack.drawing import draw, pages
from assistant.faces.slack.elements import actions, button, cut, fixed, header, paragraph, quiet, rich, words
from assistant.store.database import StoreError
from tools.knowledge_search import search

if TYPE_CHECKING:
    from assistant.faces.slack.work import Work

#: The forms of the command, with the sentence that says what each does.
FORMS = (
    ("", "form"),
    ("it hangs at start with two GPUs", "text"),
    ("prod", "target"),
    ("memory Qwen/Qwen3-8B --gpu L4", "memory"),
    ("runbook memory/no-room-for-kv-cache", "runbook"),
    ("nccl --ranks 2", "nccl"),
    ("status", "status"),
)
COMMAND = "/vllm-diagnose"
_MOST_HITS = 5


async def show_help(work: Work) -> None:
    """The forms of the command, for the person alone."""
    rows = []
    for example, name in FORMS:
        rows += [paragraph(words(work.word(f"slack-help-{name}"))), fixed(f"{COMMAND} {example}".strip(), 200)]
    title = work.word("slack-help-title")
    await work.whisper_blocks([header(title), rich(*rows), quiet(work.word("slack-help-more"))], title)


async def show_status(work: Work) -> None:
    """Whether the server can work, what it works on and which servers it knows, for the person alone."""
    service = work.service
    problems = await service.ready()
    lines = [f"⚠️ {work.told(problem)}" for problem in problems] or [
        "✅ " + work.word("slack-status-ready", version=__version__, knowledge=work.catalog.digest[:12])
    ]
    try:
        states = [await service.in_thread(service.jobs.recent, 50, state) for state in ("running", "queued")]
        lines.append(work.word("slack-status-jobs", n=sum(map(len, states))))
    except StoreError:
        pass  # it is among the problems above
    names = ", ".join(sorted(service.targets)[:40])
    lines.append(work.word("slack-status-targets", names=names) if names else work.word("slack-status-no-targets"))
    title = work.word("slack-status-title")
    await work.whisper_blocks([header(title), rich(*(paragraph(words(cut(line, 1500))) for line in lines))], lines[0])


async def show_runbook(work: Work) -> None:
    """The steps for a cause by its id; for anything else the causes that sound like it."""
    asked = str(work.order.get("text", "")).strip()
    cause = work.catalog.causes.get(asked)
    if cause is None:
        hits = [
            hit
            for hit in await work.service.in_thread(
                search, asked[:600] or "vllm", work.lang, _MOST_HITS, work.service.settings.text("runbooks_folder")
            )
            if hit.kind == "cause"
        ]
        if not hits:
            await work.whisper_text(work.word("found-nothing", text=asked[:200]))
            return
        title = work.word("slack-runbook-which")
        rows = [button(f"pick:{place}", hit.title, hit.id) for place, hit in enumerate(hits[:_MOST_HITS])]
        await work.whisper_blocks([rich(paragraph(words(title, bold=True))), actions("pick", rows)], title)
        return
    await _show_cause(work, cause.id)


async def pick(work: Work) -> None:
    """One of the causes that were offered."""
    identifier = str(work.order["value"])
    if identifier in work.catalog.causes:
        await _show_cause(work, identifier)
    else:
        await work.whisper("slack-gone")


async def _show_cause(work: Work, identifier: str) -> None:
    from assistant.advice.fixes import advise, collect_first
    from assistant.diagnosis.truth import Facts
    from assistant.render.blocks import cause_blocks

    cause = work.catalog.causes[identifier]
    fixes = advise(cause, Facts(), work.catalog, None, work.lang)
    blocks = cause_blocks(cause, fixes, collect_first(cause, work.catalog, work.lang), work.catalog, work.lang)
    first, *rest = pages(draw(blocks))
    await work.show(first, cause.title[work.lang])
    for page in rest[:3]:
        await work.speaker.below(work.client, work.line, page, cause.title[work.lang])
