"""Reads a metrics page of any size as it arrives and keeps only what the vocabulary knows.

The page is text from outside: a line that is no sample costs that line, a line without an end is skipped, and what is
kept is bounded in number and length. Format: Prometheus text exposition 0.0.4 and OpenMetrics 1.0, for example
``vllm:num_requests_running{engine="0",model_name="m"} 4.0``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from tools.metrics.vocabulary import SAMPLES
from tools.metrics.window import EngineKey

#: A line longer than this is no sample of vLLM's (its longest, cache_config_info, has about 1.5 kB).
MOST_LINE = 64 * 1024
#: Series kept of one page. 256 engines export about 600 series each.
MOST_SERIES = 200_000
MOST_ENGINES = 1024
_HEAD = 4096
#: What kind of page it is, is looked for in this many bytes from its start.
_KIND_BYTES = 1024 * 1024
_LABEL_VALUE = 200

# Everything else is passed over without being looked at: a page may hold hundreds of thousands of other series.
_WANTED = re.compile(
    rb"^(?:vllm[:_]|ray_vllm[:_]|http_requests_total[{ ]|process_start_time_seconds[{ ])[^\n]*", re.MULTILINE
)
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"(?:\{((?:[^\"{}]|\"(?:[^\"\\]|\\.)*\")*)\})?"
    r"[ \t]+([+-]?(?:[0-9][0-9.eE+-]*|\.[0-9]+|[Ii]nf|NaN|nan))(?:[ \t]+.*)?"
)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ANY_SAMPLE = re.compile(
    rb"^(?:# (?:TYPE|HELP) |[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^\n]*\})? [0-9+\-.eEnNaAiIfF]+ *$)", re.MULTILINE
)
#: The first series of other inference servers, by the prefix that their exporters use (read in their sources, 2026).
_OTHER_ENGINES = (
    ("SGLang", rb"^sglang[:_]"),
    ("Text Generation Inference", rb"^tgi_"),
    ("Triton Inference Server", rb"^nv_inference_"),
    ("TensorRT-LLM", rb"^trtllm[:_]"),
    ("llama.cpp", rb"^llamacpp:"),
    ("LMDeploy", rb"^lmdeploy:"),
)
_OTHER = tuple((name, re.compile(pattern, re.MULTILINE)) for name, pattern in _OTHER_ENGINES)
_HTML = re.compile(rb"^\s*(?:<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}
_ESCAPE = re.compile(r"\\.")

#: (quantity, place among its spellings, value of its own label)
Slot = tuple[str, int, str]


@dataclass(slots=True)
class Buckets:
    """A histogram as it stands on one page, over its whole life."""

    counts: dict[float, float] = field(default_factory=dict)
    total: float | None = None
    count: float | None = None


@dataclass(slots=True)
class Page:
    """What one page states.

    ``numbers`` and ``histograms`` are by engine and slot; ``infos`` by quantity: the labels and the sample's value.
    ``unreadable`` names the slots whose value was no finite number. ``foreign`` is another inference server that the
    page belongs to. ``cut``: the page went on beyond what was read, or ended within a line.
    """

    numbers: dict[EngineKey, dict[Slot, float]] = field(default_factory=dict)
    histograms: dict[EngineKey, dict[tuple[str, int], Buckets]] = field(default_factory=dict)
    infos: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    http: dict[tuple[str, str], float] = field(default_factory=dict)  # (handler, status) -> requests
    unreadable: dict[EngineKey, set[str]] = field(default_factory=dict)
    started_at: float | None = None
    series: int = 0
    bad_lines: int = 0
    size: int = 0  # bytes
    head: bytes = b""
    is_exposition: bool = False
    foreign: str | None = None
    cut: bool = False
    is_prefixed: bool = False  # at least one of vLLM's own series

    @property
    def is_html(self) -> bool:
        """Whether this is a web page, such as a gateway's sign-in."""
        return _HTML.match(self.head) is not None


class PageReader:
    """Takes a page in pieces: ``feed`` each, then ``finish``."""

    def __init__(self) -> None:
        self.page = Page()
        self._tail = b""
        self._skipping = False  # inside a line that was too long
        self._looked = 0

    def feed(self, piece: bytes) -> None:
        """Read on. Never raises, whatever the bytes are."""
        page = self.page
        page.size += len(piece)
        if len(page.head) < _HEAD:
            page.head += piece[: _HEAD - len(page.head)]
        end = piece.rfind(b"\n")
        if end < 0:
            if not self._skipping:
                self._tail += piece
                self._drop_long()
            return
        if self._skipping:
            block, self._skipping = piece[piece.find(b"\n") + 1 : end + 1], False
        else:
            block = self._tail + piece[: end + 1]
        self._tail = piece[end + 1 :]
        self._drop_long()
        self._read(block)

    def finish(self, *, truncated: bool = False) -> Page:
        """The page; ``truncated`` says that more was there than was fed."""
        page = self.page
        if self._tail and not truncated and _SAMPLE.fullmatch(self._tail.decode("utf-8", "replace").strip()):
            self._read(self._tail + b"\n")
        # A page ends with a newline; one that does not was cut off on its way or by its server.
        page.cut = truncated or bool(self._tail) or self._skipping
        self._tail = b""
        return page

    def _drop_long(self) -> None:
        if len(self._tail) > MOST_LINE:
            self._tail, self._skipping = b"", True
            self.page.bad_lines += 1

    def _read(self, block: bytes) -> None:
        page = self.page
        if page.series < MOST_SERIES:
            for match in _WANTED.finditer(block):
                self._line(match.group().decode("utf-8", "replace"))
        if self._looked < _KIND_BYTES and not page.is_prefixed:
            self._looked += len(block)
            page.is_exposition = page.is_exposition or _ANY_SAMPLE.search(block) is not None
            page.foreign = page.foreign or next((name for name, pattern in _OTHER if pattern.search(block)), None)

    def _line(self, line: str) -> None:
        page = self.page
        found = _SAMPLE.fullmatch(line.rstrip())
        if found is None:
            page.bad_lines += 1
            return
        known = SAMPLES.get(found[1])
        page.series += 1
        if known is None:
            page.is_prefixed = page.is_prefixed or found[1].startswith("vllm:")
            return
        quantity, place, suffix = known
        try:
            value = float(found[3])
        except ValueError:
            page.bad_lines += 1
            return
        labels = _labels(found[2] or "")
        if labels is None:
            page.bad_lines += 1
            return
        if not quantity.prefixed:
            self._server_wide(quantity.key, labels, value)
            return
        page.is_prefixed = True
        if quantity.kind == "info":
            rows = page.infos.setdefault(quantity.key, [])
            if len(rows) < MOST_ENGINES:
                rows.append((labels, value))
            return
        key = EngineKey(labels.get("model_name", ""), labels.get("engine", ""), labels.get("ReplicaId", ""))
        if key not in page.numbers and len(page.numbers) >= MOST_ENGINES:
            return
        numbers = page.numbers.setdefault(key, {})
        if quantity.kind == "histogram":
            self._histogram(key, (quantity.key, place), suffix, labels.get("le"), value)
            return
        if not math.isfinite(value) or value < 0:
            page.unreadable.setdefault(key, set()).add(quantity.key)
            return
        slot = (quantity.key, place, labels.get(quantity.label, "") if quantity.label else "")
        numbers[slot] = numbers.get(slot, 0.0) + value

    def _histogram(self, key: EngineKey, slot: tuple[str, int], suffix: str, le: str | None, value: float) -> None:
        page = self.page
        if not math.isfinite(value) or value < 0:
            page.unreadable.setdefault(key, set()).add(slot[0])
            return
        buckets = page.histograms.setdefault(key, {}).setdefault(slot, Buckets())
        if suffix == "_sum":
            buckets.total = (buckets.total or 0.0) + value
        elif suffix == "_count":
            buckets.count = (buckets.count or 0.0) + value
        else:
            try:
                bound = float(le or "")
            except ValueError:
                page.bad_lines += 1
                return
            if not math.isnan(bound):
                buckets.counts[bound] = buckets.counts.get(bound, 0.0) + value

    def _server_wide(self, key: str, labels: dict[str, str], value: float) -> None:
        page = self.page
        if not math.isfinite(value):
            return
        if key == "started":
            page.started_at = value
            return
        slot = (labels.get("handler", ""), labels.get("status", labels.get("status_code", "")))
        if slot in page.http or len(page.http) < MOST_ENGINES:
            page.http[slot] = page.http.get(slot, 0.0) + value


def _labels(text: str) -> dict[str, str] | None:
    """The labels between the braces, or None where they are none."""
    found: dict[str, str] = {}
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None:
            return None
        value = match[2]
        if "\\" in value:
            value = _ESCAPE.sub(lambda escape: _ESCAPES.get(escape.group(), escape.group()[1:]), value)
        found[match[1]] = value[:_LABEL_VALUE]
        at = match.end()
    return found


def read_page(body: bytes) -> Page:
    """A page that is at hand as a whole."""
    reader = PageReader()
    reader.feed(body)
    return reader.finish()
