"""An incident as a bug report for vLLM, in the order of its template, with what is known filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from assistant.diagnosis.model import Diagnosis
from assistant.render.markdown import fence
from knowledge.catalog import Catalog

#: Lines of evidence that a report quotes.
_MOST_QUOTES = 40


def bug_report(diagnosis: Diagnosis, environment: Mapping[str, Any], catalog: Catalog) -> str:
    """Markdown with the sections of vLLM's template: environment, description, before submitting.

    It is in English whatever was asked in: that is the language of vLLM's tracker.
    """

    def word(key: str, **values: object) -> str:
        return catalog.word(f"report-{key}", "en", **values)

    first = diagnosis.causes[0] if diagnosis.causes else None
    quotes = first.because if first is not None else ()
    parts = [
        f"# {word('title', what=first.title if first is not None else diagnosis.summary)}",
        f"## {word('environment')}",
        word("version", version=diagnosis.vllm_version or diagnosis.version_label or "?"),
        fence(json.dumps(environment.get("facts", {}), ensure_ascii=False, indent=1, sort_keys=True)),
        word("collect"),
        fence("python -m vllm.collect_env"),
        f"## {word('bug')}",
        diagnosis.case.text if diagnosis.case is not None and diagnosis.case.text else word("no-words"),
    ]
    if quotes:
        parts += [word("evidence"), fence("\n".join(_line(quote) for quote in quotes[:_MOST_QUOTES]))]
    if first is not None:
        key = "found" if diagnosis.verdict == "cause" else "guess"
        parts.append(word(key, cause=first.id, percent=min(99, round(first.confidence * 100))))
    parts += [f"## {word('before')}", f"- [ ] {word('searched')}"]
    return "\n\n".join(parts) + "\n"


def _line(quote: Any) -> str:
    where = f"{quote.source}:{quote.line}" if quote.line is not None else str(quote.source)
    return f"{where}: {quote.text}"
