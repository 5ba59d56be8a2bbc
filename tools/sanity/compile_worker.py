"""Compiles a small function with torch.compile, step by step. Stands alone: standard library and torch, Python 3.9+.

Prints one JSON object a line; the last has ``"event": "verdict"``. Caches go to a folder of its own, so that it compiles
for real. It lies where the server's cache lies, so that it meets the same disk, and is removed again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from typing import Any


def say(event: str, **facts: Any) -> None:
    os.write(1, (json.dumps({"event": event, **facts}) + "\n").encode())


def compiler() -> dict[str, Any]:
    """The C compiler that Inductor and Triton will call, and whether it works with this interpreter's headers."""
    given = os.environ.get("CXX") or os.environ.get("CC")
    found = next((path for name in (given, "g++", "gcc", "clang", "cc") if name and (path := shutil.which(name))), None)
    header = os.path.join(sysconfig.get_path("include"), "Python.h")  # noqa: PTH118
    facts: dict[str, Any] = {"compiler": found, "header": os.path.exists(header), "include": header}  # noqa: PTH110
    if found:
        ran = subprocess.run(
            [found, "-x", "c++", "-fsyntax-only", "-"],
            input=b"#include <cstdio>\n",
            capture_output=True,
            timeout=30,
            check=False,
        )
        facts["works"] = ran.returncode == 0
        facts["says"] = ran.stderr.decode("utf-8", "replace")[-400:]
    return facts


def run() -> dict[str, Any]:
    say("begin", stage="compiler")
    tools = compiler()
    say("done", stage="compiler", facts=tools)
    say("begin", stage="import")
    try:
        import torch
    except Exception as error:  # noqa: BLE001 (a broken library raises anything)
        return {"kind": "no-torch", "text": str(error)}
    say("done", stage="import", facts={"torch": torch.__version__})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for mode, stage in (("eager", "dynamo"), ("inductor", "inductor")):
        say("begin", stage=stage)
        started = time.monotonic()
        try:
            torch._dynamo.reset()
            function = torch.compile(lambda x: (x * 2 + 1).relu().sum(), backend=mode)
            value = float(function(torch.ones(4096, device=device)))
        except BaseException as error:  # noqa: BLE001 (it is what is looked for)
            return {
                "kind": kind_of(error, tools),
                "stage": stage,
                "text": cause(error),
                "trace": traceback.format_exc()[-6000:],
            }
        if value != 3 * 4096:
            return {"kind": "wrong-result", "stage": stage, "text": f"{value} instead of {3 * 4096}"}
        say("done", stage=stage, seconds=round(time.monotonic() - started, 2), facts={"device": device})
    return {"kind": "none"}


def cause(error: BaseException) -> str:
    """The innermost error's most telling line: Inductor wraps what the compiler said, and prints that last."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for words in ("error:", "Error", "not found"):
        telling = [line for line in lines if words in line]
        if telling:
            return telling[0][:500]
    return (lines or [type(error).__name__])[0][:500]


#: Texts of Inductor, Triton and the compilers they call, and what they mean; the first that fits.
TEXTS = (
    (
        "no-compiler",
        (
            "InvalidCxxCompiler",
            "No working C++ compiler",
            "Failed to find C compiler",
            "g++: not found",
            "No such file or directory: 'g++'",
            "No such file or directory: 'gcc'",
        ),
    ),
    ("no-headers", ("Python.h: No such file", "Python.h' file not found")),
    ("no-space", ("No space left on device", "Disk quota exceeded")),
    ("no-permission", ("Permission denied", "Read-only file system")),
    ("no-exec", ("failed to map segment from shared object", "Operation not permitted")),
    ("gpu-too-old", ("GPUTooOldForTriton", "too old to be supported by the triton")),
    ("python-unsupported", ("torch.compile is not supported on Python", "Dynamo is not supported on Python")),
    ("triton", ("TritonMissing", "Cannot find a working triton", "triton")),
    ("compiler-error", ("CppCompileError", "C++ compile error", "error:")),
)


def kind_of(error: BaseException, tools: dict[str, Any]) -> str:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if not tools.get("compiler"):
        return "no-compiler"
    for kind, said in TEXTS:
        if any(words in text for words in said):
            return kind
    return "compile-failed"


def cache_folder() -> str:
    """Where this environment's vLLM keeps what torch compiles (vllm/envs.py, VLLM_CACHE_ROOT), or the nearest folder above
    that exists."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    root = os.environ.get("VLLM_CACHE_ROOT") or os.path.join(home, "vllm")  # noqa: PTH118
    folder = os.path.abspath(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or root)  # noqa: PTH100
    while not os.path.isdir(folder):  # noqa: PTH112
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def in_cache() -> dict[str, Any]:
    """Compile in a folder of our own beside the server's caches; whatever happens, nothing of it stays."""
    above = cache_folder()
    say("begin", stage="cache")
    try:
        folder = tempfile.mkdtemp(prefix="vllm-diagnose-compile-", dir=above)
    except OSError as error:
        return {"kind": kind_of(error, {"compiler": True}), "stage": "cache", "text": str(error)}
    say("done", stage="cache", facts={"folder": above})
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ["TRITON_CACHE_DIR"] = os.path.join(folder, "triton")  # noqa: PTH118
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes to be left behind
    try:
        return run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    say("start", python=sys.executable, version=sys.version.split()[0])
    verdict = in_cache()
    say("verdict", passed=verdict["kind"] == "none", **verdict)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
