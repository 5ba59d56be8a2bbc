"""A stand-in for a Kubernetes cluster, which cannot run here: its API, its Job controller, and pods that are processes.

Objects are kept with versions, watches stream their changes, logs stream what the pods print, deletion takes what belongs
to a Job with it. It refuses what the real one refuses: a wrong token, a field that the object does not have, a name that
is taken, a version that is forgotten, the log of a container that has not started. A pod runs the command of its
container in a mount namespace whose /etc/hosts holds the names that the headless Service gives.
API: https://kubernetes.io/docs/reference/kubernetes-api/ .
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "good"
KINDS = {"jobs": "Job", "services": "Service", "configmaps": "ConfigMap", "pods": "Pod", "events": "Event"}
_PATH = re.compile(r"/(api/v1|apis/batch/v1)/namespaces/([^/]+)/(\w+)(?:/([^/]+)(/log)?)?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: What each object may have at its top and below `spec`; the real one, asked strictly, refuses anything else too.
_FIELDS = {
    "jobs": {"completionMode", "completions", "parallelism", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "template"},
    "services": {"clusterIP", "publishNotReadyAddresses", "selector"},
}  # fmt: skip


class Refusal(Exception):  # noqa: N818
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code}  # fmt: skip


def can_run_pods() -> bool:
    """Whether a mount namespace can be made here."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["unshare", "-m", "true"], capture_output=True, timeout=10, check=False).returncode == 0
    return False


@dataclass
class FakeCluster:
    """``images`` maps images to interpreters; a pod with another image cannot be pulled. The rest are faults."""

    images: dict[str, str] = field(default_factory=dict)
    forbidden: tuple[str, ...] = ()
    no_pods: str = ""
    pods_at_most: int = 0  # where no_pods says why
    unschedulable: str = ""
    drop_watches: int = 0
    forget: int = 0
    drop_logs: int = 0
    no_deletion: tuple[str, ...] = ()
    no_collector: bool = False

    def __post_init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.changes: list[tuple[int, str, str, dict[str, Any]]] = []
        self.news = threading.Condition(threading.RLock())
        self.version = 100
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, bytearray] = {}
        self.folder = Path()  # while it is served
        self.asked: list[str] = []
        self.closed = False

    # --- objects ------------------------------------------------------------------------------------------------------

    def put(self, kind: str, thing: dict[str, Any], change: str) -> None:
        with self.news:
            self.version += 1
            thing["metadata"]["resourceVersion"] = str(self.version)
            if change == "DELETED":
                self.objects.pop((kind, thing["metadata"]["name"]), None)
            else:
                self.objects[kind, thing["metadata"]["name"]] = thing
            self.changes.append((self.version, kind, change, json.loads(json.dumps(thing))))
            self.news.notify_all()

    def create(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        name = body.get("metadata", {}).get("name", "")
        if body.get("kind") != KINDS[kind] or body["metadata"].get("namespace") != namespace:
            raise Refusal(400, "BadRequest", "the object provided does not match the request")
        if not _NAME.fullmatch(name):
            raise Refusal(422, "Invalid", f'{KINDS[kind]} "{name}" is invalid: metadata.name')
        unknown = set(body.get("spec", {})) - _FIELDS.get(kind, set())
        if unknown:
            raise Refusal(400, "BadRequest", f'{KINDS[kind]} in version "v1" cannot be handled: strict decoding error: unknown field {unknown}')  # fmt: skip
        if (kind, name) in self.objects:
            raise Refusal(409, "AlreadyExists", f'{kind} "{name}" already exists')
        for owner in body["metadata"].get("ownerReferences", ()):
            made = self.objects.get(("jobs", owner["name"]))
            if made is None or made["metadata"]["uid"] != owner["uid"]:
                raise Refusal(
                    422, "Invalid", "metadata.ownerReferences: no such owner"
                )  # the collector would remove it
        body["metadata"]["uid"] = str(uuid.uuid4())
        self.put(kind, body, "ADDED")
        if kind == "jobs":
            threading.Thread(target=self.control, args=(body,), daemon=True).start()
        return body

    def delete(self, kind: str, name: str, options: Mapping[str, Any]) -> None:
        thing = self.objects.get((kind, name))
        if thing is None:
            raise Refusal(404, "NotFound", f'{kind} "{name}" not found')
        self.put(kind, thing, "DELETED")
        if kind != "jobs" or options.get("propagationPolicy") not in ("Background", "Foreground") or self.no_collector:
            return
        uid = thing["metadata"]["uid"]
        for (other, _), dependent in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in dependent["metadata"].get("ownerReferences", ())):
                if other == "pods":
                    threading.Thread(target=self.end_pod, args=(dependent,), daemon=True).start()
                else:
                    self.put(other, dependent, "DELETED")

    # --- the Job's pods -----------------------------------------------------------------------------------------------

    def control(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        completions = job["spec"]["completions"]
        if self.no_pods:
            event = {"kind": "Event", "metadata": {"name": "e1"}, "type": "Warning", "reason": "FailedCreate", "message": self.no_pods, "involvedObject": {"kind": "Job", "name": name}}  # fmt: skip
            self.put("events", event, "ADDED")
        for index in range(self.pods_at_most if self.no_pods else completions):
            self.begin_pod(job, index)

    def begin_pod(self, job: dict[str, Any], index: int) -> None:
        name, template = job["metadata"]["name"], job["spec"]["template"]
        meta = {
            "name": f"{name}-{index}-{uuid.uuid4().hex[:5]}", "namespace": job["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [{"kind": "Job", "name": name, "uid": job["metadata"]["uid"]}],
        }  # fmt: skip
        spec = dict(template["spec"])
        pod = {"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": spec, "status": {"phase": "Pending"}}
        if self.unschedulable:
            pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": self.unschedulable}]  # fmt: skip
            self.put("pods", pod, "ADDED")
            return
        pod["spec"]["nodeName"] = f"node-{index}"
        self.put("pods", pod, "ADDED")
        threading.Thread(target=self.run_pod, args=(pod, index), daemon=True).start()

    def state(self, pod: dict[str, Any], phase: str, **state: Any) -> None:
        if ("pods", pod["metadata"]["name"]) in self.objects:
            pod["status"] = {"phase": phase, "containerStatuses": [{"name": "test", "state": state}]}
            self.put("pods", pod, "MODIFIED")

    def run_pod(self, pod: dict[str, Any], index: int) -> None:
        container = pod["spec"]["containers"][0]
        job = pod["metadata"]["ownerReferences"][0]["name"]
        self.state(pod, "Pending", waiting={"reason": "ContainerCreating"})
        program = self.images.get(container["image"])
        if program is None:
            said = f'failed to pull and unpack image "{container["image"]}": not found'
            self.state(pod, "Pending", waiting={"reason": "ImagePullBackOff", "message": said})
            return
        while ("configmaps", job) not in self.objects:  # the kubelet waits for the volume
            if self.closed or ("jobs", job) not in self.objects:
                return
            time.sleep(0.05)
        mounts = {}
        for mount in container["volumeMounts"]:
            volume = next(v for v in pod["spec"]["volumes"] if v["name"] == mount["name"])
            if "configMap" in volume:
                folder = self.folder / pod["metadata"]["name"]
                folder.mkdir()
                for file, content in self.objects["configmaps", volume["configMap"]["name"]]["data"].items():
                    (folder / file).write_text(content)
                mounts[mount["mountPath"]] = str(folder)
        words = [program, *container["command"][1:]]
        for path, folder_name in mounts.items():
            words = [word.replace(path, folder_name) for word in words]
        fields = {"status.podIP": self.address(index), "spec.nodeName": pod["spec"]["nodeName"]}
        env = {one["name"]: fields[one["valueFrom"]["fieldRef"]["fieldPath"]] for one in container["env"]}
        env |= {"JOB_COMPLETION_INDEX": str(index), "PATH": os.environ["PATH"], "HOSTNAME": f"{job}-{index}"}
        hosts = self.folder / f"{pod['metadata']['name']}.hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(self.names(job)))
        inside = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
        process = subprocess.Popen([*inside, *words], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        name = pod["metadata"]["name"]
        with self.news:
            self.processes[name], self.logs[name] = process, bytearray()
        self.state(pod, "Running", running={"startedAt": "2026-11-21T10:00:00Z"})
        assert process.stdout is not None
        for line in process.stdout:
            with self.news:
                self.logs[name] += line
                self.news.notify_all()
        code = process.wait()
        code = code if code >= 0 else 128 - code
        reason = "Completed" if code == 0 else "OOMKilled" if code == 137 else "Error"
        self.state(pod, "Succeeded" if code == 0 else "Failed", terminated={"exitCode": code, "reason": reason})
        if code and ("jobs", job) in self.objects:
            made = self.objects["jobs", job]
            failed = sum(
                kind == "pods" and one["status"]["phase"] == "Failed" for (kind, _), one in list(self.objects.items())
            )
            if failed <= made["spec"]["backoffLimit"]:  # another one takes its place, after a while
                time.sleep(1.0)
                if not self.closed and ("jobs", job) in self.objects:
                    self.begin_pod(made, index)
                return
            for (kind, _), other in list(self.objects.items()):  # the Job has failed, and its other pods are ended
                if kind == "pods" and other is not pod and other["status"]["phase"] == "Running":
                    threading.Thread(target=self.end_pod, args=(other,), daemon=True).start()

    def names(self, job: str) -> list[str]:
        made = self.objects["jobs", job]
        where = f"{made['spec']['template']['spec']['subdomain']}.{made['metadata']['namespace']}.svc"
        return [f"{self.address(k)} {job}-{k}.{where}\n" for k in range(made["spec"]["completions"])]

    def address(self, index: int) -> str:
        return f"127.0.63.{index + 1}"

    def end_pod(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        process = self.processes.get(name)
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(pod["spec"]["terminationGracePeriodSeconds"])
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        self.put("pods", pod, "DELETED")

    def close(self) -> None:
        self.closed = True
        with self.news:
            self.news.notify_all()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: FakeCluster

    def do_GET(self) -> None:
        self.handle_one(self.get)

    def do_POST(self) -> None:
        self.handle_one(self.post)

    def do_DELETE(self) -> None:
        self.handle_one(self.remove)

    def handle_one(self, work: Any) -> None:
        where = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(where.query).items()}
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = _PATH.fullmatch(unquote(where.path))
        self.cluster.asked.append(f"{self.command} {where.path}")
        try:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refusal(401, "Unauthorized", "Unauthorized")
            if found is None or (found[3] == "jobs") != (found[1] == "apis/batch/v1") or found[3] not in KINDS:
                raise Refusal(404, "NotFound", "the server could not find the requested resource")
            if found[3] in self.cluster.forbidden or found[2] != "tests":
                raise Refusal(403, "Forbidden", f'{found[3]} is forbidden: User "dev" cannot do this in the namespace "{found[2]}"')  # fmt: skip
            work(found, query, json.loads(raw or b"{}"))
        except Refusal as refusal:
            self.answer(refusal.code, refusal.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def post(self, found: re.Match[str], query: Mapping[str, str], body: dict[str, Any]) -> None:
        self.answer(201, self.cluster.create(found[3], found[2], body))

    def remove(self, found: re.Match[str], query: Mapping[str, str], body: dict[str, Any]) -> None:
        if found[3] in self.cluster.no_deletion:
            raise Refusal(500, "InternalError", "etcdserver: request timed out")
        self.cluster.delete(found[3], found[4], body)
        self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def get(self, found: re.Match[str], query: Mapping[str, str], body: object) -> None:
        if found[5]:
            self.log(found[4], query)
        elif query.get("watch"):
            self.watch(found[3], query)
        elif found[4]:
            thing = self.cluster.objects.get((found[3], found[4]))
            if thing is None:
                raise Refusal(404, "NotFound", f'{found[3]} "{found[4]}" not found')
            self.answer(200, thing)
        else:
            with self.cluster.news:
                items = [t for (kind, _), t in self.cluster.objects.items() if kind == found[3] and _selected(t, query)]
                meta = {"resourceVersion": str(self.cluster.version)}
                self.answer(
                    200, {"kind": f"{KINDS[found[3]]}List", "apiVersion": "v1", "metadata": meta, "items": items}
                )

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def watch(self, kind: str, query: Mapping[str, str]) -> None:
        at = int(query["resourceVersion"])
        cluster = self.cluster
        self.begin_stream()
        if cluster.forget:
            cluster.forget -= 1
            gone = Refusal(410, "Expired", "too old resource version").body
            self.chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            self.chunk(b"")
            return
        sent = 0
        end = time.monotonic() + float(query.get("timeoutSeconds", "60"))
        while not cluster.closed and time.monotonic() < end:
            with cluster.news:
                fresh = [c for c in cluster.changes if c[0] > at and c[1] == kind and _selected(c[3], query)]
                if not fresh:
                    cluster.news.wait(0.2)
            for version, _, change, thing in fresh:
                if cluster.drop_watches and sent:
                    cluster.drop_watches -= 1
                    self.wfile.write(b'40\r\n{"type": "MODIF')  # in the middle of a line
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                self.chunk(json.dumps({"type": change, "object": thing}).encode() + b"\n")
                at, sent = version, sent + 1
        self.chunk(b"")

    def log(self, name: str, query: Mapping[str, str]) -> None:
        cluster = self.cluster
        if ("pods", name) not in cluster.objects:
            raise Refusal(404, "NotFound", f'pods "{name}" not found')
        if name not in cluster.logs:
            raise Refusal(400, "BadRequest", f'container "test" in pod "{name}" is waiting to start: ContainerCreating')
        self.begin_stream()
        sent = 0
        while True:
            with cluster.news:
                data = bytes(cluster.logs[name][sent:])
                ended = cluster.processes[name].poll() is not None or query.get("follow") != "true" or cluster.closed
                if not data and not ended:
                    cluster.news.wait(0.2)
            if data:
                self.chunk(data)
                sent += len(data)
                if cluster.drop_logs:
                    cluster.drop_logs -= 1
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
            elif ended:
                break
        self.chunk(b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


def _selected(thing: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
    return wanted.items() <= thing["metadata"].get("labels", {}).items()


@contextmanager
def serving(cluster: FakeCluster) -> Iterator[Path]:
    """The cluster's API on loopback; yields a kubeconfig that leads to it."""
    cluster.folder = Path(tempfile.mkdtemp(prefix="vdk-"))
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    file = cluster.folder / "kubeconfig"
    file.write_text(json.dumps({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "tests"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
    }))  # fmt: skip
    try:
        yield file
    finally:
        cluster.close()
        server.shutdown()
        server.server_close()
        thread.join(5)
        shutil.rmtree(cluster.folder, ignore_errors=True)
