"""Stand-ins for what cannot run here: Loki, the Kubernetes API and the Docker daemon. They refuse what the real ones refuse.

Answers follow the API references: Loki's HTTP API (https://grafana.com/docs/loki/latest/reference/loki-http-api/),
Kubernetes' API concepts and Pod v1 (https://kubernetes.io/docs/reference/kubernetes-api/), Docker's Engine API 1.41
(https://docs.docker.com/reference/api/engine/).
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]


def answer(status: int, body: object, **headers: str) -> Answer:
    """A JSON answer."""
    return status, {"Content-Type": "application/json", **headers}, json.dumps(body).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    respond: Callable[[str, dict[str, list[str]], Any, bytes], Answer]

    def do_GET(self) -> None:
        self._do(b"")

    def do_POST(self) -> None:
        self._do(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _do(self, body: bytes) -> None:
        where = urlsplit(self.path)
        asked = parse_qs(where.query, keep_blank_values=True) | parse_qs(body.decode(), keep_blank_values=True)
        status, headers, content = type(self).respond(unquote(where.path), asked, self.headers, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@contextmanager
def serving(respond: Callable[[str, dict[str, list[str]], Any, bytes], Answer]) -> Iterator[str]:
    """An HTTP server on a loopback port that answers with ``respond(path, query, headers, body)``; yields its URL."""
    handler = type("Handler", (_Handler,), {"respond": staticmethod(respond)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, _ = super().get_request()
        return connection, ("unix", 0)


@contextmanager
def serving_socket(path: Path, respond: Callable[[str, dict[str, list[str]], Any, bytes], Answer]) -> Iterator[str]:
    """The same on a Unix socket; yields its path."""
    handler = type("Handler", (_Handler,), {"respond": staticmethod(respond)})
    server = _UnixServer(str(path), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield str(path)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def nano(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


@dataclass
class FakeLoki:
    """Streams with their entries. ``most`` is ``max_entries_limit_per_query``; ``tenant`` and ``token`` are required if set."""

    streams: list[tuple[dict[str, str], list[tuple[int, str]]]] = field(default_factory=list)
    most: int = 5000
    tenant: str = ""
    token: str = ""
    asked: list[dict[str, list[str]]] = field(default_factory=list)

    def __call__(self, path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Answer:
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"Content-Type": "text/plain"}, b"unauthorized\n"
        if self.tenant and headers.get("X-Scope-OrgID") is None:
            return 401, {"Content-Type": "text/plain"}, b"no org id\n"
        if self.tenant and headers.get("X-Scope-OrgID") != self.tenant:
            return answer(200, {"status": "success", "data": [] if path.endswith("series") else _streams([])})
        self.asked.append({"path": [path], **query})
        start, end = int(query["start"][0]), int(query["end"][0])
        if path == "/loki/api/v1/series":
            found = [
                labels
                for labels, entries in self._matching(query["match[]"][0])
                if any(start <= t < end for t, _ in entries)
            ]
            return answer(200, {"status": "success", "data": found})
        if path != "/loki/api/v1/query_range":
            return 404, {"Content-Type": "text/plain"}, b"404 page not found\n"
        limit = int(query.get("limit", ["100"])[0])
        if limit > self.most:
            text = (
                f"max entries limit per query exceeded, limit > max_entries_limit_per_query ({limit} > {self.most})\n"
            )
            return 400, {"Content-Type": "text/plain"}, text.encode()
        selector, _, regex = query["query"][0].partition("|~")
        kept = re.compile(json.loads(regex.strip())) if regex else None
        forward = query.get("direction", ["backward"])[0] == "forward"
        rows = [
            (t, line, labels)
            for labels, entries in self._matching(selector)
            for t, line in entries
            if start <= t < end and (kept is None or kept.search(line))
        ]
        rows.sort(key=lambda row: row[0], reverse=not forward)
        return answer(200, {"status": "success", "data": _streams(rows[:limit])})

    def _matching(self, selector: str) -> list[tuple[dict[str, str], list[tuple[int, str]]]]:
        wanted = {k: json.loads(v) for k, v in re.findall(r'(\w+)\s*=\s*("(?:\\.|[^"\\])*")', selector)}
        return [(labels, entries) for labels, entries in self.streams if wanted.items() <= labels.items()]


def _streams(rows: list[tuple[int, str, dict[str, str]]]) -> dict[str, Any]:
    found: dict[str, tuple[dict[str, str], list[list[str]]]] = {}
    for t, line, labels in rows:
        found.setdefault(json.dumps(labels, sort_keys=True), (labels, []))[1].append([str(t), line])
    return {"resultType": "streams", "result": [{"stream": s, "values": v} for s, v in found.values()], "stats": {}}


def status_object(code: int, reason: str, message: str) -> Answer:
    """The Status that the Kubernetes API answers errors with."""
    return answer(
        code, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code}
    )  # fmt: skip


@dataclass
class FakeKubernetes:
    """Pods, events and logs of the namespace ``inference``. ``page`` items a list page; ``forget`` pages answer 410."""

    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[tuple[str, bool], bytes] = field(default_factory=dict)  # (container, previous) -> text with stamps
    token: str = "good"
    forbidden: tuple[str, ...] = ()
    page: int = 500
    forget: int = 0
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    asked: list[str] = field(default_factory=list)

    def __call__(self, path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Answer:
        status, more, content = self._answer(path, query, headers)
        return status, {**more, "Date": self.now.strftime("%a, %d %b %Y %H:%M:%S GMT")}, content

    def _answer(self, path: str, query: dict[str, list[str]], headers: Any) -> Answer:
        self.asked.append(path)
        if headers.get("Authorization") != f"Bearer {self.token}":
            return status_object(401, "Unauthorized", "Unauthorized")
        found = re.fullmatch(r"/api/v1/namespaces/([^/]+)/(pods|events)(?:/([^/]+)(/log)?)?", path)
        if not found:
            return status_object(404, "NotFound", "the server could not find the requested resource")
        namespace, kind, name, log = found.groups()
        what = "pods/log" if log else kind
        if what in self.forbidden or namespace != "inference":
            user = "system:serviceaccount:ops:diagnose"
            text = f'{what} is forbidden: User "{user}" cannot list resource "{what}" in API group "" in the namespace "{namespace}"'
            return status_object(403, "Forbidden", text)
        if not name:
            return self._list(self.pods if kind == "pods" else self.events, kind, query)
        pod = next((pod for pod in self.pods if pod["metadata"]["name"] == name), None)
        if pod is None:
            return status_object(404, "NotFound", f'pods "{name}" not found')
        return self._log(pod, query) if log else answer(200, pod)

    def _list(self, items: list[dict[str, Any]], kind: str, query: dict[str, list[str]]) -> Answer:
        selector = dict(pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair)
        items = [i for i in items if selector.items() <= i["metadata"].get("labels", {}).items()]
        start = int(query.get("continue", ["0"])[0] or 0)
        if start and self.forget:
            self.forget -= 1
            return status_object(
                410, "Expired", "The provided continue parameter is too old to display a consistent list result."
            )
        size = min(self.page, int(query.get("limit", ["500"])[0]))
        meta = {"resourceVersion": "1", **({"continue": str(start + size)} if start + size < len(items) else {})}
        shape = {"pods": "PodList", "events": "EventList"}[kind]
        return answer(200, {"kind": shape, "apiVersion": "v1", "metadata": meta, "items": items[start : start + size]})

    def _log(self, pod: dict[str, Any], query: dict[str, list[str]]) -> Answer:
        containers = [c["name"] for c in pod["spec"]["containers"]]
        name = query.get("container", [""])[0]
        if not name and len(containers) > 1:
            text = f"a container name must be specified for pod {pod['metadata']['name']}, choose one of: {containers}"
            return status_object(400, "BadRequest", text)
        if name and name not in containers:
            return status_object(400, "BadRequest", f"container {name} is not valid for pod {pod['metadata']['name']}")
        previous = query.get("previous", ["false"])[0] == "true"
        kept = self.logs.get((name or containers[0], previous))
        if kept is None:
            which = "previous terminated container" if previous else "container"
            return status_object(400, "BadRequest", f'{which} "{name}" in pod "{pod["metadata"]["name"]}" not found')
        return 200, {"Content-Type": "text/plain"}, kept


@dataclass
class FakeDocker:
    """One container behind a Unix socket. ``frames`` are (1 or 2, text with stamps); with ``tty`` the log is not framed."""

    inspect: dict[str, Any] = field(default_factory=dict)
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    readable: bool = True
    asked: list[str] = field(default_factory=list)

    def __call__(self, path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Answer:
        self.asked.append(path)
        if path == "/events":
            if "until" not in query:
                return answer(500, {"message": "this fake would have to stream for ever"})
            return (
                200,
                {"Content-Type": "application/json"},
                b"".join(json.dumps(e).encode() + b"\n" for e in self.events),
            )
        found = re.fullmatch(r"/containers/([^/]+)/(json|logs)", path)
        if not found:
            return answer(404, {"message": "page not found"})
        if found.group(1) not in (self.inspect["Id"], self.inspect["Name"].removeprefix("/")):
            return answer(404, {"message": f"No such container: {found.group(1)}"})
        if found.group(2) == "json":
            return answer(200, self.inspect)
        if not self.readable:
            return answer(501, {"message": "configured logging driver does not support reading"})
        if not {"stdout", "stderr"} & set(query):
            return answer(400, {"message": "Bad parameters: you must choose at least one stream"})
        if self.inspect["Config"]["Tty"]:
            return 200, {"Content-Type": "application/vnd.docker.raw-stream"}, b"".join(t for _, t in self.frames)
        framed = b"".join(struct.pack(">BxxxL", number, len(text)) + text for number, text in self.frames)
        return 200, {"Content-Type": "application/vnd.docker.multiplexed-stream"}, framed
