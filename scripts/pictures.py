"""Draws the terminal pictures of the README from real answers: python scripts/pictures.py"""

from __future__ import annotations

import html
import os
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.cells import cell_len
from rich.console import Console

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import log_inputs, read_case
from assistant.faces.cli.terminal import draw_on
from assistant.render.blocks import diagnosis_blocks
from knowledge.catalog import load

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "pictures"
#: No picture may fetch anything: the reader's own monospaced font is as good.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
#: File, language, what is typed, logs (read in the folder LOGS), words.
SHOTS = (
    ("terminal-en.svg", "en", "vllm-diagnose logs server.log", ("server.log",), ""),
    ("terminal-zh.svg", "zh", 'vllm-diagnose ask "双卡起服务卡住，单卡正常，关掉 P2P 就好"', (), "双卡起服务卡住，单卡正常，关掉 P2P 就好"),
)  # fmt: skip
LOGS = ROOT / "tests/data/lab/tp2-truncated"

#: Rich states the length of a text by its characters; a Chinese one is two columns wide.
TEXT = re.compile(r'x="([\d.]+)" y="([\d.]+)" textLength="[\d.]+"([^>]*)>([^<]+)<')
#: Width of a column in Rich's pictures.
COLUMN = 12.2


def measured(text: re.Match[str]) -> str:
    """The same text with the length that its columns take, without the blanks before it: they would be stretched, too."""
    shown = html.unescape(text[4]).replace("\xa0", " ")
    words = shown.lstrip(" ")
    if not words:
        return text[0]
    left = float(text[1]) + (len(shown) - len(words)) * COLUMN
    inner = html.escape(words).replace(" ", "&#160;")
    return f'x="{left:.1f}" y="{text[2]}" textLength="{cell_len(words) * COLUMN:.1f}"{text[3]}>{inner}<'


def main() -> int:
    """Writes docs/pictures/*.svg."""
    known = load()
    TARGET.mkdir(exist_ok=True)
    os.chdir(LOGS)
    for name, language, typed, logs, text in SHOTS:
        case, _ = read_case(known, text=text, logs=log_inputs([Path(p) for p in logs]), language=language)
        console = Console(
            record=True, width=104, force_terminal=True, color_system="truecolor", file=sys.stderr, highlight=False
        )
        console.print(f"$ {typed}", markup=False)
        draw_on(console, diagnosis_blocks(Engine(known).diagnose(case), known, typed=True))
        console.print()  # the last line's underscores would be cut off
        drawn = console.export_svg(title="vllm-diagnose", code_format=FORMAT)
        (TARGET / name).write_text(TEXT.sub(measured, drawn), encoding="utf-8")
        print(TARGET / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
