"""Alertmanager's webhook on one side, a channel of Slack on the other, the real server between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.assistant.alerts.conftest import alert, serving, wait, webhook
from tests.assistant.faces.slack.driver import User, buttons, environment, find, words
from tests.assistant.faces.slack.rules import live_runs
from tests.assistant.faces.slack.standin import Message, Slack

CHANNEL, PAGES = "C0ALERTS", "https://diagnose.example.com"
TARGETS = """
targets:
  first: {address: "http://127.0.0.1:9", labels: {instance: "gpu1:8000"}}
  second: {address: "http://127.0.0.1:9", labels: {instance: "gpu2:8000"}}
"""


@pytest.fixture
def slack() -> Iterator[Slack]:
    standin = Slack()
    standin.channels[CHANNEL] = True
    standin.start()
    yield standin
    for message in standin.answers():
        assert live_runs(message.blocks) == []
    assert not [word for method, word in standin.refused if method == "blocks"]
    standin.stop()


@contextmanager
def watching(folder: Path, slack: Slack, **more: str) -> Iterator[tuple[httpx.Client, User]]:
    """A server whose alerts go to Slack, its client, and somebody in the channel."""
    (folder / "targets.yaml").write_text(TARGETS)
    given = environment(folder, slack, VLLM_DIAGNOSE_SLACK_ALERT_CHANNEL=CHANNEL)
    given["VLLM_DIAGNOSE_SERVER_PUBLIC_URL"] = PAGES
    given |= {"VLLM_DIAGNOSE_TARGETS_FILE": str(folder / "targets.yaml"), **more}
    with serving(folder, given) as client:
        yield client, User(slack, str(client.base_url).rstrip("/"), channel=CHANNEL)


def told(slack: Slack) -> list[Message]:
    """The messages of the channel itself."""
    return [message for message in slack.answers(CHANNEL) if not message.thread]


def below(slack: Slack, first: Message) -> list[Message]:
    return [message for message in slack.answers(CHANNEL) if message.thread == first.ts]


def test_an_alert_becomes_a_diagnosed_thread_that_is_closed_when_it_is_over(tmp_path: Path, slack: Slack) -> None:
    with watching(tmp_path, slack) as (client, user):
        fired = [alert(1), alert(2)]
        group = {"groupLabels": {"alertname": "VllmDown <!channel>"}}
        assert client.post("/v1/alerts", json=webhook(*fired) | group).status_code == 202
        first = wait(lambda: told(slack))[0]
        answer = wait(lambda: below(slack, first))[0]
        assert {"first", "second"} <= set(words(first.blocks).splitlines())
        page = find(first.blocks, "visit")[1]["url"]
        incident = page.removeprefix(f"{PAGES}/incidents/")
        assert client.get(f"/v1/diagnoses/{incident}").status_code == 200
        assert user.press(first, "visit").status_code == 200
        assert "VllmDown &lt;!channel&gt;" in first.text  # the bell of nobody rings
        assert {"worked", "path", "report"} <= set(buttons(answer.blocks))

        # Anybody in the channel goes on with the answer in the thread.
        before = answer.blocks
        assert user.press(answer, "language").status_code == 200
        user.changed(answer, before)
        assert "如何确认" in words(answer.blocks)

        # A mention in the thread adds to what is known there.
        said = len(below(slack, first))
        user.mention("vLLM 0.10.2", thread=first.ts)
        wait(lambda: [one for one in below(slack, first)[said:] if "about:" in str(one.blocks)])
        said = len(below(slack, first))

        assert client.post("/v1/alerts", json=webhook(*fired)).json()["repeated"] == 2
        ended = [{**one, "status": "resolved", "endsAt": "2026-11-21T10:05:00Z"} for one in fired]
        opened = words(first.blocks)
        client.post("/v1/alerts", json=webhook(*ended))
        wait(lambda: words(first.blocks) != opened)
        over = wait(lambda: below(slack, first)[said:])[0]
        assert "✅" in words(first.blocks) and words(over.blocks) in words(first.blocks)
        time.sleep(2.5)  # the desk looks around once a second
        assert len(told(slack)) == 1 and len(below(slack, first)) == said + 1


def test_a_flood_is_five_messages_of_which_the_last_counts_the_rest(tmp_path: Path, slack: Slack) -> None:
    with watching(tmp_path, slack) as (client, _):
        for number in range(120):
            sent = webhook(alert(number, alertname=f"A{number}"), group=f"g{number}")
            assert client.post("/v1/alerts", json=sent).status_code == 202
        wait(lambda: [message for message in told(slack) if "more incidents" in message.text], 50)
        time.sleep(3)
        assert len(told(slack)) <= 5


def test_a_channel_without_the_bot_is_reported_and_tried_again(tmp_path: Path, slack: Slack) -> None:
    slack.channels[CHANNEL] = False
    with watching(tmp_path, slack) as (client, _):
        client.post("/v1/alerts", json=webhook(alert(1)))

        def refused() -> str:
            items = client.get("/v1/alerts").json()["items"]
            return str(items[0]["not_sent"].get("slack", "")) if items else ""

        assert "not_in_channel" in wait(refused)
        slack.channels[CHANNEL] = True
        first = wait(lambda: told(slack))[0]
        wait(lambda: below(slack, first))


def test_a_thread_that_slack_does_not_take_is_no_second_message(tmp_path: Path, slack: Slack) -> None:
    slack.threadless.add(CHANNEL)
    with watching(tmp_path, slack) as (client, _):
        client.post("/v1/alerts", json=webhook(alert(1)))
        wait(lambda: told(slack))
        wait(lambda: ("chat.postMessage", "restricted_action_non_threadable_channel") in slack.refused)
        time.sleep(2.5)
        assert len(told(slack)) == 1


def test_beside_socket_mode_the_server_speaks_and_does_not_listen(tmp_path: Path, slack: Slack) -> None:
    given = {"VLLM_DIAGNOSE_SLACK_SIGNING_SECRET": "", "VLLM_DIAGNOSE_SLACK_ALERT_CHANNEL": f"{slack.team}/{CHANNEL}"}
    with watching(tmp_path, slack, **given) as (client, user):
        assert user.command("help").status_code == 404
        client.post("/v1/alerts", json=webhook(alert(1)))
        wait(lambda: below(slack, wait(lambda: told(slack))[0]))
