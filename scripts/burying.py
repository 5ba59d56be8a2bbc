"""Buries an incident's own lines in the healthy traffic of a long log, as `tail` of a shared log shows them.

The traffic is what a serving vLLM of either engine generation prints: statistics every few requests, answered requests,
probes, the notices of other processes. The incident stands at the beginning, in the middle or at the end; lines of the
other processes stand between its own, except inside a traceback's indented lines, which one write prints at once.
"""

from __future__ import annotations

import random
import re
from typing import Literal

Place = Literal["beginning", "middle", "end"]
#: So many healthy lines stand before an incident at the beginning, and after one at the end.
MARGIN = 300
#: The share of an incident's lines that another process's line follows.
BETWEEN = 0.4


def is_modern(text: str) -> bool:
    """Whether a log was printed by engine V1 (processes and file names in the prefix)."""
    return "[core" in text or "pid=" in text or re.search(r"\[\w+\.py:\d+\]", text) is not None


def healthy_lines(count: int, modern: bool, rng: random.Random) -> list[str]:
    """``count`` lines of a server with which nothing is wrong."""
    rows = []
    for number in range(count):
        clock = f"{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}"
        peer = f"10.1.{rng.randrange(9)}.{rng.randrange(2, 250)}:{rng.randrange(30000, 60000)}"
        if number % 12 == 0:
            rows.append(_statistics(clock, modern, rng))
        elif number % 97 == 5:
            where = f"(APIServer pid=77001) INFO 01-02 {clock} [chat_utils.py:560]" if modern else f"INFO 01-02 {clock}"
            rows.append(f"{where} Detected the chat template content format to be 'string'.")
        elif number % 31 == 7:
            rows.append(f'INFO:     {peer} - "GET /{rng.choice(("health", "metrics"))} HTTP/1.1" 200 OK')
        else:
            rows.append(f'INFO:     {peer} - "POST /v1/{rng.choice(("chat/", ""))}completions HTTP/1.1" 200 OK')
    return rows


def _statistics(clock: str, modern: bool, rng: random.Random) -> str:
    head = (
        f"(APIServer pid=77001) INFO 01-02 {clock} [loggers.py:127] Engine 000:"
        if modern
        else f"INFO 01-02 {clock} metrics.py:351]"
    )
    return (
        f"{head} Avg prompt throughput: {rng.random() * 900:.1f} tokens/s, Avg generation throughput: "
        f"{100 + rng.random() * 700:.1f} tokens/s, Running: {rng.randrange(1, 9)} reqs, "
        + ("Waiting: 0 reqs, " if modern else "Swapped: 0 reqs, Pending: 0 reqs, ")
        + f"GPU KV cache usage: {rng.random() * 50:.1f}%, "
        + (f"Prefix cache hit rate: {40 + rng.random() * 40:.1f}%" if modern else "CPU KV cache usage: 0.0%.")
    )


def bury(text: str, rng: random.Random, lines: int = 20_000, modern: bool | None = None, place: Place = "end") -> str:
    """``text`` in ``lines`` healthy lines of its own generation (unless ``modern`` says which)."""
    rows = healthy_lines(lines, is_modern(text) if modern is None else modern, rng)
    cut = {"beginning": MARGIN, "middle": lines // 2, "end": lines - MARGIN}[place]
    out, between = rows[:cut], rows[cut : cut + MARGIN]
    after = rows[cut + MARGIN :]
    in_block = False
    for line in text.splitlines():
        out.append(line)
        in_block = bool(line.strip()) and (line[:1] in " \t" or "Traceback" in line)
        if not in_block and between and rng.random() < BETWEEN:
            out.append(between.pop(0))
    if place != "end":  # a server that went down with the incident prints nothing more
        out += between + after
    return "\n".join(out) + "\n"
