"""How long the three checks of a node take together, beside starting Python: `python benchmarks/checks_speed.py`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

COMMAND = Path(sys.executable).with_name("vllm-diagnose")


def best(command: list[str], runs: int = 5) -> float:
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    nothing = best([sys.executable, "-c", "pass"])
    total = 0.0
    for name in ("host", "gpu", "network"):
        seconds = best([str(COMMAND), "sanity", name, "-o", "json"])
        total += seconds
        print(f"sanity {name:8} {seconds:6.2f} s  {seconds / nothing:6.1f} times an empty Python")
    print(f"together        {total:6.2f} s  {total / nothing:6.1f} times an empty Python")


if __name__ == "__main__":
    main()
