"""How fast a log is read, beside ``wc -l`` and ``rg -c ERROR`` (or grep) on the same file in the same run.

    python benchmarks/logs_speed.py --mib 1024            # healthy traffic, 0.1 % error lines
    python benchmarks/logs_speed.py --mib 64 --heavy      # a quarter of the lines in interleaved tracebacks of 8 processes

Makes its own log in a temporary folder and prints one line a measurement; asserts nothing about time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

START = """\
(APIServer pid=100) INFO 11-21 00:55:59 [api_utils.py:286] non-default args: {'model': '/srv/models/small', 'max_model_len': 8192}
(EngineCore_DP0 pid=200) INFO 11-21 00:56:05 [core.py:93] Initializing a V1 LLM engine (v0.11.0) with config: model='/srv/models/small'
(EngineCore_DP0 pid=200) INFO 11-21 00:56:46 [kv_cache_utils.py:1087] GPU KV cache size: 412,672 tokens
INFO:     Application startup complete.
"""
ERRORS = (
    "(EngineCore_DP0 pid=200) ERROR 11-21 {clock} [core.py:710] RuntimeError: CUDA error: an illegal memory access was encountered",
    "(APIServer pid=100) ERROR 11-21 {clock} [serving_chat.py:267] Error in preprocessing prompt inputs",
    "[rank3]:[E1121 {clock}.123456 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog caught collective operation timeout",
    "(Worker_TP1 pid=301) ERROR 11-21 {clock} [multiproc_executor.py:671] torch.OutOfMemoryError: CUDA out of memory. "
    "Tried to allocate {n}.00 MiB.",
    "(APIServer pid=100) ERROR 11-21 {clock} [async_llm.py:480] AsyncLLM output_handler failed with code {n}.",
)
FRAMES = (
    ("vllm/v1/executor/multiproc_executor.py", 671, "worker_busy_loop", "output = func(*args, **kwargs)"),
    (
        "vllm/v1/worker/gpu_worker.py",
        436,
        "execute_model",
        "output = self.model_runner.execute_model(scheduler_output)",
    ),
    ("vllm/v1/worker/gpu_model_runner.py", 2215, "execute_model", "model_output = self.model("),
    (
        "vllm/model_executor/models/llama.py",
        401,
        "forward",
        "hidden_states, residual = layer(positions, hidden_states, residual)",
    ),
    ("torch/nn/modules/module.py", 1786, "_call_impl", "return forward_call(*args, **kwargs)"),
)


def healthy_line(rng: random.Random, clock: str) -> str:
    draw = rng.random()
    if draw < 0.7:
        return f'INFO:     10.2.{rng.randrange(256)}.{rng.randrange(256)}:{rng.randrange(65536)} - "POST /v1/chat/completions HTTP/1.1" 200 OK'
    if draw < 0.8:
        return (
            f"(APIServer pid=100) INFO 11-21 {clock} [loggers.py:123] Engine 000: Avg prompt throughput: {rng.randrange(9000)}.1 tokens/s, "
            f"Avg generation throughput: {rng.randrange(3000)}.7 tokens/s, Running: {rng.randrange(1, 64)} reqs, Waiting: 0 reqs, "
            f"GPU KV cache usage: {rng.randrange(90)}.2%, Prefix cache hit rate: {rng.randrange(90)}.0%"
        )
    return (
        f"(APIServer pid=100) INFO 11-21 {clock} [logger.py:40] Received request chatcmpl-{rng.getrandbits(64):016x}: "
        f"prompt: 'Tell me about number {rng.randrange(10**6)} please', params: SamplingParams(n=1, temperature=0.7, top_p=0.9)."
    )


def traceback_lines(process: str, clock: str, number: int) -> list[str]:
    prefix = f"({process}) ERROR 11-21 {clock} [multiproc_executor.py:671] "
    lines = [prefix + "WorkerProc hit an exception.", prefix + "Traceback (most recent call last):"]
    for file, line, function, source in FRAMES:
        lines.append(f'{prefix}  File "/opt/venv/lib/python3.12/site-packages/{file}", line {line}, in {function}')
        lines.append(f"{prefix}    {source}")
    lines.append(f"{prefix}RuntimeError: shape mismatch in batch {number}")
    return lines


def write(path: Path, mib: int, heavy: bool) -> int:
    """Write the log; returns how many tracebacks it holds."""
    rng = random.Random(7)
    tracebacks = 0
    with path.open("wb") as out:
        out.write(START.encode())
        blocks: list[bytes] = []
        # Blocks of about 2 MiB; healthy ones are repeated, so that writing is quick, tracebacks never are.
        for block in range(8 if not heavy else max(1, (mib + 1) // 2)):
            lines: list[str] = []
            size = made = 0
            while size < 2 << 20:
                clock = f"{block % 24:02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"
                if heavy and rng.random() < 1 / 300:
                    several = [
                        traceback_lines(f"Worker_TP{rank} pid={300 + rank}", clock, rng.randrange(10**6))
                        for rank in range(8)
                    ]
                    made += 8
                    new: list[str] = []
                    while any(several):
                        chosen = rng.choice([lines_of for lines_of in several if lines_of])
                        new.append(chosen.pop(0))
                        if rng.random() < 0.05:
                            new.append(healthy_line(rng, clock))
                elif not heavy and rng.random() < 0.001:
                    new = [rng.choice(ERRORS).format(clock=clock, n=rng.randrange(1, 900))]
                else:
                    new = [healthy_line(rng, clock)]
                lines += new
                size += sum(map(len, new)) + len(new)
            blocks.append(("\n".join(lines) + "\n").encode())
            if heavy:
                tracebacks_of.append(made)
        written, place = out.tell(), 0
        while written < mib << 20:
            chosen_block = blocks[place % len(blocks)]
            out.write(chosen_block)
            if heavy:
                tracebacks += tracebacks_of[place % len(blocks)]
            written += len(chosen_block)
            place += 1
    return tracebacks


tracebacks_of: list[int] = []


def peak_of(path: Path) -> float:
    """What a fresh process needs at most to read ``path``, in MB.

    ``VmHWM`` is asked of the process itself: ``ru_maxrss`` of a child begins with what its parent held.
    """
    code = (
        "import sys; from pathlib import Path; from knowledge import catalog; from tools.logs import *;"
        "read_logs([LogInput('server.log', path=Path(sys.argv[1]))], tuple(catalog.load().messages.values()),"
        " ReadOptions(deadline_s=600));"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--heavy", action="store_true")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=None, help="where to write the log (default: a temporary folder)")
    options = parser.parse_args()

    from knowledge import catalog
    from tools.logs import LogInput, ReadOptions, read_logs

    messages = tuple(catalog.load().messages.values())
    folder = Path(tempfile.mkdtemp(dir=options.dir))
    try:
        path = folder / "server.log"
        tracebacks = write(path, options.mib, options.heavy)
        size = path.stat().st_size / 1e6
        timed(["wc", "-l", str(path)])
        count = min(timed(["wc", "-l", str(path)]) for _ in range(options.repeat))
        finder = "rg" if shutil.which("rg") else "grep"
        found = min(timed([finder, "-c", "ERROR", str(path)]) for _ in range(options.repeat))
        best, processor = 1e9, 1e9
        for _ in range(options.repeat):
            began, used = time.perf_counter(), time.process_time()
            reading = read_logs([LogInput("server.log", path=path)], messages, ReadOptions(deadline_s=600))
            best = min(best, time.perf_counter() - began)
            processor = min(processor, time.process_time() - used)
        small = folder / "small.log"
        write(small, 10, options.heavy)
        peak, small_peak = peak_of(path), peak_of(small)
        print(f"log: {size:.0f} MB, messages: {len(messages)}, spellings: {sum(len(m.says) for m in messages)}")
        print(f"wc -l: {size / count:.0f} MB/s   {finder} -c ERROR: {size / found:.0f} MB/s")
        print(
            f"read_logs: {size / best:.0f} MB/s (processor time {size / processor:.0f} MB/s), {count / best:.3f} of wc -l, "
            f"peak {peak:.0f} MB (10 MiB of the same: {small_peak:.0f} MB)"
        )
        values = {fact.name: fact.value for fact in reading.reading.evidence}
        print(
            f"failures {values.get('log.failures')}, requests {values.get('requests.total')}, stats samples {values.get('stats.samples')}"
        )
        if options.heavy:
            print(
                f"tracebacks rebuilt: {sum(reading.tracebacks.values())} of {tracebacks}, by process {reading.tracebacks}"
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
