"""What is shipped to run the assistant: little of what it could do, and nothing that it was not told to do."""

from __future__ import annotations

import importlib.util
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from assistant.settings import KEYS

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
VARIABLES = {name for key in KEYS for name in (key.variable, key.variable + "_FILE")} | {"VLLM_DIAGNOSE_CONFIG"}


@pytest.fixture(scope="module")
def helm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("helm_subset", ROOT / "scripts" / "helm_subset.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["helm_subset"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def everything(helm: ModuleType) -> list[dict[str, Any]]:
    given = {"serviceMonitor": {"enabled": True}, "nodeTools": {"enabled": True}, "targets": {"a'\"\n": "#: }"}}
    found: list[dict[str, Any]] = helm.documents(given)
    return found


def kinds(objects: list[dict[str, Any]]) -> list[str]:
    return sorted(one["kind"] for one in objects)


def test_the_chart_makes_what_was_asked_for(helm: ModuleType, everything: list[dict[str, Any]]) -> None:
    always = ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"]
    assert kinds(helm.documents()) == always
    assert kinds(everything) == sorted([*always, "DaemonSet", "ServiceMonitor"])
    assert "NetworkPolicy" not in kinds(helm.documents({"networkPolicy": {"enabled": False}}))
    (targets,) = [one["data"]["targets.yaml"] for one in everything if one["kind"] == "ConfigMap"]
    assert yaml.safe_load(targets) == {"targets": {"a'\"\n": "#: }"}}


def test_a_template_that_the_renderer_does_not_know_is_refused(helm: ModuleType) -> None:
    root = {"Values": {"a": 1}, "Release": {}}
    for expression in (".Values.b", "include .Values.a", ".Values.a | upper", 'tpl "x"', ".Chart.Name"):
        with pytest.raises((helm.TemplateError, KeyError)):
            helm._value(expression, root, root)


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet"])
def test_pods_may_do_little(everything: list[dict[str, Any]], kind: str) -> None:
    (workload,) = [one for one in everything if one["kind"] == kind]
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    for volume in pod["volumes"]:
        if "hostPath" in volume:
            (mount,) = [one for one in container["volumeMounts"] if one["name"] == volume["name"]]
            assert mount["readOnly"] is True
    assert not [one for one in container["env"] if "valueFrom" in one], "a secret is a file"
    assert {one["name"] for one in container["env"] if one["name"].startswith("VLLM_")} <= VARIABLES


def test_a_replica_has_time_to_drain(everything: list[dict[str, Any]]) -> None:
    (deployment,) = [one for one in everything if one["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    drain, stop = float(env["VLLM_DIAGNOSE_SERVER_DRAIN_S"]), float(env["VLLM_DIAGNOSE_SERVER_STOP_S"])
    probe = pod["containers"][0]["readinessProbe"]
    assert drain > 2 * probe["periodSeconds"] * probe["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] > drain + stop
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_compose_sets_only_what_exists_and_publishes_on_loopback() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    assert set(services) == {"assistant", "postgres", "prometheus", "alertmanager", "vllm"}
    assistant = services["assistant"]
    assert {name for name in assistant["environment"] if name.startswith("VLLM_DIAGNOSE_")} <= VARIABLES
    assert assistant["read_only"] and assistant["cap_drop"] == ["ALL"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "privileged" not in service and service.get("restart")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in compose["volumes"]


def test_the_targets_of_compose_can_be_read() -> None:
    from assistant.targets import load_targets

    assert set(load_targets(ROOT / "deploy" / "compose" / "targets.yaml")) == {"vllm"}


def test_the_image_runs_as_nobody_and_holds_no_tool_that_builds() -> None:
    build, final = DOCKERFILE.split("\nFROM ")[1:]
    assert "USER 65532:65532" in final and "HEALTHCHECK" in final and "--require-hashes" in build
    assert "compileall" in build and "knowledge.compiler" in build
    assert not re.search(r"\b(?:curl|wget|apt-get|chmod 777|ADD)\b", DOCKERFILE)
    assert not re.search(r"(?i)(?:arch|platform)\s*=|amd64|x86_64", DOCKERFILE), "one file for both architectures"
    copied = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", build)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in (ROOT / ".dockerignore").read_text("utf-8").splitlines(), name


def test_the_units_may_do_little() -> None:
    for path in sorted((ROOT / "deploy" / "systemd").glob("*.service")):
        unit = ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(path, "utf-8")
        service = unit["Service"]
        assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
        assert service["CapabilityBoundingSet"] == "" and service["ProtectSystem"] == "strict"
        assert int(service["TimeoutStopSec"]) > 5 + 20
        assert set(re.findall(r"VLLM_DIAGNOSE_\w+", path.read_text("utf-8"))) <= VARIABLES
