"""The pages in a real Chromium: from a pasted or dropped log to the copied command, and nothing else on the wire."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from knowledge.catalog import load

from .conftest import LAB, Serve

pytestmark = pytest.mark.browser

NODE = Path(__file__).parents[4] / ".node"
CHROMIUM = shutil.which("chromium")
LOG = (LAB / "kv-cache-too-small" / "server.log").read_text("utf-8")
CAUSE = "memory/kv-cache-below-max-model-len"
#: Where pictures of every page go, with a beginning of the name; none are taken unless it is set.
SHOTS = os.environ.get("WEB_PICTURES", "")
PAGES = [
    ("incidents", "/incidents"),
    ("runbooks", "/runbooks"),
    ("runbook", "/runbooks/memory/no-room-for-kv-cache?vllm_version=0.11.0"),
    ("document", "/documents/{lang}/kv-cache"),
    ("site", "/runbooks/site/team/gateway.md"),
    ("fleet", "/fleet"),
    ("target", "/fleet/prod"),
    ("memory", "/memory?model=Qwen/Qwen3-8B&gpu=A10&max_model_len=32768"),
    ("missing", "/runbooks/memory/nothing"),
]
JOURNEYS = [
    # language, width, light or dark, with JavaScript, judged by axe, log dropped as a file
    ("en", 1280, "light", True, False, False),
    ("zh", 1280, "dark", True, False, True),
    ("en", 390, "dark", True, False, False),
    ("zh", 390, "light", True, False, True),
    ("en", 1280, "light", False, False, False),
    ("zh", 390, "dark", False, False, False),
    ("en", 1280, "dark", True, True, False),
    ("zh", 390, "light", True, True, False),
    ("en", 390, "light", True, True, False),
    ("zh", 1280, "dark", True, True, False),
]


def travel(site: Any, journey: tuple[str, int, str, bool, bool, bool]) -> dict[str, Any]:
    lang, width, scheme, script, axe, drop = journey
    given = {
        "chromium": CHROMIUM,
        "modules": str(NODE),
        "address": site.address,
        "token": site.tokens["operator"],
        "log": LOG,
        "lang": lang,
        "width": width,
        "height": 900,
        "scheme": scheme,
        "script": script,
        "axe": axe,
        "drop": drop,
        "shots": f"{SHOTS}{lang}-{width}-{scheme}-{'js' if script else 'plain'}" if SHOTS and not axe else "",
        "pages": [(name, path.format(lang=lang)) for name, path in PAGES],
    }
    done = subprocess.run(
        [str(NODE / "node_modules" / "node" / "bin" / "node"), str(Path(__file__).parent / "journey.mjs")],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert "failed" not in report, report["failed"]
    return report


@pytest.fixture(scope="module")
def busy(serve: Serve) -> Any:
    """A server for many browsers that sign in from one address."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on PATH")
    if not (NODE / "node_modules" / "playwright-core").is_dir():
        pytest.skip("playwright-core and axe-core are not in .node")
    return serve()


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda j: "-".join(map(str, j[:3])) + ("-js" if j[3] else "-plain") + ("-axe" if j[4] else ""))  # fmt: skip
def test_from_a_log_to_the_copied_command(busy: Any, journey: tuple[str, int, str, bool, bool, bool]) -> None:
    lang, _, _, script, axe, drop = journey
    report = travel(busy, journey)
    seen, title = report["seen"], load().causes[CAUSE].title
    assert report["console"] == [] and report["foreign"] == []
    assert seen["title"] == title[lang] and seen["otherTitle"] == title["zh" if lang == "en" else "en"]
    assert seen["language"] == {"en": "en", "zh": "zh-CN"}[lang]
    assert "--max-model-len 256" in seen["command"]
    assert seen["checks"] == 1  # a check that was run from its button
    assert seen["quoted"] >= 1 and seen["question"] >= 1 and seen["answered"] and seen["thanks"]
    if script:
        assert seen["copied"] == seen["command"] and seen["buttons"] >= 3
        assert seen["said"] == {"en": "Copied", "zh": "已复制"}[lang]
    else:
        assert seen["buttons"] == 0  # what needs a script is not there without one
    if drop:
        assert "server.log" in seen["chosen"]
    assert seen["focus"][:2] == ["#main", "/"]  # the keyboard begins with the way past the menu
    if axe:
        assert len(report["axe"]) >= 12 and {"agree", "check"} <= set(report["axe"])
        grave = {name: [v for v in found if v["impact"] in ("serious", "critical")] for name, found in report["axe"].items()}  # fmt: skip
        assert not any(grave.values()), json.dumps(grave, indent=1)
