"""CONTRIBUTING's walks, executed as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+) (file|append)=(\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("knowledge", "tools", "assistant"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "_compiled*"))
    return tmp_path


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def diagnose(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(copy, "-m", "assistant.faces.cli.main", *arguments)


def test_the_walks_work_as_written(copy: Path) -> None:
    blocks = {
        (kind, name): text
        for _, kind, name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    }
    assert {kind for kind, _ in blocks} == {"file", "append"}

    made = diagnose(copy, "kb", "new", "serving/too-many-open-files")
    cause = copy / "knowledge/causes/serving/too-many-open-files.yaml"
    assert made.returncode == 0, made.stderr
    assert cause.exists()
    skeleton = diagnose(copy, "kb", "check", "--no-examples")
    assert skeleton.returncode == 0, f"the skeleton itself must be a valid cause: {skeleton.stdout}{skeleton.stderr}"

    with (copy / "knowledge/intents.yaml").open("a", encoding="utf-8") as intents:
        intents.write("\n" + blocks["append", "intents.yaml"])
    for (kind, name), text in blocks.items():
        if kind == "file":
            target = copy / name if name.startswith("tools/") else copy / "knowledge" / name
            target.write_text(text, encoding="utf-8")

    log = copy / "server.log"
    log.write_text("ERROR:    accept failed\nOSError: [Errno 24] Too many open files\n", encoding="utf-8")
    tried = diagnose(copy, "kb", "try", str(cause), str(log))
    assert "true     decisive" in tried.stdout, tried.stdout + tried.stderr
    checked = diagnose(copy, "kb", "check", "--no-examples")
    assert checked.returncode == 0, checked.stdout
    own = run(
        copy,
        "-c",
        "from assistant.diagnosis.diagnose import Engine; from assistant.diagnosis.examples import run_examples; from knowledge.catalog import load\n"
        "rows = list(run_examples(Engine(load()), only=frozenset({'serving/too-many-open-files'}))); print(rows); assert len(rows) == 3 and all(r.ok for r in rows)",
    )
    assert own.returncode == 0, own.stdout + own.stderr

    for query, shown in (("too many open files", "file-limits#ran-out"), ("文件描述符用完了", "file-limits#ran-out")):
        searched = diagnose(copy, "kb", "search", query)
        assert shown in searched.stdout, searched.stdout + searched.stderr

    called = run(
        copy,
        "-c",
        "import asyncio; from tools import registry; registry.discover(); "
        "print(asyncio.run(registry.get('load_average').call({})))",
    )
    assert called.returncode == 0, called.stderr
    assert "fifteen" in called.stdout


def test_a_wrong_key_is_named_with_file_line_and_remedy(copy: Path) -> None:
    diagnose(copy, "kb", "new", "serving/x")
    cause = copy / "knowledge/causes/serving/x.yaml"
    cause.write_text(cause.read_text(encoding="utf-8").replace("severity:", "severety:"), encoding="utf-8")
    checked = diagnose(copy, "kb", "check", "--no-examples")
    assert checked.returncode == 1
    assert (
        "causes/serving/x.yaml:2: severety: the key 'severety' is not known. Known keys: title, severity"
        in checked.stdout
    )
