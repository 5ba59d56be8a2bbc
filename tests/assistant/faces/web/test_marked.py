"""A command on a page: new pieces marked, flags whole, nothing of it markup."""

from __future__ import annotations

import html
import re

from assistant.faces.web.visit import environment


def shown(command: str, changed: tuple[str, ...] = ()) -> str:
    return str(environment().from_string("{{ c|marked(p) }}").render(c=command, p=changed))


def test_flags_are_whole_pieces_and_the_words_stay_the_same() -> None:
    command = 'vllm serve "<b>" --max-model-len 8192 --seed 1 --tensor-parallel-size=2 --model-loader-extra-config \'{"a-b":1}\''
    page = shown(command, ("--max-model-len 8192",))
    assert re.findall(r'<span class="flag">(.*?)</span>', page) == [
        "--max-model-len", "--seed", "--tensor-parallel-size", "--model-loader-extra-config",
    ]  # fmt: skip
    assert '<mark><span class="flag">--max-model-len</span> 8192</mark>' in page and "<b>" not in page
    assert html.unescape(re.sub(r"</?(?:span|mark)[^>]*>", "", page)) == command
