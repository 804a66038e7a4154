"""Providers: whether the models answer, how fast, and how often they are asked."""

from __future__ import annotations

from dashboards import alerts
from dashboards.panels import Board, quantiles, row, table, timeseries, to, values_of

BOARD = Board(
    "Providers",
    about="""Do the models answer, how fast, and how often are they asked? A model's name is its alias in
        tracerouter.yaml. A call's time includes its retries.""",
    variables=[values_of("model", "tracerouter_attempts_total")],
    rows=[
        row(
            "Which model is in trouble?",
            table(
                "Models",
                {
                    "Calls": (
                        """sum by (gen_ai_request_model) (
                            increase(gen_ai_client_operation_duration_seconds_count[$__range]))""",
                        "short",
                    ),
                    "Errors": (
                        """sum by (gen_ai_request_model) (
                            increase(gen_ai_client_operation_duration_seconds_count{error_type!~"|cancelled"}[$__range]))
                        / sum by (gen_ai_request_model) (
                            increase(gen_ai_client_operation_duration_seconds_count[$__range]))""",
                        "percentunit",
                    ),
                    "p95": (
                        """histogram_quantile(0.95, sum by (le, gen_ai_request_model) (
                            increase(gen_ai_client_operation_duration_seconds_bucket[$__range])))""",
                        "s",
                    ),
                },
                about="""Each model in the time shown: calls, the share that failed after retries, and the time that 95
                    % of calls stay under. Errors are the provider's; time may be the length of our prompts.""",
                width=24,
            ),
        ),
        row(
            "Do they answer?",
            timeseries(
                "Provider error ratio by model",
                {
                    "{{model}}": """(sum by (model) (rate(tracerouter_attempts_total{role!="classify",
                        error_type=~"timeout|rate_limited|provider_error", model=~"$model"}[$__rate_interval]))
                    or sum by (model) (
                        rate(tracerouter_attempts_total{role!="classify", model=~"$model"}[$__rate_interval])) * 0)
                    / sum by (model) (
                        rate(tracerouter_attempts_total{role!="classify", model=~"$model"}[$__rate_interval]))"""
                },
                unit="percentunit",
                at_most=round(alerts.BURN * (1 - alerts.WORKING), 3),
                about="""Share of attempts at which the provider failed, retries included; over the line for an hour,
                    it is a page. One model: look at its provider's status page, and take it off the ladder if it
                    lasts. All models: look at our own network. What classifiers ask is on their board.""",
                then=to("fallback-storms", "Do requests fall back?"),
            ),
            timeseries(
                "Errors by model and type",
                {
                    "{{gen_ai_request_model}}: {{error_type}}": """sum by (gen_ai_request_model, error_type) (
                        rate(gen_ai_client_operation_duration_seconds_count{
                            error_type!~"|cancelled", gen_ai_request_model=~"$model"}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""Failed calls a second. rate_limited: ask for a higher limit, or spread the load; timeout: see
                    the latency below; context_too_long: set max_input_tokens; provider_error: theirs.""",
                each=to("request-drilldown", "Show failed requests", route="failed"),
            ),
            timeseries(
                "Attempts without an accepted answer",
                {
                    "{{model}}": """sum by (model) (rate(tracerouter_attempts_total{
                        role!="classify", error_type!="", model=~"$model"}[$__rate_interval]))
                    / sum by (model) (
                        rate(tracerouter_attempts_total{role!="classify", model=~"$model"}[$__rate_interval]))"""
                },
                unit="percentunit",
                about="""Share of a model's attempts that failed or were turned down. More than its errors at the left:
                    the model answers, but what it says does not pass.""",
                then=to("classifier-validation", "Which validator turns it down?"),
            ),
        ),
        row(
            "How fast are they?",
            timeseries(
                "Call latency by model",
                {
                    "{{gen_ai_request_model}} p50": """histogram_quantile(0.5, sum by (le, gen_ai_request_model) (
                        rate(gen_ai_client_operation_duration_seconds_bucket{
                            gen_ai_request_model=~"$model"}[$__rate_interval])))""",
                    "{{gen_ai_request_model}} p95": """histogram_quantile(0.95, sum by (le, gen_ai_request_model) (
                        rate(gen_ai_client_operation_duration_seconds_bucket{
                            gen_ai_request_model=~"$model"}[$__rate_interval])))""",
                },
                unit="s",
                exemplars=True,
                about="""Half and 95 % of a model's calls take less. p95 rising alone: a queue at the provider. Both
                    rising: longer prompts or answers, so compare with Tokens by model. Each dot is a kept trace.""",
                then=to("cost-tenants", "Are prompts longer?"),
            ),
            timeseries(
                "Slow calls by model",
                {
                    "{{gen_ai_request_model}}": """1 - sum by (gen_ai_request_model) (
                        rate(gen_ai_client_operation_duration_seconds_bucket{
                            le=~"10|10[.]0", gen_ai_request_model=~"$model"}[$__rate_interval]))
                    / sum by (gen_ai_request_model) (
                        rate(gen_ai_client_operation_duration_seconds_count{
                            gen_ai_request_model=~"$model"}[$__rate_interval]))"""
                },
                unit="percentunit",
                at_most=round(alerts.BURN * (1 - alerts.WORKING), 3),
                about="""Share of calls over 10 s; over the line for an hour, it is a page. If it stays up, shorten the
                    model's timeout, so that a slow rung gives way to the next before the caller gives up.""",
                then=to("request-drilldown", "Find slow requests"),
            ),
        ),
        row(
            "How often are they asked?",
            timeseries(
                "Calls by model",
                {
                    "{{gen_ai_request_model}} at {{gen_ai_provider_name}}": """
                    sum by (gen_ai_request_model, gen_ai_provider_name) (
                        rate(gen_ai_client_operation_duration_seconds_count{
                            gen_ai_request_model=~"$model"}[$__rate_interval]))"""
                },
                unit="reqps",
                stacked=True,
                about="""Calls a second. Compare with the provider's rate limit; a model that gets none is on no
                    ladder.""",
                then=to("route-mix", "Who sends them there?"),
            ),
            timeseries(
                "Attempts by role",
                {
                    "{{model}} as {{role}}": """sum by (model, role) (
                        rate(tracerouter_attempts_total{model=~"$model"}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""Rungs tried a second, by the model and the role it had; as classify, a classifier asked it. A
                    model that is asked more as fallback than as expensive lives on another one's failures. A dear
                    model as cheap: the rungs before it could not be asked, such as for an image (unsupported).""",
                then=to("fallback-storms", "Whose failures?"),
            ),
            timeseries(
                "Duration of stages, p95",
                {
                    "{{stage}}": """histogram_quantile(0.95,
                        sum by (le, stage) (rate(tracerouter_stage_duration_seconds_bucket[$__rate_interval])))"""
                },
                unit="s",
                about="""95 % of a stage's times are less. cheap, expensive and fallback wait on providers, and so does
                    classify where a model is asked; if another one leads, the time is lost in the router.""",
                then=to("telemetry-health", "Is the router overloaded?"),
            ),
        ),
        row(
            "Are embeddings made?",
            timeseries(
                "Embeddings by model",
                {
                    "{{gen_ai_request_model}} {{error_type}}": """sum by (gen_ai_request_model, error_type) (
                        rate(gen_ai_client_operation_duration_seconds_count{
                            gen_ai_operation_name="embeddings", gen_ai_request_model=~"$model"}[$__rate_interval]))"""
                },
                unit="reqps",
                stacked=True,
                about="""Requests for embeddings a second, by what became of them. No other model can stand in for one
                    that fails: vectors of two models can't be compared.""",
                each=to("request-drilldown", "Show requests for embeddings", task="embeddings"),
            ),
            timeseries(
                "Latency of embeddings",
                quantiles('gen_ai_client_operation_duration_seconds_bucket{gen_ai_operation_name="embeddings"}'),
                unit="s",
                exemplars=True,
                about="""Half, 95 % and 99 % of calls for embeddings take less. Many inputs in one call take longer than
                    one.""",
            ),
            timeseries(
                "Cost of embeddings per hour",
                {
                    "{{model}}": """sum by (model) (
                        rate(tracerouter_cost_total{task="embeddings"}[$__rate_interval])) * 3600"""
                },
                unit="currencyUSD",
                stacked=True,
                about="""What embeddings cost. They are neither cached nor routed, so that a job that embeds everything
                    again shows here alone.""",
                then=to("cost-tenants", "Who spends it?"),
            ),
        ),
    ],
)
