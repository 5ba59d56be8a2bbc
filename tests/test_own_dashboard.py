"""The dashboard of the assistant's own figures, and the page that explains them, name what the server really has."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from assistant.observability import Metrics

ROOT = Path(__file__).resolve().parents[1]


def families() -> dict[str, str]:
    """The names of all figures, as Prometheus stores them, with their kinds."""
    return {
        metric.name + ("_total" if metric.type == "counter" else ""): metric.type
        for metric in Metrics("1").registry.collect()
    }


def test_every_panel_asks_for_a_figure_that_exists() -> None:
    spec = importlib.util.spec_from_file_location("own_dashboard", ROOT / "scripts" / "own_dashboard.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(module.OUT.read_text("utf-8")) == module.dashboard()
    known = families()
    asked = set(
        re.findall(
            r"vllm_diagnose_\w+", " ".join(q["expr"] for p in module.dashboard()["panels"] for q in p["targets"])
        )
    )
    for name in asked:
        histogram = re.sub(r"_(bucket|count|sum)$", "", name)
        assert name in known or known.get(histogram) == "histogram", name


def test_every_figure_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    explained = set(re.findall(r"`(vllm_diagnose_\w+)`", page))
    assert explained == set(families())
