"""A group of alerts as one message, its sentences from the knowledge, drawn from blocks as everything is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from assistant.alerts.board import Held
from assistant.alerts.channels import AlertMessage, moment
from assistant.alerts.groups import Found, Group, Row, worst
from assistant.render.blocks import Block, Command, Heading, Item, Text
from assistant.render.markdown import to_markdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from knowledge.catalog import Catalog

Language = Literal["en", "zh"]
#: Targets and groups that one message names.
_MOST_ROWS = 20


def group_message(held: Held, catalog: Catalog, language: Language, url: Callable[[str], str]) -> AlertMessage:
    """The message about one group as it is now; ``url`` completes a path to an address."""
    group = held.group
    ended = moment(group.resolved_ms) if group.over and group.resolved_ms else None
    event: Literal["opened", "updated", "resolved"] = (
        "resolved" if ended else "updated" if any(sent.version for sent in group.channels.values()) else "opened"
    )
    title = _title(group, catalog, language)
    link = url(f"/incidents/{held.incident}" if held.incident else f"/v1/alerts/{held.id}")
    blocks = tuple(_blocks(group, title, link, catalog, language))
    return AlertMessage(
        id=held.id,
        event=event,
        title=title,
        blocks=blocks,
        text=to_markdown(blocks),
        url=link,
        incident=held.incident,
        started=moment(group.started_ms),
        ended=ended,
        data={"event": event, "title": title, "url": link, "text": to_markdown(blocks), **group_json(held)},
    )


def rest_message(held: Sequence[Held], catalog: Catalog, language: Language, url: Callable[[str], str]) -> AlertMessage:
    """One message for all groups that get none of their own: how many, and the gravest by name."""
    alerts = sum(len(one.group.keys) + one.group.more for one in held)
    title = catalog.word("alert-rest", language, groups=len(held), alerts=alerts)
    link = url("/v1/alerts")
    blocks: list[Block] = [Heading(title, "bad", 1), Text(catalog.word("alert-rest-why", language))]
    blocks += [Item(_title(one.group, catalog, language)) for one in held[:_MOST_ROWS]]
    blocks.append(Text(catalog.word("alert-list", language, url=link), "quiet"))
    started = moment(min(one.group.started_ms for one in held))
    text = to_markdown(blocks)
    data = {
        "event": "rest",
        "title": title,
        "url": link,
        "text": text,
        "count": {"groups": len(held), "alerts": alerts},
        "groups": [one.id for one in held[:1000]],
    }
    return AlertMessage(held[0].id, "rest", title, tuple(blocks), text, link, None, started, None, data)


def group_json(held: Held) -> dict[str, Any]:
    """A group for programs: the alerts, the table of targets, and what changed since it began."""
    group = held.group
    return {
        "id": held.id,
        "incident": held.incident,
        "state": "resolved" if group.over else "firing",
        "alertname": group.title,
        "started": moment(group.started_ms).isoformat(timespec="milliseconds"),
        "ended": moment(group.resolved_ms).isoformat(timespec="milliseconds")
        if group.over and group.resolved_ms
        else None,
        "count": {"alerts": len(group.keys) + group.more, "firing": group.firing, "targets": len(group.targets)},
        "targets": [
            {
                "target": name or None,
                "alerts": list(row.alerts),
                "found": _found(row.found),
                "after": _found(row.after),
            }
            for name, row in _sorted(group)
        ],
        "alerts": [{"key": key, **shown} for key, shown in group.shown.items()],
        "announced": group.announced or None,
        "not_sent": {name: sent.error for name, sent in group.channels.items() if sent.error},
    }


def _found(found: Found | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "verdict": found.verdict,
        "cause": found.cause,
        "title": found.title,
        "confidence": found.confidence,
        "summary": found.summary,
    }


def _sorted(group: Group) -> list[tuple[str, Row]]:
    def key(entry: tuple[str, Row]) -> tuple[Any, ...]:
        found = entry[1].found
        return (found.rank if found else (9, 9, 0.0), entry[0])

    return sorted(group.targets.items(), key=key)


def _title(group: Group, catalog: Catalog, language: Language) -> str:
    name = worst(group)
    found = group.targets[name].found if name is not None else None
    said = (found.title or found.summary) if found is not None else ""
    where = name if name and len(group.targets) == 1 else ""
    kind = "resolved" if group.over else "firing"
    what = f"{group.title} · {where}" if where else group.title
    if not said:
        return catalog.word(f"alert-{kind}-bare", language, alert=what)
    return catalog.word(f"alert-{kind}", language, alert=what, cause=said.rstrip("。."))


def _blocks(group: Group, title: str, link: str, catalog: Catalog, language: Language) -> list[Block]:
    word = catalog.word
    blocks: list[Block] = [Heading(title, "good" if group.over else "bad", 1)]
    total = len(group.keys) + group.more
    if group.over and group.resolved_ms is not None:
        minutes = max(1, round((group.resolved_ms - group.started_ms) / 60_000))
        blocks.append(Text(word("alert-over", language, alerts=total, minutes=minutes)))
    else:
        blocks.append(Text(word("alert-count", language, alerts=total, firing=group.firing)))
    rows = _sorted(group)
    if len(rows) > 1 or rows and rows[0][0]:
        blocks.append(Heading(word("heading-targets", language)))
    for name, row in rows[:_MOST_ROWS]:
        said: list[Block] = []
        if row.found is not None and row.found.summary:
            said.append(Text(row.found.summary))
        if row.after is not None and row.found is not None:
            same = row.after.cause == row.found.cause and row.after.verdict == row.found.verdict
            key = "alert-after-same" if same else "alert-after"
            said.append(Text(word(key, language, now=row.after.summary), "unsure" if same else "good"))
        blocks.append(Item(name or word("alert-no-target", language), row.alerts, tuple(said)))
    if len(rows) > _MOST_ROWS:
        blocks.append(Text(word("alert-more-targets", language, n=len(rows) - _MOST_ROWS), "quiet"))
    if group.fix and not group.over:
        blocks.append(Heading(word("heading-fixes", language), "good"))
        command = group.fix.get("command")
        body: tuple[Block, ...] = (Text(str(group.fix["why"])), *((Command(str(command)),) if command else ()))
        impact = word(f"label-impact-{group.fix['impact']}", language)
        blocks.append(Item(str(group.fix["title"]), (impact,), body, 1))
    blocks.append(Text(word("alert-more", language, url=link), "quiet"))
    return blocks
