"""Kubernetes: who ended a pod, its probes and limits, which of its logs is read, and what the API refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.tools.sources.conftest import facts, look
from tests.tools.sources.fakes import FakeKubernetes, serving
from tools.sources.base import SourceFailedError, Survey
from tools.sources.kubernetes import Kubernetes

NOW = datetime(2026, 11, 21, 9, 20, tzinfo=UTC)
POD = "vllm-6d4b75cb6d-x2x7p"
Recorded = Callable[[str], Any]


def event(
    reason: str, message: str, at: str = "2026-11-21T09:10:06Z", about: str = f"Pod/{POD}", count: int = 1
) -> dict[str, Any]:
    kind, name = about.split("/")
    return {
        "metadata": {"name": f"{name}.{abs(hash((reason, message)))}", "namespace": "inference"},
        "involvedObject": {"kind": kind, "name": name, "namespace": "inference"},
        "reason": reason, "message": message, "type": "Warning", "count": count, "lastTimestamp": at, "eventTime": None,
    }  # fmt: skip


def ended(pod: dict[str, Any], *, reason: str, code: int, after_s: int = 300, running: bool = True) -> dict[str, Any]:
    """The pod with its server's container ended once, ``after_s`` seconds after its start."""
    state = pod["status"]["containerStatuses"][1]
    minute, second = divmod(after_s + 5, 60)
    terminated = {
        "exitCode": code, "reason": reason, "startedAt": "2026-11-21T09:00:05Z",
        "finishedAt": f"2026-11-21T09:{minute:02}:{second:02}Z", "containerID": "containerd://1",
    }  # fmt: skip
    state.update(ready=False, restartCount=1, started=False, lastState={"terminated": terminated})
    state["state"] = (
        {"running": {"startedAt": f"2026-11-21T09:{minute:02}:{second:02}Z"}}
        if running
        else {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container=server"}}
    )
    pod["status"]["conditions"][1].update(status="False", reason="ContainersNotReady")
    return pod


def survey(fake: FakeKubernetes, **named: str) -> tuple[Survey, dict[str, list[Any]]]:
    with serving(fake) as url:
        source = Kubernetes(
            "Kubernetes inference", url, named.pop("namespace", "inference"),
            headers={"Authorization": f"Bearer {named.pop('token', 'good')}"}, **(named or {"selector": "app=vllm"}),
        )  # fmt: skip
        return look(source, url=url)


def test_a_startup_probe_that_was_too_short_is_named_with_its_window(recorded: Recorded) -> None:
    fake = FakeKubernetes(
        [ended(recorded("pod"), reason="Error", code=137, after_s=331)],
        [
            event("Unhealthy", 'Startup probe failed: Get "http://10.0.0.5:8000/health": dial tcp 10.0.0.5:8000: connect: connection refused', count=30),
            event("Killing", "Container server failed startup probe, will be restarted", "2026-11-21T09:05:06Z"),
        ],
        {("server", True): b"2026-11-21T09:00:06.123456789Z old\n", ("server", False): b"2026-11-21T09:05:40.1Z new\n"},
        now=NOW,
    )  # fmt: skip
    found, lines = survey(fake)
    known = facts(found)
    assert known["container.stopped_by"] == "startup-probe"
    assert (known["probe.kind"], known["probe.window_s"], known["probe.period_s"]) == ("startup", 300, 10)
    assert (known["container.restarts"], known["container.exit_code"], known["container.lived_s"]) == (1, 137, 331)
    assert known["pod.workload"] == "deployment/vllm" and known["pod.container"] == "server"
    assert (known["container.memory_limit_gib"], known["container.gpus"]) == (64.0, 4)
    assert known["container.shm_bytes"] == 64 << 20
    quote = next(item.quote for item in found.reading.evidence if item.name == "container.stopped_by")
    assert "failed startup probe" in quote and "connection refused" in quote and "30 times" in quote
    ((name, read),) = lines.items()
    assert name.endswith("(previous container)") and [line.text for line in read] == ["old"]
    assert read[0].at == datetime(2026, 11, 21, 9, 0, 6, 123456, tzinfo=UTC)


def test_without_a_startup_probe_the_liveness_probe_counts_with_its_delay(recorded: Recorded) -> None:
    pod = ended(recorded("pod"), reason="Error", code=143, after_s=150)
    container = pod["spec"]["containers"][1]
    del container["startupProbe"]
    container["livenessProbe"] |= {"initialDelaySeconds": 120}
    events = [event("Killing", "Container server failed liveness probe, will be restarted", "2026-11-21T09:02:30Z")]
    found, _ = survey(FakeKubernetes([pod], events, {("server", True): b""}, now=NOW))
    known = facts(found)
    assert (known["container.stopped_by"], known["probe.kind"], known["probe.window_s"]) == (
        "liveness-probe",
        "liveness",
        150,
    )
    assert (known["probe.port"], known["probe.path"]) == ("8000", "/health")


def test_oom_is_told_from_a_probe_that_failed_at_another_time(recorded: Recorded) -> None:
    events = [event("Killing", "Container server failed liveness probe, will be restarted", "2026-11-21T07:00:00Z")]
    pod = ended(recorded("pod"), reason="OOMKilled", code=137, running=False)
    found, lines = survey(FakeKubernetes([pod], events, {("server", False): b"last words\n"}, now=NOW))
    known = facts(found)
    assert known["container.stopped_by"] == "out-of-memory" and known["container.waiting"] == "CrashLoopBackOff"
    ((name, read),) = lines.items()
    assert name == f"pod inference/{POD}" and read[0].text == "last words" and read[0].at is None


def test_an_old_probe_event_does_not_explain_a_new_end(recorded: Recorded) -> None:
    events = [event("Killing", "Container server failed liveness probe, will be restarted", "2026-11-21T07:00:00Z")]
    pod = ended(recorded("pod"), reason="Error", code=1, running=False)
    found, _ = survey(FakeKubernetes([pod], events, {("server", False): b""}, now=NOW))
    assert facts(found)["container.stopped_by"] == "itself"


def test_eviction_preemption_drain_and_lost_nodes(recorded: Recorded) -> None:
    def of(change: Callable[[dict[str, Any]], None]) -> Any:
        pod = recorded("pod")
        change(pod)
        found, _ = survey(FakeKubernetes([pod], [], {("server", False): b""}, now=NOW))
        return facts(found).get("container.stopped_by")

    def evicted(pod: dict[str, Any]) -> None:
        pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}

    def disrupted(reason: str) -> Callable[[dict[str, Any]], None]:
        row = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": "...",
            "lastTransitionTime": "2026-11-21T09:10:00Z",
        }
        return lambda pod: pod["status"]["conditions"].append(row)

    assert of(evicted) == "eviction"
    assert of(disrupted("EvictionByEvictionAPI")) == "eviction"
    assert of(disrupted("PreemptionByScheduler")) == "preemption"
    assert of(disrupted("DeletionByTaintManager")) == "node"
    assert of(lambda pod: None) is None, "a running pod was ended by nobody"


def test_a_rollout_is_told_from_a_deletion(recorded: Recorded) -> None:
    pod = recorded("pod")
    pod["metadata"]["deletionTimestamp"] = "2026-11-21T09:15:00Z"
    scaled = event(
        "ScalingReplicaSet",
        "Scaled down replica set vllm-6d4b75cb6d from 1 to 0",
        "2026-11-21T09:14:30Z",
        "Deployment/vllm",
    )
    other = event(
        "ScalingReplicaSet", "Scaled down replica set other-123 from 1 to 0", "2026-11-21T09:14:30Z", "Deployment/other"
    )
    logs = {("server", False): b""}
    assert facts(survey(FakeKubernetes([pod], [scaled], logs, now=NOW))[0])["container.stopped_by"] == "rollout"
    assert facts(survey(FakeKubernetes([pod], [other], logs, now=NOW))[0])["container.stopped_by"] == "deletion"


def test_a_pod_that_is_gone_leaves_its_events(recorded: Recorded) -> None:
    fake = FakeKubernetes([], [event("Evicted", "The node was low on resource: ephemeral-storage.")], now=NOW)
    found, lines = survey(fake, pod=POD)
    assert facts(found)["container.stopped_by"] == "eviction" and lines == {}
    assert any("no pod matches" in why for _, why in found.reading.not_measured)


def test_a_healthy_pod_states_how_long_its_start_took_and_an_old_end_is_history(recorded: Recorded) -> None:
    pod = recorded("pod")
    state = pod["status"]["containerStatuses"][1]
    state["restartCount"] = 3
    state["lastState"] = {
        "terminated": {
            "exitCode": 137,
            "reason": "OOMKilled",
            "startedAt": "2026-11-20T01:00:00Z",
            "finishedAt": "2026-11-20T02:00:00Z",
        }
    }
    found, lines = survey(FakeKubernetes([pod], [], {("server", False): b"x\n", ("server", True): b"old\n"}, now=NOW))
    known = facts(found)
    assert known["container.startup_s"] == 240 and known["container.restarts"] == 3
    assert "container.stopped_by" not in known and "container.exit_code" not in known
    ((_, read),) = lines.items()
    assert [line.text for line in read] == ["x"]


def test_the_pod_with_trouble_is_looked_at_among_healthy_ones(recorded: Recorded) -> None:
    pods = []
    for number in range(12):
        pod = recorded("pod")
        pod["metadata"]["name"] = f"vllm-{number}"
        pods.append(ended(pod, reason="OOMKilled", code=137) if number == 7 else pod)
    fake = FakeKubernetes(pods, [], {("server", True): b"", ("server", False): b""}, page=5, now=NOW)
    found, _ = survey(fake)
    assert facts(found)["pod.name"] == "vllm-7"
    assert any("12 pods match" in why for _, why in found.reading.not_measured)


def test_a_list_whose_place_was_forgotten_is_asked_for_again_and_then_given_up(recorded: Recorded) -> None:
    events = [event("Pulled", f"image {n}") for n in range(20)]
    pod = recorded("pod")
    found, _ = survey(FakeKubernetes([pod], events, {("server", False): b""}, page=6, forget=1, now=NOW))
    assert found.reading.not_measured == ()
    found, _ = survey(FakeKubernetes([pod], events, {("server", False): b""}, page=6, forget=9, now=NOW))
    assert [what for what, _ in found.reading.not_measured] == ["events"]
    assert "410" in found.reading.not_measured[0][1]


def test_what_the_api_refuses_is_one_sentence(recorded: Recorded) -> None:
    pod = recorded("pod")
    with pytest.raises(SourceFailedError, match="401 for pods: the token is not accepted"):
        survey(FakeKubernetes([pod]), token="stale")
    with pytest.raises(SourceFailedError, match="403 for pods: this account may not read pods in elsewhere"):
        survey(FakeKubernetes([pod]), namespace="elsewhere", selector="app=vllm")
    found, _ = survey(FakeKubernetes([pod], [], {("server", False): b""}, forbidden=("events",), now=NOW))
    assert found.reading.not_measured[0][0] == "events" and "Role with get and list" in found.reading.not_measured[0][1]
    with pytest.raises(SourceFailedError, match=r"400 for log: .*not found"):
        survey(FakeKubernetes([pod], now=NOW))


@pytest.mark.parametrize("body", [b"<html>login", b'{"kind": "PodList", "items": [', b"", b'{"a": 1}', b"[]"])
def test_hostile_answers_are_one_sentence(body: bytes) -> None:
    with serving(lambda *_: (200, {}, body)) as url, pytest.raises(SourceFailedError, match="answered with"):
        look(Kubernetes("k", url, "inference", selector="app=vllm"), url=url)


def test_fields_of_a_wrong_type_are_passed_over() -> None:
    pod = {
        "kind": "Pod", "metadata": {"name": ["x"], "labels": 3, "ownerReferences": "no"},
        "spec": {"containers": [{"name": 5, "resources": {"limits": {"memory": "lots"}}, "startupProbe": "often"}, "c"]},
        "status": {"containerStatuses": {"a": 1}, "conditions": [None, {"type": 3}]},
    }  # fmt: skip
    page = {"kind": "PodList", "metadata": {"continue": 7}, "items": [pod, None]}
    import json

    with serving(lambda *_: (200, {}, json.dumps(page).encode())) as url:
        found, lines = look(Kubernetes("k", url, "inference", selector="app=vllm"), url=url)
    assert lines == {} and facts(found)["container.restarts"] == 0


def test_secrets_and_control_characters_in_what_is_quoted_do_not_pass(recorded: Recorded) -> None:
    pod = ended(recorded("pod"), reason="Error", code=1, running=False)
    text = "bad \x1b[31m token hf_abcdefghijklmnopqrstuvwxyzABCDEFGH \u202e"
    pod["status"]["containerStatuses"][1]["lastState"]["terminated"]["message"] = text
    found, _ = survey(FakeKubernetes([pod], [], {("server", False): b""}, now=NOW))
    quotes = " ".join(item.quote for item in found.reading.evidence)
    assert "hf_abc" not in quotes and "\x1b" not in quotes and "\u202e" not in quotes and "<secret>" in quotes
