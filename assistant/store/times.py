"""Times as the store keeps them and as people and programs read them."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(at_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
