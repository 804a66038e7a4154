"""Route mix: which way requests go, and whether that is what policy wants."""

from __future__ import annotations

from dashboards import alerts
from dashboards.panels import Board, bars, row, stat, timeseries, to, values_of

BOARD = Board(
    "Route mix",
    about="""Which way do requests go, and is that what policy wants? Targets: 40 % from the cache; of what models
        answer, 85 % cheap and no more than 15 % after a fallback. Embeddings, for which there is no
        choice, do not count.""",
    variables=[values_of("task", "tracerouter_requests_total")],
    rows=[
        row(
            "Is the mix on target?",
            stat(
                "Cached",
                """sum(increase(tracerouter_requests_total{route="cached"}[$__range]))
                / sum(increase(tracerouter_requests_total{task!="embeddings"}[$__range]))""",
                unit="percentunit",
                at_least=0.4,
                about="""Share of requests answered from the cache, whatever task is chosen: they were never
                    classified. Under 40 %: see what the look-ups found.""",
                then=to("cache", "Why is it not in the cache?"),
            ),
            stat(
                "Cheap",
                """sum(increase(tracerouter_requests_total{route="cheap", task!="embeddings", task=~"$task"}[$__range]))
                / sum(increase(tracerouter_requests_total{
                    route=~"cheap|expensive|fallback", task!="embeddings", task=~"$task"}[$__range]))""",
                unit="percentunit",
                at_least=0.85,
                about="""Of the requests that models answered, the share where the cheap one did. Under 85 %: is it
                    fallbacks, or does policy send too much to the last rung? Compare with the two at the right.""",
                then=to("classifier-validation", "Is the classifier unsure?"),
            ),
            stat(
                "After a fallback",
                """(sum(increase(tracerouter_requests_total{route="fallback", task=~"$task"}[$__range])) or vector(0))
                / sum(increase(tracerouter_requests_total{
                    route=~"cheap|expensive|fallback", task!="embeddings", task=~"$task"}[$__range]))""",
                unit="percentunit",
                at_most=0.15,
                about="""Of the requests that models answered, the share that was paid for twice. Over 15 %: find the
                    reason and the task, and start that task at the last rung until it is mended.""",
                then=to("fallback-storms", "Why do they fall back?"),
            ),
            stat(
                "Straight to expensive",
                """(sum(increase(tracerouter_requests_total{route="expensive", task=~"$task"}[$__range])) or vector(0))
                / sum(increase(tracerouter_requests_total{
                    route=~"cheap|expensive|fallback", task!="embeddings", task=~"$task"}[$__range]))""",
                unit="percentunit",
                about="""Of the requests that models answered, the share that policy sent to the last rung at once: a
                    forced task, a risk, a tier, or low confidence. Much of it: a threshold is too high.""",
                then=to("classifier-validation", "Is the classifier unsure?"),
            ),
        ),
        row(
            "How does it change?",
            timeseries(
                "Route mix",
                {
                    "{{route}}": """sum by (route) (rate(tracerouter_requests_total{task=~"$task"}[$__rate_interval]))
                    / ignoring (route) group_left
                    sum(rate(tracerouter_requests_total{task=~"$task"}[$__rate_interval]))"""
                },
                unit="percentunit",
                stacked=True,
                about="""Share of requests by route. A step is a change of policy or a model that broke: the alerts and
                    the time tell which. What a request of that route looks like is a click away.""",
                then=to("fallback-storms", "Why do they fall back?"),
                each=to("request-drilldown", "Show such requests", route="${__field.labels.route}"),
                width=16,
            ),
            bars(
                "Route mix, whole time",
                {
                    "{{route}}": """sum by (route) (increase(tracerouter_requests_total{task=~"$task"}[$__range]))
                    / ignoring (route) group_left sum(increase(tracerouter_requests_total{task=~"$task"}[$__range]))"""
                },
                unit="percentunit",
                about="The same over the whole time shown: the numbers to quote.",
                width=8,
            ),
        ),
        row(
            "Which tasks?",
            timeseries(
                "Requests by task",
                {"{{task}}": """sum by (task) (rate(tracerouter_requests_total{task=~"$task"}[$__rate_interval]))"""},
                unit="reqps",
                stacked=True,
                about="""Requests a second by task. Those without a name ended before they were classified: from the
                    cache, or refused. A task that appears or vanishes changes the mix of everything.""",
                then=to("classifier-validation", "Has the traffic changed, or the classifier?"),
                each=to("request-drilldown", "Show this task", task="${__field.labels.task}"),
            ),
            timeseries(
                "Cheap share by task",
                {
                    "{{task}}": """sum by (task) (
                        rate(tracerouter_requests_total{route="cheap", task=~"$task"}[$__rate_interval]))
                    / sum by (task) (rate(tracerouter_requests_total{
                        route=~"cheap|expensive|fallback", task=~"$task"}[$__rate_interval]))"""
                },
                unit="percentunit",
                at_least=0.85,
                about="""For each task, the share of model answers that the cheap model gave. The lowest line is the
                    task to work on: its threshold, its prompt, or its start.""",
                then=to("fallback-storms", "Which task fails?"),
                each=to("request-drilldown", "Show this task", task="${__field.labels.task}"),
            ),
        ),
        row(
            "For which reason?",
            timeseries(
                "Fallbacks by reason",
                {
                    "{{reason}}": """sum by (reason) (
                        rate(tracerouter_fallbacks_total{task=~"$task"}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""Fallbacks a second by reason code. Answers turned down (schema_invalid, empty, refusal,
                    truncated, check_failed) are for the prompt's owner; timeout, rate_limited, provider_error for
                    on-call.""",
                then=to("fallback-storms", "From which model to which?"),
            ),
            timeseries(
                "Mix by policy arm",
                {
                    "{{policy_arm}} {{route}}": """sum by (policy_arm, route) (
                        rate(tracerouter_requests_total{task=~"$task"}[$__rate_interval]))
                    / on (policy_arm) group_left
                    sum by (policy_arm) (rate(tracerouter_requests_total{task=~"$task"}[$__rate_interval]))"""
                },
                unit="percentunit",
                about="""Share by route within each arm of the policy. Without a canary there is one arm; with one, a
                    difference between the arms is what the new policy does.""",
            ),
        ),
        row(
            "What waits for a person?",
            timeseries(
                "Reviews waiting",
                {"{{queue}}": "max by (queue) (tracerouter_review_depth)"},
                unit="short",
                at_most=alerts.WAITING,
                about="""Requests that wait for a reviewer. Every replica tells of the same queue, hence max. If it
                    grows, decide on them, or let policy send fewer: the runbook has the lines.""",
                each=to("request-drilldown", "Show such requests", route="review"),
            ),
            timeseries(
                "Oldest review",
                {"{{queue}}": "max by (queue) (tracerouter_review_oldest_age_seconds)"},
                unit="s",
                at_most=alerts.OLD,
                about="""For how long the oldest of them has waited. It falls when that one is decided on, or expires;
                    a line that only rises is one that was forgotten.""",
                each=to("request-drilldown", "Show such requests", route="review"),
            ),
        ),
    ],
)
