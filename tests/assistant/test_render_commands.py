"""Long commands are broken where a shell allows it, and marked where they are new."""

from __future__ import annotations

import io
import subprocess

import pytest

from assistant.faces.cli.terminal import draw
from assistant.render.blocks import Command, Item
from assistant.render.commands import broken
from assistant.render.markdown import to_markdown

LINES = [
    "vllm serve m/x --served-model-name 'a  b' c --limit-mm-per-prompt '{\"image\": 2}' --host 0.0.0.0 -tp 2 --enforce-eager",
    "docker run --rm -it --gpus all -e HF_TOKEN -v ~/.cache:/c -p 8000:8000 vllm/vllm-openai:v0.10.2 --model m/x --api-key \"$VLLM_API_KEY\"",
    "A=1 B='x y' nohup python3 -u -m vllm.entrypoints.openai.api_server --model m/x --lora-modules a=/b c=/d --port 8000",
    "vllm serve " + " ".join(f"--flag-{n} value-{n}" for n in range(40)),
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_broken_command_is_the_same_command(line: str, width: int) -> None:
    text = broken(line, width)
    assert "\n" in text or len(line) <= width
    got = [
        subprocess.run(["bash", "-c", f"printf '%s\\0' {t}"], capture_output=True, timeout=20, check=True).stdout
        for t in (line, text)
    ]
    assert got[0] == got[1]
    assert width < 60 or len(text.split("\n")) <= 30


@pytest.mark.parametrize(
    "line",
    ["for p in $(pgrep -f vllm); do py-spy dump --pid \"$p\"; done > stacks.txt " + "x" * 80, "a | b " * 30, "x 'unclosed " * 20, "args:\n  - a"],
)  # fmt: skip
def test_what_is_more_than_words_stays_whole(line: str) -> None:
    assert broken(line, 40) == line


def test_the_change_stands_out_on_a_terminal_and_not_in_a_pipe() -> None:
    block = Item("t", (), (Command("vllm serve m/x --port 8001", ("--port 8001",)),), 1)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    colourful, plain = Terminal(), io.StringIO()
    draw([block], colourful)
    draw([block], plain)
    assert "\x1b[1;32m--port 8001" in colourful.getvalue()
    assert "\x1b" not in plain.getvalue()
    assert "vllm serve m/x --port 8001" in plain.getvalue()
    assert "--port 8001" in to_markdown([block])
