"""`run_compile_test`: for real with torch, and what it says without."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
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
    "gpu-too-old": "torch._inductor.exc.GPUTooOldForTriton: Found Tesla P40 which is too old to be supported by the triton GPU compiler",
    "python-unsupported": "torch.compile is not supported on Python 3.15+",
    "triton": "torch._inductor.exc.TritonMissing: Cannot find a working triton installation",
    "compile-failed": "something new",
}


@pytest.mark.parametrize("kind", SAID)
def test_what_the_compilers_print_is_understood(kind: str) -> None:
    assert compile_worker.kind_of(RuntimeError(SAID[kind]), {"compiler": "/usr/bin/g++"}) == kind


def test_no_compiler_explains_whatever_is_printed() -> None:
    assert compile_worker.kind_of(RuntimeError("anything"), {"compiler": None}) == "no-compiler"


def test_what_the_compiler_said_is_quoted_and_not_its_wrapper() -> None:
    text = "CppCompileError: C++ compile error\n\nCommand:\ng++ -std=c++20\n\nOutput:\ncc1plus: error: bad value 'x' for '-march='\n"
    assert compile_worker.cause(RuntimeError(text)) == "cc1plus: error: bad value 'x' for '-march='"


def test_the_worker_is_plain_python_3_9_without_anything_of_ours() -> None:
    tree = ast.parse(WORKER.read_text("utf-8"), feature_version=(3, 9))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"torch"}


def test_it_compiles_where_the_cache_of_the_server_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_worker.cache_folder() == str(tmp_path)
    (tmp_path / ".cache" / "vllm").mkdir(parents=True)
    assert compile_worker.cache_folder() == str(tmp_path / ".cache" / "vllm")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "other" / "not" / "there"))
    assert compile_worker.cache_folder() == str(tmp_path)


@pytest.mark.lab
def test_a_real_torch_compiles(torch_python: str, act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    report = act("run_compile_test", {"python": torch_python})
    assert [f.value for f in report.facts] == ["none"], report.summary
    assert next(row.value for row in report.checks if row.id == "compile.cache") == str(tmp_path)
    assert not list(tmp_path.iterdir())  # it leaves no cache


@pytest.mark.lab
def test_a_missing_compiler_is_named(torch_python: str, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    report = act("run_compile_test", {"python": torch_python})
    assert [f.value for f in report.facts] == ["no-compiler"], report.summary


@pytest.mark.lab
@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ("exit 1", "no-compiler", "No working C++ compiler"),
        ("echo \"g++: error: unrecognized command-line option '-std=c++20'\" >&2; exit 1", "compiler-error", "-std=c++20"),
        ("echo 'main.cpp:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1", "no-headers", "Python.h"),
    ],
)  # fmt: skip
def test_what_a_real_inductor_says_of_its_compiler_is_read(
    torch_python: str, act: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, kind: str, says: str
) -> None:
    """A g++ that answers to --version, as Inductor wants it, and then does not compile; the first one does not even that."""
    program = tmp_path / "g++"
    answers = "" if kind == "no-compiler" else 'case "$*" in *--version*) exec /usr/bin/g++ "$@";; esac\n'
    program.write_text(f"#!/bin/sh\n{answers}{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    report = act("run_compile_test", {"python": torch_python})
    assert [f.value for f in report.facts] == [kind], report.summary
    assert says in report.summary
    assert "CppCompileError" not in report.summary or kind == "no-compiler"


@pytest.mark.lab
@pytest.mark.parametrize(
    ("options", "kind", "cause"),
    [
        ("ro", "no-permission", "install/filesystem-permission"),
        ("size=64k", "no-space", "install/filesystem-permission"),
        ("noexec", "no-exec", "install/torch-compile-failed"),
    ],
)
def test_a_cache_folder_that_does_not_serve_is_named(
    torch_python: str, unshare: Callable[..., list[str]], tmp_path: Path, options: str, kind: str, cause: str
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    command = [
        str(Path(sys.executable).with_name("vllm-diagnose")),
        "sanity",
        "compile",
        "--python",
        torch_python,
        "--yes",
    ]
    ran = subprocess.run(
        [*unshare("-m", f"mount -t tmpfs -o {options} none {cache}", *command), "-o", "json"],
        env={**os.environ, "VLLM_CACHE_ROOT": str(cache)}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    body = json.loads(ran.stdout)
    assert [f["value"] for f in body["report"]["facts"]] == [kind], body["report"]["summary"]
    assert body["diagnosis"]["causes"][0]["id"] == cause
