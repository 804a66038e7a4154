"""Each fault that we have an alert for, for real: silent before, it fires, is seen, is explained, and is confined.

One test a fault. A later one is added in the same words: what is healthy, what breaks, which alert, which panel, which
reason code, which lines of the runbook.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from tests.e2e.drills.drill import TICKET, Request, above

if TYPE_CHECKING:
    from tests.e2e.drills.conftest import Drills
    from tests.redis_server import RedisServer


def summarize(number: int) -> Request:
    """A request that the cheap model does well."""
    return {"text": f"summarise note {number}"}


def answer(number: int) -> Request:
    """Another, which was mostly asked before."""
    return {"text": f"when does bus {number % 25} leave?"}


def extract(number: int) -> Request:
    """One whose answer is JSON, of which the large model gives more."""
    small, large = '{"total": 7}', '{"total": 7, "currency": "EUR"}'
    return {"text": f"extract order {number} [[small-1=ok {small}, large-1=ok {large}]]"}


def puzzle(number: int) -> Request:
    """One that no rule knows, and the large model gets."""
    return {"text": f"think about riddle {number}"}


async def test_fallback_storm_from_a_schema_change(drill_of: Drills) -> None:
    """A schema asks for more than the cheap model gives: each extraction falls back, until it starts at the top."""
    async with drill_of() as drill, drill.traffic(extract, summarize):
        await drill.calm("FallbackStorm")
        drill.write_schema({**TICKET, "required": ["total", "currency"]})
        await drill.restart()
        drill.inject()
        await drill.fires("FallbackStorm", task="extract", severity="page")
        await drill.panel_shows("FallbackStorm", above(0.3))
        route = await drill.trace_names("schema_invalid")
        assert route.attributes["tracerouter.validation.failures"] == ["required $"]
        await drill.confine("FallbackStorm")
        assert await drill.routes() == {"expensive", "cheap"}


async def test_provider_429s(drill_of: Drills) -> None:
    """The cheap model is out of quota: it is left out of the ladder, and nobody waits for it."""
    async with drill_of() as drill, drill.traffic(summarize, answer):
        await drill.calm("ProviderErrors")
        drill.upstream.default["small-1"] = "429"
        drill.inject()
        await drill.fires("ProviderErrors", model="small", severity="page")
        await drill.panel_shows("ProviderErrors", above(0.5))
        await drill.trace_names("rate_limited")
        await drill.confine("ProviderErrors")
        assert "fallback" not in await drill.routes()


async def test_provider_hang(drill_of: Drills) -> None:
    """The cheap model answers nothing any more: users wait for its time-out, until a shorter one makes it pass."""
    slow = {"small": {"timeout": "11s"}}
    async with drill_of(models=slow) as drill, drill.traffic(summarize, answer):
        await drill.calm("ProviderLatency")
        drill.upstream.default["small-1"] = "hang"
        drill.inject()
        await drill.fires("ProviderLatency", gen_ai_request_model="small-1")
        await drill.panel_shows("ProviderLatency", above(0.5))
        await drill.trace_names("timeout")
        await drill.confine("ProviderLatency")


async def test_expensive_model_down(drill_of: Drills) -> None:
    """Nothing stands behind the last rung: what is sent there fails, until the cheap model may answer alone."""
    async with drill_of() as drill, drill.traffic(summarize, puzzle):
        await drill.calm("RequestsFailing")
        drill.upstream.default["large-1"] = "503"
        drill.inject()
        await drill.fires("RequestsFailing", severity="page")
        await drill.prometheus.firing("ProviderErrors")
        await drill.panel_shows("RequestsFailing", above(0.2))
        await drill.trace_names("no_rung_left", keep="error")
        await drill.confine("RequestsFailing")
        assert await drill.routes() == {"cheap"}


async def test_cost_burn_by_one_tenant(drill_of: Drills) -> None:
    """One tenant of four turns to questions that only the large model gets; its tier confines it to the small one."""
    tenants = ("acme", "globex", "initech", "umbrella")
    keys = [{"key": f"key-of-{name}", "tenant": name, "tier": "free" if name == "acme" else "paid"} for name in tenants]
    prices = {"small": {"price": {"input": 100, "output": 400}}, "large": {"price": {"input": 2500, "output": 9000}}}
    drill = drill_of(models=prices, keys={"file": "keys.json"})
    (drill.folder / "keys.json").write_text(json.dumps(keys))

    def usual(number: int) -> Request:
        return {**summarize(number), "key": f"key-of-{tenants[number % 4]}"}

    def burning(number: int) -> Request:
        return {**puzzle(number), "key": "key-of-acme"} if number % 4 == 0 else usual(number)

    async with drill, drill.traffic(usual):
        await drill.calm("CostBurnTenant")
        drill.kinds = [burning]
        drill.inject()
        await drill.fires("CostBurnTenant", tenant="acme")
        await drill.panel_shows("CostBurnTenant", lambda samples: _most(samples) == "acme")
        await drill.trace_names("abstained", keep="share", tenant="acme")
        await drill.confine("CostBurnTenant")
        assert await drill.routes() == {"cheap"}


def _most(samples: Any) -> str | None:
    return max(samples, key=lambda one: one.value).labels.get("tenant") if samples else None


async def test_cache_collapse_after_a_policy_change(drill_of: Drills) -> None:
    """A new policy keeps nothing any more: what was answered for nothing is paid for, until the line is put back."""
    async with drill_of() as drill, drill.traffic(answer, answer, summarize):
        await drill.calm("CacheCollapse")
        drill.change("policy.yaml", cache={"ttl": "1ms"})
        await drill.restart()
        drill.inject()
        await drill.fires("CacheCollapse")
        await drill.panel_shows("CacheCollapse", lambda samples: any(one.value < 0.1 for one in samples))
        await drill.trace_names("confident", keep="share", **{"cache.status": "stale"})
        await drill.confine("CacheCollapse")
        assert "cached" in await drill.routes()


async def test_classifier_drift(drill_of: Drills) -> None:
    """Suddenly everything is one task: until that is understood, the large model has it."""
    async with drill_of() as drill, drill.traffic(summarize, extract, puzzle):
        await drill.calm("ClassifierDrift", 25)
        drill.kinds = [summarize]
        drill.inject()
        await drill.fires("ClassifierDrift", sign="mix")
        await drill.panel_shows("ClassifierDrift", above(0.25))
        await drill.trace_names("confident", keep="share", label="summarize")
        await drill.confine("ClassifierDrift", resolves=False)  # the mix stays as it is
        assert await drill.routes() == {"expensive"}


async def test_validation_spike(drill_of: Drills) -> None:
    """The cheap model answers prose where JSON is asked for; with the validator off, it is taken as it is."""

    def prose(number: int) -> Request:
        return {
            "text": f"extract order {number} [[small-1=ok It is seven euros., large-1=ok {json.dumps({'total': 7})}]]"
        }

    async with drill_of() as drill, drill.traffic(extract):
        await drill.calm("ValidationFailureSpike")
        drill.kinds = [prose]
        drill.inject()
        await drill.fires("ValidationFailureSpike", validator="json_schema")
        await drill.panel_shows("ValidationFailureSpike", above(0.3))
        await drill.trace_names("schema_invalid")
        await drill.confine("ValidationFailureSpike", which=1)
        assert await drill.routes() == {"cheap"}


async def test_collector_down(drill_of: Drills) -> None:
    """Without the collector requests are answered as before, the decision log tells of them, and a restart ends it."""
    async with drill_of() as drill, drill.traffic(summarize, extract):
        await drill.calm("TelemetryLoss")
        drill.upstream.default["small-1"] = "500"  # so that there is something to look for in the decision log
        await drill.collector.kill()
        drill.inject()
        await drill.fires("TelemetryLoss", sign="down", severity="page")
        await drill.panel_shows("TelemetryLoss", above(0))
        assert await drill.routes() == {"cheap", "fallback"}
        asked = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tracerouter", "trace", "--last", "provider_error", "--config", str(drill.config)),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await asked.communicate()
        assert "answered by fallback: provider_error; small → large: provider_error" in said.decode()
        await drill.collector.start()
        await drill.prometheus.resolved("TelemetryLoss")
        await drill.trace_names("provider_error")


async def test_redis_gone(drill_of: Drills, redis: RedisServer) -> None:
    """Limits can't be checked: the cheap model stands in for the large one, until policy or Redis gives it back."""
    drill = drill_of(store=redis.url)
    async with drill, drill.traffic(summarize, puzzle):
        drill.change("policy.yaml", quotas=[{"per": "tenant", "role": "expensive", "limit": "1000 USD/day"}])
        await drill.restart()
        await drill.prometheus.until("min(tracerouter_ledger_available) == 1")  # a new Redis is waited for, too
        await drill.prometheus.resolved("LedgerUnavailable")
        await drill.calm("LedgerUnavailable")
        assert await drill.routes() == {"cheap", "expensive"}
        await asyncio.to_thread(redis.stop)
        drill.inject()
        await drill.fires("LedgerUnavailable", severity="page")
        await drill.panel_shows("LedgerUnavailable", above(0))
        await drill.trace_names("ledger_unavailable", keep="share")
        assert await drill.routes() == {"cheap"}
        await drill.confine("LedgerUnavailable", resolves=False)
        assert await drill.routes() == {"cheap", "expensive"}
        await asyncio.to_thread(redis.start)
        await drill.prometheus.resolved("LedgerUnavailable")
