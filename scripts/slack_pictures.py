"""Draws Slack messages from real answers as pictures: python scripts/slack_pictures.py

The blocks become a page as Slack lays them out, and Chromium takes the picture. Needs /usr/bin/chromium and fonts with
Chinese characters and emoji.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from small_png import make_small

from assistant.alerts.board import Held
from assistant.alerts.desk import found_of
from assistant.alerts.groups import Found, Group, Row
from assistant.alerts.messages import group_message
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import log_inputs, read_case
from assistant.faces.slack import forms
from assistant.faces.slack.answer import Shown, answer_message
from assistant.faces.slack.drawing import draw as draw_blocks
from assistant.faces.slack.elements import actions, link
from knowledge.catalog import Catalog, load

Language = Literal["en", "zh"]
ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "pictures"
TALK = "0" * 20
#: Name, language, who asks, words, logs.
SHOTS = (
    ("slack-cause-en", "en", "ada asked: our server does not come up any more", "", ("tests/data/lab/tp2-truncated/server.log",)),
    ("slack-cause-zh", "zh", "ada 的问题：双卡起服务卡住，单卡正常，关掉 P2P 就好", "双卡起服务卡住，单卡正常，关掉 P2P 就好", ()),
    ("slack-question-en", "en", "ada asked: my server with 2 GPUs hangs at start", "my server with 2 GPUs hangs at start", ()),
    ("slack-question-zh", "zh", "ada 的问题：服务突然不能用了", "服务突然不能用了", ()),
)  # fmt: skip
STYLE = """
body{margin:0;background:#fff;font:15px/1.46 "Noto Sans","Noto Sans CJK SC","WenQuanYi Zen Hei",sans-serif;color:#1d1c1d}
#m{width:696px}.m{display:flex;gap:10px;padding:14px 18px;width:660px}#m .m .m,div .m{box-sizing:border-box;max-width:100%}
.face{flex:0 0 36px;height:36px;border-radius:6px;background:#1f2937;color:#fff;font:700 18px/36px monospace;text-align:center}
.body{flex:1;min-width:0}.name{font-weight:700}.app{background:#e8e8e8;color:#616061;font:700 10px sans-serif;padding:1px 4px;border-radius:3px;margin:0 6px}
.time{color:#616061;font-size:12px}h2{font-size:18px;line-height:1.33;margin:8px 0 4px}.ctx{color:#616061;font-size:13px;margin:3px 0}
.sec{margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere}ul{margin:4px 0;padding-left:24px}li{white-space:pre-wrap}
pre{background:#f8f8f8;border:1px solid #ddd;border-radius:4px;padding:8px;margin:5px 0;font:12px/1.5 "DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace;white-space:pre-wrap;overflow-wrap:anywhere}
hr{border:0;border-top:1px solid #ddd;margin:10px 0}.acts{display:flex;flex-wrap:wrap;gap:8px;margin:8px 0}
.btn{border:1px solid #bbb;border-radius:4px;padding:4px 12px;font-weight:700;font-size:14px;background:#fff}
.primary{background:#007a5a;border-color:#007a5a;color:#fff}.danger{background:#e01e5a;border-color:#e01e5a;color:#fff}
.sel:after{content:" ▾"}.modal{width:520px;border:1px solid #ddd;border-radius:8px;margin:14px;padding:0 24px 14px}
.lab{font-weight:700;margin-top:14px}.box{border:1px solid #bbb;border-radius:4px;padding:8px 10px;color:#8d8d8d;min-height:20px}.tall{min-height:74px}
code{font:12.5px "DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace;color:#c01343;background:#f8f8f8;border:1px solid #ddd;border-radius:3px;padding:1px 4px}.hint{color:#616061;font-size:13px}.foot{display:flex;justify-content:flex-end;gap:10px;margin-top:18px}
"""


def _sign(colour: str, mark: str) -> str:
    return (
        f'<svg width="18" height="18" viewBox="0 0 18 18" style="vertical-align:-3px"><circle cx="9" cy="9" r="8" fill="{colour}"/>'
        f'<text x="9" y="13.5" font-size="12" font-family="sans-serif" font-weight="700" fill="#fff" text-anchor="middle">{mark}</text></svg>'
    )


#: Slack brings its own emoji; here each is a coloured sign, so that no font with emoji is needed.
SIGNS = {
    "🔴": _sign("#dd2e44", ""),
    "🔎": _sign("#5b7fa6", "?"),
    "✅": _sign("#2f9e44", "✓"),
    "❓": _sign("#dd2e44", "?"),
    "❔": _sign("#8899a6", "?"),
    "💾": _sign("#41474b", "↓"),
    "🔧": _sign("#b8860b", "⚙"),
    "⚠️": _sign("#e8a200", "!"),
    "ℹ️": _sign("#3b88c3", "i"),
    "▶": _sign("#3b88c3", "▸"),
}


def draw(block: dict[str, Any]) -> str:
    """One block as Slack shows it."""
    kind = block["type"]
    if kind == "header":
        return f"<h2>{text(block['text'])}</h2>"
    if kind == "context":
        return "".join(f'<div class="ctx">{text(element)}</div>' for element in block["elements"])
    if kind == "divider":
        return "<hr>"
    if kind == "actions":
        return f'<div class="acts">{"".join(map(control, block["elements"]))}</div>'
    if kind == "input":
        element = block["element"]
        tall = " tall" if element.get("multiline") else ""
        hint = f'<div class="hint">{text(block["hint"])}</div>' if "hint" in block else ""
        inner = text(element["placeholder"]) if "placeholder" in element else ""
        return f'<div class="lab">{text(block["label"])}</div><div class="box{tall}">{inner}</div>{hint}'
    return "".join(map(rich, block["elements"]))


def text(piece: dict[str, Any]) -> str:
    """A text object."""
    return html.escape(piece["text"])


def control(element: dict[str, Any]) -> str:
    """A button or a menu."""
    if element["type"] == "button":
        return f'<span class="btn {element.get("style", "")}">{text(element["text"])}</span>'
    return f'<span class="btn sel">{text(element["placeholder"])}</span>'


def rich(part: dict[str, Any]) -> str:
    """A part of rich text."""
    if part["type"] == "rich_text_preformatted":
        return f"<pre>{''.join(map(run, part['elements']))}</pre>"
    if part["type"] == "rich_text_list":
        rows = "".join(f"<li>{''.join(map(run, row['elements']))}</li>" for row in part["elements"])
        return f"<ul>{rows}</ul>"
    return f'<div class="sec">{"".join(map(run, part["elements"]))}</div>'


def run(piece: dict[str, Any]) -> str:
    """A run of text."""
    made = html.escape(piece["text"])
    for style, tag in (("bold", "b"), ("italic", "i"), ("code", "code")):
        if piece.get("style", {}).get(style):
            made = f"<{tag}>{made}</{tag}>"
    return made


def message(blocks: Sequence[dict[str, Any]], identity: str = "m") -> str:
    """A message of the app."""
    name = '<span class="name">vllm-diagnose</span><span class="app">APP</span><span class="time">03:14</span>'
    return f'<div id="{identity}" class="m"><div class="face">v</div><div class="body"><div>{name}</div>{"".join(map(draw, blocks))}</div></div>'


def modal(view: dict[str, Any]) -> str:
    """A form."""
    foot = f'<span class="btn">{text(view["close"])}</span><span class="btn primary">{text(view["submit"])}</span>'
    rows = "".join(map(draw, view["blocks"]))
    return f'<div id="m" class="m" style="width:600px"><div class="modal"><h2>{text(view["title"])}</h2>{rows}<div class="foot">{foot}</div></div></div>'


def pages() -> Iterator[tuple[str, str]]:
    """Every picture's name and page."""
    known = load()
    for name, lang, asked, words, logs in SHOTS:
        case, _ = read_case(known, text=words, logs=log_inputs([Path(log) for log in logs]), language=lang)
        found = Engine(known).diagnose(case)
        blocks, _text = answer_message(found, known, Shown(TALK, 1, 0, asked))
        yield name, message(blocks)

    class Service:
        catalog = known
        targets = {"prod": None, "staging": None}  # noqa: RUF012 (never changed)

    for lang in ("en", "zh"):
        service: Any = Service()
        yield f"slack-form-{lang}", modal(forms.ask_form(service, lang, {}))
        yield f"slack-alert-{lang}", "".join(alert(known, lang))


def alert(known: Catalog, lang: Language) -> Iterator[str]:
    """A group of alerts as it fires, the answer in its thread, and the word that it is over."""
    case, _ = read_case(
        known, text="", logs=log_inputs([Path("tests/data/lab/tp2-truncated/server.log")]), language=lang
    )
    found = Engine(known).diagnose(case)
    first = found.causes[0]
    seen = found_of(found)
    fix = first.fixes[0]
    told = {"title": fix.title, "why": fix.why, "command": fix.command, "impact": fix.impact}
    firing = Group(
        "VllmDown",
        0,
        {"a": "firing", "b": "firing"},
        targets={"prod-1": Row(("VllmDown",), seen), "prod-2": Row(("VllmDown",), seen)},
        lead="prod-1",
        fix=told,
    )
    over = replace(
        firing,
        keys={"a": "resolved", "b": "resolved"},
        resolved_ms=23 * 60_000,
        targets={
            name: replace(row, after=Found("healthy", summary=known.word("summary-healthy", lang)))
            for name, row in firing.targets.items()
        },
    )

    def said(group: Group) -> str:
        held = Held("g1", group, "inc1", "", 0)
        told = group_message(held, known, lang, lambda path: f"https://diagnose.example.com{path}")
        visit = actions("alert", [link("visit", known.word("slack-open", lang), told.url)])
        return message([*draw_blocks(told.blocks), visit], "")

    answer, _text = answer_message(found, known, Shown(TALK, 1))
    yield '<div id="m" style="display:block">'
    yield said(firing)
    yield f'<div style="margin-left:46px;border-left:3px solid #ddd">{message(answer, "")}{said(over)}</div></div>'


def shoot(chromium: str, page: str, to: Path, folder: Path) -> None:
    """The picture of one page, as high as the page is."""
    source = folder / "page.html"
    script = "<script>document.title=document.getElementById('m').offsetHeight+'x'+document.getElementById('m').offsetWidth</script>"
    for emoji, sign in SIGNS.items():
        page = page.replace(emoji, sign)
    source.write_text(f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{page}{script}', encoding="utf-8")
    base = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/profile",
    ]
    dom = subprocess.run(
        [*base, "--window-size=760,900", "--dump-dom", source.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    height, width = re.search(r"<title>(\d+)x(\d+)</title>", dom).groups()  # type: ignore[union-attr]
    subprocess.run(
        [
            *base,
            f"--window-size={width},{height}",
            "--force-device-scale-factor=1.5",
            f"--screenshot={to}",
            source.as_uri(),
        ],
        capture_output=True,
        timeout=90,
        check=True,
    )


def main() -> int:
    """Writes docs/pictures/slack-*.png."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is needed to take the pictures.", file=sys.stderr)
        return 3
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, page in pages():
            shoot(chromium, page, TARGET / f"{name}.png", Path(folder))
            make_small(TARGET / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
