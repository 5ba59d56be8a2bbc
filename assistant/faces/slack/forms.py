"""The forms: for a new question, for more details, for an answer in one's own words. And what comes back from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.elements import MOST_OPTION, Piece, cut, entry, field, form, option, select

if TYPE_CHECKING:
    from assistant.service import Service

ASK, MORE, VALUE = "ask", "more", "value"
_FIELDS = ("text", "log", "target", "version")


def ask_form(service: Service, lang: str, metadata: Mapping[str, Any]) -> Piece:
    """The form that the command without words opens."""
    word = service.catalog.word
    blocks = _about(service, lang)
    names = sorted(service.targets)
    if names:
        menu = select(
            "value", word("slack-form-target-hint", lang), [option(n, n) for n in names if len(n) <= MOST_OPTION]
        )
        blocks.append(entry("target", word("slack-form-target", lang), menu))
    version = field("0.11.0", most=80)
    blocks.append(entry("version", word("slack-form-version", lang), version))
    return _form(service, ASK, "slack-form-title", "slack-form-submit", lang, blocks, metadata)


def more_form(service: Service, lang: str, metadata: Mapping[str, Any]) -> Piece:
    """The form for more about an incident."""
    return _form(service, MORE, "slack-form-details", "slack-form-send", lang, _about(service, lang), metadata)


def value_form(service: Service, lang: str, question: str, metadata: Mapping[str, Any]) -> Piece:
    """The form for an answer that is no choice."""
    declared = service.catalog.observable(question)
    label = declared.ask["zh" if lang == "zh" else "en"] if declared is not None and declared.ask else question
    blocks = [entry("text", cut(label, 2000), field(most=150), optional=False)]
    return _form(service, VALUE, "slack-form-answer", "slack-form-send", lang, blocks, metadata)


def _about(service: Service, lang: str) -> list[Piece]:
    word = service.catalog.word
    return [
        entry(
            "text",
            word("slack-form-text", lang),
            field(lines=True),
            hint=word("slack-form-text-hint", lang),
        ),
        entry(
            "log",
            word("slack-form-log", lang),
            field(lines=True),
            hint=word("slack-form-log-hint", lang),
        ),
    ]


def _form(
    service: Service,
    callback: str,
    title: str,
    submit: str,
    lang: str,
    blocks: list[Piece],
    metadata: Mapping[str, Any],
) -> Piece:
    word = service.catalog.word
    return form(
        callback,
        word(title, lang),
        word(submit, lang),
        word("slack-form-close", lang),
        blocks,
        json.dumps({**metadata, "lang": lang}),
    )


def filled(view: Mapping[str, Any]) -> dict[str, str]:
    """What was typed or chosen, by field."""
    found: dict[str, str] = {}
    state = view.get("state") or {}
    for name, elements in (state.get("values") or {}).items():
        for element in elements.values():
            value = element.get("value")
            if value is None and element.get("selected_option"):
                value = element["selected_option"].get("value")
            if isinstance(value, str) and name in _FIELDS:
                found[name] = value
    return found


def metadata_of(view: Mapping[str, Any]) -> dict[str, Any]:
    """What the form was opened with; raises ``ValueError`` where it is not ours."""
    found = json.loads(str(view.get("private_metadata") or ""))
    if not isinstance(found, dict):
        raise ValueError("no metadata of ours")
    return found
