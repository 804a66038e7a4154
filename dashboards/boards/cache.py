"""Cache: what is answered without a model, and what it saves."""

from __future__ import annotations

from dashboards.panels import Board, quantiles, row, stat, timeseries, to

BOARD = Board(
    "Cache",
    about="""What is answered without a model: how often, why not more often, and what it saves. A hit ratio that
        collapses is either a change of policy, which changes the keys, or traffic that never repeats.""",
    rows=[
        row(
            "Does it work?",
            stat(
                "Found",
                """sum(increase(tracerouter_cache_operations_total{result="hit"}[$__range]))
                / sum(increase(tracerouter_cache_operations_total{layer="memory"}[$__range]))""",
                unit="percentunit",
                at_least=0.4,
                about="""Share of look-ups that found an answer, or waited for that of an equal request, in the time
                    shown; each asks memory first, and what may not be cached is not looked up. Under 40 %: lengthen
                    ttl, or widen scope where policy allows.""",
            ),
            stat(
                "May not be cached",
                """1 - sum(increase(tracerouter_cache_operations_total{layer="memory"}[$__range]))
                / sum(increase(tracerouter_requests_total[$__range]))""",
                unit="percentunit",
                about="""Share of requests that policy, the caller's no-store or a high temperature kept out of the
                    cache. If it is most of them, no ttl will help.""",
            ),
            stat(
                "Answered from the cache",
                """sum(increase(tracerouter_requests_total{route="cached"}[$__range]))
                / sum(increase(tracerouter_requests_total{task!="embeddings"}[$__range]))""",
                unit="percentunit",
                about="Share of all requests that needed no model; embeddings, which are never cached, are left out.",
                then=to("route-mix", "Who answers the rest?"),
            ),
            stat(
                "Saved by the cache",
                """sum(increase(tracerouter_cost_baseline_total{role="cached"}[$__range])) or vector(0)""",
                unit="currencyUSD",
                about="What the answers from the cache would have cost on the top rung, in the time shown.",
                then=to("cost-tenants", "What is saved in all?"),
            ),
        ),
        row(
            "How does it change?",
            timeseries(
                "Cache hit ratio",
                {
                    "answered": """sum(rate(tracerouter_cache_operations_total{result="hit"}[$__rate_interval]))
                    / sum(rate(tracerouter_cache_operations_total{layer="memory"}[$__rate_interval]))"""
                },
                unit="percentunit",
                at_least=0.4,
                about="""Share of look-ups that were answered from it. A fall to near nothing and a slow recovery: the
                    cache was emptied by a restart or a policy that changes the keys. A fall that stays: the traffic
                    has changed.""",
                then=to("route-mix", "Who answers instead?"),
                each=to("request-drilldown", "Show cached requests", route="cached"),
            ),
            timeseries(
                "Look-ups by layer",
                {
                    "{{layer}}: {{result}}": """sum by (layer, result) (
                        rate(tracerouter_cache_operations_total[$__rate_interval]))"""
                },
                unit="ops",
                about="""Look-ups a second: memory is asked first, and Redis where it has nothing. stale: an answer was
                    there and had expired, so a model was asked: a longer ttl would have served it. error: the layer did
                    not answer, and the request went on without it. A layer that never hits only costs time.""",
                then=to("providers", "Are models failing?"),
            ),
        ),
        row(
            "What is it worth?",
            timeseries(
                "Duration of look-ups",
                quantiles('tracerouter_stage_duration_seconds_bucket{stage="cache"}'),
                unit="s",
                exemplars=True,
                about="""Half, 95 % and 99 % of look-ups take less. Every request pays this: a median of more than a few
                    milliseconds is a slow store. What takes as long as a model waited for an equal request.""",
                then=to("telemetry-health", "Is the router overloaded?"),
            ),
            timeseries(
                "Saved by the cache, per hour",
                {"saved": """sum(rate(tracerouter_cost_baseline_total{role="cached"}[$__rate_interval])) * 3600"""},
                unit="currencyUSD",
                about="What the answers from the cache would have cost on the top rung, at the rate of that time.",
                then=to("cost-tenants", "What is saved in all?"),
            ),
            timeseries(
                "Duration of cached answers",
                quantiles('tracerouter_request_duration_seconds_bucket{route="cached"}'),
                unit="s",
                exemplars=True,
                about="""How long a caller waits for an answer from the cache. Compare with Duration on the Overview:
                    the difference is what the caller gains.""",
                then=to("overview", "How long do others wait?"),
            ),
        ),
    ],
)
