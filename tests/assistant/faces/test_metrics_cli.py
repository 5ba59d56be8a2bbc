"""`vllm-diagnose metrics` as a process: answers, hostile servers, time, memory, pictures, fleets."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tools.metrics.serving import HOSTILE, Servers, in_a_thread
from tests.tools.metrics.states import QUEUED, WORKING, one

ROOT = Path(__file__).resolve().parents[3]
MODULE = "assistant.faces.cli.main"
FOREIGN = "".join(f'other_series{{namespace="production",pod="p{i}"}} {i}\n' for i in range(300_000))


@dataclass
class Ended:
    status: int
    out: str
    err: str
    seconds: float
    peak_mib: float

    @property
    def json(self) -> Any:
        return json.loads(self.out)


#: A process of its own that starts the command and says how much memory it took: the kernel counts what the starting
#: process held towards the first one that it becomes.
_LAUNCHER = """
import os, subprocess, sys
with subprocess.Popen(sys.argv[2:]) as process:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(process.returncode)
"""


def run(*arguments: str, environment: dict[str, str] | None = None, timeout_s: float = 60.0) -> Ended:
    """Runs the command; ``peak_mib`` is the most memory that its process held at once."""
    started = time.monotonic()
    with tempfile.NamedTemporaryFile() as peak:
        ended = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCHER, peak.name, sys.executable, "-m", MODULE, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "100", **(environment or {})},
            timeout=timeout_s,
            check=False,
        )
        seconds = time.monotonic() - started
        return Ended(ended.returncode, ended.stdout, ended.stderr, seconds, int(Path(peak.name).read_text()) / 1024)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """The stand-ins, served by a loop in a thread of its own."""
    states = {
        "working": one(WORKING),
        "queue": one(QUEUED),
        "crowded": one(QUEUED, extra=FOREIGN.rstrip("\n")),
        "broken-line": one(QUEUED, extra='vllm:broken{model_name="m" 12 garbage'),
        "cut": one(WORKING, extra="vllm:num_requests_ru"),
        "bidi": one(WORKING, models=("m\u202egpj.exe\x1b[31m",)),
    }
    with in_a_thread(Servers(states, dict(HOSTILE))) as found:
        yield found


def test_a_queue_is_found_and_told_in_both_languages(servers: Servers) -> None:
    english = run("metrics", servers.url("queue"), "--window", "1")
    chinese = run("metrics", servers.url("queue"), "--window", "1", "--lang", "zh")
    for ended in (english, chinese):
        assert ended.status == 0, ended.err
        assert "performance/queue-buildup" in ended.out
        assert "--max-num-seqs 80" in ended.out
        assert "num_requests_waiting" in ended.out
        assert "\x1b" not in ended.out
    assert "请求" in chinese.out and "Evidence" not in chinese.out


def test_the_exit_status_says_the_verdict_where_that_is_asked_for(servers: Servers) -> None:
    statuses = {
        name: run("metrics", servers.url(name), "--window", "1", "--exit-code", "-o", "json").status
        for name in ("working", "queue", "html")
    }
    assert statuses == {"working": 0, "queue": 1, "html": 4}


def test_one_look_with_requests_running_is_unknown_at_best(servers: Servers) -> None:
    for name in ("working", "queue"):
        answer = run("metrics", servers.url(name), "--window", "0", "-o", "json").json
        assert answer["verdict"] == "unknown"
        assert "--window" in answer["summary"]
        assert answer["next_steps"][0]["tool"] == "fetch_metrics"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("html", "web page"),
        ("empty", "empty"),
        ("other-engine", "SGLang"),
        ("node-exporter", "none of vLLM's series"),
        ("credentials", "credentials"),
        ("to-metadata", "leads elsewhere"),
        ("gzip-bomb", "no metrics page"),
        ("endless", "none of vLLM's series"),
        ("not-http", "no metrics page"),
        ("nowhere", "no metrics page"),
    ],
)
def test_a_hostile_or_wrong_server_gets_a_clear_unknown(name: str, says: str, servers: Servers) -> None:
    ended = run("metrics", servers.url(name), "--window", "1", "--deadline", "20", "-o", "json")
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err
    assert ended.json["verdict"] == "unknown"
    assert says in ended.json["summary"]
    assert ended.seconds < 25
    assert ended.peak_mib < 150


@pytest.mark.parametrize(("name", "verdict"), [("drip", "unknown"), ("silent", "unknown")])
def test_a_server_that_keeps_one_waiting_ends_at_the_deadline(name: str, verdict: str, servers: Servers) -> None:
    ended = run("metrics", servers.url(name), "--window", "1", "--deadline", "3", "-o", "json")
    answer = ended.json
    assert (answer["causes"][0]["id"] if answer["verdict"] == "cause" else answer["verdict"]) == verdict
    assert ended.seconds < 10


def test_three_hundred_thousand_foreign_series_cost_neither_time_nor_memory(servers: Servers) -> None:
    ended = run("metrics", servers.url("crowded"), "--window", "1", "-o", "json")
    assert ended.json["causes"][0]["id"] == "performance/queue-buildup"
    assert ended.peak_mib < 150


def test_one_bad_line_costs_that_line(servers: Servers) -> None:
    answer = run("metrics", servers.url("broken-line"), "--window", "1", "-o", "json").json
    assert answer["causes"][0]["id"] == "performance/queue-buildup"


def test_a_page_that_ends_within_a_line_is_no_all_clear_of_its_own(servers: Servers) -> None:
    answer = run("metrics", servers.url("cut"), "--window", "1", "-o", "json").json
    assert answer["verdict"] in ("healthy", "unknown")  # the line is whole up to its newline, so nothing is missing
    assert "Traceback" not in answer["summary"]


def test_names_from_the_page_reach_no_terminal_as_control_characters(servers: Servers) -> None:
    ended = run("metrics", servers.url("bidi"), "--window", "1")
    assert "\u202e" not in ended.out and "\x1b" not in ended.out


def test_a_server_that_takes_connections_and_says_nothing_is_not_called_unreachable(servers: Servers) -> None:
    answer = run("metrics", servers.url("silent"), "--window", "1", "--deadline", "3", "-o", "json").json
    assert answer["verdict"] == "unknown"
    assert answer["summary"].startswith("The server takes connections")
    assert [cause["id"] for cause in answer["causes"]] == ["engine/stalled", "serving/endpoint-unreachable"]
    assert "took the connection and did not answer" in answer["causes"][0]["because"][0]["text"]
    assert any("vllm-diagnose capture" in (item["command"] or "") for item in answer["collect_first"]) or any(
        "vllm-diagnose capture" in step["text"] for step in answer["next_steps"]
    )


def test_a_log_that_shows_how_the_server_ended_says_why_nobody_answers() -> None:
    log = ROOT / "tests" / "data" / "lab" / "worker-killed" / "server.log"
    answer = run("ask", "--log", str(log), "--target", "127.0.0.1:1", "-o", "json").json
    assert answer["causes"][0]["id"] == "distributed/worker-died"
    assert "serving/endpoint-unreachable" in [ruled["id"] for ruled in answer["ruled_out"]]


def test_nobody_at_the_address_is_a_diagnosis() -> None:
    ended = run("metrics", "127.0.0.1:1", "-o", "json")
    assert ended.status == 0
    assert ended.json["causes"][0]["id"] == "serving/endpoint-unreachable"
    assert "refuses connections" in ended.json["causes"][0]["because"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--all"),
        (("nosuchname",), "no target"),
        (("ftp://host",), "http://"),
        (("http://169.254.169.254",), "is refused"),
        (("127.0.0.1:1", "--window", "-1"), "--window"),
        (("127.0.0.1:1", "--plot", "a.jpg"), ".svg"),
        (("--all",), "targets file"),
    ],
)
def test_bad_input_gets_a_sentence_and_status_two(arguments: tuple[str, ...], says: str) -> None:
    ended = run("metrics", *arguments)
    assert ended.status == 2
    assert says in ended.err and "Traceback" not in ended.err


def test_pictures_are_drawn_as_svg_and_png(servers: Servers, tmp_path: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    assert run("metrics", servers.url("queue"), "--window", "1", "--plot", str(svg)).status == 0
    assert run("metrics", servers.url("bidi"), "--window", "1", "--plot", str(png)).status == 0
    drawn = "".join(ElementTree.parse(svg).getroot().itertext())  # noqa: S314 (our own file)
    assert "vllm:num_requests_waiting" in drawn and "60" in drawn and "p95" in drawn
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24])[0] == 1520


def test_a_question_and_a_live_server_make_one_diagnosis(servers: Servers) -> None:
    ended = run("ask", "requests are slow", "--target", servers.url("queue"), "-o", "json")
    assert ended.json["causes"][0]["id"] == "performance/queue-buildup"
    sources = {quote["source"] for quote in ended.json["causes"][0]["because"]}
    assert any(source.startswith("GET http://127.0.0.1") for source in sources)


def test_a_fleet_comes_worst_first_with_its_outliers(servers: Servers, tmp_path: Path) -> None:
    targets = {f"ok-{i}": servers.url("working") for i in range(5)} | {
        "bad": servers.url("queue"),
        "gone": "http://127.0.0.1:1",
    }
    file = tmp_path / "targets.yaml"
    file.write_text("targets:\n" + "".join(f"  {name}: {{address: '{url}'}}\n" for name, url in targets.items()))
    environment = {"VLLM_DIAGNOSE_TARGETS_FILE": str(file)}
    ended = run("metrics", "--all", "--window", "1", "-o", "json", environment=environment)
    rows = ended.json["targets"]
    assert [row["target"] for row in rows][:2] == ["gone", "bad"]
    assert ended.json["counts"] == {"cause": 2, "unknown": 0, "healthy": 5}
    assert any("num_requests_waiting" in figures for figures in rows[1]["outlier"])
    text = run("metrics", "--all", "--window", "1", "--lang", "zh", environment=environment)
    assert text.out.index("gone") < text.out.index("bad") < text.out.index("ok-0")
    assert "共 7 台" in text.out


def test_watching_prints_a_line_for_each_change_and_ends_on_interruption(servers: Servers) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "assistant.faces.cli.main", "metrics", servers.url("queue"), "--watch", "--window", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.send_signal(2)
    process.communicate(timeout=20)
    assert "performance/queue-buildup" in line
    assert process.returncode == 130
