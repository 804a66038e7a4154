"""Which traces are kept, and why."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace._sampling_experimental import composable_traceid_ratio_based, composite_sampler
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from tests.gateway import Seen
from tests.unit.test_router import Rig, Rows, rig
from tracerouter.errors import ConfigError
from tracerouter.telemetry import Keep, Telemetry
from tracerouter.types import Caller, Task

TRACE_ID = st.integers(1, (1 << 128) - 1)


def rig_with(keep: Keep, *models: Any) -> Rig:
    with_models = rig(*models)
    with_models.router.telemetry = Telemetry(
        span_processors=[with_models.seen], decisions=with_models.rows, keep=keep, secret=b"x"
    )
    return with_models


async def kept(keep: Keep, *models: Any, **facts: Any) -> str | None:
    """Route one request; return why its trace was kept, which its spans must agree with."""
    with_models = rig_with(keep, *(models or ("fine",)))
    outcome = await with_models.router.route(Task.chat("hello", **facts))
    assert bool(with_models.seen.spans) == (outcome.keep is not None)
    if with_models.seen.spans:
        assert (with_models.seen.spans[-1].attributes or {})["tracerouter.keep"] == outcome.keep
    assert len(with_models.rows.rows) == 1  # a row is written, whatever becomes of the trace
    return outcome.keep


@pytest.mark.parametrize(
    ("keep", "models", "facts", "why"),
    [
        (Keep(share=0), (), {}, None),
        (Keep(share=1), (), {}, "all"),
        (Keep(share=0), ("lost", "lost"), {}, "error"),
        (Keep(share=0), ("lost", "fine"), {}, "fallback"),
        (Keep(share=0), ("I can't help with that.", "fine"), {}, "fallback"),
        (Keep(share=0), (), {"model": "large", "caller": Caller(tier="free")}, "refusal"),
        (Keep(share=0, slow=0.0), (), {}, "slow"),
        (Keep(share=0, slow=60.0), (), {}, None),
        (Keep(share=0, dear=1e-7), (), {}, "dear"),
        (Keep(share=0, dear=1e-6), (), {}, None),
        (Keep(share=1, slow=0.0, dear=0.0), ("lost", "lost"), {}, "error"),
        (Keep(share=1, slow=0.0, dear=0.0), ("lost", "fine"), {}, "fallback"),
        (Keep(share=1, slow=0.0, dear=0.0), (), {}, "slow"),
        (Keep(share=1, dear=0.0), (), {}, "dear"),
    ],
)
async def test_each_rule(keep: Keep, models: tuple[str, ...], facts: dict[str, Any], why: str | None) -> None:
    """Every error, refusal and fallback is kept, what is slow or dear, and a share; the first rule to hold is told."""
    assert await kept(keep, *models, **facts) == why


async def test_a_cancelled_request_is_kept() -> None:
    """A request whose caller went away is an error to look at."""
    with_models = rig_with(Keep(share=0), "hang")
    routing = asyncio.create_task(with_models.router.route(Task.chat("hello")))
    await with_models.small.started.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    assert (with_models.seen.spans[-1].attributes or {})["tracerouter.keep"] == "error"


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_hosts_sampling_is_honoured(*, sampled: bool) -> None:
    """Under a span of the host's own that is not exported, nothing is kept, not even an error; else the rules hold."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else 0)
    host = NonRecordingSpan(SpanContext(random.getrandbits(128), 7, is_remote=False, trace_flags=flags))
    with trace.use_span(host):
        assert await kept(Keep(share=0), "lost", "lost") == ("error" if sampled else None)


async def test_a_callers_sampling_decides_where_it_is_honoured() -> None:
    """An unsampled remote parent drops a trace only under `honour`; a host's own one unless it says `ignore`."""
    for remote, parent, found in (
        (True, None, "error"),
        (True, "honour", None),
        (True, "ignore", "error"),
        (False, None, None),
        (False, "honour", None),
        (False, "ignore", "error"),
    ):
        above = NonRecordingSpan(SpanContext(random.getrandbits(128), 7, is_remote=remote, trace_flags=TraceFlags(0)))
        with trace.use_span(above):
            assert await kept(Keep(share=0, parent=parent), "lost", "lost") == found  # type: ignore[arg-type]


async def test_a_sampled_parent_leaves_the_verdict_to_the_rules() -> None:
    """Honouring a parent drops what it does not sample; what it samples is judged like any other."""
    above = NonRecordingSpan(SpanContext(1 << 55, 7, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    with trace.use_span(above):
        assert await kept(Keep(share=0, parent="honour")) is None
        assert await kept(Keep(share=1, parent="honour")) == "all"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"share": 1.5}, "keep.share: found 1.5"),
        ({"share": -0.1}, "keep.share"),
        ({"share": float("nan")}, "keep.share"),
        ({"slow": -1.0}, "keep.slow: found -1.0"),
        ({"dear": -1.0}, "keep.dear"),
        ({"parent": "maybe"}, "keep.parent: found 'maybe'"),
    ],
)
def test_a_rule_out_of_range_is_an_error(rule: dict[str, Any], said: str) -> None:
    """A share outside 0-1, a negative limit, an unknown word: an error that names the rule."""
    with pytest.raises(ConfigError, match=said):
        Keep(**rule)


@given(TRACE_ID, st.floats(0, 1), st.floats(0, 1))
def test_the_share_is_by_trace_id(trace_id: int, one: float, other: float) -> None:
    """The same trace is kept everywhere, and whatever a smaller share keeps a larger one keeps too."""
    small, large = sorted([one, other])
    assert in_share(small, trace_id) <= in_share(large, trace_id)
    assert in_share(1, trace_id)
    assert not in_share(0, trace_id)
    assert in_share(one, trace_id) == in_share(one, trace_id % (1 << 56))  # W3C's random bits


@given(TRACE_ID, st.sampled_from([0.0, 0.05, 0.25, 0.5, 0.9, 1.0]))
def test_the_share_is_that_of_opentelemetrys_sampler(trace_id: int, share: float) -> None:
    """A service that samples consistently, as OpenTelemetry's own sampler does, keeps the same traces."""
    sampler = composite_sampler(composable_traceid_ratio_based(share))
    sampled = sampler.should_sample(None, trace_id, "route").decision is Decision.RECORD_AND_SAMPLE
    assert in_share(share, trace_id) == sampled


def in_share(share: float, trace_id: int) -> bool:
    return Keep(share=share).of_the_rest(trace_id) is not None


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
def test_the_share_is_met(share: float) -> None:
    """Of many random traces about the share is kept: within five standard deviations."""
    draw = random.Random(7).getrandbits
    number = 20_000
    found = sum(in_share(share, draw(128)) for _ in range(number))
    assert abs(found - number * share) < 5 * (number * share * (1 - share)) ** 0.5


async def test_a_dropped_trace_has_a_row_without_stages() -> None:
    """The decision log tells every request, and the stages of those that are kept."""

    class Stages(Rows):
        stages: list[Any]

        def append(self, row: Any, timeline: Any) -> bool:
            self.stages = [*getattr(self, "stages", []), timeline]
            return super().append(row, timeline)

    for share, told in ((0.0, False), (1.0, True)):
        rows = Stages()
        with_models = rig("fine", telemetry=Telemetry(keep=Keep(share=share), decisions=rows, span_processors=[Seen()]))
        await with_models.router.route(Task.chat("hello"))
        assert (rows.stages[0] is not None) == told
