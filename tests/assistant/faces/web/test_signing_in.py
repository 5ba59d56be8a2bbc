"""Signing in, forms that are ours, and what a stranger's page cannot do."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from assistant.faces.web.visit import own_path
from assistant.security.tokens import Tokens
from assistant.settings import load
from assistant.store.database import open_database

from .conftest import Serve, Site

ROOT = Path(__file__).parents[4]
COOKIE = "vllm-diagnose"


def test_nobody_looks_without_signing_in(site: Site) -> None:
    stranger = site.visitor()
    for path in ("/", "/incidents", "/incidents/ffffffffffffffffffff", "/runbooks", "/documents/en/kv-cache", "/memory", "/fleet", "/fleet/prod", "/fleet/prod/state"):  # fmt: skip
        answer = stranger.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/login")
    for path in ("/ask", "/incidents/ffffffffffffffffffff/answers", "/incidents/ffffffffffffffffffff/feedback", "/memory", "/logout"):  # fmt: skip
        assert stranger.post(path, {"text": "x"}, on="/login").status_code == 403, path


def test_a_token_signs_in_and_its_cookie_is_kept_from_scripts_and_other_sites(site: Site) -> None:
    page = site.visitor()
    wrong = page.post("/login", {"token": "vdg_wrong"}, on="/login")
    assert wrong.status_code == 401 and "The token is not valid." in wrong.text and "vdg_wrong" not in wrong.text
    right = page.post("/login", {"token": site.tokens["viewer"], "next": "/runbooks?q=nccl"}, on="/login")
    assert (right.status_code, right.headers["location"]) == (303, "/runbooks?q=nccl")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
    assert site.tokens["viewer"] not in cookie
    assert "on call" in page.get("/").text


def test_the_session_is_another_one_than_before_and_ends_when_signing_out(site: Site) -> None:
    page = site.visitor()
    page.get("/login")
    before = page.client.cookies[COOKIE]
    page.post("/login", {"token": site.tokens["viewer"]}, on="/login")
    during = page.client.cookies[COOKIE]
    assert before != during
    copied = httpx.Client(base_url=site.address, cookies={COOKIE: during})
    site.clients.append(copied)
    assert copied.get("/").status_code == 200
    assert page.post("/logout", {}, on="/").headers["location"] == "/login"
    assert copied.get("/").status_code == 303  # what somebody kept of it is worthless


def test_a_session_ends_with_its_token_and_guessing_is_slowed_down(serve: Serve) -> None:
    site = serve()
    page = site.visitor("viewer")
    assert page.get("/incidents").status_code == 200
    database = open_database(load({"HOME": str(site.folder), "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{site.folder}/store.db"}))  # fmt: skip
    tokens = Tokens(database)
    tokens.revoke(next(token.id for token, _ in tokens.all() if token.name == "on call"))
    database.close()
    until = time.monotonic() + 15  # a token that was good is not looked up again for five seconds
    while page.get("/incidents").status_code == 200 and time.monotonic() < until:
        time.sleep(0.5)
    assert page.get("/incidents").status_code == 303
    statuses = [page.post("/login", {"token": "vdg_x"}, on="/login").status_code for _ in range(25)]
    assert statuses[0] == 401 and statuses[-1] == 429


def test_a_changed_cookie_is_nobodys(site: Site) -> None:
    page = site.visitor("viewer")
    cookie = page.client.cookies[COOKIE]
    for changed in (cookie[:-1] + ("0" if cookie[-1] != "0" else "1"), "x" + cookie, cookie.partition(".")[0], "a.b", "é" * 400):  # fmt: skip
        answer = httpx.get(site.address + "/", headers={"Cookie": f"{COOKIE}={changed}".encode()})
        assert answer.status_code == 303


def test_scopes_hold_on_pages(site: Site) -> None:
    page = site.visitor("narrow")
    refused = page.post("/ask", {"text": "it hangs"}, on="/")
    assert refused.status_code == 403 and "limited to search_knowledge" in refused.text


@pytest.mark.parametrize(
    ("headers", "proof", "status"),
    [
        ({}, None, 303),
        ({}, "", 403),
        ({}, "0" * 64, 403),
        ({}, "é", 403),
        ({"Origin": "https://evil.example"}, None, 403),
        ({"Origin": "null"}, None, 403),
        ({"Sec-Fetch-Site": "cross-site"}, None, 403),
        ({"Sec-Fetch-Site": "same-site"}, None, 403),
        ({"Sec-Fetch-Site": "same-origin"}, None, 303),
    ],
)
def test_only_forms_of_our_own_pages_count(site: Site, headers: dict[str, str], proof: str | None, status: int) -> None:
    page = site.visitor("viewer")
    data = {"text": "the server hangs"} | ({} if proof is None else {"proof": proof})
    assert page.post("/ask", data, on="/", **headers).status_code == status


def test_a_proof_of_somebody_else_is_worthless(site: Site) -> None:
    mine, theirs = site.visitor("viewer"), site.visitor("viewer")
    stolen = theirs.proof("/")
    assert mine.post("/ask", {"text": "x", "proof": stolen}, on="/").status_code == 403


def test_everybody_may_look_where_that_is_set_and_forms_are_still_guarded(open_site: Site) -> None:
    page = open_site.visitor()
    assert page.get("/").status_code == 200
    assert page.post("/ask", {"text": "the server hangs"}, on="/").status_code == 303
    bare = httpx.post(open_site.address + "/ask", data={"text": "x", "proof": page.proof("/")})
    assert bare.status_code == 403  # the proof belongs to a cookie


def test_a_link_on_another_site_finds_the_session_again(site: Site) -> None:
    stranger = site.visitor()
    answer = stranger.get("/runbooks/memory/no-room-for-kv-cache?lang=en", **{"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200  # no redirect: a strict cookie is not sent along one that began elsewhere
    assert 'content="0; url=/runbooks/memory/no-room-for-kv-cache?lang=en"' in answer.text


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/a b", "/\r\nX: y"])  # fmt: skip
def test_signing_in_leads_nowhere_else(path: str) -> None:
    assert own_path(path) == "/"


def test_with_https_the_cookie_is_for_https_and_this_host_only(serve: Serve) -> None:
    site = serve(VLLM_DIAGNOSE_SERVER_PUBLIC_URL="https://127.0.0.1")
    cookie = httpx.get(site.address + "/login").headers["set-cookie"]
    assert cookie.startswith("__Host-vllm-diagnose=") and "Secure" in cookie and "Path=/" in cookie


def test_serve_on_a_terminal_prints_a_link_that_signs_in_once(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "VLLM_DIAGNOSE_SERVER_READERS": "1"}  # fmt: skip
    command = [sys.executable, "-m", "assistant.faces.cli.main", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    try:
        said, until = "", time.monotonic() + 60
        while "ticket=" not in said or "\n" not in said.rpartition("ticket=")[2]:
            assert time.monotonic() < until and process.poll() is None, said
            if select.select([controller], [], [], 1.0)[0]:
                said += os.read(controller, 4096).decode()
        link = re.search(r"(http://\S+)(/login\?ticket=(\S+))", said)
        assert link, said
        with httpx.Client(base_url=link[1], timeout=30) as client:
            until = time.monotonic() + 30
            while True:
                try:
                    text = client.get(link[2]).text
                    break
                except httpx.TransportError:
                    assert time.monotonic() < until
                    time.sleep(0.2)
            assert client.get("/").status_code == 303  # opening the link alone signs nobody in
            proof = re.search(r'name="proof" value="([0-9a-f]{64})"', text)
            assert proof
            form = {"proof": proof[1], "ticket": link[3]}
            origin = {"Origin": link[1]}
            changed = client.post("/login", data={**form, "ticket": link[3][:-1] + "x"}, headers=origin)
            assert changed.status_code == 401
            assert client.post("/login", data=form, headers=origin).status_code == 303
            assert "local user" in client.get("/").text
        with httpx.Client(base_url=link[1], timeout=30) as other:
            proof = re.search(r'name="proof" value="([0-9a-f]{64})"', other.get(link[2]).text)
            assert proof
            again = other.post("/login", data={"proof": proof[1], "ticket": link[3]}, headers=origin)
            assert again.status_code == 401 and "used already" in again.text
    finally:
        process.terminate()
        process.wait(30)
        os.close(controller)
