"""Whatever stands in a log: the command that comes out is one safe line, or none."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from assistant.advice.words import Word, split_words, text_word
from assistant.diagnosis.model import Advice
from assistant.render.commands import broken

CAUSE = "memory/kv-cache-below-max-model-len"


def hostile(canary: Path) -> list[str]:
    """Values that do harm where somebody forgets to quote them; each would create the canary."""
    touch = f"touch {canary}"
    return [
        f"x; {touch}", f"x && {touch}", f"x | {touch}", f"x & {touch} &", f"`{touch}`", f"$({touch})", f"a$({touch})b",
        f"x\n{touch}", f"x\r\n{touch}\r\n", f"'; {touch}; '", f'"; {touch}; "', f"'\"'\"'; {touch} #", f"\\'; {touch} #",
        f"${{IFS}};{touch}", f"x>{canary}", f"x >> {canary}", f"<({touch})", f"x\\\n{touch}", "--help", "-x", "--", "!!",
        "x" * 100_000, f"{'$(' * 500}{touch}", "\u202e" + f"x; {touch}", "x\u2066y\u2069", "x\x00y", "x\x1b[2Jy", "~root", "*", "{a,b}", "#x", "a b",
        f"$'\\x3b {touch}'", "%s%n", "=x", "a=b; " + touch, f"\u2028{touch}", "é模型 x", "'", '"', "\\", "",
    ]  # fmt: skip


def incidents(value: str) -> Iterable[tuple[str, bool]]:
    """The value in every place that a command is made from: (text, whether it is a log)."""
    failure = (
        "ValueError: To serve at least one request with the models's max seq len (65536), (16.00 GiB KV cache is needed, which is larger "
        "than the available KV cache memory (9.52 GiB). Based on the available memory, the estimated maximum model length is 38992."
    )
    stamp = "(APIServer pid=1) INFO 11-21 02:59:10 [utils.py:328]"
    yield f"{stamp} non-default args: {{'model_tag': {value!r}, 'max_model_len': 65536}}\n{failure}", True
    yield (
        f"{stamp} non-default args: {{'model_tag': 'm/x', 'served_model_name': [{value!r}], 'tokenizer': {value!r}}}\n{failure}",
        True,
    )
    yield (
        f"INFO 03-22 14:36:21 api_server.py:228] args: Namespace(host={value!r}, model={value!r}, tokenizer={value!r})\n{failure}",
        True,
    )
    for command in (
        f"vllm serve {value} --max-model-len 65536",
        f"vllm serve 'm/x' --tokenizer {value} --max-model-len 65536",
        f'vllm serve m/x --tokenizer "{value}" --max-model-len 65536',
        f"NCCL_DEBUG={value} vllm serve m/x --max-model-len 65536",
        f"docker run -v {value}:/x --name {value} -e A={value} vllm/vllm-openai:v0.10.2 --model {value}",
        f"docker run --gpus all {value} --model m/x",
        f"{value} vllm serve m/x --port {value} --max-model-len {value}",
        f"ExecStart=/usr/bin/vllm serve {value} --max-model-len 65536",
    ):
        yield f"{command}\n\n{failure}", False


def check(command: str, canary: Path) -> None:
    """The line is one line, printable, valid, and made of words that the shell hands on as they are."""
    assert command.isprintable(), command[:200]
    assert len(command) <= 8000
    valid = subprocess.run(["bash", "-n"], input=command + "\n", text=True, capture_output=True, timeout=20)
    assert valid.returncode == 0, (command, valid.stderr)
    words = split_words(command)
    for text in sorted({command, broken(command, 60)}):
        # The same words, as bash splits and expands them; the program itself is never run.
        printed = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {text}"],
            capture_output=True, timeout=20, env={"PATH": "/usr/bin:/bin", "HOME": "/home/x", "MODEL": "MODEL"},
        )  # fmt: skip
        assert printed.returncode == 0
        got = printed.stdout.decode().split("\0")[:-1]
        assert got == [_expanded(w) for w in words]
    assert not canary.exists(), command


def _expanded(word: Word) -> str:
    values = {"MODEL": "MODEL", "IFS": " \t\n"}
    return "".join(
        values.get(text, "") if kind == "variable" else "/home/x" if kind == "home" else text
        for kind, text in word.parts
    )


def test_hostile_values_stay_one_word_or_are_not_offered(
    fixes_of: Callable[..., tuple[Advice, ...]], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    offered: set[str] = set()
    for value in hostile(canary):
        for text, is_log in incidents(value):
            fixes = fixes_of(CAUSE, text, "0.10.2", log=is_log)
            assert fixes  # there is always something to do
            fix = fixes[0]
            if fix.command is None or fix.command.startswith("[Service]"):
                assert fix.command is None or all(line.isprintable() for line in fix.command.split("\n"))
                continue
            offered.add(fix.command)
    assert len(offered) > 100
    for command in offered:
        check(command, canary)


@pytest.mark.parametrize("seed", range(4))
def test_any_text_comes_back_from_the_shell_as_it_went_in(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = "ab1 \t'\"\\$`;&|<>(){}[]*?!#~=%^,./-:@\u00e9\u4e2d"
    words = [
        text_word("".join(rng.choice(alphabet.replace("\t", "")) for _ in range(rng.randrange(30)))) for _ in range(200)
    ]
    line = " ".join(w.shell() for w in words)
    got = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, timeout=20, check=True
    ).stdout.decode()
    assert got.split("\0")[:-1] == [w.literal for w in words]
    assert [w.literal for w in split_words(line)] == [w.literal for w in words]


def test_what_cannot_be_one_word_is_refused() -> None:
    for text in ("a\nb", "a\x00b", "a\u202eb", "x" * 5000):
        with pytest.raises(ValueError, match="not written"):
            text_word(text).shell()
        with pytest.raises(ValueError, match="not written"):
            text_word(text).yaml("kubernetes")
    substitution = split_words("a $(id) `id` b")
    assert any(not word.is_safe for word in substitution)
    assert len(split_words("a $(id " * 1000)) <= 500


def test_yaml_and_units_keep_a_value_in_its_place() -> None:
    import yaml

    for value in ("a: b", "- x", "$(id)", "${HOME}", "'", '"', "#", "&a", "*a", "!x", "%d", "null", "1e3", "a\\nb"):
        word = text_word(value)
        read = yaml.safe_load(word.yaml("kubernetes"))
        assert read.replace("$$", "$") == value
        assert yaml.safe_load(word.yaml("compose")).replace("$$", "$") == value
        assert "\n" not in word.unit()
