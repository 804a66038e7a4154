"""Telemetry health: whether what the other boards show is whole, and what the router itself takes."""

from __future__ import annotations

from dashboards import alerts
from dashboards.panels import Board, note, quantiles, row, stat, timeseries, to

EMITTED_BY_ALL = (
    "tracerouter_requests_total",
    "tracerouter_request_duration_seconds_count",
    "tracerouter_overhead_duration_seconds_count",
    "tracerouter_attempts_total",
    "tracerouter_cost_total",
    "tracerouter_traces_kept_total",
)
LOST = {
    "traces": "tracerouter_traces_dropped_total",
    "log records": "tracerouter_logs_dropped_total",
    "decision rows": "tracerouter_decisions_dropped_total",
    "ledger entries": "tracerouter_ledger_lost_total",
}
NOT_PASSED_ON = {
    "queue full": "otelcol_exporter_enqueue_failed_spans_total",
    "send failed": "otelcol_exporter_send_failed_spans_total",
    "logs, queue full": "otelcol_exporter_enqueue_failed_log_records_total",
    "logs, send failed": "otelcol_exporter_send_failed_log_records_total",
}

BOARD = Board(
    "Telemetry health",
    about="""Can the other boards be believed? Whether metrics arrive, whether traces and logs get lost on their way,
        and what the router itself adds to a request.""",
    rows=[
        row(
            "Do metrics arrive?",
            stat(
                "Collector up",
                'min(up{job="tracerouter"}) or vector(0)',
                unit="bool_yes_no",
                at_least=1,
                about="""Whether Prometheus reaches the collector. No: every other panel is blind, though requests may
                    well be served. Start the collector; the decision log has what was missed.""",
            ),
            stat(
                "Processes reporting",
                "count(count by (instance) (tracerouter_requests_total))",
                unit="short",
                at_least=1,
                about="""Processes whose metrics arrive. Fewer than you run: those that are missing cannot reach the
                    collector, or have served no request yet.""",
            ),
            stat(
                "Metrics missing",
                " + ".join(f"(absent({metric}) or vector(0))" for metric in EMITTED_BY_ALL),
                unit="short",
                at_most=1,
                about="""How many of six metrics that every working router emits are absent. All of them: nothing
                    arrives. Some: a version that does not fit these boards.""",
            ),
            stat(
                "Age of the newest sample",
                "time() - max(timestamp(tracerouter_requests_total))",
                unit="s",
                at_most=120,
                about="""Seconds since Prometheus last scraped a metric of ours. More than a few scrape intervals: the
                    collector or Prometheus is stuck.""",
            ),
        ),
        row(
            "Does anything get lost?",
            timeseries(
                "What gets lost",
                {
                    what + ": {{reason}}": f"sum by (reason) (increase({metric}[$__rate_interval])) or on () vector(0)"
                    for what, metric in LOST.items()
                }
                | {
                    f"collector, {how}: {{{{exporter}}}}": f"""sum by (exporter) (increase({metric}[$__rate_interval]))
                        or on () vector(0)"""
                    for how, metric in NOT_PASSED_ON.items()
                }
                | {"collector down": '1 - min(up{job="tracerouter"}) or vector(1)'},
                unit="short",
                about="""What was to be told and got lost. queue_full: more than the exporter can send, so keep fewer
                    or add processes; export_failed: the collector does not answer. What the collector loses is for
                    Tempo or Loki to take. Lost ledger entries are money that is not booked: see to the store at
                    once.""",
            ),
            timeseries(
                "Traces kept by reason",
                {"{{reason}}": "sum by (reason) (rate(tracerouter_traces_kept_total[$__rate_interval]))"},
                unit="ops",
                stacked=True,
                about="""Traces a second that were kept, and why. share is the sample of the ordinary; error and
                    fallback rise with trouble, which is when you want them.""",
                then=to("request-drilldown", "Find a trace"),
            ),
            timeseries(
                "Share of requests with a kept trace",
                {
                    "kept": """sum(rate(tracerouter_traces_kept_total[$__rate_interval]))
                    / sum(rate(tracerouter_requests_total[$__rate_interval]))"""
                },
                unit="percentunit",
                about="""How likely a request's trace is to be found. Too low to be useful or too dear to store: change
                    keep in tracerouter.yaml. The decision log has every request in any case.""",
            ),
        ),
        row(
            "What does the router itself take?",
            timeseries(
                "Overhead",
                quantiles("tracerouter_overhead_duration_seconds_bucket"),
                unit="s",
                at_most=alerts.OVERHEAD,
                exemplars=True,
                about="""Duration less the wait for providers: half, 95 % and 99 % of requests stay under. If it grows
                    with traffic, the process is short of CPU: add processes. If not, look for the stage below.""",
            ),
            timeseries(
                "Overhead by route, p95",
                {
                    "{{route}}": """histogram_quantile(0.95,
                        sum by (le, route) (rate(tracerouter_overhead_duration_seconds_bucket[$__rate_interval])))"""
                },
                unit="s",
                about="95 % of the requests of a route stay under. One route alone: a stage that only it has.",
                each=to("request-drilldown", "Show such requests", route="${__field.labels.route}"),
            ),
            timeseries(
                "Stages of our own, p95",
                {
                    "{{stage}}": """histogram_quantile(0.95, sum by (le, stage) (
                        rate(tracerouter_stage_duration_seconds_bucket{
                            stage=~"cache|classify|validate"}[$__rate_interval])))"""
                },
                unit="s",
                exemplars=True,
                about="""The stages that wait for no provider of the ladder. The slowest is where the overhead comes
                    from.""",
                then=to("classifier-validation", "Is it the classifier or a validator?"),
            ),
        ),
        row(
            "Which processes?",
            timeseries(
                "Requests by process",
                {"{{instance}}": "sum by (instance) (rate(tracerouter_requests_total[$__rate_interval]))"},
                unit="reqps",
                about="""Requests a second of each process. They should lie close together: one that lags is overloaded
                    or out of the balancer, one that ends was stopped.""",
            ),
            note(
                "What is always whole",
                """**Metrics count every request**; traces are kept for a part of them. **The decision log has a row for
                every request that was routed**, kept or not: `tracerouter trace <request id>` at a terminal, or
                `tracerouter trace --last failed`. What gets lost on its way to the collector is counted above. It never
                holds up a request: telemetry gives way first.""",
                about="Where to look when these boards have a gap.",
            ),
        ),
        row(
            "Can limits be checked?",
            timeseries(
                "Processes that can't check limits",
                {"processes": "sum(1 - tracerouter_ledger_available)"},
                unit="short",
                at_most=1,
                about="""Processes that do not reach the ledger's store, or wait until it is rebuilt. Until it is 0,
                    requests go on, but for those that policy's without_ledger keeps closed. Look at the store.""",
            ),
            timeseries(
                "Entries that wait for the ledger's store",
                {"{{instance}}": "sum by (instance) (tracerouter_ledger_waiting)"},
                unit="short",
                about="""Attempts that are paid for and not booked yet, by process. They are in its journal and are
                    booked when the store is back. If they do not go down by then, its log says why.""",
            ),
        ),
    ],
)
