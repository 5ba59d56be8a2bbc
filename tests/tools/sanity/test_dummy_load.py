"""`measure_loading` with invented weights: what it decides, what it takes over, what it refuses; and the real vLLM."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from knowledge.catalog import load
from tests.tools.gpu.fake_nvml import GIB, FakeNvml
from tests.tools.sanity.conftest import call
from tools.host import loading
from tools.host.loading import LoadingInput, Times, limit_of
from tools.processes import Process, Server
from tools.registry import ActionError
from tools.sanity import dummy_load, dummy_worker
from tools.sanity.dummy_load import WORKER, engine_arguments, refuse_without_room
from tools.sanity.launch import Ran, run_program

ROOT = Path(__file__).resolve().parents[3]
LAB = ROOT / ".lab"


# --- the decision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "expected", "dummy", "limit"),
    [
        (Times(100, 100, 300), 90, 5, "download"),
        (Times(100, 100), 90, None, "disk"),
        (Times(100, 100), 10, None, "device"),  # by exclusion, as long as nobody measured it
        (Times(100, 110), 10, 100, "device"),
        (Times(100, 110), 90, 8, "disk"),
        (Times(100, 110), 10, 8, "weights"),  # neither: the disk was slower then, or the way to the device is
        (Times(100, 100), 45, 50, "disk"),  # half of it is making the model, the rest is the disk
        (Times(100, 100), 20, 50, "weights"),
        (Times(100, 100), 90, 70, "disk"),  # both would explain it: the larger one
        (Times(100, 100), 70, 90, "device"),
        (Times(10, 10), 0.5, 40, "device"),  # slower now than then
    ],
)
def test_what_a_start_waited_for(times: Times, expected: float, dummy: float | None, limit: str) -> None:
    assert limit_of(times, expected, dummy) == limit


def test_every_limit_has_its_row_and_is_a_choice() -> None:
    catalog = load()
    declared = catalog.observable("loading.limit")
    assert declared is not None
    for limit in ("download", "disk", "device", "weights"):
        assert limit in declared.choices
    for row in ("disk", "device", "download", "disk-measured", "device-measured", "weights-measured"):
        for part in ("", "-note"):
            for lang in ("en", "zh"):
                text = catalog.sentences[f"check-loading.limit-{row}{part}"][lang]
                assert text.format(expected=1, download=2, dummy=3)


@pytest.mark.parametrize(
    ("printed", "times"),
    [
        # vLLM 0.11 on a GPU: the download is inside of what it calls loading the model
        ("Time spent downloading weights for o/m: 20.0 seconds\nLoading weights took 7.5 seconds\nModel loading took 14.9 GiB and 30.25 seconds", Times(7.5, 10.25, 20.0)),
        ("Loading weights took 7.5 seconds\nLoading weights took 9.5 seconds\nModel loading took 14.9 GiB memory and 10.0 seconds", Times(9.5, 10.0)),
        ("Initializing model took 0.5 seconds\nLoading weights took 2.0 seconds", Times(2.0, 2.5)),  # 0.32 on a CPU
        ("Loading model weights took 13.5 GB and 42.0 seconds", Times(42.0, 42.0)),  # 0.7
        ("Loading model weights took 13.5 GB", None),  # before that, only the size
    ],
)  # fmt: skip
def test_what_servers_print_of_their_start_is_read(printed: str, times: Times | None, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(loading, "log_tail", lambda pid: printed)
    assert loading._times(LoadingInput(), server("vllm serve m")) == times
    assert loading._times(LoadingInput(took_s=5.0, download_s=1.0), server("vllm serve m")) == Times(5.0, 5.0, 1.0)


# --- what it takes over, and what it refuses --------------------------------------------------------------------------


def server(command: str) -> Server:
    return Server(Process(1, 0, "S", tuple(command.split()), 0.0, 0.0))


def test_the_servers_arguments_that_decide_about_the_model_are_taken_over() -> None:
    taken = engine_arguments(server("vllm serve m -tp 2 --dtype=float16 --quantization awq --max-model-len 8192 --port 8000 --trust_remote_code"), "/m", 2)  # fmt: skip
    assert taken == {"model": "/m", "tensor_parallel_size": 2, "dtype": "float16", "quantization": "awq", "trust_remote_code": True}  # fmt: skip
    assert engine_arguments(None, "/m", 4) == {"model": "/m", "tensor_parallel_size": 4}
    assert engine_arguments(server("vllm serve m --cpu-offload-gb many"), "/m", 1) == {"model": "/m", "tensor_parallel_size": 1}  # fmt: skip


def test_beside_other_processes_it_takes_what_they_leave() -> None:
    taken = types.SimpleNamespace(total=80 * GIB, free=20 * GIB, used=60 * GIB)
    cards = FakeNvml({}, {"nvmlDeviceGetMemoryInfo": taken})
    assert engine_arguments(None, "/m", 1, share=True, module=cards)["gpu_memory_utilization"] == 0.2
    assert "gpu_memory_utilization" not in engine_arguments(None, "/m", 1, module=cards)
    refuse_without_room(1 << 50, cards)  # with a GPU the weights do not lie in RAM


def test_weights_that_do_not_fit_into_the_ram_are_refused() -> None:
    no_cards = FakeNvml(init=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    refuse_without_room(1, no_cards)
    with pytest.raises(
        ActionError, match=r"its 1048576\.0 GiB of weights do not fit into the [\d.]+ GiB that are free"
    ):
        refuse_without_room(1 << 50, no_cards)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(os.urandom(1 << 20))
    return tmp_path


def test_a_busy_gpu_is_refused_and_its_user_named(weights: Path, bare_python: str, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from tools.gpu import holders
    from tools.gpu.cards import Holder

    monkeypatch.setattr(holders, "busy", lambda module=None: [Holder(0, 733, "vllm serve other", 20 << 30)])
    given = {"model": str(weights), "dummy": True, "python": bare_python}
    with pytest.raises(
        ActionError, match=r"GPU 0 is in use: process 733 \(vllm serve other\) holds 20.0 GiB.*--on-busy-gpu"
    ):
        act("measure_loading", given)
    assert act("measure_loading", {**given, "dummy": False}).verdict == "ok"  # reading files disturbs no GPU


def test_an_interpreter_without_vllm_is_named(weights: Path, bare_python: str, act: Any) -> None:
    report = act("measure_loading", {"model": str(weights), "dummy": True, "python": bare_python, "took_s": 50.0})
    row = next(row for row in report.checks if row.id == "loading.dummy")
    assert row.status == report.verdict == "bad"
    assert "Give --python the one that vLLM uses" in row.text
    assert "loading.dummy_s" not in {fact.name for fact in report.facts}
    assert next(f.value for f in report.facts if f.name == "loading.limit") == "device"  # as without it


def test_the_options_of_the_loading_test_belong_to_it(weights: Path) -> None:
    command = str(Path(sys.executable).with_name("vllm-diagnose"))
    ran = subprocess.run([command, "sanity", "host", "--dummy"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "belong to --loads" in ran.stderr


# --- the worker -------------------------------------------------------------------------------------------------------


def test_the_worker_stands_alone() -> None:
    tree = ast.parse(WORKER.read_text("utf-8"), feature_version=(3, 9))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"vllm"}


def test_a_real_python_3_9_runs_it(oldest_python: str) -> None:
    ran = asyncio.run(run_program([oldest_python], WORKER.read_text("utf-8"), ['{"model": "/m"}'], environment=dict(os.environ), deadline_s=60))  # fmt: skip
    assert (ran.events[-1]["kind"], ran.events[-1]["passed"], ran.stderr) == ("no-vllm", False, "")


#: A package that stands in for vLLM where only the watching is looked at: it logs what vLLM logs, and behaves as told.
FAKE = """
import os, subprocess, sys, time
__version__ = "0.32.0"
class LLM:
    def __init__(self, **given):
        print("given", sorted(given), os.environ["HF_HUB_OFFLINE"], os.environ.get("KEPT"), file=sys.stderr)
        assert given["load_format"] == "dummy" and "unheard_of" not in given
        print("INFO [gpu_model_runner.py:1] Starting to load model m...", flush=True)
        {act}
        print("INFO [gpu_model_runner.py:2] Model loading took 14.9 GiB memory and 3.250000 seconds", flush=True)
        time.sleep(600)
"""
ARGUMENTS = """
class EngineArgs:
    __dataclass_fields__ = dict.fromkeys(["model", "load_format", "enforce_eager", "max_model_len", "skip_tokenizer_init"])
"""


@pytest.fixture
def with_fake(tmp_path: Path, bare_python: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ran]]:
    """Runs the worker's own text over such a package; afterwards no process and no folder of it is left."""
    token = f"DUMMY_TEST={os.getpid()}-{time.monotonic_ns()}"
    folder = tmp_path / "temporary"
    folder.mkdir()

    def run(act: str, seconds: float = 60.0, **arguments: Any) -> Ran:
        package = tmp_path / "site" / "vllm"
        (package / "engine").mkdir(parents=True)
        (package / "__init__.py").write_text(FAKE.replace("{act}", act))
        (package / "engine" / "__init__.py").touch()
        (package / "engine" / "arg_utils.py").write_text(ARGUMENTS)
        source = f"import sys\nsys.path.insert(0, {str(package.parent)!r})\n" + WORKER.read_text("utf-8").replace("from __future__ import annotations\n", "")  # fmt: skip
        given = json.dumps({"model": str(tmp_path), "unheard_of": 1, **arguments})
        environment = {**os.environ, "TMPDIR": str(folder), "KEPT": "yes", token.split("=")[0]: token.split("=")[1]}
        return asyncio.run(run_program([bare_python], source, [given, "--seconds", str(seconds)], environment=environment, deadline_s=60))  # fmt: skip

    yield run
    from tools.processes import all_processes, read

    assert [p for p in all_processes() if p.state != "Z" and token in read(f"/proc/{p.pid}/environ", 1 << 20)] == []
    assert list(folder.iterdir()) == []


def test_it_ends_as_soon_as_the_model_is_there(with_fake: Callable[..., Ran]) -> None:
    ran = with_fake("pass")
    stages = [(e["event"], e["stage"]) for e in ran.events if e["event"] in ("begin", "done")]
    assert stages == [(event, stage) for stage in dummy_load.STAGES for event in ("begin", "done")]
    verdict = ran.events[-1]
    assert (verdict["kind"], verdict["seconds"], verdict["version"]) == ("none", 3.25, "0.32.0")


def test_what_vllm_says_when_it_fails_is_kept(with_fake: Callable[..., Ran]) -> None:
    """What the engine would have run with is in its output too."""
    verdict = with_fake("raise RuntimeError('CUDA out of memory')").events[-1]
    assert (verdict["kind"], verdict["stage"], verdict["text"]) == (
        "failed",
        "load",
        "RuntimeError: CUDA out of memory",
    )
    assert (
        "['enforce_eager', 'load_format', 'max_model_len', 'model', 'skip_tokenizer_init'] 1 yes" in verdict["output"]
    )
    assert "Traceback" in verdict["output"]


def test_one_that_hangs_is_ended_with_all_it_started(with_fake: Callable[..., Ran]) -> None:
    act = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    verdict = with_fake(act, seconds=3.0).events[-1]
    assert (verdict["kind"], verdict["stage"]) == ("late", "load")
    assert 0 < verdict["seconds"] < 4


def test_one_that_dies_is_no_pass(with_fake: Callable[..., Ran]) -> None:
    verdict = with_fake("os.kill(os.getpid(), 9)").events[-1]
    assert (verdict["kind"], verdict["passed"]) == ("failed", False)


def test_one_that_ignores_the_interrupt_is_killed(
    with_fake: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the interpreter's main thread as a kernel of the CPU does."""
    verdict = with_fake("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)").events[-1]
    assert verdict["kind"] == "none"


def test_the_error_is_named_and_not_what_is_printed_after_it() -> None:
    output = "Traceback (most recent call last):\n  File ...\nValueError: bad model\n[rank0] process group was not destroyed\n"
    assert dummy_worker.last_line(output) == "ValueError: bad model"
    assert dummy_worker.last_line("") == "it said nothing"


# --- the real one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lab_python() -> str:
    if not (LAB / "venv/bin/python").exists() or not (LAB / "model").is_dir():
        pytest.skip("the laboratory is not set up (make lab)")
    return str(LAB / "venv/bin/python")


@pytest.mark.lab
def test_the_real_vllm_loads_its_model_without_weights(lab_python: str, act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The weights are made unreadable to vLLM: a load that read them would fail. A start that took long is then explained
    by none of what was measured, one that took as long as this by the device."""
    model = tmp_path / "model"
    model.mkdir()
    for file in (LAB / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "model.safetensors").write_bytes(os.urandom(4 << 20))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = set(Path("/dev/shm").iterdir())
    seen: list[str] = []
    given = {"model": str(model), "dummy": True, "python": lab_python}
    report = call("measure_loading", {**given, "took_s": 1000.0}, lambda share, text: seen.append(text))
    facts = {fact.name: fact.value for fact in report.facts}
    row = next(row for row in report.checks if row.id == "loading.dummy")
    print(f"dummy load: {row.value} s, whole check: {report.seconds} s")
    assert (row.status, "vLLM 0.32.0" in row.text) == ("ok", True), report.log[-2000:]
    assert 0 < facts["loading.dummy_s"] < 300
    assert facts["loading.limit"] == "weights"
    assert [text for text in seen if "MiB" not in text] == ["import of vLLM", "start of the engine", "loading of the model"]  # fmt: skip
    assert list(temporary.iterdir()) == []
    assert [path for path in set(Path("/dev/shm").iterdir()) - before if "vllm_dist" in path.name] == []
    times = Times(facts["loading.dummy_s"], facts["loading.dummy_s"])
    assert limit_of(times, 0.001, facts["loading.dummy_s"]) == "device"


@pytest.mark.lab
def test_a_model_that_the_real_vllm_refuses_is_diagnosed(lab_python: str, act: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in (LAB / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    described = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**described, "architectures": ["NobodyKnowsThisForCausalLM"]}))
    report = act("measure_loading", {"model": str(model), "dummy": True, "python": lab_python})
    row = next(row for row in report.checks if row.id == "loading.dummy")
    assert row.status == report.verdict == "bad"
    assert "NobodyKnowsThisForCausalLM" in report.log
