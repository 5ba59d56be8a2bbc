"""One node's part of a test over several nodes, for sites that start programs themselves: Ray, Slurm, Kubernetes.

This file stands alone (standard library, Python 3.9 or newer): the interpreter that vLLM uses on the node runs its text,
which the launcher brings along. ``PROGRAMS`` holds the texts of the programs that it starts in turn: ``links`` (ports and
packet sizes), ``ranks`` (the collectives) and ``checks`` (facts of host, network and GPUs).

It prints what it knows of the node, and then either follows commands on standard input, one JSON object a line, or,
given the names of all nodes or told to look only, goes through the whole by itself. It ends when its standard input is closed. What it prints
are frames: short lines that a launcher may mix with those of other nodes, and that may be read twice.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any

#: Texts of the programs by name; the launcher sets them.
PROGRAMS: dict[str, str] = globals().get("PROGRAMS", {})
#: What decides how ranks of several nodes talk; a difference between nodes is worth a look whatever the value is.
PREFIXES = ("NCCL_", "GLOO_", "UCX_", "TORCH_NCCL_", "VLLM_NCCL_", "CUDA_DEVICE_ORDER", "VLLM_USE_", "VLLM_ATTENTION")
PACKAGES = ("vllm", "torch", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "transformers", "ray", "flashinfer-python")
#: Characters of one frame: srun hands lines of up to 1 KiB on whole, and may cut and mix longer ones.
FRAME = 640
#: Linux: <linux/sockios.h>.
SIOCGIFADDR, SIOCGIFMTU, SIOCGIFNETMASK = 0x8915, 0x8921, 0x891B
#: As `_BOOT` of the launcher: the program's text comes first on standard input.
BOOT = (
    "import sys;n=int(sys.stdin.buffer.readline());"
    "exec(compile(sys.stdin.buffer.read(n),'<vllm-diagnose>','exec'),{'__name__':'__main__'})"
)
#: Seconds that a program has to end by itself once its standard input is closed.
END_S = 3.0
#: Seconds in which the others of a group must show up under their names, when nobody gives commands.
MEET_S = 120.0
#: Seconds that the links are tried again when nobody gives commands: other nodes notice a failure later, some a stage later.
#: Nobody waits that long where all come; link_worker tries for six tenths of it.
AGAIN_S = 100.0
MOST_TEXT = 4 << 20


class Frames:
    """Writes events as frames, ``@vd TASK NUMBER +|. PIECE``: numbered pieces, the last of an event with a dot."""

    def __init__(self, task: int) -> None:
        self.task, self.number, self.lock = task, 0, threading.Lock()

    def say(self, event: str, **facts: Any) -> None:
        text = json.dumps({"event": event, **facts})
        with self.lock:
            for at in range(0, len(text), FRAME):
                more = "+" if at + FRAME < len(text) else "."
                line = f"@vd {self.task} {self.number} {more} {text[at : at + FRAME]}\n".encode()
                self.number += 1
                while line:
                    try:
                        line = line[os.write(1, line) :]
                    except OSError:  # nobody reads any more
                        os._exit(75)


def addresses() -> list[tuple[str, str, int, int]]:
    """Name, IPv4 address, netmask as a number and MTU of every interface that has such an address."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24]
                mask = struct.unpack("!I", fcntl.ioctl(probe, SIOCGIFNETMASK, request)[20:24])[0]
                mtu = struct.unpack("i", fcntl.ioctl(probe, SIOCGIFMTU, request)[16:20])[0]
            except OSError:  # without an address, or down
                continue
            found.append((name, socket.inet_ntoa(address), mask, mtu))
    return found


def number_of(address: str) -> int:
    return int(struct.unpack("!I", socket.inet_aton(address))[0])


def own_address(told: str) -> tuple[str | None, str | None, int | None]:
    """Address, interface and MTU that ranks here use: as vLLM and NCCL are told, else as the site says, else the way out."""
    rows = addresses()
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        wanted = [part for part in os.environ.get(name, "").lstrip("=").split(",") if part and part[0] != "^"]
        for interface, address, _, mtu in rows:
            if not os.environ.get("VLLM_HOST_IP") and any(interface.startswith(part) for part in wanted):
                return address, interface, mtu
    for candidate in (os.environ.get("VLLM_HOST_IP", ""), told, way_out()):
        try:
            wanted_number = number_of(candidate)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((candidate, 0))
        except OSError:  # no address, or not of this node
            continue
        for interface, address, _, mtu in rows:
            if address == candidate:
                return candidate, interface, mtu
        for interface, address, mask, mtu in rows:
            if wanted_number & mask == number_of(address) & mask:  # loopback answers for its whole network
                return candidate, interface, mtu
        return candidate, None, None
    for interface, address, _, mtu in rows:
        if not address.startswith("127."):
            return address, interface, mtu
    return None, None, None


def way_out() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 53))  # a datagram socket: nothing is sent
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def cards() -> tuple[int, dict[str, str]]:
    """GPUs that a rank here may use; driver, models and clocks as nvidia-smi says them."""
    rows: list[list[str]] = []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ran = subprocess.run(query, capture_output=True, text=True, timeout=15, check=False)
        if ran.returncode == 0:
            rows = [[part.strip() for part in line.split(",")] for line in ran.stdout.splitlines()[:64]]
            rows = [row for row in rows if len(row) == 3]
    count = len(rows) or sum(name.startswith("nvidia") and name[6:].isdigit() for name in os.listdir("/dev"))  # noqa: PTH208
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and count:
        count = min(count, len(visible.split(",")))
    if not rows:
        return count, {}
    names = [row[0] for row in rows]
    found = {
        "GPU driver": rows[0][1],
        "GPUs": ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names))),
        "GPU clock": ", ".join(sorted({row[2] for row in rows})),
    }
    return count, found


def settings() -> dict[str, str]:
    from importlib import metadata

    found = {"kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version()}
    found.update({k: v[:120] for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES)})
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)[:60]
    with contextlib.suppress(OSError):
        space = os.statvfs("/dev/shm")  # noqa: S108
        found["shared memory"] = f"{space.f_blocks * space.f_frsize >> 20} MiB"
    return found


def talking() -> dict[str, str]:
    """The environment of ranks: NCCL says what it does."""
    environment = {"NCCL_DEBUG_SUBSYS": "INIT,ENV,NET", "TORCH_NCCL_BLOCKING_WAIT": "0", **os.environ}
    environment["NCCL_DEBUG"] = "INFO"
    if not environment.get("CUDA_VISIBLE_DEVICES"):  # Ray empties it for whoever asks for no GPU
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


class Worker:
    """This node. ``commands`` come from standard input; programs run one at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.frames = Frames(options.task)
        self.commands: queue.Queue[dict[str, Any]] = queue.Queue()
        self.running: subprocess.Popen[bytes] | None = None
        self.address: str | None = None
        self.mtu: int | None = None
        self.ending = False

    def describe(self) -> None:
        self.address, interface, self.mtu = own_address(self.options.address)
        gpus, more = cards()
        known = {**settings(), **more, **({"MTU": str(self.mtu)} if self.mtu else {})}
        self.frames.say("node", name=self.options.name or platform.node(), host=platform.node(), address=self.address,
                        interface=interface, mtu=self.mtu, clock=time.time(), gpus=gpus, settings=known,
                        python=sys.executable, nodes=self.options.nodelist)  # fmt: skip

    def listen(self) -> None:
        """Commands from standard input, until it is closed: then everything here ends."""
        while line := sys.stdin.buffer.readline():
            with contextlib.suppress(ValueError):
                command = json.loads(line)
                if command.get("do") == "stop":
                    threading.Thread(target=self.stop, daemon=True).start()
                elif command.get("do") == "clock":
                    self.frames.say("clock", number=command.get("number"), clock=time.time())
                else:
                    self.commands.put(command)
        self.end()

    def end(self) -> None:
        """End whatever runs. Alone, its last words are still passed on, so the main thread goes on to its end."""
        self.ending = True
        self.stop()
        if not self.options.alone:
            os._exit(0)

    def stop(self) -> None:
        """End the program that runs: it ends by itself when its standard input is closed, or is killed with all it started."""
        running = self.running
        if running is None:
            return
        with contextlib.suppress(OSError):
            if running.stdin is not None:
                running.stdin.close()
        try:
            running.wait(END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(running.pid, signal.SIGKILL)

    def follow(self) -> int:
        while True:
            command = self.commands.get()
            what = command.get("do")
            if what == "end":
                self.frames.say("bye")
                return 0
            part = (command.get("parts") or {}).get(str(self.options.task))
            if what in ("links", "again") and part is not None:
                self.run(what, "links", [*part, "--mtu", str(min(self.mtu or 1500, 65535))], float(command["seconds"]))
            elif what == "ranks" and part is not None:
                self.run(what, "ranks", ["--child", *part], float(command["seconds"]))
            elif what == "checks":
                self.check(float(command["seconds"]))

    def check(self, seconds: float) -> None:
        """Say what the checks need to know, in the environment as it is here."""
        self.run("checks", "checks", ["--seconds", str(seconds)], seconds + END_S, dict(os.environ))

    def run(self, of: str, program: str, arguments: list[str], seconds: float, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:  # fmt: skip
        """Run a program, by default with NCCL talking, and pass on what it reports, marked with ``of``; returns its events."""
        environment = environment if environment is not None else talking()
        events: list[dict[str, Any]] = []
        try:
            running = subprocess.Popen(
                [sys.executable, "-I", "-c", BOOT, *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True, cwd="/", env=environment,
            )  # fmt: skip
        except OSError as error:
            self.frames.say("ended", of=of, late=False, status=None, stderr=str(error))
            return events
        self.running = running
        late = threading.Event()

        def over() -> None:
            late.set()
            self.stop()

        clock = threading.Timer(seconds, over)
        clock.start()
        kept = [b""]
        assert running.stdin and running.stdout and running.stderr  # noqa: S101 (for the type checker)
        stderr = running.stderr

        def tail() -> None:
            while data := stderr.read1(4096):  # type: ignore[attr-defined]
                kept[0] = (kept[0] + data)[-16384:]

        reading = threading.Thread(target=tail, daemon=True)
        reading.start()
        text = PROGRAMS[program].encode()
        with contextlib.suppress(OSError, ValueError):
            running.stdin.write(f"{len(text)}\n".encode() + text)
            running.stdin.flush()
        while line := running.stdout.readline(MOST_TEXT):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    events.append(event)
                    self.frames.say("said", of=of, what=event)
        status = running.wait()
        clock.cancel()
        reading.join(1.0)
        self.running = None
        self.frames.say("ended", of=of, late=late.is_set(), status=status, stderr=kept[0].decode("utf-8", "replace"))
        return events

    # --- without commands ---------------------------------------------------------------------------------------------

    def alone(self) -> None:
        """Links, ranks, and after a failure links again, with everybody who is named; or only a look at this node."""
        options = self.options
        if options.checks:
            self.check(options.checks)
            return
        peers = self.meet()
        if peers is None or self.address is None:
            return
        ports = [int(port) for port in options.ports.split(",")]
        star = len(peers) + 1 > options.mesh
        tried = [peers[task] for task in sorted(peers) if not star or 0 in (task, options.task)]
        seconds = 20.0 if len(peers) > 7 else 12.0
        part = ["--address", self.address, "--peers", ",".join(tried), "--ports", options.ports, "--seconds", str(seconds),
                "--mtu", str(min(self.mtu or 1500, 65535))]  # fmt: skip
        events = self.run("links", "links", part, seconds + 20)
        if self.ending or any("open" not in e["ports"].values() for e in events if e["event"] == "peer"):
            return  # ranks would only wait for a pair without any way to each other
        master = self.address if options.task == 0 else peers[0]
        ranks = ["--child", "--ranks", str((len(peers) + 1) * options.here), "--here", str(options.here),
                 "--first-rank", str(options.task * options.here), "--master", f"{master}:{ports[0]}"]  # fmt: skip
        ranks += ["--cpu-only"] if options.cpu_only else []
        ranks += ["--stage-seconds", str(options.stage_seconds)] if options.stage_seconds else []
        events = self.run("ranks", "ranks", ranks, options.rank_seconds)
        if not self.ending and not any(e["event"] == "verdict" and e.get("passed") for e in events):
            self.run("again", "links", [*part, "--any", "--seconds", str(AGAIN_S)], AGAIN_S + 20)

    def meet(self) -> dict[int, str] | None:
        """The addresses of the others by number, as soon as all names lead somewhere; None where that takes too long."""
        names = self.options.names.split(",")
        found: dict[int, str] = {}
        end = time.monotonic() + self.options.meet_seconds
        while True:
            for task, name in enumerate(names):
                if task != self.options.task and task not in found:
                    with contextlib.suppress(OSError):
                        found[task] = str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
            if len(found) == len(names) - 1:
                self.frames.say("met", peers={str(task): address for task, address in found.items()})
                return found
            if time.monotonic() > end:
                missing = [task for task in range(len(names)) if task != self.options.task and task not in found]
                self.frames.say("unmet", tasks=missing, names=[names[task] for task in missing][:64])
                return None
            time.sleep(1.0)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="node_worker.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--task", type=int, default=None, help="number of this node; that of Slurm or of the Indexed Job unless given"
    )
    parser.add_argument("--name", default="", help="name of this node")
    parser.add_argument("--address", default="", help="this node's address as the site knows it")
    parser.add_argument("--names", default="", help="names of all nodes in their order: go through the whole alone")
    parser.add_argument("--checks", type=float, default=0.0, help="only look at this node, alone, for so many seconds")
    parser.add_argument("--here", type=int, default=1, help="ranks a node, alone")
    parser.add_argument("--ports", default="29500", help="numbers, with commas, alone")
    parser.add_argument("--mesh", type=int, default=16, help="up to so many nodes every pair is tried, alone")
    parser.add_argument("--stage-seconds", type=float, default=0.0)
    parser.add_argument("--rank-seconds", type=float, default=600.0)
    parser.add_argument("--meet-seconds", type=float, default=MEET_S)
    parser.add_argument("--cpu-only", action="store_true")
    options = parser.parse_args(arguments)
    if options.task is None:
        options.task = int(os.environ.get("JOB_COMPLETION_INDEX") or os.environ.get("SLURM_PROCID") or 0)
    options.alone = bool(options.names or options.checks)
    options.name = options.name or os.environ.get("NODE_NAME") or os.environ.get("SLURMD_NODENAME", "")
    options.address = options.address or os.environ.get("POD_IP", "")
    options.nodelist = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    return options


def main(arguments: list[str]) -> int:
    worker = Worker(parse(arguments))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=worker.end, daemon=True).start())
    worker.describe()
    if worker.options.alone:
        worker.alone()
        worker.frames.say("bye")
        return 0  # whatever was found: the verdict is in what was printed, and an error would end the others' pods
    threading.Thread(target=worker.listen, daemon=True).start()
    status = worker.follow()
    os._exit(status)  # the thread that reads commands holds standard input, and Python would wait for it


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
