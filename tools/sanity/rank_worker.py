"""A test of the ranks of one node that always ends: it starts them, watches every stage, and names who is at fault.

This file stands alone. It is run by the interpreter that vLLM uses (standard library and torch, Python 3.9 or newer), in
place or as text on standard input::

    kubectl exec -i POD -- python3 -I - --ranks 2 < rank_worker.py > result.jsonl

It prints one JSON object a line. The last one has ``"event": "verdict"`` with the findings, each with its kind, stage and
ranks. The supervising process never imports torch, so it can fork the ranks and survives whatever they do. Ranks report
through pipes; no file is written but the segment of the shared memory stage, which is removed whoever dies.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import errno
import faulthandler
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

#: Stages in their order, with the seconds that one rank may spend in each. ``import`` reads gigabytes on a cold disk.
STAGES: dict[str, float] = {
    "import": 90.0,
    "rendezvous": 10.0,
    "barrier": 10.0,
    "shm": 10.0,
    "gloo": 15.0,
    "cuda": 60.0,
    "nccl": 60.0,
    "vllm": 120.0,
    "graph": 60.0,
    "bandwidth": 60.0,
    "custom": 60.0,
}
#: Bytes of the shared memory segment that is really filled: more than the 64 KiB to 64 MiB of a careless container would
#: hide, less than anybody misses. vLLM's own queue takes up to 24 chunks of 16 MiB (shm_broadcast.py, vLLM 0.32.0).
SHM_BYTES = 96 << 20
#: Sizes of the bandwidth stage in MiB. Input and output of the largest stay below the 256 MiB that a rank may take.
BANDWIDTH_MIB = (1, 16, 96)
#: Bytes of the sums of the custom all-reduce, as far as its own limit permits: small ones are read from the peers at once,
#: large ones in two steps (csrc/custom_all_reduce.cuh, vLLM 0.4.3 to 0.32.0). Both are multiples of the 16 that it wants.
CUSTOM_BYTES = (16 << 10, 4 << 20)
#: How much text one rank may print before the rest is dropped.
MOST_OUTPUT = 256 << 10
#: Seconds in which the other ranks may still say what they saw, once the first one has failed.
FALLOUT_S = 1.5
MISSING_AT = 0.75  # share of a stage's time after which a rank that waits looks for who is missing


class Skip(Exception):  # noqa: N818 (it is no error)
    """A stage does not apply here; the message says why."""


class Fault(Exception):  # noqa: N818
    """A stage failed and knows the kind of the fault. ``ranks`` names others than the one who noticed."""

    def __init__(self, kind: str, text: str, ranks: list[int] | None = None, **facts: Any) -> None:
        super().__init__(text)
        self.kind, self.ranks, self.facts = kind, ranks, facts


# --- a rank -----------------------------------------------------------------------------------------------------------


class Rank:
    """One rank: its place, its options, and what the stages hand to each other."""

    def __init__(self, rank: int, options: argparse.Namespace, say: Callable[..., None], port_of_rank_0: Any) -> None:
        self.rank, self.world, self.options, self.say = rank, options.ranks, options, say
        self.local = rank - options.first_rank
        self.port_of_rank_0 = port_of_rank_0
        self.host = options.master.rpartition(":")[0].strip("[]") if options.master else "127.0.0.1"
        self.port = int(options.master.rpartition(":")[2]) if options.master else 0
        self.torch: Any = None
        self.store: Any = None
        self.vllm: Any = None
        self.nccl: Any = None
        self.custom: Any = None  # kept until the rank ends: freed earlier, a peer might still read its memory

    def seconds(self, stage: str) -> float:
        return seconds_of(self.options, stage)

    # Each stage_* returns facts that are worth keeping.

    def stage_import(self) -> dict[str, Any]:
        try:
            import torch
        except ImportError as error:
            missing = (getattr(error, "name", "") or "").split(".")[0] == "torch"
            raise Fault("no-torch" if missing else "torch-broken", str(error)) from None
        except OSError as error:  # a shared library that does not load
            raise Fault("torch-broken", str(error)) from None
        import torch.distributed as dist

        if not dist.is_available():
            raise Fault("torch-broken", "torch was built without torch.distributed")
        self.torch = torch
        cuda = torch.cuda.is_available()
        return {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": getattr(torch.version, "hip", None),
            "gpus": torch.cuda.device_count() if cuda else 0,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda and dist.is_nccl_available() else None,
        }

    def stage_rendezvous(self) -> dict[str, Any]:
        from torch.distributed import TCPStore

        limit = datetime.timedelta(seconds=self.seconds("rendezvous"))
        server = None
        if self.rank == 0:
            brief = datetime.timedelta(seconds=self.seconds("rendezvous") * 0.4)
            try:  # it listens on every address; whether the given one leads here is what reach() finds out
                server = TCPStore("127.0.0.1", self.port, self.world + 1, True, timeout=brief, wait_for_workers=False)
            except RuntimeError as error:
                if "EADDRINUSE" in str(error) or "in use" in str(error):
                    raise Fault("port-in-use", first_line(error), port=self.port) from None
                if self.port:
                    reach(self.host, self.port, self.seconds("rendezvous") * 0.3, True)
                raise
            self.port = int(server.port)
            self.say("port", port=self.port)
        elif not self.port:
            self.port = self.port_of_rank_0()
        facts = reach(self.host, self.port, self.seconds("rendezvous") * MISSING_AT, self.rank == 0)
        store = TCPStore(self.host, self.port, self.world + 1, False, timeout=limit, wait_for_workers=False)
        self.server, self.store = server, store
        if store.add(f"claims/{self.rank}", 1) > 1:
            raise Fault("rank-twice", f"rank {self.rank} was claimed before", [self.rank])
        return {**facts, **host_name_facts()}

    def stage_barrier(self) -> dict[str, Any]:
        self.store.set(f"here/{self.rank}", "1")
        self._wait([f"here/{rank}" for rank in range(self.world)], self.seconds("barrier"))
        return {}

    def _wait(self, keys: list[str], seconds: float) -> None:
        """Wait for keys that end in a rank's number; raises :class:`Fault` that names the ranks that did not come."""
        try:
            self.store.wait(keys, datetime.timedelta(seconds=seconds * MISSING_AT))
        except RuntimeError as error:
            try:
                missing = [int(key.rpartition("/")[2]) for key in keys if not self.store.check([key])]
            except RuntimeError as gone:  # the store went away with rank 0, which has said why
                raise Fault("peer-lost", first_line(gone)) from None
            raise Fault("ranks-missing", first_line(error), missing) from None

    def stage_shm(self) -> dict[str, Any]:
        """The first rank here fills a segment, the others read it: what queues and NCCL's SHM transport live on."""
        path = shm_path(self.options)
        mark = f"shm/{self.options.first_rank}"
        if self.local == 0:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, SHM_BYTES)  # touching it instead would end in SIGBUS
                    os.pwrite(descriptor, b"ranks", SHM_BYTES - 5)
                finally:
                    os.close(descriptor)
            except OSError as error:
                self.store.set(mark, "failed")
                space = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None  # noqa: PTH112, S108
                total = space.f_blocks * space.f_frsize if space else 0
                kind = "shm-too-small" if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT) else "shm-failed"
                raise Fault(kind, str(error), total_bytes=total, needed_bytes=SHM_BYTES) from None
            self.store.set(mark, "ready")
        else:
            self.store.wait([mark], datetime.timedelta(seconds=self.seconds("shm") * MISSING_AT))
            if self.store.get(mark) != b"ready":
                raise Fault("victim", "the first rank could not make the shared memory segment")
            with open(path, "rb") as segment:  # noqa: PTH123
                segment.seek(SHM_BYTES - 5)
                if segment.read(5) != b"ranks":
                    raise Fault("shm-failed", "another rank reads something else than what was written")
        self.store.set(f"shm-read/{self.rank}", "1")
        here = range(self.options.first_rank, self.options.first_rank + self.options.here)
        self._wait([f"shm-read/{rank}" for rank in here], self.seconds("shm"))
        if self.local == 0:
            os.unlink(path)  # noqa: PTH108
        return {"bytes": SHM_BYTES}

    def stage_gloo(self) -> dict[str, Any]:
        import torch.distributed as dist

        # Longer than the supervisor waits: it shall find the ranks as they hang, not their time-outs.
        limit = datetime.timedelta(seconds=self.seconds("gloo") * 3)
        store = dist.PrefixStore("gloo", self.store)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world, timeout=limit)
        data = self.torch.full((1 << 16,), float(self.rank + 1))
        dist.all_reduce(data)
        self._must_be_sum(data)
        return {"interface": os.environ.get("GLOO_SOCKET_IFNAME")}

    def _must_be_sum(self, data: Any, times: float = 1.0) -> None:
        wanted = times * self.world * (self.world + 1) / 2
        if not bool((data == wanted).all()):
            raise Fault("wrong-result", f"the sum is {float(data.flatten()[0])}, expected {wanted}")

    def stage_cuda(self) -> dict[str, Any]:
        if self.options.cpu_only:
            raise Skip("cpu-only")
        if not self.torch.cuda.is_available():
            raise Skip("no-gpu")
        count = self.torch.cuda.device_count()
        if count < self.options.here:
            raise Skip("fewer-gpus-than-ranks")
        self.torch.cuda.set_device(self.local)
        free, total = self.torch.cuda.mem_get_info()
        value = (self.torch.ones(1 << 20, device="cuda") * 2).sum().item()
        if value != float(2 << 20):
            raise Fault("wrong-result", f"the device computed {value}, expected {float(2 << 20)}")
        return {"name": self.torch.cuda.get_device_name(), "free_bytes": free, "total_bytes": total}

    def stage_nccl(self) -> dict[str, Any]:
        self._needs_gpu()
        import torch.distributed as dist

        limit = datetime.timedelta(seconds=self.seconds("nccl") * 3)
        self.nccl = dist.new_group(backend="nccl", timeout=limit)
        data = self.torch.full((1 << 20,), float(self.rank + 1), device="cuda")
        dist.all_reduce(data, group=self.nccl)
        self.torch.cuda.synchronize()
        self._must_be_sum(data)
        return {}

    def _needs_gpu(self) -> None:
        if self.options.cpu_only or not self.torch.cuda.is_initialized():
            raise Skip("no-gpu-stage")

    def stage_vllm(self) -> dict[str, Any]:
        self._needs_gpu()
        if self.world < 2:
            raise Skip("one-rank")
        try:
            import vllm
            from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        except ImportError as error:
            raise Skip(f"no-vllm: {first_line(error)}") from None
        import torch.distributed as dist

        self.vllm = PyNcclCommunicator(group=dist.group.WORLD, device=self.local)
        self.vllm.disabled = False  # before 0.6.5 it was off until asked for
        data = self.torch.full((1 << 20,), float(self.rank + 1), device="cuda")
        self._must_be_sum(self._vllm_sum(data))
        return {"vllm": vllm.__version__}

    def _vllm_sum(self, data: Any) -> Any:
        stream = self.torch.cuda.current_stream()
        out = self.vllm.all_reduce(data, stream=stream)  # in place before 0.6.5, and then it returns nothing
        stream.synchronize() if not self.torch.cuda.is_current_stream_capturing() else None
        return data if out is None else out

    def stage_graph(self) -> dict[str, Any]:
        self._needs_gpu()
        import torch.distributed as dist

        data = self.torch.empty(1 << 20, device="cuda")
        out: Any = data

        def reduce() -> Any:
            if self.vllm is not None:
                return self._vllm_sum(data)
            dist.all_reduce(data, group=self.nccl)
            return data

        side = self.torch.cuda.Stream()
        side.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(side):
            data.fill_(float(self.rank + 1))
            reduce()
        self.torch.cuda.current_stream().wait_stream(side)
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            out = reduce()
        data.fill_(float(self.rank + 1))
        graph.replay()
        self.torch.cuda.synchronize()
        self._must_be_sum(out)
        return {"communicator": "vllm" if self.vllm is not None else "torch"}

    def stage_bandwidth(self) -> dict[str, Any]:
        """Bus bandwidth as nccl-tests defines it: 2 (n - 1) / n x bytes / seconds, in GB/s."""
        self._needs_gpu()
        if self.world < 2:
            raise Skip("one-rank")
        import torch.distributed as dist

        found: dict[str, float] = {}
        for mib in BANDWIDTH_MIB:
            data = self.torch.ones(mib << 18, device="cuda")
            for _ in range(3):
                dist.all_reduce(data, group=self.nccl)
            self.torch.cuda.synchronize()
            started, rounds = time.monotonic(), 10
            for _ in range(rounds):
                dist.all_reduce(data, group=self.nccl)
            self.torch.cuda.synchronize()
            seconds = (time.monotonic() - started) / rounds
            found[str(mib)] = round(2 * (self.world - 1) / self.world * (mib << 20) / seconds / 1e9, 3)
            del data
        return {"bus_gb_per_s": found}

    def stage_custom(self) -> dict[str, Any]:
        """vLLM's own all-reduce, which reads the peers' memory without NCCL: at once and inside a CUDA graph."""
        self._needs_gpu()
        if self.options.no_custom_all_reduce:
            raise Skip("custom-left-out")
        if self.world < 2:
            raise Skip("one-rank")
        if self.options.here < self.world:
            raise Skip("custom-several-nodes")
        self.torch.cuda.empty_cache()  # what the stages before took and no longer need
        custom = self.custom = self.custom_communicator()
        sizes = sorted({min(size, custom.max_size // 2 // 16 * 16) for size in CUSTOM_BYTES})
        for size in sizes:
            data = self.torch.full((size // 2,), float(self.rank + 1), dtype=self.torch.float16, device="cuda")
            self._must_be_sum(self._custom_sum(data))
        data = self.torch.full((sizes[0] // 2,), 0.0, dtype=self.torch.float16, device="cuda")
        graph = self.torch.cuda.CUDAGraph()
        with (
            custom.capture(),
            self.torch.cuda.graph(graph),
        ):  # the end of capture() tells the peers where its buffers lie
            out = custom.custom_all_reduce(data)
        for times in (1.0, 2.0):
            data.fill_(times * (self.rank + 1))
            graph.replay()
            self.torch.cuda.synchronize()
            self._must_be_sum(out, times)
        return {"custom_bytes": sizes}

    def _custom_sum(self, data: Any) -> Any:
        out = self.custom.custom_all_reduce(data)
        if out is None:
            raise Skip(f"custom-refused: {data.numel() * data.element_size()} bytes")
        self.torch.cuda.synchronize()
        return out

    def custom_communicator(self) -> Any:
        """vLLM's ``CustomAllreduce`` over all ranks, as CudaCommunicator makes it; raises :class:`Skip` with vLLM's own words
        where it declines: no kernels in this build, a world size it has none for, more than two cards without NVLink, no
        peer-to-peer access."""
        import inspect
        import logging

        import torch.distributed as dist

        try:
            import vllm
            from vllm.distributed.device_communicators import custom_all_reduce as module
        except ImportError as error:
            raise Skip(f"no-vllm: {first_line(error)}") from None
        version = str(getattr(vllm, "__version__", "?"))
        kind: Any = getattr(module, "CustomAllreduce", None)
        takes = inspect.signature(kind.__init__).parameters if kind is not None else {}
        if not {"group", "device"} <= set(takes) or not hasattr(kind, "custom_all_reduce"):
            raise Skip(f"custom-unknown-form: {version}")  # before 0.4.3 it was made of functions
        if hasattr(module, "gpu_p2p_access_check"):
            # vLLM's own check wants its world group, starts processes and writes a file, and in 0.32.0 it is off unless
            # asked for. The driver's word is enough here: the sums that follow are the test.
            module.gpu_p2p_access_check = self.torch.cuda.can_device_access_peer
        said: list[str] = []
        listener = logging.Handler()
        setattr(listener, "emit", lambda record: said.append(record.getMessage()))  # noqa: B010 (it is replaced)
        logger = logging.getLogger(module.__name__)
        logger.addHandler(listener)
        logger.setLevel(logging.INFO)  # vLLM sets its levels only when an engine is made
        try:
            limit = datetime.timedelta(seconds=self.seconds("custom") * 3)
            group = dist.new_group(backend="gloo", timeout=limit)
            made = kind(group=group, device=self.local)
            if hasattr(made, "finalize_p2p"):  # some versions open the peers' memory in a second step
                made.finalize_p2p()
        finally:
            logger.removeHandler(listener)
        if made.disabled:
            why = next((text for text in said if "disabled" in text), f"vLLM {version}")
            raise Skip(f"custom-refused: {why.partition(' To silence')[0]}")
        return made


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


def shm_path(options: argparse.Namespace) -> str:
    return f"/dev/shm/vllm-diagnose-{options.token}"  # noqa: S108


def seconds_of(options: argparse.Namespace, stage: str) -> float:
    if options.stage_seconds and stage != "import":
        return float(options.stage_seconds)
    return STAGES[stage]


def host_name_facts() -> dict[str, Any]:
    """What this machine's own name resolves to; Gloo takes its address from there unless told otherwise."""
    name = socket.gethostname()
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        return {"host_name": name, "host_addresses": [], "host_error": first_line(error)}
    return {"host_name": name, "host_addresses": found}


def reach(host: str, port: int, seconds: float, is_rank_0: bool) -> dict[str, Any]:
    """Connect to the place where the ranks meet, as often as time allows; raises :class:`Fault` that says how it failed."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Fault("master-name-unknown", f"{host}: {first_line(error)}", host=host) from None
    end = time.monotonic() + seconds
    last: OSError = OSError(errno.ETIMEDOUT, "no answer")
    address: Any = None
    while time.monotonic() < end:
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.settimeout(max(0.2, min(3.0, end - time.monotonic())))
                try:
                    attempt.connect(address)
                    return {"master_address": str(address[0]), "own_address": str(attempt.getsockname()[0])}
                except socket.timeout:
                    last = OSError(errno.ETIMEDOUT, "no answer")
                except OSError as error:
                    last = error
        time.sleep(0.1)
    where = f"{address[0]} port {port}"
    facts: dict[str, Any] = {"host": host, "port": port, "errno": errno.errorcode.get(last.errno or 0, "")}
    if last.errno in (errno.EACCES, errno.EPERM) or is_own(address[0]) and last.errno != errno.ECONNREFUSED:
        raise Fault("port-blocked", f"{where}: {last.strerror}", **facts)
    if last.errno == errno.ECONNREFUSED:
        raise Fault("wrong-master" if is_rank_0 else "master-refused", f"{where}: {last.strerror}", **facts)
    if other_port_answers(address, port):
        raise Fault("port-blocked", f"{where}: {last.strerror}", **facts)
    raise Fault("wrong-master" if is_rank_0 else "master-unreachable", f"{where}: {last.strerror}", **facts)


def is_own(address: str) -> bool:
    """Whether an address belongs to this machine: only then can something be bound to it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def other_port_answers(address: Any, port: int) -> bool:
    """Whether the host answers elsewhere; a refusal is an answer. Then it is there, and this one port is shut."""
    for other in (22, 1 if port != 1 else 2):
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM) as attempt:
            attempt.settimeout(0.5)
            try:
                attempt.connect((address[0], other))
            except ConnectionRefusedError:
                return True
            except OSError:
                continue
            return True
    return False


def run_rank(rank: int, options: argparse.Namespace, report: int, control: int) -> None:
    """The life of one rank; never returns. ``report`` and ``control`` are pipes from and to the supervisor."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)

    def say(event: str, **facts: Any) -> None:
        os.write(report, (json.dumps({"event": event, "rank": rank, **facts}) + "\n").encode())

    def port_of_rank_0() -> int:
        return int(os.read(control, 32))

    this = Rank(rank, options, say, port_of_rank_0)
    status = 0
    for stage in STAGES:
        say("begin", stage=stage)
        started = time.monotonic()
        try:
            facts = getattr(this, f"stage_{stage}")()
        except Skip as skip:
            say("skipped", stage=stage, why=str(skip))
            continue
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is this rank's answer)
            kind = error.kind if isinstance(error, Fault) else kind_of(stage, error)
            ranks = error.ranks if isinstance(error, Fault) else None
            told = error.facts if isinstance(error, Fault) else {"trace": traceback.format_exc()[-3000:]}
            say("failed", stage=stage, kind=kind, text=first_line(error), ranks=ranks, facts=told)
            status = 1
            break
        say("done", stage=stage, seconds=round(time.monotonic() - started, 3), facts=facts)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the destructors of a broken process group may wait for ever


#: What an error's text says about its kind; the first that fits. Sources: gloo/transport/tcp/device.cc,
#: torch/csrc/distributed/c10d/ProcessGroupGloo.cpp and ProcessGroupNCCL.cpp of PyTorch 2.13, NCCL's nccl.h.
TEXTS = (
    ("wrong-master", ("Ping failed, invalid value returned",)),  # somebody answers there, but no store
    ("wrong-interface", ("Unable to find address for", "Unable to find interface", "no socket interface found")),
    (
        "peer-lost",
        (
            "Connection closed by peer",
            "Connection reset by peer",
            "remote process exited",
            "ncclRemoteError",
            # TCPStore (socket.cpp, TCPStoreLibUvBackend.cpp): rank 0, which keeps the store, is gone
            "Connection was likely closed",
            "Broken pipe",
        ),
    ),
    ("out-of-memory", ("out of memory", "OutOfMemoryError")),
    ("cuda-error", ("CUDA error", "device-side assert", "cudaError", "no kernel image", "HIP error")),
    ("shm-too-small", ("No space left on device",)),
    ("gloo-unreachable", ("connectFullMesh failed", "Connection refused", "Connection timed out", "No route to host")),
    ("nccl-failed", ("NCCL error", "ncclSystemError", "ncclInternalError", "ncclInvalidUsage", "ncclUnhandled")),
)


def kind_of(stage: str, error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    for kind, said in TEXTS:
        if any(words in text for words in said):
            return kind
    return "stage-failed"


# --- the supervisor ---------------------------------------------------------------------------------------------------


class Watched:
    """What the supervisor knows of one rank."""

    def __init__(self, rank: int, pid: int, report: int, control: int, output: int) -> None:
        self.rank, self.pid, self.report, self.control, self.output = rank, pid, report, control, output
        self.stage, self.since, self.inside = "import", time.monotonic(), True
        self.passed: dict[str, float] = {}
        self.skipped: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.fault: dict[str, Any] | None = None
        self.status: int | None = None
        self.state, self.wchan, self.stack = "", "", ""
        self.buffer, self.text, self.text_size = b"", b"", 0
        self.heard = False

    @property
    def alive(self) -> bool:
        return self.status is None

    @property
    def finished(self) -> bool:
        return self.status == 0


class Supervisor:
    """Starts the ranks, listens, and ends them; prints what happens."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ranks: list[Watched] = []
        self.selector = selectors.DefaultSelector()
        self.parent_gone = False
        self.broken_at: float | None = None

    def print(self, event: str, **facts: Any) -> None:
        try:
            os.write(1, (json.dumps({"event": event, "at": round(time.time(), 3), **facts}) + "\n").encode())
        except OSError:  # nobody reads any more
            self.parent_gone = True

    def run(self) -> int:
        options = self.options
        self.print("start", ranks=options.ranks, first_rank=options.first_rank, here=options.here, python=sys.executable,
                   version=sys.version.split()[0], path=list(sys.path), stages={s: seconds_of(options, s) for s in STAGES})  # fmt: skip
        try:
            for rank in range(options.first_rank, options.first_rank + options.here):
                self.start(rank)
            if options.child:
                os.set_blocking(0, False)
                self.selector.register(0, selectors.EVENT_READ, None)
            self.listen()
            if not self.parent_gone and not all(rank.finished for rank in self.ranks):
                self.take_stacks()
        finally:
            self.end_all()
        findings = name_the_fault(self.ranks, options)
        self.print("verdict", passed=not any(f["severity"] == "bad" for f in findings), findings=findings)
        return 0

    def start(self, rank: int) -> None:
        report, report_in = os.pipe()
        control_out, control = os.pipe()
        output, output_in = os.pipe()
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                # PR_SET_PDEATHSIG: whatever happens to the supervisor happens to the rank.
                ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != supervisor:
                    os._exit(70)
                null = os.open(os.devnull, os.O_RDONLY)
                os.dup2(null, 0)
                os.dup2(output_in, 1)
                os.dup2(output_in, 2)
                for other in (report, control, output, output_in, null):
                    os.close(other)
                for watched in self.ranks:  # a rank that keeps another's pipe open would hide that one's end
                    for other in (watched.report, watched.control, watched.output):
                        os.close(other)
                run_rank(rank, self.options, report_in, control_out)
            finally:
                os._exit(71)
        for other in (report_in, control_out, output_in):
            os.close(other)
        watched = Watched(rank, pid, report, control, output)
        self.ranks.append(watched)
        for descriptor in (report, output):
            os.set_blocking(descriptor, False)
            self.selector.register(descriptor, selectors.EVENT_READ, watched)
        self.print("rank", rank=rank, pid=pid)

    def listen(self) -> None:
        """Until all ranks are through, one has failed and the others have had time to say so, or the parent is gone."""
        while not self.parent_gone and any(rank.alive for rank in self.ranks):
            self.read(0.1)
            self.reap()
            now = time.monotonic()
            late = [r for r in self.ranks if r.alive and now - r.since > seconds_of(self.options, r.stage)]
            if late and self.broken_at is None:
                self.broken_at = now - FALLOUT_S
            if self.broken_at is not None and now - self.broken_at >= FALLOUT_S:
                return

    def read(self, seconds: float) -> None:
        for key, _ in self.selector.select(seconds):
            try:
                data = os.read(key.fd, 65536)
            except BlockingIOError:
                continue
            if key.data is None:
                if not data:
                    self.parent_gone = True
                    self.selector.unregister(0)
                continue
            if not data:
                self.selector.unregister(key.fd)
            elif key.fd == key.data.output:
                self.take_output(key.data, data)
            else:
                self.take_report(key.data, data)

    def take_output(self, watched: Watched, data: bytes) -> None:
        watched.text_size += len(data)
        watched.text = (watched.text + data)[-MOST_OUTPUT:]

    def take_report(self, watched: Watched, data: bytes) -> None:
        *lines, watched.buffer = (watched.buffer + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            event = told["event"]
            watched.heard = True
            if event == "port":
                for other in self.ranks:
                    if other is not watched:
                        try:
                            os.write(other.control, str(told["port"]).encode())
                        except OSError:
                            continue  # that rank is gone; reap() says so
            elif event == "begin":
                watched.stage, watched.since, watched.inside = told["stage"], time.monotonic(), True
            elif event == "done":
                watched.passed[told["stage"]] = told["seconds"]
                watched.facts.update(told["facts"])
                watched.since, watched.inside = time.monotonic(), False
            elif event == "skipped":
                watched.skipped[told["stage"]] = told["why"]
            elif event == "failed":
                watched.fault = told
                self.broken()
            self.print(event, **{key: value for key, value in told.items() if key != "event"})

    def broken(self) -> None:
        if self.broken_at is None:
            self.broken_at = time.monotonic()

    def reap(self) -> None:
        for watched in self.ranks:
            if watched.alive:
                pid, status = os.waitpid(watched.pid, os.WNOHANG)
                if pid:
                    watched.status = status
                    self.drain(watched)
                    if status:
                        self.broken()
                        self.print_exit(watched)

    def print_exit(self, watched: Watched) -> None:
        by = os.WTERMSIG(watched.status or 0) if os.WIFSIGNALED(watched.status or 0) else None
        name = signal.Signals(by).name if by else None
        code = os.WEXITSTATUS(watched.status or 0) if by is None else None
        self.print("exit", rank=watched.rank, stage=watched.stage, signal=name, code=code)

    def drain(self, watched: Watched) -> None:
        for descriptor, take in ((watched.report, self.take_report), (watched.output, self.take_output)):
            while True:
                try:
                    data = os.read(descriptor, 65536)
                except OSError:
                    break
                if not data:
                    break
                take(watched, data)

    def take_stacks(self) -> None:
        """State, wait channel and Python stacks of the ranks that still run, before they are ended."""
        living = [rank for rank in self.ranks if rank.alive]
        for watched in living:
            watched.state = read_state(watched.pid)
            watched.wchan = read_small(f"/proc/{watched.pid}/wchan")
        before = {watched.rank: watched.text_size for watched in living}
        for watched in living:
            if (
                watched.passed or watched.heard
            ):  # before it said a word no handler need stand, and the signal would end it
                os.kill(watched.pid, signal.SIGUSR1)
                os.kill(watched.pid, signal.SIGCONT)  # a stopped rank prints where it stood and goes on for a moment
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            self.read(0.1)
        for watched in living:
            fresh = watched.text_size - before[watched.rank]
            watched.stack = watched.text[-fresh:].decode("utf-8", "replace")[-8000:] if fresh else ""
            self.print("state", rank=watched.rank, stage=watched.stage, state=watched.state, wchan=watched.wchan,
                       stack=watched.stack)  # fmt: skip

    def end_all(self) -> None:
        for watched in self.ranks:
            if watched.alive:
                try:
                    os.kill(watched.pid, signal.SIGKILL)
                    os.waitpid(watched.pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    continue
        with contextlib.suppress(OSError):  # it was never made, or its maker removed it
            os.unlink(shm_path(self.options))  # noqa: PTH108
        for watched in self.ranks:
            if watched.text:
                self.print("output", rank=watched.rank, bytes=watched.text_size, text=watched.text.decode("utf-8", "replace"))  # fmt: skip


def read_small(path: str) -> str:
    try:
        with open(path) as handle:  # noqa: PTH123
            return handle.read(4096).strip("\0\n ")
    except OSError:
        return ""


def read_state(pid: int) -> str:
    """The letter of /proc/PID/stat: R running, S sleeping, D in the kernel, T stopped, Z dead."""
    return (read_small(f"/proc/{pid}/stat").rpartition(")")[2].split() or [""])[0]


def name_the_fault(ranks: list[Watched], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Who is at fault and where, from what all ranks did: the dead before the stopped, before those who said why, before
    those who are behind, before a stage in which everybody waits."""
    findings = _bad(ranks)
    multi = options.ranks > options.here
    for rank in ranks:
        addresses = rank.facts.get("host_addresses") or []
        loop = bool(addresses) and all(a.startswith("127.") or a == "::1" for a in addresses)
        if loop and not os.environ.get("GLOO_SOCKET_IFNAME"):
            findings.append(_finding("host-name-loopback", "gloo", [r.rank for r in ranks],
                                     f"{rank.facts['host_name']} is {', '.join(addresses)}",
                                     severity="bad" if multi and any(f["stage"] == "gloo" for f in findings) else "note"))  # fmt: skip
            break
    return findings


def _finding(kind: str, stage: str, ranks: list[int], text: str = "", severity: str = "bad", **facts: Any) -> dict[str, Any]:  # fmt: skip
    return {"kind": kind, "stage": stage, "ranks": ranks, "text": text, "severity": severity, "facts": facts}


#: Faults that only say that somebody else went away; they count when nobody else explains them.
FOLLOWS = ("peer-lost", "victim", "master-refused")


def _bad(ranks: list[Watched]) -> list[dict[str, Any]]:
    order = list(STAGES)
    dead = [r for r in ranks if r.status and (os.WIFSIGNALED(r.status) or r.fault is None)]
    if dead:
        found = []
        for rank in dead:
            by = os.WTERMSIG(rank.status or 0) if os.WIFSIGNALED(rank.status or 0) else 0
            how = signal.Signals(by).name if by else f"exit status {os.WEXITSTATUS(rank.status or 0)}"
            kind = "shm-too-small" if by == signal.SIGBUS else "rank-died"
            found.append(_finding(kind, rank.stage, [rank.rank], how, signal=by or None))
        return found
    stopped = [r for r in ranks if r.alive and r.state in ("T", "t")]
    if stopped:
        return [_finding("rank-stopped", r.stage, [r.rank], f"state {r.state}", stack=r.stack) for r in stopped]
    told = [r for r in ranks if r.fault is not None]
    sure = [r for r in told if r.fault and r.fault["kind"] not in FOLLOWS and r.fault["kind"] != "ranks-missing"]
    if any(r.fault and r.fault["kind"] == "wrong-master" for r in sure):  # what the others then found follows from it
        sure = [r for r in sure if r.fault and r.fault["kind"] in ("wrong-master", "rank-twice")]
    for group in (sure, [r for r in told if r.fault and r.fault["kind"] == "ranks-missing"]):
        if group:
            first = min(order.index(r.fault["stage"]) for r in group if r.fault)
            same = [r for r in group if r.fault and order.index(r.fault["stage"]) == first]
            return _by_kind(same, ranks)
    waiting = [r for r in ranks if r.alive]
    if waiting:
        furthest = max(order.index(r.stage) for r in ranks if r.alive or r.fault)
        behind = [r for r in waiting if order.index(r.stage) < furthest]
        if behind:
            kind = "rank-never-started" if all(not r.passed for r in behind) else "rank-behind"
            return [_finding(kind, r.stage, [r.rank], r.wchan, stack=r.stack, state=r.state) for r in behind]
        stage = order[furthest]
        kind = "rank-never-started" if stage == "import" else "stage-hang"
        stacks = {str(r.rank): r.stack for r in waiting}
        return [_finding(kind, stage, [r.rank for r in waiting], waiting[0].wchan, stacks=stacks)]
    return _by_kind(told, ranks)


def _by_kind(told: list[Watched], ranks: list[Watched]) -> list[dict[str, Any]]:
    """One finding a kind. Where a rank names others as missing, they are at fault, and here may be seen why."""
    found: dict[str, dict[str, Any]] = {}
    here = {r.rank: r for r in ranks}
    for rank in told:
        fault = rank.fault or {}
        at_fault = fault["ranks"] if fault.get("ranks") is not None else [rank.rank]
        kind = fault["kind"]
        if kind == "ranks-missing":
            alive = [here[r] for r in at_fault if r in here and here[r].alive]
            kind = "rank-behind" if alive and all(r.passed for r in alive) else "rank-never-started"
        entry = found.setdefault(kind, _finding(kind, fault["stage"], [], fault["text"], **(fault.get("facts") or {})))
        entry["ranks"] = sorted({*entry["ranks"], *at_fault})
    return list(found.values())


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rank_worker.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--ranks", type=int, default=0, help="ranks of the whole group; the GPUs of this node unless given"
    )
    parser.add_argument("--first-rank", type=int, default=0, help="number of the first rank that is started here")
    parser.add_argument("--here", type=int, default=0, help="ranks that are started here; all unless given")
    parser.add_argument("--master", default="", metavar="HOST:PORT", help="where the ranks meet; loopback unless given")
    parser.add_argument(
        "--stage-seconds", type=float, default=0.0, help="deadline of every stage but the import of torch"
    )
    parser.add_argument("--cpu-only", action="store_true", help="leave the GPU stages out")
    parser.add_argument(
        "--no-custom-all-reduce", action="store_true", help="leave out what --disable-custom-all-reduce turns off"
    )
    parser.add_argument("--child", action="store_true", help="end everything when standard input is closed")
    options = parser.parse_args(arguments)
    if not options.ranks:
        gpus = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]  # noqa: PTH208
        options.ranks = max(2, len(gpus)) if not gpus else len(gpus)
    options.here = options.here or options.ranks - options.first_rank
    if not (options.first_rank >= 0 and 1 <= options.here <= 64 and options.first_rank + options.here <= options.ranks):
        parser.error(
            f"{options.here} ranks from rank {options.first_rank} on do not fit into a group of {options.ranks}"
        )
    if options.first_rank and not options.master:
        parser.error("--first-rank needs --master HOST:PORT, where rank 0 listens")
    options.token = f"{os.getpid()}-{os.urandom(4).hex()}"
    return options


def main(arguments: list[str]) -> int:
    return Supervisor(parse(arguments)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
