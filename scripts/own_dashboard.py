"""Write the Grafana dashboard of the assistant's own figures: ``python scripts/own_dashboard.py``.

The panels are data; the file is what Grafana imports. A test holds the two together and every figure to one that the
server really has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "vllm-diagnose-own.json"
_RATE = "[$__rate_interval]"


def _p99(name: str, by: str) -> str:
    return f"histogram_quantile(0.99, sum by (le, {by}) (rate({name}_bucket{_RATE})))"


#: (title, what it says, kind, unit, [(expression, legend)]), four to a row of 24 units in the order of the questions.
PANELS: list[tuple[str, str, str, str, list[tuple[str, str]]]] = [
    (
        "Replicas ready",
        "Replicas whose /readyz says that a diagnosis could be given and kept.",
        "stat",
        "none",
        [("sum(vllm_diagnose_ready)", "ready"), ("count(vllm_diagnose_ready)", "all")],
    ),
    (
        "Requests",
        "Answers a second by status.",
        "timeseries",
        "reqps",
        [(f"sum by (status) (rate(vllm_diagnose_http_requests_total{_RATE}))", "{{status}}")],
    ),
    (
        "Share of 5xx",
        "Answers that are a mistake or an outage of the server.",
        "timeseries",
        "percentunit",
        [
            (
                f'sum(rate(vllm_diagnose_http_requests_total{{status=~"5.."}}{_RATE}))'
                f" / sum(rate(vllm_diagnose_http_requests_total{_RATE}))",
                "5xx",
            )
        ],
    ),
    (
        "Request p99",
        "Seconds, by route.",
        "timeseries",
        "s",
        [(_p99("vllm_diagnose_http_request_seconds", "route"), "{{route}}")],
    ),
    (
        "Verdicts",
        "Diagnoses an hour by verdict.",
        "timeseries",
        "none",
        [(f"sum by (verdict) (rate(vllm_diagnose_diagnoses_total{_RATE})) * 3600", "{{verdict}}")],
    ),
    (
        "Causes",
        "What was found most often in the time shown.",
        "bargauge",
        "none",
        [('topk(10, sum by (cause) (increase(vllm_diagnose_diagnoses_total{cause!=""}[$__range])))', "{{cause}}")],
    ),
    (
        "Reading p99",
        "Seconds of a diagnosis, waiting for a reading process included.",
        "timeseries",
        "s",
        [(_p99("vllm_diagnose_diagnosis_seconds", "outcome"), "{{outcome}}")],
    ),
    (
        "Readers",
        "Diagnoses asked for at once against the processes that read; a pool that was replaced had a process die or hang.",
        "timeseries",
        "none",
        [
            ("sum(vllm_diagnose_readers_asked)", "asked"),
            ("sum(vllm_diagnose_readers)", "processes"),
            ("sum(vllm_diagnose_readers_replaced)", "replaced"),
        ],
    ),
    (
        "Tool p99",
        "Seconds, by tool.",
        "timeseries",
        "s",
        [(_p99("vllm_diagnose_tool_seconds", "tool"), "{{tool}}")],
    ),
    (
        "Tools that did not succeed",
        "Calls a second by tool and outcome.",
        "timeseries",
        "ops",
        [
            (
                f'sum by (tool, outcome) (rate(vllm_diagnose_tool_seconds_count{{outcome!="done"}}{_RATE}))',
                "{{tool}} {{outcome}}",
            )
        ],
    ),
    (
        "Store",
        "p99 of transactions, and those that failed.",
        "timeseries",
        "s",
        [
            (_p99("vllm_diagnose_store_seconds", "kind"), "{{kind}} p99"),
            (f"sum by (kind) (rate(vllm_diagnose_store_errors_total{_RATE}))", "{{kind}} errors/s"),
        ],
    ),
    (
        "Jobs",
        "Queued and running; all replicas see the same queue.",
        "timeseries",
        "none",
        [("max by (state) (vllm_diagnose_jobs)", "{{state}}")],
    ),
]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON (schema version 39, Grafana 10.4 and later)."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [
        {
            "id": number + 1,
            "title": title,
            "description": meaning,
            "type": kind,
            "datasource": source,
            "gridPos": {"x": number % 4 * 6, "y": number // 4 * 8, "w": 6, "h": 8},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(65 + place), "expr": expression, "legendFormat": legend, "datasource": source}
                for place, (expression, legend) in enumerate(queries)
            ],
        }
        for number, (title, meaning, kind, unit, queries) in enumerate(PANELS)
    ]
    return {
        "title": "vllm-diagnose itself",
        "uid": "vllm-diagnose-own",
        "tags": ["vllm-diagnose"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(dashboard(), indent=2) + "\n", "utf-8")
