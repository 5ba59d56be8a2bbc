"""Validate the manifests against schemas that others keep: Kubernetes' own, strictly, and systemd's own checker.

The schemas (100 MB) are no dependency of the project: they go into an environment that is thrown away. Prints
``skipped: why`` for each part that cannot be checked here, and exits with 1 where something is wrong.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import helm_subset
import yaml

from tools.launchers.kubernetes_objects import JobPlan, config_map, job, service

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = "kubernetes-validate==1.37.0"
#: The oldest version that the chart takes, and a new one.
KUBERNETES = ("1.27", "1.34")
EVERYTHING = {
    "serviceMonitor": {"enabled": True},
    "nodeTools": {"enabled": True},
    "targets": {"a": {"address": "http://vllm.prod:8000", "private": True}},
}
_CHECK = """
import sys, yaml, kubernetes_validate
for version in sys.argv[2:]:
    for one in yaml.safe_load_all(open(sys.argv[1], encoding="utf-8")):
        kubernetes_validate.validate(one, version, strict=True)
"""


def kubernetes(folder: Path) -> str:
    """An empty text, or why it was skipped; raises ``SystemExit`` where an object does not fit its schema."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SCHEMAS]
    got = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if got.returncode:
        return f"{SCHEMAS} cannot be installed here"
    objects = [one for values in (None, EVERYTHING) for one in helm_subset.documents(values)]
    objects += collectives()
    own = [one for one in objects if not one["apiVersion"].startswith("monitoring.coreos.com/")]
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all(own), "utf-8")
    done = subprocess.run(
        [str(python), "-c", _CHECK, str(file), *KUBERNETES], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    print(f"passed: {len(own)} Kubernetes objects against {', '.join(KUBERNETES)}, strictly")
    return f"{len(objects) - len(own)} ServiceMonitor objects, whose schema is the operator's, and Helm itself"


def collectives() -> list[dict[str, Any]]:
    """What `sanity nccl` and `check` make with `--launcher kubernetes`, with few options and with all."""
    least = JobPlan(name="vllm-diagnose-0a1b2c3d", namespace="inference", image="vllm/vllm-openai:v0.11.0", count=2)
    most = replace(least, ranks_per_node=8, nodes=("gpu-1", "gpu-2"), host_network=True, stage_s=30.0)
    plans = (least, replace(least, cpu_only=True), most, replace(least, cpu_only=True, checks_s=15.0))
    return [one for plan in plans for one in (job(plan), service(plan, "uid"), config_map(plan, "uid"))]


def systemd() -> str:
    """The same for the units."""
    if shutil.which("systemd-analyze") is None:
        return "systemd-analyze is not installed"
    for unit in sorted((ROOT / "deploy" / "systemd").glob("*.service")):
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
        )
        said = [line for line in done.stderr.splitlines() if "is not executable" not in line]
        if any(unit.name in line for line in said):
            raise SystemExit("\n".join(said))
        scored = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if scored.returncode:
            raise SystemExit(f"{unit.name} is more exposed than 2.5: {scored.stdout.splitlines()[-1:]}")
        print(f"passed: {unit.name} {scored.stdout.splitlines()[-1].split(':')[-1].strip()}")
    return ""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for why in (systemd(), kubernetes(Path(folder))):
            if why:
                print(f"skipped: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
