"""Puts one task on each node of a running Ray cluster and passes lines between them and us.

This file stands alone (standard library and ray, Python 3.9 or newer): the interpreter that has ray runs its text.
``PROGRAMS["node"]`` is the text of the program that each node runs. Commands come on standard input and go to all
nodes; what the nodes print goes to standard output. When standard input is closed, everything on the nodes ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

PROGRAMS: dict[str, str] = globals().get("PROGRAMS", {})
BOOT = (
    "import sys;n=int(sys.stdin.buffer.readline());"
    "exec(compile(sys.stdin.buffer.read(n),'<vllm-diagnose>','exec'),{'__name__':'__main__'})"
)
#: Seconds in which Ray must have placed a task: where a node's GPUs are claimed by somebody else it would wait for ever.
PLACE_S = 25.0
KNOCK_S = 5.0
#: Seconds between two looks at which nodes the cluster still counts as alive.
LOOK_S = 1.0


def say(event: str, **facts: Any) -> None:
    os.write(1, (json.dumps({"event": event, **facts}) + "\n").encode())


class NodeTask:
    """Runs on a node, inside a Ray worker: a process of its own for the program, so that it ends with this worker."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.news = threading.Condition()
        self.tail = b""
        self.over = False

    def begin(self, source: str, arguments: list[str]) -> bool:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", BOOT, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
        )  # fmt: skip
        threading.Thread(target=self.collect, daemon=True).start()
        threading.Thread(target=self.collect_errors, daemon=True).start()
        text = source.encode()
        self.process.stdin.write(f"{len(text)}\n".encode() + text)  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return True

    def collect(self) -> None:
        for line in self.process.stdout:  # type: ignore[union-attr]
            with self.news:
                self.lines.append(line)
                self.news.notify()
        self.process.wait()
        with self.news:
            self.over = True
            self.news.notify()

    def collect_errors(self) -> None:
        for line in self.process.stderr:  # type: ignore[union-attr]
            self.tail = (self.tail + line)[-4096:]

    def send(self, line: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(line)  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def read(self) -> tuple[list[bytes], bool, str]:
        """What was printed since, after at most a second; whether that was all; the last words on standard error."""
        with self.news:
            if not self.lines and not self.over:
                self.news.wait(1.0)
            lines, self.lines = self.lines, []
            return lines, self.over and not self.lines, self.tail.decode("utf-8", "replace")


def connect(ray: Any, options: argparse.Namespace) -> bool:
    address = options.address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        knock(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
    except Exception as error:  # noqa: BLE001 (whatever ray says, it is why there is no cluster)
        kind = "ray-version" if "ersion mismatch" in str(error) else "no-cluster"
        say("refused", kind=kind, text=first_line(error))
        return False
    return True


def knock(address: str) -> None:
    """Raise ``OSError`` where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
        except OSError as error:
            raise OSError(f"{address}: {error.strerror or error}") from None


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


def choose(nodes: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The living nodes that are asked for: those with GPUs, or all of them where no GPU is needed and none has one."""
    living = sorted((n for n in nodes if n.get("Alive")), key=lambda n: (n["NodeManagerAddress"], n["NodeID"]))
    hosts = [n["NodeManagerHostname"] for n in living]
    for node in living:
        host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
        node["name"] = host if hosts.count(host) == 1 else f"{host} ({address})"
        node["gpus"] = int(node.get("Resources", {}).get("GPU", 0))
    wanted = [name for name in options.nodes.split(",") if name]
    if wanted:
        known = {name for n in living for name in (n["name"], n["NodeManagerHostname"], n["NodeManagerAddress"])}
        for name in wanted:
            if name not in known:
                say("refused", kind="unknown-node", text=name, known=[n["name"] for n in living][:40])
                return []
        return [n for n in living if {n["name"], n["NodeManagerHostname"], n["NodeManagerAddress"]} & set(wanted)]
    with_gpus = [n for n in living if n["gpus"]]
    if not with_gpus and not options.cpu_only:
        say("refused", kind="no-gpu-node", text=str(len(living)))
        return []
    return with_gpus or living


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="ray_driver.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--address", default="", help="of the cluster; RAY_ADDRESS or the one on this machine unless given"
    )
    parser.add_argument("--nodes", default="", help="names or addresses, with commas; all unless given")
    parser.add_argument("--cpu-only", action="store_true")
    parser.add_argument(
        "--claim", action="store_true", help="claim the GPUs of the nodes, so that nobody else gets them"
    )
    options = parser.parse_args(arguments)
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        say("refused", kind="no-ray", text=first_line(error), python=sys.executable)
        return 0
    if not connect(ray, options):
        return 0
    nodes = choose(ray.nodes(), options)
    say(
        "nodes", nodes=[{"task": k, "name": n["name"], "address": n["NodeManagerAddress"]} for k, n in enumerate(nodes)]
    )
    if nodes:
        Cluster(ray, NodeAffinitySchedulingStrategy, nodes, options).run()
    ray.shutdown()
    os._exit(0)  # the thread that relays commands holds standard input, and Python would wait for it


class Cluster:
    """The tasks on the nodes, by the node's number."""

    def __init__(self, ray: Any, affinity: Any, nodes: list[dict[str, Any]], options: argparse.Namespace) -> None:
        self.ray, self.nodes = ray, dict(enumerate(nodes))
        remote = ray.remote(NodeTask)
        self.actors = {
            task: remote.options(
                num_cpus=0,
                num_gpus=node["gpus"] if options.claim else 0,
                max_concurrency=4,
                max_restarts=0,
                scheduling_strategy=affinity(node_id=node["NodeID"], soft=False),
            ).remote()
            for task, node in self.nodes.items()
        }

    def run(self) -> None:
        try:
            self.begin()
            threading.Thread(target=self.relay, daemon=True).start()
            self.listen()
        finally:
            self.end()

    def begin(self) -> None:
        calls = {
            actor.begin.remote(
                PROGRAMS["node"],
                ["--task", str(task), "--name", self.nodes[task]["name"], "--address", self.nodes[task]["NodeManagerAddress"]],
            ): task
            for task, actor in self.actors.items()
        }  # fmt: skip
        ready, late = self.ray.wait(list(calls), num_returns=len(calls), timeout=PLACE_S)
        for call in ready:
            try:
                self.ray.get(call)
            except Exception as error:  # noqa: BLE001 (the node is lost, for whatever reason)
                self.lose(calls[call], "died", first_line(error))
        for call in late:
            node = self.nodes[calls[call]]
            self.lose(calls[call], "unplaced", f"{node['gpus']} GPU")

    def lose(self, task: int, kind: str, text: str) -> None:
        if task in self.actors:
            say("lost", lost=task, kind=kind, text=text)
            with contextlib.suppress(Exception):
                self.ray.kill(self.actors.pop(task))

    def relay(self) -> None:
        """Commands to all nodes; at the end of standard input everything ends."""
        while line := sys.stdin.buffer.readline():
            for actor in list(self.actors.values()):
                actor.send.remote(line)
        self.end()
        os._exit(0)

    def listen(self) -> None:
        calls = {actor.read.remote(): task for task, actor in self.actors.items()}
        looked = time.monotonic()
        while calls:
            ready, _ = self.ray.wait(list(calls), num_returns=1, timeout=LOOK_S)
            for call in ready:
                task = calls.pop(call)
                try:
                    lines, over, tail = self.ray.get(call)
                except Exception as error:  # noqa: BLE001
                    self.lose(task, "died", first_line(error))
                    continue
                for line in lines:
                    os.write(1, line)
                if over:
                    say("over", of=task, text=tail[-600:])
                elif task in self.actors:
                    calls[self.actors[task].read.remote()] = task
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                living = {node["NodeID"] for node in self.ray.nodes() if node.get("Alive")}
                for task in [task for task in self.actors if self.nodes[task]["NodeID"] not in living]:
                    self.lose(task, "died", "the cluster no longer counts it as alive")
                    calls = {call: other for call, other in calls.items() if other != task}

    def end(self) -> None:
        for actor in list(self.actors.values()):
            with contextlib.suppress(Exception):
                self.ray.kill(actor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
