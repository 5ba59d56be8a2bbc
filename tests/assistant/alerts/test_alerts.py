"""Alerts over a real socket: grouped, counted once, told within a budget, closed, and not forgotten by a restart."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from tests.assistant.alerts.conftest import Received, alert, serving, wait, webhook

TARGETS = """
targets:
  first: {address: "http://127.0.0.1:9", labels: {instance: "gpu1:8000"}}
  second: {address: "http://127.0.0.1:9", labels: {instance: "gpu2:8000"}}
"""


def settings(folder: Path, received: Received, **more: str) -> dict[str, str]:
    file = folder / "targets.yaml"
    file.write_text(TARGETS)
    return {
        "VLLM_DIAGNOSE_TARGETS_FILE": str(file),
        "VLLM_DIAGNOSE_ALERTS_WEBHOOK_URL": f"{received.url}/hook",
        "VLLM_DIAGNOSE_ALERTS_WEBHOOK_TOKEN": "s3cret",
    } | {f"VLLM_DIAGNOSE_{name.upper()}": value for name, value in more.items()}


def groups(client: httpx.Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get("/v1/alerts").json()["items"]
    return items


def test_alerts_of_a_group_are_one_incident_that_is_closed_when_they_end(tmp_path: Path, received: Received) -> None:
    given = settings(tmp_path, received, alerts_grafana_url=received.url, alerts_grafana_token="g")
    with serving(tmp_path, given) as client:
        first = client.post("/v1/alerts", json=webhook(alert(1)))
        assert first.status_code == 202 and first.json()["new"] == 1
        again = client.post("/v1/alerts", json=webhook(alert(1), alert(2), alert(3)))
        assert (again.json()["new"], again.json()["repeated"]) == (2, 1)
        assert again.json()["groups"] == first.json()["groups"]
        told = wait(lambda: received.messages)[0]
        assert told["event"] == "opened" and told["count"]["alerts"] == 3
        assert {row["target"] for row in told["targets"]} == {"first", "second", None}
        assert client.get(f"/v1/diagnoses/{told['incident']}").status_code == 200
        assert [item["id"] for item in groups(client)] == first.json()["groups"]
        assert len(client.get("/v1/diagnoses").json()["items"]) == 1

        client.post("/v1/alerts", json=webhook(alert(1, status="resolved")))
        assert groups(client)[0]["state"] == "firing"
        client.post("/v1/alerts", json=webhook(alert(2, status="resolved"), alert(3, status="resolved")))
        over = wait(lambda: [one for one in received.messages if one["event"] == "resolved"])[0]
        assert over["ended"] and all(row["after"] for row in over["targets"])
        wait(lambda: ("PATCH", "/api/annotations/7") in [(method, path) for method, path, *_ in received.requests])
        assert {who for _, path, who, _ in received.requests if path == "/hook"} == {"Bearer s3cret"}
        assert {who for _, path, who, _ in received.requests if path != "/hook"} == {"Bearer g"}


def test_a_label_is_never_an_address(tmp_path: Path, received: Received) -> None:
    before = len(received.requests)
    labels = {"instance": received.url.removeprefix("http://"), "vllm_target": received.url}
    with serving(tmp_path, settings(tmp_path, received)) as client:
        client.post("/v1/alerts", json=webhook(alert(1, **labels)))
        told = wait(lambda: received.messages)[0]
    assert [row["target"] for row in told["targets"]] == [None]
    assert [path for _, path, *_ in received.requests[before:]] == ["/hook"]


def test_a_thousand_alerts_in_a_minute_are_five_messages_that_count_the_rest(
    tmp_path: Path, received: Received
) -> None:
    with serving(tmp_path, settings(tmp_path, received)) as client:
        began = time.monotonic()
        for number in range(0, 1000, 4):
            sent = [alert(number + one, alertname=f"A{number}") for one in range(4)]
            assert client.post("/v1/alerts", json=webhook(*sent, group=f"g{number}")).status_code == 202
        rest = wait(lambda: [one for one in received.messages if one["event"] == "rest"], 50)
        seconds = time.monotonic() - began
        assert seconds < 60
        assert len(received.messages) <= 5
        told = sum(one["count"]["alerts"] for one in received.messages)
        wait(lambda: time.monotonic() - began > min(seconds + 5, 59), 60)
        assert len(received.messages) <= 5
        assert told == 1000 or rest[0]["count"]["groups"] > 1


def test_a_thousand_alerts_at_once_are_one_incident(tmp_path: Path, received: Received) -> None:
    with serving(tmp_path, settings(tmp_path, received)) as client:
        answer = client.post("/v1/alerts", json=webhook(*[alert(number) for number in range(1000)], more=7))
        assert answer.json()["new"] == 1000
        told = wait(lambda: received.messages)
        assert told[0]["count"] == {"alerts": 1007, "firing": 1000, "targets": 3}
        client.post("/v1/alerts", json=webhook(*[alert(number) for number in range(1000)]))
        assert len(groups(client)) == 1
    assert len(received.messages) == 1


def test_what_was_taken_is_worked_on_after_a_restart(tmp_path: Path, received: Received) -> None:
    received.refuse = 1
    with serving(tmp_path, settings(tmp_path, received)) as client:
        client.post("/v1/alerts", json=webhook(alert(1)))
    assert received.messages == []
    with serving(tmp_path, settings(tmp_path, received)) as client:
        assert len(wait(lambda: received.messages)) == 1
        assert client.post("/v1/alerts", json=webhook(alert(1))).json()["repeated"] == 1
        assert len(groups(client)) == 1


def test_a_channel_that_refuses_is_tried_again(tmp_path: Path, received: Received) -> None:
    received.refuse = 2
    with serving(tmp_path, settings(tmp_path, received)) as client:
        client.post("/v1/alerts", json=webhook(alert(1)))
        assert wait(lambda: received.messages)[0]["event"] == "opened"
        wait(lambda: not groups(client)[0]["not_sent"])
