"""One start of the server after another in the same log: where a run begins, how far it came, how it ended.

A run begins at a banner of the main process ("vLLM API server version", "non-default args", "Initializing an LLM
engine") whose process differs from the one that began the current run, or, where no process is named (before 0.10), when
the current run is past its own banner. Child processes that repeat the banner (``spawn`` runs the main file again)
begin nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tools.evidence import Coverage
from tools.logs.access import Access
from tools.logs.facts import Facts
from tools.logs.prefix import Prefix
from tools.logs.shapes import FailureBlock, RunSummary
from tools.logs.stages import Stages
from tools.logs.stats import Stats

_CHILD = re.compile(r"(?:EngineCore|Worker|VllmWorker|Ray|DPCoordinator|VLLM_DP|Multiproc|raylet|pid=|rank|task )")
_SECOND_SERVER = re.compile(r"ApiServer_[1-9]")
_MOST_PROCESSES = 512
#: An engine that dies takes a moment to say so: a shutdown within so many lines of a failure is its consequence.
_SHUTDOWN_AFTER_FAILURE_LINES = 400
#: A start that so many statistics lines follow has come up, though its readiness was not printed or not kept. Fewer may
#: be another server's: two of them may write into one log.
_SERVES_AGAIN = 4

HEADS = (
    "vLLM API server version", "non-default args: ", "args: Namespace(", "  version ", "LLM engine (v", "usage: vllm",
    "usage: api_server.py",
)  # fmt: skip


@dataclass(slots=True)
class Occurrence:
    """One message in one process: where it was first seen, and how often."""

    kind: str
    line: int
    clock: str | None
    at: datetime | None
    process: str | None
    quote: str
    count: int = 1
    last_line: int = 0


@dataclass(slots=True)
class Run:
    """Everything that is remembered of one run; its size does not depend on the length of the log."""

    source: str
    number: int
    first_line: int
    first_byte: int = 0
    last_line: int = 0
    bytes: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    from_start: bool = False
    truncated: bool = False
    heads: dict[str, str | None] = field(default_factory=dict)  # head -> process that printed it
    main_process: str | None = None
    processes: dict[str, None] = field(default_factory=dict)
    pids: dict[str, str] = field(default_factory=dict)  # pid -> label
    ready: bool = False
    ready_line: int = 0
    finished: bool = False  # the server process said that it ended
    shutdown_line: int = 0
    asked_to_stop: bool = False  # a signal or Ctrl-C came before anything failed
    failing_now: bool = False  # a traceback was being printed when the stop was announced
    kernel_lines: bool = False
    of_vllm: bool = False  # lines as vLLM's own logger begins them stand near its beginning
    failures: int = 0
    warned: int = 0  # of these, what was only a warning while it started: a start that goes through survived them
    fatal: bool = False
    first_failure: str = ""
    first_failure_line: int = 0
    last_failure_line: int = 0
    occurrences: dict[tuple[str, str | None], Occurrence] = field(default_factory=dict)
    unrecognised: list[tuple[int, str | None, str | None, str]] = field(
        default_factory=list
    )  # line, clock, process, text
    unrecognised_count: int = 0
    exceptions: list[tuple[int, str | None, str | None, str, str]] = field(default_factory=list)  # ..., type, text
    blocks: dict[tuple[str, str], FailureBlock] = field(default_factory=dict)
    tracebacks: dict[str, int] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    stages: Stages = field(default_factory=Stages)
    stats: Stats = field(default_factory=Stats)
    access: Access = field(default_factory=Access)

    def note_process(self, process: str) -> None:
        if process not in self.processes and len(self.processes) < _MOST_PROCESSES:
            self.processes[process] = None
            _, _, pid = process.partition("pid=")
            if pid and not process.startswith("pid="):
                self.pids[pid.split(",")[0].strip()] = process
            if self.main_process is None and not _CHILD.match(process):
                self.main_process = process

    def process_named(self, name: str) -> str | None:
        """The label of the process called ``name`` ("EngineCore" -> "EngineCore pid=7275"), the latest if several."""
        return next((label for label in reversed(self.processes) if label.split(" ")[0] == name), name or None)

    def begins_another(self, head: str, prefix: Prefix) -> bool:
        """Whether this banner line belongs to a new start of the server."""
        process = prefix.process
        if process is not None and (
            _SECOND_SERVER.match(process) or (_CHILD.match(process) and head != "LLM engine (v")
        ):
            return False
        if head.startswith("usage: "):
            return bool(self.heads)  # the command line is refused before anything else is printed
        known = head in self.heads
        before = self.heads.get(head)
        if head == "LLM engine (v":
            if not known:
                return False
            if process and before and process.split(" ")[0] != before.split(" ")[0]:
                return False  # another engine of the same start (data parallel)
        if not known and not (self.finished or self.ready or self.shutdown_line):
            same = next((seen for seen in self.heads.values() if seen), None)
            return bool(process and same and not _CHILD.match(same) and same != process and self.fatal)
        if process and before and (process != before or process.startswith("APIServer ")):
            return True  # in a container the server is process 1 every time
        return (
            self.finished
            or self.ready
            or self.failures > 0
            or bool(self.shutdown_line)
            or (known and "LLM engine (v" in self.heads)
        )

    @property
    def ended(self) -> Literal["open", "clean-shutdown", "failed"]:
        if self.shutdown_line or self.finished:
            if self.asked_to_stop or not self.failures:
                return "clean-shutdown"
            close = (self.shutdown_line or self.last_line) - self.last_failure_line <= _SHUTDOWN_AFTER_FAILURE_LINES
            return "failed" if self.fatal or close else "clean-shutdown"
        if self.fatal or (self.failures and not self.ready):
            return "failed"
        return "open"

    def coverage(self, runs: int, pasted: bool) -> Coverage:
        return Coverage(
            source=self.source,
            run=self.number,
            runs=runs,
            from_start=self.from_start,
            ready=self.ready,
            ended=self.ended,
            pasted=pasted,
            truncated=self.truncated,
            kernel_lines=self.kernel_lines,
            processes=tuple(self.processes),
            lines=max(0, self.last_line - self.first_line + 1),
            bytes=self.bytes,
            first_at=self.first_at,
            last_at=self.last_at,
        )

    @property
    def coverage_word(self) -> str:
        """The value of ``log.coverage``."""
        if self.from_start:
            if self.ready:
                return "through-ready"
            return "start-to-exit" if self.ended != "open" else "start-only"
        return "serving" if self.ready or self.stats.samples or self.access.answered >= 3 else "fragment"

    @property
    def stage(self) -> str:
        if self.ended != "open":
            return "stopped"
        if self.ready:
            return "serving" if self.access.answered or self.stats.samples else "ready"
        if self.stages.stage and self.stats.after(self.stages.line) < _SERVES_AGAIN:
            return self.stages.stage
        return "serving" if self.stats.samples or self.access.answered else ""

    def forget_details(self) -> None:
        """Keep what :meth:`summary` needs: nobody asked about this run."""
        for details in (self.occurrences, self.blocks, self.processes, self.pids):
            details.clear()
        self.exceptions.clear()
        self.unrecognised.clear()

    def summary(self) -> RunSummary:
        version = self.facts.value("server.version")
        return RunSummary(
            source=self.source,
            number=self.number,
            first_line=self.first_line,
            last_line=self.last_line,
            first_at=self.first_at,
            last_at=self.last_at,
            ready=self.ready,
            ended=self.ended,
            failures=self.failures,
            version=str(version) if version else None,
            first_failure=self.first_failure,
        )
