"""A compiled set of literals: Hyperscan's pure literal matcher with its scratch memory, for one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Literal:
    """One literal of a database: what is reported, in which letters, and whether once a scan is enough."""

    identity: int
    text: bytes
    caseless: bool
    routine: bool


class Database:
    """A compiled set of literals with its scratch memory."""

    def __init__(self, literals: Sequence[Literal], thrifty: bool) -> None:
        import hyperscan

        once = hyperscan.HS_FLAG_SINGLEMATCH if thrifty else 0
        self._database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self._database.compile(
            expressions=[literal.text for literal in literals],
            ids=[literal.identity for literal in literals],
            elements=len(literals),
            flags=[
                (hyperscan.HS_FLAG_CASELESS if literal.caseless else 0) | (once if literal.routine else 0)
                for literal in literals
            ],
            literal=True,
        )
        self._scratch = hyperscan.Scratch(self._database)

    def scan(self, view: Any, base: int) -> list[tuple[int, int]]:
        """(end offset + ``base``, id) of every hit in ``view``, in order of offset."""
        found: list[tuple[int, int]] = []
        keep = found.append

        def on_match(identity: int, _start: int, end: int, _flags: int, _context: object) -> None:
            keep((end, identity))

        self._database.scan(view, match_event_handler=on_match, scratch=self._scratch)
        found.sort()
        return [(end + base, identity) for end, identity in found] if base else found
