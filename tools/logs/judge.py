"""What a line or a traceback means for its run: a failure, a refused request, a benign end, or nothing.

``log.failures`` counts failures that a message of the table names (failure, consequence, wrapper) and those it does
not know. A logging record or a traceback counts once, however many lines it has. What a client did (a refused
request, a closed connection) and what an orderly shutdown prints count nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from tools.logs.blocks import Block, exception_of
from tools.logs.prefix import Prefix, clean
from tools.logs.runs import Occurrence, Run
from tools.logs.scan import Match
from tools.logs.shapes import FailureBlock

FAILING = frozenset({"failure", "consequence", "wrapper"})
#: Kinds that must not be read out of text that merely quotes something (a prompt, an argument, a configuration).
_GUARDED = FAILING | {"foreign", "frame"}
#: On a line of level INFO such a message must begin near the message's start.
_NEAR_START = 24
#: What the engine prints as an error when it dies: its whole configuration and the step's requests, names of options included.
_DUMPS = ("Dumping input data", "Dumping scheduler")
_USER_TEXT = ("Received request", "Generated response", "Added request", "Processing request")
_MOST_OCCURRENCES = 20_000
_MOST_BLOCKS = 400
_MOST_UNRECOGNISED = 200
_MOST_EXCEPTIONS = 50

#: Exceptions that end a client's connection or a process that was told to stop.
_BENIGN = re.compile(
    r"(?:.*\.)?(?:CancelledError|KeyboardInterrupt|ClientDisconnect|ClientDisconnected|WebSocketDisconnect|"
    r"BrokenPipeError|ConnectionResetError|GeneratorExit|SystemExit|EndOfStream|ClosedResourceError)$"
)
_INTERRUPTED = re.compile(r"(?:.*\.)?(?:KeyboardInterrupt|SystemExit)$")
#: A request that vLLM refuses may be logged with a traceback; its frames lie in the front end and the type is one of these.
_REFUSING = re.compile(
    r"(?:.*\.)?(?:ValueError|TypeError|VLLMValidationError|ValidationError|RequestValidationError|TemplateError|UndefinedError|"
    r"JSONDecodeError|HTTPException|VLLMNotFoundError|NotImplementedError|UnidentifiedImageError|ClientResponseError)$"
)
_FRONT_END = re.compile(r"entrypoints/|serving_|/renderers/|chat_utils|preprocess|/inputs/|tokenizers/")
_DEATH = re.compile(
    r"(?:^|\s|\))Killed(?:\s|$)|[Ss]egmentation fault|\(core dumped\)|[Ss]egfault encountered|Bus error|Fatal Python error|"
    r"terminate called|SIGKILL|SIGSEGV|SIGABRT|SIGBUS|[Oo]om-kill|OOMKilled|Killed process \d+|"
    r"exit(?:ed with)? ?code:? ?=?-?(?:9|6|7|11|13[4579]|139)\b|exitcode[ :=]+-?(?:9|6|7|11|13[4579])\b"
)
_EXIT_CODE = re.compile(r"[Ee]xit(?:ed with)? ?code\s*[:=]?\s*(-?\d{1,3})\b|exitcode\s*[:=]?\s*(-?\d{1,3})\b")
_SIGNAL = re.compile(r"\b(SIG(?:KILL|SEGV|ABRT|BUS|TERM|INT|HUP|ILL|FPE))\b")
_STOPPING = re.compile(
    r"\[shutdown\] (?:API server: shutdown triggered|EngineCore: trigger received)|[Rr]eceived (?:signal|SIG(?:TERM|INT))|"
    r"received signal=SIG(?:INT|TERM)|KeyboardInterrupt: terminated|Gracefully stopping|Stopping vllm|Got signal"
)
_STOPPED = re.compile(r"INFO: +(?:Shutting down|Finished server process)|Application shutdown complete|^Shutting down$")
_USAGE_ERROR = re.compile(r"^[\w./\- ]{1,80}: error: ")


@dataclass(slots=True)
class _Pending:
    """An ERROR record nobody knows: the traceback that may follow says more."""

    key: tuple[str, str, str]
    line: int
    clock: str | None
    process: str | None
    text: str
    wrapped: dict[str, str]  # wrapper messages on it: what the traceback below was wrapped in


class Judge:
    """Judges the lines of one run after another; ``at`` turns a printed time into a datetime."""

    def __init__(self, run: Run, at: Callable[[str | None], datetime | None], redact: Callable[[str], str]) -> None:
        self.run = run
        self._at = at
        self._redact = redact
        self._pending: dict[str, _Pending] = {}
        self._counted_record: dict[str, tuple[str, str, str]] = {}
        self._benign_record: dict[str, tuple[str, str, str]] = {}

    def quote(self, text: str) -> str:
        return self._redact(clean(text).strip())[:500]

    def admit(self, matches: tuple[Match, ...], prefix: Prefix, body: str, base: int) -> tuple[Match, ...]:
        """Without matches that the line only quotes, and without failures that a harmless message explains away."""
        if prefix.level in ("INFO", "DEBUG") or body.startswith(_DUMPS):
            if body.startswith(_USER_TEXT):
                return tuple(match for match in matches if match.start - base < 4)
            matches = tuple(
                match for match in matches if match.message.kind not in _GUARDED or match.start - base <= _NEAR_START
            )
        if any(match.message.kind == "harmless" for match in matches):
            return tuple(match for match in matches if match.message.kind not in FAILING)
        return matches

    def line(self, prefix: Prefix, body: str, text: str, number: int, matches: tuple[Match, ...], pasted: bool) -> None:
        """Judge a line that is part of no traceback."""
        run = self.run
        process = prefix.process or ""
        key = (process, prefix.where or prefix.origin, prefix.clock or "")
        kinds: set[str] = {match.message.kind for match in matches}
        failing = kinds & FAILING
        self._endings(body, text, number, prefix)
        if prefix.level is None and number <= run.first_line + 80 and _USAGE_ERROR.match(body):
            run.from_start = True  # the command line itself was refused, before any banner
        if failing:
            if self._excused(kinds):
                return
            if (
                failing == {"wrapper"}
                and key[1]
                and prefix.level == "ERROR"
                and self._counted_record.get(process) != key
            ):
                wrapped: dict[str, str] = {
                    match.message.id: match.message.kind for match in matches if match.message.kind == "wrapper"
                }
                self.flush(process)
                self._pending[process] = _Pending(key, number, prefix.clock, prefix.process, text, wrapped)
                return
            if not key[1] or self._counted_record.get(process) != key:
                warned = prefix.level == "WARNING" and failing == {"failure"} and not run.ready
                self._count(
                    number,
                    text,
                    fatal=not warned and (kinds & {"consequence", "wrapper"} != set() or not run.ready),
                )
                run.warned += warned
            self._counted_record[process] = key
            self._note_exception(body, number, prefix.clock, prefix.process)
            return
        if kinds - {"frame"}:
            self._benign_record[process] = key
            return
        if prefix.level in ("INFO", "DEBUG", "WARNING") and prefix.origin not in ("nccl",):
            return
        raised = exception_of(body) if prefix.origin != "kernel" else None
        if raised is None and pasted and not prefix.stamped:
            raised = _quoted_exception(body)
        usage = prefix.level is None and _USAGE_ERROR.match(body) is not None
        alarming = (
            (prefix.level in ("ERROR", "CRITICAL") and (prefix.origin != "uvicorn" or body != ""))
            or (prefix.origin == "nccl" and prefix.level == "WARNING")
            or raised is not None
            or (_DEATH.search(body) is not None and not pasted)
            or (_DEATH.search(body) is not None and len(body) < 200)
            or usage
        )
        if not alarming or self._benign_record.get(process) == key and key[1]:
            return
        if raised is not None and _BENIGN.match(raised[0]):
            self._interrupted(raised[0])
            return
        if key[1] and self._counted_record.get(process) == key:
            return
        waiting = self._pending.get(process)
        if waiting and waiting.key == key and key[1]:
            return
        self.flush(process)
        if not body.strip():
            return
        if len(self._pending) > 256:
            self.flush_all()
        self._pending[process] = _Pending(key, number, prefix.clock, prefix.process, text, {})
        if raised is not None:
            self._note_exception(
                body if exception_of(body) else f"{raised[0]}: {raised[1]}", number, prefix.clock, prefix.process
            )
            self._pending[process].text = body if exception_of(body) else f"{raised[0]}: {raised[1]}"
            self.flush(process)

    def _endings(self, body: str, text: str, number: int, prefix: Prefix) -> None:
        run = self.run
        if "hut" in body or "ignal" in body or "SIG" in body or "stopping" in body or "server process" in body:
            if _STOPPING.search(body) and not run.shutdown_line:
                run.asked_to_stop = not run.failing_now and (run.failures == 0 or (run.ready and not run.fatal))
                run.shutdown_line = number
            if _STOPPED.search(text):
                run.shutdown_line = run.shutdown_line or number
                run.finished = run.finished or "Finished server process" in text or "shutdown complete" in text
        if body.startswith("[shutdown]"):
            return  # what the server sends its children is no death of theirs
        if "xit" in body:
            found = _EXIT_CODE.search(body)
            if found and not run.asked_to_stop:
                self._fact("process.exit_code", int(found.group(1) or found.group(2)), number, prefix, text)
        if "SIG" in body and not run.asked_to_stop:
            found = _SIGNAL.search(body)
            if found and "received signal" not in body:
                self._fact("process.signal", found.group(1), number, prefix, text)

    def _fact(self, name: str, value: str | int, number: int, prefix: Prefix, text: str) -> None:
        from tools.evidence import Origin

        origin = Origin(self.run.source, number, prefix.process, self._at(prefix.clock), number)
        self.run.facts.state(name, value, origin, self.quote(text))

    def _excused(self, kinds: set[str]) -> bool:
        """After a shutdown that somebody asked for, what follows from it is no failure."""
        return self.run.asked_to_stop and "failure" not in kinds

    def _interrupted(self, kind: str) -> None:
        if _INTERRUPTED.match(kind) and not self.run.failures:
            self.run.asked_to_stop = True
            self.run.shutdown_line = self.run.shutdown_line or self.run.last_line

    def _count(self, number: int, text: str, fatal: bool, times: int = 1) -> None:
        run = self.run
        run.failures += times
        run.fatal = run.fatal or fatal
        run.last_failure_line = max(run.last_failure_line, number)
        if not run.first_failure_line or number < run.first_failure_line:
            run.first_failure_line = number
            run.first_failure = self.quote(text)

    def _note_exception(self, body: str, number: int, clock: str | None, process: str | None) -> None:
        found = exception_of(body)
        if found and len(self.run.exceptions) < _MOST_EXCEPTIONS:
            self.run.exceptions.append((number, clock, process, found[0], self.quote(body)))

    def _unknown(self, number: int, clock: str | None, process: str | None, text: str) -> None:
        run = self.run
        run.unrecognised_count += 1
        if len(run.unrecognised) < _MOST_UNRECOGNISED:
            run.unrecognised.append((number, clock, process, self.quote(text)))

    def flush(self, process: str) -> None:
        """A waiting ERROR record was followed by no traceback: it is a failure of its own."""
        waiting = self._pending.pop(process, None)
        if waiting is None or self.run.asked_to_stop:
            return
        self._count(waiting.line, waiting.text, fatal=not self.run.ready or bool(waiting.wrapped))
        if not waiting.wrapped:
            self._unknown(waiting.line, waiting.clock, waiting.process, waiting.text)

    def flush_all(self) -> None:
        for process in list(self._pending):
            self.flush(process)

    def opens(self, block: Block, key: tuple[str, str, str], raw: bool) -> None:
        """A traceback begins; the record that introduces it is part of it."""
        process = key[0]
        waiting = self._pending.get(process) or (self._pending.get("") if raw else None)
        if waiting and (waiting.key == key or (raw and block.first_line - waiting.line <= 2)):
            del self._pending[waiting.key[0]]
            block.quotes.insert(0, (waiting.line, waiting.text))  # cleaned and redacted where the block is kept
            block.first_line = block.order = waiting.line
            block.clock = block.clock or waiting.clock
            block.messages.update(waiting.wrapped)
        elif self._counted_record.get(process) == key and key[1]:
            block.headed = True
        elif self._benign_record.get(process) == key and key[1]:
            block.request = True
        self.flush(process)

    def closes(self, block: Block) -> None:
        """Judge a finished traceback, keep or count it, and hand its messages on."""
        run = self.run
        kind, _ = block.final
        kinds = set(block.messages.values())
        final = set(block.final_messages.values())
        counted = not block.headed
        failing = bool(kinds & FAILING)
        if final & {"request", "harmless"} and not final & FAILING or block.request and not failing:
            counted = failing = False
        elif kind and _BENIGN.match(kind) and not failing:
            counted = False
            self._interrupted(kind)
        elif self._excused(kinds) or (not failing and self._refuses(block, kind)):
            counted = failing = False
        if counted:
            unready = not run.ready
            self._count(
                block.order, block.headline or "Traceback", fatal=unready or bool(kinds & {"consequence", "wrapper"})
            )
            if not failing:
                text = block.headline or "Traceback (most recent call last):"
                self._unknown(block.parts[-1].line or block.first_line, block.clock, block.process, text)
        run.last_failure_line = max(run.last_failure_line, block.last_line if counted or block.headed else 0)
        if kind and (counted or block.headed) and not self._excused(kinds) and len(run.exceptions) < _MOST_EXCEPTIONS:
            first = next(part for part in reversed(block.parts) if part.type)
            run.exceptions.append((first.line, block.clock, block.process, kind, self.quote(block.headline)))
        label = block.process or ""
        run.tracebacks[label] = run.tracebacks.get(label, 0) + 1
        self._remember(block, counted or block.headed)

    def _refuses(self, block: Block, kind: str) -> bool:
        """A traceback of the front end of a ready server about one request."""
        if not self.run.ready or not kind or not _REFUSING.match(kind):
            return False
        frames = block.frame_texts()
        return any(_FRONT_END.search(text) for text in frames) and not any("v1/worker" in text for text in frames)

    def _remember(self, block: Block, counted: bool) -> None:
        run = self.run
        known = run.blocks.get(block.signature)
        if known is not None:
            run.blocks[block.signature] = _again(known)
        elif len(run.blocks) < _MOST_BLOCKS:
            block.quotes = [(number, self.quote(text)) for number, text in block.quotes]
            run.blocks[block.signature] = block.finished(run.source, run.number, self._at(block.clock), counted)

    def is_new(self, match: Match, process: str | None) -> bool:
        """Whether ``match`` would be the first of its process."""
        return (match.message.id, process) not in self.run.occurrences

    def occurs(
        self, match: Match, number: int, clock: str | None, process: str | None, text: str, times: int = 1
    ) -> None:
        """Count a message of one process; its first line is what is quoted.

        What merely follows from a shutdown that was asked for ("engine died") is not kept.
        """
        run = self.run
        if match.message.kind in ("consequence", "wrapper") and run.asked_to_stop:
            return
        key = (match.message.id, process)
        known = run.occurrences.get(key)
        if known is None:
            if len(run.occurrences) >= _MOST_OCCURRENCES:
                return
            run.occurrences[key] = Occurrence(
                match.message.kind, number, clock, self._at(clock), process, self.quote(text), times, number
            )
        else:
            known.count += times
            known.last_line = number
        if match.captures:
            from tools.evidence import Origin

            origin = Origin(run.source, number, process, self._at(clock), number)
            for name, value in match.captures:
                run.facts.state(match.message.captures[name], value, origin, lambda: self.quote(text))


def _again(block: FailureBlock) -> FailureBlock:
    return replace(block, count=block.count + 1)


_INSIDE = re.compile(r"(?:^|[\s\"'`(:>])((?:[A-Za-z_]\w{0,60}\.){0,6}[A-Z]\w{0,60}(?:Error|Exception)): (\S.{0,400})")


def _quoted_exception(body: str) -> tuple[str, str] | None:
    """An exception inside a person's sentence: ``it dies with RuntimeError: boom``."""
    found = _INSIDE.search(body)
    return (found.group(1), found.group(2)) if found else None
