"""How near the memory estimate comes to what real servers printed, and whether its constants hold on models apart.

.venv/bin/python scripts/measure_memory.py RECORDS.jsonl [--halves]

A record is a question of ``vllm-diagnose memory --batch`` with ``truth``. ``--halves`` splits the end-to-end records by
model into two halves, fits on one what the measured constants are off by (their mean, for each engine and kind of GPU),
corrects the other half with it, and shows its error before and after, both ways round. If the constants had been fitted to single
records, the correction would change much.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from knowledge import gpus
from tools.memory import architecture, batch, estimate, releases
from tools.memory.weights import GIB

FIELDS = {
    "tokens_from_available": "kv_cache_tokens",
    "gib_for_tokens": "kv_gib",
    "weights": "weights_gib",
    "tokens_end_to_end": "kv_cache_tokens",
    "available_end_to_end": "available_kv_gib",
}


def accuracy(records: list[dict[str, Any]]) -> None:
    """Errors and bands by question."""
    errors, inside, widths = defaultdict(list), defaultdict(list), defaultdict(list)
    for record in records:
        answer, field = batch.answer_line(json.dumps(record)), FIELDS[record["ask"]]
        truth = record["truth"][field]
        errors[record["ask"]].append(abs(answer[field] - truth) / truth if answer.get(field) is not None else 1.0)
        if band := answer.get("band"):
            inside[record["ask"]].append(band[0] <= truth <= band[1])
            widths[record["ask"]].append((band[1] - band[0]) / 2 / truth)
    for ask, found in sorted(errors.items()):
        found.sort()
        print(
            f"{ask:22} n={len(found):<3} mean {statistics.mean(found):.2%}  p90 {found[int(0.9 * (len(found) - 1e-9))]:.2%}  max {found[-1]:.2%}"
            f"  inside its band {statistics.mean(inside[ask] or [0]):.0%}, half-width {statistics.median(widths[ask] or [0]):.2%}"
        )


def available(record: dict[str, Any]) -> tuple[str, float, float, float]:
    """(kind, estimated GiB, real GiB, the part of it one GiB is) of an end-to-end record."""
    model, server = architecture.read(record["config"]), batch.server_of(record)
    result = estimate.estimate(model, server)
    if result.layout is None or result.available is None:
        raise SystemExit(f"{record['id']}: an end-to-end record has to name its GPU")
    truth = record["truth"].get("available_kv_gib")
    if truth is None:
        truth = (
            record["truth"]["kv_cache_tokens"]
            / result.layout.smallest_block
            * len(result.layout.groups)
            * result.layout.block_bytes
            / GIB
        )
    card = gpus.find(server.gpu) if server.gpu else None
    kind = "old engine" if releases.is_v0(releases.read(server.vllm_version)) else "new engine"
    kind += ", several GPUs" if server.tensor_parallel_size > 1 else ""
    return (
        f"{kind}, {'data centre' if card and card.link == 'nvlink' else 'other'}",
        result.available.value,
        truth,
        truth,
    )


def halves(records: list[dict[str, Any]]) -> None:
    """Fits on one half of the models and shows the other, both ways."""
    rows = [(record["model"], *available(record)) for record in records if record["ask"].endswith("end_to_end")]
    for first in (0, 1):
        apart = [row for row in rows if hashlib.sha256(row[0].encode()).digest()[0] % 2 != first]
        fitted: dict[str, list[float]] = defaultdict(list)
        for name, kind, value, truth, _ in rows:
            if hashlib.sha256(name.encode()).digest()[0] % 2 == first:
                fitted[kind].append(truth - value)
        off = {kind: statistics.mean(found) for kind, found in fitted.items()}
        before = [abs(value - truth) / truth for _, _, value, truth, _ in apart]
        after = [abs(value + off.get(kind, 0.0) - truth) / truth for _, kind, value, truth, _ in apart]
        shown = ", ".join(f"{kind}: {value:+.2f} GiB" for kind, value in sorted(off.items())) or "nothing"
        print(f"fitted on {len(rows) - len(apart)} records: {shown}")
        if apart:
            print(
                f"  the other {len(apart)}: mean error of the available GiB {statistics.mean(before):.2%} as it is, {statistics.mean(after):.2%} corrected"
            )


def main() -> int:
    paths = [a for a in sys.argv[1:] if not a.startswith("--")]
    if len(paths) != 1:
        print(__doc__)
        return 2
    records = [json.loads(line) for line in Path(paths[0]).read_text(encoding="utf-8").splitlines() if line.strip()]
    accuracy(records)
    if "--halves" in sys.argv:
        halves(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
