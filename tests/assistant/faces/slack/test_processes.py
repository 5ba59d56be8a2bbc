"""Real processes: one that is killed between acknowledgement and answer, and one that listens on a socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant.store.database import Database
from assistant.store.orders import Orders
from tests.assistant.faces.slack.driver import User, buttons, environment, form, wait_for, words
from tests.assistant.faces.slack.standin import Slack

SURE = "双卡起服务卡住，单卡正常，关掉 P2P 就好"


@pytest.fixture
def slack() -> Iterator[Slack]:
    standin = Slack().start()
    yield standin
    standin.stop()


class Process:
    """The command in a process group of its own; its standard error line by line."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "assistant.faces.cli.main", *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[4]), **environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self, contains: str) -> str:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            if contains in line:
                return line
        raise AssertionError(f"the process ended with {self.popen.wait(5)}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, number)
        self.popen.wait(30)
        if self.popen.stderr is not None:
            self.popen.stderr.close()


def serving(folder: Path, slack: Slack) -> tuple[Process, User]:
    process = Process(environment(folder, slack), "serve", "--port", "0")
    address = process.line("serves").split()[-1]
    user = User(slack, address)

    def answers() -> bool:
        try:
            return user.client.get(f"{address}/readyz").status_code == 200
        except OSError:
            return False
        except Exception as error:  # noqa: BLE001  (httpx's own, while the process starts)
            return "Connect" not in type(error).__name__ and False

    wait_for(answers, 60)
    return process, user


@pytest.mark.slow
def test_killed_between_acknowledgement_and_answer_a_restart_finishes(tmp_path: Path, slack: Slack) -> None:
    slack.stalled.set()  # so that it is killed before anything could be said
    process, user = serving(tmp_path, slack)
    try:
        body = form(user.command_body(SURE))
        assert user.post(body).status_code == 200
        process.kill()
        slack.stalled.clear()
        assert user.count() == 0
        process, user = serving(tmp_path, slack)
        message = user.answer(0, 60)
        assert "置信度" in words(message.blocks) and "worked" in set(buttons(message.blocks))
        time.sleep(4)  # a second look finds nothing to do
        assert user.count() == 1
        assert user.post(body, at=time.time() - 2).status_code == 200  # the delivery again, to the new process
        time.sleep(1)
        assert user.count() == 1
    finally:
        slack.stalled.clear()
        process.kill()


@pytest.mark.slow
def test_killed_while_it_edits_the_same_message_gets_the_answer(tmp_path: Path, slack: Slack) -> None:
    process, user = serving(tmp_path, slack)
    try:
        slack.limited["chat.update"] = 3  # the message is there, its edit has to wait
        assert user.command(SURE).status_code == 200
        wait_for(lambda: slack.calls["chat.update"] >= 1)
        time.sleep(0.3)
        process.kill()
        slack.limited.clear()
        process, user = serving(tmp_path, slack)
        message = user.answer(0, 60)
        assert user.count() == 1 and "置信度" in words(message.blocks)
    finally:
        process.kill()


@pytest.mark.slow
def test_what_two_processes_did_not_get_through_is_said(tmp_path: Path, slack: Slack) -> None:
    slack.stalled.set()
    process, user = serving(tmp_path, slack)
    try:
        assert user.command(SURE).status_code == 200
        process.kill()
        calls = slack.calls["chat.postMessage"]
        process, user = serving(tmp_path, slack)
        wait_for(lambda: slack.calls["chat.postMessage"] > calls, 60)  # taken up again
        process.kill()
        slack.stalled.clear()
        process, user = serving(tmp_path, slack)
        message = wait_for(lambda: slack.answers()[:1], 60)[0]
        assert "重启过" in words(message.blocks)
    finally:
        slack.stalled.clear()
        process.kill()


@pytest.mark.slow
def test_stopped_between_acknowledgement_and_answer_the_next_goes_on_at_once(tmp_path: Path, slack: Slack) -> None:
    slack.stalled.set()
    for attempt in range(3):  # being stopped in good order takes no attempt away
        tried = slack.calls["chat.postMessage"] + slack.calls["response_url"]
        process, user = serving(tmp_path, slack)
        if not attempt:
            assert user.command(SURE).status_code == 200
        wait_for(lambda tried=tried: slack.calls["chat.postMessage"] + slack.calls["response_url"] > tried, 60)
        process.kill(signal.SIGTERM)
    database = Database(f"sqlite:///{tmp_path}/store.db")
    assert [(held.attempts, held.state["kind"]) for held in Orders(database).free("slack", "me", 0.0)] == [
        (1, "diagnose")
    ]
    database.close()
    slack.stalled.clear()
    process, user = serving(tmp_path, slack)
    try:
        assert "置信度" in words(user.answer(0, 60).blocks)
        assert len([message for message in slack.answers() if "置信度" in words(message.blocks)]) == 1
    finally:
        process.kill()


def test_socket_mode_has_the_same_listeners(tmp_path: Path, slack: Slack) -> None:
    process = Process(
        {**environment(tmp_path, slack), "VLLM_DIAGNOSE_SLACK_APP_TOKEN": "xapp-good"},
        "slack",
    )
    try:
        process.line("connected")
        wait_for(lambda: slack.socket is not None)
        user = User(slack, "http://nowhere.invalid")

        def send(kind: str, payload: dict[str, Any], number: int) -> None:
            slack.send(
                {"type": kind, "envelope_id": f"e{number}", "payload": payload, "accepts_response_payload": True}
            )
            wait_for(lambda: f"e{number}" in slack.acknowledged, 10)

        body = user.command_body(SURE)
        send("slash_commands", body, 1)
        message = user.answer(0, 60)
        send("slash_commands", {**body}, 2)  # the same again: acknowledged, and not answered twice
        press = user.press_body(message, "language")
        whole = {"team": {"id": slack.team}, "user": {"id": "U0ADA", "username": "ada", "team_id": slack.team}, **press}
        before = message.blocks
        send("interactive", whole, 3)
        user.changed(message, before)
        assert "How to check" in words(message.blocks)
        said = slack.say("C0OPEN", "x", "U0ADA")
        send("events_api", user.mention_body("it hangs", said.ts), 4)
        user.answer(1, 60)
        assert user.count() == 2
    finally:
        process.kill(signal.SIGTERM)
    assert process.popen.returncode == 0


def test_a_refused_token_ends_it_with_a_sentence(tmp_path: Path, slack: Slack) -> None:
    base = environment(tmp_path, slack)
    for changed, code, contains in (
        ({}, 2, "slack.app_token"),
        ({"VLLM_DIAGNOSE_SLACK_APP_TOKEN": "xapp-bad"}, 3, "slack.app_token: invalid_auth"),
        ({"VLLM_DIAGNOSE_SLACK_APP_TOKEN": "xapp-good", "VLLM_DIAGNOSE_SLACK_BOT_TOKEN": "xoxb-bad"}, 3, "slack.bot_token: invalid_auth"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "assistant.faces.cli.main", "slack"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[4]), **base, **changed},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code and contains in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and "xapp-" not in done.stderr.replace("(xapp-)", "")
    assert json.dumps(slack.refused)
