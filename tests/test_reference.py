"""The reference in docs/ is what the program says of itself, and the threat model names tests that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_is_what_the_program_says() -> None:
    """In a process of its own: other tests register actions of their own."""
    command = [sys.executable, "scripts/reference.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def known_tests() -> dict[str, set[str]]:
    """The names of the test functions of each file."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        found[path.relative_to(ROOT / "tests").as_posix()] = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        }
    return found


def test_every_threat_has_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| T\d+ ", line)]
    assert len(rows) >= 20
    numbers = [int(found[1]) for row in rows if (found := re.match(r"\| T(\d+) ", row))]
    assert numbers == list(range(1, len(rows) + 1))
    known = known_tests()
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert test in known.get(file, ()), f"{file}::{test}"
