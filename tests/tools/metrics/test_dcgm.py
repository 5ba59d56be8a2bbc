"""GPUs as dcgm-exporter shows them, and what follows for a diagnosis."""

from __future__ import annotations

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.model import Case, Diagnosis
from knowledge.catalog import load
from tests.tools.metrics.pages import page
from tests.tools.metrics.states import STATES, WORKING, one
from tools.evidence import Reading
from tools.metrics.dcgm import evidence_of_gpus
from tools.metrics.difference import engine_windows
from tools.metrics.exposition import read_page
from tools.metrics.facts import evidence_of
from tools.metrics.window import ServerWindow

LABELS = 'UUID="GPU-8a7c",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="node-7"'


def exporter(busy: float = 95, reasons: int = 4, xid: int = 0) -> bytes:
    rows = [("GPU_UTIL", busy), ("CLOCKS_EVENT_REASONS", reasons), ("XID_ERRORS", xid), ("GPU_TEMP", 61)]
    return "".join(
        f'# TYPE DCGM_FI_DEV_{name} gauge\nDCGM_FI_DEV_{name}{{gpu="{gpu}",{LABELS}}} {value}\n'
        for name, value in rows
        for gpu in range(2)
    ).encode()


def diagnose(gpus: Reading, name: str = "healthy") -> Diagnosis:
    state = STATES[name][0]
    pages = [read_page(page(state, t).encode()) for t in (0, 5)]
    window = ServerWindow("GET x", "vllm", engine_windows(pages), 2, 5.0, health=200)
    return Engine(load()).diagnose(Case(reading=evidence_of(window) + gpus))


def test_a_busy_gpu_at_its_power_cap_is_nothing_to_speak_of() -> None:
    found = evidence_of_gpus("GET x", [exporter(), exporter()])
    values = {item.name: item.value for item in found.evidence}
    assert values == {"gpu.utilization_percent": 95.0, "gpu.clocks_held": "no"}
    assert diagnose(found).verdict == "healthy"


def test_heat_that_holds_the_clocks_down_is_the_cause() -> None:
    answer = diagnose(evidence_of_gpus("GET x", [exporter(reasons=0x40)]))
    assert answer.causes[0].id == "gpu/throttling"
    assert "gpu0=64" in answer.causes[0].because[0].text


def test_an_xid_names_the_fault() -> None:
    assert diagnose(evidence_of_gpus("GET x", [exporter(xid=79)])).causes[0].id == "gpu/fallen-off-bus"


def test_slow_tokens_over_idle_gpus_are_not_the_gpus_fault() -> None:
    answer = diagnose(evidence_of_gpus("GET x", [exporter(busy=12)]), "slow-decode")
    assert answer.causes[0].id == "performance/low-gpu-utilization"
    assert "performance/slow-decode" in {row.id for row in answer.ruled_out}


def test_what_is_no_exporter_gives_no_facts() -> None:
    for body in (b"", b"<html>", b'DCGM_FI_DEV_GPU_UTIL{gpu="0"} NaN\n', page(one(WORKING), 0).encode()):
        assert evidence_of_gpus("GET x", [body]).evidence == ()
