"""Every command that a fix is rendered to is taken by the argument parser of the laboratory's real vLLM."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from assistant.advice.command import Change
from assistant.advice.command import write as write_command
from assistant.advice.fixes import advise
from assistant.advice.started import Argument, Started
from assistant.advice.words import Word, split_words, text_word
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.diagnosis.truth import Facts
from knowledge.catalog import load
from knowledge.vllm_tables import flag
from tools.logs import LogInput

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".lab" / "venv" / "bin" / "python"
VERSION = "0.32.0"
#: What stands for a value that the reader is to fill in, by the type of the argument.
_SAMPLES = {"int": "2", "float": "1", "json": "{}", "str": "x", "list": "x", "choice": "auto"}


def arguments_of(command: str) -> list[str] | None:
    """What follows ``vllm serve`` in a rendered line, with samples in the places that are to be filled in."""
    words = split_words(command)
    place = next(
        (i for i, w in enumerate(words) if w.literal == "serve" and words[i - 1].written.endswith("vllm")), None
    )
    if place is None:
        return None
    return [_filled(word, words[: place + 1 + i]) for i, word in enumerate(words[place + 1 :])]


def _filled(word: Word, before: Sequence[Word]) -> str:
    if word.literal is not None:
        return word.literal
    name = before[-1].literal or ""
    declared = flag(VERSION, name) if name.startswith("-") else None
    if declared is not None and declared.python == "chat_template":
        return "{{ messages }}"
    return _SAMPLES[declared.kind] if declared is not None else "m/x"


def parsed(commands: Sequence[Sequence[str]]) -> list[str | None]:
    """What the real parser says to each: ``None`` where it takes the command."""
    if not PYTHON.exists():
        pytest.skip("the laboratory is not installed (make lab)")
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).parent / "parse_commands.py")],
        input=json.dumps(commands), capture_output=True, text=True, timeout=400, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def rendered() -> dict[str, list[str]]:
    """Every command of every fix of every cause for 0.32.0: as advice to a stranger, and as the change of full commands."""
    catalog = load()
    full = Started(
        form="serve",
        version=VERSION,
        model=text_word("Qwen/Qwen3-32B"),
        arguments=(
            Argument("-tp", "tensor_parallel_size", (text_word("2"),)),
            Argument("--max_model_len", "max_model_len", (text_word("65536"),)),
            Argument("--gpu-memory-utilization", "gpu_memory_utilization", (text_word("0.5"),)),
            Argument("--served-model-name", "served_model_name", (text_word("a b"), text_word("$(c)"))),
            Argument("--limit-mm-per-prompt", "limit_mm_per_prompt", (text_word('{"image": 2}'),)),
            Argument("--kv-cache-memory-bytes", "kv_cache_memory_bytes", (text_word("1000000000"),)),
        ),
        seen=True,
    )
    commands: dict[str, list[str]] = {}
    for started in (None, full):
        for cause in catalog.causes.values():
            for fix in advise(cause, Facts(), catalog, VERSION, "en", started):
                words = arguments_of(fix.command) if fix.command else None
                if words is not None:
                    commands[fix.command or ""] = words
    return commands


@pytest.mark.lab
def test_the_real_parser_takes_every_rendered_command() -> None:
    commands = rendered()
    assert len(commands) > 100
    said = parsed(list(commands.values()))
    refused = {command: answer for command, answer in zip(commands, said, strict=True) if answer}
    assert not refused


@pytest.mark.lab
def test_the_real_parser_takes_the_corrected_commands_of_all_captures() -> None:
    engine = Engine(load())
    commands: dict[str, list[str]] = {}
    for log in sorted((ROOT / "tests" / "data" / "lab").glob("*/server.log")):
        case, _ = read_case(engine.catalog, logs=[LogInput(name="server.log", data=log.read_bytes())])
        for finding in engine.diagnose(case).causes[:1]:
            for fix in finding.fixes:
                words = arguments_of(fix.command) if fix.command else None
                if words is not None:
                    commands[f"{log.parent.name}: {fix.command}"] = words
    assert len(commands) > 40
    said = parsed(list(commands.values()))
    assert not {command: answer for command, answer in zip(commands, said, strict=True) if answer}


@pytest.mark.lab
def test_the_check_itself_can_fail() -> None:
    """The real parser refuses what the table does not know, and what is of another type."""
    said = parsed([["m", "--not-a-flag"], ["m", "--max-model-len", "many"], ["m", "--dtype", "float7"], ["m"]])
    assert [bool(answer) for answer in said] == [True, True, True, False]


def test_samples_are_put_where_the_reader_fills_in() -> None:
    assert arguments_of('vllm serve "$MODEL" --max-model-len "$MAX_MODEL_LEN"') == ["m/x", "--max-model-len", "2"]
    assert arguments_of("nvidia-smi -q") is None


def test_every_flag_that_the_user_gave_is_still_there() -> None:
    started = Started(form="serve", version=VERSION, model=text_word("m/x"), seen=True)
    with_port = replace(started, arguments=(Argument("--port", "port", (text_word("9000"),)),))
    written = write_command(with_port, [Change("--enforce-eager", "enforce_eager")])
    assert written is not None
    assert re.fullmatch(r"vllm serve m/x --port 9000 --enforce-eager", written.text)
