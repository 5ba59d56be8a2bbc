"""Messages and a short way to read a text, for the tests of the log reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knowledge.shapes import Message
from tools.evidence import Evidence
from tools.logs import LogInput, LogReading, ReadOptions, read_logs

MESSAGES = (
    Message(
        "torch-cuda-oom",
        "failure",
        ("CUDA out of memory. Tried to allocate {tried:size}", "torch.OutOfMemoryError"),
        {"tried": "memory.tried_gib"},
        "torch",
    ),
    Message("frame-profile-run", "frame", ("in profile_run",)),
    Message("engine-core-init-failed", "wrapper", ("Engine core initialization failed. See root cause above.",)),
    Message("engine-dead", "consequence", ("EngineCore encountered an issue. See stack trace",)),
    Message(
        "worker-died",
        "consequence",
        ("died unexpectedly (exit code: {code:int})", "died unexpectedly"),
        {"code": "process.exit_code"},
    ),
    Message("ulimit", "harmless", ("Found ulimit of {n:int} and failed to automatically increase",)),
    Message("too-many-files", "failure", ("Too many open files",)),
    Message("context-exceeded", "request", ("This model's maximum context length is {n:int} tokens",)),
    Message("model-missing", "request", ("The model `{name}` does not exist",)),
    Message("shm-broadcast", "failure", ("No available shared memory broadcast block found",)),
    Message("kv-size", "state", ("KV cache size: {tokens:int} tokens",), {"tokens": "engine.kv_cache_tokens"}),
    Message("load-starting", "state", ("Starting to load model",)),
    Message(
        "load-model-took",
        "state",
        ("Model loading took {weights:size}", "Loading model weights took {weights:size}"),
        {"weights": "memory.weights_gib"},
    ),
    Message("nccl-timeout", "failure", ("Watchdog caught collective operation timeout",)),
    Message("leaked", "harmless", ("leaked shared_memory objects to clean up at shutdown",)),
    Message("shutdown", "harmless", ("[shutdown] {step}",)),
)


@pytest.fixture
def messages() -> tuple[Message, ...]:
    return MESSAGES


class Read:
    """A reading with its evidence at hand by name."""

    def __init__(self, reading: LogReading) -> None:
        self.reading = reading
        self.evidence = reading.reading.evidence

    def all(self, name: str) -> list[Evidence]:
        return [fact for fact in self.evidence if fact.name == name]

    def value(self, name: str) -> Any:
        found = self.all(name)
        return found[-1].value if found else None

    def first(self, name: str) -> Evidence:
        return min(self.all(name), key=lambda fact: fact.origin.order)

    @property
    def messages(self) -> set[str]:
        return {fact.name.removeprefix("message:") for fact in self.evidence if fact.name.startswith("message:")}


@pytest.fixture
def read() -> Callable[..., Read]:
    def reader(
        text: str | bytes | Path,
        options: ReadOptions | None = None,
        pasted: bool = False,
        messages: tuple[Message, ...] = MESSAGES,
    ) -> Read:
        if isinstance(text, Path):
            source = LogInput(text.name, path=text)
        else:
            data = text.encode() if isinstance(text, str) else text
            source = LogInput("server.log", data=data, pasted=pasted)
        return Read(read_logs([source], messages, options))

    return reader
