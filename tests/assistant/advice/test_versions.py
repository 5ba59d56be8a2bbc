"""Every name in every fix exists in the version that it is rendered for; the tables are the judge."""

from __future__ import annotations

import re

import pytest

from assistant.advice.fixes import advise
from assistant.advice.words import split_words
from assistant.diagnosis.model import Advice
from assistant.diagnosis.truth import Facts
from knowledge.catalog import load
from knowledge.versions import release
from knowledge.vllm_tables import flag, variables, versions

VERSIONS = [v for v in versions() if release(v) >= (0, 6, 0, 0)]
#: Options of other programs that fixes name: docker, pip, py-spy, ray, systemctl, nvidia-smi, gguf-split, nvcc, git.
FOREIGN = {
    "--upgrade", "--shm-size", "--ipc", "--ulimit", "--cap-add", "--gpus", "--force", "--pid", "--now", "--gpu-reset",
    "--version", "--merge", "--query-gpu", "--format", "--previous", "--help",
}  # fmt: skip
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.[\w.]+)?")
_VARIABLE = re.compile(r"\b(?:VLLM_[A-Z0-9_]+)\b")


def _is_lacking(fix: Advice) -> bool:
    return " has no " in fix.title or " no longer has " in fix.title


def _texts(fix: Advice) -> str:
    title = "" if _is_lacking(fix) else fix.title  # it names what the version lacks, to say that it lacks it
    parts = [title, fix.why, fix.command, fix.undo, fix.expected, fix.trade_off, *fix.flags]
    return " ".join(part for part in parts if part)


def test_at_least_twenty_versions_are_looked_at() -> None:
    assert len(VERSIONS) >= 20
    assert VERSIONS[0].startswith("0.6.0")
    assert release(VERSIONS[-1]) >= (0, 33, 0, 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_in_every_fix_is_in_the_table_of_the_version(version: str) -> None:
    catalog = load()
    known = variables(version)
    wrong: list[str] = []
    for cause in catalog.causes.values():
        for fix in advise(cause, Facts(), catalog, version, "en"):
            for name in set(_FLAG.findall(_texts(fix))) - FOREIGN:
                if flag(version, name) is None:
                    wrong.append(f"{cause.id}: {fix.title}: {name}")
            for name in set(_VARIABLE.findall(_texts(fix))):
                if name not in known:
                    wrong.append(f"{cause.id}: {fix.title}: {name}")
            if fix.python is not None:
                declared = flag(version, fix.python.split("=")[0])
                if declared is None or declared.python != fix.python.split("=")[0]:
                    wrong.append(f"{cause.id}: {fix.title}: {fix.python}")
    assert not wrong


@pytest.mark.parametrize("version", VERSIONS)
def test_every_cause_leaves_something_to_do_in_every_version(version: str) -> None:
    catalog = load()
    for cause in catalog.causes.values():
        if cause.is_normal and not cause.fixes:
            continue
        fixes = [fix for fix in advise(cause, Facts(), catalog, version, "en") if not _is_lacking(fix)]
        assert fixes, f"{cause.id} has nothing to offer for {version}"
        assert all(fix.impact in ("none", "new-requests", "restart", "node") and fix.undo for fix in fixes), cause.id


@pytest.mark.parametrize("version", [VERSIONS[0], "0.9.1", "0.11.0", VERSIONS[-1]])
def test_every_value_is_of_the_declared_type(version: str) -> None:
    """What a fix sets passes the same test as what a user wrote; a word after a flag is a value of that flag."""
    from assistant.advice.started import fits

    catalog = load()
    seen = 0
    for cause in catalog.causes.values():
        for fix in advise(cause, Facts(), catalog, version, "en"):
            if not fix.command or not fix.flags or "\n" in fix.command:
                continue
            words = split_words(fix.command)
            for name in fix.flags:
                place = next(i for i, word in enumerate(words) if word.written == name)
                declared = flag(version, name)
                assert declared is not None
                values = words[place + 1 :]
                end = next((i for i, word in enumerate(values) if word.written.startswith("--")), len(values))
                assert fits(declared, values[:end]), fix.command
                seen += 1
    assert seen > 60


def test_the_other_language_says_the_same_command() -> None:
    catalog = load()
    for cause in catalog.causes.values():
        english = advise(cause, Facts(), catalog, "0.32.0", "en")
        chinese = advise(cause, Facts(), catalog, "0.32.0", "zh")
        assert [f.command for f in english] == [f.command for f in chinese]
        assert all(re.search(r"[一-鿿]", f.title) for f in chinese)
