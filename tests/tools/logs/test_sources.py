"""Bytes of every kind: compressed, damaged, hostile, huge, endless."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from knowledge.shapes import Message
from tools.logs import LogInput, ReadOptions, SourceError, expand, read_logs

Reader = Callable[..., Any]
LINE = "(APIServer pid=1) INFO 06-10 21:32:17 [a.py:1] all is well\n"
FAULT = "(EngineCore pid=2) ERROR 06-10 21:32:18 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


@pytest.mark.parametrize("kind", ["plain", "gz", "zst", "two-gz"])
def test_compression(read: Reader, tmp_path: Path, kind: str) -> None:
    data = (LINE * 3 + FAULT + LINE).encode()
    packed = {
        "plain": lambda: data,
        "gz": lambda: gzip.compress(data),
        "two-gz": lambda: gzip.compress(data[:100]) + gzip.compress(data[100:]),
        "zst": lambda: zstandard.compress(data),
    }[kind]()
    path = tmp_path / "server.log"
    path.write_bytes(packed)
    found = read(path)
    assert found.first("message:torch-cuda-oom").origin.line == 4
    assert found.value("memory.tried_gib") == 2.0


def test_a_damaged_archive_gives_what_it_has(tmp_path: Path, messages: tuple[Message, ...]) -> None:
    import random

    rng = random.Random(1)
    data = (FAULT + "".join(f"{LINE[:-1]} {rng.random()}\n" for _ in range(200_000))).encode()
    path = tmp_path / "server.log.gz"
    path.write_bytes(gzip.compress(data)[:-2000])
    found = read_logs([LogInput("x", path=path)], messages)
    assert any(fact.name == "message:torch-cuda-oom" for fact in found.reading.evidence)
    assert "cannot be read to its end" in found.reading.not_measured[0][1]
    assert found.reading.coverage[0].truncated


def test_odd_bytes(read: Reader) -> None:
    data = (
        b"\xff\xfe broken \x80\x81\n"
        + LINE.encode()[:20]
        + b"\x00\x00\x00"
        + LINE.encode()[20:]
        + b"\xc3\x28\n"
        + FAULT.encode()
    )
    assert read(b"ok\n" + data).first("message:torch-cuda-oom").origin.line == 5


def test_utf16(read: Reader) -> None:
    found = read((LINE + FAULT).encode("utf-16"))
    assert found.first("message:torch-cuda-oom").origin.line == 2


def test_carriage_returns_and_windows_lines(read: Reader) -> None:
    bar = "\rLoading safetensors checkpoint shards:  10% Completed | 1/10 [00:01<00:09,  1.00s/it]" * 50
    found = read(LINE.replace("\n", "\r\n") + bar + "\r" + FAULT)
    assert found.first("message:torch-cuda-oom").origin.line == 2
    assert found.first("message:torch-cuda-oom").origin.process == "EngineCore pid=2"


def test_colours(read: Reader) -> None:
    found = read("\x1b[1;36m(EngineCore pid=2)\x1b[0;0m " + FAULT.removeprefix("(EngineCore pid=2) "))
    fact = found.first("message:torch-cuda-oom")
    assert fact.origin.process == "EngineCore pid=2"
    assert "\x1b" not in fact.quote


def test_an_endless_line(read: Reader) -> None:
    found = read(b"x" * (5 << 20) + b" torch.OutOfMemoryError " + b"y" * (2 << 20) + b"\n" + FAULT.encode())
    facts = found.all("message:torch-cuda-oom")
    assert {fact.origin.line for fact in facts} == {1, 2}
    assert all(len(fact.quote) <= 500 for fact in facts)


def test_json_lines(read: Reader) -> None:
    entries = [
        {"log": LINE, "stream": "stdout", "time": "2026-06-10T21:32:17.5Z"},
        {"log": "Traceback (most recent call last):\n", "time": "2026-06-10T21:32:18Z"},
        {"log": '  File "a.py", line 1, in f\n', "time": "2026-06-10T21:32:18Z"},
        {"log": "RuntimeError: odd\n", "time": "2026-06-10T21:32:18Z"},
        {"level": "error", "message": "ValueError: even\nand more", "timestamp": "2026-06-10T21:33:00Z"},
    ]
    found = read("".join(json.dumps(entry) + "\n" for entry in entries))
    assert {fact.value for fact in found.all("log.unrecognised")} >= {"RuntimeError: odd", "ValueError: even"}
    assert {fact.origin.line for fact in found.all("log.unrecognised")} == {4, 5}
    assert str(found.reading.reading.coverage[0].last_at) == "2026-06-10 21:33:00+00:00"


def test_memory_does_not_grow_with_the_log(read: Reader, tmp_path: Path) -> None:
    peaks = []
    for count in (100, 400):
        path = tmp_path / f"{count}.log"
        with path.open("wb") as out:
            for place in range(count):
                out.write((LINE * 1000 + FAULT.replace("pid=2", f"pid={place % 8}")).encode())
        tracemalloc.start()
        found = read(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(fact.count for fact in found.all("message:torch-cuda-oom")) == count
        assert found.reading.reading.coverage[0].lines == count * 1001
    assert peaks[1] < peaks[0] * 1.2 + 1_000_000


def test_large_and_small_readings_agree(read: Reader, tmp_path: Path) -> None:
    path = tmp_path / "large.log"
    path.write_text(LINE * 2000 + FAULT + LINE * 90_000 + "ValueError: a surprise\n" + LINE * 10)
    assert path.stat().st_size > 4 << 20
    found = read(path)
    assert found.first("message:torch-cuda-oom").origin.line == 2001
    assert found.first("log.unrecognised").origin.line == 92_002
    assert found.value("log.failures") == 2


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 200_000,
        "a." * 200_000 + "Error: x",
        '  File "' + "x" * 300_000,
        "Traceback (most recent call last)\n" * 20_000,
        "".join(f"(P{number} pid={number}) ERROR 06-10 21:32:18 [a.py:1] odd {number}\n" for number in range(20_000)),
        "non-default args: " + "{" * 100_000,
        "args: Namespace(" + "a=[" * 50_000,
        "vllm serve " + "--a " * 100_000,
        "100% Completed | " + "|[" * 100_000,
        "\r" * 300_000,
        'HTTP/1.1" 400 ' * 50_000,
        "ERROR " * 200_000,
    ],
)
def test_hostile_text_costs_linear_time(read: Reader, hostile: str) -> None:
    began = time.process_time()
    read(hostile + "\n", pasted=True)
    assert time.process_time() - began < 5


def test_deadline_and_progress(tmp_path: Path, messages: tuple[Message, ...]) -> None:
    path = tmp_path / "a.log"
    path.write_text(LINE * 100_000)
    seen: list[tuple[int, int | None]] = []
    options = ReadOptions(deadline_s=0, progress=lambda done, total: seen.append((done, total)))
    found = read_logs([LogInput("a", path=path)], messages, options)
    assert "deadline" in found.reading.not_measured[0][1]
    assert found.reading.coverage[0].truncated
    assert seen[0][1] == path.stat().st_size


def test_what_cannot_be_opened(tmp_path: Path, messages: tuple[Message, ...]) -> None:
    with pytest.raises(SourceError, match="cannot be opened"):
        read_logs([LogInput("gone", path=tmp_path / "gone.log")], messages)
    found = read_logs([LogInput("gone", path=tmp_path / "gone.log"), LogInput("b", data=FAULT.encode())], messages)
    assert found.reading.not_measured[0][0] == "gone"
    with pytest.raises(FileNotFoundError, match="give a log file"):
        expand([tmp_path / "nothing"])


def test_folders(tmp_path: Path, messages: tuple[Message, ...]) -> None:
    (tmp_path / "server.log").write_text(LINE + FAULT)
    (tmp_path / "old.log.gz").write_bytes(gzip.compress(LINE.encode()))
    (tmp_path / "metrics-0.txt").write_text(
        "# HELP vllm:num_requests_running x\n# TYPE vllm:num_requests_running gauge\n"
    )
    (tmp_path / "responses.jsonl").write_text(
        json.dumps({"path": "/generate", "status": 404, "body": '{"detail":"Not Found"}'})
        + "\n"
        + json.dumps(
            {
                "path": "/v1/completions",
                "status": 404,
                "body": json.dumps({"error": {"message": "The model `x` does not exist."}}),
            }
        )
        + "\n"
        + json.dumps({"path": "/v1/completions", "status": 200, "body": "{}"})
        + "\n"
    )
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (tmp_path / "fault.json").write_text('{"name": "x"}')
    (tmp_path / ".hidden").write_text("x")
    kinds = {source.path.name: source.kind for source in expand([tmp_path]) if source.path}
    assert kinds == {
        "server.log": "log",
        "old.log.gz": "log",
        "metrics-0.txt": "metrics",
        "responses.jsonl": "responses",
        "config.json": "config",
        "fault.json": "ignored",
    }
    found = read_logs(expand([tmp_path]), messages)
    names = {fact.name: fact.value for fact in found.reading.evidence}
    assert names["requests.total"] == 3
    assert names["requests.refused"] == 2
    assert names["server.architecture"] == "LlamaForCausalLM"
    assert "message:model-missing" in names
    assert {what.rsplit("/", 1)[-1] for what, _ in found.reading.not_measured} == {"metrics-0.txt", "fault.json"}
