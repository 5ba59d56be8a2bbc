"""An estimate of GPU memory, or a start explained, as blocks. Sentences come from the knowledge; numbers are formatted here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from assistant.diagnosis.model import Language
from assistant.render.blocks import Block, Command, Heading, Item, Text, Tone
from knowledge.catalog import Catalog

if TYPE_CHECKING:
    from tools.memory.action import MemoryEstimate, Range
    from tools.memory.explain import Explained

#: One mark for each part of the bar; told apart without colour.
MARKS = {
    "weights": "█", "activations": "▓", "non_torch": "▒", "cuda_graphs": "▚", "kv_cache": "░", "left_free": "·",
    "other": "▒", "unused": "·",
}  # fmt: skip
_COLUMNS = 64
_TONES: dict[str, Tone] = {"fits": "good", "does-not-fit": "bad", "unsure": "unsure", "unknown": "unsure"}


def gib(value: float) -> str:
    """GiB with as many digits as tell something."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def count(value: float) -> str:
    """A whole number in groups of three."""
    return f"{round(value):,}"


def bar(parts: Sequence[tuple[str, float]], columns: int = _COLUMNS) -> str:
    """A bar of marks, in proportion; a part above zero has at least one mark."""
    total = sum(max(0.0, size) for _, size in parts)
    if total <= 0:
        return ""
    widths = [max(1, round(columns * size / total)) if size > 0 else 0 for _, size in parts]
    widest = widths.index(max(widths))
    widths[widest] = max(1, widths[widest] + columns - sum(widths))
    return "".join(MARKS[name] * width for (name, _), width in zip(parts, widths, strict=True))


def estimate_blocks(result: MemoryEstimate, catalog: Catalog, lang: Language, gpus: int) -> Iterator[Block]:
    """The verdict, where the memory goes, what it holds, and what would make it fit."""
    word = catalog.word
    yield Heading(
        word(f"memory-verdict-{result.verdict}", lang, model=result.model, gpus=gpus, gpu=result.gpu or f"{result.gpu_total_gib} GiB"),
        _TONES[result.verdict], 1,
    )  # fmt: skip
    yield Text(
        word("memory-line-setting", lang, version=result.vllm_version, parameters=f"{result.parameters / 1e9:.2f}", share=result.gpu_memory_utilization,
             length=count(result.max_model_len), batched=count(result.max_num_batched_tokens), seqs=count(result.max_num_seqs)),
        "quiet",
    )  # fmt: skip
    yield from _where(result, catalog, lang)
    yield from _room(result, catalog, lang)
    yield from _changes(result, catalog, lang)
    if result.verdict != "fits" and result.smallest_gpus:
        yield Heading(word("memory-heading-smallest", lang))
        for row in result.smallest_gpus:
            yield Item(word("memory-line-smallest", lang, gpus=row.gpus, name=row.name, total=row.total_gib))
    if result.notes:
        yield Heading(word("memory-heading-notes", lang))
        for note in result.notes:
            yield Text(word(f"memory-note-{note}", lang), "quiet")


def _where(result: MemoryEstimate, catalog: Catalog, lang: Language) -> Iterator[Block]:
    word = catalog.word
    total = result.gpu_total_gib
    if total is not None:
        yield Heading(word("memory-heading-where", lang, total=gib(total)))
        drawn = [(c.name, c.gib.value) for c in result.components if c.counted or c.name == "left_free"]
        yield Text(bar(drawn))
    for part in result.components:
        size = part.gib
        key = "memory-part-line" if part.counted else "memory-part-line-outside"
        if size.low == size.high:
            key = "memory-part-line-exact"
        line = word(
            key,
            lang,
            name=word(f"memory-part-{part.name}", lang),
            value=gib(size.value),
            low=gib(size.low),
            high=gib(size.high),
        )
        yield Text(f"{MARKS[part.name]} {line}")


def _room(result: MemoryEstimate, catalog: Catalog, lang: Language) -> Iterator[Block]:
    word = catalog.word
    length = count(result.max_model_len)
    yield Heading(word("memory-heading-room", lang))
    tokens, at_once = result.kv_cache_tokens, result.max_concurrency
    if tokens is not None:
        yield Text(
            word(
                "memory-line-tokens",
                lang,
                **_counts(tokens),
                tokens=count(tokens.value),
                per=f"{result.kv_bytes_per_token / 1024:.1f}",
            )
        )
    if at_once is not None:
        yield Text(
            word(
                "memory-line-concurrency",
                lang,
                length=length,
                value=f"{at_once.value:.1f}",
                low=f"{at_once.low:.1f}",
                high=f"{at_once.high:.1f}",
            )
        )
    if result.max_model_len:
        yield Text(word("memory-line-needed", lang, length=length, needed=gib(result.needed_kv_gib)))
    if result.longest_context is not None:
        yield Text(
            word(
                "memory-line-longest",
                lang,
                sure=count(result.longest_context),
                likely=count(result.longest_context_likely or 0),
            )
        )


def _counts(size: Range) -> dict[str, str]:
    return {"low": count(size.low), "high": count(size.high)}


def _changes(result: MemoryEstimate, catalog: Catalog, lang: Language) -> Iterator[Block]:
    word = catalog.word
    if result.alternatives:
        yield Heading(word("memory-heading-changes", lang), "good")
    for number, change in enumerate(result.alternatives, 1):
        price = word(
            "memory-line-price", lang, price=word(f"memory-price-{change.kind}", lang), longest=count(change.longest_context or 0),
            concurrency=f"{change.concurrency or 0:.1f}",
        )  # fmt: skip
        yield Item(
            word(f"memory-change-{change.kind}", lang),
            body=(Command(change.flags), Text(price, "quiet")),
            number=number,
        )
    if result.gpu_total_gib is not None and len(result.tensor_parallel_sizes) > 1:
        yield Heading(word("memory-heading-sizes", lang))
        for size in result.tensor_parallel_sizes:
            key = "memory-line-size-tokens" if size.kv_cache_tokens else "memory-line-size"
            verdict = word(f"memory-word-{size.verdict}", lang)
            yield Text(
                word(
                    key, lang, size=size.tensor_parallel_size, verdict=verdict, tokens=count(size.kv_cache_tokens or 0)
                )
            )


def explained_blocks(found: Explained, catalog: Catalog, lang: Language) -> Iterator[Block]:
    """Where the memory of a real start went, and what changes would do."""
    word = catalog.word
    title = (
        word("memory-explain-title-model", lang, model=found.model)
        if found.model
        else word("memory-explain-title", lang)
    )
    yield Heading(title, "plain", 1)
    if not found.parts:
        yield Text(word("memory-explain-nothing", lang), "unsure")
        return
    if found.total_gib is not None:
        yield Text(bar([(part.name, part.gib) for part in found.parts if part.inside]))
    for part in found.parts:
        key = "memory-explain-line-estimate" if part.estimate_gib is not None else "memory-explain-line"
        values = {"estimate": gib(part.estimate_gib)} if part.estimate_gib is not None else {}
        line = word(
            key,
            lang,
            name=word(f"memory-part-{part.name}", lang),
            value=gib(part.gib),
            origin=word(f"memory-explain-{part.origin}", lang),
            **values,
        )
        yield Text(f"{MARKS[part.name]} {line}")
    if found.missing_gib is not None and found.needed_gib is not None:
        yield Text(
            word("memory-explain-missing", lang, length=count(found.max_model_len or 0), needed=gib(found.needed_gib),
                 available=gib(found.available_gib or 0), missing=gib(found.missing_gib)), "bad",
        )  # fmt: skip
    if found.kv_bytes_per_token:
        yield Text(word("memory-explain-per-token", lang, per=f"{found.kv_bytes_per_token / 1024:.2f}"))
    if found.unexplained_percent is not None and abs(found.unexplained_percent) >= 1:
        yield Text(
            word(
                "memory-explain-unexplained",
                lang,
                percent=f"{found.unexplained_percent:.1f}",
                available=gib(found.available_gib or 0),
            ),
            "unsure",
        )
    if found.changes:
        yield Heading(word("memory-explain-heading-changes", lang))
    elif found.total_gib is None:
        yield Text(word("memory-explain-give-gpu", lang), "unsure")
    for change in found.changes:
        if change.tokens is None or change.concurrency is None:
            yield Text(
                word("memory-explain-change-short", lang, flags=change.flags, available=gib(change.available_gib))
            )
            continue
        yield Text(
            word("memory-explain-change", lang, flags=change.flags, available=gib(change.available_gib), tokens=count(change.tokens),
                 concurrency=f"{change.concurrency:.2f}", length=count(change.length or 0))
        )  # fmt: skip
