"""Each alert fires when it should, is silent when it should, and every part of its condition is needed for that."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import promql, rules
from dashboards.alerts import ALERTS, RECORDINGS, Alert, Change
from tests import observability
from tracerouter.cli import main as tracerouter

ROOT = Path(__file__).parents[3]
PROMTOOL = observability.PROMTOOL.binary()
NEVER, ALWAYS = "vector(0) > 1", "vector(1)"
THRESHOLD = re.compile(r"(?:(?<= > )|(?<= <= ))[\d.]+")
"""What is compared with ``>`` or ``<=``, but for a floor."""
FLOOR = re.compile(r">= \d+")
DURATION = re.compile(r"(\d+)(ms|s|m|h|d)\b")
CHANGES = [change for alert in ALERTS for change in alert.confine if isinstance(change, Change)]

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: install prometheus (Debian package)")
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


def promtool(*arguments: str | Path) -> tuple[int, str]:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    return done.returncode, done.stdout + done.stderr


def mutants(alert: Alert) -> dict[str, Alert]:
    """The alert, one sign of it alone, with one part of its query changed; by what was done to it."""
    made = {}
    for sign, expr in alert.signs.items():
        changed = {"never": NEVER, "always": ALWAYS}
        for found in THRESHOLD.finditer(expr):
            for value in ("-1", "1e9"):
                changed[f"{value} at {found.start()}"] = f"{expr[: found.start()]}{value}{expr[found.end() :]}"
        for found in FLOOR.finditer(expr):
            changed[f"no floor at {found.start()}"] = f"{expr[: found.start()]}>= 0{expr[found.end() :]}"
        fires = tuple(case for case in alert.fires if case.labels.get("sign", "") == sign)
        for what, mutated in changed.items():
            name = f"{alert.name} {sign} {what}"
            made[name] = replace(alert, name=name, expr={sign: mutated}, fires=fires)
    return made


def seen_together(alerts: Iterable[Alert]) -> str:
    """The tests of `alerts`; what Prometheus sees in several of them, it sees once."""
    written: dict[str, Any] = {}
    tests: dict[str, dict[str, Any]] = {}
    for alert in alerts:
        written = yaml.safe_load(rules.tests([alert]))
        for test in written["tests"]:
            seen = tests.setdefault(str(test["input_series"]), {**test, "promql_expr_test": []})
            seen["promql_expr_test"] += test["promql_expr_test"]
    return yaml.safe_dump(written | {"tests": list(tests.values())})


def needed_by(alerts: Iterable[Alert]) -> str:
    """The rules of `alerts` and the recording rules that they stand on, so that promtool has less to do."""
    written = yaml.safe_load(rules.rules(alerts=tuple(alerts)))
    needed = {rule["expr"] for group in written["groups"] for rule in group["rules"] if "alert" in rule}
    expressions = {recording.name: recording.expr for recording in RECORDINGS}
    names: set[str] = set()
    while found := {name for name in expressions.keys() - names if any(name in expr for expr in needed)}:
        names |= found
        needed |= {expressions[name] for name in found}
    for group in written["groups"]:
        group["rules"] = [rule for rule in group["rules"] if "alert" in rule or rule["record"] in names]
    return yaml.safe_dump(written)


@needs_promtool
def test_promtool_accepts_the_rules_in_production_and_in_a_drill(tmp_path: Path) -> None:
    """The committed rules have no fault that promtool knows of, and neither have those of a drill."""
    drill = tmp_path / "rules.yaml"
    drill.write_text(rules.rules(1 / 240), encoding="utf-8")
    status, told = promtool("check", "rules", "--lint=all", ROOT / rules.RULES, drill)
    assert status == 0, told


@needs_promtool
@pytest.mark.timeout(300)
def test_promtool_passes_the_committed_tests() -> None:
    """Every alert fires in its firing cases, and is silent in the others and without traffic."""
    status, told = promtool("test", "rules", ROOT / rules.TESTS)
    assert status == 0, told


@needs_promtool
@each_alert
def test_every_part_of_a_condition_is_needed(alert: Alert, tmp_path: Path) -> None:
    """Without a threshold, a floor or a sign of its own, an alert fails a test of its own."""
    changed = mutants(alert)
    (tmp_path / "rules.yaml").write_text(needed_by(changed.values()), encoding="utf-8")
    (tmp_path / "rules_test.yaml").write_text(seen_together(changed.values()), encoding="utf-8")
    _, told = promtool("test", "rules", tmp_path / "rules_test.yaml")
    assert "parse error" not in told
    caught = set(re.findall(r'ALERTS\{alertname=\\"(.+?)\\"', told))
    assert sorted(changed.keys() - caught) == []


@each_alert
def test_an_alert_has_tests_for_firing_for_silence_and_for_its_floor(alert: Alert) -> None:
    """Each sign of each alert fires once at least, and again with a thousandth of the traffic, which is silent."""
    assert {case.labels.get("sign", "") for case in alert.fires} == alert.signs.keys()
    assert alert.silent
    names = [test["name"] for test in yaml.safe_load((ROOT / rules.TESTS).read_text(encoding="utf-8"))["tests"]]
    for case in alert.fires:
        assert f"{alert.name} fires: {case.about}" in names
        assert f"{alert.name} is silent: {case.about}, at a thousandth of the traffic" in names
    assert all(FLOOR.search(expr) for expr in alert.signs.values())


def durations(text: str) -> list[int]:
    """Every duration of a rule file, in milliseconds."""
    unit = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    return [int(count) * unit[name] for count, name in DURATION.findall(text)]


def test_one_setting_shortens_every_duration_and_changes_nothing_else() -> None:
    """The rules of a drill are those of production with each duration times the scale."""
    usual, drill = (
        re.sub(r"(\w{3}):(\d+)(m|h|d)\b", r"\1:\2 \3", rules.rules(scale)) for scale in (1, 1 / 240)
    )  # rules' names
    assert [max(1, round(each / 240)) for each in durations(usual)] == durations(drill)
    assert DURATION.sub("", usual) == DURATION.sub("", drill)
    assert len(durations(usual)) > 100
    written = yaml.safe_load(usual)["groups"]
    assert all(promql.DURATION.fullmatch(f"{{{group['interval']}}}") for group in written)


@each_alert
def test_a_duration_that_is_not_in_braces_would_not_be_shortened(alert: Alert) -> None:
    """No alert has a range, an offset or a hold that the one setting does not reach."""
    for expr in (*alert.signs.values(), alert.hold, alert.query):
        assert not re.search(r"(\[|offset |^)\d", expr)


@each_alert
def test_an_alert_leads_to_its_section_of_the_runbook(alert: Alert) -> None:
    """The link in the alert's annotations is the address of its section, which tells all that there is to tell."""
    written = yaml.safe_load((ROOT / rules.RULES).read_text(encoding="utf-8"))["groups"]
    (link,) = {
        rule["annotations"]["runbook"]
        for group in written
        for rule in group["rules"]
        if rule.get("alert") == alert.name
    }
    path, anchor = link.split("#")
    sections = {part.splitlines()[0].lower(): part for part in (ROOT / path).read_text(encoding="utf-8").split("\n## ")}
    section = sections[anchor]
    for told in (
        alert.meaning,
        alert.panel[1],
        promql.at_scale(alert.query),
        alert.then,
        *(step.why for step in alert.confine),
    ):
        assert told in section
    assert "{{" not in section


POLICY: dict[str, Any] = {
    "ladder": ["small", "large"],
    "cache": "never",
    "tasks": {"extract": {"validate": ["json_schema"], "schema": "old.json"}, "summarize": {"min_confidence": 0.6}},
}
CONFIG: dict[str, Any] = {
    "models": {
        **{name: {"provider": "simulated"} for name in ("small", "large")},
        "embed": {"provider": "openai", "model": "text-embedding-3-small"},
    },
    "telemetry": {"keep": {"share": 1.0, "slow": "5s"}},
    "store": "memory:",
    "policy": "policy.yaml",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.why)
def test_what_confines_an_alert_is_accepted_by_the_product(
    change: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines that the runbook gives can be put into the files that it names."""
    files = {"policy.yaml": POLICY, "tracerouter.yaml": CONFIG}
    merged = change.applied(files[change.file])
    assert contains(merged, change.lines)
    assert merged.keys() >= files[change.file].keys()
    for name, document in (files | {change.file: merged}).items():
        (tmp_path / name).write_text(yaml.safe_dump(document), encoding="utf-8")
    (tmp_path / "schemas").mkdir()
    for schema in ("old.json", "schemas/ticket.json"):
        (tmp_path / schema).write_text("{}", encoding="utf-8")
    told = ["policy", "check", str(tmp_path / "policy.yaml"), "--config", str(tmp_path / "tracerouter.yaml")]
    assert tracerouter(told) == 0, capsys.readouterr()


def contains(document: Mapping[str, Any], lines: Mapping[str, Any]) -> bool:
    return all(
        contains(document[key], value) if isinstance(value, Mapping) else document[key] == value
        for key, value in lines.items()
    )


def test_lines_are_merged_and_lists_are_replaced() -> None:
    """A change keeps what stands beside it, and the file that it was given."""
    before = {"ladder": ["small", "large"], "tasks": {"extract": {"min_confidence": 0.6}}, "cache": "never"}
    change = Change("why", {"ladder": ["large"], "tasks": {"extract": {"start": "large"}}, "cache": {"ttl": "1m"}})
    assert change.applied(before) == {
        "ladder": ["large"],
        "tasks": {"extract": {"min_confidence": 0.6, "start": "large"}},
        "cache": {"ttl": "1m"},
    }
    assert before["ladder"] == ["small", "large"]
    assert before["tasks"] == {"extract": {"min_confidence": 0.6}}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"expr": "sum(increase(tracerouter_bill_total[{5m}])) > 1"},
            "alert FallbackStorm: unknown metric 'tracerouter_bill_total' (did you mean 'tracerouter_cost_total'?)",
        ),
        (
            {"query": "sum by (taks) (tracerouter_requests_total)"},
            "alert FallbackStorm, query of its runbook: what sum reads has no label 'taks' (did you mean 'task'?)",
        ),
        (
            {"expr": {"mix": "tracerouter:fallback_ratio:10m{tsk='x'} > 1"}},
            "alert FallbackStorm, sign mix: tracerouter:fallback_ratio:10m has no label 'tsk' (did you mean 'task'?)",
        ),
    ],
)
def test_an_alert_that_names_what_is_not_there_is_not_written(
    wrong: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator names the alert, what it asks for, and the nearest right name."""
    (storm,) = (alert for alert in ALERTS if alert.name == "FallbackStorm")
    monkeypatch.setattr(rules, "ALERTS", (replace(storm, **wrong),))
    with pytest.raises(promql.DashboardError) as raised:
        rules.files()
    assert str(raised.value) == sentence


def test_a_test_case_that_names_what_is_not_there_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed metric breaks the tests of an alert, too, which would else be of something that no longer exists."""
    (storm,) = (alert for alert in ALERTS if alert.name == "FallbackStorm")
    case = replace(storm.silent[0], series={"tracerouter_fallback_total": ((1, 1),)})
    monkeypatch.setattr(rules, "ALERTS", (replace(storm, silent=(case,)),))
    with pytest.raises(
        promql.DashboardError, match="case 'one in five falls back': unknown metric 'tracerouter_fallback_total'"
    ):
        rules.files()
