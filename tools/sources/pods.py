"""What a pod and its events say: how its container ended, who ended it, what it was allowed and how it was probed.

Field names are those of the Kubernetes API (Pod v1 core, Event v1 core); the texts of events are the kubelet's
(pkg/kubelet/kuberuntime/kuberuntime_manager.go, pkg/kubelet/events, pkg/kubelet/eviction) and the deployment
controller's (pkg/controller/deployment/sync.go), release 1.32. Defaults of probes:
https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tools.evidence import Evidence
from tools.sources.base import fact, moment, rows, table, text, whole

#: What ended longer ago, on a pod that is ready again, is history and no incident.
RECENT = timedelta(hours=1)
#: An event and the end that it speaks of may lie this far apart (grace period, clocks of node and API server).
_TOGETHER = timedelta(minutes=5)
_DEFAULT_SHM = 64 * 1024 * 1024  # what container runtimes mount at /dev/shm (containerd, CRI-O, Docker)
_PROBED = re.compile(r"failed (startup|liveness) probe")
_SCALED_DOWN = re.compile(r"Scaled down replica set (\S+)")
_GPU = re.compile(r"nvidia\.com/(?:gpu|mig-.+)|amd\.com/gpu|gpu\.intel\.com/.+")
_UNITS = {
    "": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip
_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)([munkKMGTPE]i?)?")
#: Reasons of the pod condition DisruptionTarget, as https://kubernetes.io/docs/concepts/workloads/pods/disruptions/ has them.
_DISRUPTED = {
    "EvictionByEvictionAPI": "eviction",
    "TerminationByKubelet": "eviction",
    "PreemptionByScheduler": "preemption",
    "DeletionByTaintManager": "node",
    "DeletionByPodGC": "node",
}
_EVENT_ENDS = {
    "Evicted": "eviction",
    "Preempted": "preemption",
    "Preempting": "preemption",
    "TaintManagerEviction": "node",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How one run of a container ended (ContainerStateTerminated)."""

    reason: str
    exit_code: int | None
    started: datetime | None
    finished: datetime | None
    message: str

    @property
    def lived_s(self) -> float | None:
        if self.started is None or self.finished is None:
            return None
        return max(0.0, (self.finished - self.started).total_seconds())


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``about`` is "Pod/vllm-0", ``at`` the last time it happened."""

    about: str
    reason: str
    message: str
    at: datetime | None
    count: int


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a namespace, newest first."""

    all: tuple[Event, ...] = ()

    @classmethod
    def read(cls, found: list[dict[str, Any]]) -> Events:
        events = []
        for row in found:
            about = table(row.get("involvedObject"))
            series = table(row.get("series"))
            at = (
                moment(series.get("lastObservedTime"))
                or moment(row.get("lastTimestamp"))
                or moment(row.get("eventTime"))
            )
            events.append(
                Event(
                    f"{text(about.get('kind'), 60)}/{text(about.get('name'), 260)}",
                    text(row.get("reason"), 80),
                    text(row.get("message"), 1000),
                    at,
                    whole(row.get("count")) or 1,
                )
            )
        never = datetime(1971, 1, 1, tzinfo=UTC)
        return cls(tuple(sorted(events, key=lambda event: event.at or never, reverse=True)))

    def of(self, *names: str) -> Iterator[Event]:
        """Events about the pods of these names."""
        return (event for event in self.all if event.about in {f"Pod/{name}" for name in names})

    def scaled_down(self, replica_set: str) -> Event | None:
        """The event of a deployment that took pods away from this replica set."""
        for event in self.all:
            found = _SCALED_DOWN.search(event.message) if event.reason == "ScalingReplicaSet" else None
            if found is not None and found.group(1) == replica_set:
                return event
        return None


@dataclass(frozen=True, slots=True)
class Pod:
    """The parts of a pod that bear on an incident. ``raw`` parts are kept as the API gave them."""

    name: str
    phase: str = ""
    reason: str = ""
    message: str = ""
    deleted_at: datetime | None = None
    owner_kind: str = ""
    owner: str = ""
    template_hash: str = ""
    disruption: tuple[str, str, datetime | None] | None = None
    unschedulable: str = ""
    container: str = ""
    restarts: int = 0
    ready: bool = False
    ready_since: datetime | None = None
    running_since: datetime | None = None
    waiting: tuple[str, str] = ("", "")
    ended: Ended | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    pod_spec: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, row: dict[str, Any], wanted: str = "") -> Pod:
        meta, spec, status = table(row.get("metadata")), table(row.get("spec")), table(row.get("status"))
        owner = next(iter(rows(meta.get("ownerReferences"))), {})
        chosen = _server_container(rows(spec.get("containers")), wanted)
        name = text(chosen.get("name"), 70)
        state = next((s for s in rows(status.get("containerStatuses")) if s.get("name") == name), {})
        now, last = table(state.get("state")), table(state.get("lastState"))
        conditions = {text(c.get("type"), 60): c for c in rows(status.get("conditions"))}
        disruption = conditions.get("DisruptionTarget", {})
        ready, scheduled = conditions.get("ContainersReady", {}), conditions.get("PodScheduled", {})
        waiting = table(now.get("waiting"))
        return cls(
            name=text(meta.get("name"), 260),
            phase=text(status.get("phase"), 30),
            reason=text(status.get("reason"), 60),
            message=text(status.get("message"), 1000),
            deleted_at=moment(meta.get("deletionTimestamp")),
            owner_kind=text(owner.get("kind"), 60),
            owner=text(owner.get("name"), 260),
            template_hash=text(table(meta.get("labels")).get("pod-template-hash"), 60),
            disruption=(
                (text(disruption.get("reason"), 60), text(disruption.get("message"), 500), moment(disruption.get("lastTransitionTime")))
                if disruption.get("status") == "True"
                else None
            ),
            unschedulable=text(scheduled.get("message"), 600) if scheduled.get("reason") == "Unschedulable" else "",
            container=name,
            restarts=whole(state.get("restartCount")) or 0,
            ready=state.get("ready") is True,
            ready_since=moment(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
            running_since=moment(table(now.get("running")).get("startedAt")),
            waiting=(text(waiting.get("reason"), 60), text(waiting.get("message"), 600)),
            ended=_ended(table(now.get("terminated"))) or _ended(table(last.get("terminated"))),
            spec=chosen,
            pod_spec=spec,
        )  # fmt: skip

    @property
    def ran(self) -> bool:
        """Whether the container ever ran, so that a log can exist."""
        return self.running_since is not None or self.ended is not None

    def trouble(self, now: datetime) -> int:
        """How much this pod is the one to look at."""
        recent = self.ended is not None and self.ended.finished is not None and now - self.ended.finished < RECENT
        return (
            8 * (self.reason == "Evicted" or self.disruption is not None)
            + 4 * (not self.ready)
            + 2 * recent
            + (self.restarts > 0)
        )

    @property
    def workload(self) -> str:
        """What to edit, as kubectl names it: "deployment/vllm", "statefulset/vllm"; empty where nothing owns the pod."""
        if self.owner_kind == "ReplicaSet" and self.template_hash and self.owner.endswith(f"-{self.template_hash}"):
            return f"deployment/{self.owner.removesuffix(f'-{self.template_hash}')}"
        return f"{self.owner_kind.lower()}/{self.owner}" if self.owner_kind in ("StatefulSet", "DaemonSet") else ""


def pod_facts(
    pod: Pod | None, events: Events, source: str, namespace: str, asked: str, now: datetime
) -> Iterator[Evidence]:
    """The facts of one pod, or of one that is gone and of which only events are left (``asked`` is its name)."""
    yield fact("pod.namespace", namespace, source)
    if pod is None:
        for event in events.of(asked):
            by = _EVENT_ENDS.get(event.reason)
            if by:
                yield fact("container.stopped_by", by, source, f"{event.reason}: {event.message}", event.at)
                return
        return
    yield fact("pod.name", pod.name, source)
    if pod.container:
        yield fact("pod.container", pod.container, source)
    if pod.workload:
        yield fact("pod.workload", pod.workload, source)
    yield fact("container.restarts", pod.restarts, source, f"restartCount: {pod.restarts}")
    if pod.waiting[0]:
        yield fact("container.waiting", pod.waiting[0], source, ": ".join(filter(None, pod.waiting)))
    elif pod.unschedulable:
        yield fact("container.waiting", "Unschedulable", source, pod.unschedulable)
    yield from _allowed(pod, source)
    yield from _probes(pod, source)
    if pod.ready and pod.ready_since and pod.running_since and pod.ready_since >= pod.running_since:
        seconds = (pod.ready_since - pod.running_since).total_seconds()
        yield fact("container.startup_s", seconds, source, f"ready {seconds:.0f} s after its start", pod.ready_since)
    ended = pod.ended
    old = ended is not None and pod.ready and ended.finished is not None and now - ended.finished > RECENT
    if ended is not None and not old:
        quote = f"terminated: reason {ended.reason}, exit code {ended.exit_code}. {ended.message}".rstrip(". ")
        if ended.exit_code is not None:
            yield fact("container.exit_code", ended.exit_code, source, quote, ended.finished)
        if ended.lived_s is not None:
            yield fact("container.lived_s", ended.lived_s, source, f"it ran for {ended.lived_s:.0f} s", ended.finished)
    if not old:
        stopped = _stopped_by(pod, events)
        if stopped is not None:
            by, quote, at = stopped
            yield fact("container.stopped_by", by, source, quote, at)


def _stopped_by(pod: Pod, events: Events) -> tuple[str, str, datetime | None] | None:
    """Who ended the container, with the words that say so; None where nothing says it or nothing ended."""
    ended = pod.ended
    if ended is not None and ended.reason == "OOMKilled":
        return "out-of-memory", f"reason OOMKilled, exit code {ended.exit_code}", ended.finished
    if pod.reason in ("Evicted", "Preempting", "NodeLost", "NodeShutdown", "Terminated"):
        by = {"Evicted": "eviction", "Preempting": "preemption"}.get(pod.reason, "node")
        return by, f"{pod.reason}: {pod.message}", ended.finished if ended else None
    if pod.disruption is not None and pod.disruption[0] in _DISRUPTED:
        return _DISRUPTED[pod.disruption[0]], f"{pod.disruption[0]}: {pod.disruption[1]}", pod.disruption[2]
    for event in events.of(pod.name):
        found = _PROBED.search(event.message)
        if event.reason == "Killing" and found is not None and _belongs(event, ended):
            failing = next(
                (e for e in events.of(pod.name) if e.reason == "Unhealthy" and found.group(1) in e.message.lower()),
                None,
            )
            quote = event.message + (f" ({failing.message}, {failing.count} times)" if failing else "")
            return f"{found.group(1)}-probe", quote, event.at
        if event.reason in _EVENT_ENDS and _belongs(event, ended):
            return _EVENT_ENDS[event.reason], f"{event.reason}: {event.message}", event.at
    if pod.deleted_at is not None:
        scaled = events.scaled_down(pod.owner) if pod.owner_kind == "ReplicaSet" else None
        if scaled is not None:
            return "rollout", scaled.message, scaled.at
        return "deletion", f"deletionTimestamp: {pod.deleted_at:%Y-%m-%dT%H:%M:%SZ}", pod.deleted_at
    if ended is not None and ended.exit_code not in (None, 0, 137, 143):
        return "itself", f"exit code {ended.exit_code}", ended.finished
    return None


def _belongs(event: Event, ended: Ended | None) -> bool:
    """Whether an event can speak of this end: near it, or nothing has ended yet."""
    if ended is None or ended.finished is None or event.at is None:
        return True
    return abs(event.at - ended.finished) < _TOGETHER


def _allowed(pod: Pod, source: str) -> Iterator[Evidence]:
    limits = table(table(pod.spec.get("resources")).get("limits"))
    memory = _bytes(limits.get("memory"))
    if memory:
        yield fact("container.memory_limit_gib", round(memory / 2**30, 3), source, f"limits.memory: {limits['memory']}")
    gpus = [
        (key, whole(value) if not isinstance(value, str) else _bytes(value))
        for key, value in limits.items()
        if _GPU.fullmatch(key)
    ]
    if gpus:
        count = sum(int(number or 0) for _, number in gpus)
        yield fact("container.gpus", count, source, ", ".join(f"limits {key}: {number}" for key, number in gpus))
    if pod.pod_spec.get("hostIPC") is True:
        return  # the machine's own /dev/shm
    shm, quote = _shm(pod)
    if shm is not None:
        yield fact("container.shm_bytes", shm, source, quote)


def _shm(pod: Pod) -> tuple[int | None, str]:
    """The size of /dev/shm in bytes, as the volumes decide it; None where nothing but the node limits it."""
    mount = next((m for m in rows(pod.spec.get("volumeMounts")) if m.get("mountPath") == "/dev/shm"), None)  # noqa: S108
    if mount is None:
        return _DEFAULT_SHM, "no volume is mounted at /dev/shm: the runtime's 64 MiB"
    volume = next((v for v in rows(pod.pod_spec.get("volumes")) if v.get("name") == mount.get("name")), {})
    empty = table(volume.get("emptyDir"))
    size = _bytes(empty.get("sizeLimit"))
    if size:
        return int(size), f"the volume at /dev/shm: emptyDir, sizeLimit {empty['sizeLimit']}"
    return None, ""


def _probes(pod: Pod, source: str) -> Iterator[Evidence]:
    """The probe that a start has to outlast: the startup probe, or without one the liveness probe.

    Its window is ``initialDelaySeconds + failureThreshold x periodSeconds``, with the API's defaults of 0, 3 and 10.
    """
    kind = next((kind for kind in ("startup", "liveness") if isinstance(pod.spec.get(f"{kind}Probe"), dict)), None)
    if kind is None:
        return
    probe = table(pod.spec.get(f"{kind}Probe"))
    delay = whole(probe.get("initialDelaySeconds")) or 0
    period = whole(probe.get("periodSeconds")) or 10
    threshold = whole(probe.get("failureThreshold")) or 3
    quote = f"{kind}Probe: initialDelaySeconds {delay}, periodSeconds {period}, failureThreshold {threshold}"
    yield fact("probe.kind", kind, source, quote)
    yield fact("probe.window_s", delay + threshold * period, source, f"{quote}: {delay + threshold * period} s in all")
    yield fact("probe.initial_delay_s", delay, source)
    yield fact("probe.period_s", period, source)
    yield fact("probe.failure_threshold", threshold, source)
    get = table(probe.get("httpGet"))
    port = get.get("port")
    if isinstance(port, (int, str)) and not isinstance(port, bool):
        yield fact("probe.port", str(port)[:20], source)
        yield fact("probe.path", text(get.get("path"), 200) or "/", source)


def _server_container(containers: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    if wanted:
        return next((c for c in containers if c.get("name") == wanted), {})
    with_gpu = [c for c in containers if any(_GPU.fullmatch(k) for k in table(table(c.get("resources")).get("limits")))]
    return (with_gpu or containers or [{}])[0]


def _ended(state: dict[str, Any]) -> Ended | None:
    if not state:
        return None
    return Ended(
        text(state.get("reason"), 60),
        whole(state.get("exitCode")),
        moment(state.get("startedAt")),
        moment(state.get("finishedAt")),
        text(state.get("message"), 500),
    )


def _bytes(value: object) -> float | None:
    """A Kubernetes quantity ("16Gi", "1e3" is not taken) as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None or (found.group(2) or "") not in _UNITS:
        return None
    return float(found.group(1)) * _UNITS[found.group(2) or ""]
