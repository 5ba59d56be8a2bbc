"""The calculator and the fleet: figures of real actions as pictures."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from assistant.faces.web.figures import charts, number
from knowledge.catalog import load
from tests.tools.metrics.pages import State
from tests.tools.metrics.pages import page as metrics_page
from tools.evidence import Evidence, Origin

from .conftest import Page, Serve, Site
from .test_pages import sound


@pytest.fixture(scope="module")
def page(site: Site) -> Page:
    return site.visitor("viewer")


def test_the_calculator_says_what_fits_and_where_the_memory_goes(page: Page) -> None:
    assert page.get("/memory?lang=en").status_code == 200
    answer = page.get("/memory?model=Qwen/Qwen3-8B&gpu=A10&max_model_len=32768")
    sound(answer.text)
    assert "It does not fit: Qwen/Qwen3-8B" in answer.text
    assert re.search(r'<rect x="0\.0" y="4" width="[\d.]+" height="32" class="part-weights"/>', answer.text)
    assert "--max-model-len 16384" in answer.text
    given = {"model": "Qwen/Qwen3-8B", "gpu": "A100 80GB", "tensor_parallel_size": "2", "max_num_seqs": "64"}
    sent = page.post("/memory", given, on="/memory")
    assert "It fits" in sent.text and "on 2 " in sent.text
    assert "tensor_parallel_size=2" in sent.text and "max_num_seqs=64" in sent.text  # the link to share
    assert "放得下" in page.get("/memory?lang=zh&model=Qwen/Qwen3-8B&gpu=H100").text
    page.get("/?lang=en")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tensor_parallel_size": "two"}, "a number is expected"),
        ({"tensor_parallel_size": "0"}, "greater than"),
        ({"gpu_memory_utilization": "nan"}, ""),
        ({"gpu_memory_utilization": "7"}, "less than"),
        ({"gpu": "no such card"}, "no such card"),
        ({"model": "nobody/knows-this"}, "nobody/knows-this"),
        ({"max_model_len": "9" * 400}, ""),
    ],
)
def test_the_calculator_refuses_in_a_sentence(page: Page, given: dict[str, str], said: str) -> None:
    answer = page.post("/memory", {"model": "Qwen/Qwen3-8B", "gpu": "A10", **given}, on="/memory")
    assert answer.status_code == 422
    sound(answer.text)
    notice = re.search(r'<p class="notice bad" role="alert">([^<]+)</p>', answer.text)
    assert notice and said in notice[1], answer.text


class Metrics(BaseHTTPRequestHandler):
    """The pages of a vLLM server with requests waiting."""

    def do_GET(self) -> None:
        body = {"/metrics": metrics_page(State(), 5.0).encode(), "/version": b'{"version": "0.11.0"}', "/health": b""}.get(self.path)  # fmt: skip
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def fleet(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = tmp_path_factory.mktemp("fleet") / "targets.yaml"
        file.write_text(f"targets:\n  alive:\n    address: http://127.0.0.1:{server.server_port}\n  dead:\n    address: http://127.0.0.1:9\n", encoding="utf-8")  # fmt: skip
        yield serve(VLLM_DIAGNOSE_TARGETS_FILE=str(file)).visitor("viewer")
        server.shutdown()


def test_the_fleet_says_who_answers_and_how_busy_it_is(fleet: Page) -> None:
    text = fleet.get("/fleet?lang=en").text
    sound(text)
    assert 'data-state="/fleet/alive/state"' in text and 'href="/fleet/dead"' in text
    assert 'href="/fleet/dead"' not in fleet.get("/fleet?q=alive").text
    alive, dead = fleet.get("/fleet/alive/state").json(), fleet.get("/fleet/dead/state").json()
    assert alive["tone"] == "good" and [figure["label"] for figure in alive["figures"]] == ["running", "waiting", "KV cache"]  # fmt: skip
    assert dead["tone"] == "bad" and "refuses connections" in dead["text"]
    assert fleet.get("/fleet/nobody/state").status_code == 404


def test_one_server_is_drawn_and_diagnosed(fleet: Page) -> None:
    text = fleet.get("/fleet/alive?lang=en").text
    sound(text)
    assert '<svg class="chart"' in text and "vllm:num_requests_waiting" in text
    assert "refuses connections" in fleet.get("/fleet/dead").text
    answer = fleet.post("/ask", {"target": "dead"}, on="/fleet/dead")
    assert answer.status_code == 303
    shown = fleet.get(answer.headers["location"]).text
    assert load().causes["serving/endpoint-unreachable"].title["en"] in unescape(shown)
    assert answer.headers["location"] in fleet.get("/fleet").text and answer.headers["location"] in fleet.get("/incidents?target=dead").text  # fmt: skip


def test_figures_of_one_unit_share_a_scale() -> None:
    def known(name: str, value: float | str, state: str = "present") -> Evidence:
        why = "not read" if state == "unknown" else ""
        return Evidence(name, state, value if state == "present" else None, Origin("x"), why_unknown=why)  # type: ignore[arg-type]

    drawn, single = charts(
        [known("memory.total_gib", 80.0), known("memory.weights_gib", 20.0), known("engine.max_model_len", 32768),
         known("memory.free_gib", 0.0, "unknown"), known("incident.phase", "startup")], load(), "en",
    )  # fmt: skip
    (chart,) = drawn
    assert [(row.label, row.shown) for row in chart.rows] == [("GPU memory", "80 GiB"), ("Weights", "20 GiB")]
    assert chart.rows[0].width == 4 * chart.rows[1].width
    assert [item.shown for item in single] == ["32,768 tokens"]
    assert (number(0.0), number(1234567), number(0.1234), number(0.00123)) == ("0", "1,234,567", "0.12", "0.0012")
