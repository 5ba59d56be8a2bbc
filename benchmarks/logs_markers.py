"""Chooses the marker pieces of ``tools/logs/markers.py`` anew, for when the message table has grown a lot.

    python benchmarks/logs_markers.py --count 80

A marker is a piece of text that many failing literals share and a healthy server's traffic lacks. Greedily: the piece
that covers most literals that are not covered yet. Prints the pieces and how many literals stay uncovered (of those
the rarest piece of each is looked for).
"""

from __future__ import annotations

import argparse
import collections
import heapq
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

#: What traffic prints beside the lines of ``logs_speed.healthy_line``.
ALSO_HEALTHY = (
    " added request chatcmpl- params presence_penalty=0.0 frequency_penalty repetition_penalty min_p seed=none stop "
    "stop_token_ids bad_words include_stop_str_in_output=false ignore_eos max_tokens min_tokens logprobs=none "
    "prompt_logprobs skip_special_tokens=true spaces_between_special_tokens truncate_prompt_tokens guided_decoding "
    "extra_args lora_request: none specdecoding metrics: mean acceptance length accepted throughput drafted tokens/s, "
    "per-position acceptance rate: avg draft acceptance rate: mm cache hit rate external prefix cache hit rate get post "
    "/v1/chat/completions /v1/completions /v1/models /health /metrics http/1.1 200 ok aborted request(s) and "
)


def main() -> None:
    from logs_speed import healthy_line

    from knowledge import catalog
    from tools.logs.scan import Scanner, is_failing

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=80)
    options = parser.parse_args()
    rng = random.Random(1)
    healthy = "\n".join(healthy_line(rng, "01:02:03") for _ in range(2000)).lower().encode() + ALSO_HEALTHY.encode()
    scanner = Scanner(tuple(catalog.load().messages.values()), thrifty=True)
    literals = [literal for place, literal in enumerate(scanner.literals) if is_failing(scanner, place)]
    pieces: dict[bytes, set[int]] = collections.defaultdict(set)
    for place, literal in enumerate(literals):
        for size in (4, 5, 6):
            for start in range(len(literal) - size + 1):
                pieces[literal[start : start + size]].add(place)
    pieces = {piece: places for piece, places in pieces.items() if len(places) > 2 and piece not in healthy}
    heap = [(-len(places), piece) for piece, places in pieces.items()]
    heapq.heapify(heap)
    left = set(range(len(literals)))
    chosen: list[bytes] = []
    while heap and len(chosen) < options.count:
        _, piece = heapq.heappop(heap)
        gain = len(pieces[piece] & left)
        if gain < 3:
            continue
        if heap and gain < -heap[0][0]:
            heapq.heappush(heap, (-gain, piece))
            continue
        chosen.append(piece)
        left -= pieces[piece]
    print("|".join(piece.decode() for piece in chosen))
    print(f"{len(literals)} failing literals, {len(left)} stay uncovered")


if __name__ == "__main__":
    main()
