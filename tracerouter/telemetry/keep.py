"""Which traces are kept: a verdict on the finished Record, so that nothing telling is lost to a dice roll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracerouter.types import NANOS

if TYPE_CHECKING:
    from tracerouter.telemetry.record import Record

_TRACE_ID_SPACE = 1 << 56
"""Of a random trace id's 128 bits the last 56 are compared, as W3C Trace Context 2 sets them aside for sampling."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The rules: every error, fallback and refusal, what is slow or dear, and a share of the rest."""

    share: float = 1.0
    """Of the rest, from 0 to 1, by trace id: every replica and service keeps the same ones."""
    slow: float | None = None
    """Seconds from which a request is kept as slow."""
    dear: float | None = None
    """USD from which a request is kept as dear."""

    def why(self, record: Record) -> str | None:
        """Return why the trace is kept (``tracerouter.keep``), or None where it is dropped."""
        timeline = record.timeline
        if timeline.in_host_span and not timeline.flags.sampled:
            return None  # spans without their parents would tell half a story
        if record.error_type is not None:
            return "refusal" if record.outcome == "refused" else "error"
        if record.fallback_from is not None:
            return "fallback"
        if self.slow is not None and record.latency_ms >= self.slow * 1e3:
            return "slow"
        if self.dear is not None and (record.cost_nanos or 0) >= self.dear * NANOS:
            return "dear"
        return "share" if self.in_share(timeline.trace_id) else None

    def in_share(self, trace_id: int) -> bool:
        """Return whether a trace with nothing to tell is kept."""
        return trace_id % _TRACE_ID_SPACE < self.share * _TRACE_ID_SPACE
