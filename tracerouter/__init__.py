"""Observability-first LLM routing for aiohttp: cheap first, validated, escalated with a reason, every step traced.

router = tracerouter.load("tracerouter.yaml")
outcome = await router.route(Task.chat("What does VAT stand for?"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracerouter.errors import BadRequest, ConfigError, ProviderError, TracerouterError
from tracerouter.types import (
    Caller,
    Check,
    Classification,
    Completion,
    Cost,
    Failure,
    Freshness,
    Outcome,
    Reason,
    Status,
    Task,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

    from tracerouter.router import Router

__all__ = [
    "BadRequest",
    "Caller",
    "Check",
    "Classification",
    "Completion",
    "ConfigError",
    "Cost",
    "Failure",
    "Freshness",
    "Outcome",
    "ProviderError",
    "Reason",
    "Status",
    "Task",
    "TracerouterError",
    "Usage",
    "load",
]


def load(
    path: str | Path, *, span_processors: Sequence[SpanProcessor] = (), resource: Resource | None = None
) -> Router:
    """Build a router from ``tracerouter.yaml``; close it with ``await router.close()``.

    Args:
        path: The file.
        span_processors: Of a service that has a TracerProvider of its own: they take our spans, and no exporter of ours
            does. Its parents' sampling is honoured, unless ``telemetry.keep.parent`` says otherwise.
        resource: That provider's, so that our spans name the same process.

    Raises:
        ConfigError: Names file, line, key, what was found, and the nearest right name.
    """
    from tracerouter import config  # noqa: PLC0415 - it knows every concrete class, which costs half a second

    return config.load(Path(path), span_processors=span_processors, resource=resource).router
