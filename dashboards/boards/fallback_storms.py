"""Fallback storms: from which model to which, why, for which task, and what it costs."""

from __future__ import annotations

from dashboards import alerts
from dashboards.panels import Board, bars, row, stat, table, timeseries, to, values_of

BOARD = Board(
    "Fallback storms",
    about="""Requests that were answered by a later rung because an earlier one failed: from where to where, why, for
        which task, and what it costs. Look for the one reason and the one task that have grown.""",
    variables=[values_of("task", "tracerouter_requests_total")],
    rows=[
        row(
            "Is there a storm?",
            stat(
                "Fallbacks",
                """sum(increase(tracerouter_fallbacks_total{task=~"$task"}[$__range])) or vector(0)""",
                unit="short",
                about="""Rungs tried because an earlier one failed, in the time shown. A request can count more than
                    once where the ladder has more than two rungs.""",
            ),
            stat(
                "Against the day before",
                """max(tracerouter:fallback_ratio:10m{task=~"$task"}
                / (tracerouter:fallback_ratio:1d{task=~"$task"} > 0))""",
                unit="short",
                at_most=alerts.GROWN,
                about="""Fallbacks for each request that went to a model in the last ten minutes, as a multiple of the
                    day before; of the task where it has grown most. 1 is a day like any other; 2 and more is a storm
                    even where the share is still small. No data: there was no fallback, or too little traffic.""",
            ),
            stat(
                "Cost of fallbacks",
                """sum(increase(tracerouter_cost_total{role="fallback", task=~"$task"}[$__range])) or vector(0)""",
                unit="currencyUSD",
                about="""What the rungs after the first one cost, in the time shown. Weigh it against the time that
                    mending the task below would take.""",
                then=to("cost-tenants", "Who pays for it?"),
            ),
            stat(
                "Share of all cost",
                """(sum(increase(tracerouter_cost_total{role="fallback", task=~"$task"}[$__range])) or vector(0))
                / sum(increase(tracerouter_cost_total{task=~"$task"}[$__range]))""",
                unit="percentunit",
                about="""How much of what is spent goes to fallbacks. Over a half, it is cheaper to start the worst
                    task at the last rung.""",
                then=to("cost-tenants", "What else costs?"),
            ),
        ),
        row(
            "Since when, and why?",
            timeseries(
                "Fallback ratio",
                {
                    "now": """(sum(rate(tracerouter_fallbacks_total{task=~"$task"}[$__rate_interval])) or vector(0))
                    / sum(rate(tracerouter_requests_total{
                        route!~"cached|queued|refused", task=~"$task"}[$__rate_interval]))""",
                    "the day before": 'avg(tracerouter:fallback_ratio:1d{task=~"$task"})',
                },
                unit="percentunit",
                at_most=0.15,
                about="""Fallbacks for each request that went to a model, beside the day before's mean. The line is the
                    target; the alert comes later. A step tells when it began: what was released then?""",
                each=to("request-drilldown", "Show requests that fell back", route="fallback"),
            ),
            timeseries(
                "Fallback ratio by task",
                {
                    "{{task}}": """sum by (task) (rate(tracerouter_fallbacks_total{task=~"$task"}[$__rate_interval]))
                    / sum by (task) (rate(
                        tracerouter_requests_total{route!~"cached|queued|refused", task=~"$task"}[$__rate_interval]))"""
                },
                unit="percentunit",
                at_most=alerts.FELL_BACK,
                about="""The same for each task; over the line and twice its usual, the alert fires. One task: its
                    prompt or schema. All of them: the model.""",
                each=to(
                    "request-drilldown",
                    "Show its requests that fell back",
                    task="${__field.labels.task}",
                    route="fallback",
                ),
            ),
            timeseries(
                "Fallbacks from → to by reason",
                {
                    "{{from}} → {{to}}: {{reason}}": """sum by (from, to, reason) (
                        rate(tracerouter_fallbacks_total{task=~"$task"}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""Fallbacks a second. timeout, rate_limited, provider_error: the model before the arrow is in
                    trouble, see Providers. Other reasons: its answers were turned down, see which validator does it
                    and what it had against them.""",
                then=to("providers", "Is that model in trouble?"),
                each=to("classifier-validation", "Which validator turns answers down?"),
            ),
        ),
        row(
            "Which task?",
            table(
                "Top failing tasks",
                {
                    "Fallbacks": (
                        """sum by (task) (increase(tracerouter_fallbacks_total{task=~"$task"}[$__range]))""",
                        "short",
                    ),
                    "Share of requests": (
                        """sum by (task) (
                            increase(tracerouter_requests_total{route=~"fallback|failed", task=~"$task"}[$__range]))
                        / sum by (task) (increase(tracerouter_requests_total{task=~"$task"}[$__range]))""",
                        "percentunit",
                    ),
                    "Cost of fallbacks": (
                        """sum by (task) (
                            increase(tracerouter_cost_total{role="fallback", task=~"$task"}[$__range]))""",
                        "currencyUSD",
                    ),
                },
                about="""Tasks by fallbacks; the share counts requests that failed on every rung too. Begin with the
                    top row: read a few of its requests, then mend its prompt or schema, or set start: large for it.""",
                each=to(
                    "request-drilldown",
                    "Show its requests that fell back",
                    task="${__data.fields.task}",
                    route="fallback",
                ),
            ),
            timeseries(
                "Fallbacks by task",
                {"{{task}}": """sum by (task) (rate(tracerouter_fallbacks_total{task=~"$task"}[$__rate_interval]))"""},
                unit="ops",
                stacked=True,
                about="""Fallbacks a second by task. One band that grows: that task's prompt or traffic has changed.
                    All at once: the model has.""",
                then=to("classifier-validation", "Has the traffic changed?"),
                each=to("request-drilldown", "Show this task", task="${__field.labels.task}", route="fallback"),
            ),
        ),
        row(
            "What does it cost?",
            timeseries(
                "Cost of fallbacks per hour",
                {
                    "{{task}}": """sum by (task) (
                        rate(tracerouter_cost_total{role="fallback", task=~"$task"}[$__rate_interval])) * 3600"""
                },
                unit="currencyUSD",
                stacked=True,
                about="""What the rungs after the first one cost, by task. It is what a storm costs for as long as it
                    lasts.""",
                then=to("cost-tenants", "Who pays for it?"),
            ),
            timeseries(
                "Spent on answers turned down, per hour",
                {
                    "{{model}}": """sum by (model) (rate(tracerouter_cost_total{role="cheap"}[$__rate_interval])) * 3600
                    * sum by (model) (rate(tracerouter_attempts_total{role="cheap", error_type!=""}[$__rate_interval]))
                    / sum by (model) (rate(tracerouter_attempts_total{role="cheap"}[$__rate_interval]))"""
                },
                unit="currencyUSD",
                about="""An estimate, for all tasks: the cheap model's cost times the share of its attempts that
                    failed. The exact sum of one request is in its trace.""",
            ),
        ),
        row(
            "Which attempts fail?",
            timeseries(
                "Failing attempts by model and reason",
                {
                    "{{model}}: {{error_type}}": """sum by (model, error_type) (
                        rate(tracerouter_attempts_total{role!="classify", error_type!=""}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""Attempts a second that gave no accepted answer, with the same reason codes as above. A reason
                    of one model only is that model's; one of all models is ours, or the traffic's.""",
                then=to("providers", "Is that model in trouble?"),
            ),
            bars(
                "Failing share by model and role",
                {
                    "{{model}} as {{role}}": """sum by (model, role) (
                        increase(tracerouter_attempts_total{error_type!=""}[$__range]))
                    / sum by (model, role) (increase(tracerouter_attempts_total[$__range]))"""
                },
                unit="percentunit",
                about="""Share of attempts without an accepted answer, in the time shown. A fallback that fails leaves
                    no rung: its requests have failed. A model that fails as classify leaves a request without a label:
                    it starts at the last rung.""",
            ),
        ),
    ],
)
