"""`check_gpu` against an NVML that behaves like the real one, and without any."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest

from tools.gpu import check
from tools.gpu import facts as gathering
from tools.gpu.cards import link_gb_per_s, read_machine
from tools.gpu.holders import busy
from tools.gpu.nvml import GpuLostError, NoNvmlError, opened
from tools.kernel_log import KernelLog


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_nvml", Path(__file__).with_name("fake_nvml.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_nvml"] = module
    spec.loader.exec_module(module)
    return module


fake = _load()
FakeNvml, Refusal, GIB = fake.FakeNvml, fake.Refusal, fake.GIB


@pytest.fixture(autouse=True)
def _quiet_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "kernel_log", lambda: KernelLog(("usb 1-1: new device",)))


def look(module: Any, lang: str = "en") -> Any:
    return check.look(check.GpuInput(lang=lang), module)


def rows(report: Any) -> dict[str, str]:
    return {row.id: row.status for row in report.checks}


def facts(report: Any) -> dict[str, Any]:
    return {fact.name: fact.value for fact in report.facts}


def test_healthy_cards_are_in_order() -> None:
    report = look(FakeNvml({}, {}))
    assert report.verdict == "ok", [row for row in report.checks if row.status != "ok"]
    assert facts(report)["gpu.count"] == 2
    assert facts(report)["gpu.driver"] == "580.82.07"
    assert rows(report)["gpu.p2p"] == "ok"


@pytest.mark.parametrize(
    ("answers", "row", "status", "fact"),
    [
        ({"nvmlDeviceGetTotalEccErrors": 3}, "gpu.ecc", "bad", ("gpu.ecc_uncorrected", 3)),
        ({"nvmlDeviceGetRemappedRows": (1, 0, 1, 0)}, "gpu.rows", "note", ("gpu.row_remapping", "pending")),
        ({"nvmlDeviceGetRemappedRows": (1, 1, 0, 1)}, "gpu.rows", "bad", ("gpu.row_remapping", "failed")),
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x40}, "gpu.slowed", "bad", ("gpu.slowed_by", "hw-thermal")),
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x4}, "gpu.slowed", "note", ("gpu.slowed_by", "power-cap")),
        ({"nvmlDeviceGetCurrPcieLinkWidth": 4}, "gpu.pcie", "bad", ("gpu.pcie_narrow", True)),
        ({"links_down": (3, 4)}, "gpu.nvlink", "bad", ("gpu.nvlinks_down", 2)),
        ({"fabric": (2, 0)}, "gpu.fabric", "bad", ("gpu.fabric", "in-progress")),
        ({"nvmlDeviceGetMigMode": (1, 1)}, "gpu.mig", "note", None),
        ({"nvmlDeviceGetComputeMode": 3}, "gpu.exclusive", "bad", None),
        ({"nvmlDeviceGetCudaComputeCapability": (6, 1)}, "gpu.card", "bad", None),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_card(
    answers: dict[str, Any], row: str, status: str, fact: tuple[str, Any] | None
) -> None:
    report = look(FakeNvml({}, answers))
    assert rows(report)[row] == status
    told = next(r for r in report.checks if r.id == row and r.status == status)
    assert "GPU 1" in told.text or "GPU 1" in str(told.value)
    if fact is not None:
        assert facts(report)[fact[0]] == fact[1]


def test_an_idle_card_may_lower_its_link() -> None:
    assert "gpu.pcie" not in rows(look(FakeNvml({"nvmlDeviceGetCurrPcieLinkGeneration": 1})))
    busy_card = {"nvmlDeviceGetCurrPcieLinkGeneration": 1, "nvmlDeviceGetClockInfo": 1900}
    assert rows(look(FakeNvml(busy_card)))["gpu.pcie"] == "note"


def test_a_completed_fabric_is_no_finding() -> None:
    assert "gpu.fabric" not in rows(look(FakeNvml({"fabric": (3, 0)})))


def test_a_consumer_card_supports_little_and_is_sound() -> None:
    """What real cards refuse: ECC, row remapping, NVLink, MIG, fabric, and the newer names of old functions."""
    no = Refusal(pynvml.NVML_ERROR_NOT_SUPPORTED)
    card = dict.fromkeys(
        ("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetMigMode",
         "nvmlDeviceGetNvLinkVersion", "nvmlDeviceGetTemperatureThreshold"), no,
    )  # fmt: skip
    card |= {"links": 0, "nvmlDeviceGetName": b"NVIDIA GeForce RTX 4090", "nvmlDeviceGetCudaComputeCapability": (8, 9)}
    report = look(FakeNvml(card))
    assert report.verdict == "ok"
    assert facts(report)["gpu.name"] == "NVIDIA GeForce RTX 4090"


def test_an_older_library_knows_the_reasons_by_their_old_name() -> None:
    card = {
        "nvmlDeviceGetCurrentClocksEventReasons": Refusal(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND),
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x8,
    }
    assert facts(look(FakeNvml(card)))["gpu.slowed_by"] == "hw-slowdown"
    lacking = FakeNvml({}, lacks=("nvmlDeviceGetRemappedRows", "nvmlDeviceGetGpuFabricInfoV"))
    assert look(lacking).verdict == "ok"


def test_a_lost_card_is_named_and_the_others_are_read() -> None:
    lost = {"nvmlDeviceGetUUID": Refusal(pynvml.NVML_ERROR_GPU_IS_LOST)}
    report = look(FakeNvml(lost, {}))
    assert rows(report)["gpu.lost"] == "bad"
    assert facts(report)["gpu.lost"] is True
    assert [r.value for r in report.checks if r.id == "gpu.card"] == ["GPU 1: NVIDIA H100 80GB HBM3, sm_90, 79.0 / 80.0 GiB free"]  # fmt: skip


def test_the_lost_error_is_not_swallowed() -> None:
    module = FakeNvml({"nvmlDeviceGetName": Refusal(pynvml.NVML_ERROR_GPU_IS_LOST)})
    with opened(module) as nvml, pytest.raises(GpuLostError):
        nvml.ask("nvmlDeviceGetName", nvml.ask("nvmlDeviceGetHandleByIndex", 0))


def test_who_holds_memory_is_named_and_the_dead_are_told_apart() -> None:
    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=10 * GIB)
    with subprocess.Popen(["true"]) as child:
        child.wait()
    ghost = SimpleNamespace(pid=child.pid, usedGpuMemory=None)  # NVML says nothing about size in some containers
    report = look(FakeNvml({"nvmlDeviceGetComputeRunningProcesses": [mine, ghost, mine]}))
    holders = next(row for row in report.checks if row.id == "gpu.holders")
    assert f"pid {os.getpid()}, 10.0 GiB" in holders.text
    assert str(child.pid) in next(row for row in report.checks if row.id == "gpu.ghosts").text
    assert facts(report)["gpu.other_processes_gib"] == 10.0


def test_busy_counts_memory_without_a_visible_process() -> None:
    assert busy(FakeNvml({})) == []
    taken = SimpleNamespace(total=80 * GIB, free=20 * GIB, used=60 * GIB)
    (holder,) = busy(FakeNvml({}, {"nvmlDeviceGetMemoryInfo": taken}))
    assert (holder.gpu, holder.pid, holder.bytes) == (1, 0, 60 * GIB)
    assert busy(FakeNvml(init=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)) == []


def test_pairs_that_cannot_reach_each_other_are_named() -> None:
    report = look(FakeNvml({}, {}, {}, p2p=1))
    (row,) = [row for row in report.checks if row.id == "gpu.p2p"]
    assert (row.status, row.value) == ("note", "0-1, 0-2, 1-2")


def test_what_the_links_should_give() -> None:
    with opened(FakeNvml({}, {})) as nvml:
        assert link_gb_per_s(read_machine(nvml)) == 18 * 25.0
    with opened(FakeNvml({"links": 0}, {"links": 0, "nvmlDeviceGetMaxPcieLinkGeneration": 4})) as nvml:
        assert link_gb_per_s(read_machine(nvml)) == pytest.approx(16 * 1.969)
    with opened(FakeNvml({})) as nvml:
        assert link_gb_per_s(read_machine(nvml)) is None


@pytest.mark.parametrize(("measured", "status"), [(380.0, "ok"), (150.0, "note"), (20.0, "bad")])
def test_measured_bandwidth_is_held_against_the_links(measured: float, status: str) -> None:
    from tools.sanity.nccl import NcclReport, compare_bandwidth

    report = NcclReport(tool="run_nccl_test", verdict="ok", summary="")
    compare_bandwidth(report, "en", {"1": 5.0, "96": measured}, FakeNvml({}, {}))
    (row,) = report.checks
    assert (row.status, row.value) == (status, measured)
    assert "should give 450.0 GB/s" in row.text
    assert (report.verdict == "bad") == (status == "bad")
    compare_bandwidth(report, "en", {"1": 5.0}, FakeNvml(init=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert len(report.checks) == 1


def test_xid_events_of_the_kernel_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVRM: Xid (PCI:0000:3b:00): 79, pid=812, GPU has fallen off the bus."
    monkeypatch.setattr(gathering, "kernel_log", lambda: KernelLog((line, line)))
    report = look(FakeNvml({}), "zh")
    (row,) = [row for row in report.checks if row.id == "gpu.xid"]
    assert (row.status, row.value) == ("bad", 79)
    assert "0000:3b:00" in row.text
    assert facts(report)["gpu.xid"] == 79
    monkeypatch.setattr(gathering, "kernel_log", lambda: KernelLog(why="/dev/kmsg: Operation not permitted"))
    refused = look(FakeNvml({}))
    assert rows(refused)["gpu.xid"] == "unknown"
    assert "dmesg" in next(row for row in refused.checks if row.id == "gpu.xid").text


def test_a_driver_too_old_for_the_servers_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_torch_cuda", lambda pid: (13, 0))
    report = look(FakeNvml({}, driver="550.54.15", cuda=12040))
    row = next(row for row in report.checks if row.id == "gpu.driver-age")
    assert row.status == "bad"
    assert "needs driver 580.65.6 or newer; this is 550.54.15" in row.text
    assert facts(report)["gpu.driver_too_old"] is True
    monkeypatch.setattr(check, "_torch_cuda", lambda pid: (12, 8))
    assert rows(look(FakeNvml({}, driver="550.54.15", cuda=12040)))["gpu.driver-age"] == "note"


def test_without_a_gpu_it_says_so_and_where_it_looked() -> None:
    module = FakeNvml(init=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(NoNvmlError) as caught, opened(module):
        pass
    assert caught.value.code == 12
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    report = look(module)
    assert rows(report)["gpu.none"] == "note"
    assert "NVML, /dev, /proc/driver/nvidia, PCI" in report.checks[0].text
    assert facts(report)["gpu.count"] == 0


def test_the_library_is_shut_down_again() -> None:
    module = FakeNvml({})
    look(module)
    assert not module.open
    with pytest.raises(pynvml.NVMLError):
        module.nvmlDeviceGetCount()
