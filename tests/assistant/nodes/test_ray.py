"""`sanity nccl --launcher ray` over a real Ray of two nodes; without one, the sentences that say so."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
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
    ray,
    rows,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray("--num-gpus=1", second="ulimit -n 5000 && export CUDA_LAUNCH_BLOCKING=1") as found:
        yield found


def gone(pid: int, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_two_nodes_pass(cluster: Cluster) -> None:
    report = cluster.report()
    assert report["verdict"] in ("ok", "note"), report
    first, second = rows(report, "place")
    assert "(127.0.62.1): rank 0" in first and "(127.0.62.2): rank 1" in second


@pytest.mark.slow
def test_check_looks_at_both(cluster: Cluster) -> None:
    words = command(
        "check",
        "--launcher",
        "ray",
        "--address",
        cluster.options[-1],
        "--yes",
        "--python",
        cluster.python,
        "-o",
        "json",
    )
    ran = subprocess.run(words, env=cluster.environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [node["lost"] for node in json.loads(ran.stdout)["nodes"]] == [None, None]
    faulty, sound = checked(ran, "127.0.62.2"), checked(ran, "127.0.62.1")
    assert "127.0.62.2" in json.loads(ran.stdout)["nodes"][0]["name"]  # the worst first
    assert ("bad", "CUDA_LAUNCH_BLOCKING=1") in faulty["host.lingering"] and faulty["host.files"] == [("note", 5000)]
    assert "host.lingering" not in sound and sound["host.files"] != [("note", 5000)]
    assert all(any(name.startswith(f"{area}.") for name in sound) for area in ("gpu", "host", "net"))


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_with_its_node(cluster: Cluster) -> None:
    process = cluster.start("--python", cluster.python)
    (rank,) = children(in_group(1, 29640))
    time.sleep(0.5)
    os.kill(rank, signal.SIGKILL)
    report = finished(process)
    (row,) = rows(report, "rank")
    assert "127.0.62.2" in row and row.endswith("rank 1")


@pytest.mark.slow
def test_gpus_that_somebody_claims_are_said(cluster: Cluster) -> None:
    """The test claims the GPUs of the nodes, so that nobody gets them meanwhile; who holds them keeps it out."""
    hold = "import ray,sys,time\nray.init(sys.argv[1],log_to_driver=False)\n@ray.remote(num_gpus=1,num_cpus=0)\nclass A:\n  def f(self): return 1\n"  # fmt: skip
    hold += "a=A.remote(); ray.get(a.f.remote()); print('held',flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [cluster.python, "-c", hold, cluster.options[-1]],
        env=cluster.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout and holder.stdin
        assert holder.stdout.readline() == "held\n"
        words = [word for word in cluster.command("--python", cluster.python) if word != "--cpu-only"]
        ran = subprocess.run(words, env=cluster.environment, capture_output=True, text=True, timeout=200, check=False)
        holder.stdin.close()
    assert ran.returncode == 0 and "claimed by somebody else" in ran.stdout, ran.stderr


@pytest.mark.slow
def test_names_that_the_cluster_does_not_have_are_refused(cluster: Cluster) -> None:
    ran = cluster.run("--python", cluster.python, "--node", "nobody")
    assert ran.returncode == 3 and "no node nobody" in ran.stderr and "127.0.62.2" in ran.stderr
    one = cluster.run("--python", cluster.python, "--node", "127.0.62.2")
    assert one.returncode == 3 and "two nodes" in one.stderr


@pytest.mark.slow
def test_no_cluster_is_said(cluster: Cluster) -> None:
    ran = cluster.run("--python", cluster.python, "--lang", "zh", "--address", "127.0.62.9:9")
    assert ran.returncode == 3 and "Ray 集群" in ran.stderr and "refused" in ran.stderr, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_nothing_on_the_nodes(cluster: Cluster, by: signal.Signals) -> None:
    process = cluster.start("--python", cluster.python)
    supervisor = in_group(1, 29640)
    worker = parent(supervisor)
    process.send_signal(by)
    process.communicate(timeout=30)
    assert gone(supervisor) and gone(worker)


@pytest.mark.slow
def test_a_node_that_dies_is_named(cluster: Cluster) -> None:
    process = cluster.start("--python", cluster.python)
    in_group(1, 29640)
    cluster.kill("127.0.62.2")
    report = finished(process)
    (row,) = rows(report, "died")
    assert "127.0.62.2" in row and "went away" in report["summary"]


def test_an_interpreter_without_ray_is_said(tmp_path: Path) -> None:
    ran = subprocess.run(
        command("sanity", "nccl", "--launcher", "ray", "--python", sys.executable, "--cpu-only", "--yes"),
        env=base_environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 3 and "has no ray" in ran.stderr and "--python" in ran.stderr
    (database,) = tmp_path.rglob("*.db")
    with sqlite3.connect(database) as opened:
        lines = opened.execute("SELECT who, did, effect, target, outcome FROM audit").fetchall()
    assert lines == [("local", "run_nccl_test", "loads", "ray: every node of the site", "failed")]


def test_nothing_starts_before_somebody_agrees(tmp_path: Path) -> None:
    for words in (("sanity", "nccl", "--launcher", "ray"), ("check", "--launcher", "slurm", "--nodes", "2")):
        ran = subprocess.run(command(*words), env=base_environment(tmp_path), capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert ran.returncode == 2 and "--yes" in ran.stderr, ran.stderr
