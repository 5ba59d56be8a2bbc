"""Templates: what they match, what they capture, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import re2

from knowledge.templates import as_gib, as_number, compile_template, literal_of


def captured(template: str, text: str) -> dict[str, Any] | None:
    compiled = compile_template(template)
    options = re2.Options()
    options.case_sensitive = False
    found = re2.compile(compiled.pattern, options).search(text)
    if found is None:
        return None
    return {name: convert(found.group(f"p_{name}")) for name, convert in compiled.captures.items()}


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        (
            "CUDA out of memory. Tried to allocate {t:size}",
            "CUDA out of  memory. Tried to allocate 512.00 MiB. GPU",
            {"t": 0.5},
        ),
        ("KV cache size: {n:int} tokens", "GPU KV cache size: 2,097,152 tokens", {"n": 2097152}),
        ("utilization is {u:number}, ok", "Utilization is 0.92, OK", {"u": 0.92}),
        ("Starting to load model {m:path}", "Starting to load model /srv/models/tiny...", {"m": "/srv/models/tiny"}),
        ("has model type {t:quoted} but", "checkpoint has model type `qwen9` but Transformers", {"t": "qwen9"}),
        ("Resolved architecture: {a:word}", "Resolved architecture: LlamaForCausalLM", {"a": "LlamaForCausalLM"}),
        ("{kind} memory: {rest}", "Available memory: all of it", {"kind": "Available", "rest": "all of it"}),
        ("The {model|adapter} was not loaded", "the ADAPTER was not loaded", {}),
        ("got {{x}} instead of {y:int}", "got {x} instead of -3", {"y": -3}),
        ("Port {port} is in use, trying port {port}", "Port 80 is in use, trying port 81", {"port": "80"}),
    ],
)
def test_captures(template: str, text: str, expected: dict[str, Any]) -> None:
    assert captured(template, text) == expected


def test_the_line_with_the_longest_literal_is_used() -> None:
    compiled = compile_template("{a}\nfirst\nthis is the long line of it {n:int}\n")
    assert compiled.literal == b"this is the long line of it"
    assert "first" not in compiled.pattern


@pytest.mark.parametrize("template", ["{a} b {c}", "", "abc", "{a}\n{b}"])
def test_a_short_literal_is_refused_in_words(template: str) -> None:
    with pytest.raises(ValueError, match="at least 6 characters"):
        compile_template(template)


def test_special_characters_are_literal() -> None:
    assert captured("a+b (c) [d] ^$ .* | done", "xx a+b (c) [d] ^$ .* | DONE") == {}
    assert captured("a+b (c) [d] ^$ .* | done", "aab c d done") is None


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("1.25 GiB", 1.25),
        ("512.00 MiB", 0.5),
        ("15.0 GB", 15.0),
        ("1024 KiB", 2**-10),
        ("2TiB", 2048.0),
        ("7", 7.0),
        ("x", None),
    ],
)
def test_sizes_are_gib(text: str, gib: float | None) -> None:
    assert as_gib(text) == gib


def test_numbers_lose_their_separators() -> None:
    assert as_number("1,024.5x") == 1024.5
    assert as_number("40,960") == 40960
    assert as_number("none") is None


def test_the_prefilter_is_lower_case_and_bounded() -> None:
    assert literal_of("ABC " + "x" * 200) == b"abc " + b"x" * 60
