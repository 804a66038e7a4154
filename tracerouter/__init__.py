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


def load(path: str | Path) -> Router:
    """Build a router from ``tracerouter.yaml``; close it with ``await router.close()``.

    Raises:
        ConfigError: Names file, line, key, what was found, and the nearest right name.
    """
    from tracerouter import config  # noqa: PLC0415 - it knows every concrete class, which costs half a second

    return config.load(Path(path)).router
