"""What a check has found, as something to decide by: its facts, and what the processes that it looked at have printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assistant.readers import Ask
from tools import registry
from tools.registry import ActionError
from tools.sanity.results import Report, reading_of

if TYPE_CHECKING:
    from assistant.store.jobs import Job


def found_by(job: Job) -> Ask | None:
    """What a job found out about an incident; None where it is not done, belongs to none, or its tool states no facts."""
    if job.state != "done" or job.incident is None or not isinstance(job.result, Mapping):
        return None
    try:
        model = registry.get(job.action).output_model
    except ActionError:
        return None  # this server was started without the tool
    if not issubclass(model, Report):
        return None
    report: Any = model.model_validate(job.result)
    printed = str(getattr(report, "log", ""))
    if not report.facts and not printed.strip():
        return None
    logs = ((report.tool, printed.encode("utf-8", "replace")),) if printed.strip() else ()
    return Ask(logs=logs, readings=(reading_of([report]),))
