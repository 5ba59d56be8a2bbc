"""The first page: words, pasted or dropped logs and a target go in; what is being done is shown until the answer is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse

from assistant.faces.http.wanted import while_wanted
from assistant.faces.web.door import MOST_FIELD, log
from assistant.faces.web.visit import HEADERS, PageError
from assistant.readers import Ask, ReadersError
from assistant.security.roles import ForbiddenError
from assistant.service import QuestionError
from assistant.store.database import StoreError
from assistant.store.finding import Wanted, find

if TYPE_CHECKING:
    from assistant.faces.web.visit import Visit
    from assistant.service import Answered

#: Seconds between two signs of life while a log is read.
_TICK_S = 1.0
_RECENT = 5


async def first(visit: Visit) -> Response:
    """The form, and what was asked last."""
    from assistant.faces.web.incidents import rows

    service = visit.service
    recent: list[dict[str, object]] = []
    with contextlib.suppress(StoreError):  # the list is a convenience, asking is not
        recent = await service.in_thread(find, service.database, Wanted(), _RECENT)
    return visit.page(
        "ask.html",
        title=visit.word("web-ask"),
        targets=sorted(service.targets),
        recent=rows(visit, recent),
        text=visit.field("text", 4000),
        chosen=visit.field("target"),
    )


async def ask(visit: Visit) -> Response:
    """A form with an incident: waits and goes on to the diagnosis, or tells its progress as server-sent events."""
    given = await _read(visit)
    if visit.request.headers.get("accept", "").startswith("text/event-stream"):
        headers = {**HEADERS, "X-Accel-Buffering": "no", "Cache-Control": "no-store"}
        return StreamingResponse(_progress(visit, given), media_type="text/event-stream", headers=headers)
    answered = await while_wanted(visit.request, visit.service.diagnose(visit.principal, given, face="web"))
    if answered.incident is not None:
        return visit.to(f"/incidents/{answered.incident}")
    from assistant.faces.web.incidents import shown

    return await shown(visit, answered)


async def _read(visit: Visit) -> Ask:
    form = visit.form
    if form is None:
        raise PageError(405, visit.word("web-error-form"))
    logs: list[tuple[str, bytes]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name == "logs" and (value.filename or value.size):
            logs.append((value.filename or f"log {len(logs) + 1}", await value.read()))
    text = str(form.get("text", ""))[:MOST_FIELD].replace("\r\n", "\n")
    target = visit.field("target")
    if not text.strip() and not logs and not target:
        raise PageError(422, visit.word("web-error-nothing"))
    return Ask(
        text=text,
        logs=tuple(logs),
        vllm_version=visit.field("vllm_version", 40) or None,
        language=visit.lang,
        target=target or None,
    )


async def _progress(visit: Visit, given: Ask) -> AsyncIterator[str]:
    """What happens, as events: ``doing`` with a sentence, then ``done`` with an address or ``failed`` with a sentence.

    Whoever closes the connection ends the work.
    """
    size = sum(len(data) for _, data in given.logs) + len(given.text)
    work = asyncio.ensure_future(visit.service.diagnose(visit.principal, given, face="web"))
    started = time.monotonic()
    try:
        yield _event("doing", text=visit.word("web-doing-received", size=_size(size)))
        while not work.done():
            seconds = int(time.monotonic() - started)
            key = "web-doing-target" if given.target else "web-doing-reading"
            yield _event("doing", text=visit.word(key, seconds=seconds, target=given.target or ""), seconds=seconds)
            await asyncio.wait({work}, timeout=_TICK_S)
        yield _event(*_end(visit, work))
    finally:
        work.cancel()


def _end(visit: Visit, work: asyncio.Future[Answered]) -> tuple[str, str, str]:
    try:
        answered = work.result()
    except (ForbiddenError, QuestionError, ReadersError, StoreError, TimeoutError) as error:
        return "failed", visit.told(error) or visit.word("web-error-late"), ""
    except Exception as error:  # noqa: BLE001  (the stream has begun; its last event has to say what happened)
        identifier = getattr(visit.request.state, "request_id", "")
        log.error("request %s failed", identifier, exc_info=error)
        return "failed", visit.word("web-error-ours", id=identifier), ""
    if answered.incident is None:
        return "failed", visit.word("web-error-not-kept", why=answered.not_saved), ""
    return "done", visit.word("web-doing-done"), f"/incidents/{answered.incident}"


def _event(name: str, text: str, address: str = "", **more: object) -> str:
    return f"event: {name}\ndata: {json.dumps({'text': text, 'address': address, **more})}\n\n"


def _size(count: int) -> str:
    for unit, size in (("MB", 1_000_000), ("kB", 1000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
