"""Draws the terminal pictures of the README from real answers: python scripts/pictures.py"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
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
SHOTS = (
    ("terminal-en.svg", "en", "vllm-diagnose logs server.log", ("tests/data/lab/tp2-truncated/server.log",), ""),
    ("terminal-zh.svg", "zh", "vllm-diagnose ask …", (), "双卡起服务卡住，单卡正常，关掉 P2P 就好"),
)


def main() -> int:
    """Writes docs/pictures/*.svg."""
    known = load()
    TARGET.mkdir(exist_ok=True)
    for name, language, title, logs, text in SHOTS:
        case, _ = read_case(known, text=text, logs=log_inputs([Path(p) for p in logs]), language=language)
        console = Console(
            record=True, width=104, force_terminal=True, color_system="truecolor", file=sys.stderr, highlight=False
        )
        draw_on(console, diagnosis_blocks(Engine(known).diagnose(case), known))
        console.save_svg(str(TARGET / name), title=title, code_format=FORMAT)
        print(TARGET / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
