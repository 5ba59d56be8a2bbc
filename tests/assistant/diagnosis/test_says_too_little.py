"""Who says too little is asked for more: words that fit a dozen causes are no evidence of one."""

from __future__ import annotations

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from knowledge.catalog import load
from knowledge.compiler import _not_inside_words

VAGUE = """\
卡住了怎么办
服务卡死，重启能好
启动后一直卡着没反应
启动一半卡住不动了
卡在这里输出没了
请求发过去一直卡着
跑着跑着就卡了
服务卡住不可用
用着用着卡住，然后全没了
进程卡着杀不掉
卡在百分之百
机器卡得动不了
起服务卡半天
昨天还好好的今天就不行了
一直卡没响应
it is stuck
the thing hangs
doesn't work
after the upgrade it stopped working
it just stops after a while
stuck at 100%
it went away
one of them is missing
it dropped out during the night
the model is gone from the list
needs a restart every morning
i restarted it and now it is fine
requests vanish
the topping on it all: it stopped
help please\
""".splitlines()


@pytest.mark.parametrize("words", VAGUE)
def test_vague_words_name_no_cause(words: str) -> None:
    catalog = load()
    diagnosis = Engine(catalog).diagnose(read_case(catalog, text=words)[0])
    assert diagnosis.verdict == "unknown", (diagnosis.causes[0].id, diagnosis.causes[0].confidence)
    assert diagnosis.next_steps


@pytest.mark.parametrize(
    "words",
    [
        "3号卡没反应了，nvidia-smi 也卡住",
        "显卡无响应",
        "gpu 3 dropped out during the night",
        "one of the cards is missing",
    ],
)
def test_a_card_that_is_named_is_heard_of(words: str) -> None:
    catalog = load()
    diagnosis = Engine(catalog).diagnose(read_case(catalog, text=words)[0])
    assert diagnosis.causes[0].id == "gpu/fallen-off-bus"


@pytest.mark.parametrize(
    ("pattern", "made"),
    [
        ("top_?[pk]", "(?:^|[^a-z])top_?[pk]"),
        ("(prefill|p) ?节点", "((?:^|[^a-z])prefill|(?:^|[^a-z])p) ?节点"),
        ("(卡)?gpu", "(卡)?(?:^|[^a-z])gpu"),
        ("卡hang|v1", "卡hang|(?:^|[^a-z])v1"),
        (r"\b(?:imex)", r"\b(?:imex)"),
        ("[a-z]b(c|d)", "[a-z]b(c|d)"),
    ],
)
def test_latin_words_of_chinese_patterns_begin_where_a_word_begins(pattern: str, made: str) -> None:
    assert _not_inside_words(pattern) == made
