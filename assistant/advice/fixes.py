"""Turns the intents of a cause into commands for this version and these numbers."""

from __future__ import annotations

import shlex

from assistant.advice.numbers import NUMBERS
from assistant.diagnosis.model import Advice, Collect, Language
from assistant.diagnosis.truth import Facts, judge
from knowledge.catalog import Catalog
from knowledge.shapes import Cause, Fix, Intent, Spelling
from knowledge.versions import is_between

#: A value that refers to a variable of the person's shell, such as "$HF_TOKEN": left for that shell to fill.
_REFERENCE = '"$'


def advise(cause: Cause, facts: Facts, catalog: Catalog, version: str | None, language: Language) -> tuple[Advice, ...]:
    """The fixes of a cause in order, without those whose condition is known to be false."""
    fixes = []
    for fix in cause.fixes:
        if fix.only_if is not None and judge(fix.only_if, facts).truth is False:
            continue
        fixes.append(_render(fix, catalog.intents[fix.intent], cause, facts, catalog, version, language))
    return tuple(fixes)


def collect_first(cause: Cause, catalog: Catalog, language: Language) -> tuple[Collect, ...]:
    """What a restart would destroy, for this cause."""
    intents = [catalog.intents[name] for name in cause.collect]
    return tuple(Collect(i.action[language] if i.action else i.title[language], i.command) for i in intents)


def _render(
    fix: Fix, intent: Intent, cause: Cause, facts: Facts, catalog: Catalog, version: str | None, language: Language
) -> Advice:
    value = _value(fix.value if fix.value is not None else intent.value, facts)
    spelling = _spelling(intent, version)
    title, command, undo, flags = intent.title[language], intent.command, None, ()  # type: tuple[str, str | None, str | None, tuple[str, ...]]
    if spelling is not None:
        flags = (spelling.flag,)
        if value is not None:
            command = f"{spelling.flag} {_quote(value)}"
        else:  # a flag whose value nobody knows here is named, but there is nothing to copy
            command = spelling.flag if _is_switch(intent) else None
        title = catalog.word("add-argument", language, title=title)
        undo = catalog.word("undo-argument", language, flag=spelling.flag)
    elif intent.variable is not None and is_between(version, intent.since, intent.until):
        command = f"export {intent.variable}={_quote(value or '')}"
        title = catalog.word("set-variable", language, title=title)
        undo = catalog.word("undo-variable", language, name=intent.variable)
    elif intent.spelled or intent.variable:
        name, since = (
            (intent.spelled[0].flag, intent.spelled[0].since) if intent.spelled else (intent.variable, intent.since)
        )
        title = catalog.word("version-lacks", language, title=title, version=version or "?", name=name, since=since)
    why = fix.why[language]
    if intent.action is not None:
        why = f"{why} {intent.action[language]}" if language == "en" else f"{why}{intent.action[language]}"
    price = fix.price or intent.price
    return Advice(
        title=title,
        why=why,
        command=command,
        flags=flags,
        expected=cause.check[language],
        trade_off=price[language] if price else None,
        impact=fix.impact,
        undo=intent.undo[language] if intent.undo else undo,
        work_around=intent.work_around,
    )


def _is_switch(intent: Intent) -> bool:
    """An argument without any value to give, such as one that only turns something on."""
    return intent.value is None and intent.argument in {
        "enforce_eager", "trust_remote_code", "disable_custom_all_reduce", "enable_auto_tool_choice", "enable_lora",
        "enable_prefix_caching", "enable_expert_parallel", "enable_chunked_prefill", "disable_sliding_window",
        "disable_hybrid_kv_cache_manager", "enable_log_requests", "enable_sleep_mode",
    }  # fmt: skip


def _spelling(intent: Intent, version: str | None) -> Spelling | None:
    fitting = [s for s in intent.spelled if is_between(version, s.since, s.until)]
    return fitting[-1] if fitting else None


def _value(value: str | None, facts: Facts) -> str | None:
    """The literal, or the result of the named calculation; ``None`` where its inputs are unknown."""
    if value is None:
        return None
    calculation = NUMBERS.get(value)
    return calculation(facts) if calculation is not None else str(value)


def _quote(value: str) -> str:
    """One shell word. References to variables stay references; everything else is quoted as it needs."""
    if value.startswith(_REFERENCE) and value.endswith('"') and value[2:-1].replace("_", "").isalnum():
        return value
    return shlex.quote(value)
