"""The assistant in Slack, driven by requests signed as Slack signs them, against a stand-in that is as strict."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from assistant.faces.slack import tooling
from tests.assistant.faces.slack.driver import LOG, Served, User, buttons, form, wait_for, words
from tests.assistant.faces.slack.rules import live_runs
from tests.assistant.faces.slack.standin import Message, Slack
from tests.tools.metrics.serving import Servers, in_a_thread
from tests.tools.metrics.states import QUEUED, one
from tools import registry

SURE = "双卡起服务卡住，单卡正常，关掉 P2P 就好"
HANGS = "my server with 2 GPUs hangs at start, with one GPU it works"
VAGUE = "the server does not work any more"
SECRET_IN_TEXT = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"


#: The lines around the first error, as somebody would paste them into a form.
_LINES = LOG.splitlines()
_FIRST = next(number for number, line in enumerate(_LINES) if "SafetensorError" in line)
EXCERPT = "\n".join(_LINES[max(0, _FIRST - 2) : _FIRST + 12])[:3000]


class _Load(BaseModel):
    ranks: int = 2


class _Loaded(BaseModel):
    ranks: int
    said: str


@pytest.fixture(scope="module")
def slack() -> Iterator[Slack]:
    standin = Slack().start()
    yield standin
    standin.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slack")


@pytest.fixture(scope="module")
def served(slack: Slack, folder: Path) -> Iterator[Served]:
    if "slack_probe" not in {action.name for action in registry.actions()}:

        @registry.action(name="slack_probe", title="Probe", effect="loads", deadline_s=20)
        async def slack_probe(given: _Load, context: registry.Context) -> _Loaded:
            """A tool that touches, for the tests."""
            context.report(0.5, "half way")
            await asyncio.sleep(1.5)
            return _Loaded(ranks=given.ranks, said="all ranks met <!channel>")

    targets = folder / "targets.yaml"
    with in_a_thread(Servers({"queue": one(QUEUED)})) as live:
        targets.write_text(
            f"targets: {{prod: {{address: 'http://127.0.0.1:9'}}, busy: {{address: '{live.url('queue')}'}}}}\n"
        )
        running = Served(
            folder,
            slack,
            VLLM_DIAGNOSE_SLACK_CLIENT_ID="111.222",
            VLLM_DIAGNOSE_SLACK_CLIENT_SECRET="very-secret",
            VLLM_DIAGNOSE_SLACK_MAX_FILE_BYTES="1000000",
            VLLM_DIAGNOSE_TARGETS_FILE=str(targets),
        )
        yield running
        running.stop()


@pytest.fixture
def user(served: Served, slack: Slack) -> Iterator[User]:
    slack.refused.clear()
    slack.whispers.clear()
    yield served.user
    for message in (*slack.messages, *slack.whispers):
        assert live_runs(message.blocks) == []
    for sent in slack.posts:
        assert sent["unfurl_links"] is False and sent["unfurl_media"] is False
        assert sent["parse"] == "none" and sent["link_names"] is False


def whisper(slack: Slack, contains: str = "", seconds: float = 15) -> Message:
    return wait_for(lambda: next((m for m in slack.whispers if contains in words(m.blocks)), None), seconds)


def asked(user: User, text: str, **more: str) -> Message:
    before = user.count()
    assert user.command(text, **more).status_code == 200
    return user.answer(before)


def pressed(user: User, message: Message, action: str, choice: str = "") -> Message:
    before = message.blocks
    assert user.press(message, action, choice).status_code == 200
    return user.changed(message, before)


def test_a_question_gets_one_message_that_becomes_the_answer(user: User, slack: Slack, folder: Path) -> None:
    before = user.count()
    answer = user.command(f"{SURE}，token 是 {SECRET_IN_TEXT}")
    assert answer.status_code == 200 and answer.text == ""
    message = user.answer(before)
    assert user.count() == before + 1 and message.before  # one message, edited in place
    shown = words(message.blocks)
    assert "处理办法" in shown and "置信度" in shown
    everything = shown + words(message.before) + message.text
    assert SECRET_IN_TEXT not in everything and "<secret" in everything
    for file in folder.glob("store.db*"):
        assert SECRET_IN_TEXT.encode() not in file.read_bytes()
    assert slack.refused == []


@pytest.mark.parametrize("fault", ["unsigned", "other secret", "old", "from the future"])
def test_what_slack_did_not_sign_just_now_is_refused(user: User, slack: Slack, fault: str) -> None:
    before, body = slack.calls.copy(), form(user.command_body(VAGUE))
    if fault == "unsigned":
        answer = user.post(body, headers={"X-Slack-Signature": ""})
    elif fault == "other secret":
        answer = user.post(body, secret="another")
    else:
        answer = user.post(body, at=time.time() + (-301 if fault == "old" else 301))
    assert answer.status_code == 401
    time.sleep(0.3)
    assert slack.calls == before


def test_a_replay_is_refused_and_a_repetition_does_nothing_twice(user: User, slack: Slack) -> None:
    before, body, now = user.count(), form(user.command_body(VAGUE)), time.time()
    assert user.post(body, at=now).status_code == 200
    assert user.post(body, at=now).status_code == 401  # the very same request again
    assert user.post(body, at=now, headers={"X-Slack-Retry-Num": "1"}).status_code == 200
    assert user.post(body, at=now - 1).status_code == 200  # sent again, signed again
    said = slack.say("C0OPEN", "hm", "U0ADA")
    event = json.dumps(user.mention_body(VAGUE, said.ts))
    for attempt in range(3):
        stamp = {"X-Slack-Retry-Num": str(attempt), "X-Slack-Retry-Reason": "http_timeout"} if attempt else {}
        assert user.post(event, at=now - attempt, kind="application/json", headers=stamp).status_code == 200
    wait_for(lambda: user.count() == before + 2)
    time.sleep(1.0)
    assert user.count() == before + 2


def test_slack_verifies_the_address(user: User) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "abc", "token": "x"})
    assert user.post(body, kind="application/json").json() == {"challenge": "abc"}
    assert user.client.post(f"{user.address}/slack/events", content=b"x" * (2 << 20)).status_code in (401, 413)
    assert user.post("\x00\ufffd=%FF", kind="application/x-www-form-urlencoded").status_code < 500


def test_nothing_opens_a_form_and_the_form_gets_an_answer(user: User, slack: Slack) -> None:
    views = len(slack.views)
    assert user.command("").status_code == 200
    view = wait_for(lambda: slack.views[views:])[0]
    empty = user.submit(view)
    assert empty.json()["response_action"] == "errors" and "text" in empty.json()["errors"]
    before = user.count()
    assert user.submit(view, text="启动后就退出", log=EXCERPT).status_code == 200
    assert "依据" in words(user.answer(before).blocks)


def test_a_form_that_slack_closed_is_said(user: User, slack: Slack) -> None:
    body = user.command_body("")
    slack.triggers[body["trigger_id"]] = (slack.now() - 4, False)
    assert user.post(form(body)).status_code == 200
    wait_for(lambda: ("views.open", "expired_trigger_id") in slack.refused)
    wait_for(lambda: any("try again" in m.text for m in slack.whispers))


def test_help_status_and_runbooks(user: User, slack: Slack) -> None:
    for text, contains in (("help", "/vllm-diagnose status"), ("status", "prod"), ("帮助", "nccl")):
        slack.whispers.clear()
        assert user.command(text).status_code == 200
        whisper(slack, contains)
    before = user.count()
    user.command("runbook memory/no-room-for-kv-cache")
    message = wait_for(lambda: slack.answers("C0OPEN")[before:])[0]
    assert "memory/no-room-for-kv-cache" in words(message.blocks)
    slack.whispers.clear()
    user.command("runbook the kv cache has no memory")
    offered = whisper(slack)
    before = user.count()
    user.press(offered, "pick:0")
    wait_for(lambda: user.count() > before)


def test_a_server_is_named_and_what_is_not_known_is_a_question(user: User) -> None:
    # Looking at a server needs tools of their own; here it counts that the name arrives as a target.
    before = user.count()
    user.command("prod")
    message = wait_for(lambda: user.slack.answers("C0OPEN")[before:])[0]
    wait_for(lambda: message.before)
    assert "server prod" in words(message.before[0]) or "server prod" in words(message.blocks)


def test_a_live_server_is_diagnosed_and_its_figures_come_as_a_picture(user: User, slack: Slack) -> None:
    before, files = user.count(), len(slack.shared_files)
    assert user.command("busy").status_code == 200
    message = user.answer(before)
    assert "performance/queue-buildup" in words(message.blocks)
    picture = wait_for(lambda: slack.shared_files[files:])[0]
    assert (picture["name"], picture["thread"], picture["channel"]) == ("metrics.png", message.ts, "C0OPEN")
    assert picture["content"].startswith(b"\x89PNG") and len(picture["content"]) == picture["length"]
    assert slack.refused == []


def test_what_a_log_says_of_memory_comes_as_a_picture(user: User, slack: Slack) -> None:
    taken = (
        "ValueError: Free memory on device (9.41/23.64 GiB) on startup is less than desired GPU memory utilization "
        "(0.9, 21.28 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    root = slack.say("C0OPEN", taken, "U0BOB")
    before, files = user.count(), len(slack.shared_files)
    user.mention("why?", thread=root.ts)
    user.answer(before)
    picture = wait_for(lambda: slack.shared_files[files:])[0]
    assert picture["name"] == "memory.png" and picture["thread"] == root.ts


def test_a_log_in_a_thread_is_fetched_and_read(user: User, slack: Slack) -> None:
    root = slack.say("C0OPEN", "our server died", "U0BOB", files=[slack.file("server.log", LOG.encode())])
    before = user.count()
    assert user.mention("what is it?", thread=root.ts).status_code == 200
    message = user.answer(before)
    assert message.thread == root.ts
    assert "model/corrupt-checkpoint" in words(message.blocks) and "server.log" in words(message.blocks)


def test_files_that_are_not_read_are_said(user: User, slack: Slack) -> None:
    elsewhere = {**slack.file("a.log", b"x"), "url_private_download": "http://169.254.169.254/latest/a.log"}
    other_host = {**slack.file("e.log", b"x"), "url_private_download": "https://slack.com.evil.example/e.log"}
    large = slack.file("b.log", b"y" * 1_000_001)
    lying = {**slack.file("c.log", b"z" * 1_000_001), "size": 10}
    forbidden = slack.file("d.log", b"gone")
    slack.downloads.pop(forbidden["url_private"].split("/")[-3])
    picture = slack.file("f.png", b"\x89PNG", "image/png")
    before = user.count()
    user.mention("it crashes at start", files=[elsewhere, other_host, large, lying, forbidden, picture])
    shown = words(user.answer(before).blocks)
    for name, why in (("a.log", "does not lie"), ("e.log", "does not lie"), ("b.log", "larger"), ("c.log", "larger"), ("d.log", "does not give")):  # fmt: skip
        assert any(name in line and why in line for line in shown.splitlines()), (name, shown)
    assert "f.png" not in shown


def test_the_shortcut_answers_below_the_message(user: User, slack: Slack) -> None:
    said = slack.say("C0OPEN", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "U0BOB")
    before = user.count()
    assert user.shortcut(said).status_code == 200
    message = user.answer(before)
    assert message.thread == said.ts and "memory/" in words(message.blocks)


def test_the_tree_is_walked_by_several_people_back_and_over(user: User, slack: Slack) -> None:
    message = asked(user, VAGUE)
    first = words(message.blocks)
    assert {"answer:0", "details"} <= set(buttons(message.blocks)) and "back" not in set(buttons(message.blocks))
    other = user.as_("U0BOB")
    pressed(user, message, "answer:0")
    second = words(message.blocks)
    assert second != first and "back" in set(buttons(message.blocks))
    pressed(other, message, "answer:0")
    assert words(message.blocks) != second
    pressed(user, message, "back")
    assert words(message.blocks) == second
    pressed(other, message, "over")
    assert words(message.blocks) == first


def test_a_stale_button_says_so_and_the_message_is_put_right(user: User, slack: Slack) -> None:
    message = asked(user, VAGUE)
    old = user.as_("U0BOB").press_body(message, "answer:1")
    pressed(user, message, "answer:0")
    now, blocks = words(message.blocks), message.blocks
    user.as_("U0BOB").interact(old)
    assert "earlier state" in words(whisper(slack, "earlier state").blocks)
    user.changed(message, blocks)
    assert words(message.blocks) == now  # nothing changed by the stale click


def test_two_who_click_at_once_do_not_overwrite_each_other(user: User, slack: Slack) -> None:
    import threading

    message = asked(user, VAGUE)
    bodies = [user.as_(f"U0{n}").press_body(message, f"answer:{n % 2}") for n in range(4)]
    threads = [threading.Thread(target=user.as_("U0X").interact, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: len(slack.whispers) >= 3)
    assert len([m for m in slack.whispers if "earlier state" in words(m.blocks)]) == 3


def test_every_button_of_an_answer(user: User, slack: Slack) -> None:
    root = slack.say("C0OPEN", "look", "U0BOB", files=[slack.file("server.log", LOG.encode())])
    before = user.count()
    user.mention("what is it?", thread=root.ts)
    message = user.answer(before)
    english = words(message.blocks)
    pressed(user, message, "language")
    assert "如何确认" in words(message.blocks)
    pressed(user, message, "language")
    assert words(message.blocks) == english
    count = user.count()
    user.press(message, "path")
    wait_for(lambda: user.count() > count)
    count = user.count()
    user.press(message, "report")
    report = wait_for(lambda: slack.answers("C0OPEN")[count:] or slack.shared_files)
    assert report
    if "next" in set(buttons(message.blocks)):
        pressed(user, message, "next")
        assert "Perhaps" in words(message.blocks)
        while "Perhaps" in words(message.blocks):
            pressed(user, message, "next")
    pressed(user, message, "worked")
    assert "u0ada says that it worked" in words(message.blocks)
    assert "worked" not in set(buttons(message.blocks))


def test_what_was_seen_before_is_said_with_what_worked_then(served: Served, user: User) -> None:
    asked(user, SURE)
    incidents = served.app.state.shared.service.incidents
    earlier = next(row["id"] for row in incidents.recent(5) if row["cause"] == "distributed/p2p-or-custom-allreduce")
    incidents.feedback(earlier, "yes", comment="在 BIOS 里关掉了 ACS <!channel>", given_by="web: somebody")
    shown = words(asked(user, SURE).blocks)
    assert "以前出现过" in shown and "当时有效的办法：在 BIOS 里关掉了 ACS <!channel>" in shown


def test_it_did_not_work_shows_what_else_it_may_be(user: User) -> None:
    message = asked(user, SURE)
    pressed(user, message, "failed")
    assert "没有解决" in words(message.blocks)


def test_details_go_on_with_the_same_incident(user: User, slack: Slack) -> None:
    message = asked(user, VAGUE)
    views, blocks = len(slack.views), message.blocks
    user.press(message, "details")
    view = wait_for(lambda: slack.views[views:])[0]
    user.submit(view, text="it started", log=EXCERPT)
    wait_for(lambda: "model/corrupt-checkpoint" in words(message.blocks))
    assert message.blocks is not blocks


def test_an_answer_in_ones_own_words(user: User, slack: Slack) -> None:
    message = asked(user, HANGS)
    for _ in range(12):
        if "open" in set(buttons(message.blocks)):
            break
        pressed(user, message, "choose" if "choose" in set(buttons(message.blocks)) else "answer:0", "I do not know")
    assert "open" in set(buttons(message.blocks))
    views, blocks = len(slack.views), message.blocks
    user.press(message, "open")
    view = wait_for(lambda: slack.views[views:])[0]
    user.submit(view, text="0.10.2")
    user.changed(message, blocks)
    assert "back" in set(buttons(message.blocks))


def test_a_button_of_another_channel_or_of_nothing_is_refused(user: User, slack: Slack) -> None:
    message = asked(user, VAGUE)
    body = user.press_body(message, "answer:0")
    body["channel"] = {"id": "D0DIRECT", "name": "x"}
    body["container"]["channel_id"] = "D0DIRECT"
    user.interact(body)
    whisper(slack, "another channel")
    body = user.press_body(message, "answer:0")
    body["actions"][0]["value"] = "f" * 20 + ":1:scope.gpus=several"
    user.interact(body)
    whisper(slack, "no longer kept")


def test_where_the_bot_is_no_member_the_response_url_speaks_and_is_not_overdrawn(user: User, slack: Slack) -> None:
    private = user.as_("U0ADA", "C0PRIVATE")
    before = private.count()
    body = private.command_body(VAGUE)
    private.post(form(body))
    message = private.answer(before)
    url = slack.urls[body["response_url"].rsplit("/", 1)[1]]
    assert 1 <= url.uses <= 5 and url.message is message
    for _ in range(3):  # each click brings an URL of its own
        pressed(private, message, "language")
    assert ("response_url", "used_url") not in slack.refused


def test_an_url_that_is_used_up_or_old_is_not_used_any_more(user: User, slack: Slack) -> None:
    from assistant.faces.slack.elements import quiet
    from assistant.faces.slack.line import Line, Speaker
    from assistant.faces.slack.workspaces import Workspaces
    from tools.addresses import Policy

    class _Settings:
        def text(self, name: str) -> str:
            return {"slack.api_url": slack.api_url, "slack.bot_token": "xoxb-good"}.get(name, "")

    class _Nothing:
        claims = None

    async def talk() -> None:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            client = Workspaces(_Settings(), _Nothing(), session).client("xoxb-good")  # type: ignore[arg-type]
            speaker = Speaker(slack.api_url, Policy())
            line = Line("T0TEAM", "C0PRIVATE", "U0ADA", url=slack.url("C0PRIVATE", "U0ADA"), url_from=time.time())
            for number in range(5):
                line = await speaker.show(client, line, [quiet(str(number))], str(number))
            assert line.url_uses == 5 and not line.ts
            line = await speaker.show(client, line, [quiet("six")], "six")  # to the person
            assert line.channel == "D0ADA" and line.ts
            again = await speaker.show(client, line, [quiet("seven")], "seven")  # and edited there
            assert again == line and slack.messages[-1].text == "seven" and slack.messages[-1].ts == line.ts
            slack.channels["C0PRIVATE"] = True  # now the bot was invited: a known message is edited
            posted = await speaker.show(client, Line("T0TEAM", "C0PRIVATE", "U0ADA"), [quiet("a")], "a")
            from dataclasses import replace

            worn = replace(posted, url=slack.url("C0PRIVATE", "U0ADA"), url_uses=5)
            assert await speaker.show(client, worn, [quiet("b")], "b") == worn
            slack.channels["C0PRIVATE"] = False
            old = Line("T0TEAM", "C0PRIVATE", "U0ADA", url=slack.url("C0PRIVATE", "U0ADA"), url_from=time.time() - 1790)
            assert (await speaker.show(client, old, [quiet("c")], "c")).channel == "D0ADA"

    asyncio.run(talk())
    assert not [word for method, word in slack.refused if method == "response_url"]


def test_429_is_waited_for(user: User, slack: Slack) -> None:
    slack.limited["chat.postMessage"] = 2
    message = asked(user, VAGUE)
    assert message.before and slack.limited["chat.postMessage"] == 0


def test_touching_needs_an_operator_who_agrees_to_the_very_call(
    user: User, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tooling.COMMANDS, "nccl", ("slack_probe", "ranks"))
    user.command("nccl --ranks 4")
    assert "slack.operators" in words(whisper(slack, "operator").blocks)
    operator = user.as_("U0OPS")
    slack.whispers.clear()
    operator.command("nccl --ranks 4")
    offer = whisper(slack, '"ranks": 4')
    assert offer.only_for == "U0OPS" and "puts a load" in words(offer.blocks)
    slack.groups["S0GROUP1"].append("U0OPS2")
    before = user.count()
    user.press(offer, "agree")  # not hers, and no operator
    wait_for(lambda: len(slack.whispers) > 1)
    assert user.count() == before
    press = operator.press_body(offer, "agree")
    operator.interact(press)
    result = wait_for(
        lambda: next((m for m in slack.answers("C0OPEN")[before:] if "all ranks met" in words(m.blocks)), None), 30
    )
    assert any("half way" in words(earlier) or "running" in words(earlier) for earlier in result.before)
    jobs = len(slack.answers("C0OPEN"))
    operator.interact({**press, "trigger_id": slack.trigger()})  # the same agreement makes no second job
    time.sleep(2.5)
    assert "all ranks met" in words(result.blocks)
    assert len([m for m in slack.answers("C0OPEN")[jobs:] if "running" in words(m.before)]) <= 1


def test_a_check_is_run_from_its_button_by_an_operator_and_answered_in_the_thread(user: User, slack: Slack) -> None:
    message = asked(user, "我的服务用 2 张卡启动就卡住，用 1 张卡正常")
    run = [name for name in buttons(message.blocks) if name.startswith("run:")][-1]  # the first only looks
    user.press(message, run)
    assert "操作员" in words(whisper(slack, "会给机器带来负载").blocks)
    operator, slack.whispers[:] = user.as_("U0OPS"), []
    operator.press(message, run)
    offer = whisper(slack, '"lang": "zh"')
    assert "集合通信测试" in words(offer.blocks) and "将执行" in words(offer.blocks)
    slack.whispers.clear()
    user.press(offer, "agree")
    assert "需要操作员角色" in words(whisper(slack).blocks)  # refused in the language of the talk
    before = user.count()
    operator.press(offer, "agree")
    result = wait_for(
        lambda: next((m for m in slack.answers("C0OPEN")[before:] if m.before and "⏳" not in words(m.blocks)), None),
        60,
    )
    assert result.thread == message.ts and "NCCL" in words(result.blocks)
    assert "could not" not in words(result.blocks) and "not reached" not in words(result.blocks)
    again = wait_for(
        lambda: next((m for m in slack.answers("C0OPEN")[before:] if "结合检查结果" in words(m.blocks)), None), 60
    )
    assert again.thread == message.ts  # the case is decided anew below the result, in the language of the talk
    assert not [name for name in buttons(again.blocks) if name.endswith("tool-run_nccl_test")]


def test_a_check_that_only_looks_decides_the_case_anew(user: User, slack: Slack) -> None:
    message = asked(user, "我的服务用 2 张卡启动就卡住，用 1 张卡正常")
    before = user.count()
    user.press(message, next(name for name in buttons(message.blocks) if name.startswith("run:")))
    again = wait_for(
        lambda: next((m for m in slack.answers("C0OPEN")[before:] if "结合检查结果" in words(m.blocks)), None), 60
    )
    assert again.thread == message.ts
    shown = words(again.blocks)
    pressed(user, again, "language")  # it is a talk of its own, with buttons that work
    assert words(again.blocks) != shown


def test_bad_arguments_are_said_with_an_example(user: User, slack: Slack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tooling.COMMANDS, "nccl", ("slack_probe", "ranks"))
    for text in ("nccl --ranks many", "nccl --frobnicate 3", 'nccl --ranks "open', "nccl 2 3"):
        slack.whispers.clear()
        user.as_("U0OPS").command(text)
        assert "--ranks 2" in words(whisper(slack, "For example").blocks)
    monkeypatch.setitem(tooling.COMMANDS, "memory", ("no_such_tool", "model"))
    user.command("memory x")
    whisper(slack, "no tool")


def test_an_estimate_of_memory_comes_with_its_picture(user: User, slack: Slack) -> None:
    before, files = user.count(), len(slack.shared_files)
    assert user.command("memory Qwen/Qwen3-8B --gpu L4 -tp 2 --max-num-seqs 64").status_code == 200
    picture = wait_for(lambda: slack.shared_files[files:], 60)[0]
    assert picture["name"] == "memory.png" and picture["content"].startswith(b"\x89PNG")
    message = slack.answers("C0OPEN")[before]
    assert picture["thread"] == message.ts and "Qwen/Qwen3-8B" in words(message.blocks)


def test_the_app_is_installed_by_oauth_and_speaks_with_that_token(served: Served, user: User, slack: Slack) -> None:
    page = user.client.get(f"{user.address}/slack/install")
    assert page.status_code == 200
    state = page.cookies.get("vllm-diagnose-slack-state")
    assert state and "chat%3Awrite" in page.text or "chat:write" in page.text
    back = f"{user.address}/slack/oauth_redirect"
    cookie = {"Cookie": f"vllm-diagnose-slack-state={state}"}
    wrong = user.client.get(back, params={"code": "good-code", "state": "x" * 20}, headers=cookie)
    assert wrong.status_code in (400, 401)
    done = user.client.get(back, params={"code": "good-code", "state": state}, headers=cookie)
    assert done.status_code == 200, done.text
    again = user.client.get(back, params={"code": "good-code", "state": state}, headers=cookie)
    assert again.status_code in (400, 401)  # a state is good once
    found = asyncio.run(
        served.app.state.slack.workspaces.installations.async_find_bot(enterprise_id=None, team_id="T0OTHER")
    )
    assert found is not None and found.bot_token in slack.tokens
    database = served.app.state.shared.settings.text("store.url").removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT value FROM claims WHERE key LIKE 'slack-installation%'").fetchall()
    assert rows and all(found.bot_token not in row[0] for row in rows)


def test_without_the_store_the_answer_still_comes_and_is_acknowledged_in_time(
    served: Served, user: User, slack: Slack
) -> None:
    database = served.app.state.shared.settings.text("store.url").removeprefix("sqlite:///")
    holder = sqlite3.connect(database, timeout=1, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        before, began = user.count(), time.monotonic()
        assert user.command(SURE).status_code == 200
        assert time.monotonic() - began < 3.0
        message = wait_for(
            lambda: next((m for m in slack.answers("C0OPEN")[before:] if "置信度" in words(m.blocks)), None), 45
        )
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert "未能保存" in words(message.blocks) and not list(buttons(message.blocks))


def test_fifty_commands_at_once_are_acknowledged_while_slack_stands_still(user: User, slack: Slack) -> None:
    from concurrent.futures import ThreadPoolExecutor

    bodies = [form(user.command_body(VAGUE)) for _ in range(50)]
    before = user.count()
    slack.stalled.set()
    try:

        def send(body: str) -> float:
            began = time.monotonic()
            assert user.post(body).status_code == 200
            return time.monotonic() - began

        with ThreadPoolExecutor(50) as pool:
            took = list(pool.map(send, bodies))
    finally:
        slack.stalled.clear()
    assert max(took) < 3.0  # when Slack gives up
    wait_for(lambda: user.count() >= before + 50, 60)
    assert user.count() == before + 50


def test_who_may_ask_where(tmp_path: Path, slack: Slack) -> None:
    running = Served(tmp_path, slack, VLLM_DIAGNOSE_SLACK_CHANNELS="C0OPEN", VLLM_DIAGNOSE_SLACK_USERS="U0ADA,S0GROUP1")
    try:
        user = running.user
        slack.whispers.clear()
        for who, channel, contains in (("U0EVE", "C0OPEN", "slack.users"), ("U0ADA", "D0DIRECT", "slack.channels")):
            user.as_(who, channel).command(VAGUE)
            whisper(slack, contains)
        audit: Any = running.app.state.shared.service.audit
        assert {row["outcome"] for row in audit.recent()} == {"refused"}
        assert user.command(VAGUE).status_code == 200 and user.answer(user.count() - 1 if user.count() else 0)
        before = user.count()
        assert user.as_("U0OPS").command(VAGUE).status_code == 200  # in the group
        user.answer(before)
        stranger = user.mention_body(VAGUE, slack.say("C0OPEN", VAGUE, "U0ADA2").ts)
        stranger["event"] |= {"user": "U0GUEST", "user_team": "T0ELSE"}
        slack.whispers.clear()
        user.post(json.dumps(stranger), kind="application/json")
        whisper(slack, "slack.users")
    finally:
        running.stop()
