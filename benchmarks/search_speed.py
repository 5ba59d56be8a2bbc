"""How long `kb search` thinks about a query, beside reading all sections for the query's words.

    python benchmarks/search_speed.py

Prints the median, the 95th percentile and the longest of all searches in milliseconds of processor time, each the best
of ten rounds with nothing remembered of earlier ones: the queries of the tests, and strange ones (unknown words, long
texts, pasted errors), each asked for causes and for sections. Beside them the median of a plain substring search for
the same words over the same sections.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from knowledge.catalog import load
from knowledge.documents import own_sections
from knowledge.retrieve import Retriever
from knowledge.text import language_of

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


ROUNDS = 10
#: What a search has most work with: words that nobody knows, texts that ramble, errors pasted whole.
STRANGE = (
    "speculatve decodng draft memmory alocation failurre throughputt qwertyasd zxcvbnmlk",
    " ".join(f"xq{place}zvb{place}kk" for place in range(60)),
    "supercalifragilisticexpialidocious",
    "the server hangs after loading weights and nothing moves for ten minutes while gpu memory is full and " * 8,
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`. " * 6,
    "(EngineCore_DP0 pid=387) ERROR 11-21 00:56:46 [core.py:710] torch.OutOfMemoryError: CUDA out of memory. Tried to "
    "allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 12.00 MiB is free. " * 3,
    "服务跑着跑着就不动了，所有请求都在排队，显存也满了，日志里只有一些警告，重启之后好了一会儿又来了，" * 12,
    "節省顯示卡記憶體 伺服器 卡住 載入權重 " * 20,
)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1000


def counted(words: list[str], texts: list[str]) -> list[int]:
    """How many of the words stand in each text."""
    return [sum(word in text for word in words) for text in texts]


def main() -> None:
    rows = [
        json.loads(line)
        for path in sorted(DATA.glob("queries*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    rows += [{"query": query, "language": language_of(query)} for query in STRANGE]
    texts = [section.text.lower() for section in own_sections()]
    catalog = load()
    began = time.process_time()
    retriever = Retriever(catalog)
    print(f"preparing {len(texts)} sections and all causes: {time.process_time() - began:.2f} s of processor time")
    best: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):  # round by round: what disturbs the machine for a moment spoils one of them
        for row in rows:
            query = row["query"]
            for kind in ("cause", "section"):
                retriever.forget()
                taken = timed(partial(retriever.search, query, 5, row["language"], kind=kind))
                best[query, kind] = min(best.get((query, kind), math.inf), taken)
    slowest = sorted(((taken, query) for (query, _), taken in best.items()), reverse=True)
    times = [taken for taken, _ in slowest]
    print(
        f"{len(times)} searches: median {statistics.median(times):.2f} ms, 95th percentile "
        f"{times[len(times) // 20]:.2f} ms, longest {times[0]:.2f} ms, {sum(taken >= 1 for taken in times)} of 1 ms or more"
    )
    asked = [taken for taken, query in slowest if query not in STRANGE]
    print(
        f"the tests' queries alone: longest {asked[0]:.2f} ms, {sum(taken >= 1 for taken in asked)} of {len(asked)} of 1 ms or more"
    )
    for taken, query in slowest[:3]:
        print(f"  {taken:.2f} ms  {query[:80]}")
    plain = [min(timed(partial(counted, row["query"].lower().split(), texts)) for _ in range(ROUNDS)) for row in rows]
    print(f"substring search over all sections: median {statistics.median(plain):.2f} ms")


if __name__ == "__main__":
    main()
