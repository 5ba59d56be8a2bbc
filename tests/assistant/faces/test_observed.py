"""What a server says about itself: figures with bounded labels, a log without anybody's text, traces, and the truth
at /readyz; and how it goes away."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from assistant import own_log
from assistant.observability import Metrics
from tests.assistant.faces.serving import Served, environment, sample, served

ROOT = Path(__file__).parents[3]
LOG = (ROOT / "tests" / "data" / "lab" / "tp2-truncated" / "server.log").read_text("utf-8")
JSON = {"Content-Type": "application/json"}
SECRET = "hf_" + "Q7w" * 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("home"), server_metrics="open") as running:
        running.until_ready()
        yield running


def diagnose(server: Served, **given: object) -> tuple[int, dict[str, object]]:
    status, _, body = server.ask("POST", "/v1/diagnoses", given)
    return status, json.loads(body)


def test_diagnoses_tools_and_transactions_are_counted(server: Served) -> None:
    status, found = diagnose(server, logs=[{"name": "a.log", "content": LOG}])
    assert status == 201, found
    assert server.ask("POST", "/v1/tools/search_knowledge", {"query": "out of memory"})[0] == 200
    figures = server.metrics()
    causes = found["causes"]
    assert isinstance(causes, list) and found["verdict"] == "cause"
    assert sample(figures, "vllm_diagnose_diagnoses_total", verdict="cause", cause=causes[0]["id"]) == 1
    assert sample(figures, "vllm_diagnose_diagnosis_seconds_count", outcome="done") >= 1
    assert sample(figures, "vllm_diagnose_tool_seconds_count", tool="search_knowledge", outcome="done") == 1
    assert sample(figures, "vllm_diagnose_store_seconds_count", kind="write") >= 1
    assert sample(figures, "vllm_diagnose_store_errors_total") == 0
    assert sample(figures, "vllm_diagnose_http_requests_total", route="/v1/diagnoses", method="POST", status="201") == 1
    assert sample(figures, "vllm_diagnose_ready") == 1 and sample(figures, "vllm_diagnose_readers") == 1
    assert sample(figures, "vllm_diagnose_jobs", state="queued") == 0


def test_what_somebody_sends_never_becomes_a_label(server: Served) -> None:
    before = len(server.metrics())
    for number in range(60):
        server.ask("GET", f"/v1/nothing/{number}-{SECRET}")
        server.ask("GET", f"/v1/diagnoses/{number}-{SECRET}")
        server.ask("POST", f"/v1/tools/tool_{number}", {})
    server.ask("BREW", "/coffee")
    figures = server.metrics()
    assert not any(SECRET in name or "BREW" in name or "tool_7" in name for name in figures)
    assert len(figures) - before < 100
    assert sample(figures, "vllm_diagnose_http_requests_total", route="/v1/diagnoses/{incident}", status="404") == 60


def test_the_log_names_requests_and_holds_nothing_that_was_sent(server: Served) -> None:
    text = f"MARKER-OF-MINE the token {SECRET} does not work"
    status, _, _ = server.ask("POST", "/v1/diagnoses?full=true", {"text": text}, X_Request_Id="mine-42")
    assert status == 201
    server.ask("GET", f"/v1/diagnoses/{SECRET}?key={SECRET}", Authorization=f"Bearer {SECRET}")
    until = time.monotonic() + 10
    while not any(line.get("request_id") == "mine-42" for line in server.log()) and time.monotonic() < until:
        time.sleep(0.05)
    (line,) = [line for line in server.log() if line.get("request_id") == "mine-42"]
    assert (line["route"], line["status"], line["who"], line["level"]) == ("/v1/diagnoses", 201, "anonymous", "info")
    whole = "\n".join(server.lines)
    assert SECRET not in whole and "MARKER-OF-MINE" not in whole
    assert not any(line.get("route") == "/readyz" for line in server.log())


def test_an_error_is_logged_by_its_places_and_not_by_its_words() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        own_log.begin("json", stream)
        try:
            raise ValueError(f"cannot read the line 'password={SECRET}'")
        except ValueError:
            logging.getLogger("assistant.faces").error("request %s failed", "r1\x1b[31m\nforged", exc_info=True)
        own_log.begin("text", stream)
        logging.getLogger("assistant.faces").warning("the key %s is bad", SECRET)
    finally:
        root.handlers[:], root.level = handlers, level
        own_log.REQUESTS.setLevel(logging.NOTSET)
    first, second = stream.getvalue().splitlines()
    found = json.loads(first)
    assert found["error"] == "ValueError" and found["message"] == "request r1 forged failed"
    assert found["at"] == [at for at in found["at"] if at.startswith("tests/assistant/faces/test_observed.py:")]
    assert SECRET not in first + second and second[9:].startswith("warning the key")


@pytest.mark.slow
@pytest.mark.parametrize(("who_may", "status"), [("token", 401), ("off", 404)])
def test_figures_are_shown_to_whom_the_settings_say(tmp_path: Path, who_may: str, status: int) -> None:
    with served(tmp_path, server_metrics=who_may, server_anonymous="") as running:
        running.until_ready()
        assert running.ask("GET", "/metrics")[0] == status


def test_readyz_says_when_nothing_could_be_kept(tmp_path: Path) -> None:
    """Another process holds the write lock: reading works, keeping an incident does not."""
    import sqlite3

    with served(tmp_path, store_timeout_s="0.3") as running:
        running.until_ready()
        held = sqlite3.connect(tmp_path / "vllm-diagnose" / "store.db", isolation_level=None)
        try:
            held.execute("BEGIN IMMEDIATE")
            status, _, body = running.ask("GET", "/readyz")
            assert status == 503 and "locked" in json.loads(body)["problems"][0]
            assert running.ask("GET", "/healthz")[0] == 200
            status, answer = diagnose(running, text="the server hangs at start")
            assert status == 201 and answer["incident"] is None  # the answer still comes
        finally:
            held.close()
        assert running.ask("GET", "/readyz")[0] == 200


def test_a_server_that_is_stopped_says_so_then_finishes_and_goes(tmp_path: Path) -> None:
    with served(tmp_path, server_drain_s="2") as running:
        running.until_ready()
        kept = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        status, headers, body = running.ask("GET", "/readyz")
        assert status == 503 and "stopping" in json.loads(body)["problems"][0]
        assert headers["connection"] == "close"
        kept.request("POST", "/v1/diagnoses", json.dumps({"logs": [{"name": "a", "content": LOG}]}), JSON)
        answer = kept.getresponse()
        assert (answer.status, answer.getheader("connection")) == (201, "close")
        answer.read()
        assert running.process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", running.port), 2).close()


@pytest.mark.slow
def test_a_stream_ends_when_the_server_stops_so_that_the_client_finds_another(tmp_path: Path) -> None:
    with served(tmp_path, server_drain_s="5", server_stop_s="20") as running:
        running.until_ready()
        _, found = diagnose(running, text="CUDA out of memory")
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        connection.request("GET", f"/v1/diagnoses/{found['incident']}/events")
        stream = connection.getresponse()
        assert stream.readline() == b"id: 1\n"
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert stream.read() is not None  # to its end, and well before the hour that a stream may last
        assert time.monotonic() - began < 15
        connection.close()


class _Collector(BaseHTTPRequestHandler):
    taken: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        self.taken.append((self.path, data))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@pytest.mark.slow
def test_traces_go_to_the_configured_collector(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    _Collector.taken = []
    with HTTPServer(("127.0.0.1", 0), _Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        try:
            with served(tmp_path, telemetry_otlp_url=f"http://127.0.0.1:{collector.server_port}") as running:
                running.until_ready()
                trace = "0af7651916cd43dd8448eb211c80319c"
                status, _, _ = running.ask(
                    "POST", "/v1/diagnoses", {"text": f"OOM {SECRET}"}, traceparent=f"00-{trace}-b7ad6b7169203331-01"
                )
                assert status == 201
                running.stop()
        finally:
            collector.shutdown()
    spans = [
        span
        for path, data in _Collector.taken
        if path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    ours = {span.name: span for span in spans if span.trace_id.hex() == trace}
    assert {"POST /v1/diagnoses", "diagnose", "store write"} <= set(ours)
    assert ours["diagnose"].parent_span_id == ours["POST /v1/diagnoses"].span_id
    assert SECRET.encode() not in b"".join(data for _, data in _Collector.taken)


def test_a_cause_that_the_catalogue_does_not_have_is_no_label() -> None:
    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.gather import read_case
    from knowledge.catalog import load

    catalog = load()
    diagnosis = Engine(catalog).diagnose(read_case(catalog, text="CUDA out of memory", logs=[])[0])
    metrics = Metrics("1", causes=())
    metrics.reading("done", 0.1, diagnosis)
    metrics.request("/v1/diagnoses", "X" * 50, 200, 0.1)
    page = metrics.page()[0].decode()
    assert all(cause not in page for cause in catalog.causes) and "XXX" not in page


def test_a_log_that_nobody_reads_keeps_nobody_waiting_and_says_what_is_missing(tmp_path: Path) -> None:
    few = 300
    program = (
        f"from assistant import own_log; own_log.MOST_QUEUED = {few}; from assistant.faces.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            address = process.stderr.readline().split()[-1].decode()
            with httpx.Client(base_url=address, timeout=20) as client:
                for _ in range(few + 1200):  # a pipe holds some hundred lines besides
                    assert client.get("/v1/nothing").status_code == 404
                first = os.read(process.stderr.fileno(), 1 << 20)
                while first.count(b"\n") < few:
                    first += os.read(process.stderr.fileno(), 1 << 20)
                assert client.get("/v1/nothing").status_code == 404
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(30) == -signal.SIGTERM  # as uvicorn ends whom a signal told to
        finally:
            process.kill()
    lines = [json.loads(line) for line in (first + rest).splitlines() if line.startswith(b"{")]
    (lost,) = [line for line in lines if "were lost" in line["message"]]
    requests = [line for line in lines if line["message"] == "request"]
    assert int(lost["message"].split()[0]) + len(requests) == few + 1201


def test_a_server_whose_log_nobody_reads_ends_when_it_is_told_to(tmp_path: Path) -> None:
    read, write = os.pipe()
    program = (
        "import os, sys; from assistant import own_log; own_log.begin('json')\n"
        "for _ in range(10000): own_log.REQUESTS.info('request')\n"
        "print('done', flush=True)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=write, timeout=30, check=False
        )
    finally:
        os.close(read)
        os.close(write)
    assert (done.returncode, done.stdout) == (0, b"done\n")
