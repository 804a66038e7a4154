"""Prometheus's rules, their tests and the runbook, generated from :mod:`dashboards.alerts`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from dashboards.alerts import ALERTS, RECORDINGS, Alert, Case, Change, Command, Phases, Recording
from dashboards.promql import DashboardError, at_scale, check

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LABEL: Final = re.compile(r"\{\{ \$labels\.(\w+) ")
RULES: Final = Path("collector/prometheus/rules.yaml")
TESTS: Final = Path("collector/prometheus/rules_test.yaml")
RUNBOOK: Final = Path("dashboards/runbook.md")

_GENERATED: Final = "`python -m dashboards` writes this file from dashboards/alerts.py."
_THIN: Final = 0.001
_FORCE: Final = """
A change of a file takes effect with a restart:

```sh
tracerouter policy check policy.yaml --config tracerouter.yaml
kill -TERM PID                                     # of `tracerouter serve`: requests under way are answered first
tracerouter serve --config tracerouter.yaml        # or what starts it where you are
```
"""


def files(scale: float = 1.0) -> dict[Path, str]:
    """Return the text of each generated file by its path in the repository.

    Args:
        scale: Every duration of the rules is multiplied by it: a drill shortens a day to minutes, and changes
            nothing else. Tests and runbook are always of the rules as they are in production.

    Raises:
        DashboardError: An alert names a metric or label that is not emitted.
    """
    for alert in ALERTS:
        _check(alert)
    return {RULES: rules(scale), TESTS: tests(ALERTS), RUNBOOK: runbook()}


def rules(scale: float = 1.0, alerts: Sequence[Alert] = ALERTS) -> str:
    """Return Prometheus's rule file: the recording rules, of which those of a whole day are renewed less often."""
    days = [recording for recording in RECORDINGS if recording.name.endswith(":1d")]
    windows = [recording for recording in RECORDINGS if recording not in days]
    groups = [
        _group("tracerouter: the day before", "{2m}", map(_recording, days)),
        _group(
            "tracerouter", "{30s}", (*map(_recording, windows), *(rule for alert in alerts for rule in _rules(alert)))
        ),
    ]
    return f"# {_GENERATED}\n" + at_scale(_yaml({"groups": groups}), scale)


def tests(alerts: Sequence[Alert]) -> str:
    """Return promtool's tests: each case that fires, the same with next to no traffic, and each that is silent."""
    cases = [
        test
        for alert in alerts
        for test in (
            *(_test(alert, case, fires=True) for case in alert.fires),
            *(_test(alert, _below_the_floor(case), fires=False) for case in alert.fires),
            *(_test(alert, case, fires=False) for case in alert.silent),
        )
    ]
    return f"# {_GENERATED} `promtool test rules` runs it.\n" + _yaml(
        {"rule_files": [RULES.name], "evaluation_interval": "5m", "tests": cases}
    )


def runbook() -> str:
    """Return the runbook: a section an alert."""
    head = f"""\
# Runbook

<!-- {_GENERATED} -->

What to do when an alert fires: stop the damage first, then look for the cause. A `page` wakes somebody: users, money
or sight are being lost. A `ticket` can wait for the morning.

A change is a few lines in `policy.yaml` or `tracerouter.yaml`, and a restart. The names of tasks, models and tiers are
examples: the alert's labels tell yours. Merge them into the lines that are there: a key stands once in a file. Take
them out again when the cause is gone.

The commands read `tracerouter.yaml` in this folder: elsewhere, add `--config FILE`, or `trace` shows the demo's log.
Variables that the file names must be set in your shell, too.

| alert | | |
|---|---|---|
"""
    table = "".join(
        f"| [{alert.name}](#{alert.name.lower()}) | {alert.severity} | {_plain(alert.summary)} |\n" for alert in ALERTS
    )
    return head + table + "".join(map(_section, ALERTS))


def _check(alert: Alert) -> None:
    where = f"alert {alert.name}"
    for sign, expr in alert.signs.items():
        labels = check(expr, f"{where}, sign {sign}" if sign else where)
        for told in _LABEL.findall(_signed(alert.summary + alert.description, sign)):
            if told not in labels:
                msg = f"{where}: its text tells the label {told!r}, which the query does not answer with"
                raise DashboardError(msg)
    check(alert.query, f"{where}, query of its runbook")
    for case in (*alert.fires, *alert.silent):
        for series in case.series:
            check(series, f"{where}, case {case.about!r}")


def _group(name: str, interval: str, made: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "interval": interval, "rules": list(made)}


def _recording(recording: Recording) -> dict[str, Any]:
    return {"record": recording.name, "expr": recording.expr}


def _rules(alert: Alert) -> list[dict[str, Any]]:
    board, title = alert.panel
    return [
        {
            "alert": alert.name,
            "expr": expr,
            "for": alert.hold,
            "labels": _labels(alert, sign),
            "annotations": {
                "summary": _signed(alert.summary, sign),
                "description": _signed(alert.description, sign),
                "runbook": f"{RUNBOOK}#{alert.name.lower()}",
                "dashboard": board,
                "panel": title,
            },
        }
        for sign, expr in alert.signs.items()
    ]


def _signed(text: str, sign: str) -> str:
    """Put the sign in: a rule's own labels are not among the `$labels` that Prometheus fills in."""
    return text.replace("{{ $labels.sign }}", sign)


def _labels(alert: Alert, sign: str) -> dict[str, str]:
    return {"severity": alert.severity} | ({"sign": sign} if sign else {})


def _test(alert: Alert, case: Case, *, fires: bool) -> dict[str, Any]:
    firing = {"alertname": alert.name, "alertstate": "firing"}
    asked = firing | ({"sign": case.labels["sign"]} if "sign" in case.labels else {})
    sample = {**firing, "severity": alert.severity, **case.labels}
    return {
        "name": f"{alert.name} {'fires' if fires else 'is silent'}: {case.about}",
        "interval": "1m",
        "input_series": [{"series": series, "values": _values(life)} for series, life in case.series.items()],
        "promql_expr_test": [
            {
                "expr": _alerts(asked),
                "eval_time": f"{max(map(_length, case.series.values()))}m",
                "exp_samples": [{"labels": _alerts(sample), "value": 1}] if fires else [],
            }
        ],
    }


def _alerts(labels: Mapping[str, str]) -> str:
    matchers = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"ALERTS{{{matchers}}}"


def _below_the_floor(case: Case) -> Case:
    thin = {series: _thinned(life, case.thin) for series, life in case.series.items()}
    return Case(f"{case.about}, at a thousandth of the traffic", thin)


def _thinned(life: Phases, first: int) -> Phases:
    return tuple((growth * _THIN if at >= first else growth, minutes) for at, (growth, minutes) in enumerate(life))


def _length(life: Phases) -> int:
    return sum(minutes for _, minutes in life)


def _values(life: Phases) -> str:
    """Write a life in promtool's notation: ``0 5+5x8 46+1x3`` is 0, 5, … 45, 46, … 49."""
    parts, total = ["0"], 0.0
    for growth, minutes in life:
        parts.append(f"{total + growth:.10g}{growth:+.10g}x{minutes - 1}")
        total += growth * minutes
    return " ".join(parts)


def _section(alert: Alert) -> str:
    board, title = alert.panel
    steps = "\n".join(f"{at}. {_step(step)}" for at, step in enumerate(alert.confine, 1))
    force = _FORCE if any(isinstance(step, Change) for step in alert.confine) else ""
    return f"""
## {alert.name}

**{alert.severity}** · {alert.meaning}

**Look at** the board `{board}`, panel "{title}". In Prometheus:

```promql
{at_scale(alert.query)}
```

**Confine it**

{steps}{force}
**Then** {alert.then}
"""


def _step(step: Change | Command) -> str:
    if isinstance(step, Command):
        return f"{step.why}\n\n   ```sh\n   {step.line}\n   ```\n"
    lines = "".join(f"   {key}: {_inline(value)}\n" for key, value in step.lines.items())
    return f"{step.why}\n\n   ```yaml\n   # {step.file}\n{lines}   ```\n"


def _inline(value: object) -> str:
    written: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return written.removesuffix("\n").removesuffix("\n...")


def _plain(summary: str) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"`\1`", summary)


class _Dumper(yaml.SafeDumper):
    """Writes a mapping's keys in their order, and no anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the signature is yaml's
        """Write what stands in two places twice."""
        return True


def _yaml(document: object) -> str:
    written: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return written
