"""vLLM's custom all-reduce: when its stage is skipped and why, and what the bisect makes of its failures.

No GPU is needed: the class that stands in for vLLM's refuses what vLLM 0.32.0's refuses, and the runs that are judged are
events as the worker prints them, with verdicts of the worker's own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from assistant.faces.cli.sanity import _diagnosis
from assistant.security.consent import agree
from assistant.security.roles import LOCAL
from tools import registry
from tools.registry import Context
from tools.sanity import nccl, rank_worker
from tools.sanity.choose import Chosen
from tools.sanity.launch import Ran
from tools.sanity.nccl_bisect import CUSTOM, Trial, custom_flag, runs_without_custom, trials_for

STAGES = list(rank_worker.STAGES)
MODULE = "vllm.distributed.device_communicators.custom_all_reduce"
LIMIT = 8 << 20


# --- the stage --------------------------------------------------------------------------------------------------------


class Half:
    """A tensor of 16-bit numbers as far as the stage looks at one; all its elements are alike."""

    def __init__(self, count: int, value: float) -> None:
        self.count, self.value = count, value

    def numel(self) -> int:
        return self.count

    def element_size(self) -> int:
        return 2

    def fill_(self, value: float) -> None:
        self.value = value


class Machine:
    """The cards of a node and vLLM's build: what the class that is looked at decides by."""

    def __init__(self) -> None:
        self.world, self.nvlink, self.peers, self.kernels, self.version = 2, False, True, True, "0.32.0"
        self.off_by, self.two_steps = 0.0, False
        self.torch = types.SimpleNamespace(
            float16="half",
            full=lambda shape, value, dtype, device: Half(shape[0], value),
            cuda=types.SimpleNamespace(
                is_initialized=lambda: True,
                empty_cache=lambda: None,
                synchronize=lambda: None,
                can_device_access_peer=lambda one, other: self.peers,
                CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: None),
                graph=Nothing,
            ),
        )


class Nothing:
    def __init__(self, *given: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def all_reduce_of(machine: Machine, module: Any) -> type:
    """The class of vLLM 0.32.0 with its refusals in its order, and its words."""
    logger = logging.getLogger(MODULE)
    silence = " To silence this warning, specify disable_custom_all_reduce=True explicitly."

    class CustomAllreduce:
        def __init__(self, group: Any, device: Any, max_size: int = LIMIT) -> None:
            self.disabled, self.max_size = True, max_size
            assert group == "gloo", "CustomAllreduce should be attached to a non-NCCL group."
            if not machine.kernels:
                logger.info("Custom allreduce is disabled because of missing custom allreduce library")
            elif machine.world not in (2, 4, 6, 8, 16):
                logger.warning("Custom allreduce is disabled due to an unsupported world size: %d. Supported world sizes: %s.%s", machine.world, "[2, 4, 6, 8, 16]", silence)  # fmt: skip
            elif machine.world > 2 and not machine.nvlink:
                logger.warning("Custom allreduce is disabled because it's not supported on more than two PCIe-only GPUs.%s", silence)  # fmt: skip
            elif machine.two_steps:
                self.finalize_p2p = self.finish  # type: ignore[method-assign]
            else:
                self.finish()

        def finish(self) -> None:
            if module.gpu_p2p_access_check(0, 1):
                self.disabled = False
            else:
                logger.warning("Custom allreduce is disabled because your platform lacks GPU P2P capability or P2P test failed.%s", silence)  # fmt: skip

        def custom_all_reduce(self, data: Half) -> Half | None:
            size = data.numel() * data.element_size()
            if self.disabled or size % 16 or size >= self.max_size:
                return None
            return self.made(data)

        def made(self, data: Half) -> Half:
            total = sum(range(1, machine.world + 1))

            class Out(Half):
                """What the kernel writes follows its input, as the buffer of a captured graph does."""

                @property
                def value(self) -> float:
                    return data.value * total + machine.off_by  # data of rank 0, whose share is 1

                @value.setter
                def value(self, value: float) -> None:
                    pass

            return Out(data.count, 0.0)

        def capture(self) -> Nothing:
            return Nothing()

    return CustomAllreduce


class Equal:
    def __init__(self, held: bool) -> None:
        self.held = held

    def all(self) -> bool:
        return self.held


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine()
    module = types.ModuleType(MODULE)
    vllm = types.ModuleType("vllm")
    vllm.__version__ = found.version  # type: ignore[attr-defined]
    module.gpu_p2p_access_check = None  # type: ignore[attr-defined]
    module.CustomAllreduce = all_reduce_of(found, module)  # type: ignore[attr-defined]
    names = MODULE.split(".")
    parents = [".".join(names[:n]) for n in range(1, len(names))]
    for name in parents:
        monkeypatch.setitem(sys.modules, name, vllm if name == "vllm" else types.ModuleType(name))
    sys.modules[parents[-1]].custom_all_reduce = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    torch, dist = types.ModuleType("torch"), types.ModuleType("torch.distributed")
    dist.new_group = lambda backend, timeout: backend  # type: ignore[attr-defined]
    torch.distributed = dist  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", dist)
    monkeypatch.setattr(logging.getLogger(MODULE), "level", logging.INFO)
    monkeypatch.setattr(Half, "__eq__", lambda self, other: Equal(self.value == other))
    monkeypatch.setattr(Half, "flatten", lambda self: [self.value], raising=False)
    yield found


def stage(machine: Machine, *arguments: str) -> dict[str, Any]:
    options = rank_worker.parse(["--ranks", str(machine.world), *arguments])
    rank = rank_worker.Rank(0, options, lambda *a, **k: None, lambda: 0)
    rank.torch = machine.torch
    return rank.stage_custom()


def test_it_adds_up_small_and_large_sums_and_a_graph(machine: Machine) -> None:
    assert stage(machine) == {"custom_bytes": [16 << 10, 4 << 20]}
    machine.two_steps = True
    assert stage(machine) == {"custom_bytes": [16 << 10, 4 << 20]}


def test_a_wrong_sum_is_a_fault(machine: Machine) -> None:
    machine.off_by = 1.0
    with pytest.raises(rank_worker.Fault, match=r"the sum is 4\.0, expected 3\.0"):
        stage(machine)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"kernels": False},
            "custom-refused: Custom allreduce is disabled because of missing custom allreduce library",
        ),
        ({"world": 3}, r"custom-refused: .* unsupported world size: 3\. Supported world sizes: \[2, 4, 6, 8, 16\]\.$"),
        ({"world": 4}, r"custom-refused: .* not supported on more than two PCIe-only GPUs\.$"),
        ({"peers": False}, r"custom-refused: .* lacks GPU P2P capability or P2P test failed\.$"),
        ({"peers": False, "two_steps": True}, r"custom-refused: .* lacks GPU P2P capability"),
        ({"world": 1}, "one-rank"),
    ],
)
def test_what_vllm_declines_is_skipped_in_its_own_words(machine: Machine, changes: dict[str, Any], why: str) -> None:
    for name, value in changes.items():
        setattr(machine, name, value)
    with pytest.raises(rank_worker.Skip, match=why):
        stage(machine)


def test_what_the_test_itself_leaves_out(machine: Machine) -> None:
    with pytest.raises(rank_worker.Skip, match="custom-left-out"):
        stage(machine, "--no-custom-all-reduce")
    machine.world = 4
    with pytest.raises(rank_worker.Skip, match="custom-several-nodes"):
        stage(machine, "--here", "2")
    with pytest.raises(rank_worker.Skip, match="no-gpu-stage"):
        stage(machine, "--cpu-only")


def test_a_form_that_is_not_known_is_said_and_not_guessed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until 0.4.2 the class took rank, world size and a list of handles, or there was none."""
    older = type("CustomAllreduce", (), {"__init__": lambda self, rank, world_size, full_nvlink: None})
    for kind in (older, None):
        monkeypatch.setattr(sys.modules[MODULE], "CustomAllreduce", kind)
        with pytest.raises(rank_worker.Skip, match=r"custom-unknown-form: 0\.32\.0"):
            stage(machine)


def test_sizes_stay_below_the_limit_and_are_multiples_of_16(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM lowers the limit where another communicator takes the large sums (CUSTOM_ALL_REDUCE_MAX_SIZES)."""
    kind = sys.modules[MODULE].CustomAllreduce  # type: ignore[attr-defined]
    monkeypatch.setattr(kind.__init__, "__defaults__", (1000,))
    assert stage(machine) == {"custom_bytes": [496]}


# --- the bisect -------------------------------------------------------------------------------------------------------

Broken = Callable[[Mapping[str, str], Sequence[str]], tuple[str, dict[str, Any]] | None]


def events(broken: tuple[str, dict[str, Any]] | None, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What two ranks on two cards print; ``broken`` is the stage that both fail in and how, None where all is well."""
    told: list[dict[str, Any]] = [{"event": "start", "ranks": 2, "stages": dict(rank_worker.STAGES), "python": "p"}]
    options = argparse.Namespace(ranks=2, here=2)
    ranks = [rank_worker.Watched(n, 0, -1, -1, -1) for n in range(2)]
    for rank in ranks:
        for name in STAGES:
            rank.stage = name
            told.append({"event": "begin", "rank": rank.rank, "stage": name})
            if name == "custom" and "--no-custom-all-reduce" in arguments:
                told.append({"event": "skipped", "rank": rank.rank, "stage": name, "why": "custom-left-out"})
                continue
            if broken is not None and name == broken[0]:
                how = broken[1]
                if "signal" in how:
                    rank.status = how["signal"]
                elif how["kind"] != "stage-hang":
                    rank.fault = {"stage": name, "ranks": None, "facts": {}, **how}
                    rank.status = 256
                    told.append({"event": "failed", "at": 1.0, "rank": rank.rank, **rank.fault})
                break
            facts = {"vllm": "0.11.0"} if name == "vllm" else {}
            rank.passed[name] = 0.1
            told.append({"event": "done", "rank": rank.rank, "stage": name, "seconds": 0.1, "facts": facts})
        else:
            rank.status = 0
    found = rank_worker.name_the_fault(ranks, options)
    told.append({"event": "verdict", "passed": not any(f["severity"] == "bad" for f in found), "findings": found})
    return told


@pytest.fixture
def bisected(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nccl.NcclReport]:
    def run(broken: Broken, command: Sequence[str] = ()) -> nccl.NcclReport:
        server = types.SimpleNamespace(main=types.SimpleNamespace(command=tuple(command))) if command else None
        monkeypatch.setattr(nccl, "choose", lambda python, pid: Chosen(("p",), {}, server))  # type: ignore[arg-type]
        monkeypatch.setattr(nccl, "refuse_busy", lambda permitted, cpu_only: None)

        async def program(python: Any, source: str, arguments: Sequence[str], *, environment: Mapping[str, str], **rest: Any) -> Ran:  # fmt: skip
            assert source == nccl.script()
            rank_worker.parse(list(arguments))  # it knows every one of them
            return Ran(events=events(broken(environment, arguments), arguments), status=0)

        monkeypatch.setattr(nccl, "run_program", program)
        registry.discover()
        action, given = registry.get("run_nccl_test"), {"ranks": 2}
        report = asyncio.run(action.call(given, Context(consent=agree(LOCAL, action, given))))
        assert isinstance(report, nccl.NcclReport)
        return report

    return run


WRONG = {"kind": "wrong-result", "text": "the sum is 0.0, expected 3.0"}


def test_where_only_the_custom_all_reduce_fails_the_flag_is_the_cure(bisected: Callable[..., nccl.NcclReport]) -> None:
    def broken(environment: Mapping[str, str], arguments: Sequence[str]) -> Any:
        return None if "--no-custom-all-reduce" in arguments else ("custom", WRONG)

    report = bisected(broken)
    assert [(t.change, t.passed) for t in report.tried] == [("--disable-custom-all-reduce", True)]
    assert report.cure == "--disable-custom-all-reduce"
    assert "decode a few percent slower" in str(report.cost)
    assert "With --disable-custom-all-reduce it passes" in report.summary
    assert {f.name: f.value for f in report.facts}["collective.cure"] == CUSTOM
    assert {row.stage: row.status for row in report.stages}["vllm"] == "ok"


def test_the_diagnosis_of_it_gives_the_flag_for_the_version(bisected: Callable[..., nccl.NcclReport]) -> None:
    report = bisected(lambda environment, arguments: None if "--no-custom-all-reduce" in arguments else ("custom", {"kind": "stage-hang"}))  # fmt: skip
    diagnosis = _diagnosis(report, "en")
    assert (diagnosis.verdict, diagnosis.causes[0].id) == ("cause", "distributed/p2p-or-custom-allreduce")
    assert diagnosis.vllm_version == "0.11.0"
    first = diagnosis.causes[0].fixes[0]
    assert first.flags == ("--disable-custom-all-reduce",)
    assert first.work_around


def test_broken_peer_access_needs_both(bisected: Callable[..., nccl.NcclReport]) -> None:
    """NCCL passes without peer-to-peer, and then vLLM's kernel meets the same path: one switch is not enough."""

    def broken(environment: Mapping[str, str], arguments: Sequence[str]) -> Any:
        if environment.get("NCCL_P2P_DISABLE") != "1":
            return "nccl", {"kind": "stage-hang"}
        return (
            None if "--no-custom-all-reduce" in arguments else ("custom", {"kind": "cuda-error", "text": "CUDA error"})
        )

    report = bisected(broken)
    both = "NCCL_P2P_DISABLE=1 --disable-custom-all-reduce"
    assert [(t.change, t.passed) for t in report.tried] == [("NCCL_P2P_DISABLE=1", False), (both, True)]
    assert report.cure == both
    assert "host memory" in str(report.cost)
    assert "decode a few percent slower" in str(report.cost)
    assert {f.name: f.value for f in report.facts}["collective.cure"] == "NCCL_P2P_DISABLE"
    assert _diagnosis(report, "zh").causes[0].id == "distributed/p2p-or-custom-allreduce"


def test_what_does_not_come_back_is_cured_by_nothing(bisected: Callable[..., nccl.NcclReport]) -> None:
    """The first run fails, every later one passes, whatever was changed."""
    runs: list[Any] = []

    def broken(environment: Mapping[str, str], arguments: Sequence[str]) -> Any:
        runs.append(arguments)
        return ("custom", WRONG) if len(runs) == 1 else None

    report = bisected(broken)
    assert [(t.change, t.passed) for t in report.tried] == [
        ("--disable-custom-all-reduce", True),
        ("nothing changed", True),
    ]
    assert (report.cure, report.cost, len(runs)) == (None, None, 3)
    assert "collective.cure" not in {f.name for f in report.facts}
    assert report.verdict == "bad" and "comes and goes" in report.summary


def test_a_switch_that_cures_alone_is_all_that_is_reported(bisected: Callable[..., nccl.NcclReport]) -> None:
    report = bisected(lambda environment, arguments: None if environment.get("NCCL_CUMEM_ENABLE") == "0" else ("nccl", {"kind": "nccl-failed", "text": "x"}))  # fmt: skip
    assert report.cure == "NCCL_CUMEM_ENABLE=0"
    assert [t.change for t in report.tried] == ["NCCL_P2P_DISABLE=1", "NCCL_CUMEM_ENABLE=0"]


@pytest.mark.parametrize(
    "how", [{"signal": 9}, {"signal": 15}, {"kind": "out-of-memory", "text": "CUDA out of memory"}]
)
def test_what_happened_to_a_rank_from_outside_accuses_nobody(bisected: Callable[..., nccl.NcclReport], how: dict[str, Any]) -> None:  # fmt: skip
    """Without the stage all would pass, whoever killed the rank in it."""
    report = bisected(lambda environment, arguments: None if "--no-custom-all-reduce" in arguments else ("custom", how))
    assert report.verdict == "bad"
    assert (report.tried, report.cure) == ([], None)


def test_a_kernel_that_ends_its_process_is_accused(bisected: Callable[..., nccl.NcclReport]) -> None:
    """CUDACHECK in custom_all_reduce.cuh prints and calls exit(1); a bad address is SIGSEGV."""
    for status in (256, 11):
        report = bisected(lambda environment, arguments, status=status: None if "--no-custom-all-reduce" in arguments else ("custom", {"signal": status}))  # fmt: skip
        assert report.cure == "--disable-custom-all-reduce"


def test_a_server_that_runs_without_it_is_tested_without_it(bisected: Callable[..., nccl.NcclReport]) -> None:
    def broken(environment: Mapping[str, str], arguments: Sequence[str]) -> Any:
        return None if "--no-custom-all-reduce" in arguments else ("custom", WRONG)

    report = bisected(broken, ["vllm", "serve", "m", "--disable-custom-all-reduce"])
    assert (report.verdict, report.tried) == ("ok", [])
    row = next(row for row in report.stages if row.stage == "custom")
    assert (row.status, row.why) == ("skipped", "left out, as --disable-custom-all-reduce does")


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("vllm serve m", False),
        ("vllm serve m --disable-custom-all-reduce", True),
        ("vllm serve m --disable_custom_all_reduce", True),
        ("vllm serve m --disable-custom-all-reduce --no-disable-custom-all-reduce", False),
    ],
)
def test_whether_a_server_runs_without_it(command: str, without: bool) -> None:
    assert runs_without_custom(command.split()) is without


def test_the_flag_is_the_one_of_the_version() -> None:
    assert {custom_flag(version) for version in (None, "0.4.1", "0.11.0", "0.32.0")} == {"--disable-custom-all-reduce"}
    assert Trial(custom=False).shown(None) == "--disable-custom-all-reduce"


def test_the_variables_of_nccl_are_not_tried_on_what_uses_no_nccl() -> None:
    assert trials_for("custom", "stage-hang", "", {}, ["eth0"]) == [Trial(custom=False)]
    assert trials_for("custom", "rank-stopped", "state T", {}, ["eth0"]) == []
    assert len(trials_for("nccl", "stage-hang", "", {}, ["eth0"])) == 6
