"""The boards that are committed are those that the code makes, and each can be read, followed and believed."""

from __future__ import annotations

import copy
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import promql_parser as pp
import pytest
import yaml
from grafana_foundation_sdk.models import units

import dashboards
from dashboards import alerts, promql
from dashboards.__main__ import ROOT, main
from dashboards.panels import ALERTS, TAG, Board, row, stat, values_of
from tracerouter.telemetry.metrics import Instruments
from tracerouter.telemetry.projections import FIELDS, SPAN_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from grafana_foundation_sdk.models.dashboard import Panel

Json = dict[str, Any]
Part = TypeVar("Part", bound=pp.Expr)

BOARDS = dashboards.dashboards()
QUERIES = dashboards.queries()
EXCEPTIONS = yaml.safe_load((ROOT / dashboards.FOLDER / ".lint").read_text(encoding="utf-8"))["exclusions"]
WINDOW = timedelta(seconds=481)
"""Stands for ``$__rate_interval``: no query asks for it by itself."""
UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}


def panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def asked(board: Json, language: str = "prometheus") -> Iterator[tuple[str, str]]:
    """Give the panel's title and the text of each query in a language."""
    for panel in panels(board):
        for target in panel.get("targets", ()):
            if target["datasource"]["type"] == language:
                yield panel["title"], target.get("expr") or target["query"]


def variables(board: Json, kind: str = "") -> list[Json]:
    return [variable for variable in board["templating"]["list"] if kind in {"", variable["type"]}]


def parsed(expr: str) -> pp.Expr:
    return pp.parse(expr.replace("$__rate_interval", "481s").replace("$__range", "1h"))


def parses(expr: str) -> bool:
    try:
        parsed(expr)
    except ValueError:
        return False
    return True


def parts(expr: str, kind: type[Part]) -> list[Part]:
    found: list[Part] = []
    pp.walk(parsed(expr), lambda part: found.append(part) if isinstance(part, kind) else None)
    return found


def metrics(expr: str) -> set[str]:
    return {str(selector.name) for selector in parts(expr, pp.VectorSelector)} | {
        str(selector.vector_selector.name) for selector in parts(expr, pp.MatrixSelector)
    }


def labels(panel: Json) -> set[str]:
    """Return the labels of what a panel's queries answer, and the one column that Tempo's table has."""
    exprs = [each["expr"] for each in panel["targets"] if each["datasource"]["type"] == "prometheus"]
    return {"traceID"}.union(*(promql.check(dashboards.resolve(expr), panel["title"]) for expr in exprs))


# The rules of grafana/dashboard-linter. Each gives the panels by title, or the variables by name, that break it.


def template_datasource(board: Json) -> Iterable[str]:
    found = variables(board, "datasource")
    for variable in found:
        kind = variable["query"]
        allowed = {(f"{kind}_datasource", f"{kind.capitalize()} data source")}
        allowed |= {("datasource", "Data source")} if len(found) == 1 else set()
        if (variable["name"], variable["label"]) not in allowed:
            yield variable["name"]
    if not found:
        yield board["title"]


def template_of(name: str) -> Callable[[Json], Iterable[str]]:
    wanted = {"type": "query", "label": name.capitalize(), "multi": True, "includeAll": True, "allValue": ".+"}

    def rule(board: Json) -> Iterable[str]:
        found = [variable for variable in variables(board) if variable["name"] == name]
        right = [variable for variable in found if variable.items() >= wanted.items()]
        return () if [each["datasource"]["uid"] for each in right] == ["${prometheus_datasource}"] else (name,)

    return rule


def template_label_promql(board: Json) -> Iterable[str]:
    for variable in variables(board, "query"):
        series = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"])
        if not series or not parses(series[1]):
            yield variable["name"]


def template_on_time_change_reload(board: Json) -> Iterable[str]:
    return (variable["name"] for variable in variables(board, "query") if variable["refresh"] != 2)


def uneditable(board: Json) -> Iterable[str]:
    return () if board["editable"] is False else (board["title"],)


def panel_datasource(board: Json) -> Iterable[str]:
    known = {f"${{{variable['name']}}}" for variable in variables(board, "datasource")}
    for panel in panels(board):
        used = {each["datasource"]["uid"] for each in (panel, *panel.get("targets", ())) if "datasource" in each}
        if not used <= known or not (used or panel["type"] == "text"):
            yield panel["title"]


def panel_title_description(board: Json) -> Iterable[str]:
    return (panel["title"] for panel in panels(board) if not (panel["title"] and panel.get("description")))


def panel_units(board: Json) -> Iterable[str]:
    for panel in panels(board):
        config = panel["fieldConfig"]
        overridden = {
            each["value"] for one in config["overrides"] for each in one["properties"] if each["id"] == "unit"
        }
        found = overridden | {config["defaults"].get("unit")} - {None}
        if panel["type"] not in {"text", "logs", "traces"} and not (found and found <= UNITS):
            yield panel["title"]


def panel_no_targets(board: Json) -> Iterable[str]:
    return (panel["title"] for panel in panels(board) if panel["type"] != "text" and not panel.get("targets"))


def target_promql(board: Json) -> Iterable[str]:
    return (title for title, expr in asked(board) if not parses(expr))


def target_logql(board: Json) -> Iterable[str]:
    log_query = re.compile(r'\{\w+=~?"[^"]+"\}( \| \w+(=|!=|=~|!~)"[^"]*")*')
    return (title for title, expr in asked(board, "loki") if not log_query.fullmatch(expr))


def target_logql_auto(board: Json) -> Iterable[str]:
    return (title for title, expr in asked(board, "loki") if re.search(r"\[(?!\$__auto\])[^\]]*\]", expr))


def target_rate_interval(board: Json) -> Iterable[str]:
    for title, expr in asked(board):
        rates = [call for call in parts(expr, pp.Call) if call.func.name in {"rate", "irate"}]
        if any(isinstance(call.args[0], pp.MatrixSelector) and call.args[0].range != WINDOW for call in rates):
            yield title


def target_matches(label: str) -> Callable[[Json], Iterable[str]]:
    def rule(board: Json) -> Iterable[str]:
        for title, expr in asked(board):
            for selector in parts(expr, pp.VectorSelector):
                wanted = (label, pp.MatchOp.Re, f"${label}")
                if wanted not in [(each.name, each.op, each.value) for each in selector.matchers.matchers]:
                    yield title

    return rule


def target_counter_agg(board: Json) -> Iterable[str]:
    """A counter's value means nothing; whether it is there, and since when, does."""
    growth, presence = {"rate", "irate", "increase"}, {"absent", "timestamp"}
    for title, expr in asked(board):
        calls = parts(expr, pp.Call)
        ranges = [call.args[0] for call in calls if call.func.name in growth]
        allowed: list[pp.Expr] = [part.vector_selector for part in ranges if isinstance(part, pp.MatrixSelector)]
        allowed += [call.args[0] for call in calls if call.func.name in presence]
        allowed += [each.expr for each in parts(expr, pp.AggregateExpr) if str(each.op) == "count"]
        counters = [str(each) for each in parts(expr, pp.VectorSelector) if str(each.name).endswith("_total")]
        if len(counters) > len([each for each in allowed if str(getattr(each, "name", "")).endswith("_total")]):
            yield title


class Rule(NamedTuple):
    """A rule, and a change to a board that breaks it."""

    finds: Callable[[Json], Iterable[str]]
    spoil: Callable[[Json], object]
    on: str = "overview"


def first(board: Json, kind: str) -> Json:
    return next(panel for panel in board["panels"] if panel["type"] == kind)


def ask(board: Json, expr: str) -> None:
    panel = first(board, "logs" if board["uid"] == "request-drilldown" else "timeseries")
    panel["targets"][0]["expr"] = expr


RULES = {
    "template-datasource-rule": Rule(template_datasource, lambda b: variables(b)[0].update(name="prom")),
    "template-job-rule": Rule(template_of("job"), lambda b: variables(b)[1].update(allValue=".*")),
    "template-instance-rule": Rule(template_of("instance"), lambda b: variables(b)[2].update(multi=False)),
    "template-label-promql-rule": Rule(template_label_promql, lambda b: variables(b)[1].update(query="values(x, job)")),
    "template-on-time-change-reload-rule": Rule(
        template_on_time_change_reload, lambda b: variables(b)[1].update(refresh=1)
    ),
    "panel-datasource-rule": Rule(panel_datasource, lambda b: first(b, "stat")["datasource"].update(uid="prom")),
    "panel-title-description-rule": Rule(panel_title_description, lambda b: first(b, "stat").update(description="")),
    "panel-units-rule": Rule(panel_units, lambda b: first(b, "stat")["fieldConfig"]["defaults"].update(unit="usd")),
    "panel-no-targets-rule": Rule(panel_no_targets, lambda b: first(b, "stat").update(targets=[])),
    "target-promql-rule": Rule(target_promql, lambda b: ask(b, "sum(")),
    "target-logql-rule": Rule(target_logql, lambda b: ask(b, '{service_name="x"} |'), on="request-drilldown"),
    "target-logql-auto-rule": Rule(
        target_logql_auto, lambda b: ask(b, 'rate({service_name="x"}[5m])'), on="request-drilldown"
    ),
    "target-rate-interval-rule": Rule(target_rate_interval, lambda b: ask(b, "rate(tracerouter_requests_total[5m])")),
    "target-job-rule": Rule(target_matches("job"), lambda b: ask(b, 'tracerouter_tenant_spend{job="$job"}')),
    "target-instance-rule": Rule(target_matches("instance"), lambda b: ask(b, "tracerouter_tenant_spend")),
    "target-counter-agg-rule": Rule(target_counter_agg, lambda b: ask(b, "sum(tracerouter_requests_total)")),
    "uneditable-dashboard": Rule(uneditable, lambda b: b.update(editable=True)),
}


def excepted(rule: str, board: Json) -> set[str]:
    entries = EXCEPTIONS.get(rule, {}).get("entries", ())
    return {entry["panel"] for entry in entries if entry["dashboard"] == board["title"]}


@pytest.mark.parametrize("name", RULES)
def test_every_board_keeps_the_linters_rule(name: str) -> None:
    """Each board keeps the rule of Grafana's dashboard-linter, but for the panels that ``.lint`` gives a reason for."""
    found = {(uid, title) for uid, board in BOARDS.items() for title in RULES[name].finds(board)}
    allowed = {(uid, title) for uid, board in BOARDS.items() for title in excepted(name, board)}
    assert found <= allowed


@pytest.mark.parametrize("name", RULES)
def test_each_rule_finds_what_breaks_it(name: str) -> None:
    """A rule says so when a board breaks it."""
    rule = RULES[name]
    board = copy.deepcopy(BOARDS[rule.on])
    before = list(rule.finds(board))
    rule.spoil(board)
    assert len(list(rule.finds(board))) == len(before) + 1


def test_what_is_committed_is_what_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    """No generated file is stale: ``python -m dashboards`` would change nothing."""
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_check_tells_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that was edited, one that is missing and one of a board that is gone are named, and then put right."""
    assert main(["--out", str(tmp_path)]) == 0
    assert main(["--out", str(tmp_path), "--check"]) == 0
    folder = tmp_path / dashboards.FOLDER
    (folder / "overview.json").write_text("{}", encoding="utf-8")
    (folder / "cache.json").unlink()
    (folder / "gone.json").write_text("{}", encoding="utf-8")
    capsys.readouterr()
    assert main(["--out", str(tmp_path), "--check"]) == 1
    told = capsys.readouterr().err
    assert [line.split()[1] for line in told.splitlines()] == [
        f"{dashboards.FOLDER}/{name}.json;" for name in ("cache", "gone", "overview")
    ]
    assert main(["--out", str(tmp_path)]) == 0
    assert main(["--out", str(tmp_path), "--check"]) == 0


def test_a_scale_shortens_the_rules_and_leaves_the_boards() -> None:
    """Drills run with shorter alerts, and with the boards as they are."""
    usual, short = dashboards.files(), dashboards.files(0.01)
    changed = {path for path in usual if usual[path] != short[path]}
    assert changed
    assert not {path for path in changed if path.parent == dashboards.FOLDER}


def broken(expr: str, title: str = "Broken") -> Panel:
    return stat(title, expr, unit="short", about="It cannot be read.")


@pytest.mark.parametrize(
    ("expr", "named"),
    [
        (
            "sum(rate(tracerouter_request_total[$__rate_interval]))",
            ("tracerouter_request_total", "tracerouter_requests_total"),
        ),
        ("sum by (modle) (rate(tracerouter_attempts_total[$__rate_interval]))", ("modle", "model")),
        ("sum(rate(tracerouter_attempts_total[$__rate_interval])", ("attempts_total",)),
    ],
)
def test_a_wrong_query_is_an_error_that_names_the_panel(expr: str, named: tuple[str, ...]) -> None:
    """A metric or label that nobody emits ends the generator with board, panel, name and the nearest right one."""
    with pytest.raises(promql.DashboardError) as error:
        Board("T", about="", rows=[row("?", broken(expr))]).dashboard("my-board")
    assert all(word in str(error.value) for word in ("my-board", "'Broken'", *named))


def test_a_wrong_variable_is_an_error_that_names_it() -> None:
    """So does a variable."""
    board = Board("T", about="", rows=[], variables=[values_of("tennant", "tracerouter_tenant_spend")])
    with pytest.raises(promql.DashboardError, match=r"board my-board, variable tennant: .*tenant"):
        board.dashboard("my-board")


def test_the_command_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with that sentence, exit status 1 and no traceback, and writes nothing."""
    monkeypatch.setattr("dashboards.boards.cache.BOARD", Board("T", about="", rows=[row("?", broken("nothing"))]))
    assert main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("board cache, panel 'Broken': unknown metric 'nothing'")
    assert not list(tmp_path.iterdir())


def test_a_panel_gets_its_matchers_letter_and_place() -> None:
    """A panel is title, query, unit and description: the rest comes from where it stands."""
    made = Board("T", about="", rows=[row("?", broken("sum(tracerouter_tenant_spend)"), broken('up{job="x"}', "Up"))])
    board = dashboards._json(made.dashboard("t"))
    ours, theirs = 'sum(tracerouter_tenant_spend{job=~"$job", instance=~"$instance"})', 'up{job="x"}'
    assert list(asked(board)) == [("Broken", ours), ("Up", theirs)]
    assert [target["refId"] for panel in panels(board) for target in panel["targets"]] == ["A", "A"]
    assert [(panel["id"], panel["gridPos"]["x"], panel["gridPos"]["w"]) for panel in panels(board)] == [
        (2, 0, 12), (3, 12, 12),
    ]  # fmt: skip


def test_every_board_of_the_issue_is_there() -> None:
    """Nine boards, each named as its file."""
    assert set(BOARDS) == {
        "overview", "route-mix", "fallback-storms", "cost-tenants", "cache", "classifier-validation", "providers",
        "telemetry-health", "request-drilldown",
    }  # fmt: skip
    assert all(board["uid"] == uid and board["schemaVersion"] == 42 for uid, board in BOARDS.items())


def test_every_metric_is_shown() -> None:
    """Each metric that is emitted is shown by a panel."""
    shown = {name for board in BOARDS.values() for _, expr in asked(board) for name in metrics(expr)}
    for instrument in vars(Instruments()).values():
        name = instrument.name.replace(".", "_")
        assert any(re.fullmatch(rf"{name}(_seconds)?(_total|_bucket|_count|_sum)?", each) for each in shown), name


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: alert.name)
def test_every_alerts_panel_is_there(alert: alerts.Alert) -> None:
    """The panel that an alert sends on-call to is on the board that it names."""
    uid, title = alert.panel
    assert title in {panel["title"] for panel in panels(BOARDS[uid])}


@pytest.mark.parametrize("uid", BOARDS)
def test_ids_are_unique_and_panels_do_not_overlap(uid: str) -> None:
    """Panel ids and titles are unique on a board, a panel's query letters too, and no panel covers another."""
    board = BOARDS[uid]
    for names in (
        [panel["id"] for panel in board["panels"]],
        [panel["title"] for panel in board["panels"]],
        *([target["refId"] for target in panel["targets"]] for panel in panels(board)),
    ):
        assert len(set(names)) == len(names)
    covered: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert covered.isdisjoint(cells), panel["title"]
        covered |= cells


@pytest.mark.parametrize("uid", BOARDS)
def test_every_link_leads_somewhere(uid: str) -> None:
    """A link's board exists, has each variable that the link sets, and what it is set to is a label of the panel."""
    (everywhere,) = BOARDS[uid]["links"]
    assert everywhere.items() >= {"type": "dashboards", "tags": [TAG], "includeVars": True, "keepTime": True}.items()
    assert TAG in BOARDS[uid]["tags"]
    for panel in panels(BOARDS[uid]):
        for link in [*panel.get("links", ()), *panel["fieldConfig"]["defaults"].get("links", ())]:
            leads = re.fullmatch(r"/d/([\w-]+)\?\$\{__url_time_range\}(.*)", link["url"])
            assert leads, link["url"]
            known = {variable["name"] for variable in variables(BOARDS[leads[1]])}
            given = re.findall(r"var-(\w+)=", leads[2]) + re.findall(r"\{(\w+):queryparam\}", leads[2])
            assert set(given) <= known
            assert set(re.findall(r"\$\{__(?:field\.labels|data\.fields)\.(\w+)\}", leads[2])) <= labels(panel)


@pytest.mark.parametrize("uid", BOARDS)
def test_no_board_is_an_end(uid: str) -> None:
    """Each board leads to another one by a panel's link, and another one leads to it."""
    leads = {
        (source, target)
        for source, board in BOARDS.items()
        for target in re.findall(r"/d/([\w-]+)\?", repr(board))
        if source != target
    }
    assert uid in {source for source, _ in leads}
    assert uid in {target for _, target in leads}


@pytest.mark.parametrize("uid", BOARDS)
def test_legends_name_labels_of_the_answer(uid: str) -> None:
    """A legend in braces is a label that the query's answer has."""
    for panel in panels(BOARDS[uid]):
        for target in panel["targets"]:
            assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) <= labels(panel), panel["title"]


@pytest.mark.parametrize("uid", BOARDS)
def test_alerts_are_seen_on_every_board(uid: str) -> None:
    """What fires is marked in every graph, from the same Prometheus."""
    (marks,) = BOARDS[uid]["annotations"]["list"]
    assert marks["enable"]
    assert (marks["datasource"]["uid"], marks["target"]["expr"]) == ("${prometheus_datasource}", ALERTS)


def test_every_variable_in_a_query_is_on_its_board() -> None:
    """A query uses only what can be chosen on its board; resolved, it has nothing of Grafana's left."""
    for query in QUERIES:
        known = {variable["name"] for variable in variables(BOARDS[query.board])} | {"__rate_interval", "__range"}
        assert set(re.findall(r"\$\{?(\w+)", query.expr)) <= known, query
        assert "$" not in dashboards.resolve(query.expr), query


def test_logs_and_traces_are_searched_by_what_they_carry() -> None:
    """LogQL and TraceQL name attributes that log records and the ``route`` span have."""
    spans = {name for query in QUERIES if query.kind == "traceql" for name in re.findall(r"span\.([\w.]+)", query.expr)}
    assert spans
    assert spans <= SPAN_ATTRIBUTES["route"].keys()
    record = {field.span.replace(".", "_") for field in FIELDS if field.span} | {"trace_id"}
    logged = {name for query in QUERIES if query.kind == "logql" for name in re.findall(r"\| (\w+)", query.expr)}
    assert "tracerouter_request_id" in logged
    assert logged <= record


@pytest.mark.parametrize(
    ("expr", "ready"),
    [
        ("rate(x[$__rate_interval])", "rate(x[20s])"),
        ("increase(x[${__range}])", "increase(x[90s])"),
        ('x{job=~"$job", task=~"${task:regex}"}', 'x{job=~".*", task=~".*"}'),
    ],
)
def test_resolved_queries_can_be_asked(expr: str, ready: str) -> None:
    """Intervals become those that are given, and what can be chosen becomes All."""
    assert dashboards.resolve(expr, interval="20s", period="90s") == ready
