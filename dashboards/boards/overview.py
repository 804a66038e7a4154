"""Overview: are users served, what does it cost, what is saved, what is burning."""

from __future__ import annotations

from dashboards import alerts
from dashboards.panels import Board, heatmap, quantiles, row, stat, table, timeseries, to

BOARD = Board(
    "Overview",
    about="""Start here: are users served, what does it cost, what is saved, what is burning. Each panel links to the
        board that says why.""",
    rows=[
        row(
            "Are users served? What does it cost? What is saved? What is burning?",
            stat(
                "Users served",
                """1 - (sum(increase(tracerouter_requests_total{outcome="failed"}[$__range])) or vector(0))
                / sum(increase(tracerouter_requests_total{outcome!="cancelled"}[$__range]))""",
                unit="percentunit",
                at_least=alerts.SERVED,
                about="""Share of requests that did not fail, of those that the caller waited for. Red: see Failed
                    requests below, then Providers.""",
                then=to("providers", "Is a provider failing?"),
            ),
            stat(
                "Cost per hour, now",
                "sum(rate(tracerouter_cost_total[$__rate_interval])) * 3600",
                unit="currencyUSD",
                about="""What model calls cost at the present rate, failed and turned down ones included. Higher than
                    you expect: see who and which model spends it.""",
                then=to("cost-tenants", "Who spends it, on which model?"),
            ),
            stat(
                "Saved",
                """sum(increase(tracerouter_cost_baseline_total[$__range]))
                - sum(increase(tracerouter_cost_total[$__range]))""",
                unit="currencyUSD",
                about="""What the same tokens would have cost on the top rung, less what was spent, in the time shown.
                    Below zero, routing costs more than it saves: see Fallback storms.""",
                then=to("cost-tenants", "Where is it saved?"),
            ),
            stat(
                "Saved, share",
                """1 - sum(increase(tracerouter_cost_total[$__range]))
                / sum(increase(tracerouter_cost_baseline_total[$__range]))""",
                unit="percentunit",
                about="""Share of the always-expensive cost that was not spent, in the time shown. When it falls,
                    either fallbacks or the expensive route have grown: see Route mix.""",
                then=to("route-mix", "Which route has grown?"),
            ),
            stat(
                "Alerts firing",
                'count(ALERTS{alertstate="firing"}) or vector(0)',
                unit="short",
                at_most=1,
                about="Alerts that fire now. Anything but 0: the table below names them, the runbook says what to do.",
            ),
        ),
        row(
            "Are users served?",
            timeseries(
                "Requests by outcome",
                {"{{outcome}}": "sum by (outcome) (rate(tracerouter_requests_total[$__rate_interval]))"},
                unit="reqps",
                stacked=True,
                about="""Requests a second, by how they ended. The height is the traffic: a sudden drop is a problem
                    before us, red is one of ours.""",
                then=to("route-mix", "Which way did they go?"),
            ),
            timeseries(
                "Failed requests",
                {
                    "failed": """(sum(
                        rate(tracerouter_requests_total{outcome="failed"}[$__rate_interval])) or vector(0))
                    / sum(rate(tracerouter_requests_total{outcome!="cancelled"}[$__rate_interval]))""",
                    "refused": """(sum(
                        rate(tracerouter_requests_total{outcome="refused"}[$__rate_interval])) or vector(0))
                    / sum(rate(tracerouter_requests_total{outcome!="cancelled"}[$__rate_interval]))""",
                },
                unit="percentunit",
                at_most=round(1 - alerts.SERVED, 4),
                about="""Share of requests that ended without an answer. Failed is for on-call: every rung failed or
                    the deadline passed. Refused is what policy does not allow: ask the policy's owner.""",
                then=to("providers", "Is a provider failing?"),
                each=to("request-drilldown", "Show failed requests", route="failed"),
            ),
            timeseries(
                "Requests by route",
                {"{{route}}": "sum by (route) (rate(tracerouter_requests_total[$__rate_interval]))"},
                unit="reqps",
                stacked=True,
                about="Requests a second, by what answered them. Orange growing into green is a fallback storm.",
                then=to("route-mix", "Is the mix on target?"),
                each=to("request-drilldown", "Show such requests", route="${__field.labels.route}"),
            ),
        ),
        row(
            "What does it cost?",
            timeseries(
                "Cost per hour",
                {
                    "spent": "sum(rate(tracerouter_cost_total[$__rate_interval])) * 3600",
                    "always expensive": "sum(rate(tracerouter_cost_baseline_total[$__rate_interval])) * 3600",
                },
                unit="currencyUSD",
                about="""What is spent, beside what the same tokens would have cost on the top rung. The gap is what
                    routing saves; where the lines meet, it saves nothing.""",
                then=to("cost-tenants", "Who spends it, on which model?"),
            ),
            timeseries(
                "Cost per hour by route's role",
                {"{{role}}": "sum by (role) (rate(tracerouter_cost_total[$__rate_interval])) * 3600"},
                unit="currencyUSD",
                stacked=True,
                about="""What is spent, by the role that the model had. Fallback growing is money for answers that the
                    cheap model was paid for already.""",
                then=to("fallback-storms", "Why do requests fall back?"),
            ),
        ),
        row(
            "How fast is it?",
            timeseries(
                "Duration",
                quantiles("tracerouter_request_duration_seconds_bucket"),
                unit="s",
                exemplars=True,
                about="""Half, 95 % and 99 % of requests are faster than this. Each dot is a request with a kept trace:
                    click it.""",
                then=to("providers", "Which model is slow?"),
            ),
            heatmap(
                "Duration, all requests",
                "sum by (le) (increase(tracerouter_request_duration_seconds_bucket[$__rate_interval]))",
                unit="s",
                exemplars=True,
                about="""How many requests took how long. Two bands are usual, cache and models; a new band on top is a
                    model that has become slow. Each dot is a request with a kept trace.""",
                then=to("request-drilldown", "Find slow requests"),
            ),
            timeseries(
                "Overhead",
                quantiles("tracerouter_overhead_duration_seconds_bucket"),
                unit="s",
                at_most=alerts.OVERHEAD,
                about="""What the router itself adds: duration less the wait for providers. Milliseconds are right; if
                    it grows with traffic, add processes.""",
                then=to("telemetry-health", "Is the router overloaded?"),
            ),
        ),
        row(
            "What is burning?",
            table(
                "Firing alerts",
                {"Series": ('count by (alertname, severity) (ALERTS{alertstate="firing"})', "short")},
                about="""Every alert that fires, and for how many series. A page wants you now, a ticket this week;
                    dashboards/runbook.md has a section on each. Empty is good.""",
                width=24,
            ),
        ),
    ],
)
