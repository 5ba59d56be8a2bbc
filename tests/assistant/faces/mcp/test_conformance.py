"""The official conformance suite against the product's own application factory, on both revisions of the protocol.

With the fixtures it runs the frozen requirement sets; without them, the product as it is sold passes every scenario
that needs nothing of the server but the protocol.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.assistant.faces.mcp import fixtures
from tests.assistant.faces.mcp.serving import ROOT, serving

pytestmark = pytest.mark.mcp
NODE = ROOT / ".node" / "node_modules"
SUITE = NODE / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
LINE = re.compile(r"^([✓✗]) ([a-z0-9-]+): (\d+) passed, (\d+) failed$", re.MULTILINE)
NOT_SCORED = re.compile(r"^  [✓✗] ([a-z0-9-]+) \(", re.MULTILINE)

#: Scenarios that call nothing by a name of the suite's own; any server can pass them.
NEEDS_NOTHING = {
    "2025-11-25": {
        *("server-initialize", "ping", "tools-list", "tools-call-error", "resources-list", "prompts-list"),
        *("dns-rebinding-protection", "completion-complete", "server-session-lifecycle", "server-sse-multiple-streams"),
    },
    "2026-07-28": {
        *("tools-list", "tools-call-error", "resources-list", "prompts-list", "dns-rebinding-protection", "caching"),
        *(
            "completion-complete",
            "sep-2164-resource-not-found",
            "http-header-validation",
            "server-sse-multiple-streams",
        ),
        *("input-required-result-unsupported-methods", "input-required-result-ignore-extra-params"),
    },
}
#: The two checks of server-stateless that call the suite's tool test_missing_capability.
NEEDS_A_TOOL = {"sep-2575-server-rejects-undeclared-capability", "sep-2575-missing-capability-http-400"}


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not SUITE.exists():
        pytest.skip("scripts/node_setup.sh .node has not put the conformance suite here")


def suite(url: str, results: Path, *options: str) -> tuple[int, str, dict[str, int]]:
    """Exit status, what it printed, and how many checks of each scenario failed."""
    command = [str(NODE / "node" / "bin" / "node"), str(SUITE), "server", "--url", url, *options, "-o", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    failed = {name: int(count) for _, name, _, count in LINE.findall(done.stdout)}
    return done.returncode, done.stdout, failed


@pytest.mark.parametrize(("revision", "sessions", "scored"), [("2025-11-25", "yes", 30), ("2026-07-28", "no", 37)])
def test_the_application_with_the_fixtures_passes_the_frozen_requirements(
    tmp_path: Path, revision: str, sessions: str, scored: int
) -> None:
    options = {"SERVER_ANONYMOUS": "viewer", "SERVER_MCP_SESSIONS": sessions}
    with serving(tmp_path, faces=(fixtures.mount,), **options) as server:
        status, said, failed = suite(server.url, tmp_path / "results", "--requirements", revision)
    assert status == 0, said[-3000:]
    counted = {name: count for name, count in failed.items() if name not in NOT_SCORED.findall(said)}
    assert len(counted) == scored
    assert not any(counted.values())


@pytest.mark.parametrize(("revision", "sessions"), [("2025-11-25", "no"), ("2025-11-25", "yes"), ("2026-07-28", "no")])
def test_the_product_passes_whatever_needs_no_fixture(tmp_path: Path, revision: str, sessions: str) -> None:
    with serving(tmp_path, SERVER_ANONYMOUS="viewer", SERVER_MCP_SESSIONS=sessions) as server:
        _, said, failed = suite(server.url, tmp_path / "results", "--suite", "all", "--spec-version", revision)
    assert NEEDS_NOTHING[revision] <= set(failed), said[-3000:]
    assert not {name for name in NEEDS_NOTHING[revision] if failed[name]}
    if revision == "2026-07-28":
        (file,) = (tmp_path / "results").glob("server-server-stateless-*/checks.json")
        checks = json.loads(file.read_text("utf-8"))
        assert {check["id"] for check in checks if check["status"] == "FAILURE"} == NEEDS_A_TOOL
        assert len(checks) >= 25
