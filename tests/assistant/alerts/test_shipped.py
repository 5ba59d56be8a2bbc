"""What is shipped for Prometheus, Alertmanager, Grafana and Kubernetes names what exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from knowledge.catalog import load
from tests.tools.prometheus.real import UNPACKED

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
SITE = "https://vllm-diagnose.example/"


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bvllm:[a-z0-9_]+(?::[a-z0-9_]+)?", text))


@pytest.mark.parametrize(
    "file",
    [
        "prometheus/rules.yml",
        "grafana/vllm-diagnose.json",
        "kubernetes/autoscaling/hpa.yaml",
        "kubernetes/autoscaling/keda.yaml",
    ],
)
def test_every_metric_is_one_that_vllm_exports(file: str) -> None:
    known = json.loads((ROOT / "knowledge" / "vllm" / "metrics.json").read_text("utf-8"))["metrics"]
    for name in names_in((DEPLOY / file).read_text("utf-8")) - RECORDED:
        assert name in known or re.sub(r"_(bucket|count|sum)$", "", name) in known, name


def test_the_rules_know_the_renamed_metrics_by_both_names() -> None:
    names = names_in((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))
    for old, new in (
        ("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("vllm:time_per_output_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket"),
        ("vllm:gpu_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
    ):
        assert {old, new} <= names


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_a_runbook_of_ours_a_reason_and_a_test(alert: dict[str, Any]) -> None:
    address = alert["annotations"]["runbook_url"]
    assert address.startswith(SITE) and alert["annotations"]["summary"]
    assert "/".join(address.split("/")[-2:]) in load().causes
    source = (DEPLOY / "prometheus" / "rules.yml").read_text("utf-8")
    after = source.split(f"- alert: {alert['alert']}\n", 1)[1]
    assert after.lstrip().startswith("#"), "the threshold is not explained"
    assert f"alertname: {alert['alert']}\n" in (DEPLOY / "prometheus" / "rules_test.yml").read_text("utf-8")


def test_the_dashboard_leads_to_runbooks_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana" / "vllm-diagnose.json").read_text("utf-8"))
    links = [link["url"] for panel in board["panels"] for link in panel.get("links", ())]
    named = ["/".join(url.split("/")[-2:]) for url in links if "/runbooks/" in url]
    assert len(named) > 5 and all(name in load().causes for name in named)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def program(name: str) -> str:
    """Prometheus' own tool, unpacked beside Prometheus or installed."""
    beside = UNPACKED.parent / name
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; scripts/prometheus_setup.sh .prometheus unpacks Debian's")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "rules", "prometheus/rules.yml"),
        ("promtool", "test", "rules", "prometheus/rules_test.yml"),
        ("promtool", "check", "config", "prometheus/prometheus.yml"),
        ("amtool", "check-config", "alertmanager/alertmanager.yml"),
    ],
    ids=" ".join,
)
def test_their_own_tools_accept_what_is_shipped(command: tuple[str, ...]) -> None:
    ran = subprocess.run(
        [program(command[0]), *command[1:]], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
