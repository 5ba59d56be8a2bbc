"""Small files of the kernel, read whole.

Stands alone (standard library, Python 3.9): launchers bring it to nodes together with what gathers facts there.
"""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
_MOST = 64 << 10


def read(path: Path | str, most: int = _MOST) -> str:
    """A file's text up to ``most`` bytes, or nothing where it cannot be read."""
    try:
        with Path(path).open("rb") as handle:
            return handle.read(most).decode("utf-8", "replace")
    except OSError:
        return ""
