"""Rebuilding tracebacks: which lines belong together, which exception led to which, and in which process.

Several processes write into one log, so lines are sorted by a key (process and place for logged lines, process alone
for raw standard error). A block opens at "Traceback (most recent call last)", takes the lines of its key, reads on
over chained exceptions ("During handling of ...", "... was the direct cause ..."), and closes when its exception was
read and other lines follow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime

from tools.logs.prefix import clean
from tools.logs.scan import Match
from tools.logs.shapes import FailureBlock, Frame, Raised

#: A block longer than this is closed as incomplete; the same for lines of other processes between two of its own.
MOST_LINES = 600
MOST_FOREIGN_LINES = 400
#: How many lines after the exception may still belong to its message.
MOST_MESSAGE_LINES = 30
#: Lines of others that may stand between an exception and the sentence that chains it to the next.
MOST_TAIL_FOREIGN = 12
_MOST_FRAMES = 60

HEADER = "Traceback (most recent call last)"
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"([A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*)(?::(?: (.*))?)?$", re.DOTALL)
#: An exception line that stands alone, outside a traceback; stricter than inside one.
_ALONE = re.compile(
    r"((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Timeout|OutOfMemory|OutOfResources))(?:: (.*)|:?)$",
    re.DOTALL,
)
_FRAME = re.compile(r'File "([^"]{1,400})", line (\d{1,7})(?:, in (.{1,200}))?')
_GROUP = re.compile(r"[ \t]*[|+](?:-+[ \t]*)?")
#: Raw lines that follow an exception and are no part of its message.
_OTHER = re.compile(
    r"/|Process |Exception ignored|Loading |Capturing |Fetching |Downloading |nanobind|WARNING|DEBUG|INFO|ERROR|[\[(|*=-]|usage:"
    r"|During task|Segmentation|Killed|Aborted|srun|slurm|[\w.@-]{1,60}[$#] "
)
#: A Python identifier that names an exception class, or at least looks like one when it stands in a traceback.
_LIKELY_TYPE = re.compile(r"(?:.*\.)?(?:[A-Z]\w*|\w*(?:[Ee]rror|exception|exit|gaierror|timeout|interrupt))$")


def exception_of(text: str) -> tuple[str, str] | None:
    """(type, message) of a lone exception line: ``torch.OutOfMemoryError: CUDA out of memory.``"""
    found = _ALONE.match(text)
    return (found.group(1), found.group(2) or "") if found else None


def frame_of(text: str) -> Frame | None:
    """``  File "/opt/venv/bin/vllm", line 8, in <module>`` as a frame."""
    found = _FRAME.search(text)
    return Frame(found.group(1), int(found.group(2)), (found.group(3) or "").strip()) if found else None


@dataclass(slots=True)
class _Part:
    type: str = ""
    message: str = ""
    line: int = 0
    frames: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Block:
    """A traceback being read. ``stage`` is "frames", then "tail" once an exception line was read."""

    key: tuple[str, str]
    process: str | None
    first_line: int
    order: int
    clock: str | None
    stage: str = "frames"
    parts: list[_Part] = field(default_factory=lambda: [_Part()])
    quotes: list[tuple[int, str]] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)  # id -> kind, in printed order
    final_messages: dict[str, str] = field(default_factory=dict)  # those on the exception lines
    last_line: int = 0
    lines: int = 0
    seen: int = 0  # how many lines had been walked over when it took its last
    blank: bool = False
    chained: bool = False
    matches: list[tuple[Match, int, str]] = field(default_factory=list)  # handed on when the block closes
    headed: bool = False  # a failure line of the same record stands before it and was counted
    request: bool = False
    strict: bool = False  # the text is pasted: after a blank line a person may speak

    def takes(self, body: str, line: int) -> bool:
        """Offer the next line of the block's own key; false closes the block and leaves the line to others."""
        if self.stage == "frames":
            if body[:4] in ("    ", "  Fi"):  # nearly every line of a traceback: kept short
                self.lines += 1
                if self.lines > MOST_LINES:
                    return False
                if body[2] == "F" and len(self.parts[-1].frames) < _MOST_FRAMES:
                    self.parts[-1].frames.append(body)
                self.last_line = line
                return "|" not in body[:12] or self._in_group(body, line)
            return self._in_frames(body, line)
        return self._in_tail(body, line)

    def _in_frames(self, body: str, line: int) -> bool:
        self.lines += 1
        if self.lines > MOST_LINES:
            return False
        if not body or body[0] in " \t":
            frames = self.parts[-1].frames
            if body.lstrip(" |").startswith('File "') and len(frames) < _MOST_FRAMES:
                frames.append(body)
            if "|" in body and frames[-1:] != [body]:
                self._group_line(body, line)
            self.last_line = line
            return True
        if HEADER in body:
            return self.key[1] != ""  # a raw traceback inside a raw traceback is another one
        found = _EXCEPTION.match(body)
        if found is None or not _LIKELY_TYPE.match(found.group(1)):
            return bool(self.key[1]) or self.lines < MOST_LINES  # noise between raw lines is passed over
        self._raised(found.group(1), found.group(2) or "", line)
        return True

    def _in_group(self, body: str, line: int) -> bool:
        self._group_line(body, line)
        return True

    def _raised(self, kind: str, message: str, line: int) -> None:
        part = self.parts[-1]
        part.type, part.message, part.line = kind, message, line
        self.quotes.append((line, clean(f"{kind}: {message}" if message else kind)[:500]))
        self.last_line = line
        self.stage = "tail"
        self.blank = False
        self.lines = 0

    def _group_line(self, body: str, line: int) -> None:
        """Inside an exception group the inner exception stands after bars: ``    | ValueError: boom``."""
        inner = _GROUP.sub("", body).strip()
        found = exception_of(inner)
        if found:
            self.parts[-1].type, self.parts[-1].message, self.parts[-1].line = found[0], found[1], line
            self.quotes.append((line, clean(inner)[:500]))

    def _in_tail(self, body: str, line: int) -> bool:
        if HEADER in body:
            if not self.key[1] and not self.chained:
                return False  # raw standard error: another traceback, not the next of this chain
            self._chain(line)
            return True
        if body.startswith(CHAINED):
            self.chained = True
            self.lines = 0
            return True
        self.lines += 1
        if self.lines > MOST_MESSAGE_LINES:
            return False
        if not body.strip():
            if self.blank and self.strict and not self.chained:
                return False
            self.blank = True
            return True
        if self.chained:
            return False
        if not self.key[1] and ((self.blank and self.strict and body[0] not in " \t") or _OTHER.match(body)):
            return False  # raw text of another program, or a person's sentence, is no part of the message
        part = self.parts[-1]
        if len(part.message) < 2000:
            part.message += "\n" + body.strip()
            if len(self.quotes) < 12:
                self.quotes.append((line, clean(body.strip())[:500]))
        self.last_line = line
        return True

    def _chain(self, line: int) -> None:
        self.parts.append(_Part())
        self.stage = "frames"
        self.chained = False
        self.lines = 0
        self.last_line = line

    @property
    def complete(self) -> bool:
        return self.stage == "tail"

    @property
    def final(self) -> tuple[str, str]:
        """(type, message) of what was raised in the end, empty when the traceback breaks off before it."""
        for part in reversed(self.parts):
            if part.type:
                return part.type, part.message
        return "", ""

    @property
    def final_text(self) -> str:
        kind, message = self.final
        return f"{kind}: {message}" if message else kind

    @property
    def headline(self) -> str:
        """The exception with the first words of its message: ``RuntimeError: An attempt has been made ...``."""
        kind, message = self.final
        first = next((line.strip() for line in message.splitlines() if line.strip()), "")
        return f"{kind}: {first}" if first else kind

    @property
    def signature(self) -> tuple[str, str]:
        kind, message = self.final
        return self.process or "", f"{kind}: {message[:160]}"

    def frame_texts(self) -> list[str]:
        return [text for part in self.parts for text in part.frames]

    def finished(self, source: str, run: int, at: datetime | None, counted: bool) -> FailureBlock:
        raised = tuple(
            Raised(part.type, clean(part.message)[:1000], part.line, tuple(filter(None, map(frame_of, part.frames))))
            for part in self.parts
            if part.type or part.frames
        )
        return FailureBlock(
            source=source,
            run=run,
            process=self.process,
            first_line=self.first_line,
            last_line=self.last_line or self.first_line,
            order=self.order,
            at=at,
            exceptions=raised,
            quotes=tuple(self.quotes),
            messages=tuple(self.messages),
            complete=self.complete,
            counted=counted,
        )
