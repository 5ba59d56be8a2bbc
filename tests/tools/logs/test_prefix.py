"""One real form of line a generation, runtime or tool: what its prefix states."""

from __future__ import annotations

import pytest

from tools.logs.prefix import clean, parse_prefix, read_clock, strip_ansi

LINES = [
    ("INFO 06-10 21:32:17 llm_engine.py:161] Init", None, "INFO", "06-10 21:32:17", "llm_engine.py:161", "Init"),
    ("ERROR 06-10 21:32:17 [core.py:88] boom", None, "ERROR", "06-10 21:32:17", "core.py:88", "boom"),
    ("(VllmWorkerProcess pid=90) INFO 09-12 11:11:11 multiproc_worker_utils.py:233] Worker ready", "VllmWorkerProcess pid=90", "INFO", "09-12 11:11:11", "multiproc_worker_utils.py:233", "Worker ready"),
    ("(VllmWorker rank=3 pid=1090) ERROR 04-01 01:02:03 [multiproc_executor.py:435] x", "VllmWorker rank=3 pid=1090", "ERROR", "04-01 01:02:03", "multiproc_executor.py:435", "x"),
    ("(RayWorkerWrapper pid=473, ip=192.0.2.7) ERROR 04-01 01:02:03 [worker_base.py:620] x", "RayWorkerWrapper pid=473, ip=192.0.2.7", "ERROR", "04-01 01:02:03", "worker_base.py:620", "x"),
    ("(EngineCore_DP0 pid=387) (RayWorkerWrapper pid=473) INFO 04-01 01:02:03 [a.py:1] x", "RayWorkerWrapper pid=473", "INFO", "04-01 01:02:03", "a.py:1", "x"),
    ("(Worker_TP1_EP1 pid=405) WARNING 04-01 01:02:03 [a.py:1] x", "Worker_TP1_EP1 pid=405", "WARNING", "04-01 01:02:03", "a.py:1", "x"),
    ("(APIServer pid=1) Traceback (most recent call last):", "APIServer pid=1", None, None, None, "Traceback (most recent call last):"),
    ("[rank0]: Traceback (most recent call last):", "rank0", None, None, None, "Traceback (most recent call last):"),
    ("[rank3]:[E1121 00:56:13.545088255 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog", "rank3", "ERROR", "11-21 00:56:13", "ProcessGroupNCCL.cpp:632", "Watchdog"),
    ("W1121 00:55:59.090000 25288 torch/_library/triton.py:53] no", "pid=25288", "WARNING", "11-21 00:55:59", "torch/_library/triton.py:53", "no"),
    ("vllm-1  | INFO 11-21 00:55:59 [a.py:1] hi", None, "INFO", "11-21 00:55:59", "a.py:1", "hi"),
    ("2026-11-21T00:55:59.123456789Z stderr F INFO 11-21 00:55:59 [a.py:1] hi", None, "INFO", "2026-11-21T00:55:59.123456789Z", "a.py:1", "hi"),
    ("2026-11-21T00:55:59Z INFO:     Started server process [1]", None, "INFO", "2026-11-21T00:55:59Z", None, "Started server process [1]"),
    ("[pod/vllm-0/server] ERROR 11-21 00:55:59 [a.py:1] hi", None, "ERROR", "11-21 00:55:59", "a.py:1", "hi"),
    ("Nov 21 00:55:59 gpu07 vllm[812]: INFO 11-21 00:55:59 [a.py:1] hi", None, "INFO", "Nov 21 00:55:59", "a.py:1", "hi"),
    ("Nov 21 00:55:59 gpu07 kernel: NVRM: Xid (PCI:0000:3b:00): 79", None, None, "Nov 21 00:55:59", None, "NVRM: Xid (PCI:0000:3b:00): 79"),
    ("[12345.678901] NVRM: Xid (PCI:0000:3b:00): 79", None, None, None, None, "NVRM: Xid (PCI:0000:3b:00): 79"),
    ("gpu07:812:990 [0] misc/socket.cc:50 NCCL WARN Call to connect", "pid=812", "WARNING", None, None, "Call to connect"),
    ("[2026-11-21 00:55:59,123 E 12 34] (raylet) node_manager.cc:3: oops", "raylet", "ERROR", "2026-11-21 00:55:59", None, "node_manager.cc:3: oops"),
    ("2026-11-21 00:55:59,123\tINFO worker.py:1821 -- Connecting", None, "INFO", "2026-11-21 00:55:59,123", "worker.py:1821", "Connecting"),
    ("2026-11-21 10:00:00,123 - root - ERROR - bad", None, "ERROR", "2026-11-21 10:00:00,123", None, "bad"),
    ('  File "x.py", line 3, in y', None, None, None, None, '  File "x.py", line 3, in y'),
    ("the server is slow today", None, None, None, None, "the server is slow today"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "process", "level", "clock", "where", "body"), LINES)
def test_prefix(
    line: str, process: str | None, level: str | None, clock: str | None, where: str | None, body: str
) -> None:
    prefix = parse_prefix(line)
    assert (prefix.process, prefix.level, prefix.clock, prefix.where) == (process, level, clock, where)
    assert line[prefix.body :] == body


def test_colours_are_removed() -> None:
    line = "\x1b[1;36m(EngineCore_DP0 pid=42)\x1b[0;0m ERROR 11-21 00:55:59 [core.py:1] x"
    assert parse_prefix(strip_ansi(line)).process == "EngineCore_DP0 pid=42"
    assert clean("a\x1b[31mb\x00c\u202ed\te") == "abcd e"


def test_times_are_utc_where_a_zone_is_stated() -> None:
    assert str(read_clock("2026-11-21T02:00:00+02:00", 1999)) == "2026-11-21 00:00:00+00:00"
    assert str(read_clock("11-21 00:55:59", 2026)) == "2026-11-21 00:55:59"
    assert str(read_clock("Nov  1 00:55:59", 2025)) == "2025-11-01 00:55:59"
    assert read_clock("13-45 00:55:59", 2026) is None
