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


class ChunkHits:
    """The hits of one chunk, taken line by line from front to back.

    Where a line begins and ends is looked up only by :meth:`following`, which jumps to the next line with a hit; who
    walks over all lines knows it already and asks :meth:`on`.
    """

    __slots__ = ("_data", "_high", "_hits", "_low", "_place", "_structural", "until")

    def __init__(self, data: bytearray, low: int, high: int, hits: list[tuple[int, int]], structural: int) -> None:
        self._data = data
        self._low = low
        self._high = high
        self._structural = structural
        if hits and not (low < hits[0][0] and hits[-1][0] <= high):
            hits = [hit for hit in hits if low < hit[0] <= high]
        self._hits = hits
        self._hits.append((high + 2, -1))  # beyond every line
        self._place = 0
        #: Where the next hit ends: a line with an end below ``until - 1`` holds none.
        self.until = self._hits[0][0]

    def following(self, position: int) -> Line | None:
        """The next line with a hit that begins at ``position`` or later."""
        while True:
            offset, identity = self._hits[self._place]
            if offset > self._high:
                return None
            at = offset - 1
            if identity < self._structural and self._data[at] == 10:
                at -= 1  # a literal that ends with the line's end
            start = max(self._low, self._data.rfind(b"\n", 0, at) + 1 if at > 0 else 0)
            end = line_end(self._data, max(at, start), self._high)
            ids = self.on(start, end)
            if start >= position and ids:
                return start, end, ids

    def on(self, start: int, end: int) -> tuple[int, ...]:
        """The ids of the hits on the line ``start`` to ``end``, each once; hits before it are passed over."""
        hits, place = self._hits, self._place
        offset, identity = hits[place]
        if offset > start and offset <= end + 1 < hits[place + 1][0]:  # one hit, as on most lines of a traceback
            self._place, self.until = place + 1, hits[place + 1][0]
            return (identity,)
        ids: dict[int, None] = {}
        while offset <= end + 1:
            if offset > start:
                ids[identity] = None
            place += 1
            offset, identity = hits[place]
        self._place, self.until = place, offset
        return tuple(ids)


class HitLines:
    """Prepares the hits of chunk after chunk for one scanner; remembers whether the log floods."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._floods = 0
        self._ignored = frozenset(
            place for place, kind in enumerate(scanner.structure_kinds) if kind in _COUNTED_ELSEWHERE
        )

    def of(self, data: bytearray, low: int, high: int, hits: list[tuple[int, int]], ids: set[int]) -> ChunkHits:
        """The hits in ``data[low:high]`` that lines are looked at for; ``ids`` are those in ``hits``."""
        scanner = self._scanner
        if len(hits) > 12 * _MOST_HITS:
            hits = self._thinned(hits)
        if scanner.thrifty:
            more: list[tuple[int, int]] = []
            for identity, text in scanner.last_wanted(ids):
                at = data.rfind(text, low, high)
                if at >= 0:
                    more.append((at + len(text), identity))
            if more:
                hits = sorted(hits + more)
        ignored = self._ignored
        if not ids.isdisjoint(ignored):
            hits = [hit for hit in hits if hit[1] not in ignored]
        return ChunkHits(data, low, high, hits, scanner.structural)

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
