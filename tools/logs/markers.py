"""The few pieces of text that tell which lines of a large log deserve to be searched for everything.

A line that holds a piece is *marked*. The pieces are chosen so that every literal of a failing message holds one and a
healthy server's traffic hardly any; the fewer and rarer they are, the faster the search runs over what is healthy.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

#: Pieces that most failing literals hold and a healthy server's traffic lacks, and the words of levels and refusals.
#: Chosen by benchmarks/logs_markers.py.
MARKERS: tuple[bytes, ...] = tuple(
    piece.encode()
    for piece in (
        "rror|port|s no|fail|med |able|file|cted|valid|size|model| for|quir|emor| con|nnot|sion|must|d no|"
        "with| in |code| ins|ess |know|conn|load|cuda|kill|exce|from|atch|back|has |ment|sert|type|nccl|"
        "compi|tran|tive| on |: not|ed b|er t|izer|nter|stat|enso|lama|miss|ned |_all|init|late|mult|n't |"
        "name|atte|corr|errn|nixl|age |data|head|json|not e|remo|tect|.cpp|appi|ault|d to|ermi|idia|infe|"
        'out o| rea| sho|.cc:|warning|traceback|file "|, in |http/1.1" 4|http/1.1" 5|http/1.0" 4|http/1.0" 5|'
        "no longer|xid "
    ).split("|")
)
#: What healthy traffic is made of: its pairs of letters are the common ones.
_TRAFFIC = (
    'info:     10.2.34.117:51632 - "post /v1/chat/completions http/1.1" 200 ok\n'
    'info:     10.2.8.9:4711 - "get /health http/1.1" 200 ok\n'
    "(apiserver pid=100) info 11-21 00:55:59 [loggers.py:123] engine 000: avg prompt throughput: 44.1 tokens/s, avg "
    "generation throughput: 1193.9 tokens/s, running: 2 reqs, waiting: 46 reqs, gpu kv cache usage: 87.2%, prefix cache "
    "hit rate: 0.0%\n"
    "(apiserver pid=100) info 11-21 00:55:59 [logger.py:40] received request chatcmpl-3f00: prompt: 'tell me', params: "
    "samplingparams(n=1, presence_penalty=0.0, temperature=0.7, top_p=0.9, top_k=-1, seed=none, stop=[], max_tokens=16)\n"
)
#: Hyperscan compares the last eight letters of a literal first: with that many it passes over the rest of the text, and
#: further ones only make the groups that it compares at once less alike (measured: 5 to 7 and 10 to 14 are slower).
_LONGEST_PIECE = 8
#: Marked lines closer than this are searched together: a search's start costs as much as some hundred bytes.
_JOINED_BYTES = 512


@functools.lru_cache(maxsize=1)
def _pairs() -> Counter[str]:
    return Counter(map("".join, itertools.pairwise(_TRAFFIC)))


def _commonness(piece: bytes) -> float:
    """How much of ``piece`` healthy traffic shares, pair of letters by pair of letters."""
    text = piece.decode("latin-1")
    return sum(math.log1p(_pairs()[text[at : at + 2]]) for at in range(len(text) - 1)) / (len(text) - 1)


def rarest_piece(literal: bytes) -> bytes:
    """The piece of a lower-case ``literal`` that has least in common with healthy traffic; all of it if need be."""
    starts = range(max(1, len(literal) - _LONGEST_PIECE + 1))
    pieces = [literal[at : at + _LONGEST_PIECE] for at in starts]
    return min((piece for piece in pieces if piece not in _TRAFFIC.encode()), key=_commonness, default=literal)


def rarest_pieces(literals: Iterable[bytes]) -> list[bytes]:
    """The rarest piece of every literal, in order, without those that hold another one."""
    pieces = {rarest_piece(literal) for literal in literals}
    return sorted(piece for piece in pieces if not any(other != piece and other in piece for other in pieces))


def is_covered(literal: bytes) -> bool:
    """Whether a line that holds ``literal`` (in lower case) is marked by one of :data:`MARKERS`."""
    return any(marker in literal for marker in MARKERS)


def marked_lines(offsets: Sequence[int], data: bytearray, size: int) -> list[tuple[int, int]]:
    """The lines in which a marker ends at one of ``offsets``, near ones joined, as (start, end)."""
    regions: list[tuple[int, int]] = []
    start, end, skipped = 0, -1, -1
    for offset in offsets:
        if offset <= end or offset <= skipped:
            continue
        line = data.rfind(b"\n", 0, offset - 1) + 1
        stop = data.find(b"\n", offset - 1, size) + 1 or size
        if data.find(b"Received request", line, min(stop, line + 160)) >= 0:
            skipped = stop  # what a user wrote is no message
            continue
        if end < 0 or line - end > _JOINED_BYTES:
            if end >= 0:
                regions.append((start, end))
            start = line
        end = stop
    if end >= 0:
        regions.append((start, end))
    return regions
