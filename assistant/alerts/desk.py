"""Works on groups of alerts: looks at their targets, keeps the incident, tells the channels, closes what is over.

Everything that is to be done stands in the store (:mod:`assistant.alerts.board`). Whoever works on a group holds a
lease on it; one that stops gives it back, one that dies loses it after :data:`LEASE_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from assistant.alerts.board import CLOSED, DUE, OPEN, Board, Held, Taken, now_ms
from assistant.alerts.budget import Budget
from assistant.alerts.channels import AlertMessage, Channel, ChannelError
from assistant.alerts.groups import Found, Group, Sent, looked, worst
from assistant.alerts.messages import Language, group_message, rest_message
from assistant.readers import Ask, ReadersError
from assistant.security.roles import ForbiddenError, Principal, Role
from assistant.store.database import NotFoundError, StoreError

if TYPE_CHECKING:
    from assistant.alerts.webhook import Notice
    from assistant.diagnosis.model import Diagnosis
    from assistant.service import Service

Result = TypeVar("Result")
log = logging.getLogger("vllm_diagnose.alerts")

#: Who looks when an alert asks for it.
ALERTS = Principal("alerts", "alerts", Role.viewer, ("diagnose",))
#: Seconds that alerts of a burst get to come together before the first is looked at.
SETTLE_S = 1.0
LEASE_S = 30.0
#: Groups that are looked at when alerts pour in; those that came later than so many others are only counted.
_MOST_WAITING = 200
_PAUSE_S = 1.0


class Desk:
    """The alerts of one process. ``url`` completes a path to the server's public address."""

    def __init__(self, service: Service, channels: Sequence[Channel], url: Callable[[str], str]) -> None:
        settings = service.settings
        self.board = Board(
            service.claims, service.conversations, service.targets, group_s=settings.number("alerts.group_s")
        )
        self._service = service
        self._channels = {channel.name: channel for channel in channels}
        self._url = url
        self._budget = Budget(service.claims, settings.whole("alerts.messages_per_minute"))
        self._places = asyncio.Semaphore(settings.whole("alerts.diagnoses_at_once"))
        self._at_once = settings.whole("alerts.diagnoses_at_once")
        self._language: Language = "zh" if settings.text("language") == "zh" else "en"
        self._owner = secrets.token_hex(8)
        self._wake = asyncio.Event()

    async def take(self, notice: Notice) -> Taken:
        """Keep a notice and see to it that it is worked on; see :meth:`Board.take`."""
        taken = await self.in_store(self.board.take, notice)
        self._wake.set()
        return taken

    async def in_store(self, call: Callable[..., Result], *arguments: object) -> Result:
        """A blocking call of the board, off the event loop."""
        return await self._service.in_thread(call, *arguments)

    async def run(self) -> None:
        """Work until cancelled; a store that is away is waited for."""
        working: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                self._wake.clear()
                try:
                    await self._look_around(working)
                except (StoreError, OSError) as error:
                    log.warning("alerts wait for the store: %s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE_S):
                        await self._wake.wait()
                    await asyncio.sleep(0.05)  # what comes at once is looked at together
        finally:
            for task in working.values():
                task.cancel()
            await asyncio.gather(*working.values(), return_exceptions=True)

    async def _look_around(self, working: dict[str, asyncio.Task[None]]) -> None:
        due = await self.in_store(self.board.at, DUE)
        due.sort(key=lambda held: held.group.announced == "counted")  # whoever waits for a message comes first
        now = now_ms()
        for identifier in [key for key, task in working.items() if task.done()]:
            del working[identifier]
        for held in due[:_MOST_WAITING]:
            settled = now - held.group.started_ms > SETTLE_S * 1000
            if held.id in working or not held.group.to_look_at or not settled or len(working) >= self._at_once:
                continue
            leased = await self.in_store(self.board.lease, held.id, self._owner, LEASE_S)
            if leased is not None:
                working[held.id] = asyncio.create_task(self._work(held.id))
        await self._deliver([held for held in due if held.id not in working])

    async def _work(self, identifier: str) -> None:
        """Look at the targets of one group, several at once, and keep the incident of the one that is worst off."""
        keeper = asyncio.create_task(self._keep_lease(identifier))
        try:
            held = await self.in_store(self.board.get, identifier)
            names = held.group.to_look_at
            found = dict(zip(names, await asyncio.gather(*(self._one(held, name) for name in names)), strict=True))
            after: Group | None = None
            for name, (result, _) in found.items():
                after = await self._alter(identifier, partial(looked, name=name, found=result))
            if held.incident is None and after is not None:
                await self._keep(identifier, after, {name: made for name, (_, made) in found.items()})
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a group of alerts could not be worked on")
            await asyncio.sleep(_PAUSE_S)
        finally:
            keeper.cancel()
            with contextlib.suppress(StoreError):
                await asyncio.shield(self._alter(identifier, lambda group: replace(group, owner="", lease_until_ms=0)))
            self._wake.set()

    async def _one(self, held: Held, name: str) -> tuple[Found, Diagnosis | None]:
        """What is wrong at one target, or what its alerts say where no target is meant."""
        group = held.group
        words = [
            str(shown["summary"]) or str(shown["name"]) for shown in group.shown.values() if name in shown["targets"]
        ]
        if not name:
            words = [str(shown["summary"]) or str(shown["name"]) for shown in group.shown.values()]
        ask = Ask(text="\n".join(dict.fromkeys(words))[:4000] or group.title, language=self._language)
        if name:
            ask = replace(ask, target=name, text="")  # what is seen there decides, not what a rule supposes
        async with self._places:
            try:
                answered = await self._service.diagnose(ALERTS, ask, face="alerts", save=False)
            except (ReadersError, NotFoundError, ForbiddenError, TimeoutError) as error:
                return Found("unknown", summary=str(error)[:400]), None
        return found_of(answered.diagnosis), answered.diagnosis

    async def _keep(self, identifier: str, group: Group, made: dict[str, Diagnosis | None]) -> None:
        name = worst(group)
        diagnosis = made.get(name) if name is not None else None
        if diagnosis is None:
            return
        summary = "\n".join(str(shown["summary"]) or str(shown["name"]) for shown in list(group.shown.values())[:20])
        answered = await self._service.keep(diagnosis, summary, ALERTS, face="alerts")
        first = diagnosis.causes[0] if diagnosis.verdict == "cause" else None
        fix = first.fixes[0] if first is not None and first.fixes else None
        kept = None
        if fix is not None:
            kept = {"title": fix.title, "why": fix.why, "command": fix.command, "impact": fix.impact}
        change = self.board.alter
        await self.in_store(
            lambda: change(identifier, lambda now: replace(now, lead=name, fix=kept), incident=answered.incident)
        )

    async def _deliver(self, due: Sequence[Held]) -> None:
        """Tell the channels, as far as the budget goes; what it does not reach is counted in one message.

        The last free message is never spent on one group while others wait: it becomes the count of all that remain.
        """
        waiting: list[Held] = []
        for held in due:
            if held.group.owner not in ("", self._owner) and held.group.lease_until_ms > now_ms():
                continue
            if not held.group.to_look_at and not held.group.due_for(self._channels):
                await self._settle(held)
            elif held.group.announced != "counted":
                waiting.append(held)
        ready = [held for held in waiting if held.group.due_for(self._channels)]
        if not ready:
            return
        ready.sort(
            key=lambda held: min(
                (row.found.rank for row in held.group.targets.values() if row.found), default=(9, 9, 0.0)
            )
        )
        free = await self.in_store(self._budget.free)
        alone = ready if len(waiting) <= free else ready[: max(0, free - 1)]
        for held in alone:
            if await self.in_store(self._budget.take):
                await self._tell(held)
        rest = [held for held in waiting if held not in alone]
        if len(rest) > 1 and free and len(waiting) > free and await self.in_store(self._budget.take):
            await self._count(rest)
        elif len(rest) == 1 and free and rest[0] in ready and await self.in_store(self._budget.take):
            await self._tell(rest[0])

    async def _tell(self, held: Held) -> None:
        """One message about one group, to every channel that has not heard of it."""
        leased = await self.in_store(self.board.lease, held.id, self._owner, LEASE_S)
        if leased is None:
            return
        held = await self.in_store(self.board.get, held.id)
        message = group_message(held, self._service.catalog, self._language, self._url)
        sent = {name: await self._send(held.group, name, message) for name in held.group.due_for(self._channels)}

        def told(group: Group) -> Group:
            return replace(group, channels={**group.channels, **sent}, announced="alone", owner="", lease_until_ms=0)

        await self._alter(held.id, told)

    async def _send(self, group: Group, name: str, message: AlertMessage) -> Sent:
        channel, before = self._channels[name], group.channels.get(name, Sent())
        try:
            async with asyncio.timeout(20.0):
                if before.reference:
                    await channel.update(before.reference, message)
                    return Sent(before.reference, group.version)
                return Sent(await channel.post(message), group.version)
        except (ChannelError, TimeoutError) as error:
            why = str(error) or "It took no message within 20 s."
            log.warning("%s did not take a message: %s", name, why)
            return replace(before, tries=before.tries + 1, error=why[:400])

    async def _count(self, rest: Sequence[Held]) -> None:
        """One message for many groups. They are marked first: a count that fails is not a reason for a flood."""
        for held in rest:
            await self._alter(held.id, lambda group: replace(group, announced=group.announced or "counted"))
        message = rest_message(rest, self._service.catalog, self._language, self._url)
        for channel in self._channels.values():
            try:
                async with asyncio.timeout(20.0):
                    await channel.post(message)
            except (ChannelError, TimeoutError) as error:
                log.warning("%s did not take a message: %s", channel.name, error)

    async def _settle(self, held: Held) -> None:
        """Put a group aside with which nothing is to be done now."""
        finished = held.group.done(self._channels) or not self._channels or held.group.announced == "counted"
        if not finished:
            return
        channels, over = self._channels, CLOSED if held.group.over else OPEN

        def still(group: Group) -> Group | None:
            if group.to_look_at or group.due_for(channels) or group.over != held.group.over:
                return None
            return replace(group, announced=group.announced or "alone")

        with contextlib.suppress(NotFoundError):
            await self.in_store(lambda: self.board.alter(held.id, still, place=over))

    async def _keep_lease(self, identifier: str) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with contextlib.suppress(StoreError):
                await self.in_store(self.board.lease, identifier, self._owner, LEASE_S)

    async def _alter(self, identifier: str, change: Callable[[Group], Group | None]) -> Group | None:
        with contextlib.suppress(NotFoundError):
            return await self.in_store(self.board.alter, identifier, change)
        return None


def found_of(diagnosis: Diagnosis) -> Found:
    """As much of a diagnosis as the table of a group shows."""
    first = diagnosis.causes[0] if diagnosis.verdict == "cause" and diagnosis.causes else None
    return Found(
        verdict=diagnosis.verdict,
        cause=first.id if first is not None else None,
        title=first.title if first is not None else "",
        confidence=round(first.confidence, 4) if first is not None else 0.0,
        severity=first.severity if first is not None else "",
        summary=diagnosis.summary[:400],
    )
