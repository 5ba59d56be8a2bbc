"""Traces for OpenTelemetry, where a collector is configured: a span for each request, and in it what took the time.

Spans carry the same closed labels as the metrics, the request's id, and nothing that somebody sent. A caller's
``traceparent`` (W3C Trace Context) is continued.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from assistant.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from assistant.settings import Settings

_EXPORT_S = 5.0


class Tracing:
    """Sends the spans of one server to ``url``, where ``/v1/traces`` is added unless it stands there."""

    def __init__(self, url: str, version: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        endpoint = url if url.endswith("/v1/traces") else url.rstrip("/") + "/v1/traces"
        resource = Resource.create({"service.name": "vllm-diagnose", "service.version": version})
        self._provider: TracerProvider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_S)))
        self._tracer = self._provider.get_tracer("vllm-diagnose", version)

    @contextlib.contextmanager
    def request(self, method: str, headers: Mapping[bytes, bytes], request_id: str) -> Iterator[dict[str, Any]]:
        """A span around one request. What the block puts into the dictionary becomes its attributes."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        given = {name: headers.get(name.encode(), b"").decode("latin-1") for name in ("traceparent", "tracestate")}
        parent = TraceContextTextMapPropagator().extract(given)
        attributes: dict[str, Any] = {"http.request.method": method, "vllm_diagnose.request_id": request_id}
        with self._tracer.start_as_current_span(
            method, context=parent, kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield attributes
            finally:
                span.update_name(f"{method} {attributes.get('http.route', '')}".strip())
                span.set_attributes(attributes)
                if attributes.get("http.response.status_code", 500) >= 500:
                    span.set_status(Status(StatusCode.ERROR))

    def ended(self, name: str, seconds: float, attributes: Mapping[str, str]) -> None:
        """A span of something that has just ended, inside the request that it belongs to."""
        from opentelemetry.trace import get_current_span

        if not get_current_span().get_span_context().is_valid:
            return  # the program's own rounds (looking for jobs, clearing) are no part of anybody's request
        now = time.time_ns()
        span = self._tracer.start_span(name, start_time=now - int(seconds * 1e9), attributes=dict(attributes))
        span.end(now)

    def close(self) -> None:
        """Send what is waiting and end."""
        self._provider.shutdown()


def tracing_of(settings: Settings) -> Tracing | None:
    """What the settings configure; raises :class:`SettingsError` where it cannot be had."""
    url = settings.text("telemetry.otlp_url")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise SettingsError("telemetry.otlp_url must be http://host:port or https://host:port, without a password.")
    from assistant import __version__

    try:
        return Tracing(url, __version__)
    except ImportError:
        raise SettingsError(
            "telemetry.otlp_url is set, but OpenTelemetry is not installed; install vllm-diagnose with its extra telemetry."
        ) from None
