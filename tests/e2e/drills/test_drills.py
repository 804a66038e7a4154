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
from tests.upstream import Upstream
from tracerouter.telemetry import names

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


def vector(number: int) -> Request:
    """One for embeddings."""
    return {"input": f"note {number}"}


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


async def test_classifier_model_hangs(drill_of: Drills) -> None:
    """The model that sorts what no rule knows says nothing more: it all goes to the large one, until another sorts."""
    label = f"ok {json.dumps({'label': 'answer', 'confidence': 0.9})}"
    sorted_by_model = {"models": {"sorter": {"model": "sorter-1"}}, "classifier": ["rules", {"llm": "sorter"}]}
    async with drill_of(**sorted_by_model) as drill, drill.traffic(summarize, puzzle):
        drill.upstream.default |= {"sorter-1": label, "large-1": label}
        await drill.calm("ClassifierFailing")
        assert await drill.routes() == {"cheap"}
        drill.upstream.default["sorter-1"] = "hang"
        drill.inject()
        await drill.fires("ClassifierFailing", severity="ticket")
        await drill.panel_shows("ClassifierFailing", above(0.2))
        assert not await drill.prometheus.alerts("ProviderErrors")
        assert await drill.prometheus.query('tracerouter_attempts_total{model="sorter", error_type="timeout"}')
        route = await drill.trace_names("abstained", keep="share")
        failed = {span.name: span for span in drill.sink.traces[route.trace_id] if span.failed}
        assert failed.keys() == {"classify", "chat sorter-1"}
        assert {span.attributes[names.ERROR_TYPE] for span in failed.values()} == {"timeout"}
        assert await drill.routes() == {"cheap", "expensive"}
        await drill.confine("ClassifierFailing")
        assert await drill.routes() == {"cheap"}


async def test_embeddings_down(drill_of: Drills) -> None:
    """Nothing can stand in for a model that embeds: its requests fail, until the same model is asked elsewhere."""
    async with Upstream() as elsewhere, drill_of() as drill, drill.traffic(summarize, vector):
        await drill.calm("ProviderErrors")
        drill.upstream.default["embed-1"] = "503"
        drill.inject()
        await drill.fires("ProviderErrors", model="embed", severity="page")
        await drill.prometheus.firing("RequestsFailing")
        await drill.panel_shows("ProviderErrors", above(0.5, model="embed"))
        route = await drill.trace_names("no_rung_left", keep="error", label="embeddings")
        (call,) = (span for span in drill.sink.traces[route.trace_id] if span.name == "embeddings embed-1")
        assert (call.failed, call.attributes[names.ERROR_TYPE]) == (True, "provider_error")
        drill.change("tracerouter.yaml", models={"embed": {"base_url": elsewhere.url}})  # as the runbook says
        await drill.restart()
        await drill.prometheus.resolved("ProviderErrors")
        assert elsewhere.requests


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


async def test_a_tenants_budget_is_used_up(drill_of: Drills) -> None:
    """A tenant spends its budget: its users are refused and others served, until the limit is raised."""
    keys = [{"key": f"key-of-{name}", "tenant": name} for name in ("acme", "globex")]
    dear = {"price": {"input": 100, "output": 400}}
    drill = drill_of(models={"small": dear, "large": dear}, keys={"file": "keys.json"})
    (drill.folder / "keys.json").write_text(json.dumps(keys))

    def usual(number: int) -> Request:
        return {**summarize(number), "key": "key-of-globex"}

    def spending(number: int) -> Request:
        return {**summarize(number), "key": "key-of-acme"}

    async with drill:
        drill.change("policy.yaml", quotas=[{"per": "tenant", "tenant": "acme", "limit": "1 USD/month"}])
        await drill.restart()
        async with drill.traffic(usual):
            await drill.calm("BudgetExhaustion")
            drill.kinds = [usual, spending]
            drill.inject()
            await drill.fires("BudgetExhaustion", sign="nearly_used_up", tenant="acme", period="month")
            await drill.panel_shows("BudgetExhaustion", above(0.9, tenant="acme"))
            await drill.prometheus.until('ALERTS{alertname="BudgetExhaustion", sign="refused", alertstate="firing"}')
            await drill.panel_shows("BudgetExhaustion", above(0.05, scope="acme tenant 1 USD/month"))
            route = await drill.trace_names("budget_exhausted", keep="refusal", tenant="acme")
            (quota,) = (span for span in drill.sink.traces[route.trace_id] if span.name == "quota")
            assert quota.attributes[names.QUOTA_SCOPE] == "acme tenant 1 USD/month"
            assert quota.attributes[names.QUOTA_ACTION] == "refuse"
            assert quota.attributes[names.QUOTA_HEADROOM] < 0.1
            assert await drill.routes() == {"cheap", "refused"}
            await drill.confine("BudgetExhaustion")
            assert await drill.routes() == {"cheap"}


async def test_review_backlog(drill_of: Drills) -> None:
    """More contracts come than people can look at: with the line they see fewer, and decide on what waits."""

    def contract(number: int) -> Request:
        return {"text": f"is this contract valid? {number}"}

    async with drill_of() as drill, drill.traffic(summarize, contract):
        drill.kinds = [summarize]
        await drill.calm("ReviewBacklog")
        drill.kinds = [summarize, contract]
        drill.inject()
        await drill.fires("ReviewBacklog", sign="depth", severity="ticket")
        await drill.panel_shows("ReviewBacklog", above(20))
        await drill.trace_names("risk", keep="review")
        assert "review" in await drill.routes()
        await drill.confine("ReviewBacklog", which=1, resolves=False)  # what waits has still to be decided on
        assert "review" not in await drill.routes()
        await drill.reject_all()
        await drill.prometheus.resolved("ReviewBacklog")


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
