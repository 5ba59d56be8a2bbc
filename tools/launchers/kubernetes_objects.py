"""The objects of a test or check over several nodes of a Kubernetes cluster: an Indexed Job, its headless Service, its program.

Indexed Job: https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode , its pods' names:
https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/ . The Service and the ConfigMap belong to the Job,
so the cluster removes them with it, and the Job itself some minutes after its end, even where nobody here is left to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.launchers.site import node_program

#: Label of everything that belongs to one run; its value is the name of the Job.
RUN = "vllm-diagnose/run"
CONTAINER = "test"
#: Seconds after which the cluster removes a Job that has ended and that nobody removed.
_KEEP_S = 600
#: What the shared memory stage fills (rank_worker.SHM_BYTES) fits several times, and NCCL's SHM transport besides.
_SHM = "1Gi"
_PROGRAM = "/vllm-diagnose"


@dataclass(frozen=True, slots=True)
class JobPlan:
    """``count`` pods, each on a node of its own, with ``ranks_per_node`` ranks and as many GPUs unless ``cpu_only``.

    With ``checks_s`` they only look at themselves, for so many seconds at most.
    """

    name: str
    namespace: str
    image: str
    count: int
    ranks_per_node: int = 1
    nodes: tuple[str, ...] = ()
    python: str = "python3"
    ports: tuple[int, ...] = (29500,)
    mesh: int = 16
    cpu_only: bool = False
    host_network: bool = False
    stage_s: float | None = None
    deadline_s: float = 1800.0
    checks_s: float | None = None

    def host(self, index: int) -> str:
        """The name under which the pod of this index is reached inside the cluster."""
        return f"{self.name}-{index}.{self.name}.{self.namespace}.svc"


def _metadata(plan: JobPlan, owner: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": plan.name,
        "namespace": plan.namespace,
        "labels": {"app.kubernetes.io/name": "vllm-diagnose", "app.kubernetes.io/component": "checks" if plan.checks_s else "collectives", RUN: plan.name},
    }  # fmt: skip
    if owner:
        found["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": plan.name, "uid": owner}]
    return found


def job(plan: JobPlan) -> dict[str, Any]:
    """The Job. A pod that fails is not started again: a second one would join a group that is broken already. Pods that only
    look know nothing of each other, and one that fails must not end the Job and so the others."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(plan),
        "spec": {
            "completionMode": "Indexed",
            "completions": plan.count,
            "parallelism": plan.count,
            "backoffLimit": plan.count if plan.checks_s else 0,
            "activeDeadlineSeconds": int(plan.deadline_s),
            "ttlSecondsAfterFinished": _KEEP_S,
            "template": {"metadata": {"labels": _metadata(plan)["labels"]}, "spec": _pod(plan)},
        },
    }


def service(plan: JobPlan, owner: str) -> dict[str, Any]:
    """The headless Service that gives every pod a name, before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan, owner),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {RUN: plan.name}},
    }


def config_map(plan: JobPlan, owner: str) -> dict[str, Any]:
    """The program of the pods."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, owner),
        "immutable": True,
        "data": {"node.py": node_program()},
    }


def _pod(plan: JobPlan) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": plan.image,
        "command": [plan.python, "-I", f"{_PROGRAM}/node.py", *_arguments(plan)],
        "env": [_field("POD_IP", "status.podIP"), _field("NODE_NAME", "spec.nodeName")],
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi" if plan.checks_s else "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "program", "mountPath": _PROGRAM, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 (in the pod)
        ],
    }
    if not plan.cpu_only:
        container["resources"]["limits"] = {"nvidia.com/gpu": plan.ranks_per_node}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": plan.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 10,
        "affinity": _affinity(plan),
        "tolerations": [] if plan.cpu_only and not plan.checks_s else [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [
            {"name": "program", "configMap": {"name": plan.name}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _SHM}},
        ],
    }  # fmt: skip
    if plan.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return spec


def _arguments(plan: JobPlan) -> list[str]:
    if plan.checks_s:
        return ["--checks", str(plan.checks_s)]
    names = ",".join(plan.host(index) for index in range(plan.count))
    found = ["--names", names, "--here", str(plan.ranks_per_node), "--ports", ",".join(map(str, plan.ports))]
    found += ["--mesh", str(plan.mesh), "--rank-seconds", str(max(60.0, plan.deadline_s - 120))]
    found += ["--cpu-only"] if plan.cpu_only else []
    return found + (["--stage-seconds", str(plan.stage_s)] if plan.stage_s else [])


def _affinity(plan: JobPlan) -> dict[str, Any]:
    apart = {"labelSelector": {"matchLabels": {RUN: plan.name}}, "topologyKey": "kubernetes.io/hostname"}
    found: dict[str, Any] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    if plan.nodes:
        named = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(plan.nodes)}
        terms = [{"matchExpressions": [named]}]
        found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return found


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def trouble(pod: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Why a pod does not run, as a reason and a message; two empty texts where it runs or is about to.

    ``rows`` are its ``containerStatuses``.
    """
    for row in rows:
        waiting = (row.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return str(waiting["reason"]), str(waiting.get("message") or "")
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("reason") or "Unschedulable"), str(condition.get("message") or "")
    return "", ""
