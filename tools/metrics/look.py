"""Looks at one server: its metrics page some times over a window, and its small routes beside it.

What cannot be looked at is an answer too (nobody listens, a sign-in page, another server's metrics), so nothing here
raises for what a server does; only an address that is none raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tools import vllm_server
from tools.addresses import Policy, Url
from tools.metrics.difference import engine_windows, http_increases, server_increases
from tools.metrics.exposition import Page, PageReader
from tools.metrics.window import Answer, EngineWindow, ServerWindow
from tools.outbound import Limits, Outbound, OutboundError, Resolver, system_resolver

#: Looks within a window: enough for a median that a burst does not move, and for a line that shows a trend.
LOOKS = 5
#: A page that took longer than this is only read at both ends of the window.
QUICK_S = 0.5
#: An engine that seems to stand still is looked at again for at least so long; a prefill of a long prompt that is not
#: cut into chunks takes some seconds, and no step of a working engine ten.
STILL_S = 5.0
#: vLLM's page grows by about 100 kB an engine; gateways that join many servers' pages are larger.
PAGE = Limits(deadline_s=10.0, connect_s=3.0, max_bytes=128 << 20, max_decompressed_bytes=128 << 20, cut=True)
SMALL_S = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """How a server is looked at.

    ``address`` is its base, or that of its page or API. ``window_s`` is 0 for a single look. ``deadline_s`` bounds
    all of it. ``headers`` are sent to this server only. ``metrics_address`` is where the page is when it is not at
    ``/metrics``. ``confirm`` looks longer where an engine seems to stand still. ``brief`` asks for the page and
    ``/health`` only, one after the other, so that hundreds of servers can be looked at with one connection each.
    ``limits`` bound each request; what is larger is read up to the limit and known to be cut.
    """

    address: str
    window_s: float = 5.0
    deadline_s: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)
    metrics_address: str = ""
    metrics_headers: Mapping[str, str] = field(default_factory=dict)
    looks: int = LOOKS
    confirm: bool = True
    brief: bool = False
    limits: Limits = PAGE


Report = Callable[[float | None, str], None]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One try at the page: it, or why there is none."""

    page: Page | None
    answer: Answer
    detail: str = ""
    at: float = 0.0
    seconds: float = 0.0
    refused: bool = False


async def look_at(
    look: Look, policy: Policy, *, report: Report | None = None, resolve: Resolver = system_resolver
) -> ServerWindow:
    """The server over the window. Raises :class:`~tools.addresses.AddressError` for what is no address."""
    base = vllm_server.base_of(look.address)
    page_at = look.metrics_address or str(base.at("metrics"))
    async with Outbound(policy, limits=PAGE, resolve=resolve) as outbound:
        return await _Visit(look, base, page_at, outbound, report).go()


class _Visit:
    def __init__(self, look: Look, base: Url, page_at: str, outbound: Outbound, report: Report | None) -> None:
        self.look, self.base, self.page_at, self.outbound = look, base, page_at, outbound
        self.report = report or (lambda fraction, text: None)
        self.end = time.monotonic() + look.deadline_s
        self.headers = dict(look.headers if not look.metrics_address else look.metrics_headers)

    def left(self) -> float:
        return max(0.1, self.end - time.monotonic())

    def limits(self, seconds: float) -> Limits:
        given = self.look.limits
        seconds = min(seconds, given.deadline_s, self.left())
        return replace(given, deadline_s=seconds, connect_s=min(given.connect_s, self.left()), cut=True)

    async def go(self) -> ServerWindow:
        self.report(0.0, f"looking at {self.page_at}")
        if self.look.brief:
            seen = await self.see()
            small = await self.health() if seen.page is None or self.look.window_s <= 0 else vllm_server.Health()
        else:
            seen, small = await asyncio.gather(
                self.see(), vllm_server.ask(self.outbound, self.base, self.look.headers, self.limits(SMALL_S))
            )
        pages: list[_Seen] = [seen]
        if seen.page is None:
            return self._without_page(seen, small)
        window = min(self.look.window_s, max(0.0, self.left() - 2.0))
        if window > 0 and seen.answer == "vllm":
            await self._watch(pages, window)
            if self.look.confirm and _stands_still(pages):
                await self._watch(pages, max(window, STILL_S))
            again = await self.health()
            small = replace(small, health=again.health, health_detail=again.health_detail)
        return self._with_pages(pages, small)

    async def health(self) -> vllm_server.Health:
        """``/health`` alone."""
        return await vllm_server.health_of(self.outbound, self.base, self.look.headers, self.limits(SMALL_S))

    async def see(self) -> _Seen:
        """Reads the page once."""
        reader = PageReader()
        started = time.monotonic()
        try:
            reply = await self.outbound.get(
                self.page_at, headers=self.headers, limits=self.limits(self.look.limits.deadline_s), take=reader.feed
            )
        except OutboundError as error:
            if reader.page.is_prefixed:  # what arrived before it broke off is worth reading, and known to be a part
                return _Seen(reader.finish(truncated=True), "vllm", str(error), time.time(), time.monotonic() - started)
            return _Seen(None, _answer_of(error, reader.page), str(error), time.time(), refused=error.kind == "refused")
        # The moment the page was complete: opening the first connection takes longer than the next look will.
        seconds, at = time.monotonic() - started, time.time()
        if reply.status != 200:
            return _Seen(None, _answer_of_status(reply.status), f"{reply.url} answered {reply.status}.", at, seconds)
        page = reader.finish(truncated=reply.truncated)
        return _Seen(page, _kind_of(page), "", at, seconds)

    async def _watch(self, pages: list[_Seen], window: float) -> None:
        """Adds looks over ``window`` seconds; a look that fails ends the watching."""
        steps = max(1, self.look.looks - 1) if pages[0].seconds <= QUICK_S and window >= 1.0 else 1
        began = time.monotonic()
        for step in range(1, steps + 1):
            due = began + window * step / steps
            await asyncio.sleep(max(0.0, min(due, self.end - 0.5) - time.monotonic()))
            if time.monotonic() >= self.end - 0.2:
                return
            self.report(step / steps, f"watching {self.page_at} for {window:g} s")
            pages.append(await self.see())
            if pages[-1].page is None:
                return

    def _without_page(self, seen: _Seen, small: vllm_server.Health) -> ServerWindow:
        window = ServerWindow(
            f"GET {self.page_at}",
            _beside_health(seen.answer, small),
            detail=seen.detail,
            at=seen.at or None,
            refused_address=seen.refused,
        )
        return _with_small(window, small)

    def _with_pages(self, pages: list[_Seen], small: vllm_server.Health) -> ServerWindow:
        failed = pages.pop() if pages[-1].page is None else None
        read = [seen.page for seen in pages if seen.page is not None]
        first, last = pages[0], pages[-1]
        page = read[-1]
        http, unrouted = http_increases(read)
        # Not an engine's own: the API server exports this without saying for which engine.
        refused = server_increases(read, "refused")
        config = _newest(page, "cache_config")
        return _with_small(
            ServerWindow(
                source=f"GET {self.page_at}",
                answer=_beside_health(failed.answer, small) if failed is not None else last.answer,
                engines=engine_windows(read),
                looks=len(read),
                seconds=last.at - first.at if len(read) > 1 else 0.0,
                cut=any(p.cut for p in read),
                detail=failed.detail if failed is not None else page.foreign or "",
                bad_lines=max(p.bad_lines for p in read),
                started_at=page.started_at,
                at=last.at,
                config=config,
                lora=_newest(page, "lora"),
                http=http,
                http_unrouted=unrouted,
                refused=refused,
                moments=tuple(seen.at - first.at for seen in pages),
                produced=tuple(_produced(p) for p in read),
                bytes_read=sum(p.size for p in read),
                lost=failed is not None,
            ),
            small,
        )


def _with_small(window: ServerWindow, small: vllm_server.Health) -> ServerWindow:
    return replace(
        window,
        health=small.health,
        health_detail=small.health_detail,
        version=small.version,
        models=small.models,
        max_model_len=small.max_model_len,
        load=small.load,
    )


def _newest(page: Page, key: str) -> Mapping[str, str]:
    """The labels of an info series; of several the one with the largest value, which for LoRA is the newest."""
    rows = page.infos.get(key)
    return max(rows, key=lambda row: row[1])[0] if rows else {}


def _produced(page: Page) -> float:
    return sum(
        value
        for numbers in page.numbers.values()
        for (key, _, _), value in numbers.items()
        if key in ("generation_tokens", "prompt_tokens")
    )


def _stands_still(pages: list[_Seen]) -> bool:
    read = [seen.page for seen in pages if seen.page is not None]
    return len(read) == len(pages) and any(stands_still(engine) for engine in engine_windows(read))


#: Whatever of these moves shows an engine at work. KV usage moves while a long prompt is prefilled in chunks.
_COUNTS = ("generation_tokens", "prompt_tokens", "finished", "preemptions", "prefix_queries")
_STEPS = ("iteration_tokens", "time_to_first_token", "inter_token_latency", "e2e_latency")


def stands_still(engine: EngineWindow) -> bool:
    """Requests are there at every look, and nothing that an engine at work changes has changed."""
    running, waiting = engine.gauges.get("running"), engine.gauges.get("waiting", ())
    if running is None or len(running) < 2 or "generation_tokens" not in engine.increases or engine.restarted:
        return False
    held = min(running) > 0 or (len(waiting) == len(running) and min(waiting) > 0)
    if not held or any(engine.increases.get(key, 0.0) > 0 for key in _COUNTS):
        return False
    if any(found.count > 0 for key in _STEPS if (found := engine.distributions.get(key)) is not None):
        return False
    # New requests may still arrive at an engine that stands still: only what falls, or its cache, shows work.
    usage = engine.gauges.get("kv_usage", ())
    fell = any(min(values) < values[0] for key in ("running", "waiting") if (values := engine.gauges.get(key)))
    return not fell and (not usage or max(usage) == min(usage))


def _beside_health(answer: Answer, small: vllm_server.Health) -> Answer:
    """What became of the page, where another route was asked too: a server that answers there is there, and late."""
    return "too-late" if answer in ("unanswered", "silent") and small.health is not None else answer


def _answer_of(error: OutboundError, page: Page) -> Answer:
    if error.kind in ("connect", "name"):
        return "refused"
    if error.kind == "timeout":
        if page.size or "had sent" in str(error):
            return "too-late"
        return "unanswered" if error.connected else "silent"
    if error.kind == "redirect":
        return "redirect"
    if error.kind in ("protocol", "size"):
        return "not-metrics"
    return "not-asked"


def _answer_of_status(status: int) -> Answer:
    if status in (401, 403, 407):
        return "credentials"
    if status == 404:
        return "not-found"
    return "redirect" if 300 <= status < 400 else "error"


def _kind_of(page: Page) -> Answer:
    if page.is_prefixed:
        return "vllm"
    if not page.head.strip():
        return "empty"
    if page.is_html:
        return "html"
    if page.foreign is not None:
        return "other-engine"
    return "no-vllm-series" if page.is_exposition else "not-metrics"
