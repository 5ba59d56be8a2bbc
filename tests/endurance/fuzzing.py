"""Hostile input by the thousand: made from a seed, each with a deadline, each finding with the way to see it again."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import random
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

#: Seconds that one input may take on a busy machine; most take milliseconds.
HANG_S = 10.0
_TOKENS: tuple[bytes, ...] = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[31m", b"\r", b"\n\n", b"\t" * 50, b'"', b"'", b"\\", b"{", b"}", b"[" * 200,
    b"NaN", b"1e999", b"-0", b"9" * 400, b"%s%n", b"../../etc/passwd", b"<script>", b"${x}", b"{{7*7}}", b"null",
    b"Traceback (most recent call last):\n", b"(EngineCore_0 pid=1) ERROR 01-01 00:00:00 [x.py:1] ", b"\xe4\xb8\xad" * 30,
    b"INFO 02-30 25:61:61 [a.py:0] ", b"vLLM API server version 0.", b" 99999999999999999999.9 GiB ", b"a" * 5000,
)  # fmt: skip
#: Values that a field may hold instead of its own.
NASTY: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1e308, "", " ", "\x00", "\ud800", "x" * 20_000, "é" * 3000, [], {}, [[[[]]]], {"a": {"b": []}}, "../..",
    "<b>&amp;", "%00", ["x"] * 300, {"": ""}, "1", "on", "zh", "\u202e\u2066", float(10**18),
)  # fmt: skip


class HangError(AssertionError):
    """One input took too long."""


@dataclass
class Fuzz:
    """Counts inputs and knows how to repeat one: ``seed`` makes them all, ``only`` is the number of a single one."""

    name: str
    seconds: float
    seed: int
    only: int | None = None
    done: int = 0
    slowest_s: float = 0.0
    slowest: int = 0
    chance: random.Random = field(default_factory=random.Random)

    def inputs(self) -> Iterator[random.Random]:
        """One source of chance for each input, until time is over. What happens to an input is judged by the caller.

        An exception, or more than :data:`HANG_S` seconds, ends the test and says which input it was.
        """
        print(f"\n{self.name}: fuzzing with --fuzz-seed={self.seed}", flush=True)
        end = time.monotonic() + self.seconds
        number = self.only or 0
        while time.monotonic() < end and (self.only is None or number == self.only):
            self.chance = random.Random(f"{self.name}:{self.seed}:{number}")
            began = time.monotonic()
            with self._watched(number):
                yield self.chance
            took = time.monotonic() - began
            if took > self.slowest_s:
                self.slowest_s, self.slowest = took, number
            number, self.done = number + 1, self.done + 1
        print(f"{self.name}: {self.done} inputs, the slowest (number {self.slowest}) took {self.slowest_s:.2f} s")

    def again(self, number: int) -> str:
        """The arguments that repeat one input."""
        return f"-k {self.name} --fuzz-seed={self.seed} --fuzz-only={number}"

    @contextlib.contextmanager
    def _watched(self, number: int) -> Iterator[None]:
        """An alarm for what hangs in Python; what hangs below it is shown and ends the process."""

        def late(_: int, __: FrameType | None) -> None:
            raise HangError(f"more than {HANG_S:g} s; see it again with {self.again(number)}")

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        with contextlib.suppress(ValueError, AttributeError):  # pytest may have taken the file descriptor away
            faulthandler.dump_traceback_later(HANG_S * 3, exit=True, file=sys.__stderr__)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def found(fuzz: Fuzz) -> Iterator[None]:
    """Whatever goes wrong in the block says how to see it again."""
    try:
        yield
    except HangError:
        raise
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\nsee it again with {fuzz.again(fuzz.done)}") from error


def seed_of(given: str) -> int:
    """A seed as it was given; ``random`` makes one up."""
    return secrets.randbelow(10**9) if given == "random" else int(given)


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes] = (), *, most: int = 200_000) -> bytes:
    """``data`` with some of its bytes changed, moved, doubled, cut or replaced by parts of ``others``."""
    body = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        at = chance.randrange(len(body) + 1)
        length = chance.choice((1, 2, 8, 64, 512))
        match chance.randrange(8):
            case 0:
                body[at : at + length] = chance.randbytes(length)
            case 1:
                del body[at : at + length]
            case 2:
                body[at:at] = chance.choice(_TOKENS)
            case 3:
                body[at:at] = body[at : at + length] * chance.randint(1, 20)
            case 4:
                start = chance.randrange(len(body) + 1)
                body[at:at] = body[start : start + length * 4]
            case 5 if others:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                body[at : at + length] = other[start : start + length * 8]
            case 6 if body:
                body[min(at, len(body) - 1)] ^= 1 << chance.randrange(8)
            case _:
                body = body[: max(at, 1)] if chance.random() < 0.1 else body
    return bytes(body[:most])


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with a few of its parts replaced, removed or renamed."""
    body = {"whole": copy.deepcopy(value)}
    for _ in range(chance.choice((1, 1, 2, 5))):
        _change_one(body, chance)
    return body.get("whole")


def _change_one(body: dict[str, Any], chance: random.Random) -> None:
    holder: Any = body
    key: Any = "whole"
    while (
        isinstance(holder.get(key) if isinstance(holder, dict) else holder[key], dict | list) and chance.random() < 0.8
    ):
        inner = holder[key]
        if not inner:
            break
        holder, key = inner, chance.choice(list(inner)) if isinstance(inner, dict) else chance.randrange(len(inner))
    action = chance.random()
    if action < 0.7 or holder is body:
        holder[key] = copy.deepcopy(chance.choice(NASTY))
    elif action < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[str(chance.choice(NASTY))[:50]] = holder.pop(key)
    else:
        holder.append(holder[key])


def as_bytes(value: Any, chance: random.Random) -> bytes:
    """A JSON value as it is sent, sometimes no longer JSON."""
    data = json.dumps(value).encode("utf-8", "replace")
    return mutated(data, chance) if chance.random() < 0.2 else data
