"""What a node says of itself, judged here: as the checks of this machine judge it, and whatever it says."""

from __future__ import annotations

import ast
import base64
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.tools.gpu import fake_nvml
from tools.gpu import check as gpu
from tools.gpu import facts as gpu_facts
from tools.host.check import HostInput, look
from tools.kernel_log import KernelLog
from tools.launchers.frames import FrameReader
from tools.launchers.site import GATHERING, Part, Site, bundled, gathering_modules, node_program
from tools.launchers.site_checks import bounded, reports_of
from tools.sanity.results import Check, Report

ROOT = Path(__file__).parents[3]
WORKER = (ROOT / "tools" / "launchers" / "checks_worker.py").read_text("utf-8")


#: What NVIDIA's library would be on a node: one card with errors in its memory; every other function is missing.
NVML = """
#include <string.h>
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "refused"; }
int nvmlSystemGetDriverVersion(char *to, unsigned most) { strncpy(to, "580.82.07", most); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { *to = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *to) { *to = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **to) { *to = (void *)1; return 0; }
int nvmlDeviceGetName(void *card, char *to, unsigned most) { strncpy(to, "NVIDIA H100", most); return 0; }
int nvmlDeviceGetTotalEccErrors(void *card, int kind, int counter, unsigned long long *to) { *to = 3; return 0; }
"""


def looked(*before: str, seconds: float = 15, **environment: str) -> tuple[Part, str]:
    """This machine as the program sees it that travels to nodes, and all that it printed."""
    given = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), "HF_HUB_OFFLINE": "1", **environment}
    ran = subprocess.run(
        [*before, sys.executable, "-I", "-", "--task", "0", "--name", "n1", "--checks", str(seconds)],
        input=node_program(), env=given, capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    site, reader = Site(["n1"]), FrameReader()
    for line in ran.stdout.encode().splitlines():
        if event := reader.read(line):
            site.take(event)
    return site.parts[0], ran.stdout


def rows_of(part: Part) -> dict[str, list[Check]]:
    return by_id(reports_of(part, "en", "late", "garbled"))


def by_id(reports: list[Report]) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    for report in reports:
        for row in report.checks:
            found.setdefault(row.id, []).append(row)
    return found


def test_a_node_is_judged_as_this_machine_is() -> None:
    part, _ = looked()
    there = rows_of(part)
    here = by_id([look(HostInput(pid=os.getpid()))])
    for row in ("host.shm", "host.memlock", "host.files", "host.cpu", "host.cache", "host.compiler", "host.headers"):
        assert [(r.status, r.title, r.text) for r in there[row]] == [(r.status, r.title, r.text) for r in here[row]], (
            row
        )
    assert [row.value for row in there["host.shm"]] == [row.value for row in here["host.shm"]]
    assert {"net.interface", "net.hub"} & set(there) and "host.no-server" not in there
    assert any(name.startswith("gpu.") for name in there) and "cluster.check" not in there
    assert part.over and part.ended["checks"]["status"] == 0


def test_faults_of_a_node_are_named() -> None:
    script = ["sh", "-c", 'ulimit -n 300 && exec "$@"', "sh"]
    part, _ = looked(*script, CUDA_LAUNCH_BLOCKING="1", NCCL_SOCKET_IFNAME="ib77", VLLM_HOST_IP="192.0.2.77")
    found = rows_of(part)
    assert (found["host.files"][0].status, found["host.files"][0].value) == ("note", 300)
    assert [(row.status, row.value) for row in found["host.lingering"]] == [("bad", "CUDA_LAUNCH_BLOCKING=1")]
    assert found["net.ifname"][0].status == "bad" and found["net.address"][0].status == "bad"


def test_shared_memory_and_a_cache_that_is_read_only_are_those_of_the_node(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:  # fmt: skip
        pytest.skip("namespaces need root here")
    script = f"mount -t tmpfs -o size=64k none /dev/shm && mount -t tmpfs -o ro,size=1m none {tmp_path}"
    part, _ = looked("unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh", VLLM_CACHE_ROOT=str(tmp_path))
    found = rows_of(part)
    assert (found["host.shm"][0].status, found["host.shm"][0].value) == ("bad", "64 KiB / 64 KiB")
    assert "tmpfs" in str(found["host.cache-readonly"][0].value)


def test_passwords_stay_on_the_node() -> None:
    environment = {"https_proxy": "http://joe:s3cret@proxy.internal:3128", "HF_ENDPOINT": "https://joe:s3cret@127.0.0.1:9", "HF_HUB_OFFLINE": "0"}  # fmt: skip
    part, printed = looked(**environment)
    assert "s3cret" not in printed and "proxy.internal" in printed
    (hub,) = rows_of(part)["net.hub"]
    assert hub.status == "bad" and "refused" in hub.text


def test_a_node_without_an_interpreter_of_ours_has_pynvml_and_needs_nothing_of_its_own(tmp_path: Path) -> None:
    """A bare Python, as in an image; modules of the same names beside it are not taken for ours."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('a package of the site')")
    base = Path(sys.executable).resolve()
    ran = subprocess.run(
        [str(base), "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{bundled(WORKER, {'modules': gathering_modules()})}"],
        capture_output=True, text=True, timeout=60, check=False, env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    said = {event["part"]: event for event in map(json.loads, ran.stdout.splitlines())}
    assert {name: event["event"] for name, event in said.items()} == dict.fromkeys(("host", "network", "gpu"), "facts")


def test_a_part_that_hangs_or_fails_keeps_none_of_the_others_back() -> None:
    texts = json.loads(zlib.decompress(base64.b64decode(gathering_modules())))
    texts["tools.host.facts"] = "import threading\nthreading.Event().wait()"  # as statvfs does on a dead file server
    texts["tools.network.facts"] = "raise OSError('sysfs\x1b[31m is gone')"
    modules = base64.b64encode(zlib.compress(json.dumps(texts).encode())).decode()
    ran = subprocess.run(
        [sys.executable, "-c", bundled(WORKER, {"modules": modules}), "--seconds", "3"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    part = Part(0, "n1")
    part.said["checks"] = [json.loads(line) for line in ran.stdout.splitlines()]
    graphics, host, network = reports_of(part, "en", "too late", "garbled")
    assert graphics.checks[0].id != "cluster.check"
    assert "too late" in host.checks[0].text and (host.verdict, len(host.checks)) == ("unknown", 1)
    assert "sysfs" in network.checks[0].text and "\x1b" not in network.checks[0].text


def test_the_card_of_a_node_is_read_through_the_pynvml_that_travels(tmp_path: Path) -> None:
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        pytest.skip("no C compiler here")
    (tmp_path / "nvml.c").write_text(NVML)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", tmp_path / "nvml.c"], check=True, timeout=60)  # fmt: skip
    part, _ = looked(LD_LIBRARY_PATH=str(tmp_path))
    found = rows_of(part)
    assert [(row.status, "GPU 0" in f"{row.value}") for row in found["gpu.ecc"]] == [("bad", True)], found
    assert "NVIDIA H100" in str(found["gpu.card"][0].value) and "580.82.07" in str(found["gpu.driver-age"][0].value)


@pytest.mark.parametrize(
    "answers",
    [
        {"nvmlDeviceGetTotalEccErrors": 3}, {"nvmlDeviceGetRemappedRows": (1, 1, 0, 1)}, {"links_down": (3, 4)}, {"fabric": (2, 0)},
        {"nvmlDeviceGetCurrentClocksEventReasons": 0x40}, {"nvmlDeviceGetCurrPcieLinkWidth": 4}, {"nvmlDeviceGetMigMode": (1, 1)},
    ],
)  # fmt: skip
def test_cards_of_a_node_are_judged_as_ours(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVRM: Xid (PCI:0000:3b:00): 79, pid=812, GPU has fallen off the bus."
    monkeypatch.setattr(gpu_facts, "kernel_log", lambda: KernelLog((line,)))
    module = fake_nvml.FakeNvml({}, answers)
    here = gpu.look(gpu.GpuInput(), module)
    there = gpu_facts.gather(module)
    (report, *_) = reports_of(saying(gpu=json.loads(json.dumps(dataclasses.asdict(there)))), "en", "late", "garbled")
    assert [row.model_dump() for row in report.checks] == [row.model_dump() for row in here.checks]
    assert report.facts == here.facts and report.verdict == "bad"


def saying(**facts: Any) -> Part:
    part = Part(0, "n1")
    part.said["checks"] = [{"event": "facts", "part": name, "facts": value} for name, value in facts.items()]
    return part


def test_whatever_a_node_says_it_costs_only_its_own_rows() -> None:
    part, _ = looked()
    real = {event["part"]: event["facts"] for event in part.said["checks"]}
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    hostile: list[dict[str, Any]] = [
        {}, {"host": None}, {"host": []}, {"host": "x" * 100_000}, {"host": deep}, {"host": {**real["host"], "memory": "much"}},
        {"host": {**real["host"], "memory": math.inf}}, {"host": {**real["host"], "cpus": 10**400}}, {"host": {**real["host"], "shm": deep}},
        {"network": {**real["network"], "address": "not an address"}}, {"network": {**real["network"], "resolved": ["x", "y"]}},
        {"network": {**real["network"], "rows": [{"name": "e"}]}}, {"gpu": {"machine": {"cards": [{"index": "x"}]}}},
        {"gpu": {"machine": {"driver": "1" * 10_000, "cards": []}, "torch_cuda": [13, 0]}}, {"gpu": {"machine": {"cards": [7] * 10_000}}},
    ]  # fmt: skip
    for given in hostile:
        reports = reports_of(saying(**given), "zh", "没有按时", "格式不符")
        assert [report.tool for report in reports] == ["check_gpu", "check_host", "check_network"]
        for name, report in zip(("gpu", "host", "network"), reports, strict=True):
            if name not in given:
                assert [(row.id, row.status, "没有按时" in row.text) for row in report.checks] == [("cluster.check", "unknown", True)]  # fmt: skip
    shown = saying(host={**real["host"], "compiler": "\x1b[31mgcc\x00" + "y" * 9000, "environment": {"NCCL_DEBUG": "sk-" + "a" * 48, "EVIL": "1"}})  # fmt: skip
    text = json.dumps([report.model_dump() for report in reports_of(shown, "en", "late", "garbled")])
    assert "\\u001b" not in text and "\\u0000" not in text and '"EVIL' not in text and "y" * 501 not in text


def test_a_program_that_cannot_run_on_a_node_says_why() -> None:
    part = Part(0, "n1")
    part.ended["checks"] = {"status": 1, "late": False, "stderr": "Traceback\nMemoryError: no room\x1b[0m\n"}
    assert {row.text for row in rows_of(part)["cluster.check"]} == {"gave no answer: MemoryError: no room"}
    part.ended["checks"] = {"status": -9, "late": True, "stderr": "x"}
    assert {row.text for row in rows_of(part)["cluster.check"]} == {"gave no answer: late"}


def test_facts_are_cut_to_their_size() -> None:
    cut: Any = bounded({"a" * 5000: ["b" * 5000] * 5000})
    ((name, values),) = cut.items()
    assert len(name) == len(values[0]) == 600 and len(values) == 512


@pytest.mark.parametrize("name", [*GATHERING, "tools.launchers.checks_worker", "tools.launchers.node_worker"])
def test_what_travels_is_plain_python_3_9_and_imports_nothing_that_stays_here(name: str) -> None:
    text = (ROOT / f"{name.replace('.', '/')}.py").read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 9))
    assert "from __future__ import annotations" in text and "slots=True" not in text  # 3.10 has the first slots
    mine = {"amdsmi", "pynvml", *GATHERING}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for imported in names:
            assert imported in mine or imported.partition(".")[0] in sys.stdlib_module_names, imported
