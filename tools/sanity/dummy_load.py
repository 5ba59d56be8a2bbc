"""A start of vLLM's engine with invented weights: what loading takes when no file is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu.cards import read_machine
from tools.gpu.nvml import NoNvmlError, opened
from tools.processes import PROC, Server, read
from tools.redaction import clean, redact
from tools.registry import ActionError, Context
from tools.sanity.choose import Chosen
from tools.sanity.launch import Event, LaunchError, run_program
from tools.sanity.results import Sheet, Status

WORKER = Path(__file__).with_name("dummy_worker.py")
STAGES = ("import", "engine", "load")
#: Seconds that the engine may take, and that ending it may take besides.
MOST_S, _MARGIN_S = 400.0, 25.0
#: RAM that the interpreter and vLLM take besides the weights, where there is no GPU to hold them.
_BESIDES_BYTES = 2 << 30
#: What an engine beside other processes leaves of the memory that is free.
_SPARED = 0.05
#: The server's arguments that decide what a model looks like in memory and over how many ranks: the name of ``LLM``'s
#: argument, its flags, and the type of its value. None is a switch.
_TAKEN: tuple[tuple[str, tuple[str, ...], type | None], ...] = (
    ("tensor_parallel_size", ("--tensor-parallel-size", "-tp"), int),
    ("pipeline_parallel_size", ("--pipeline-parallel-size", "-pp"), int),
    ("dtype", ("--dtype",), str),
    ("quantization", ("--quantization", "-q"), str),
    ("cpu_offload_gb", ("--cpu-offload-gb",), float),
    ("enable_expert_parallel", ("--enable-expert-parallel", "-ep"), None),
    ("trust_remote_code", ("--trust-remote-code",), None),
)


@dataclass(frozen=True, slots=True)
class DummyLoad:
    """``kind`` is ``none`` where the model was loaded in ``seconds``; ``late`` where time was up, with the seconds so far if it
    was loading; ``output`` is what vLLM printed otherwise."""

    kind: str
    seconds: float | None = None
    output: str = ""


def engine_arguments(
    server: Server | None, folder: str, ranks: int, *, share: bool = False, module: Any = None
) -> dict[str, Any]:
    """Arguments of ``LLM`` for the same model as the server's: those of its command line that change what is loaded.

    ``share`` fits it into what other processes leave of the GPUs' memory. ``module`` stands in for pynvml in tests.
    """
    given: dict[str, Any] = {"model": folder, "tensor_parallel_size": ranks}
    words = list(server.main.command) if server is not None else []
    given.update(_taken(words))
    if share and (free := _free_share(module)) is not None:
        given["gpu_memory_utilization"] = round(max(_SPARED, free - _SPARED), 2)
    return given


def _taken(words: list[str]) -> Iterator[tuple[str, Any]]:
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        for name, flags, kind in _TAKEN:
            if flag not in flags:
                continue
            if kind is None:
                yield name, True
                continue
            text = value if equals else words[position + 1] if position + 1 < len(words) else ""
            try:
                yield name, kind(text)
            except ValueError:
                continue  # the server would not have started with it either


def _free_share(module: Any = None) -> float | None:
    """The smallest share of memory that is free on a GPU; None without GPUs."""
    try:
        with opened(module) as nvml:
            cards = [card for card in read_machine(nvml).cards if card.total and card.free is not None]
    except NoNvmlError:
        return None
    return min((card.free / card.total for card in cards if card.total and card.free is not None), default=None)


def refuse_without_room(size: int, module: Any = None) -> None:
    """Without a GPU the weights lie in RAM: raises ``ActionError`` where ``size`` bytes of them do not fit into what is free."""
    if _free_share(module) is not None:
        return
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read(PROC / "meminfo"), re.MULTILINE)
    free = int(found[1]) * 1024 if found else None
    if free is not None and size + _BESIDES_BYTES > free:
        raise ActionError(
            f"The model would lie in RAM, as there is no GPU here, and its {size / 2**30:.1f} GiB of weights do not fit into the "
            f"{free / 2**30:.1f} GiB that are free. Stop what uses the memory, or leave --dummy out."
        )


async def load_dummy(chosen: Chosen, arguments: dict[str, Any], context: Context, sheet: Sheet) -> DummyLoad:
    """Load the model with invented weights under vLLM's interpreter, and add what came of it to the sheet. When this returns,
    nothing of it is left. Raises ``ActionError`` where the interpreter cannot be run."""

    def follow(event: Event) -> None:
        if event["event"] == "begin" and event.get("stage") in STAGES:
            stage = str(event["stage"])
            context.report(STAGES.index(stage) / len(STAGES), sheet.word(f"dummy-stage-{stage}"))

    try:
        ran = await run_program(
            chosen.command,
            WORKER.read_text("utf-8"),
            [json.dumps(arguments), "--seconds", str(MOST_S)],
            environment=chosen.environment,
            deadline_s=MOST_S + _MARGIN_S,
            on_event=follow,
        )
    except LaunchError as error:
        raise ActionError(str(error)) from None
    verdict = next((e for e in ran.events if e["event"] == "verdict"), None)
    if verdict is None:
        said = ran.stderr.strip().splitlines()
        verdict = {"kind": "late" if ran.late else "failed", "text": said[-1] if said else "", "stage": "import"}
    kind, told = str(verdict["kind"]), verdict.get("seconds")
    seconds = float(told) if told is not None else None
    output = redact(clean(str(verdict.get("output", ""))))
    if kind == "none" and seconds is not None:
        sheet.add("loading.dummy", "ok", round(seconds, 2), unit="s", version=str(verdict.get("version", "")))
        sheet.fact("loading.dummy_s", round(seconds, 3))
        return DummyLoad(kind, seconds)
    text = str(verdict.get("text", ""))
    reason = sheet.word(
        f"dummy-{kind}", stage=sheet.word(f"dummy-stage-{verdict['stage']}"), detail=text, most=int(MOST_S)
    )
    shown = round(seconds, 1) if seconds is not None else None
    status: Status = "note" if kind == "late" else "bad"
    sheet.add("loading.dummy", status, shown, unit="s" if shown is not None else "", reason=reason, quote=text)
    return DummyLoad(kind, seconds, "" if kind == "late" else output)
