"""From the hits of a scan to the lines worth looking at."""

from __future__ import annotations

from tools.logs import scan
from tools.logs.cursor import line_end
from tools.logs.scan import Scanner

#: (start, end, ids of the hits) of one line.
Line = tuple[int, int, tuple[int, ...]]
#: More hits of one literal than this in one chunk are not looked at one by one.
_MOST_HITS = 600
#: In the first flooded chunks of a log more is looked at.
_PATIENT_CHUNKS = 16
_COUNTED_ELSEWHERE = frozenset({scan.ACCESS, scan.REFUSED})
_NEVER_THINNED = frozenset({scan.TRACEBACK, scan.BANNER})


class HitLines:
    """Groups hits by line for one scanner; remembers whether the log floods."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._floods = 0

    def lines(self, data: bytearray, low: int, high: int, hits: list[tuple[int, int]]) -> list[Line]:
        """The lines of ``data[low:high]`` that were hit, in order."""
        scanner = self._scanner
        structural, kinds = scanner.structural, scanner.structure_kinds
        if len(hits) > 12 * _MOST_HITS:
            hits = self._thinned(hits)
        if scanner.thrifty:
            more: list[tuple[int, int]] = []
            for identity, text in scanner.last_wanted({identity for _, identity in hits}):
                at = data.rfind(text, low, high)
                if at >= 0:
                    more.append((at + len(text), identity))
            if more:
                hits = sorted(hits + more)
        found: list[Line] = []
        start, end = -1, -1
        ids: dict[int, None] = {}
        for offset, identity in hits:
            if identity < structural and kinds[identity] in _COUNTED_ELSEWHERE:
                continue
            at = offset - 1
            if at < low or at >= high:
                continue
            if at > end or start < 0:
                if ids:
                    found.append((start, end, tuple(ids)))
                ids = {}
                if identity < structural and data[at : at + 1] == b"\n":
                    at -= 1  # a literal that ends with the line's end
                start = max(low, data.rfind(b"\n", 0, at) + 1 if at else 0)
                end = line_end(data, at, high)
            ids[identity] = None
        if ids:
            found.append((start, end, tuple(ids)))
        return found

    def _thinned(self, hits: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """A literal that floods a chunk is looked at often enough to judge it, not a hundred thousand times."""
        scanner = self._scanner
        counts: dict[int, int] = {}
        for _, identity in hits:
            counts[identity] = counts.get(identity, 0) + 1
        kinds = scanner.structure_kinds
        flooding = {
            identity
            for identity, count in counts.items()
            if count > _MOST_HITS and not (identity < scanner.structural and kinds[identity] in _NEVER_THINNED)
        }
        if not flooding:
            return hits
        self._floods += 1
        left = dict.fromkeys(flooding, _MOST_HITS if self._floods > _PATIENT_CHUNKS else 8 * _MOST_HITS)
        kept: list[tuple[int, int]] = []
        for hit in hits:
            if hit[1] in flooding:
                if not left[hit[1]]:
                    continue
                left[hit[1]] -= 1
            kept.append(hit)
        return kept
