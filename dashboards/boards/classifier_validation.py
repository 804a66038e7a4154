"""Classifier & validation: whether requests are understood, and whether answers are right."""

from __future__ import annotations

from dashboards import alerts
from dashboards.panels import Board, heatmap, quantiles, row, timeseries, to

BOARD = Board(
    "Classifier & validation",
    about="""Are requests understood, and are answers right? The two errors that look like a cheap model getting worse:
        a classifier that sends it the wrong requests, and a validator that turns down good answers.""",
    rows=[
        row(
            "Is the traffic what the classifier knows?",
            timeseries(
                "Label mix",
                {
                    "{{task}}": """sum by (task) (rate(tracerouter_classifications_total[$__rate_interval]))
                    / ignoring (task) group_left sum(rate(tracerouter_classifications_total[$__rate_interval]))"""
                },
                unit="percentunit",
                stacked=True,
                about="""Share of classified requests by label. One label that swallows the others is a broken
                    classifier; a slow shift is new traffic: read some of its requests, then add examples.""",
                then=to("route-mix", "What does it do to the mix?"),
                each=to("request-drilldown", "Show this label", task="${__field.labels.task}"),
            ),
            timeseries(
                "Drift",
                {
                    "labels (stability index)": "tracerouter:label_stability:1h",
                    "confidence lost": "clamp_min(tracerouter:confidence:1d - tracerouter:confidence:1h, 0)",
                    "largest label's share": "max(tracerouter:label_share:1h)",
                },
                unit="short",
                at_most=alerts.UNSTABLE,
                about="""The last hour against the day before. The labels' index: under 0.1 nothing has changed, over
                    the line something has, and the label mix shows what. Confidence lost: over 0.15 the classifier is
                    unsure. One label with nearly everything: is it right? No data: too little history.""",
            ),
        ),
        row(
            "Is it sure?",
            timeseries(
                "Confidence",
                {
                    name: f"""histogram_quantile({share},
                    sum by (le) (rate(tracerouter_classifier_confidence_bucket[$__rate_interval])))"""
                    for name, share in {"p10": 0.1, "p50": 0.5, "p90": 0.9}.items()
                },
                unit="percentunit",
                about="""A tenth, a half and nine tenths of classifications are less sure than this. When p50 comes
                    down to policy's min_confidence, most requests go straight to the last rung.""",
                then=to("route-mix", "How much goes to the last rung?"),
            ),
            heatmap(
                "Confidence, all classifications",
                "sum by (le) (increase(tracerouter_classifier_confidence_bucket[$__rate_interval]))",
                unit="percentunit",
                about="""How many classifications were how sure. A dark band just under the threshold is money: a few
                    more examples of those labels would make them cheap.""",
            ),
            timeseries(
                "Abstained",
                {
                    "{{classifier}}": """(sum by (classifier) (
                        rate(tracerouter_classifications_total{abstained="true"}[$__rate_interval]))
                    or sum by (classifier) (rate(tracerouter_classifications_total[$__rate_interval])) * 0)
                    / ignoring (classifier) group_left sum(rate(tracerouter_classifications_total[$__rate_interval]))"""
                },
                unit="percentunit",
                about="""Share of requests for which no classifier knew a label, by the last one that answered. They
                    start at the last rung. If it grows, there is traffic without examples, or a classifier fails: see
                    below.""",
            ),
        ),
        row(
            "Do classifiers answer?",
            timeseries(
                "Failed classifying",
                {
                    "failed": """(sum(rate(tracerouter_stage_duration_seconds_count{
                        stage="classify", error_type!~"|cancelled"}[$__rate_interval])) or vector(0))
                    / sum(rate(tracerouter_stage_duration_seconds_count{
                        stage="classify", error_type!="cancelled"}[$__rate_interval]))"""
                },
                unit="percentunit",
                at_most=alerts.CLASSIFIER_FAILED,
                about="""Share of classifications in which a classifier failed and no other was sure. What nobody is
                    sure of goes to the last rung: each is paid for at its price.""",
                then=to("route-mix", "How much goes to the last rung?"),
            ),
            timeseries(
                "Failures by type",
                {
                    "{{error_type}}": """sum by (error_type) (rate(tracerouter_stage_duration_seconds_count{
                        stage="classify", error_type!~"|cancelled"}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""The same a second, by reason. timeout, rate_limited and provider_error are a model's: the next
                    panel names it. The name of an exception is a classifier's own: the log says whose.""",
            ),
            timeseries(
                "Models asked by classifiers",
                {
                    "{{model}} {{error_type}}": """sum by (model, error_type) (
                        rate(tracerouter_attempts_total{role="classify"}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""Calls a second by the model that a classifier asks and what became of them. None at all: no
                    classifier asks a model, or those before it are always sure.""",
                then=to("providers", "Is that model in trouble?"),
            ),
            timeseries(
                "Cost of classifying per hour",
                {
                    "{{model}}": """sum by (model) (
                        rate(tracerouter_cost_total{role="classify"}[$__rate_interval])) * 3600"""
                },
                unit="currencyUSD",
                stacked=True,
                about="""What asking models for labels costs. Compare with what is saved: where it is a good part of
                    that, examples of your own are cheaper.""",
                then=to("cost-tenants", "What is saved?"),
            ),
        ),
        row(
            "Are answers right?",
            timeseries(
                "Validation failure ratio",
                {
                    "{{validator}}": """sum by (validator) (
                        rate(tracerouter_validations_total{status="failed"}[$__rate_interval]))
                    / sum by (validator) (rate(tracerouter_validations_total{status!="skipped"}[$__rate_interval]))"""
                },
                unit="percentunit",
                at_most=alerts.INVALID,
                about="""Of the answers that a validator looked at, the share that it turned down. One that jumps: read
                    a few of those answers. If they are good, the validator is wrong; if not, the model or its prompt
                    has changed.""",
                then=to("fallback-storms", "What does it lead to?"),
                each=to("request-drilldown", "Show requests that fell back", route="fallback"),
            ),
            timeseries(
                "Validations by status",
                {"{{status}}": "sum by (status) (rate(tracerouter_validations_total[$__rate_interval]))"},
                unit="ops",
                stacked=True,
                about="""Answers looked at a second. repaired: almost-JSON was mended and passed; much of it says that
                    the prompt could ask more clearly. skipped: there was nothing to check, such as no schema.""",
            ),
            timeseries(
                "Failures by validator",
                {
                    "{{validator}}": """sum by (validator) (
                        rate(tracerouter_validations_total{status="failed"}[$__rate_interval]))"""
                },
                unit="ops",
                stacked=True,
                about="""Answers turned down a second, by the validator that did it. Each one is a fallback, paid for
                    twice.""",
                then=to("fallback-storms", "What does it cost?"),
            ),
        ),
        row(
            "What do they take?",
            timeseries(
                "Duration of classifying",
                quantiles('tracerouter_stage_duration_seconds_bucket{stage="classify"}'),
                unit="s",
                exemplars=True,
                about="""Half, 95 % and 99 % of classifications take less. Every request pays it that is not in the
                    cache; with a model as the last classifier, p99 is that model's.""",
            ),
            timeseries(
                "Duration of validating",
                quantiles('tracerouter_stage_duration_seconds_bucket{stage="validate"}'),
                unit="s",
                exemplars=True,
                about="Half, 95 % and 99 % of validations take less. Slow: a check of your own waits for something.",
            ),
        ),
    ],
)
