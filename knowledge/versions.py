"""vLLM version numbers: parsing and order, tolerant of development builds and forks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Number = tuple[int, int, int, int]
Build = Literal["release", "candidate", "development", "unnamed"]

_NUMBER = re.compile(
    r"v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?:\.(?:post)?(\d{1,3})(?!\d))?"
    r"(?P<candidate>\.?(?:rc|a|b)\d{1,4})?(?P<post>\.post\d{1,3})?(?P<dev>\.?dev\d{0,6})?"
)
#: What a build of a checkout without tags calls itself (setuptools_scm), and placeholders of forks: no version at all.
_NO_VERSION = ((0, 0), (0, 1))


@dataclass(frozen=True, slots=True)
class Described:
    """A version text taken apart.

    ``number`` is the release it stands nearest to; ``build`` says how: a ``release``, a ``candidate`` of it (``rc2``),
    a ``development`` build on the way to it (``.dev339``), or ``unnamed``, where the text names no version and
    ``number`` is ``None``. ``local`` is what stands after ``+``: ``cu128``, ``cpu``, ``rocm641``, a commit.
    """

    text: str
    number: Number | None
    build: Build
    local: str = ""


@lru_cache(maxsize=4_096)
def describe(version: str) -> Described:
    """Takes a version text apart; never raises.

    >>> describe("0.29.1rc1.dev339+g5ba1ac1").build, describe("0.29.1rc1.dev339+g5ba1ac1").number
    ('development', (0, 29, 1, 0))
    """
    plain, _plus, local = version.strip().partition("+")
    found = _NUMBER.match(plain)
    if not found:
        return Described(version, None, "unnamed", local)
    major, minor, patch, post = (int(part) if part else 0 for part in found.groups()[:4])
    if found["dev"] and (major, minor) in _NO_VERSION or (major, minor, patch) == (0, 0, 0):
        return Described(version, None, "unnamed", local)
    build: Build = "development" if found["dev"] else "candidate" if found["candidate"] else "release"
    return Described(version, (major, minor, patch, post), build, local)


def parse(version: str | None) -> Number | None:
    """(major, minor, patch, post) of a version text, or ``None``.

    ``0.29.1rc1.dev3+g12`` is read as 0.29.1, the fourth number of ``0.10.1.1`` as a post release, and a build without a
    version (``0.1.dev1+g12``, ``dev``) as none.
    """
    return describe(version).number if version else None


def release(version: str) -> Number:
    """Like :func:`parse`, for versions known to be well formed. Raises ``ValueError`` for others."""
    number = parse(version)
    if number is None:
        raise ValueError(f"{version!r} is no version number such as 0.10.2")
    return number


def is_between(version: str | None, since: str, until: str | None) -> bool:
    """Whether ``since <= version < until``; an unknown version counts as the newest."""
    number, low, high = parse(version), parse(since), parse(until)
    if number is None:
        return high is None
    return (low is None or number >= low) and (high is None or number < high)
