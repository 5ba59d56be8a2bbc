"""The test of the collectives over nodes that a site's own launcher reaches: Ray, Slurm, Kubernetes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assistant.nodes.gather import links_broken
from assistant.nodes.gathered import Clock, Gathered
from assistant.nodes.plan import PORTS, make_plan
from tools.launchers.site import Part, Site, SiteError, description, links_of, ran_of
from tools.sanity.nccl import judged
from tools.sanity.rank_worker import STAGES

if TYPE_CHECKING:
    from tools.launchers.links import LinksReport
    from tools.sanity.results import Language

#: Seconds in which all nodes must have described themselves: the site starts a process there, perhaps from a cold disk.
HERE_S = 90.0
#: The same where an image of many gigabytes may have to be fetched first.
HERE_ALONE_S = 900.0
_CLOCK_S = 5.0
#: Seconds over its own that a part of the test may take until a node is given up.
_MARGIN_S = 20.0
#: Seconds in which the others say what they saw, once a node went away or all but it have ended.
_FALLOUT_S = 15.0
Word = Callable[..., str]
Say = Callable[[str, str], None]


async def gather_site(site: Site, launcher: str, word: Word, seconds: float = HERE_S) -> Gathered:
    """What the nodes are. Raises :class:`SiteError` where the site cannot be used."""
    await site.wait(site.all_here, seconds)
    if site.refused is not None:
        raise site.refused
    if not any(part.hello or part.lost for part in site.parts.values()):
        kind = "ended" if site.over else "silent"
        raise SiteError(kind, launcher=launcher, text=site.last_words, seconds=round(seconds))
    gathered = Gathered(())
    for task in range(site.expected or 0):
        site.part(task)
    for part in parts_of(site):
        if part.lost is not None:
            gathered.lost[name_of(part)] = why_lost(part, word)
        elif part.hello is None:
            gathered.lost[name_of(part)] = word("launcher-lost-silent")
        else:
            try:
                gathered.described[name_of(part)] = description(part)
            except (KeyError, TypeError, ValueError, AttributeError):
                gathered.lost[name_of(part)] = word("launcher-garbled", node=name_of(part))
    gathered.names = tuple(name_of(part) for part in parts_of(site))
    return gathered


async def try_site(
    site: Site,
    *,
    launcher: str,
    lang: Language,
    word: Word,
    options: Mapping[str, Any],
    ranks_per_node: int | None = None,
    ports: Sequence[int] = PORTS,
    say: Say = lambda node, doing: None,
) -> Gathered:
    """Describe, try the links, run the ranks of all nodes as one group; after a failure try the links again.

    ``options`` are ``cpu_only`` and ``stage_s`` as ``run_nccl_test`` takes them. Raises ``PlanError`` and
    :class:`SiteError`.
    """
    say("", "start")
    gathered = await gather_site(site, launcher, word, HERE_ALONE_S if site.alone else HERE_S)
    if gathered.lost:
        return gathered  # a group with a hole in it only proves the hole
    if not site.alone:
        await _clocks(site, gathered)
    plan = make_plan(list(gathered.described.items()), ranks_per_node=ranks_per_node, ports=ports)
    gathered.plan = plan
    site.on_stage = lambda node, stage, rank: say(node, word("nccl-progress", stage=stage, rank=rank, note=""))
    say("", "links")
    if site.alone:
        await _overhear(site, gathered, lang, word)
        return gathered
    await _links(site, gathered, "links", word)
    if not (gathered.failed or gathered.died or links_broken(gathered)):
        say("", "ranks")
        await _ranks(site, gathered, lang, options, word)
        if gathered.failed or gathered.died or any(test.verdict == "bad" for test in gathered.tests.values()):
            say("", "links")
            await _links(site, gathered, "again", word)
    return gathered


async def _overhear(site: Site, gathered: Gathered, lang: Language, word: Word) -> None:
    """The same of nodes that take no commands: wait for their last words."""
    await site.wait(lambda: all(part.silent for part in parts_of(site)), float("inf"))
    keep_links(site, gathered, "links")
    if not links_broken(gathered):
        keep_ranks(site, gathered, lang, word)
        if all("again" in part.ended or part.lost is not None for part in parts_of(site)):
            keep_links(site, gathered, "again")  # a node that was through and left is no cut cable
    for part in parts_of(site):
        if part.lost is not None:
            gathered.died[name_of(part)] = why_lost(part, word)


def keep_links(site: Site, gathered: Gathered, of: str) -> None:
    """Put what the nodes found out about their links where the verdict looks for it."""
    into: dict[str, LinksReport] = gathered.links if of == "links" else gathered.again
    for part in parts_of(site):
        if of in part.ended:
            try:
                into[name_of(part)] = links_of(part, of)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue


def keep_ranks(site: Site, gathered: Gathered, lang: Language, word: Word) -> None:
    """The same for the ranks; nodes that went away or never ended are named."""
    for part in parts_of(site):
        name = name_of(part)
        if "ranks" in part.ended:
            try:
                gathered.tests[name] = judged(lang, ran_of(part), name)
                continue
            except (KeyError, TypeError, ValueError, AttributeError):
                gathered.failed[name] = word("launcher-garbled", node=name)
        if part.lost is not None:
            gathered.died[name] = why_lost(part, word)
        elif "ranks" not in part.ended:
            gathered.failed[name] = word("launcher-lost-over", text=site.last_words) if site.over else word("launcher-lost-late")  # fmt: skip


def parts_of(site: Site) -> list[Part]:
    """The nodes in their order."""
    return [site.parts[task] for task in sorted(site.parts)]


def name_of(part: Part) -> str:
    """What a node is called, or its number."""
    return part.name or f"#{part.task}"


def why_lost(part: Part, word: Word) -> str:
    """Why nothing more is to be expected of a node, as a sentence."""
    kind, text = part.lost or ("silent", "")
    return word(f"launcher-lost-{kind}", text=text)


async def _clocks(site: Site, gathered: Gathered) -> None:
    """How far each clock is ahead, from the quicker of two questions."""
    for number in (1, 2):
        asked = time.time()
        site.command(do="clock", number=number)
        await site.wait(lambda: all(number in part.clocks or part.silent for part in parts_of(site)), _CLOCK_S)  # noqa: B023
        for part in parts_of(site):
            if number in part.clocks:
                clock, came = part.clocks[number]
                found = Clock(clock - (asked + came) / 2, (came - asked) / 2)
                known = gathered.clocks.get(name_of(part))
                if known is None or found.within < known.within:
                    gathered.clocks[name_of(part)] = found


async def _links(site: Site, gathered: Gathered, of: str, word: Word) -> None:
    plan = gathered.plan
    assert plan is not None  # noqa: S101 (made before)
    seconds = 12.0 if len(plan.places) <= 8 else 20.0
    parts: dict[str, list[str]] = {}
    for part in parts_of(site):
        if part.silent:
            continue
        place = plan.place(name_of(part))
        peers = ",".join(plan.place(peer).address for peer in plan.peers[place.name])
        parts[str(part.task)] = ["--address", place.address, "--peers", peers, "--ports", ",".join(map(str, plan.ports)),
                                 "--seconds", str(seconds), *(["--any"] if of == "again" else [])]  # fmt: skip
    site.command(do=of, parts=parts, seconds=seconds + _MARGIN_S)
    await site.wait(lambda: site.all_ended(of), seconds + 2 * _MARGIN_S)
    keep_links(site, gathered, of)
    if of == "links":
        for part in parts_of(site):
            if part.lost is not None:
                gathered.died[name_of(part)] = why_lost(part, word)
            elif of not in part.ended:
                gathered.failed[name_of(part)] = word("launcher-lost-late")


async def _ranks(site: Site, gathered: Gathered, lang: Language, options: Mapping[str, Any], word: Word) -> None:
    plan = gathered.plan
    assert plan is not None  # noqa: S101
    stage_s = options.get("stage_s")
    seconds = sum(stage_s if stage_s and stage != "import" else STAGES[stage] for stage in STAGES) + _MARGIN_S
    parts: dict[str, list[str]] = {}
    for part in parts_of(site):
        place = plan.place(name_of(part))
        parts[str(part.task)] = [
            *("--ranks", str(plan.ranks), "--first-rank", str(place.first_rank), "--here", str(place.here)),
            *("--master", plan.master, *(["--cpu-only"] if options.get("cpu_only") else [])),
            *(["--stage-seconds", str(stage_s)] if stage_s else []),
        ]
    site.command(do="ranks", parts=parts, seconds=seconds)

    def someone_failed() -> bool:
        return site.all_ended("ranks") or any(
            part.silent or any(event.get("event") == "verdict" and not event.get("passed") for event in part.said.get("ranks", ()))
            for part in parts_of(site)
        )  # fmt: skip

    await site.wait(someone_failed, seconds + _MARGIN_S)
    if not site.all_ended("ranks"):  # the first failure ends all, once the others have said what they saw
        await site.wait(lambda: site.all_ended("ranks"), _FALLOUT_S)
        site.command(do="stop")
        await site.wait(lambda: site.all_ended("ranks"), _FALLOUT_S)
    keep_ranks(site, gathered, lang, word)
