"""The checks of all nodes that a site's own launcher reaches: Ray, Slurm, Kubernetes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from assistant.nodes.site_group import Word, gather_site, name_of, parts_of, why_lost
from tools.launchers.site_checks import reports_of

if TYPE_CHECKING:
    from assistant.nodes.gathered import Gathered
    from tools.launchers.site import Site
    from tools.sanity.results import Language, Report

#: Seconds that a node may take to look at itself; a file system that hangs costs its own part no more than this.
LOOK_S = 15.0
#: Seconds over that until a node's answer is here: its program is killed then, and says so.
_MARGIN_S = 8.0


async def check_site(
    site: Site,
    *,
    launcher: str,
    lang: Language,
    word: Word,
    here_s: float,
    look_s: float = LOOK_S,
    on_done: Callable[[int], None] = lambda done: None,
) -> tuple[Gathered, dict[str, list[Report]]]:
    """What the nodes are, and the reports of their checks by name. Nodes that do not report within ``here_s`` or are lost
    before they have looked are ``lost``. Raises :class:`SiteError`."""
    gathered = await gather_site(site, launcher, word, here_s)
    here = [part for part in parts_of(site) if name_of(part) in gathered.described]
    if not site.alone:
        site.command(do="checks", seconds=look_s)

    def all_looked() -> bool:
        looked = sum("checks" in part.ended for part in here)
        on_done(looked)
        return all("checks" in part.ended or part.silent for part in here)

    await site.wait(all_looked, look_s + _MARGIN_S)
    late = word("launcher-lost-late")
    found: dict[str, list[Report]] = {}
    for part in here:
        name = name_of(part)
        if part.lost is not None and "checks" not in part.ended:
            gathered.lost[name] = why_lost(part, word)
        else:
            found[name] = reports_of(part, lang, late, word("launcher-garbled", node=name))
    return gathered, found
