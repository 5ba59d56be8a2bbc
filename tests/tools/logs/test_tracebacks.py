"""Tracebacks: chained, interleaved, raw, cut off, and each in its process."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Reader = Callable[..., Any]


def lines_of(process: str, number: int, frames: int = 4) -> list[str]:
    head = f"({process}) ERROR 06-10 21:32:{number % 60:02d} [multiproc_executor.py:671] "
    body = ["WorkerProc hit an exception.", "Traceback (most recent call last):"]
    for place in range(frames):
        body += [f'  File "/opt/venv/vllm/worker_{place}.py", line {place + 1}, in step_{place}', f"    step({place})"]
    body.append(f"RuntimeError: failure {number} of it")
    return [head + text for text in body]


def test_interleaved_processes_are_told_apart(read: Reader) -> None:
    rng = random.Random(3)
    text: list[str] = []
    for number in range(40):
        several = [lines_of(f"Worker_TP{rank} pid={300 + rank}", number * 8 + rank) for rank in range(8)]
        while any(several):
            text.append(rng.choice([lines for lines in several if lines]).pop(0))
            if rng.random() < 0.2:
                text.append('INFO:     192.0.2.1:9 - "POST /v1/completions HTTP/1.1" 200 OK')
    found = read("\n".join(text) + "\n")
    assert found.reading.tracebacks == {f"Worker_TP{rank} pid={300 + rank}": 40 for rank in range(8)}
    for block in found.reading.failures:
        assert block.complete
        assert len(block.frames) == 4
        number = int(block.exceptions[-1].message.split()[1])
        assert block.process == f"Worker_TP{number % 8} pid={300 + number % 8}"
    assert found.value("log.failures") == 320


def test_a_chain_is_one_failure(read: Reader) -> None:
    for sentence in (
        "The above exception was the direct cause of the following exception:",
        "During handling of the above exception, another exception occurred:",
    ):
        text = (
            "Traceback (most recent call last):\n  File \"a.py\", line 1, in first\n    x()\nKeyError: 'inner'\n\n"
            f'{sentence}\n\nTraceback (most recent call last):\n  File "b.py", line 2, in second\n    y()\nOSError: outer\n'
        )
        found = read(text)
        (block,) = found.reading.failures
        assert [raised.type for raised in block.exceptions] == ["KeyError", "OSError"]
        assert [frame.function for frame in block.frames] == ["first", "second"]
        assert found.value("log.failures") == 1
        assert found.value("log.unrecognised") == "OSError: outer"


def test_a_message_of_several_lines(read: Reader) -> None:
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, something is off [type=value_error]\n"
        "    For further information visit https://errors.pydantic.dev\n"
        "INFO:     Shutting down\n"
    )
    (block,) = read(text).reading.failures
    assert "something is off" in block.exceptions[0].message
    assert block.last_line == 5


def test_rank_prefixes_and_compose(read: Reader) -> None:
    text = (
        "[rank0]: Traceback (most recent call last):\n[rank1]: Traceback (most recent call last):\n"
        '[rank0]:   File "a.py", line 1, in f\n[rank1]:   File "b.py", line 2, in g\n'
        "[rank1]: ValueError: one\n[rank0]: ValueError: zero\n"
    )
    found = read("".join(f"vllm-1  | {line}\n" for line in text.splitlines()))
    assert {block.process: block.exceptions[0].message for block in found.reading.failures} == {
        "rank0": "zero",
        "rank1": "one",
    }


def test_ray_and_old_worker_prefixes(read: Reader) -> None:
    text = (
        "(RayWorkerWrapper pid=9, ip=192.0.2.3) ERROR 06-10 21:32:17 worker_base.py:145] Error executing method load_model.\n"
        "(RayWorkerWrapper pid=9, ip=192.0.2.3) ERROR 06-10 21:32:17 worker_base.py:145] Traceback (most recent call last):\n"
        '(RayWorkerWrapper pid=9, ip=192.0.2.3) ERROR 06-10 21:32:17 worker_base.py:145]   File "a.py", line 1, in f\n'
        "(RayWorkerWrapper pid=9, ip=192.0.2.3) ERROR 06-10 21:32:17 worker_base.py:145] KeyError: 'w'\n"
        "(VllmWorkerProcess pid=90) ERROR 09-12 11:11:11 multiproc_worker_utils.py:233] Exception in worker: bad, Traceback (most recent call last):\n"
        '(VllmWorkerProcess pid=90) ERROR 09-12 11:11:11 multiproc_worker_utils.py:233]   File "b.py", line 2, in g\n'
        "(VllmWorkerProcess pid=90) ERROR 09-12 11:11:11 multiproc_worker_utils.py:233] RuntimeError: bad\n"
    )
    found = read(text)
    assert found.value("log.failures") == 2
    assert {block.process for block in found.reading.failures} == {
        "RayWorkerWrapper pid=9, ip=192.0.2.3",
        "VllmWorkerProcess pid=90",
    }


def test_a_raw_traceback_takes_the_name_above_it(read: Reader) -> None:
    text = (
        "(EngineCore_DP0 pid=387) INFO 06-10 21:32:17 [a.py:1] x\nProcess EngineCore_DP0:\n"
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\nRuntimeError: raw\n'
    )
    (block,) = read(text).reading.failures
    assert block.process == "EngineCore_DP0 pid=387"


def test_a_spawned_child_is_not_the_server(read: Reader) -> None:
    text = (
        "(MainProcess pid=5) INFO 06-10 21:32:17 [a.py:1] x\n"
        'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\n'
        '  File "/usr/lib/python3.11/multiprocessing/spawn.py", line 122, in spawn_main\nRuntimeError: \n'
        "        An attempt has been made to start a new process before the\n"
        "        current process has finished its bootstrapping phase.\n"
    )
    found = read(text)
    assert found.reading.failures[0].process is None
    assert "An attempt has been made" in found.value("log.unrecognised")


def test_a_traceback_that_breaks_off(read: Reader) -> None:
    found = read('Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x()\n')
    (block,) = found.reading.failures
    assert not block.complete
    assert found.value("log.failures") == 1


def test_exception_groups(read: Reader) -> None:
    text = (
        '  + Exception Group Traceback (most recent call last):\n  |   File "a.py", line 1, in f\n'
        "  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n  +-+---------------- 1 ----------------\n"
        '    | Traceback (most recent call last):\n    |   File "b.py", line 2, in g\n    | ValueError: deep inside\n'
        "    +------------------------------------\n"
    )
    found = read(text)
    assert found.value("log.exception") == "ValueError"


def test_a_chunk_boundary_inside_a_traceback(read: Reader) -> None:
    filler = "(APIServer pid=1) INFO 06-10 21:32:17 [a.py:1] all is well and this line is long enough to fill\n"
    block = "\n".join(lines_of("Worker_TP0 pid=300", 1)) + "\n"
    count = (1 << 20) // len(filler)
    for shift in (0, 3, 7):
        text = filler * (count - 5 + shift) + block + filler * 10
        found = read(text)
        (one,) = found.reading.failures
        assert (one.complete, len(one.frames), one.first_line) == (True, 4, count - 5 + shift + 1)
