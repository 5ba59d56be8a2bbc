"""Checks from the page of an incident: who may, what is asked first, and what comes of it. And what was seen before."""

from __future__ import annotations

import re
import time

import pytest

from .conftest import HOSTILE, Page, Serve, Site
from .test_pages import LOG, asked, sound

HANGS = "my server with 2 GPUs hangs at start, with one GPU it works"


@pytest.fixture(scope="module")
def site(serve: Serve) -> Site:
    """A server of its own, because an address may sign in twenty times a minute."""
    return serve()


@pytest.fixture(scope="module")
def viewer(site: Site) -> Page:
    return site.visitor("viewer")


@pytest.fixture(scope="module")
def operator(site: Site) -> Page:
    return site.visitor("operator")


def finished(page: Page, address: str) -> str:
    """The page of a job when it is over."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        answer = page.get(address)
        assert answer.status_code == 200
        if "refresh" not in answer.headers:
            return answer.text
        time.sleep(0.3)
    raise AssertionError("the job did not end")


def test_a_check_that_touches_is_shown_agreed_to_and_followed_by_an_operator(operator: Page) -> None:
    incident = asked(operator, HANGS)
    assert "Run this check" in operator.get(incident).text
    shown = operator.post(f"{incident}/checks", {"step": "tool-run_nccl_test"}, on=incident)
    assert shown.status_code == 200 and "puts a load on the machine" in shown.text and "run_nccl_test" in shown.text
    sound(shown.text)
    ticket = re.search(r'name="ticket" value="([^"]+)"', shown.text)
    assert ticket
    given = {"step": "tool-run_nccl_test", "ticket": ticket[1]}
    begun = operator.post(f"{incident}/checks", given, on=incident)
    assert begun.status_code == 303 and begun.headers["location"].startswith("/jobs/")
    text = finished(operator, begun.headers["location"])
    sound(text)
    assert "NCCL" in text and incident in text
    # The same agreement is the same job and no second one.
    assert operator.post(f"{incident}/checks", given, on=incident).headers["location"] == begun.headers["location"]


def test_a_viewer_sees_what_it_needs_and_is_refused_in_the_language_of_the_page(site: Site, viewer: Page) -> None:
    incident = asked(viewer, HANGS)
    text = viewer.get(incident).text
    assert "needs an operator" in text and "Run this check" not in text
    refused = viewer.post(f"{incident}/checks", {"step": "tool-run_nccl_test"}, on=incident)
    assert refused.status_code == 403
    chinese = site.visitor("viewer", **{"Accept-Language": "zh"})
    refused = chinese.post(f"{incident}/checks", {"step": "tool-run_nccl_test"}, on=incident)
    assert refused.status_code == 403 and "需要操作员角色" in refused.text


def test_another_ones_ticket_job_or_page_is_worth_nothing(site: Site, operator: Page, viewer: Page) -> None:
    incident = asked(operator, HANGS)
    for given, status in (
        ({"step": "tool-run_nccl_test", "ticket": "made.up"}, 403),
        ({"step": "tool-run_nccl_test", "ticket": "\ud83d"}, 403),
        ({"step": HOSTILE}, 409),
        ({}, 409),
    ):
        sent = {name: value.encode("utf-8", "replace").decode() for name, value in given.items()}
        assert operator.post(f"{incident}/checks", sent, on=incident).status_code == status
    bare = operator.client.post(f"{incident}/checks", data={"step": "tool-run_nccl_test"})
    assert bare.status_code == 403  # a form that this server did not make
    assert viewer.get("/jobs/0123456789abcdef0123").status_code == 404


def test_what_only_looks_needs_no_agreement(viewer: Page) -> None:
    incident = asked(viewer, "我的服务用 2 张卡启动就卡住，用 1 张卡正常")
    begun = viewer.post(f"{incident}/checks", {"step": "tool-check_gpu"}, on=incident)
    assert begun.status_code == 303
    text = finished(viewer, begun.headers["location"])
    assert "GPU" in text
    sound(text)


def test_what_a_check_found_decides_the_incident_anew(operator: Page, viewer: Page) -> None:
    """The real test of the ranks, which fails here for want of torch or of nothing, goes into a new incident."""
    incident = asked(operator, HANGS)
    shown = operator.post(f"{incident}/checks", {"step": "tool-run_nccl_test"}, on=incident)
    ticket = re.search(r'name="ticket" value="([^"]+)"', shown.text)
    assert ticket
    given = {"step": "tool-run_nccl_test", "ticket": ticket[1]}
    job = operator.post(f"{incident}/checks", given, on=incident).headers["location"]
    text = finished(operator, job)
    assert f'action="{job}/diagnose"' in text and "Diagnose again with this result" in text
    assert viewer.post(f"{job}/diagnose", {}, on=incident).status_code == 404  # somebody else's check
    assert operator.client.post(f"{job}/diagnose").status_code == 403  # a form that this server did not make
    again = operator.post(f"{job}/diagnose", {}, on=job)
    assert again.status_code == 303, again.text
    decided = again.headers["location"]
    assert decided.startswith("/incidents/") and decided != incident
    text = operator.get(decided).text
    sound(text)
    assert "run_nccl_test" in text  # it was looked at
    assert HANGS in text  # what was said before is still known
    assert 'value="tool-run_nccl_test"' not in text  # and not asked for again


def test_a_check_that_ended_without_facts_decides_nothing(site: Site) -> None:
    from assistant.checked import found_by
    from assistant.store.jobs import Job
    from tools.sanity.results import Fact, Report

    def job(**given: object) -> Job:
        made = object.__new__(Job)
        plain: dict[str, object] = {"state": "done", "incident": "i", "action": "check_gpu", "result": None, **given}
        for name, value in plain.items():
            object.__setattr__(made, name, value)
        return made

    empty = Report(tool="check_gpu", verdict="ok", summary="")
    full = empty.model_copy(update={"facts": [Fact(name="gpu.count", value=2)]}).model_dump(mode="json")
    assert found_by(job(result=empty.model_dump(mode="json"))) is None
    for given in ({"state": "failed"}, {"action": "search_knowledge"}, {"action": "no_such_tool"}):
        assert found_by(job(**{"result": full, **given})) is None
    found = found_by(job(result=full))
    assert found is not None
    assert [(e.name, e.value) for e in found.readings[0].evidence] == [("gpu.count", 2)]


def test_what_was_seen_before_here_is_shown_with_the_fix_that_worked(viewer: Page) -> None:
    earlier = asked(viewer, logs=(("server.log", LOG),))
    viewer.post(f"{earlier}/feedback", {"helped": "yes", "comment": f"copied the shard again {HOSTILE}"}, on=earlier)
    text = viewer.get(asked(viewer, logs=(("server.log", LOG),))).text
    sound(text)
    assert "Seen before here" in text and f'href="{earlier}"' in text
    assert "What worked then" in text and "copied the shard again &lt;img" in text


def test_a_question_without_choices_takes_an_answer_in_ones_own_words(viewer: Page) -> None:
    incident = asked(viewer, HANGS)
    text = viewer.get(incident).text
    at = text.index('value="server.version"')
    assert re.search(r'<input name="value"[^>]*required>', text[at : at + 900])
    revision = re.search(r'name="revision" value="(\d+)"', text)
    assert revision
    given = {"question": "server.version", "revision": revision[1], "value": "0.10.2"}
    assert viewer.post(f"{incident}/answers", given, on=incident).status_code == 303
    assert "0.10.2" in viewer.get(incident).text
