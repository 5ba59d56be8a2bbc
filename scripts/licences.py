"""Prints the table of docs/dependencies.md from installed metadata: `.venv/bin/python scripts/licences.py`."""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PROJECT = "vllm-diagnose"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """The licence as the package states it: the SPDX expression, the classifier, or the short free text."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in metadata.get_all("Classifier", []) if c.startswith("License :: ")]
    stated = str(metadata.get("License") or "").strip().split("\n")[0]
    return ", ".join(classifiers) or stated or "not stated"


def wanted_by(names: set[str]) -> set[str]:
    """Everything that these packages need at run time on this machine, transitively; extras are left out."""
    seen: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:  # only on another platform or Python
            continue
        seen.add(name)
        waiting |= {canonical(re.split(r"[^\w.-]", r, maxsplit=1)[0]) for r in requirements if "extra ==" not in r}
    return seen


def main() -> int:
    requirements = distribution(PROJECT).requires or []
    runtime = wanted_by({canonical(re.split(r"[^\w.-]", r, maxsplit=1)[0]) for r in requirements if "extra" not in r})
    locked = re.findall(r"^([\w.-]+)==", Path("constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    print("| package | version | licence | used for |\n|---|---|---|---|")
    for name in sorted(canonical(n) for n in locked):
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        optional = "PostgreSQL" if name.startswith("psycopg") else "development"
        print(f"| {name} | {package.version} | {licence(package)} | {'running' if name in runtime else optional} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
