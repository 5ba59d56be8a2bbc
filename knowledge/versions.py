"""vLLM version numbers: parsing and order, tolerant of development builds and forks."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?:\.post(\d{1,3}))?")


def parse(version: str | None) -> tuple[int, int, int, int] | None:
    """(major, minor, patch, post) of a version text, or ``None``; ``0.29.1rc1.dev3+g12`` is read as 0.29.1."""
    if not version:
        return None
    found = _NUMBER.match(version.strip())
    if not found:
        return None
    major, minor, patch, post = (int(part) if part else 0 for part in found.groups())
    return major, minor, patch, post


def release(version: str) -> tuple[int, int, int, int]:
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
