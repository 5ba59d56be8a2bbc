"""`run_compile_test`: for real with torch, and what it says without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from knowledge.catalog import load
from tools.sanity import compile_worker
from tools.sanity.compiling import WORKER


def test_an_interpreter_without_torch_is_named(bare_python: str, act: Any) -> None:
    report = act("run_compile_test", {"python": bare_python})
    assert report.verdict == "bad"
    assert "Give --python the one that vLLM uses" in report.summary
    assert [f.value for f in report.facts] == ["no-torch"]


def test_every_kind_has_its_sentence() -> None:
    kinds = {kind for kind, _ in compile_worker.TEXTS} | set(re.findall(r'"kind": "([a-z-]+)"', WORKER.read_text()))
    assert {"none", "no-compiler", "no-torch", "wrong-result"} <= kinds
    for kind in kinds | {"late", "broken", "compile-failed"}:
        for lang in ("en", "zh"):
            assert load().sentences[f"compile-{kind}"][lang].format(stage="inductor", detail="x")


#: What Inductor, Triton, ld.so and gcc print (torch 2.13, gcc 12), shortened.
SAID = {
    "no-headers": "/tmp/x/main.c:5:10: fatal error: Python.h: No such file or directory",
    "no-space": "OSError: [Errno 28] No space left on device: '/root/.triton/cache/ab'",
    "no-permission": "PermissionError: [Errno 13] Permission denied: '/root/.cache/torch'",
    "no-exec": "ImportError: /tmp/c/x.so: failed to map segment from shared object",
    "compiler-error": "CppCompileError: C++ compile error",
    "triton": "torch._inductor.exc.TritonMissing: Cannot find a working triton installation",
    "compile-failed": "something new",
}


@pytest.mark.parametrize("kind", SAID)
def test_what_the_compilers_print_is_understood(kind: str) -> None:
    assert compile_worker.kind_of(RuntimeError(SAID[kind]), {"compiler": "/usr/bin/g++"}) == kind


def test_no_compiler_explains_whatever_is_printed() -> None:
    assert compile_worker.kind_of(RuntimeError("anything"), {"compiler": None}) == "no-compiler"


@pytest.mark.lab
def test_a_real_torch_compiles(torch_python: str, act: Any) -> None:
    report = act("run_compile_test", {"python": torch_python})
    assert [f.value for f in report.facts] == ["none"], report.summary
    assert not list(Path("/tmp").glob("vllm-diagnose-compile-*"))


@pytest.mark.lab
def test_a_missing_compiler_is_named(torch_python: str, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    report = act("run_compile_test", {"python": torch_python})
    assert [f.value for f in report.facts] == ["no-compiler"], report.summary
