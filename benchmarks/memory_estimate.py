"""Milliseconds of one estimate once the configuration is read, against reading that configuration.

.venv/bin/python benchmarks/memory_estimate.py
"""

from __future__ import annotations

import json
import statistics
import time

from knowledge import known_models
from tools.memory import architecture, config
from tools.memory.estimate import Server, estimate


def main() -> None:
    estimates: list[float] = []
    readings: list[float] = []
    slowest = (0.0, "")
    for known in known_models.all_models():
        text = json.dumps(dict(known.config))
        heads = int(known.config["num_attention_heads"])
        tensor = 4 if heads % 4 == 0 else 1
        for version in ("0.6.6", "0.11.0", "0.19.0", "0.33.0"):
            server = Server(
                gpu="H200", vllm_version=version, tensor_parallel_size=tensor, total_params=known.parameters
            )
            model = architecture.read(config.parse(text))
            estimate(model, server)
            best = []
            for _ in range(5):
                began = time.perf_counter()
                estimate(model, server)
                best.append(time.perf_counter() - began)
            estimates.append(statistics.median(best) * 1e3)
            slowest = max(slowest, (estimates[-1], f"{known.model} {version}"))
            began = time.perf_counter()
            architecture.read(config.parse(text))
            readings.append((time.perf_counter() - began) * 1e3)
    middle, reading = statistics.median(estimates), statistics.median(readings)
    print(f"one estimate: median {middle:.2f} ms, slowest {slowest[0]:.2f} ms ({slowest[1]}), of {len(estimates)}")
    print(f"reading the configuration: median {reading:.2f} ms; estimate / reading = {middle / reading:.1f}")


if __name__ == "__main__":
    main()
