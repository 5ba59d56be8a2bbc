"""What lets a large log be read fast changes nothing of what is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from knowledge import catalog
from tools.logs.hits import ChunkHits
from tools.logs.markers import MARKERS, is_covered, marked_lines, rarest_piece, rarest_pieces
from tools.logs.scan import Scanner, is_failing

ACCESS = 'INFO:     192.0.2.1:9 - "POST /v1/completions HTTP/1.1" 200 OK\n'
STATS = (
    "(APIServer pid=1) INFO 11-21 00:56:00 [loggers.py:123] Engine 000: Avg prompt throughput: 1.0 tokens/s, "
    "Avg generation throughput: 2.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs\n"
)


def test_every_failing_literal_marks_its_line() -> None:
    scanner = Scanner(tuple(catalog.load().messages.values()), thrifty=True)
    traffic = (ACCESS + STATS).lower().encode()
    failing = [literal for place, literal in enumerate(scanner.literals) if is_failing(scanner, place)]
    assert len(failing) > 1000
    for literal in failing:
        piece = (
            next(marker for marker in MARKERS if marker in literal) if is_covered(literal) else rarest_piece(literal)
        )
        assert piece in literal
        if is_covered(literal) or piece != literal:
            assert piece not in traffic, f"{literal!r} would mark healthy traffic by {piece!r}"


def test_a_piece_that_holds_another_is_not_looked_for_twice() -> None:
    literals = [b"zzqx", b"the zzqx9 kernel"]
    pieces = rarest_pieces(literals)
    assert pieces == [b"zzqx"]
    assert all(any(piece in literal for piece in pieces) for literal in literals)


def test_a_gate_without_the_usual_literals_reports_the_same_hits() -> None:
    messages = tuple(catalog.load().messages.values())
    fault = "(EngineCore_DP0 pid=2) ERROR 11-21 00:56:01 [core.py:1] torch.OutOfMemoryError: CUDA out of memory.\n"
    usual = (ACCESS + STATS) * 2000
    steady = bytearray((usual + fault + usual).encode())
    late = bytearray((" " * (64 << 10) + "\n" + usual + fault + usual).encode())  # nothing usual in its beginning
    shift = len(late) - len(steady)
    scanner = Scanner(messages, thrifty=True)
    for _ in range(8):  # the first chunks of a run are searched for everything
        scanner.scan(steady, len(steady))
    found = scanner.scan(steady, len(steady))
    assert found
    assert [(end + shift, identity) for end, identity in found] == scanner.scan(late, len(late))


def test_marked_lines_are_whole_and_near_ones_are_joined() -> None:
    data = bytearray(b"quiet\nfail one\nfail two\n" + b"quiet line\n" * 100 + b"fail three\nquiet")
    ends = [at + 4 for at in range(len(data)) if data[at : at + 4] == b"fail"]
    regions = marked_lines(ends, data, len(data))
    assert [bytes(data[start:end]) for start, end in regions] == [b"fail one\nfail two\n", b"fail three\n"]


def test_hits_are_told_line_by_line_whether_walked_or_jumped() -> None:
    data = bytearray(b"one\ntwo Error\nthree\nfour five\nsix")
    hits = [(14, 1), (24, 12), (29, 13), (33, 12)]  # (end, id); the first literal ends with the line's end
    jumped = ChunkHits(data, 0, len(data), list(hits), 10)
    lines = []
    while (line := jumped.following(lines[-1][1] + 1 if lines else 0)) is not None:
        lines.append(line)
    assert lines == [(4, 13, (1,)), (20, 29, (12, 13)), (30, 33, (12,))]
    walked = ChunkHits(data, 0, len(data), list(hits), 10)
    seen = [walked.on(start, end) for start, end in ((0, 3), (4, 13), (14, 19), (20, 29), (30, 33))]
    assert seen == [(), (1,), (), (12, 13), (12,)]
    behind = ChunkHits(data, 0, len(data), list(hits), 10)
    assert behind.following(21) == (30, 33, (12,))


def test_a_traceback_is_the_same_whatever_stands_between_its_lines(read: Callable[..., Any]) -> None:
    head = "(EngineCore_DP0 pid=2) ERROR 11-21 00:56:0{} [core.py:1] "
    own = [
        "EngineCore failed to start.",
        "Traceback (most recent call last):",
        '  File "/x/vllm/v1/engine/core.py", line 7, in run',
        "    self.step()",
        "RuntimeError: odd",
    ]
    found = []
    for foreign in (
        ACCESS,
        "(APIServer pid=1) INFO 11-21 00:56:01 [a.py:1] Grüße\n",
        "\x1b[1mcolour\x1b[0m\n",
        "a\rb\n",
    ):
        text = "".join(head.format(second) + line + "\n" + foreign for second in range(3) for line in own)
        reading = read(text).reading
        assert reading.tracebacks == {"EngineCore_DP0 pid=2": 3}
        found.append(
            [(block.process, block.first_line, block.last_line, block.exceptions) for block in reading.failures]
        )
    assert found[0]
    assert all(blocks == found[0] for blocks in found)
