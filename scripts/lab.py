#!/usr/bin/env python3
"""Breaks a real vLLM server on purpose and keeps what it says.

    scripts/lab_setup.sh .lab                 once: vLLM for CPU and a tiny model (`make lab`)
    scripts/lab.py list                       the faults of tests/lab/faults.yaml
    scripts/lab.py run [NAME...]              run them; raw captures go to .lab/captures/NAME
    scripts/lab.py keep [NAME...]             scrub captures into tests/data/lab and rewrite manifest.yaml there

A fault says what is served (`model`, `serve`, `environment`, `limits`, `mount`), what is done to the server once it is
up (`then`, a list of steps) and which diagnosis its capture must get (`cause`, or `verdict` where there is none).
The steps and the fields are described where they are carried out: :class:`Server` and :class:`Play`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from lab_models import break_model
from lab_scrub import keep

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests" / "lab" / "faults.yaml"
KEPT = ROOT / "tests" / "data" / "lab"
START_S = 240  # the slowest start seen on two busy cores took 95 s
STOP_S = 25
Fault = Mapping[str, Any]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Server:
    """One `vllm serve` (or a program of the fault's own) in a session of its own, with everything it prints in a file.

    ``environment`` adds variables ({lab} is the laboratory); ``python_path`` names a folder that :mod:`lab_models`
    fills and that is imported from first; ``limits`` sets resource limits; ``mount`` puts a small or read-only tmpfs
    over the cache folder, in a mount namespace that ends with the server; ``shell`` runs the server under a shell,
    which is what says "Killed"; ``one_processor`` leaves the other processors to everything else. A busy engine and its
    worker poll each other with sched_yield, and on two cores (Linux 6.18, sessions scheduled as groups) hardly anything
    else ran: a program of 0.7 s took 47 s, and the server's own front end answered /metrics after 12 s.
    """

    def __init__(self, lab: Path, fault: Fault, folder: Path) -> None:
        self.fault, self.folder, self.lab = fault, folder, lab
        self.port = free_port()
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        folder = break_model(self.lab / "model", self.folder / "model", self.fault.get("model"))
        if program := self.fault.get("program"):
            path = self.folder / "program.py"
            path.write_text(program.format(model=folder))
            command = [str(self.lab / "venv/bin/python"), str(path)]
        else:
            served = self.fault.get("target", "{model}").format(model=folder)
            command = [str(self.lab / "venv/bin/vllm"), "serve", str(served), "--host", "127.0.0.1"]
            command += ["--port", str(self.port), *(str(a).format(model=folder) for a in self.fault.get("serve", []))]
        if options := self.fault.get("mount"):
            cache = self.folder / "cache"
            cache.mkdir()
            script = f'mount -t tmpfs -o {options} lab "{cache}" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, "lab", *command]
        if self.fault.get("shell"):
            command = ["bash", "-c", '"$@"; code=$?; exit $code', "bash", *command]
        return command

    def environment(self) -> dict[str, str]:
        """The caller's, with a home inside the laboratory, so that no cache of the caller's is used or filled."""
        home = self.lab / "home"
        home.mkdir(exist_ok=True)
        given = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "HF_"))}
        given |= {"HOME": str(home), "NO_COLOR": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        if self.fault.get("mount"):
            given["VLLM_CACHE_ROOT"] = str(self.folder / "cache")
        if shadow := self.fault.get("python_path"):
            given["PYTHONPATH"] = str(break_model(self.lab / "model", self.folder / "shadow", shadow))
        chosen = self.fault.get("environment", {})
        return given | {name: str(value).format(lab=self.lab, folder=self.folder) for name, value in chosen.items()}

    def set_limits(self) -> None:
        if self.fault.get("one_processor"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        for name, value in self.fault.get("limits", {}).items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=self.set_limits,
            )

    def exit_status(self) -> int | None:
        return self.process.poll() if self.process else None

    def wait_until_up(self) -> bool:
        """Whether the server came to answer /health before it ended or the time was over."""
        end = time.monotonic() + float(self.fault.get("start_s", START_S))
        stop_at_text = self.fault.get("until")  # a line after which a start that never becomes ready is left
        while time.monotonic() < end and self.exit_status() is None:
            if stop_at_text and stop_at_text in self.log.read_text(errors="replace"):
                return True
            if "program" not in self.fault and not self.fault.get("occupied") and not stop_at_text:
                with suppress(OSError), urllib.request.urlopen(self.base + "/health", timeout=2):
                    return True
            time.sleep(0.3)
        return False

    def members(self) -> list[tuple[int, str]]:
        """(pid, title) of every process of the server's session."""
        if self.process is None:
            return []
        listing = subprocess.run(["ps", "-ww", "-eo", "pid=,sid=,args="], capture_output=True, text=True, check=True)
        rows = (line.split(None, 2) for line in listing.stdout.splitlines())
        return [(int(row[0]), row[2]) for row in rows if len(row) == 3 and row[1] == str(self.process.pid)]

    def signal(self, name: str, title: str | None) -> None:
        """Sends a signal to the first process with this word in its title, or to the server's first process."""
        number = signal.Signals[f"SIG{name}"]
        if self.process is None:
            raise RuntimeError("no server was started")
        candidates = [pid for pid, text in self.members() if title and title in text and pid != self.process.pid]
        if title and not candidates:
            raise RuntimeError(f"no process of the server has {title!r} in its title: {self.members()}")
        os.kill(candidates[0] if title else self.process.pid, number)

    def stop(self) -> None:
        """Asks the server to end, then ends its whole session; nothing of it outlives this call."""
        if self.process is None:
            return
        if self.process.poll() is None:
            for number, patience in ((signal.SIGINT, STOP_S), (signal.SIGTERM, 5)):
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)
                    break
        for pid, _ in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Play:
    """Carries out the steps of a fault's ``then``; each is a mapping whose first key names it.

    post / get: PATH     a request (``body``, ``headers``, ``limit_s``); its answer becomes a line of responses.jsonl
    scrape: N            the metrics page into metrics-N.txt
    load: CLIENTS        that many clients for ``seconds``, each posting ``body``; scraped when four fifths are over
    signal: NAME         to the process with ``to`` in its title, or to the server
    wait: SECONDS
    ask_and_leave: PATH  a request nobody waits for
    snapshot: true       the log as it is now is the capture; what the end of the server adds is left out
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.snapshot: bytes | None = None

    def run(self, steps: Sequence[Mapping[str, Any]]) -> None:
        for step in steps:
            name = next(iter(step))
            getattr(self, f"do_{name}")(step[name], step)

    def do_post(self, path: str, step: Mapping[str, Any]) -> None:
        self._note(self._ask("POST", path, step))

    def do_get(self, path: str, step: Mapping[str, Any]) -> None:
        self._note(self._ask("GET", path, step))

    def do_scrape(self, number: int, _: Mapping[str, Any]) -> None:
        with urllib.request.urlopen(f"{self.server.base}/metrics", timeout=20) as page:
            (self.folder / f"metrics-{number}.txt").write_bytes(page.read())

    def do_load(self, clients: int, step: Mapping[str, Any]) -> None:
        end = time.monotonic() + step["seconds"]

        def client() -> None:
            while time.monotonic() < end:
                self._ask("POST", "/v1/completions", step)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(step["seconds"] * 0.8)
        self.do_scrape(1, step)
        for thread in threads:
            thread.join(60)

    def do_signal(self, name: str, step: Mapping[str, Any]) -> None:
        self.server.signal(name, step.get("to"))

    def do_wait(self, seconds: float, _: Mapping[str, Any]) -> None:
        time.sleep(seconds)

    def do_ask_and_leave(self, path: str, step: Mapping[str, Any]) -> None:
        threading.Thread(target=self._ask, args=("POST", path, step), daemon=True).start()
        time.sleep(1)

    def do_snapshot(self, _: bool, __: Mapping[str, Any]) -> None:
        self.snapshot = self.server.log.read_bytes()

    def _ask(self, method: str, path: str, step: Mapping[str, Any]) -> dict[str, Any]:
        body = step.get("body")
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", **step.get("headers", {})}
        request = urllib.request.Request(self.server.base + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=step.get("limit_s", 90)) as answer:
                return {"path": path, "status": answer.status, "body": answer.read(4000).decode(errors="replace")}
        except urllib.error.HTTPError as refusal:
            return {"path": path, "status": refusal.code, "body": refusal.read(4000).decode(errors="replace")}
        except OSError as error:
            return {"path": path, "status": None, "body": f"{type(error).__name__}: {error}"}

    def _note(self, answer: Mapping[str, Any]) -> None:
        with (self.folder / "responses.jsonl").open("a", encoding="utf-8") as notes:
            notes.write(json.dumps(answer, ensure_ascii=False) + "\n")


@contextmanager
def occupied(port: int, wanted: bool) -> Iterator[None]:
    """Somebody else's listening socket on the port, where the fault wants one."""
    if not wanted:
        yield
        return
    with socket.create_server(("127.0.0.1", port)):
        yield


def run_fault(lab: Path, name: str, fault: Fault) -> str:
    """Runs one fault and returns one line about it; the capture lies in ``lab/captures/name`` afterwards."""
    folder = lab / "captures" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    server = Server(lab, fault, folder)
    play = Play(server, folder)
    started = time.monotonic()
    up = False
    try:
        with occupied(server.port, bool(fault.get("occupied"))):
            server.start()
            up = server.wait_until_up()
            if up or fault.get("then_anyway"):
                play.run(fault.get("then", []))
        status = server.exit_status()
    finally:
        server.stop()
    if play.snapshot is not None:
        server.log.write_bytes(play.snapshot)
    facts = {"up": up, "exit_status": status, "port": server.port, "seconds": round(time.monotonic() - started, 1)}
    (folder / "capture.json").write_text(json.dumps(facts) + "\n")
    for leftover in ("model", "cache", "shadow"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    return f"{name:28} up={up!s:5} exit={status!s:5} {facts['seconds']:6.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["list", "run", "keep"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--missing", action="store_true", help="run only what has no capture yet")
    parser.add_argument("--lab", type=Path, default=ROOT / ".lab")
    options = parser.parse_args()
    faults: dict[str, Fault] = yaml.safe_load(FAULTS.read_text(encoding="utf-8"))
    if unknown := set(options.names) - set(faults):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; `lab.py list` shows them")
    chosen = {name: fault for name, fault in faults.items() if not options.names or name in options.names}
    lab = options.lab.resolve()
    if options.action == "list":
        for name, fault in chosen.items():
            print(f"{name:28} {fault.get('cause') or fault['verdict']}")
        return 0
    if options.action == "keep":
        return keep(lab, chosen, faults, KEPT)
    if not (lab / "model" / "model.safetensors").exists():
        print(f"There is no laboratory in {lab}; `make lab` installs it.", file=sys.stderr)
        return 3
    if options.missing:
        chosen = {name: f for name, f in chosen.items() if not (lab / "captures" / name / "capture.json").exists()}
    failed = 0
    for name, fault in chosen.items():
        try:
            print(run_fault(lab, name, fault), flush=True)
        except Exception as error:  # noqa: BLE001 (one broken fault must not hide the others)
            failed += 1
            print(f"{name:28} the laboratory failed: {error!r}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
