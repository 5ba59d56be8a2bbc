"""Kubernetes: an Indexed Job whose pods go through the test by themselves, watched from here and removed whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.addresses import Allowance
from tools.launchers.frames import FrameReader
from tools.launchers.kubernetes_api import Api, ApiError
from tools.launchers.kubernetes_objects import CONTAINER, RUN, JobPlan, config_map, job, service, trouble
from tools.launchers.site import Site, SiteError
from tools.sanity.rank_worker import STAGES
from tools.sanity.results import plain
from tools.sources.base import SourceFailedError, rows, table, text
from tools.sources.kubeconfig import Cluster, from_kubeconfig, in_cluster

#: Seconds that a pod may want for a node, or for an image that cannot be had, until it is given up.
UNPLACED_S = 60.0
#: Seconds after which it is asked why a Job has made no pods.
_NO_PODS_S = 10.0
#: Seconds that a pod's ranks may go on once those of all others have ended: its node is gone, and Kubernetes waits minutes
#: to say so.
_LAST_S = 30.0
#: Seconds in which the log of a pod that was deleted may still come.
_WORDS_S = 3.0
_BREATH_S = 0.5
#: Watches and lists that may fail in a row.
_MOST_FAILURES = 6
#: Seconds in which everything must have been removed.
_CLEAN_S = 40.0
KINDS = ("jobs", "services", "configmaps")


def cluster_of(place: str, context: str) -> tuple[Cluster, Allowance]:
    """The cluster of a kubeconfig or of the pod this runs in (``in-cluster``), and the permission to speak to it.

    Without ``place``: the kubeconfig of ``KUBECONFIG``, else that of the home folder, else the pod's. Raises
    :class:`SiteError`.
    """
    try:
        given = place or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        usual = Path("~/.kube/config").expanduser()
        if place == "in-cluster" or not (given or usual.exists()):
            cluster = in_cluster()
        else:
            cluster = from_kubeconfig(Path(given).expanduser() if given else usual, context)
    except (SourceFailedError, ValueError) as error:
        raise SiteError("no-kubernetes", text=str(error)) from None
    # The person named this cluster, or runs inside it: its certificate is checked, its address may be private.
    allowance = replace(
        Allowance.of(cluster.address, private=True, ca_file=cluster.ca_file),
        ca_data=cluster.ca_data,
        client_cert=cluster.client_cert,
    )
    return cluster, allowance


def new_name() -> str:
    """A name for one run's objects."""
    return f"vllm-diagnose-{secrets.token_hex(4)}"


@contextlib.asynccontextmanager
async def kubernetes_site(
    api: Api, plan: JobPlan, on_left: Callable[[str], None], context: str = ""
) -> AsyncIterator[Site]:
    """Make the objects, watch the pods and read what they print; at the end remove everything and wait until it is gone.

    ``on_left`` is given the command that removes what could not be removed. Raises :class:`SiteError`.
    """
    site = Site()
    site.expected = plan.count
    site.alone = True
    watcher: asyncio.Task[None] | None = None
    made: set[str] = set()
    try:
        await _create(api, plan, made)
        watcher = asyncio.create_task(_Watcher(api, plan, site).run())
        yield site
    finally:
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        cleaning = asyncio.ensure_future(_clean(api, plan, made))
        try:
            await asyncio.shield(cleaning)
        except asyncio.CancelledError:  # a second interruption does not leave objects behind either
            await cleaning
            raise
        finally:
            if not cleaning.done() or cleaning.cancelled() or not cleaning.result():
                on_left(by_hand(plan, context))


def by_hand(plan: JobPlan, context: str = "") -> str:
    """The command that removes what belongs to this run."""
    where = f"--context {context} " if context else ""
    return f"kubectl {where}-n {plan.namespace} delete job,service,configmap,pod -l {RUN}={plan.name}"


async def _create(api: Api, plan: JobPlan, made: set[str]) -> None:
    """Make all objects; ``made`` are the kinds that may be there now, also where no answer came."""
    what = "jobs"
    try:
        made.add(what)
        owner = text(table((await api.create("jobs", job(plan))).get("metadata")).get("uid"))
        for what, body in (("configmaps", config_map(plan, owner)), ("services", service(plan, owner))):
            made.add(what)
            await api.create(what, body)
    except ApiError as error:
        if 400 <= error.status < 500:
            made.discard(what)
        kind = "kubernetes-forbidden" if error.status in (401, 403) else "kubernetes-refused"
        raise SiteError(kind, what=what, namespace=plan.namespace, text=error.said) from None


async def _clean(api: Api, plan: JobPlan, made: set[str]) -> bool:
    """Remove what was made, as often as it takes; says whether nothing is left."""
    if not made:
        return True
    end = time.monotonic() + _CLEAN_S
    left = set(made)
    pause = 0.2
    while time.monotonic() < end:
        for kind in KINDS:
            if kind in left:
                with contextlib.suppress(ApiError, TimeoutError):
                    async with asyncio.timeout(max(0.1, end - time.monotonic())):
                        await api.delete(kind, plan.name)
                        left.discard(kind)
        if not left:
            with contextlib.suppress(ApiError, TimeoutError):
                async with asyncio.timeout(max(0.1, end - time.monotonic())):
                    pods, _ = await api.list("pods", labelSelector=f"{RUN}={plan.name}")
                    if not pods:
                        return True
        await asyncio.sleep(pause)
        pause = min(pause * 2, 3.0)
    return False


@dataclass
class _Watcher:
    """Follows the pods of one run until every node of the site has said its last word."""

    api: Api
    plan: JobPlan
    site: Site
    frames: FrameReader = field(default_factory=FrameReader)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    readers: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    troubled: dict[int, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    quiet_since: float | None = None

    @property
    def last_s(self) -> float:
        """A cold import may take longer on one node than a failure on another one."""
        return max(_LAST_S, self.plan.stage_s or 0.0) + STAGES["import"]

    async def run(self) -> None:
        """Watch until it is over; a cluster that stops answering ends the site with the reason."""
        clock = asyncio.create_task(self._look_around())
        try:
            await self._watch()
        except ApiError as error:
            self.site.last_words = error.said
        finally:
            clock.cancel()
            for reader in self.readers.values():
                reader.cancel()
            await asyncio.gather(clock, *self.readers.values(), return_exceptions=True)
            self.site.over = True
            self.site.changed()

    async def _watch(self) -> None:
        """List, then watch from there. A watch that breaks off goes on where it was; a forgotten place is listed anew."""
        selector = f"{RUN}={self.plan.name}"
        version = ""
        failures = 0
        while not self._all_over():
            try:
                if not version:
                    found, version = await self.api.list("pods", labelSelector=selector)
                    known = {_pod_name(pod) for pod in found}
                    for name in [name for name in self.pods if name not in known]:
                        self._take("DELETED", self.pods[name])
                    for pod in found:
                        self._take("ADDED", pod)
                async with contextlib.aclosing(self.api.watch("pods", version, labelSelector=selector)) as changes:
                    async for change in changes:
                        failures = 0
                        version = change.version or version
                        if change.kind != "BOOKMARK":
                            self._take(change.kind, change.object)
                        if self._all_over():
                            return
                await asyncio.sleep(_BREATH_S)  # a proxy may end every watch at once
            except ApiError as error:
                if error.status == 410:
                    version = ""
                    failures += 1
                elif error.status in (401, 403):
                    raise
                else:
                    failures += 1
                if failures > _MOST_FAILURES:
                    raise
                await asyncio.sleep(min(0.1 * 2**failures, 5.0))

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        name = _pod_name(pod)
        task = self._task(pod)
        if task is None:
            return
        self.pods[name] = pod
        part = self.site.part(task)
        part.name = part.name or plain(text(table(pod.get("spec")).get("nodeName")), 80)
        if kind == "DELETED":  # its last words may still be on their way
            asyncio.get_running_loop().call_later(_WORDS_S, self._ended, task, name, "the pod was deleted")
            return
        status = table(pod.get("status"))
        containers = rows(status.get("containerStatuses"))
        if any(set(table(row.get("state"))) & {"running", "terminated"} for row in containers):
            self.troubled.pop(task, None)
            if task not in self.readers:
                self.readers[task] = asyncio.create_task(self._read(task, name))
        elif text(status.get("phase")) == "Failed":
            self._ended(task, name, f"{text(status.get('reason'))} {text(status.get('message'))}".strip())
        elif trouble(pod, containers)[0]:
            self.troubled.setdefault(task, time.monotonic())
        else:
            self.troubled.pop(task, None)
        self.site.changed()

    def _task(self, pod: dict[str, Any]) -> int | None:
        found = table(table(pod.get("metadata")).get("annotations")).get("batch.kubernetes.io/job-completion-index")
        task = int(found) if isinstance(found, str) and found.isdecimal() else None
        return task if task is not None and task < self.plan.count else None

    async def _read(self, task: int, name: str) -> None:
        """The log of one pod to its end. A connection that breaks is opened again; frames that came before are known."""
        failures = 0
        while not self.site.part(task).silent and failures <= _MOST_FAILURES:
            ended = self._terminated(name)
            try:
                lines = self.api.follow(name, CONTAINER, follow=not ended, seconds=self.plan.deadline_s)
                async with contextlib.aclosing(lines):
                    async for line in lines:
                        event = self.frames.read(line)
                        if event is not None and event["task"] == task:
                            self.site.take(event)
                if ended:
                    break
                failures = 0
            except ApiError:
                failures += 1
            await asyncio.sleep(min(0.2 * 2**failures, 5.0))
        if not self.site.part(task).silent:
            self._ended(task, name, "its log could not be read" if failures > _MOST_FAILURES else "")

    def _terminated(self, name: str) -> bool:
        status = table(self.pods[name].get("status"))
        return all("terminated" in table(row.get("state")) for row in rows(status.get("containerStatuses")))

    def _ended(self, task: int, name: str, why: str) -> None:
        """The node's last word has been read; what was not said by then will not be."""
        part = self.site.part(task)
        if part.silent:
            return
        for row in rows(table(self.pods[name].get("status")).get("containerStatuses")):
            state = table(table(row.get("state")).get("terminated"))
            if state:
                why = why or f"{text(state.get('reason'))}, exit code {state.get('exitCode')}"
        self.site.lose(task, "died" if part.hello else "broken", f"pod {name}: {why}")

    def _all_over(self) -> bool:
        parts = self.site.parts
        return len(parts) == self.plan.count and all(part.silent for part in parts.values())

    async def _look_around(self) -> None:
        """What no change of a pod tells: that there is none, that one waits too long, that one has gone quiet."""
        asked = False
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            if not self.pods and not asked and now - self.began > _NO_PODS_S:
                asked = True
                await self._why_no_pods()
            for task, since in list(self.troubled.items()):
                pod = next(pod for pod in self.pods.values() if self._task(pod) == task)
                reason, message = trouble(pod, rows(table(pod.get("status")).get("containerStatuses")))
                if now - since > UNPLACED_S:
                    self.site.lose(task, "waiting", f"{reason}: {message}")
            await self._look_for_missing(now)
            talking = [part for part in self.site.parts.values() if not part.silent and "ranks" not in part.ended]
            if len(self.site.parts) == self.plan.count and 0 < len(talking) < self.plan.count:
                self.quiet_since = self.quiet_since or now
                if now - self.quiet_since > self.last_s:
                    for part in talking:
                        self.site.lose(part.task, "died", "the others have ended and its pod says nothing more")
            else:
                self.quiet_since = None

    async def _look_for_missing(self, now: float) -> None:
        """Give up the nodes that the Job has made no pod for, or whose pod was gone before it was seen."""
        if not self.pods or now - self.began <= UNPLACED_S:
            return
        missing = [task for task in range(self.plan.count) if task not in self.site.parts]
        if missing:
            said = await self._warning()
            for task in missing:
                self.site.lose(task, "waiting", said or "the Job has no pod for it")

    async def _why_no_pods(self) -> None:
        """The Job's own events say what kept it from making pods: a quota, a policy."""
        said = await self._warning()
        if said:
            self.site.refused = SiteError("kubernetes-no-pods", text=plain(said))
            self.site.changed()

    async def _warning(self) -> str:
        """The last warning about the Job, or nothing."""
        with contextlib.suppress(ApiError):
            chosen = f"involvedObject.kind=Job,involvedObject.name={self.plan.name},type=Warning"
            found, _ = await self.api.list("events", fieldSelector=chosen)
            return text(found[-1].get("message"), 600) if found else ""
        return ""


def _pod_name(pod: dict[str, Any]) -> str:
    return text(table(pod.get("metadata")).get("name"))
