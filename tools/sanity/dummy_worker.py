"""Starts vLLM's engine with invented weights until the model is loaded, and says how long that took. Stands alone: standard
library and vLLM, Python 3.9+. It takes the arguments of vLLM's ``LLM`` as one JSON object, and ``--seconds``.

Prints one JSON object a line; the last has ``"event": "verdict"``. The process that watches never imports vLLM, reads what
the engine logs, and ends it once the model is there: nothing is profiled, captured or generated. Caches go to a folder of
its own that is removed again, nothing is downloaded, and everything ends when standard input is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import selectors
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

#: What vLLM logs when it begins to load (model runners of 0.4 to 0.32.0).
BEGINS = ("Starting to load model", "Loading model from scratch")
#: What it logs first once the model is there. The CPU's runner says nothing of it: its cache comes next.
LOADED = ("Model loading took", "Loading model weights took", "KV cache size", "for KV cache on node", " blocks: ")
#: vLLM's own figure, where the line holds one (0.7.0 and newer).
TOOK = re.compile(r"(?:Model loading|Loading model weights) took .*? and (\d+(?:\.\d+)?) seconds")
#: The line by which the engine's process says that vLLM is imported.
IMPORTED = "@vllm-diagnose imported "
#: Exit status of an interpreter without vLLM.
NO_VLLM = 33
MOST_OUTPUT = 128 << 10
#: Seconds that the engine has to end by itself, which leaves nothing behind, before it is killed.
END_S = 10.0
#: Short enough for any model; the length of requests has no part in loading.
MAX_MODEL_LEN = 256
#: Keys of a config.json whose models need their tokenizer to be made.
WITH_PROCESSOR = ("vision_config", "audio_config", "thinker_config", "mm_config", "img_processor")


def say(event: str, **facts: Any) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more
        os.write(1, (json.dumps({"event": event, **facts}) + "\n").encode())


def surroundings(folder: str) -> dict[str, str]:
    """What the engine runs with: no network, nothing written but in ``folder``, one process a rank, a log to read."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VLLM_PORT", "VLLM_LOGGING_CONFIG_PATH")}
    caches = ("TMPDIR", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_MODULES_CACHE")  # fmt: skip
    return {
        **kept,
        **dict.fromkeys(caches, folder),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    }


def make_engine(arguments: dict[str, Any]) -> None:
    """The engine's process: makes vLLM's ``LLM`` with what this version knows of the arguments."""
    try:
        import vllm
        from vllm.engine.arg_utils import EngineArgs
    except ImportError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(NO_VLLM)
    print(f"{IMPORTED}{vllm.__version__}", flush=True)
    try:
        with open(os.path.join(arguments["model"], "config.json"), "rb") as file:  # noqa: PTH118, PTH123
            described = json.load(file)
    except (OSError, ValueError):
        described = {}
    given = {
        "enforce_eager": True,
        "max_model_len": MAX_MODEL_LEN,
        "skip_tokenizer_init": not any(key in described for key in WITH_PROCESSOR),
        **arguments,
        "load_format": "dummy",
    }
    known = EngineArgs.__dataclass_fields__
    vllm.LLM(**{name: value for name, value in given.items() if name in known})


class Watch:
    """The engine's process, what it has said, and how far it came."""

    def __init__(self, arguments: dict[str, Any], folder: str, seconds: float) -> None:
        self.arguments, self.folder, self.end_at = arguments, folder, time.monotonic() + seconds
        self.stage, self.since, self.version = "import", time.monotonic(), ""
        self.seconds: float | None = None
        self.output, self.line = b"", b""
        self.pid, self.read, self.status = 0, -1, 0

    def start(self) -> None:
        watcher = os.getpid()
        self.read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            say("begin", stage=self.stage)
            return
        status = 1
        try:
            os.setpgid(0, 0)
            ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != watcher:
                os._exit(70)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(write, 1)
            os.dup2(write, 2)
            for descriptor in (null, write, self.read):
                os.close(descriptor)
            wanted = surroundings(self.folder)
            os.environ.clear()
            os.environ.update(wanted)
            tempfile.tempdir = self.folder  # the one that was made for us is remembered here
            make_engine(self.arguments)
            status = 0
        except KeyboardInterrupt:  # the model is there
            status = 0
        except BaseException:  # noqa: BLE001 (whatever it is, it is the answer)
            import traceback

            traceback.print_exc()
        finally:
            # As an interpreter ends: vLLM's own handlers take its workers and their shared memory away.
            import atexit

            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()
            os._exit(status)

    def follow(self) -> str:
        """Until the model is loaded (``loaded``), time is up (``late``), the engine ended (``ended``), or we shall end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.read, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            while time.monotonic() < self.end_at:
                for key, _ in selector.select(min(1.0, max(0.0, self.end_at - time.monotonic()))):
                    data = os.read(key.fd, 65536)
                    if key.fd == 0:
                        if not data:
                            return "left"
                    elif not data:
                        return "ended"
                    elif self.take(data):
                        return "loaded"
        return "late"

    def take(self, data: bytes) -> bool:
        """Read what the engine logged; True once the model is loaded."""
        self.output = (self.output + data)[-MOST_OUTPUT:]
        *lines, self.line = (self.line + data).split(b"\n")
        self.line = self.line[-8192:]
        for raw in lines:
            line = raw.decode("utf-8", "replace")
            if self.stage == "import" and line.startswith(IMPORTED):
                self.version = line[len(IMPORTED) :].strip()[:60]
                self.next("engine")
            elif self.stage == "engine" and any(words in line for words in BEGINS):
                self.next("load")
            elif self.stage == "load" and any(words in line for words in LOADED):
                told = TOOK.search(line)
                self.seconds = float(told[1]) if told else time.monotonic() - self.since
                say("done", stage=self.stage, seconds=round(self.seconds, 3))
                return True
        return False

    def next(self, stage: str) -> None:
        now = time.monotonic()
        say("done", stage=self.stage, seconds=round(now - self.since, 3))
        self.stage, self.since = stage, now
        say("begin", stage=stage)

    def end(self, how: str) -> None:
        """End the engine: gently where it runs as it should, else at once. Nobody of its group is left, nor its memory."""
        shared = self.segments()
        for number, seconds in ((signal.SIGINT, END_S if how == "loaded" else 0.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    os.set_blocking(self.read, False)
                    os.read(self.read, 65536)  # nobody shall wait for a full pipe
                found, status = os.waitpid(self.pid, os.WNOHANG)
                if found:
                    self.status, seconds = status, -1.0
                    break
                time.sleep(0.02)
            if seconds < 0:
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for path in shared:
            with contextlib.suppress(OSError):  # its maker removed it
                os.unlink(path)  # noqa: PTH108

    def segments(self) -> set[str]:
        """The shared memory that the engine's processes have mapped; workers that are ended do not remove it."""
        found: set[str] = set()
        for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
            try:
                if os.getpgid(int(name)) != self.pid:
                    continue
                with open(f"/proc/{name}/maps") as maps:  # noqa: PTH123
                    places = [line.partition(" /dev/shm/")[2].rstrip("\n") for line in maps]
            except OSError:  # it has just ended
                continue
            found |= {f"/dev/shm/{place}" for place in places if place and not place.endswith(" (deleted)")}  # noqa: S108
        return found

    def verdict(self, how: str) -> dict[str, Any]:
        output = self.output.decode("utf-8", "replace")
        facts = {"stage": self.stage, "version": self.version}
        if how == "loaded":
            return {"kind": "none", "seconds": self.seconds, **facts}
        if how == "late":
            so_far = time.monotonic() - self.since if self.stage == "load" else None
            return {"kind": "late", "seconds": so_far, "text": last_line(output), "output": output, **facts}
        missing = os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == NO_VLLM
        return {"kind": "no-vllm" if missing else "failed", "text": last_line(output), "output": output, **facts}


def last_line(output: str) -> str:
    """What an output says last of an error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(?:\S+ )?[\w.]*(?:Error|Exception)\b.*:", line)]
    return ((telling or lines or ["it said nothing"])[-1])[:500]


def leave(*_: object) -> None:
    sys.exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dummy_worker.py")
    parser.add_argument("arguments", help="arguments of vLLM's LLM as a JSON object")
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    say("start", python=sys.executable, version=sys.version.split()[0])
    signal.signal(signal.SIGTERM, leave)
    folder = tempfile.mkdtemp(prefix="vllm-diagnose-dummy-")
    watch = Watch(json.loads(options.arguments), folder, options.seconds)
    how = "left"
    try:
        watch.start()
        how = watch.follow()
    finally:
        if watch.pid:
            if how == "ended":
                _, watch.status = os.waitpid(watch.pid, 0)
            else:
                watch.end(how)
        shutil.rmtree(folder, ignore_errors=True)
    verdict = watch.verdict(how)
    say("verdict", passed=verdict["kind"] == "none", **verdict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
