"""The lock is whole and hashed, the layers are told to the linter, and no file names a package registry's host."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8")
#: Written in parts, or this file would be the first to name them.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("proxy", "golang", "org"),
    )
)


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_every_locked_package_has_an_exact_version_and_a_hash() -> None:
    packages = re.split(r"\n(?=\S)", re.sub(r"(?m)^ *#.*\n", "", LOCK).strip())
    assert len(packages) > 30
    for package in packages:
        assert re.match(r"[\w.-]+==[\w.]+", package), package
        assert "--hash=sha256:" in package, package


def test_the_lock_holds_everything_that_pyproject_asks_for() -> None:
    locked = {canonical(name) for name in re.findall(r"(?m)^([\w.-]+)==", LOCK)}
    project = PYPROJECT["project"]
    groups = [project["dependencies"], PYPROJECT["build-system"]["requires"]]
    groups += [*project["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    asked = {canonical(requirement) for group in groups for requirement in group}
    assert asked <= locked


def test_no_file_names_a_registry() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = [
        (name, host)
        for name in listing.stdout.split("\0")
        if name and (ROOT / name).is_file()
        for host in REGISTRIES
        if host.encode() in (ROOT / name).read_bytes()
    ]
    assert not found


def test_the_layers_are_contracted() -> None:
    (contract,) = PYPROJECT["tool"]["importlinter"]["contracts"]
    assert contract["layers"] == ["assistant", "tools", "knowledge"]
