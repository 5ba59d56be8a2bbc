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
    """What a job found out; None where it is not done or has nothing to decide by."""
    if job.state != "done":
        return None
    return found_in(job.action, job.result)


def found_in(action: str, result: Any) -> Ask | None:
    """The facts in the result of an action, as its model dumps it; None where it states none."""
    try:
        model = registry.get(action).output_model
    except ActionError:
        return None  # this server was started without the tool
    if not issubclass(model, Report) or not isinstance(result, Mapping):
        return None
    report: Any = model.model_validate(result)
    printed = str(getattr(report, "log", ""))
    if not report.facts and not printed.strip():
        return None
    logs = ((report.tool, printed.encode("utf-8", "replace")),) if printed.strip() else ()
    return Ask(logs=logs, readings=(reading_of([report]),))
