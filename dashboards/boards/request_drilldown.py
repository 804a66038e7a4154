"""Request drill-down: one request's log record and trace, and how to find it."""

from __future__ import annotations

from dashboards.panels import (
    LOKI,
    TEMPO,
    Board,
    choice,
    datasource,
    entry,
    heatmap,
    logs,
    row,
    searched,
    to,
    trace,
    values_of,
)

BOARD = Board(
    "Request drill-down",
    about="""From a number to the requests behind it. Paste the request id that a user quotes, or choose route, task or
        tenant; then click a trace.""",
    variables=[
        datasource(LOKI),
        datasource(TEMPO),
        choice("route", "cached", "cheap", "expensive", "fallback", "queued", "refused", "failed"),
        values_of("task", "tracerouter_requests_total"),
        values_of("tenant", "tracerouter_tenant_spend"),
        entry("request_id", "Request id"),
        entry("trace_id", "Trace id"),
    ],
    rows=[
        row(
            "Which requests?",
            searched(
                "Traces",
                """{ resource.service.name =~ "$job" && span.tracerouter.request_id =~ "$request_id.*"
                && span.tracerouter.route =~ "$route" && span.tracerouter.tenant =~ "$tenant"
                && (span.tracerouter.label =~ "$task" || span.tracerouter.route =~ "cached|queued|refused|failed") }
                | select(span.tracerouter.route, span.tracerouter.reason, span.tracerouter.label,
                span.tracerouter.cost.amount, span.tracerouter.keep)""",
                about="""Kept traces that fit what is chosen at the top. Click one to see it below. Those that ended
                    before they were classified have no task and show with every one. Not here? Its trace was not kept:
                    the log below has every request.""",
                each=to(
                    "request-drilldown",
                    "Show this trace",
                    trace_id="${__data.fields.traceID}",
                    loki_datasource="${loki_datasource}",
                    tempo_datasource="${tempo_datasource}",
                ),
            ),
            heatmap(
                "Duration of such requests",
                """sum by (le) (
                    increase(tracerouter_request_duration_seconds_bucket{route=~"$route"}[$__rate_interval]))""",
                unit="s",
                exemplars=True,
                about="""How many requests of the chosen route took how long, whatever the task. Each dot is one with a
                    kept trace: click the odd one out.""",
                then=to("providers", "Which model is slow?"),
            ),
        ),
        row(
            "What was decided, and why?",
            logs(
                "Decisions",
                """{service_name=~"$job"} | tracerouter_request_id!="" | tracerouter_request_id=~"$request_id.*"
                | trace_id=~"$trace_id.*" | tracerouter_route=~"$route" | tracerouter_label=~"$task"
                | tracerouter_tenant=~"$tenant" """,
                about="""One record a request, kept trace or not: reason, models, cost, validation failures, every
                    attempt. Open one for its fields; its trace id leads to the trace.""",
            ),
        ),
        row(
            "What happened, step by step?",
            trace(
                "Trace",
                "$trace_id",
                about="""The spans of the trace id at the top: cache, classify, each rung and its validation. The
                    longest bar is the time, the attributes of route say why, those of chat what it cost. Empty: click
                    a trace above.""",
            ),
        ),
    ],
)
