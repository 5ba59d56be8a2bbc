"""`sanity nccl --launcher slurm` over a real Slurm of two nodes: munged, slurmctld and two slurmd of Debian's packages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assistant.nodes.serving import command
from tests.assistant.nodes.sites import (
    Cluster,
    base_environment,
    checked,
    children,
    finished,
    in_group,
    parent,
    report_of,
    rows,
    slurm,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm() as found:
        yield found


def emptied(cluster: Cluster) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not cluster.extra["ask"]("squeue", "-h").strip():
            return True
        time.sleep(0.3)
    return False


@pytest.mark.slow
def test_two_nodes_pass(cluster: Cluster) -> None:
    report = cluster.report()
    assert report["verdict"] in ("ok", "note"), report
    assert rows(report, "place") == ["n1 (127.0.61.1): rank 0", "n2 (127.0.61.2): rank 1"]
    assert emptied(cluster)


@pytest.mark.slow
def test_check_says_what_differs(cluster: Cluster, tmp_path: Path) -> None:
    words = command("check", "--launcher", "slurm", "--nodes", "2", "--yes", "--python", cluster.python, "-o", "json")
    ran = subprocess.run(words, env=cluster.environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [node["name"] for node in found["nodes"]] == ["n1", "n2"] and not found["nodes"][0]["lost"]
    wrapper = tmp_path / "python3"
    wrapper.write_text(
        f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && export NCCL_IB_DISABLE=1\nexec {cluster.python} "$@"\n'
    )
    wrapper.chmod(0o755)
    words[words.index(cluster.python)] = str(wrapper)
    ran = subprocess.run(words, env=cluster.environment, capture_output=True, text=True, timeout=100, check=False)
    assert "NCCL_IB_DISABLE" in ran.stdout and "n2: 1" in ran.stdout, ran.stderr


@pytest.mark.slow
def test_a_fault_of_one_node_is_named_and_that_node_comes_first(cluster: Cluster, tmp_path: Path) -> None:
    """Few open files, tiny shared memory and a variable of an old hunt, on the second node only."""
    wrapper = tmp_path / "python3"
    wrapper.write_text(
        f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] || exec {cluster.python} "$@"\nulimit -n 300\nexport CUDA_LAUNCH_BLOCKING=1\n'
        f'exec unshare -m sh -c \'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"\' sh {cluster.python} "$@"\n'
    )
    wrapper.chmod(0o755)
    words = command("check", "--launcher", "slurm", "--nodes", "2", "--yes", "--python", str(wrapper))
    ran = subprocess.run([*words, "-o", "json"], env=cluster.environment, capture_output=True, text=True, timeout=100, check=False)  # fmt: skip
    faulty, sound = checked(ran, "n2"), checked(ran, "n1")
    assert [node["name"] for node in json.loads(ran.stdout)["nodes"]] == ["n2", "n1"]
    assert faulty["host.shm"] == [("bad", "64 KiB / 64 KiB")] and faulty["host.files"] == [("note", 300)]
    assert ("bad", "CUDA_LAUNCH_BLOCKING=1") in faulty["host.lingering"]
    assert "host.lingering" not in sound and sound["host.files"] != [("note", 300)] and "cluster.check" not in sound
    assert any(name.startswith("gpu.") for name in sound) and any(name.startswith("net.") for name in sound)
    chinese = subprocess.run([*words, "--lang", "zh", "--exit-code"], env=cluster.environment, capture_output=True, text=True, timeout=100, check=False)  # fmt: skip
    assert chinese.returncode == 1 and "CUDA_LAUNCH_BLOCKING=1" in chinese.stdout, chinese.stderr
    assert emptied(cluster)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_with_its_node(cluster: Cluster) -> None:
    process = cluster.start("--python", cluster.python)
    (rank,) = children(in_group(1, 29630))
    time.sleep(0.5)
    os.kill(rank, signal.SIGKILL)
    report = finished(process)
    assert rows(report, "rank") == ["n2: rank 1"] and "SIGKILL" in report["summary"]


@pytest.mark.slow
def test_a_node_without_torch_is_named(cluster: Cluster, tmp_path: Path) -> None:
    """A Python that has torch on one node only: a wrapper, as sites have them."""
    wrapper = tmp_path / "python3"
    wrapper.write_text(
        f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && exec {sys.executable} "$@"\nexec {cluster.python} "$@"\n'
    )
    wrapper.chmod(0o755)
    report = report_of(cluster.run("--python", str(wrapper)))
    assert rows(report, "rank") == ["n2: rank 1"] and "torch" in report["summary"]


@pytest.mark.slow
def test_inside_an_allocation_nothing_has_to_be_said(cluster: Cluster) -> None:
    options = [word for word in cluster.options if word not in ("--nodes", "2")]
    inner = command("sanity", "nccl", "--launcher", "slurm", "--cpu-only", "--yes", "-o", "json", "--python", cluster.python)  # fmt: skip
    ran = subprocess.run(
        ["salloc", "--quiet", "-N2", *inner, *options],
        env=cluster.environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert '"n2 (127.0.61.2): rank 1"' in ran.stdout


@pytest.mark.slow
def test_what_slurm_refuses_is_said_and_leaves_nothing(cluster: Cluster) -> None:
    ran = cluster.run("--python", cluster.python, "--nodes", "3")
    assert ran.returncode == 3 and "Unable to allocate" in ran.stderr or "more than" in ran.stderr, ran.stderr
    ran = cluster.run("--python", "/nowhere/python3")
    assert ran.returncode == 0 and "No such file" in ran.stdout
    ran = cluster.run("--python", cluster.python, "--lang", "zh", "--node", "n7", "--node", "n8")
    assert ran.returncode == 3 and "结束" in ran.stderr
    assert emptied(cluster)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_nothing_on_the_nodes(cluster: Cluster, by: signal.Signals) -> None:
    process = cluster.start("--python", cluster.python)
    worker = parent(in_group(1, 29630))
    process.send_signal(by)
    process.communicate(timeout=30)
    assert emptied(cluster)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
def test_a_node_that_dies_is_named(cluster: Cluster) -> None:
    process = cluster.start("--python", cluster.python)
    step = parent(parent(in_group(1, 29630)))
    assert "slurmstepd" in Path(f"/proc/{step}/cmdline").read_text()
    cluster.kill("n2")
    os.kill(step, signal.SIGKILL)
    report = finished(process)
    assert rows(report, "died") == ["n2"] and report["summary"].startswith("n2 went away")
    cluster.extra["node"]("n2")
    with contextlib.suppress(pytest.skip.Exception):
        cluster.extra["up"]()


@pytest.mark.slow
def test_sixty_four_nodes_are_checked() -> None:
    """As many slurmd on this machine, beside the two of the other tests."""
    with slurm(64) as many:
        began = time.monotonic()
        words = command("check", "--launcher", "slurm", "--nodes", "64", "--yes", "--python", many.python, "-o", "json")
        ran = subprocess.run(words, env=many.environment, capture_output=True, text=True, timeout=120, check=False)
        print(f"\n64 nodes of Slurm checked in {time.monotonic() - began:.1f} s")
        assert ran.returncode == 0, ran.stderr
        nodes = json.loads(ran.stdout)["nodes"]
        assert len(nodes) == 64 and not [node for node in nodes if node["lost"]]
        assert not [node["name"] for node in nodes if any(check["id"] == "cluster.check" for check in node["checks"])]


def test_without_srun_it_is_said_in_both_languages(tmp_path: Path) -> None:
    env = base_environment(tmp_path) | {"PATH": "/nowhere"}
    for lang, words in (("en", "no srun"), ("zh", "没有 srun")):
        ran = subprocess.run(
            command("sanity", "nccl", "--launcher", "slurm", "--nodes", "2", "--yes", "--lang", lang),
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode == 3 and words in ran.stderr
