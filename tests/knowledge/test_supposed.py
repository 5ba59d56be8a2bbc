"""A person's guess is told from what the person saw."""

from __future__ import annotations

import pytest

from knowledge.supposed import seen
from knowledge.text import normalise


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "The container is killed by the kernel every night, its memory climbs all day. Bad power supply?",
            "the container is killed by the kernel every night, its memory climbs all day.",
        ),
        (
            "It dies after loading the last shard of the weights. I guess my download is incomplete?",
            "it dies after loading the last shard of the weights.",
        ),
        ("权重读到一半就报显存不够，两张卡都是 48G，是磁盘坏了吗", "权重读到一半就报显存不够,两张卡都是48g,"),
        ("同事说是网络抖动，可是服务器上所有请求都卡住了，一个字都不出", "可是服务器上所有请求都卡住了,一个字都不出"),
    ],
)
def test_guesses_are_left_out(text: str, kept: str) -> None:
    assert seen(normalise(text)) == kept


@pytest.mark.parametrize(
    "text",
    [
        "Is the model poisoned?",  # nothing else was said
        "It prints zeros all night when nobody uses it and numbers by day. Is it normal?",  # the matter itself
        "The log says that the cache folder is not writable for this user, restart does not help.",
        "半夜没人用的时候每十秒打印一行全是 0，白天有数字，是不是正常",
    ],
)
def test_what_is_no_guess_stays(text: str) -> None:
    assert seen(normalise(text)) == normalise(text)


def test_taiwan_s_words_become_the_mainland_s_where_characters_are_traditional() -> None:
    assert normalise("伺服器記憶體不足，顯示卡佇列逾時") == "服务器内存不足,显卡队列超时"
    assert normalise("请把资料发给我") == "请把资料发给我"
