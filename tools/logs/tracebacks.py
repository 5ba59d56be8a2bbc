"""The tracebacks that are open at one moment, and which line belongs to which."""

from __future__ import annotations

from collections.abc import Callable

from tools.logs.blocks import HEADER, MOST_FOREIGN_LINES, MOST_TAIL_FOREIGN, Block
from tools.logs.judge import Judge
from tools.logs.prefix import Prefix, Prefixes
from tools.logs.runs import Run
from tools.logs.scan import Match

_MOST_OPEN = 64
_MOST_KNOWN_PREFIXES = 2048
#: What an unprefixed line of a traceback belongs to.
_RAW = (("", ""), 0)
_SERVER_FRAMES = ("entrypoints/", "/bin/vllm", "api_server.py", "cli/main.py")


class Tracebacks:
    """Open blocks by key (``open_now``); ``judge`` is told of every one that closes."""

    def __init__(self, judge: Callable[[], Judge], prefixes: Prefixes, strict: bool) -> None:
        self._judge = judge
        self._read_prefix = prefixes.read
        self._strict = strict
        self.open_now: dict[tuple[str, str], Block] = {}
        self.walked = 0  # lines that were walked over while a traceback was open
        self._prefixes: dict[str, tuple[tuple[str, str], int]] = {}
        self._named: tuple[int, str] = (0, "")

    def name_next(self, line: int, process: str) -> None:
        """``Process EngineCore:`` stands on ``line``: the raw traceback below it is that process's."""
        self._named = (line, process)

    def open(
        self, prefix: Prefix, body: str, text: str, number: int, clock: str | None, matches: tuple[Match, ...]
    ) -> None:
        """A line with "Traceback (most recent call last)" begins a block."""
        key, raw = _key(prefix, opens=True)
        process = prefix.process
        if process is None and self._named[0] == number - 1:
            process = self._judge().run.process_named(self._named[1])
        if key in self.open_now:
            self.close(key)
        block = Block(key, process, number, number, clock, strict=self._strict)
        record = (prefix.process or "", prefix.where or prefix.origin, prefix.clock or "")
        self._judge().opens(block, record, raw)
        if body[: body.find(HEADER)].strip(" ,:"):
            block.quotes.append((number, text))
        self.attach(block, matches, number, text, True)
        block.seen = self.walked
        self.open_now[key] = block
        if len(self.open_now) > _MOST_OPEN:
            self.close(next(iter(self.open_now)))

    def take(self, text: str, number: int) -> tuple[Block, str] | None:
        """Offer a line; the block that took it and the line's body, or ``None`` if it belongs to none."""
        known = self._prefixes.get(text[: text.find("] ", 0, 240) + 2])
        key, begin = self._key_of(text) if known is None else known
        block = self.open_now.get(key)
        if block is None:
            return None
        body = text[begin:]
        if block.takes(body, number):
            block.seen = self.walked
            return block, body
        self.close(key)
        return None

    def expire(self) -> None:
        """Close the blocks that have waited too long for a line of theirs."""
        for key, block in list(self.open_now.items()):
            limit = MOST_TAIL_FOREIGN if block.complete else MOST_FOREIGN_LINES
            if self.walked - block.seen > limit:
                self.close(key)

    def _key_of(self, text: str) -> tuple[tuple[str, str], int]:
        """Which block a line could belong to, and where its body begins."""
        if text[:1] in ("", " ", "\t", "T"):
            return _RAW
        cut = text.find("] ", 0, 240)
        head = text[: cut + 2] if cut > 0 else ""
        prefix = self._read_prefix(text)
        key, _ = _key(prefix, opens=False)
        if head and prefix.body == len(head):
            if len(self._prefixes) > _MOST_KNOWN_PREFIXES:
                self._prefixes.clear()
            self._prefixes[head] = (key, prefix.body)
        return key, prefix.body

    def attach(self, block: Block, matches: tuple[Match, ...], number: int, text: str, final: bool) -> None:
        """Messages on a line of ``block``; ``final``: on its exception or around it."""
        for match in matches:
            block.messages[match.message.id] = match.message.kind
            if final:
                block.final_messages[match.message.id] = match.message.kind
            block.matches.append((match, number, text))

    def close(self, key: tuple[str, str]) -> None:
        block = self.open_now.pop(key)
        judge = self._judge()
        run = judge.run
        if block.process is None:
            block.process = _owner(block, run)
        for match, number, text in block.matches:
            judge.occurs(match, number, block.clock, block.process, text)
        judge.closes(block)
        if not run.from_start and block.first_line <= run.first_line + 60 and _is_start(block):
            run.from_start = True

    def close_complete(self) -> None:
        """Close those whose exception was read."""
        for key in [key for key, block in self.open_now.items() if block.complete]:
            self.close(key)

    def close_all(self) -> None:
        for key in list(self.open_now):
            self.close(key)


def _key(prefix: Prefix, opens: bool) -> tuple[tuple[str, str], bool]:
    """The key of a line's block, and whether it is raw standard error: no level and place before each line.

    uvicorn puts its level before the first line of a traceback only.
    """
    raw = prefix.where is None and (prefix.level is None or opens and prefix.origin == "uvicorn")
    place = "" if raw else f"{prefix.where or prefix.origin} {prefix.clock}"
    return (prefix.process or prefix.outer or "", place), raw


def _owner(block: Block, run: Run) -> str | None:
    """The process of a raw traceback that no line names, where its frames or the run leave no doubt."""
    labelled = [label for label in run.processes if "pid=" in label and not label.startswith("pid=")]
    frames = block.frame_texts()
    if any("in spawn_main" in text or "in _bootstrap" in text for text in frames):
        children = [label for label in labelled if label != run.main_process]
        return children[0] if len(children) == 1 else None
    if any(any(mark in text for mark in _SERVER_FRAMES) for text in frames):
        return run.main_process
    return labelled[0] if len(labelled) == 1 else None


def _is_start(block: Block) -> bool:
    """A traceback that begins in the program's first lines: the start itself failed, before any banner."""
    frames = block.frame_texts()
    return bool(frames) and "in <module>" in frames[0]
