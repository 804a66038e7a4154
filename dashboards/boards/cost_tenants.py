"""Cost & tenants: what is spent and saved, on which model, and who is blowing through."""

from __future__ import annotations

from dashboards import alerts
from dashboards.panels import Board, bars, row, stat, table, timeseries, to, values_of

BOARD = Board(
    "Cost & tenants",
    about="""For finance, and for on-call when cost burns: what is spent and saved, on which model, role and task, and
        which tenant is blowing through. Cost is exact to the provider's bill, failed attempts included.""",
    variables=[values_of("tenant", "tracerouter_tenant_spend")],
    since="now-24h",
    rows=[
        row(
            "What is spent, and what is saved?",
            stat(
                "Spent",
                "sum(increase(tracerouter_cost_total[$__range]))",
                unit="currencyUSD",
                about="What model calls cost in the time shown, failed, turned down and cancelled ones included.",
            ),
            stat(
                "Always expensive",
                "sum(increase(tracerouter_cost_baseline_total[$__range]))",
                unit="currencyUSD",
                about="What the same tokens would have cost on the top rung: the bill without routing and cache.",
            ),
            stat(
                "Saved",
                """sum(increase(tracerouter_cost_baseline_total[$__range]))
                - sum(increase(tracerouter_cost_total[$__range]))""",
                unit="currencyUSD",
                about="""The difference of the two at the left. Below zero, fallbacks cost more than the cheap model
                    saves.""",
                then=to("fallback-storms", "What do fallbacks cost?"),
            ),
            stat(
                "Saved, share",
                """1 - sum(increase(tracerouter_cost_total[$__range]))
                / sum(increase(tracerouter_cost_baseline_total[$__range]))""",
                unit="percentunit",
                about="The same as a share. If it falls, the mix has moved to dearer routes.",
                then=to("route-mix", "Which route has grown?"),
            ),
            stat(
                "Cost of a request",
                "sum(increase(tracerouter_cost_total[$__range])) / sum(increase(tracerouter_requests_total[$__range]))",
                unit="currencyUSD",
                about="The mean over all requests, cached ones included: the figure to plan growth with.",
            ),
        ),
        row(
            "On what is it spent?",
            timeseries(
                "Cost per hour by model",
                {"{{model}}": "sum by (model) (rate(tracerouter_cost_total[$__rate_interval])) * 3600"},
                unit="currencyUSD",
                stacked=True,
                about="""What each model costs at the rate of that time. A model that grows without more requests:
                    longer prompts or answers, or more fallbacks.""",
                then=to("providers", "How many calls is that?"),
            ),
            timeseries(
                "Cost per hour by role",
                {"{{role}}": "sum by (role) (rate(tracerouter_cost_total[$__rate_interval])) * 3600"},
                unit="currencyUSD",
                stacked=True,
                about="""Cheap and expensive are first attempts, fallback is paid for a second time, and classify is
                    what classifiers ask models. Fallback growing: a storm.""",
                then=to("fallback-storms", "Why do requests fall back?"),
            ),
            timeseries(
                "Cost per hour by task",
                {"{{task}}": "sum by (task) (rate(tracerouter_cost_total[$__rate_interval])) * 3600"},
                unit="currencyUSD",
                stacked=True,
                about="""What each task costs. The dearest is the first place for a cache, a lower threshold or a
                    shorter answer.""",
                then=to("route-mix", "Which way do its requests go?"),
                each=to("request-drilldown", "Show this task", task="${__field.labels.task}"),
            ),
        ),
        row(
            "Is it worth it, and is it exact?",
            timeseries(
                "Cost beside always expensive, per hour",
                {
                    "spent": "sum(rate(tracerouter_cost_total[$__rate_interval])) * 3600",
                    "always expensive": "sum(rate(tracerouter_cost_baseline_total[$__rate_interval])) * 3600",
                },
                unit="currencyUSD",
                about="The gap is what routing saves. It narrows when fewer requests are cached or cheap.",
                then=to("route-mix", "Which route has grown?"),
            ),
            timeseries(
                "Saved per hour by route's role",
                {
                    "{{role}}": """(sum by (role) (rate(tracerouter_cost_baseline_total[$__rate_interval])) * 3600
                    or sum by (role) (rate(tracerouter_cost_total[$__rate_interval])) * 0)
                    - (sum by (role) (rate(tracerouter_cost_total[$__rate_interval])) * 3600
                    or sum by (role) (rate(tracerouter_cost_baseline_total[$__rate_interval])) * 0)"""
                },
                unit="currencyUSD",
                about="""Where the saving comes from: the role of the answer's model, or cached. Fallback below zero is
                    the price of trying; cheap below zero is the share of its attempts that failed; classify is always
                    below: it is what knowing costs.""",
                then=to("cache", "What does the cache save?"),
            ),
            timeseries(
                "Estimated share of cost",
                {
                    "estimated": """(sum(
                        rate(tracerouter_cost_total{source="estimated"}[$__rate_interval])) or vector(0))
                    / sum(rate(tracerouter_cost_total[$__rate_interval]))"""
                },
                unit="percentunit",
                about="""Share of cost where the provider did not report its usage, so that tokens were counted here.
                    If it grows, calls are lost or cancelled half-way: expect the bill to differ by about as much.""",
                then=to("providers", "Are calls being lost?"),
            ),
        ),
        row(
            "Who is blowing through?",
            bars(
                "Spend by tenant, today",
                {
                    "{{tenant}}": """sort_desc(
                        max by (tenant) (tracerouter_tenant_spend{period="day", tenant=~"$tenant"}))"""
                },
                unit="currencyUSD",
                about="""From the ledger, since midnight in the policy's `timezone`: the 20 tenants that spend most, and
                    other. One far ahead of the rest: look at its requests, then talk to it or set a limit.""",
                each=to("request-drilldown", "Show this tenant", tenant="${__field.labels.tenant}"),
            ),
            bars(
                "Spend by tenant, this month",
                {
                    "{{tenant}}": """sort_desc(
                        max by (tenant) (tracerouter_tenant_spend{period="month", tenant=~"$tenant"}))"""
                },
                unit="currencyUSD",
                about="From the ledger, since the first of the month: what each tenant is to be charged so far.",
                each=to("request-drilldown", "Show this tenant", tenant="${__field.labels.tenant}"),
            ),
            bars(
                "Share of today's spend by tenant",
                {
                    "{{tenant}}": """sort_desc(
                        max by (tenant) (tracerouter_tenant_spend{period="day", tenant=~"$tenant"})
                    / on () group_left sum(max by (tenant) (tracerouter_tenant_spend{period="day"})))"""
                },
                unit="percentunit",
                at_most=alerts.ONE_TENANT,
                about="Each tenant's part of what is spent today. Over the line, one tenant decides your bill.",
                each=to("request-drilldown", "Show this tenant", tenant="${__field.labels.tenant}"),
            ),
        ),
        row(
            "Who is at a limit?",
            timeseries(
                "Used and refused",
                {
                    "{{tenant}}, {{period}}": """1
                        - max by (tenant, period) (tracerouter_budget_remaining{tenant=~"$tenant"})
                        / max by (tenant, period) (tracerouter_budget_limit{tenant=~"$tenant"})""",
                    "refused by {{scope}}": """sum by (scope) (
                        rate(tracerouter_quota_decisions_total{action="refuse"}[$__rate_interval]))
                        / on () group_left () sum(rate(tracerouter_requests_total[$__rate_interval]))""",
                },
                unit="percentunit",
                at_most=alerts.NEARLY,
                about="""The share of its budget that each tenant has used, what is reserved included, and the share of
                    all requests that a limit refuses. Over the line a budget is nearly used up: raise it, or let its
                    `then` do with less.""",
                each=to("request-drilldown", "Show this tenant", tenant="${__field.labels.tenant}"),
            ),
            table(
                "Budgets",
                {
                    "Used": (
                        """1 - max by (tenant, period) (tracerouter_budget_remaining{tenant=~"$tenant"})
                        / max by (tenant, period) (tracerouter_budget_limit{tenant=~"$tenant"})""",
                        "percentunit",
                    ),
                    "Left": (
                        """max by (tenant, period) (tracerouter_budget_remaining{tenant=~"$tenant"})""",
                        "currencyUSD",
                    ),
                    "Budget": (
                        """max by (tenant, period) (tracerouter_budget_limit{tenant=~"$tenant"})""",
                        "currencyUSD",
                    ),
                },
                about="""Of the 20 tenants that spend most: the narrowest limit in USD on all that a tenant spends in a
                    day or a month, and what it leaves. Limits of a team, a user or a role are in `tracerouter quota`.
                    """,
            ),
            timeseries(
                "Limits reached",
                {
                    "{{scope}}: {{action}}": """sum by (scope, action) (
                        rate(tracerouter_quota_decisions_total{action!="underreserved"}[$__rate_interval])) * 60"""
                },
                unit="cpm",
                about="""How often a minute a limit had no room for a call, by the limit and what was done. Refuse is
                    the only one that users see as an error; downgrade and shorten cost quality.""",
                then=to("request-drilldown", "Show such a request"),
            ),
            timeseries(
                "Calls that cost more than was held",
                {
                    "calls": """sum(rate(tracerouter_quota_decisions_total{action="underreserved"}[$__rate_interval]))
                        * 60 or vector(0)"""
                },
                unit="cpm",
                about="""A minute. By these, limits can be passed: what a model thinks counts beyond max_output_tokens
                    with some providers, and a tokenizer that is not the model's counts differently. They are booked as
                    they are.""",
                then=to("providers", "Which model is it?"),
            ),
        ),
        row(
            "Since when?",
            timeseries(
                "Spend per hour by tenant",
                {
                    "{{tenant}}": """max by (tenant) (
                        increase(tracerouter_tenant_spend{period="day", tenant=~"$tenant"}[1h]))"""
                },
                unit="currencyUSD",
                about="""How much each tenant has spent in the hour before. Steep and alone: a runaway job; what it
                    asks is a click away.""",
                each=to("request-drilldown", "Show this tenant", tenant="${__field.labels.tenant}"),
            ),
            timeseries(
                "Tokens by model",
                {
                    "{{model}} {{direction}}": """sum by (model, direction) (
                        rate(tracerouter_tokens_total[$__rate_interval]))"""
                },
                unit="ops",
                about="""Tokens a second, by model and direction. Input growing alone: longer prompts; output alone:
                    longer answers, which max_output_tokens limits.""",
            ),
        ),
    ],
)
