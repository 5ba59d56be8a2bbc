"""What Alertmanager sends (webhook version 4), and what of it is kept.

A real body, from Alertmanager 0.25: ``{"version": "4", "groupKey": "{}:{alertname=\\"X\\"}", "truncatedAlerts": 0,
"status": "firing", "receiver": "diagnose", "groupLabels": {…}, "commonLabels": {…}, "commonAnnotations": {…},
"externalURL": "http://…", "alerts": [{"status": "firing", "labels": {…}, "annotations": {…},
"startsAt": "2026-11-21T10:00:00Z", "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "http://…",
"fingerprint": "9a8b…"}]}``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tools.redaction import clean, redact

Status = Literal["firing", "resolved"]
#: Alerts of one webhook that are looked at, labels of one alert, and characters of one text that are kept.
MOST_ALERTS, MOST_LABELS, MOST_TEXT = 5000, 50, 400

Time = Annotated[str, Field(pattern=r"^[0-9TZtz:.+-]{10,40}$", examples=["2026-11-21T10:00:00Z"])]
Texts = dict[str, str]
EXAMPLE: dict[str, Any] = {
    "version": "4",
    "groupKey": '{}:{alertname="VllmKvCacheFull"}',
    "status": "firing",
    "receiver": "vllm-diagnose",
    "groupLabels": {"alertname": "VllmKvCacheFull"},
    "commonLabels": {"alertname": "VllmKvCacheFull", "instance": "gpu1:8000", "severity": "warning"},
    "commonAnnotations": {"summary": "The KV cache of gpu1:8000 is full."},
    "externalURL": "http://alertmanager:9093",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "VllmKvCacheFull", "instance": "gpu1:8000", "severity": "warning"},
            "annotations": {"summary": "The KV cache of gpu1:8000 is full."},
            "startsAt": "2026-11-21T10:00:00Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "fingerprint": "9a8b7c6d5e4f3021",
        }
    ],
}


class AlertIn(BaseModel):
    """One alert. Fields that are not named here are left alone."""

    model_config = ConfigDict(strict=True)

    status: Status
    labels: Texts
    annotations: Texts = {}
    startsAt: Time  # noqa: N815 (Alertmanager's spelling)
    endsAt: Time | None = None  # noqa: N815
    generatorURL: str = ""  # noqa: N815
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{1,64}$")]


class WebhookIn(BaseModel):
    """A notification of Alertmanager, webhook version 4."""

    model_config = ConfigDict(strict=True, json_schema_extra={"examples": [EXAMPLE]})

    version: Literal["4"]
    groupKey: Annotated[str, Field(min_length=1)]  # noqa: N815
    status: Status
    receiver: str = ""
    truncatedAlerts: Annotated[int, Field(ge=0, le=2**53)] = 0  # noqa: N815
    groupLabels: Texts = {}  # noqa: N815
    commonLabels: Texts = {}  # noqa: N815
    commonAnnotations: Texts = {}  # noqa: N815
    externalURL: str = ""  # noqa: N815
    alerts: list[AlertIn]


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert as it is kept: texts bounded, redacted and free of control characters.

    ``key`` names this very firing: the fingerprint and the start together.
    """

    key: str
    status: Status
    name: str
    labels: Mapping[str, str]
    summary: str
    starts_at: str
    ends_at: str


@dataclass(frozen=True, slots=True)
class Notice:
    """One webhook: the group by a digest of its key, its alerts, and how many more there were."""

    group: str
    title: str
    alerts: tuple[Alert, ...]
    more: int


def notice_of(given: WebhookIn) -> Notice:
    """What is kept of a webhook."""
    group = hashlib.sha256(f"{given.receiver}\n{given.groupKey}".encode("utf-8", "replace")).hexdigest()[:32]
    labels = _texts(given.groupLabels or given.commonLabels)
    title = labels.get("alertname") or ", ".join(f"{name}={value}" for name, value in list(labels.items())[:4])
    taken = given.alerts[:MOST_ALERTS]
    first = _text(taken[0].labels.get("alertname", "")) if taken else ""
    more = given.truncatedAlerts + len(given.alerts) - len(taken)
    return Notice(group, title or first, tuple(_alert(alert) for alert in taken), more)


def _alert(given: AlertIn) -> Alert:
    notes = given.annotations
    return Alert(
        key=hashlib.sha256(f"{given.fingerprint.lower()}\n{given.startsAt}".encode()).hexdigest()[:24],
        status=given.status,
        name=_text(given.labels.get("alertname", "")) or "alert",
        labels=_texts(given.labels),
        summary=_text(notes.get("summary") or notes.get("message") or notes.get("description") or ""),
        starts_at=given.startsAt,
        ends_at=given.endsAt or "",
    )


def _texts(given: Mapping[str, str]) -> dict[str, str]:
    return {_text(name)[:100]: _text(value) for name, value in list(given.items())[:MOST_LABELS]}


def _text(given: str) -> str:
    """One line that may be shown."""
    return redact(clean(" ".join(given[: MOST_TEXT * 2].split())))[:MOST_TEXT]
