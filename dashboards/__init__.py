"""Dashboards, alerts and the runbook, generated from the metrics that the product emits.

``python -m dashboards`` writes them. A board is a module in ``boards``, an alert an entry in ``alerts``.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final, NamedTuple

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import boards, rules
from dashboards.panels import resolve

__all__ = ["FOLDER", "Query", "dashboards", "files", "queries", "resolve"]

FOLDER: Final = Path("dashboards/json")

_LANGUAGES: Final = {"prometheus": "promql", "loki": "logql", "tempo": "traceql"}


class Query(NamedTuple):
    """One query of a board; :func:`resolve` makes it ready to be asked."""

    board: str
    panel: str
    """Its title, or ``variable job``, ``annotation Alerts``."""
    ref: str
    expr: str
    kind: str
    """``promql``, ``logql`` or ``traceql``."""


def dashboards() -> dict[str, dict[str, Any]]:
    """Return every board as Grafana's JSON, by uid: its module's name with dashes.

    Raises:
        DashboardError: A query names a metric or label that is not emitted.
    """
    uids = {name: name.replace("_", "-") for _, name, _ in iter_modules(boards.__path__)}
    return {uid: _json(import_module(f"{boards.__name__}.{name}").BOARD.dashboard(uid)) for name, uid in uids.items()}


def queries() -> list[Query]:
    """Return every query of every board: those of panels, variables and annotations."""
    return [query for uid, board in dashboards().items() for query in _queries(uid, board)]


def files(scale: float = 1.0) -> dict[Path, str]:
    """Return the text of every generated file by its path in the repository.

    Args:
        scale: What every duration of the alerts is multiplied by.
    """
    made = {
        FOLDER / f"{uid}.json": json.dumps(board, indent=1, ensure_ascii=False) + "\n"
        for uid, board in dashboards().items()
    }
    return made | rules.files(scale)


def _json(board: object) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(board, cls=JSONEncoder))
    return made


def _queries(uid: str, board: dict[str, Any]) -> list[Query]:
    found = []
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            series = re.sub(r"^label_values\((.*), \w+\)$", r"\1", variable["query"])
            found.append(Query(uid, f"variable {variable['name']}", "", series, "promql"))
    found += [
        Query(uid, f"annotation {each['name']}", each["target"]["refId"], each["target"]["expr"], "promql")
        for each in board["annotations"]["list"]
    ]
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            kind = _LANGUAGES[target["datasource"]["type"]]
            found.append(Query(uid, panel["title"], target["refId"], target.get("expr") or target["query"], kind))
    return found
