"""Python's search for reference cycles, made rare while a log is read.

Every hit and every line is an object, none of them is part of a cycle, and each thousand of them would make Python walk
over what is young and now and then over all that is known: a twentieth of the time of a log full of tracebacks.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: So many new objects between two searches (Python: 700 to 2,000), some 10 MB if all of them were garbage.
_YOUNG = 100_000
_lock = threading.Lock()
_readers = 0
_usual: tuple[int, ...] = ()


@contextmanager
def rarely_searched() -> Iterator[None]:
    """While anybody reads, in whatever thread, Python searches rarely; the last one out restores its habit."""
    global _readers, _usual
    with _lock:
        if not _readers:
            _usual = gc.get_threshold()
            gc.set_threshold(max(_YOUNG, _usual[0]) if _usual[0] else 0, *_usual[1:])
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                gc.set_threshold(*_usual)
