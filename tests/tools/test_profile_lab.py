"""`sanity profile` on the laboratory's real server, started with its profiler: the trace is read, the server goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.laboratory import LAB, laboratory

COMMAND = str(Path(sys.executable).with_name("vllm-diagnose"))
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(not (LAB / "model" / "model.safetensors").exists(), reason="the laboratory is not installed (make lab)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("profiled")
    profiler = ["--profiler-config.profiler", "torch", "--profiler-config.torch_profiler_dir", str(folder / "traces")]
    fault = {"serve": ["--served-model-name", "tiny", *profiler], "start_s": 420}
    started = laboratory().Server(LAB.resolve(), fault, folder)
    try:
        started.start()
        assert started.wait_until_up(), started.log.read_text(errors="replace")[-3000:]
        yield started
    finally:
        started.stop()


def post(url: str, body: object) -> int:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@contextmanager
def asking(base: str) -> Iterator[None]:
    """One request after the other, as long as the block lasts."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            post(f"{base}/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 32, "ignore_eos": True})

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def sanity_profile(base: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "sanity", "profile", base, "--seconds", "1", "--yes", "-o", "json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)


def test_a_real_server_is_profiled_and_goes_on(server: Any) -> None:
    at_rest = sanity_profile(server.base)
    assert (at_rest.returncode, at_rest.stdout) == (3, "")
    assert "No request runs" in at_rest.stderr

    with asking(server.base):
        started = time.monotonic()
        ran = sanity_profile(server.base)
        print(f"one second of profiling: {time.monotonic() - started:.1f} s")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)["report"]
    assert report["device"] == "cpu"
    assert report["trace"].startswith("rank0")  # the worker's, not the front end's
    names = [hot["name"] for hot in report["top"]]
    assert any("attention" in name for name in names), names  # the model's own work is among the top
    assert all(0 < hot["share"] <= 1 and hot["calls"] > 0 for hot in report["top"])
    assert 0 < report["busy"] <= 1
    assert report["gaps"][0]["ms"] == report["gap_ms"] > 0

    # It was stopped: another session may begin. What a second start gets is what the unit tests' server answers.
    assert [post(f"{server.base}/start_profile", {}) for _ in range(2)] == [200, 409]
    assert post(f"{server.base}/stop_profile", {}) == 200
    assert post(f"{server.base}/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 4}) == 200
