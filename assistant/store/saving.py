"""Saving an incident without ever standing between a person and the answer.

Whatever goes wrong (no SQLAlchemy, a full disk, a read-only home, a database that is down or hangs), the caller gets
a :class:`Saved` without an incident and one line that says why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assistant.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from assistant.store.database import Database
    from assistant.store.feedback import Seen


@dataclass(frozen=True, slots=True)
class Saved:
    """The id of what was saved, or None and a sentence. ``seen_before`` are earlier incidents with the same cause."""

    incident_id: str | None
    why: str = ""
    seen_before: tuple[Seen, ...] = ()


def save_incident(
    diagnosis: Mapping[str, Any],
    evidence: Sequence[Any] = (),
    *,
    question: str = "",
    saved_by: str = "unknown",
    settings: Settings | None = None,
) -> Saved:
    """Save a new incident, secrets removed, in at most twice ``store.timeout_s`` and a moment. Never raises.

    ``diagnosis`` and ``evidence`` are JSON-like. A thread does the work, because a dead network file system can hold a
    process for as long as it likes; when time is over the thread is left behind.
    """
    try:
        settings = settings or load()
    except SettingsError as error:
        return Saved(None, f"Not saved: {error.problems[0]}")
    found: list[Saved] = []
    chosen = settings

    def work() -> None:
        found.append(_save(diagnosis, evidence, question, saved_by, chosen))

    thread = threading.Thread(target=work, name="save-incident", daemon=True)
    seconds = settings.number("store.timeout_s") * 2 + 1
    try:
        thread.start()
        thread.join(seconds)
    except RuntimeError as error:  # no further thread can be started
        return Saved(None, f"Not saved: {error}.")
    return found[0] if found else Saved(None, f"Not saved: the database did not answer within {seconds:g} s.")


def _save(
    diagnosis: Mapping[str, Any], evidence: Sequence[Any], question: str, saved_by: str, settings: Settings
) -> Saved:
    try:
        from assistant.store.incidents import Incidents
        from assistant.store.kept import everywhere
        from assistant.store.opening import open_store

        clean = cleaner(settings)
        with open_store(settings) as database:
            incident = Incidents(database).save(
                everywhere(diagnosis, clean),
                everywhere(list(evidence), clean),
                question=clean(question),
                saved_by=saved_by,
            )
            seen = _seen_before(database, diagnosis, incident)
    except ImportError as error:
        return Saved(None, f"Not saved: the package {error.name} is missing.")
    except Exception as error:  # noqa: BLE001  (an answer must come whatever happened here)
        from assistant.store.database import StoreError

        why = str(error) if isinstance(error, StoreError) else f"{type(error).__name__} while saving."
        return Saved(None, f"Not saved: {why}")
    return Saved(incident, seen_before=seen)


def _seen_before(database: Database, diagnosis: Mapping[str, Any], incident: str) -> tuple[Seen, ...]:
    """Earlier incidents with the same cause; what cannot be looked up costs nobody the answer."""
    from assistant.store.database import StoreError
    from assistant.store.feedback import Feedback

    if diagnosis.get("verdict") != "cause":
        return ()
    try:
        return Feedback(database).seen_before(diagnosis["causes"][0]["id"], diagnosis.get("target"), besides=incident)
    except StoreError:
        return ()


def cleaner(settings: Settings) -> Callable[[str], str]:
    """What removes secrets from a text before it is kept, as the settings want it."""
    from tools.redaction import Redactor

    others = settings.yes("redact_addresses")
    return Redactor(addresses=others, emails=others).redact
