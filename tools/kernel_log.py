"""The newest lines of the kernel's log, from /dev/kmsg, without following it.

Stands alone (standard library, Python 3.9), as everything that launchers bring to nodes: hence no slots.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

#: The kernel keeps at most its buffer (CONFIG_LOG_BUF_SHIFT, some MiB); more than this is not read.
_MOST_RECORDS = 200_000
_RECORD = 16 << 10


@dataclass(frozen=True)
class KernelLog:
    """``lines`` oldest first, without their prefix; ``why`` says why there are none."""

    lines: tuple[str, ...] = ()
    why: str = ""


def kernel_log(most: int = 5_000) -> KernelLog:
    """The last ``most`` lines of the kernel's log; in a container usually nobody may read it."""
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return KernelLog(why=f"/dev/kmsg: {error.strerror}")
    lines: list[str] = []
    try:
        for _ in range(_MOST_RECORDS):
            try:
                record = os.read(descriptor, _RECORD)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten before it was read; the next one is there
                    continue
                return KernelLog(tuple(lines), f"/dev/kmsg: {error.strerror}")
            text = record.decode("utf-8", "replace").partition(";")[2].split("\n", 1)[0]
            lines.append(text)
            if len(lines) > 2 * most:
                del lines[:most]
    finally:
        os.close(descriptor)
    return KernelLog(tuple(lines[-most:]))
