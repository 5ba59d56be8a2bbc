"""The HTTP API over a real socket: diagnoses, keys, answers, tools, jobs, runbooks, hostile input."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.settings import load
from assistant.store.database import open_database
from assistant.store.migrations import migrate
from tests.assistant.faces.inside import Inside

FOLDER = Path(__file__).parents[2] / "data" / "lab" / "tp2-truncated"
LOG = (FOLDER / "server.log").read_text("utf-8")


class Served:
    """A running server with a token of each role."""

    def __init__(self, address: str, tokens: dict[str, str]) -> None:
        self.address = address
        self.tokens = tokens
        self.client = httpx.Client(
            base_url=address, timeout=30, headers={"Authorization": f"Bearer {tokens['viewer']}"}
        )

    def as_(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[name]}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("http")
    environment = {
        "HOME": str(folder),
        "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
        "VLLM_DIAGNOSE_SERVER_READERS": "1",
        "VLLM_DIAGNOSE_SERVER_MAX_BODY_BYTES": "4194304",
        "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "100000",
    }
    settings = load(environment)
    database = open_database(settings)
    migrate(database)
    made = Tokens(database)
    tokens = {
        "viewer": made.create("v", Role.viewer)[0],
        "other": made.create("o", Role.viewer)[0],
        "admin": made.create("a", Role.admin)[0],
        "search": made.create("s", Role.viewer, scopes=("search_knowledge",))[0],
    }
    database.close()
    server = Inside(settings)
    yield Served(server.address, tokens)
    server.stop()


def test_a_log_is_diagnosed_kept_shown_answered_and_judged(served: Served) -> None:
    client = served.client
    made = client.post("/v1/diagnoses", json={"logs": [{"name": "server.log", "content": LOG}], "language": "zh"})
    assert made.status_code == 201
    body = made.json()
    assert body["causes"][0]["id"] == "model/corrupt-checkpoint"
    assert made.headers["location"] == f"/v1/diagnoses/{body['incident']}"
    shown = client.get(made.headers["location"], params={"full": "true"}).json()
    assert shown["causes"] == body["causes"] and shown["evidence"]
    address = f"/v1/diagnoses/{body['incident']}"
    answered = client.post(f"{address}/answers", json={"revision": 1, "answers": {"incident.phase": "startup"}})
    assert answered.json()["revision"] == 2
    stale = client.post(f"{address}/answers", json={"revision": 1, "answers": {"incident.phase": "serving"}})
    assert stale.status_code == 409 and stale.headers["content-type"] == "application/problem+json"
    assert client.post(f"{address}/feedback", json={"helped": "yes", "comment": "it was"}).status_code == 204
    assert body["incident"] in [item["id"] for item in client.get("/v1/diagnoses").json()["items"]]


def test_an_upload_is_read_as_the_same_log(served: Served) -> None:
    made = served.client.post("/v1/diagnoses", files=[("logs", ("server.log", LOG.encode()))], data={"text": "why"})
    assert made.status_code == 201
    assert made.json()["causes"][0]["id"] == "model/corrupt-checkpoint"


def test_a_repeated_request_with_a_key_makes_one_incident(served: Served) -> None:
    body, headers = {"text": "the server hangs at start"}, {"Idempotency-Key": "k-1"}
    one = served.client.post("/v1/diagnoses", json=body, headers=headers)
    two = served.client.post("/v1/diagnoses", json=body, headers=headers)
    assert one.json()["incident"] == two.json()["incident"]
    assert two.headers["idempotency-replayed"] == "true"
    assert served.client.post("/v1/diagnoses", json={"text": "x"}, headers=headers).status_code == 409
    mine = served.client.post("/v1/diagnoses", json={"text": "x"}, headers={**headers, **served.as_("other")})
    assert mine.status_code == 201  # a key belongs to whoever sent it


def test_pages_of_incidents_hold_each_once(served: Served) -> None:
    for number in range(3):
        served.client.post("/v1/diagnoses", json={"text": f"hang number {number}"})
    seen, cursor = [], None
    while True:
        page = served.client.get("/v1/diagnoses", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) >= 3


def test_events_of_an_incident_are_streamed(served: Served) -> None:
    incident = served.client.post("/v1/diagnoses", json={"text": "it hangs"}).json()["incident"]
    with served.client.stream("GET", f"/v1/diagnoses/{incident}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == "id: 1"
        assert next(lines) == "event: diagnosis"
        assert json.loads(next(lines).removeprefix("data: "))["incident"] == incident
    assert served.client.get("/v1/diagnoses/nothing/events").status_code == 404


def test_tools_run_and_jobs_are_their_owners(served: Served) -> None:
    tools = {tool["name"]: tool for tool in served.client.get("/v1/tools").json()["items"]}
    assert tools["parse_logs"]["effect"] == "reads"
    found = served.client.post("/v1/tools/search_knowledge", json={"query": "KV 缓存不够"}).json()["hits"]
    assert any("kv-cache" in hit["id"] for hit in found)
    assert served.client.post("/v1/tools/search_knowledge", json={"query": "x", "limit": "3"}).status_code == 422
    assert served.client.post("/v1/tools/search_knowledge", json={"query": "x", "more": 1}).status_code == 422
    assert served.client.post("/v1/tools/nothing_here", json={}).status_code == 404
    job = served.client.post("/v1/jobs", json={"tool": "search_knowledge", "arguments": {"query": "nccl"}})
    assert job.status_code == 202
    address = job.headers["location"]
    assert served.client.get(address, headers=served.as_("other")).status_code == 404
    assert served.client.get(address, headers=served.as_("admin")).status_code == 200
    with served.client.stream("GET", f"{address}/events") as answer:
        states = [json.loads(line[6:])["state"] for line in answer.iter_lines() if line.startswith("data: ")]
    assert states[-1] == "done"
    assert served.client.get(address).json()["result"]["hits"]
    assert served.client.delete(address).status_code == 200
    assert served.client.get(address).status_code == 404


def test_what_a_check_has_found_decides_anew(served: Served) -> None:
    incident = served.client.post("/v1/diagnoses", json={"text": "my server hangs at start"}).json()["incident"]
    given = {"tool": "check_host", "arguments": {}, "incident": incident}
    job = served.client.post("/v1/jobs", json=given).headers["location"]
    with served.client.stream("GET", f"{job}/events") as answer:
        assert [line for line in answer.iter_lines() if line.startswith("data: ")]
    answer = served.client.post(f"{job}/diagnosis", params={"language": "zh"})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/diagnoses/{answer.json()['incident']}"
    assert answer.json()["incident"] != incident and answer.json()["language"] == "zh"
    evidence = served.client.get(answer.headers["location"], params={"full": True}).json()["evidence"]
    assert evidence["text"] == "my server hangs at start"
    assert "check_host" in {fact["origin"]["source"] for fact in evidence["reading"]["evidence"]}
    assert served.client.post(f"{job}/diagnosis", headers=served.as_("other")).status_code == 404


def test_a_job_that_is_not_done_or_found_no_facts_decides_nothing(served: Served) -> None:
    assert served.client.post("/v1/jobs/nothing/diagnosis").status_code == 404
    job = served.client.post("/v1/jobs", json={"tool": "search_knowledge", "arguments": {"query": "nccl"}})
    address = job.headers["location"]
    assert served.client.post(f"{address}/diagnosis").status_code == 409  # still queued, or already done without a fact
    with served.client.stream("GET", f"{address}/events") as answer:
        assert list(answer.iter_lines())
    refused = served.client.post(f"{address}/diagnosis")
    assert refused.status_code == 409 and "nothing that a diagnosis could use" in refused.json()["detail"]


def test_scopes_and_missing_tokens_are_refused(served: Served) -> None:
    narrow = served.as_("search")
    assert served.client.post("/v1/diagnoses", json={"text": "x"}, headers=narrow).status_code == 403
    assert served.client.post("/v1/tools/search_knowledge", json={"query": "x"}, headers=narrow).status_code == 200
    bare = httpx.get(f"{served.address}/v1/search", params={"q": "x"})
    assert bare.status_code == 401 and bare.headers["www-authenticate"].startswith("Bearer")
    assert (
        "access-control-allow-origin" not in served.client.get("/v1/tools", headers={"Origin": "https://evil"}).headers
    )


def test_a_runbook_fits_the_version_and_may_be_kept(served: Served) -> None:
    address = "/v1/runbooks/memory/no-room-for-kv-cache"
    answer = served.client.get(address, params={"lang": "zh", "vllm_version": "0.11.0"})
    body = answer.json()
    assert [step["number"] for step in body["steps"]] == list(range(1, len(body["steps"]) + 1))
    assert body["vllm_version"] == "0.11.0" and body["language"] == "zh"
    same = {"If-None-Match": answer.headers["etag"]}
    assert served.client.get(address, params={"lang": "zh", "vllm_version": "0.11.0"}, headers=same).status_code == 304
    assert served.client.get("/v1/runbooks/memory/nothing").status_code == 404
    assert len(served.client.get("/v1/runbooks").json()["items"]) >= 95


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"text": "' + b"\\ud800" + b'"}', 422),
        (b'{"text": "a\\u0000b"}', 201),
        (b'{"text": "\\u202e\\u001b[31m"}', 201),
        ('{"text": "\xff"}'.encode("latin-1"), 400),
        (b'{"text": 1}', 422),
        (b'{"text": "x", "text2": "y"}', 422),
        (b'{"text": "x", "answers": {"a": "b"}}', 422),
        (b'{"text": "x", "target": "http://169.254.169.254/"}', 404),
        (b'{"text": "' + b"x" * 5_000_000 + b'"}', 413),
        (b"null", 422),
    ],
)
def test_hostile_bodies_get_a_sentence_and_never_a_crash(served: Served, body: bytes, status: int) -> None:
    answer = served.client.post("/v1/diagnoses", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    if status != 201:
        problem: dict[str, Any] = answer.json()
        assert problem["status"] == status and problem["detail"]


def test_a_body_without_an_end_is_cut_off_where_the_limit_is(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest("POST", "/v1/diagnoses")
    connection.putheader("Authorization", served.as_("viewer")["Authorization"])
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    try:
        for _ in range(200):
            connection.send(chunk)
    except (BrokenPipeError, ConnectionResetError):
        pass
    else:
        connection.send(b"0\r\n\r\n")
    try:
        assert connection.getresponse().status == 413
    except ConnectionResetError:
        pytest.skip("the server had closed the connection before its answer could be read")
    finally:
        connection.close()


def test_every_method_of_an_address_is_named_when_another_is_used(served: Served) -> None:
    answer = served.client.request("PUT", "/v1/jobs/x")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) >= {"GET", "DELETE"}


def test_the_description_is_complete(served: Served) -> None:
    schema = served.client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            assert "401" in operation["responses"], (method, path)


def test_a_bundle_of_an_incident_and_of_a_log_open_elsewhere(served: Served) -> None:
    from assistant.bundles import unpack

    made = served.client.post("/v1/diagnoses", json={"logs": [{"name": "server.log", "content": LOG}]}).json()
    for body in ({"incident": made["incident"]}, {"logs": [{"name": "server.log", "content": LOG}]}):
        answer = served.client.post("/v1/bundles", json=body)
        assert answer.status_code == 201 and answer.headers["content-type"] == "application/zip"
        assert unpack(answer.content).diagnosis["causes"][0]["id"] == "model/corrupt-checkpoint"
    assert served.client.post("/v1/bundles", json={}).status_code == 422
    assert served.client.post("/v1/bundles", json={"incident": "nothing"}).status_code == 404
