"""An open question that a tool can answer is given to the tool, and what it finds decides."""

from __future__ import annotations

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.model import Case
from knowledge.catalog import load
from tools.evidence import Reading
from tools.sanity.results import Fact, Report, reading_of

ENGINE = Engine(load())


def told(tool: str, **facts: str | float | bool) -> Reading:
    rows = [Fact(name=name.replace("__", "."), value=value, quote="q") for name, value in facts.items()]
    return reading_of([Report(tool=tool, verdict="bad", summary="", facts=rows)])


def test_a_hang_of_several_gpus_is_given_to_the_tests() -> None:
    steps = ENGINE.diagnose(Case(text="it hangs, two GPUs, nothing is printed")).next_steps
    tools = {step.tool: step for step in steps if step.action == "run_tool"}
    assert set(tools) == {"run_nccl_test", "capture"}
    assert tools["run_nccl_test"].effect == "loads"
    assert "vllm-diagnose sanity nccl" in tools["run_nccl_test"].text


@pytest.mark.parametrize(
    ("reading", "cause"),
    [
        (told("run_nccl_test", collective__fault="port-blocked", collective__stage="rendezvous"), "distributed/rendezvous-failed"),
        (told("run_nccl_test", collective__fault="wrong-interface", collective__stage="gloo"), "distributed/wrong-network-interface"),
        (told("run_nccl_test", collective__fault="shm-too-small", host__shm_bytes=65536.0), "distributed/shm-too-small"),
        (told("run_nccl_test", collective__fault="port-in-use"), "install/port-in-use"),
        (told("run_nccl_test", collective__fault="stage-hang", collective__stage="nccl"), "distributed/nccl-hang"),
        (told("run_nccl_test", collective__fault="stage-hang", collective__stage="nccl", collective__cure="NCCL_P2P_DISABLE"), "distributed/p2p-or-custom-allreduce"),
        (told("run_nccl_test", collective__fault="rank-died", collective__stage="gloo"), "distributed/worker-died"),
        (told("capture", capture__stuck="lock", capture__process="EngineCore"), "engine/stalled"),
        (told("check_gpu", gpu__ecc_uncorrected=2), "gpu/uncorrectable-ecc"),
        (told("check_gpu", gpu__lost=True), "gpu/fallen-off-bus"),
        (told("check_gpu", gpu__driver_too_old=True), "install/driver-too-old"),
        (told("check_gpu", gpu__fabric="not-started"), "gpu/nvlink-or-fabric"),
        (told("check_gpu", gpu__slowed_by="hw-thermal"), "gpu/throttling"),
        (told("check_network", network__interface_problem="missing"), "distributed/wrong-network-interface"),
        (told("run_compile_test", compile__fault="no-compiler"), "install/compiler-missing"),
        (told("run_compile_test", compile__fault="compiler-error"), "install/torch-compile-failed"),
        (told("measure_loading", loading__limit="disk"), "model/slow-disk-load"),
    ],
)  # fmt: skip
def test_what_a_tool_found_decides(reading: Reading, cause: str) -> None:
    diagnosis = ENGINE.diagnose(Case(reading=reading))
    assert diagnosis.verdict == "cause"
    assert diagnosis.causes[0].id == cause


@pytest.mark.parametrize(
    "reading",
    [
        told("run_nccl_test", collective__fault="none"),
        told("check_gpu", gpu__count=8, gpu__name="H100", gpu__driver="580.82.07"),
        told("check_host", host__shm_bytes=8e9, host__compiler="yes", host__cpus=32.0),
        told("check_network", host__name_resolves="loopback", network__address="10.0.0.4"),
        told("capture", capture__stuck="none"),
        told("run_compile_test", compile__fault="none"),
    ],
)
def test_what_is_in_order_names_no_cause_and_is_no_all_clear(reading: Reading) -> None:
    assert ENGINE.diagnose(Case(reading=reading)).verdict == "unknown"
