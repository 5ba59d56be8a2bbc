"""What the trace of a server's profiler says, and what is said where there is none."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant.security.consent import agree
from assistant.security.roles import LOCAL
from tools.addresses import Allowance, Policy
from tools.outbound import Limits
from tools.profile import _named, leaves, read_trace, spans, top
from tools.registry import ActionError, Context, get


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    """A trace as torch writes it (libkineto, torch 2.13): one field a line, an event's braces on lines of their own."""
    rows = []
    for event in events:
        fields = ",\n".join(f'    "{key}": {json.dumps(value)}' for key, value in event.items())
        rows.append("  {\n" + fields + "\n  }")
    text = '{\n  "schemaVersion": 1,\n  "traceEvents": [\n' + ",\n".join(rows) + "\n  ]\n}\n"
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)
    return path


def event(name: str, cat: str, ts: float, dur: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, **more}


GEMM, COPY = event("gemm", "kernel", 0.0, 600.0), event("Memcpy HtoD", "gpu_memcpy", 700.0, 100.0)
EVENTS = [
    {"ph": "M", "name": "process_name", "ts": 0, "pid": 1, "tid": 0, "args": {"name": "VLLM::Worker"}},
    event("threading.py(1): run", "python_function", 0.0, 9000.0, args={"Python id": 1}),
    event("gemm", "kernel", 0.0, 600.0, args={"stream": 7, "nested": {"a": [1]}}),
    event("Memcpy HtoD", "gpu_memcpy", 700.0, 100.0),
    event("gemm", "kernel", 5800.0, 200.0),
    event("aten::mm", "cpu_op", 0.0, 50.0),
]


@pytest.mark.parametrize("name", ["rank0.1.pt.trace.json", "rank0.1.pt.trace.json.gz"])
def test_kernels_are_read_ranked_and_their_gaps_found(tmp_path: Path, name: str) -> None:
    found = read_trace(write(tmp_path / name, EVENTS))
    assert [e["name"] for e in found] == ["gemm", "Memcpy HtoD", "gemm", "aten::mm"]
    kernels = found[:3]
    hottest = top(kernels)
    assert [(h.name, h.calls, h.share) for h in hottest] == [("gemm", 2, 0.8889), ("Memcpy HtoD", 1, 0.1111)]
    busy, gaps = spans(kernels)
    assert round(busy, 3) == 0.15  # 900 of 6,000 microseconds
    assert [(g.ms, g.at_ms, g.after, g.before) for g in gaps] == [
        (5.0, 0.8, "Memcpy HtoD", "gemm"),
        (0.1, 0.6, "gemm", "Memcpy HtoD"),
    ]


def test_what_runs_at_the_same_time_leaves_no_pause() -> None:
    long, inside, after = event("long", "kernel", 0, 100), event("inside", "kernel", 10, 20), event("after", "kernel", 150, 50)  # fmt: skip
    busy, gaps = spans([inside, after, long])
    assert (busy, [(g.ms, g.after, g.before) for g in gaps]) == (0.75, [(0.05, "long", "after")])


@pytest.mark.parametrize(
    "words",
    [
        ("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/var/traces"}'),
        ('--profiler-config={"profiler": "torch", "torch_profiler_dir": "/var/traces"}',),
        ("--profiler_config.torch_profiler_dir", "/var/traces"),
        ("--profiler-config.torch_profiler_dir=/var/traces",),
    ],
)
def test_the_folder_of_the_traces_is_read_from_the_command_line(words: tuple[str, ...]) -> None:
    assert _named(["vllm", "serve", "m", '{"torch_profiler_dir": "/other"}', *words]) == "/var/traces"


def test_no_folder_is_none() -> None:
    assert _named(["vllm", "serve", "m", "--profiler-config", "{broken", "--profiler-config"]) is None
    assert _named(["vllm", "serve", "m", "--profiler-config", '{"profiler": "cuda"}']) is None


def test_an_operator_that_calls_others_does_not_count_twice() -> None:
    outer, inner = event("aten::linear", "cpu_op", 0, 100), event("aten::addmm", "cpu_op", 10, 80)
    after = event("aten::relu", "cpu_op", 100, 5)
    assert [e["name"] for e in leaves([outer, inner, after])] == ["aten::addmm", "aten::relu"]


def test_a_broken_trace_is_said_in_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "rank0.trace.json.gz"
    broken.write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(ActionError, match="cannot be read"):
        read_trace(broken)
    (tmp_path / "other.json").write_text("[1, 2, 3]\n")
    assert read_trace(tmp_path / "other.json") == []


@pytest.fixture
def server() -> Iterator[tuple[str, list[str], dict[str, int]]]:
    """An HTTP server on loopback; what it was asked to do, and the status of each path. Looking is not counted: it
    answers as vLLM does, 405 where there is a profiler, and with the metrics of a server that works."""
    asked: list[str] = []
    answers: dict[str, int] = {}
    looks = iter(range(1000))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            running = answers.get("running", 1)
            tokens = 100 + running * next(looks)
            page = f"vllm:num_requests_running {running}.0\nvllm:generation_tokens_total {tokens}.0\n".encode()
            status = 200 if self.path == "/metrics" else 404 if answers.get("/start_profile") == 404 else 405
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            if answers.get(self.path) == 0:  # it takes the order and never answers
                over.wait(20)
                return
            self.send_response(answers.get(self.path, 200))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    over = threading.Event()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}", asked, answers
    over.set()
    running.shutdown()
    running.server_close()
    thread.join()


def profile(url: str, folder: Path | None, seconds: float = 0.5) -> Any:
    import tools.profile  # noqa: F401 (declares the action)

    action = get("profile_server")
    given = {"url": url, "seconds": seconds, **({"trace_folder": str(folder)} if folder else {})}
    policy = Policy(allowed=(Allowance.of(url),))
    return asyncio.run(action.call(given, Context(policy=policy, consent=agree(LOCAL, action, given))))


def test_a_server_without_a_profiler_is_told_how_to_get_one(server: Any, tmp_path: Path) -> None:
    url, asked, answers = server
    answers["/start_profile"] = 404
    with pytest.raises(ActionError, match="started without one"):
        profile(url, tmp_path)
    assert asked == []


def test_a_server_at_rest_is_left_alone(server: Any, tmp_path: Path) -> None:
    url, asked, answers = server
    answers["running"] = 0
    with pytest.raises(ActionError, match="No request runs"):
        profile(url, tmp_path)
    assert asked == []


def test_somebody_elses_session_goes_on(server: Any, tmp_path: Path) -> None:
    url, asked, answers = server
    answers["/start_profile"] = 409  # vLLM 0.32.0: a profiling session is already active
    with pytest.raises(ActionError, match="refused to start its profiler"):
        profile(url, tmp_path)
    assert asked == ["/start_profile"]


def test_a_start_without_an_answer_is_stopped_as_well(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    url, asked, answers = server
    answers["/start_profile"] = 0
    monkeypatch.setattr("tools.profile._START", Limits(deadline_s=1.0))
    with pytest.raises(ActionError, match="did not answer within"):
        profile(url, tmp_path)
    assert asked == ["/start_profile", "/stop_profile"]


def test_a_trace_that_cannot_be_read_here_is_not_asked_for(server: Any) -> None:
    url, asked, _ = server
    with pytest.raises(ActionError, match="give it with --trace"):
        profile(url, None)
    assert asked == []


def test_the_profiler_is_stopped_whatever_comes_of_it(server: Any, tmp_path: Path) -> None:
    url, asked, _ = server
    with pytest.raises(ActionError, match="No new trace was written"):
        profile(url, tmp_path)
    assert asked == ["/start_profile", "/stop_profile"]

    async def cancelled() -> None:
        action = get("profile_server")
        given = {"url": url, "seconds": 60.0, "trace_folder": str(tmp_path)}
        context = Context(policy=Policy(allowed=(Allowance.of(url),)), consent=agree(LOCAL, action, given))
        task = asyncio.create_task(action.call(given, context))
        while len(asked) < 3:  # noqa: ASYNC110 (another thread counts)
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert asked[2:] == ["/start_profile", "/stop_profile"]


def test_the_newest_trace_is_judged(server: Any, tmp_path: Path) -> None:
    write(tmp_path / "rank0.7.pt.trace.json.gz", EVENTS)
    report = profile(server[0], tmp_path)
    assert (report.device, report.busy, report.gap_ms) == ("gpu", 0.15, 5.0)
    assert report.top[0].name == "gemm"
    assert "gemm took 89%" in report.summary
