"""What comes from strangers, changed by the thousand: nothing may fail in our own code, and nothing may hang.

`--fuzz-seconds` says how long each goes on, `--fuzz-seed` what the inputs are made from (`random` makes one up), and
`--fuzz-only` repeats a single one.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from assistant import readers
from assistant.diagnosis.diagnose import Engine
from assistant.readers import Ask, ReadersError, clean_input
from assistant.render.blocks import diagnosis_blocks
from assistant.render.markdown import to_markdown
from knowledge import known_models
from knowledge.catalog import load
from tests.assistant.faces.serving import Served, served
from tests.assistant.faces.slack.driver import SECRET, User, form, signed, wait_for
from tests.assistant.faces.slack.standin import Slack
from tests.endurance.fuzzing import HANG_S, NASTY, Fuzz, as_bytes, changed, found, mutated
from tools.memory import batch
from tools.metrics.exposition import PageReader

DATA = Path(__file__).resolve().parents[1] / "data" / "lab"
_MOST = 40_000


def corpus(pattern: str) -> list[bytes]:
    return [path.read_bytes()[:_MOST] for path in sorted(DATA.glob(pattern))]


def test_fuzz_log_reader(fuzz: Fuzz) -> None:
    """Reading, deciding and drawing: what every face does with a log."""
    logs = corpus("*/server.log")
    catalog = load()
    readers._engine = Engine(catalog)
    verdicts: Counter[str] = Counter()
    for chance in fuzz.inputs():
        given = tuple(
            (chance.choice(("a.log", "a.json", "x.gz", "\x00\u202e")), mutated(chance.choice(logs), chance, logs))
            for _ in range(chance.choice((1, 1, 1, 2)))
        )
        text = chance.choice(("", "it hangs", mutated(logs[0][:300], chance).decode("utf-8", "replace")))
        with found(fuzz):
            try:
                diagnosis = readers._diagnose(clean_input(Ask(text=text, logs=given)), 5.0)
            except ReadersError:
                verdicts["refused"] += 1
                continue
            json.dumps(diagnosis.to_json(engine="0"))
            assert to_markdown(list(diagnosis_blocks(diagnosis, catalog)))
            verdicts[diagnosis.verdict] += 1
            if fuzz.done % 50 == 0:  # what is saved can be read back
                assert diagnosis.case is not None
                again = readers._again(json.loads(json.dumps(diagnosis.case.to_json())), {})
                assert again.verdict == diagnosis.verdict
    assert verdicts, "nothing was read"


def test_fuzz_metrics_parser(fuzz: Fuzz) -> None:
    pages = corpus("*/metrics-*.txt")
    for chance in fuzz.inputs():
        body = mutated(chance.choice(pages), chance, pages)
        with found(fuzz):
            reader = PageReader()
            size = (
                chance.choice((1, 7, 100, 4096, 1 << 20)) if len(body) < 5000 else chance.choice((100, 4096, 1 << 20))
            )
            for start in range(0, len(body), size):
                reader.feed(body[start : start + size])
            read = reader.finish(truncated=chance.random() < 0.5)
            assert all(value >= 0 for numbers in read.numbers.values() for value in numbers.values())


def test_fuzz_config_reader(fuzz: Fuzz) -> None:
    """A model's config.json, as a value and as bytes; beside it everything else that a line of a batch may hold."""
    models = [dict(model.config) for model in known_models.all_models()]
    catalog_engine = Engine(load())
    readers._engine = catalog_engine
    for chance in fuzz.inputs():
        row: dict[str, Any] = {
            "ask": chance.choice(("weights", "tokens_from_available", "tokens_end_to_end", None)),
            "config": changed(chance.choice(models), chance),
            "gpu": chance.choice(("H100", "RTX 4090", None, chance.choice(NASTY))),
            "vllm_version": chance.choice(("0.6.4", "0.11.0", "rubbish", None)),
            "tensor_parallel_size": chance.choice((1, 2, 1024, chance.choice(NASTY))),
            "tokens": 1000,
        }
        with found(fuzz):
            answer = batch.answer_line(as_bytes(row, chance).decode("utf-8", "replace"))
            assert answer["error"] is None or 10 < len(answer["error"]) < 2000, answer
            config = as_bytes(row["config"], chance)
            with contextlib.suppress(ReadersError):
                readers._diagnose(clean_input(Ask(text="x", logs=(("config.json", config),))), 5.0)


# --- what is sent to a server: a real one, whose own log must stay free of mistakes ------------------------------------


@pytest.fixture(scope="module")
def slack() -> Iterator[Slack]:
    standin = Slack().start()
    yield standin
    standin.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, slack: Slack) -> Iterator[Served]:
    settings = {
        "slack_signing_secret": SECRET,
        "slack_bot_token": "xoxb-good",
        "slack_api_url": slack.api_url,
        "deadline_s": "5",
        "server_receive_s": "2",
    }
    with served(tmp_path_factory.mktemp("fuzz"), **settings) as running:
        running.until_ready()
        yield running


def sent(server: Served, data: bytes) -> tuple[int, bytes]:
    """Bytes on a connection of their own, as they are; the status of what came back, 0 for a connection that was closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S) as wire:
        with contextlib.suppress(OSError):
            wire.sendall(data)
            wire.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while len(answer) < 1 << 22 and (part := wire.recv(65536)):
                answer += part
    head = answer.split(b"\r\n", 1)[0].split(b" ")
    return (int(head[1]) if len(head) > 1 and head[1].isdigit() else 0), answer


def posted(server: Served, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """A well-formed request with any body; waits for the answer with the connection open."""
    status, _, answer = server.ask("POST", path, body, timeout=HANG_S, **headers)
    return status, answer


class Judge:
    """Reads the server's own log: it must be there, answer, and tell of no error."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._read = len(server.lines)

    def look(self) -> None:
        """Cheap: what the log says since the last look. It may be a moment behind, so a finding may name a later input."""
        lines, self._read = self._server.lines[self._read :], len(self._server.lines)
        for line in lines:
            if '"level": "error"' in line or '"level": "critical"' in line or not line.startswith("{"):
                raise AssertionError(f"the server's own log (this input or one shortly before): {line[:3000]}")

    def no_mistake(self) -> None:
        """The server is there and answers."""
        time.sleep(0.3)
        self.look()
        assert self._server.process.poll() is None, self._server.lines[-3:]
        assert self._server.ask("GET", "/healthz", timeout=HANG_S)[0] == 200


LOG = {"name": "a.log", "content": "ERROR 11-21 10:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory.\n"}
REQUESTS: tuple[tuple[str, Any], ...] = (
    ("/v1/diagnoses", {"text": "it hangs", "logs": [LOG], "language": "en", "vllm_version": "0.10.2", "answers": {}}),
    ("/v1/diagnoses/0123456789abcdef0123/answers", {"revision": 1, "answers": {"incident.phase": "startup"}}),
    ("/v1/jobs", {"tool": "search_knowledge", "arguments": {"query": "nccl"}}),
    ("/v1/tools/search_knowledge", {"query": "out of memory", "limit": 3}),
    ("/v1/tools/estimate_memory", {"model": "meta-llama/Llama-3.1-8B", "gpu": "H100", "tensor_parallel_size": 2}),
    ("/v1/tools/parse_logs", {"logs": [LOG]}),
    ("/v1/bundles", {"text": "x", "logs": [LOG]}),
    (
        "/v1/alerts",
        {
            "version": "4", "groupKey": "g", "status": "firing", "receiver": "x", "groupLabels": {}, "commonLabels": {},
            "commonAnnotations": {}, "externalURL": "http://x", "alerts": [
                {"status": "firing", "labels": {"alertname": "A", "instance": "a:1"}, "annotations": {"summary": "s"},
                 "startsAt": "2026-11-21T10:00:00Z", "endsAt": "0001-01-01T00:00:00Z", "fingerprint": "0" * 16}
            ],
        },
    ),
)  # fmt: skip


def test_fuzz_http(fuzz: Fuzz, server: Served) -> None:
    statuses, judge = Counter[int](), Judge(server)
    for chance in fuzz.inputs():
        path, body = chance.choice(REQUESTS)
        data = as_bytes(changed(body, chance), chance)
        with found(fuzz):
            if chance.random() < 0.3:  # the request itself is broken
                head = (
                    f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
                ).encode()
                status, answer = sent(server, mutated(head, chance) + data)
            else:
                status, answer = posted(server, path, data)
            statuses[status] += 1
            assert status < 500 or status == 504, (status, path, data[:500], answer[:500])
            judge.look()
    judge.no_mistake()
    print(dict(statuses))


CALLS: tuple[Any, ...] = (
    {"method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}},
    {"method": "tools/list", "params": {}},
    {"method": "tools/call", "params": {"name": "diagnose", "arguments": {"text": "it hangs", "logs": [LOG]}}},
    {"method": "tools/call", "params": {"name": "search_knowledge", "arguments": {"query": "nccl"}}},
    {"method": "tools/call", "params": {"name": "estimate_memory", "arguments": {"model": "meta-llama/Llama-3.1-8B", "gpu": "H100"}}},
    {"method": "tools/call", "params": {"name": "get_job", "arguments": {"job": "0" * 20, "wait_s": 0}}},
    {"method": "resources/read", "params": {"uri": "vllm-kb://causes/memory/no-room-for-kv-cache"}},
    {"method": "prompts/get", "params": {"name": "explain_log", "arguments": {"log": "x"}}},
    {"method": "completion/complete", "params": {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {"name": "a", "value": "b"}}},
    {"method": "notifications/cancelled", "params": {"requestId": 1}},
)  # fmt: skip


def test_fuzz_mcp(fuzz: Fuzz, server: Served) -> None:
    statuses, judge = Counter[int](), Judge(server)
    for chance in fuzz.inputs():
        message = {"jsonrpc": "2.0", "id": chance.choice((1, "a")), **chance.choice(CALLS)}
        data = as_bytes(changed(message, chance), chance)
        headers = {
            "Accept": "application/json, text/event-stream",
            "MCP_Protocol_Version": chance.choice(("2025-06-18", "2025-06-18", "2024-11-05", "nonsense")),
        }
        with found(fuzz):
            status, answer = posted(server, "/mcp", data, **headers)
            statuses[status] += 1
            assert status < 500, (status, data[:500], answer[:500])
            judge.look()
    judge.no_mistake()
    print(dict(statuses))


def payloads(user: User, slack: Slack, chance: random.Random) -> tuple[str, str]:
    """A body that Slack could send, changed, with its content type."""
    kind = chance.randrange(4)
    if kind == 0:
        body = changed(
            user.command_body(chance.choice(("it hangs", "help", "memory", "memory x --gpu H100", "状态"))), chance
        )
        fields = body if isinstance(body, dict) else {"payload": body}
        pairs = ((str(part).encode("utf-8", "replace").decode() for part in pair) for pair in fields.items())
        return form(dict(pairs)), "application/x-www-form-urlencoded"
    if kind == 1:
        event = changed(user.mention_body("it hangs", "1.000001"), chance)
        return as_bytes(event, chance).decode("utf-8", "replace"), "application/json"
    if kind == 2:
        act = {"type": "button", "action_id": chance.choice(("language", "answer:0", "run", "report")), "block_id": "b",
               "value": chance.choice(("x", "0" * 20 + ":1:incident.phase=startup", ":" * 9))}  # fmt: skip
        whole = {
            "type": "block_actions", "team": {"id": slack.team}, "user": {"id": "U0ADA"}, "api_app_id": "A0APP",
            "trigger_id": slack.trigger(), "response_url": slack.url("C0OPEN", "U0ADA"),
            "channel": {"id": "C0OPEN"}, "container": {"type": "message", "message_ts": "1.1", "channel_id": "C0OPEN"},
            "actions": [act],
        }  # fmt: skip
    else:
        whole = {
            "type": "view_submission", "team": {"id": slack.team}, "user": {"id": "U0ADA"}, "api_app_id": "A0APP",
            "view": {"id": "V1", "type": "modal", "callback_id": "ask", "private_metadata": "{}", "blocks": [],
                     "state": {"values": {"text": {"value": {"type": "plain_text_input", "value": "it hangs"}}}}},
        }  # fmt: skip
    payload = as_bytes(changed(whole, chance), chance).decode("utf-8", "replace")
    return urlencode({"payload": payload}), "application/x-www-form-urlencoded"


def test_fuzz_slack(fuzz: Fuzz, server: Served, slack: Slack) -> None:
    """Signed, as only Slack could send it, and not as Slack does: acknowledged or refused, never a mistake of ours."""
    user = User(slack, f"http://127.0.0.1:{server.port}")
    statuses, judge = Counter[int](), Judge(server)
    for chance in fuzz.inputs():
        body, kind = payloads(user, slack, chance)
        body = body.encode("utf-8", "replace").decode()
        with found(fuzz):
            headers = {"Content_Type": kind, **{k.replace("-", "_"): v for k, v in signed(body).items()}}
            status, answer = posted(server, "/slack/events", body.encode(), **headers)
            statuses[status] += 1
            assert status < 500, (status, body[:500], answer[:500])
            judge.look()
    judge.no_mistake()
    user.command("双卡起服务卡住，单卡正常，关掉 P2P 就好")  # whoever asks sensibly is answered behind all of it
    wait_for(lambda: any("置信度" in json.dumps(m.blocks, ensure_ascii=False) for m in slack.answers()), 120)
    judge.no_mistake()
    print(dict(statuses))


def test_a_finding_says_how_to_see_it_again() -> None:
    fuzz = Fuzz("sample", 5, seed=7, only=3)
    seen = [chance.random() for chance in fuzz.inputs()]
    assert seen == [random.Random("sample:7:3").random()]
    with pytest.raises(AssertionError, match=r"--fuzz-seed=7 --fuzz-only=0"), found(Fuzz("sample", 1, seed=7)):
        raise ValueError("no")
    assert changed({"a": [1, {"b": 2}]}, random.Random(1)) != {"a": [1, {"b": 2}]}
