"""The tracebacks that are open at one moment, and which line belongs to which."""

from __future__ import annotations

from collections.abc import Callable

from tools.logs.blocks import HEADER, MOST_FOREIGN_LINES, MOST_TAIL_FOREIGN, Block
from tools.logs.judge import Judge
from tools.logs.prefix import Prefix, parse_prefix
from tools.logs.runs import Run
from tools.logs.scan import Match

_MOST_OPEN = 64
_MOST_KNOWN_PREFIXES = 2048
#: What an unprefixed line of a traceback belongs to.
_RAW = (("", ""), Prefix())
_SERVER_FRAMES = ("entrypoints/", "/bin/vllm", "api_server.py", "cli/main.py")


class Tracebacks:
    """Open blocks by key; ``judge`` is told of every one that closes."""

    def __init__(self, judge: Callable[[], Judge], strict: bool) -> None:
        self._judge = judge
        self._strict = strict
        self._open: dict[tuple[str, str], Block] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._walked = 0
        self._prefixes: dict[str, tuple[tuple[str, str], Prefix]] = {}
        self._named: tuple[int, str] = (0, "")

    def __bool__(self) -> bool:
        return bool(self._open)

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
        if key in self._open:
            self.close(key)
        block = Block(key, process, number, number, clock, strict=self._strict)
        record = (prefix.process or "", prefix.where or prefix.origin, prefix.clock or "")
        self._judge().opens(block, record, raw)
        if body[: body.find(HEADER)].strip(" ,:"):
            block.quotes.append((number, text))
        self.attach(block, matches, number, text, True)
        self._open[key] = block
        self._seen[key] = self._walked
        if len(self._open) > _MOST_OPEN:
            self.close(next(iter(self._open)))

    def take(self, text: str, number: int) -> tuple[Block, str] | None:
        """Offer a line; the block that took it and the line's body, or ``None`` if it belongs to none."""
        key, prefix = self._key_of(text)
        block = self._open.get(key)
        if block is None:
            return None
        body = text[prefix.body :]
        if block.takes(body, number):
            self._seen[key] = self._walked
            return block, body
        self.close(key)
        return None

    def walked(self) -> None:
        """One more line passed; blocks that wait too long are closed."""
        self._walked += 1
        if self._walked & 31:
            return
        for key, block in list(self._open.items()):
            limit = MOST_TAIL_FOREIGN if block.complete else MOST_FOREIGN_LINES
            if self._walked - self._seen[key] > limit:
                self.close(key)

    def _key_of(self, text: str) -> tuple[tuple[str, str], Prefix]:
        """Which block a line could belong to; the lines of one record share their prefix to the letter."""
        if text[:1] in ("", " ", "\t", "T"):
            return _RAW
        cut = text.find("] ", 0, 240)
        head = text[: cut + 2] if cut > 0 else ""
        known = self._prefixes.get(head) if head else None
        if known is not None:
            return known
        prefix = parse_prefix(text)
        key, _ = _key(prefix, opens=False)
        if head and prefix.body == len(head):
            if len(self._prefixes) > _MOST_KNOWN_PREFIXES:
                self._prefixes.clear()
            self._prefixes[head] = (key, prefix)
        return key, prefix

    def attach(self, block: Block, matches: tuple[Match, ...], number: int, text: str, final: bool) -> None:
        """Messages on a line of ``block``; ``final``: on its exception or around it."""
        for match in matches:
            block.messages[match.message.id] = match.message.kind
            if final:
                block.final_messages[match.message.id] = match.message.kind
            block.matches.append((match, number, text))

    def close(self, key: tuple[str, str]) -> None:
        block = self._open.pop(key)
        self._seen.pop(key, None)
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
        for key in [key for key, block in self._open.items() if block.complete]:
            self.close(key)

    def close_all(self) -> None:
        for key in list(self._open):
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
