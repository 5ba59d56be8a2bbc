"""Two published releases, fetched with pip: entering them again changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from knowledge.sources import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.6.3.post1", "0.32.0"])
def test_a_known_release_changes_nothing(version: str) -> None:
    before = {path.name: path.read_bytes() for path in (ROOT / "vllm").glob("*.json")}
    command = [sys.executable, "-m", "assistant.faces.cli.main", "sync", version, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode == 3 and "can be had" in done.stderr:
        pytest.skip(f"no package of {version} can be fetched here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["known_before"], report["written"]) == (True, [])
    assert {path.name: path.read_bytes() for path in (ROOT / "vllm").glob("*.json")} == before
    print(f"{version}: fetched in {report['fetching_s']} s, read in {report['reading_s']} s")
