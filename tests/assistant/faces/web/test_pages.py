"""The pages without a browser: what they show, that they work without a script, and that text stays text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from assistant.diagnosis.model import Step
from assistant.faces.web.tree import picture, wrapped
from assistant.faces.web.visit import POLICY
from knowledge.catalog import load

from .conftest import HOSTILE, LAB, Page, Site

LOG = (LAB / "tp2-truncated" / "server.log").read_bytes()


class Tags(HTMLParser):
    """Every element with its attributes, and a list of what is not closed."""

    VOID = frozenset("meta link input br img hr rect path circle option".split())

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if "id" in dict(attrs):
            self.ids.append(str(dict(attrs)["id"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, (tag, self.open)
            self.open.pop()


def sound(text: str) -> Tags:
    """The page as elements; it is well formed, runs nothing of its own, and fetches nothing from elsewhere."""
    tags = Tags(text)
    assert not tags.open
    assert len(tags.ids) == len(set(tags.ids))
    for tag, attributes in tags.found:
        assert tag not in ("style", "iframe", "object", "embed", "base"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], attributes
        if tag in ("script", "link", "img"):
            assert str(attributes.get("src") or attributes.get("href")).startswith("/assets/")
        assert not str(attributes.get("href", "")).lower().startswith(("javascript:", "data:"))
    return tags


def asked(page: Page, text: str = "", logs: tuple[tuple[str, bytes], ...] = (), **more: str) -> str:
    """The address of a new incident, sent as a form."""
    files = [("logs", log) for log in logs] or [("logs", ("", b""))]
    answer = page.post("/ask", {"text": text, **more}, on="/", files=files)
    assert answer.status_code == 303, answer.text[:2000]
    return answer.headers["location"]


@pytest.fixture(scope="module")
def page(site: Site) -> Page:
    return site.visitor("viewer")


@pytest.fixture(scope="module")
def incident(page: Page) -> str:
    return asked(page, logs=(("server.log", LOG),))


def test_a_log_becomes_a_page_with_the_cause_first_and_the_command_next(page: Page, incident: str) -> None:
    text = page.get(incident).text
    tags = sound(text)
    title = load().causes["model/corrupt-checkpoint"].title["en"]
    order = [
        text.index(f"<h1>{title}</h1>"),
        text.index("ls -lLh"),
        text.index('id="why"'),
        text.index('<svg class="tree"'),
    ]
    assert order == sorted(order)
    copies = [
        attributes["data-copy"] for tag, attributes in tags.found if tag == "button" and "data-copy" in attributes
    ]
    assert 'ls -lLh "$MODEL_DIR"' in copies
    assert "Error while deserializing header" in text
    assert re.search(r'<li class="quoted[^"]*"><span class="number">109</span>', text)


def test_the_same_incident_is_shown_in_chinese(page: Page, incident: str) -> None:
    text = page.get(f"{incident}?lang=zh").text
    sound(text)
    assert load().causes["model/corrupt-checkpoint"].title["zh"] in text
    assert '<html lang="zh-CN">' in text
    assert '<html lang="zh-CN">' in page.get("/").text  # the choice is kept
    assert '<html lang="en">' in page.get("/?lang=en").text


def test_a_pasted_log_is_read_as_well(page: Page) -> None:
    text = page.get(asked(page, text=LOG.decode())).text
    assert load().causes["model/corrupt-checkpoint"].title["en"] in text


def test_open_questions_are_buttons_that_lead_on(page: Page) -> None:
    address = asked(page, text="the server hangs")
    tags = sound(page.get(address).text)
    values = [attributes.get("value") for tag, attributes in tags.found if attributes.get("name") == "value"]
    assert {"yes", "no", "unknown"} <= set(values)
    given = {"revision": "1", "question": "incident.cured_by_p2p_off", "value": "yes"}
    assert page.post(f"{address}/answers", given, on=address).status_code == 303
    text = page.get(address).text
    assert load().causes["distributed/p2p-or-custom-allreduce"].title["en"] in text
    stale = page.post(f"{address}/answers", given, on=address)
    assert stale.status_code == 409 and "revision 2" in stale.text
    wrong = page.post(f"{address}/answers", {**given, "revision": "2", "value": "maybe"}, on=address)
    assert wrong.status_code == 422


def test_feedback_is_kept_and_shown_as_text(page: Page, incident: str) -> None:
    answer = page.post(f"{incident}/feedback", {"helped": "partly", "comment": HOSTILE}, on=incident)
    assert answer.status_code == 303
    text = page.get(answer.headers["location"].partition("#")[0]).text
    sound(text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text and "it is kept with the evidence" in text
    assert page.post(f"{incident}/feedback", {"helped": "great"}, on=incident).status_code == 422


def test_markup_stays_text_in_every_place_where_strangers_write(site: Site) -> None:
    page = site.visitor("hostile")
    hostile_log = (
        f"INFO 11-21 10:00:00 [core.py:93] Initializing a V1 LLM engine (v0.11.0) with config: model='{HOSTILE}'\n"
        f"INFO 11-21 10:00:01 [api_utils.py:286] non-default args: {{'model': '{HOSTILE}', 'max_model_len': 10}}\n"
        f"ERROR 11-21 10:00:09 [core.py:710] ValueError: No available memory for the cache blocks. {HOSTILE}\n"
        "ERROR 11-21 10:00:09 [core.py:710] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. "
        f"{HOSTILE}\n"
    ).encode()
    address = asked(page, text=f"why {HOSTILE}", logs=((f"a{HOSTILE.replace('/', '')}.log", hostile_log),))
    for path in (address, f"{address}?lang=zh", f"/incidents?q={HOSTILE}", f"/runbooks?q={HOSTILE}", "/incidents", "/"):
        text = page.get(path).text
        sound(text)
        assert "<img" not in text and "<script>" not in text and "49" not in re.findall(r"why .{0,80}", text)
    assert "&lt;img" in page.get(address).text
    for path in (f"/runbooks/{HOSTILE}", "/runbooks/memory/<b>x", "/documents/en/<b>", "/fleet/<b>x", f"/memory?model={HOSTILE}", f"/incidents/{HOSTILE}"):  # fmt: skip
        text = page.get(path).text
        sound(text)
        assert "<b>" not in text and "<img" not in text
    assert "<b>search" not in page.get("/fleet").text and "team=&lt;b&gt;search" in page.get("/fleet").text


def test_control_characters_do_not_reach_a_page(page: Page) -> None:
    text = page.get(asked(page, text="hangs \x1b[31m\u202e\u2066 at NCCL", logs=(("a\u202eb.log", LOG),))).text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)


def test_a_sites_own_runbook_is_rendered_and_harmless(page: Page) -> None:
    text = page.get("/runbooks/site/team/gateway.md").text
    tags = sound(text)
    assert "<strong>the desk</strong>" in text and "&lt;script&gt;alert(3)" in text and "&lt;b&gt;not bold" in text
    links = [str(attributes.get("href")) for tag, attributes in tags.found if tag == "a"]
    assert "https://example.com/x" in links and "/runbooks/memory/no-room-for-kv-cache" in links
    assert not [tag for tag, _ in tags.found if tag == "img"]
    for name in ("link.md", "../outside.md", "%2e%2e/outside.md", "team/../../outside.md"):
        answer = page.get(f"/runbooks/site/{name}")
        assert answer.status_code == 404 and "Nobody may see" not in answer.text


def test_every_runbook_and_document_is_a_page_in_both_languages(page: Page) -> None:
    known = load()
    index = page.get("/runbooks").text
    sound(index)
    for number, identifier in enumerate(known.causes):
        assert f'href="/runbooks/{identifier}"' in index
        lang = ("en", "zh")[number % 2]
        answer = page.get(f"/runbooks/{identifier}?lang={lang}")
        assert answer.status_code == 200
        sound(answer.text)
    documents = sorted(set(re.findall(r'href="(/documents/[a-z]+/[a-z0-9-]+)"', page.get("/runbooks?lang=en").text)))
    assert len(documents) >= 25
    for address in documents:
        for lang in ("en", "zh"):
            answer = page.get(address.replace("/en/", f"/{lang}/"))
            assert answer.status_code == 200
            sound(answer.text)
            assert "{#" not in answer.text
    page.get("/?lang=en")


def test_sources_of_every_cause_lead_to_sections_that_are_there(page: Page) -> None:
    for address in sorted({a for i in load().causes for a in re.findall(r'href="(/documents/en/[^"]+)"', page.get(f"/runbooks/{i}?lang=en").text)}):  # fmt: skip
        path, _, anchor = address.partition("#")
        answer = page.get(path)
        assert answer.status_code == 200, address
        assert not anchor or f'id="{anchor}"' in answer.text, address


def test_a_runbook_fits_the_version_that_is_asked_for(page: Page) -> None:
    address = "/runbooks/memory/no-room-for-kv-cache?lang=en"
    assert page.get(f"{address}&vllm_version=0.11.0").status_code == 200
    assert 'value="0.11.0"' in page.get(f"{address}&vllm_version=0.11.0").text
    refused = page.get(f"{address}&vllm_version=newest")
    assert refused.status_code == 422 and "no vLLM version" in refused.text
    assert page.get("/runbooks/memory/nothing").status_code == 404


def test_incidents_are_found_by_words_cause_target_and_time(page: Page) -> None:
    marks = []
    for number in range(3):
        marks.append(asked(page, text=f"zebra{number} 100%_sure the server hangs", target=""))
    corrupt = asked(page, text="quagga", logs=(("server.log", LOG),))

    def found(query: str) -> set[str]:
        return set(
            re.findall(r'class="row-title" href="(/incidents/[0-9a-f]{20})"', page.get(f"/incidents?{query}").text)
        )

    assert found("q=zebra1") == {marks[1]}
    assert found("q=100%25_sure") == set(marks) and found("q=100xxsure") == set()
    assert found("q=quagga&cause=model/corrupt-checkpoint") == {corrupt} == found("q=quagga&cause=model")
    assert corrupt in found("q=damaged+incomplete")  # words of the title
    assert found(f"q={corrupt.rsplit('/', 1)[1][:8]}") == {corrupt}
    assert (
        found("q=zebra&verdict=healthy") == set() == found("q=zebra&target=prod") == found("q=zebra&until=2001-01-01")
    )
    assert found("q=zebra&since=2001-01-01") == set(marks)
    assert found("q=zebra&since=yesterday") == set(marks)  # what is no day narrows nothing


def test_pages_of_incidents_hold_each_once(page: Page) -> None:
    for number in range(32):
        asked(page, text=f"okapi {number}")
    seen: list[str] = []
    address = "/incidents?q=okapi"
    while address:
        text = page.get(address).text
        seen += re.findall(r'class="row-title" href="(/incidents/[0-9a-f]{20})"', text)
        following = re.search(r'<a href="([^"]+)" rel="next"', text)
        address = following[1].replace("&amp;", "&") if following else ""
    assert len(seen) == len(set(seen)) == 32


def test_progress_is_told_as_events_and_ends_with_an_address(page: Page) -> None:
    files = [("logs", ("server.log", LOG))]
    headers = {"Accept": "text/event-stream", "Origin": str(page.client.base_url).rstrip("/")}
    data = {"proof": page.proof("/"), "text": ""}
    with page.client.stream("POST", "/ask", data=data, files=files, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [(block.split("\n")[0], json.loads(block.split("\ndata: ")[1])) for block in "".join(answer.iter_text()).strip().split("\n\n")]  # fmt: skip
    assert events[0][0] == "event: doing" and events[-1][0] == "event: done"
    assert page.get(events[-1][1]["address"]).status_code == 200
    refused = page.post("/ask", {"text": " "}, on="/", Accept="text/event-stream")
    assert refused.status_code == 422 and "Nothing was given" in refused.text


def test_nothing_given_and_unknown_targets_are_said(page: Page) -> None:
    assert page.post("/ask", {"text": ""}, on="/").status_code == 422
    assert page.post("/ask", {"text": "x", "target": "nowhere"}, on="/").status_code == 404
    missing = page.get("/nothing-here", Accept="text/html")
    assert missing.status_code == 404 and "nothing at this address" in missing.text
    assert page.get("/nothing-here").headers["content-type"] == "application/problem+json"
    assert page.get("/incidents/ffffffffffffffffffff").status_code == 404


def test_every_page_carries_the_policy(page: Page, incident: str) -> None:
    for path in (
        "/",
        "/incidents",
        incident,
        "/runbooks",
        "/documents/en/kv-cache",
        "/fleet",
        "/login",
        "/incidents/x",
    ):
        headers = page.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin" and headers["cache-control"] == "no-store"
    assert "unsafe" not in POLICY and "http" not in POLICY


def test_assets_are_kept_for_ever_under_their_own_address(page: Page) -> None:
    address = re.search(r'href="(/assets/style\.css\?v=[0-9a-f]+)"', page.get("/login").text)
    assert address
    answer = page.get(address[1])
    assert answer.headers["content-type"].startswith("text/css") and "immutable" in answer.headers["cache-control"]
    assert page.get("/assets/style.css").headers["cache-control"] == "no-cache"
    assert page.get(address[1], **{"If-None-Match": answer.headers["etag"]}).status_code == 304
    for name in ("../visit.py", "..%2fvisit.py", "nothing.css"):
        assert page.get(f"/assets/{name}").status_code == 404


def test_every_sentence_of_a_template_is_known_in_both_languages() -> None:
    from assistant.faces.web.visit import FOLDER

    known = load()
    used: set[str] = set()
    for path in [*FOLDER.rglob("*.html"), *FOLDER.glob("*.py")]:
        text = path.read_text("utf-8")
        used |= set(re.findall(r"\bw\('([a-z_.-]+)'(?! ~)", text)) | set(re.findall(r'word\("([a-z_.-]+)"', text))
    used |= {f"web-area-{cause.area}" for cause in known.causes.values()}
    used |= {f"web-severity-{cause.severity}" for cause in known.causes.values()}
    assert len(used) > 100
    assert not sorted(key for key in used if key not in known.sentences)
    declared = {key.removeprefix("figure-") for key in known.sentences if key.startswith("figure-")}
    assert not sorted(name for name in declared if known.observable(name) is None)


def test_the_way_is_drawn_with_what_else_could_have_been_answered() -> None:
    known = load()
    steps = [Step("phase", "Does it fail at start or while serving?", "while starting", "evidence")]
    drawn = picture(steps, "An end " * 40, known, "en")
    assert drawn is not None
    assert [label for _, label in drawn.boxes[0].branches] == ["while serving"]
    assert drawn.height > drawn.end_y and len(drawn.end_lines) <= 4
    assert picture([], "x", known, "en") is None
    lines = wrapped("两张卡起服务时一直卡住，单卡正常；关掉点对点传输之后就好了。" * 2, 200)
    assert len(lines) > 1 and not any(line[0] in "，。；" for line in lines)
