"""The few helpers that boards are written with, over grafana-foundation-sdk: a panel is one call.

A panel's query letters, id and place come from the row and the board that it stands in; so do the data source and the
matchers for the job and the instance that are chosen at the top of the board.
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

from grafana_foundation_sdk.models import common, loki, prometheus, tempo
from grafana_foundation_sdk.models import dashboard as sdk
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import logs as log
from grafana_foundation_sdk.models.bargauge import Options as BarOptions
from grafana_foundation_sdk.models.stat import Options as StatOptions
from grafana_foundation_sdk.models.table import Options as TableOptions
from grafana_foundation_sdk.models.text import Options as TextOptions
from grafana_foundation_sdk.models.text import TextMode
from grafana_foundation_sdk.models.timeseries import Options as TimeOptions

from dashboards import promql

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana_foundation_sdk.cog.variants import Dataquery

Link = sdk.DashboardLink

PROMETHEUS: Final = common.DataSourceRef("prometheus", "${prometheus_datasource}")
LOKI: Final = common.DataSourceRef("loki", "${loki_datasource}")
TEMPO: Final = common.DataSourceRef("tempo", "${tempo_datasource}")
"""Named by type, since the linter allows the bare ``datasource`` only where a board has no other."""

TAG: Final = "tracerouter"
ALERTS: Final = 'ALERTS{alertname!="", alertstate="firing"}'

_WIDTH: Final = 24
_HEIGHTS: Final = {"stat": 4, "text": 4, "logs": 12, "traces": 16}
_GOOD, _BAD = "green", "red"
_COLOURS: Final = {
    "answered": "green", "cached": "blue", "refused": "yellow", "failed": "red", "cancelled": "gray",
    "cheap": "green", "expensive": "purple", "fallback": "orange", "classify": "semi-dark-blue",
    "queued": "semi-dark-yellow", "needs_confirmation": "dark-yellow",
    "review": "dark-yellow", "in_review": "dark-yellow",
    "hit": "blue", "miss": "gray", "stale": "yellow", "bypass": "purple",
}  # fmt: skip
"""Of a route, an outcome or a cache's result: the same on every board."""


class About(TypedDict, total=False):
    """What every kind of panel can be told besides its title and queries."""

    unit: str
    about: str
    """How to read it, and what to do."""
    then: Link
    """The next question, as a link at the panel's head."""
    each: Link
    """The next question about one series or row, as a link at each."""
    at_least: float
    """Below this it is bad."""
    at_most: float
    """From this on it is bad."""
    width: int
    """Of 24; else panels share their row equally."""


def timeseries(
    title: str,
    queries: Mapping[str, str],
    *,
    stacked: bool = False,
    exemplars: bool = False,
    **about: Unpack[About],
) -> sdk.Panel:
    """Make a panel of lines over time, of queries by legend."""
    limited = "at_least" in about or "at_most" in about
    lines = common.GraphFieldConfig(
        line_width=1,
        fill_opacity=60 if stacked else 10,
        show_points=common.VisibilityMode.NEVER,
        stacking=common.StackingConfig(common.StackingMode.NORMAL) if stacked else None,
        thresholds_style=common.GraphThresholdsStyleConfig(common.GraphThresholdsStyleMode.DASHED) if limited else None,
    )
    options = TimeOptions(
        legend=common.VizLegendOptions(
            display_mode=common.LegendDisplayMode.TABLE,
            placement=common.LegendPlacement.BOTTOM,
            show_legend=True,
            calcs=["lastNotNull", "max"],
        ),
        tooltip=common.VizTooltipOptions(mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.DESCENDING),
    )
    first = next(iter(queries))  # one query's exemplars are those of all: they are the histogram's
    targets = [_query(expr, legend, exemplars=exemplars and legend == first) for legend, expr in queries.items()]
    panel = _panel("timeseries", title, targets, options, custom=lines, **about)
    _defaults(panel).color = sdk.FieldColor(sdk.FieldColorModeId.PALETTE_CLASSIC)
    if not {"{{route}}", "{{outcome}}", "{{result}}"}.isdisjoint(queries):
        _overrides(panel).extend(
            _override(name, color=sdk.FieldColor(sdk.FieldColorModeId.FIXED, colour))
            for name, colour in _COLOURS.items()
        )
    return panel


def stat(title: str, expr: str, **about: Unpack[About]) -> sdk.Panel:
    """Make a panel of one big number, over the whole time range that is shown."""
    limited = "at_least" in about or "at_most" in about
    options = StatOptions(
        graph_mode=common.BigValueGraphMode.NONE,
        color_mode=common.BigValueColorMode.BACKGROUND if limited else common.BigValueColorMode.VALUE,
        reduce_options=common.ReduceDataOptions(calcs=["lastNotNull"]),
    )
    return _panel("stat", title, [_query(expr, "", instant=True)], options, **about)


def bars(title: str, queries: Mapping[str, str], **about: Unpack[About]) -> sdk.Panel:
    """Make a panel of bars to compare, over the whole time range that is shown; of queries by legend."""
    options = BarOptions(
        display_mode=common.BarGaugeDisplayMode.BASIC,
        orientation=common.VizOrientation.HORIZONTAL,
        reduce_options=common.ReduceDataOptions(calcs=["lastNotNull"]),
    )
    targets = [_query(expr, legend, instant=True) for legend, expr in queries.items()]
    panel = _panel("bargauge", title, targets, options, **about)
    _defaults(panel).min_val = 0
    return panel


def table(title: str, columns: Mapping[str, tuple[str, str]], **about: Unpack[About]) -> sdk.Panel:
    """Make a table over the whole time range that is shown, of (query, unit) by column; the first one sorts it."""
    first = next(iter(columns))
    targets = [_query(expr, "", instant=True, form=prometheus.PromQueryFormat.TABLE) for expr, _ in columns.values()]
    options = TableOptions(
        sort_by=[common.TableSortByFieldState(first, desc=True)], cell_height=common.TableCellHeight.SM
    )
    panel = _panel("table", title, targets, options, **about)
    named = {f"Value #{_letter(index)}": column for index, column in enumerate(columns)}
    panel.transformations = [
        sdk.DataTransformerConfig("merge", options={}),
        sdk.DataTransformerConfig(
            "organize", options={"excludeByName": {"Time": True}, "renameByName": {**named, "Value": first}}
        ),
    ]
    _overrides(panel).extend(_override(column, unit=unit) for column, (_, unit) in columns.items())
    return panel


def heatmap(title: str, expr: str, *, exemplars: bool = False, **about: Unpack[About]) -> sdk.Panel:
    """Make a heatmap of a histogram's buckets, summed ``by (le)``."""
    options = heat.Options(
        color=heat.HeatmapColorOptions(
            mode=heat.HeatmapColorMode.SCHEME,
            scheme="Oranges",
            fill="dark-orange",
            scale=heat.HeatmapColorScale.EXPONENTIAL,
            exponent=0.5,
            steps=64,
        ),
        y_axis=heat.YAxisConfig(unit=about.get("unit")),
        tooltip=heat.HeatmapTooltip(mode=common.TooltipDisplayMode.SINGLE, y_histogram=True),
        legend=heat.HeatmapLegend(show=True),
        exemplars=heat.ExemplarConfig("rgba(255,0,255,0.7)"),
        filter_values=heat.FilterValueRange(le=1e-9),
    )
    target = _query(expr, "{{le}}", exemplars=exemplars, form=prometheus.PromQueryFormat.HEATMAP)
    return _panel("heatmap", title, [target], options, **about)


def note(title: str, text: str, **about: Unpack[About]) -> sdk.Panel:
    """Make a panel of text (Markdown)."""
    return _panel("text", title, [], TextOptions(TextMode.MARKDOWN, content=_line(text)), **about)


def logs(title: str, expr: str, **about: Unpack[About]) -> sdk.Panel:
    """Make a panel of Loki's log lines (LogQL)."""
    options = log.Options(
        show_time=True,
        wrap_log_message=True,
        prettify_log_message=True,
        enable_log_details=True,
        sort_order=common.LogsSortOrder.DESCENDING,
        dedup_strategy=common.LogsDedupStrategy.NONE,
    )
    return _panel("logs", title, [loki.Dataquery(_line(expr), query_type="range", datasource=LOKI)], options, **about)


def searched(title: str, query: str, **about: Unpack[About]) -> sdk.Panel:
    """Make a table of the traces that Tempo finds (TraceQL)."""
    target = tempo.Dataquery(
        query_type="traceql", query=_line(query), limit=50, table_type=tempo.SearchTableType.TRACES, datasource=TEMPO
    )
    options = TableOptions(cell_height=common.TableCellHeight.SM)
    about.setdefault("unit", "none")  # each column says its own
    return _panel("table", title, [target], options, **about)


def trace(title: str, trace_id: str, **about: Unpack[About]) -> sdk.Panel:
    """Make a panel of one trace's spans. The SDK has no builder for it, and it has no options."""
    target = tempo.Dataquery(query_type="traceql", query=trace_id, datasource=TEMPO)
    return _panel("traces", title, [target], {}, **about)


def quantiles(buckets: str, *by: str) -> dict[str, str]:
    """Return the queries for half, 95 % and 99 % of a histogram's values, of each `by`."""
    rates = f"sum by ({', '.join(('le', *by))}) (rate({buckets}[$__rate_interval]))"
    each = "".join(f"{{{{{label}}}}} " for label in by)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {f"{each}{name}": f"histogram_quantile({share}, {rates})" for name, share in shares.items()}


def to(uid: str, question: str, **values: str) -> Link:
    """Link to the board that answers the next question, for the same time and processes; `values` set its variables."""
    kept = [f"${{{name}:queryparam}}" for name in ("prometheus_datasource", "job", "instance")]
    given = [f"var-{name}={value}" for name, value in values.items()]
    return _link(question, url=f"/d/{uid}?" + "&".join(["${__url_time_range}", *kept, *given]))


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that answer one question, side by side; what does not fit goes into the next line."""

    question: str
    panels: tuple[sdk.Panel, ...]


def row(question: str, *panels: sdk.Panel) -> Row:
    """Put panels side by side under a question."""
    return Row(question, panels)


def values_of(label: str, series: str) -> sdk.VariableModel:
    """Make a variable that chooses among a label's values. All, the default, includes series without the label."""
    query = f"label_values({series}, {label})"
    return sdk.VariableModel(
        type_val=sdk.VariableType.QUERY,
        name=label,
        label=label.capitalize(),
        query=query,
        definition=query,
        datasource=PROMETHEUS,
        refresh=sdk.VariableRefresh.ON_TIME_RANGE_CHANGED,
        sort=sdk.VariableSort.ALPHABETICAL_ASC,
        multi=True,
        include_all=True,
        all_value=".+" if label in promql.RESOURCE else ".*",
        current=sdk.VariableOption(selected=True, text=["All"], value=["$__all"]),
    )


def choice(name: str, *values: str) -> sdk.VariableModel:
    """Make a variable that chooses among these values. All is the default."""
    return sdk.VariableModel(
        type_val=sdk.VariableType.CUSTOM,
        name=name,
        label=name.capitalize(),
        query=",".join(values),
        options=[sdk.VariableOption(selected=False, text=value, value=value) for value in values],
        multi=True,
        include_all=True,
        all_value=".*",
        current=sdk.VariableOption(selected=True, text=["All"], value=["$__all"]),
    )


def entry(name: str, label: str) -> sdk.VariableModel:
    """Make a variable to type or paste in."""
    return sdk.VariableModel(type_val=sdk.VariableType.TEXTBOX, name=name, label=label, query="")


def datasource(ref: common.DataSourceRef) -> sdk.VariableModel:
    """Make the variable that a data source is chosen by."""
    return sdk.VariableModel(
        type_val=sdk.VariableType.DATASOURCE,
        name=f"{ref.type_val}_datasource",
        label=f"{str(ref.type_val).capitalize()} data source",
        query=ref.type_val,
    )


@dataclass(frozen=True, slots=True)
class Board:
    """A board: its title, what it is for, its rows, what can be chosen at its top, and the time that it shows."""

    title: str
    about: str
    rows: Sequence[Row]
    variables: Sequence[sdk.VariableModel] = ()
    since: str = "now-1h"

    def dashboard(self, uid: str) -> sdk.Dashboard:
        """Make the dashboard.

        Raises:
            DashboardError: A query names a metric or label that is not emitted.
        """
        variables = [
            datasource(PROMETHEUS),
            values_of("job", "tracerouter_requests_total"),
            values_of("instance", 'tracerouter_requests_total{job=~"$job"}'),
            *self.variables,
        ]
        for variable in variables:
            if variable.type_val is sdk.VariableType.QUERY:
                promql.check(resolve(str(variable.query)), f"board {uid}, variable {variable.name}")
        made = sdk.Dashboard(
            uid=uid,
            title=f"tracerouter / {self.title}",
            description=_line(self.about),
            tags=[TAG],
            editable=False,
            graph_tooltip=sdk.DashboardCursorSync.CROSSHAIR,
            time=sdk.DashboardDashboardTime(self.since, "now"),
            refresh="30s",
            templating=sdk.DashboardDashboardTemplating(variables),
            annotations=sdk.AnnotationContainer([_alerts(uid)]),
            links=[_link("All boards", tags=[TAG])],
        )
        made.panels = [panel for placed in _placed(deepcopy(self.rows)) for panel in placed]
        for number, panel in enumerate(made.panels, 1):
            panel.id_val = number
            if isinstance(panel, sdk.Panel):
                _finish(panel, uid)
        return made


def resolve(expr: str, interval: str = "5m", period: str = "1h") -> str:
    """Substitute Grafana's variables, so that Prometheus, Loki or Tempo understands the query.

    ``$__range`` becomes `period`, every other interval `interval`; a chosen value becomes ``.*``, which is All.
    """
    expr = re.sub(r"\$(__range\b|\{__range\})", period, expr)
    expr = re.sub(r"\$(__\w+|\{__\w+\})", interval, expr)
    return re.sub(r"\$(\w+|\{\w+(:\w+)?\})", ".*", expr)


def scoped(expr: str) -> str:
    """Match every metric of ours by the job and instance that are chosen at the top of the board.

    What Prometheus makes has neither: ``ALERTS``, ``up``, and the series of recording rules.
    """
    return _ours().sub(lambda found: f'{found[1]}{{job=~"$job", instance=~"$instance"{_rest(found[2])}', expr)


@cache
def _ours() -> re.Pattern[str]:
    names = [name for name, labels in promql.vocabulary().items() if name not in promql.OTHERS and ":" not in name]
    return re.compile(rf"(?<![\w:])({'|'.join(sorted(names, key=len, reverse=True))})(?![\w:])(\{{\}}?)?")


def _rest(opening: str | None) -> str:
    return ", " if opening == "{" else "}"


def _finish(panel: sdk.Panel, uid: str) -> None:
    for index, target in enumerate(panel.targets or []):
        assert isinstance(target, prometheus.Dataquery | loki.Dataquery | tempo.Dataquery)  # noqa: S101 - for mypy
        target.ref_id = _letter(index)
        if isinstance(target, prometheus.Dataquery):
            target.expr = scoped(target.expr)
            promql.check(resolve(target.expr), f"board {uid}, panel {panel.title!r}")


def _placed(rows: Sequence[Row]) -> list[list[sdk.Panel | sdk.RowPanel]]:
    lines: list[list[sdk.Panel | sdk.RowPanel]] = []
    y = 0
    for each in rows:
        lines.append([sdk.RowPanel(title=each.question, grid_pos=sdk.GridPos(h=1, w=_WIDTH, x=0, y=y))])
        y += 1
        equal = _WIDTH // len(each.panels)
        height, x = max(_HEIGHTS.get(panel.type_val, 8) for panel in each.panels), 0
        for panel in each.panels:
            width = panel.grid_pos.w if panel.grid_pos else equal
            if x + width > _WIDTH:
                x, y = 0, y + height
            panel.grid_pos = sdk.GridPos(h=height, w=width, x=x, y=y)
            x += width
        lines.append(list(each.panels))
        y += height
    return lines


def _panel(
    kind: str, title: str, targets: Sequence[Dataquery], options: object, custom: object = None, **about: Unpack[About]
) -> sdk.Panel:
    """Make a panel. Its place is only a width until the board is built."""
    return sdk.Panel(
        type_val=kind,
        title=title,
        description=_line(about["about"]),
        targets=list(targets),
        datasource=next((getattr(target, "datasource", None) for target in targets), None),
        grid_pos=sdk.GridPos(w=about["width"]) if "width" in about else None,
        links=[about["then"]] if "then" in about else None,
        options=options,
        field_config=sdk.FieldConfigSource(
            sdk.FieldConfig(
                unit=about.get("unit"),
                thresholds=_thresholds(about.get("at_least"), about.get("at_most")),
                links=[about["each"]] if "each" in about else None,
                custom=custom,
            ),
            [],
        ),
    )


def _thresholds(at_least: float | None, at_most: float | None) -> sdk.ThresholdsConfig:
    if at_least is not None:
        return sdk.ThresholdsConfig(steps=[sdk.Threshold(None, _BAD), sdk.Threshold(at_least, _GOOD)])
    if at_most is not None:
        return sdk.ThresholdsConfig(steps=[sdk.Threshold(None, _GOOD), sdk.Threshold(at_most, _BAD)])
    return sdk.ThresholdsConfig(steps=[sdk.Threshold(None, "text")])


def _query(
    expr: str,
    legend: str,
    *,
    instant: bool = False,
    exemplars: bool = False,
    form: prometheus.PromQueryFormat = prometheus.PromQueryFormat.TIME_SERIES,
) -> prometheus.Dataquery:
    return prometheus.Dataquery(
        datasource=PROMETHEUS,
        expr=_line(expr),
        legend_format=legend or None,
        instant=instant,
        range_val=not instant,
        exemplar=exemplars,
        format_val=form,
    )


def _alerts(uid: str) -> sdk.AnnotationQuery:
    promql.check(ALERTS, f"board {uid}, annotation Alerts")
    made = sdk.AnnotationQuery(
        name="Alerts",
        datasource=PROMETHEUS,
        enable=True,
        icon_color=_BAD,
        expr=ALERTS,
        title_format="{{alertname}}",
        text_format="{{severity}}",
        tag_keys="alertname,severity",
        step="1m",
        target=prometheus.Dataquery(datasource=PROMETHEUS, expr=ALERTS, ref_id="Alerts", range_val=True),
    )
    made.placement = ""  # the SDK hides it in a menu
    return made


def _link(title: str, *, url: str | None = None, tags: list[str] | None = None) -> Link:
    kind = sdk.DashboardLinkType.LINK if url else sdk.DashboardLinkType.DASHBOARDS
    made = Link(title, kind, url=url, tags=tags, as_dropdown=not url, include_vars=not url, keep_time=not url)
    made.placement = ""  # the SDK hides it in a menu
    return made


def _override(field: str, **properties: Any) -> sdk.DashboardFieldConfigSourceOverrides:
    return sdk.DashboardFieldConfigSourceOverrides(
        matcher=sdk.MatcherConfig("byName", field),
        properties=[sdk.DynamicConfigValue(name, value) for name, value in properties.items()],
    )


def _defaults(panel: sdk.Panel) -> sdk.FieldConfig:
    assert panel.field_config is not None  # noqa: S101 - for mypy: _panel sets it
    return panel.field_config.defaults


def _overrides(panel: sdk.Panel) -> list[sdk.DashboardFieldConfigSourceOverrides]:
    assert panel.field_config is not None  # noqa: S101 - for mypy: _panel sets it
    return panel.field_config.overrides


def _line(text: str) -> str:
    """Write in one line what the boards' source wraps."""
    return " ".join(text.split())


def _letter(index: int) -> str:
    return chr(ord("A") + index)
