"""Which traces are kept: a verdict on the finished Record, so that nothing telling is lost to a dice roll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tracerouter.errors import ConfigError
from tracerouter.types import NANOS

if TYPE_CHECKING:
    from tracerouter.telemetry.record import Record
    from tracerouter.telemetry.timeline import Timeline

_TRACE_ID_SPACE = 1 << 56
"""Of a trace id the last 56 bits are compared, which W3C Trace Context 2 makes random. The high end of them is kept, as
OpenTelemetry's consistent probability sampling does: whoever samples in that way keeps the same traces."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The rules: every error, fallback, refusal and review, what is slow or dear, and a share of the rest.

    Raises:
        ConfigError: A rule is out of its range.
    """

    share: float = 1.0
    """Of the rest, from 0 to 1, by trace id: every replica and service keeps the same ones."""
    slow: float | None = None
    """Seconds from which a request is kept as slow."""
    dear: float | None = None
    """USD from which a request is kept as dear."""
    parent: Literal["honour", "ignore"] | None = None
    """Whether a trace whose parent is not sampled is dropped, whatever came of it. None: only in a service that traces
    itself, whose spans ours would stand without; a caller's ``traceparent`` alone does not decide at a gateway."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            msg = f"keep.share: found {self.share}; it is a share, from 0 (only what is telling) to 1 (everything)"
            raise ConfigError(msg)
        for name in ("slow", "dear"):
            if (getattr(self, name) or 0) < 0:
                msg = f"keep.{name}: found {getattr(self, name)}; it can't be below 0"
                raise ConfigError(msg)
        if self.parent not in {None, "honour", "ignore"}:
            msg = f"keep.parent: found {self.parent!r}; it is `honour` or `ignore`"
            raise ConfigError(msg)

    def why(self, record: Record) -> str | None:
        """Return why the trace is kept (``tracerouter.keep``), or None where it is dropped."""
        if self.left_to_parent(record.timeline):
            return None
        return self._telling(record) or self.of_the_rest(record.timeline.trace_id)

    def left_to_parent(self, timeline: Timeline) -> bool:
        """Return whether the parent is not sampled, and decides."""
        if timeline.parent is None or timeline.flags.sampled:
            return False
        return self.parent == "honour" or (self.parent is None and timeline.in_host_span)

    def of_the_rest(self, trace_id: int) -> str | None:
        """Return why a trace with nothing to tell is kept: ``all`` where nothing was chosen, else ``share``.

        A collector that samples reads the difference: of ``all`` it may still drop.
        """
        if self.share >= 1:
            return "all"
        return "share" if trace_id % _TRACE_ID_SPACE >= (1 - self.share) * _TRACE_ID_SPACE else None

    def _telling(self, record: Record) -> str | None:
        if record.error_type is not None:
            return "refusal" if record.route == "refused" else "error"
        if record.route == "queued":
            return "refusal"  # what runs it later is linked to it
        if record.outcome == "in_review":
            return "review"
        if record.fallback_from is not None:
            return "fallback"
        if self.slow is not None and record.latency_ms >= self.slow * 1e3:
            return "slow"
        return "dear" if self.dear is not None and (record.cost_nanos or 0) >= self.dear * NANOS else None
