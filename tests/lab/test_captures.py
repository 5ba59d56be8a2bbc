"""The laboratory and its captures: the files fit the faults, hold nothing of the machine they came from, and recur."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / ".lab"
FAULTS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text(encoding="utf-8"))
CAPTURES = ROOT / "tests" / "data" / "lab"
MANIFEST: dict[str, dict[str, Any]] = yaml.safe_load((CAPTURES / "manifest.yaml").read_text(encoding="utf-8"))
VERDICTS = {"cause", "healthy", "unknown"}


@pytest.fixture
def scrub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/lab_scrub.py; the scripts are no package, they run on their own."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("lab_scrub", ROOT / "scripts" / "lab_scrub.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_capture_is_in_the_manifest_and_every_entry_has_one() -> None:
    assert {path.parent.name for path in CAPTURES.glob("*/server.log")} == set(MANIFEST)
    assert set(MANIFEST) <= set(FAULTS)


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_the_manifest_says_what_the_fault_says(name: str) -> None:
    entry, fault = MANIFEST[name], FAULTS[name]
    assert entry["verdict"] in VERDICTS
    assert entry.get("cause") == fault.get("cause")
    assert entry.get("also") == fault.get("also")
    assert (entry["verdict"] == "cause") == ("cause" in entry)
    if "verdict" in fault:
        assert entry["verdict"] == fault["verdict"]


def test_captures_are_small_and_name_no_machine() -> None:
    files = [path for path in CAPTURES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    ours = re.compile(
        r"/root/|\.pyenv|/\.lab/|/home/(?!vllm/)\w+|\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d+){2,3}\b"
    )
    found = {
        f"{path.parent.name}/{path.name}": ours.findall(path.read_text(encoding="utf-8", errors="replace"))
        for path in files
    }
    assert not {name: texts for name, texts in found.items() if texts}


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*/responses.jsonl")), ids=lambda p: p.parent.name)
def test_responses_have_their_shape(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        assert set(answer) == {"path", "status", "body"}
        assert answer["path"].startswith("/")


def test_scrubbing_takes_the_machine_out(scrub: ModuleType, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    (lab / "venv").mkdir(parents=True)
    (lab / "venv" / "pyvenv.cfg").write_text("home = /opt/pythons/3.11/bin\n")
    text = (
        f'File "{lab}/venv/lib/python3.11/site-packages/vllm/x.py" model {lab}/captures/f/model and {lab}/model\n'
        f"/opt/pythons/3.11/lib/python3.11/threading.py {lab}/home/.cache tcp://10.1.2.3:41000 on port 41000\n"
        "stays: 127.0.0.1 0.0.0.0 torch 2.13.0 /root/x 12.4.5.8"
    )
    assert scrub.scrubbed(text, lab, "f", 41000) == (
        'File "/opt/venv/lib/python3.11/site-packages/vllm/x.py" model /srv/models/tiny and /srv/models/tiny\n'
        "/usr/lib/python3.11/threading.py /home/vllm/.cache tcp://192.0.2.2:8000 on port 8000\n"
        "stays: 127.0.0.1 0.0.0.0 torch 2.13.0 /home/vllm/x 12.4.5.8"
    )


@pytest.mark.lab
@pytest.mark.parametrize("name", ["healthy", "truncated-weights", "wrong-model-name", "unknown-argument"])
def test_a_fault_runs_again_and_leaves_nothing_running(name: str, tmp_path: Path) -> None:
    """A fresh capture beside the kept one: the server comes up or not as it did then, and no process stays."""
    if not (LAB / "model" / "model.safetensors").exists():
        pytest.skip("there is no laboratory; `make lab` installs it")
    own = tmp_path / "lab"
    own.mkdir()
    for part in ("venv", "model", "home"):
        (LAB / part).mkdir(exist_ok=True)
        (own / part).symlink_to(LAB / part)
    command = [sys.executable, ROOT / "scripts" / "lab.py", "--lab", own, "run", name]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    facts = json.loads((own / "captures" / name / "capture.json").read_text())
    assert facts["up"] == MANIFEST[name]["came_up"]
    assert (own / "captures" / name / "server.log").stat().st_size > 0
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(own / "captures") not in listing
    shutil.rmtree(own / "captures")
