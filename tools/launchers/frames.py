"""Reads the frames in which the workers of several nodes report: mixed with each other, cut anywhere, perhaps twice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tools.sanity.launch import Event, json_line

_FRAME = re.compile(rb"@vd (-?\d{1,6}) (\d{1,9}) ([+.]) (.*)")
#: Bytes of one event; what is longer is dropped.
_MOST = 8 << 20


@dataclass(slots=True)
class FrameReader:
    """Puts frames together to events. Frames of each task are numbered, so a log that is read again adds nothing."""

    next: dict[int, int] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)

    def read(self, line: bytes) -> Event | None:
        """The event that ``line`` completes, with the number of its ``task``; None where it completes none.

        >>> reader = FrameReader()
        >>> reader.read(b'@vd 3 0 + {"event": "no')
        >>> reader.read(b'@vd 3 1 . de"}')
        {'event': 'node', 'task': 3}
        >>> reader.read(b'@vd 3 1 . de"}')
        """
        found = _FRAME.search(line)  # a launcher may put a label or a time before it
        if found is None:
            return None
        task, number = int(found[1]), int(found[2])
        wanted = self.next.get(task, 0)
        if number < wanted:
            return None
        before = self.parts.pop(task, b"")  # of no use where a frame in between is missing
        part = (before if number == wanted else b"") + found[4].rstrip(b"\r\n")
        self.next[task] = number + 1
        if found[3] == b"+":
            if len(part) <= _MOST:
                self.parts[task] = part
            return None
        event = json_line(part)
        if event is not None:
            event["task"] = task
        return event
