"""Following a log as it grows, is rotated and is cut."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from knowledge.shapes import Message
from tools.logs import LogReading, follow

FAULT = "(EngineCore pid=2) ERROR 06-10 21:32:18 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
START = "(APIServer pid=1) INFO 06-10 21:32:00 [utils.py:328] non-default args: {'model': '/srv/m'}\n"


def wait_for(found: list[LogReading], count: int) -> bool:
    until = time.monotonic() + 10
    while len(found) < count and time.monotonic() < until:
        time.sleep(0.02)
    return len(found) >= count


def test_follow(tmp_path: Path, messages: tuple[Message, ...]) -> None:
    path = tmp_path / "server.log"
    path.write_text(START)
    found: list[LogReading] = []
    stop = threading.Event()
    thread = threading.Thread(target=follow, args=(path, messages, found.append, stop))
    thread.start()
    try:
        time.sleep(0.4)
        assert not found
        with path.open("a") as out:
            out.write(FAULT[:40])
            out.flush()
            time.sleep(0.4)
            out.write(FAULT[40:])
        assert wait_for(found, 1)
        assert any(fact.name == "message:torch-cuda-oom" for fact in found[0].reading.evidence)
        path.rename(tmp_path / "server.log.1")
        path.write_text(START.replace("pid=1", "pid=7") + "ValueError: after the rotation\n")
        assert wait_for(found, 2)
        assert found[1].runs[0].number == 2
        path.write_text("ValueError: cut\n")
        assert wait_for(found, 3)
    finally:
        stop.set()
        thread.join(5)
    assert not thread.is_alive()


def test_a_deadline_ends_it(tmp_path: Path, messages: tuple[Message, ...]) -> None:
    began = time.monotonic()
    follow(tmp_path / "not-there.log", messages, lambda _: None, threading.Event(), deadline_s=0.3)
    assert time.monotonic() - began < 3
