"""``tracerouter trace``: a recent request as a waterfall."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tracerouter.cli.files import add_config, store
from tracerouter.cli.waterfall import render
from tracerouter.store import DecisionLog

if TYPE_CHECKING:
    import argparse
    from typing import Any


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "trace",
        help="a recent request as a waterfall",
        description="Draws a request of the decision log: stages, reasons, tokens, cost, and what it would have cost.",
        epilog="Examples: tracerouter trace 4bf92f3577b34da6a3ce929d0e0e4736; tracerouter trace --last fallback",
    )
    add_config(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help="a trace id, or a request id")
    which.add_argument(
        "--last", metavar="WORD", help="the newest with this route, outcome, reason, failure, task, tenant or policy"
    )
    parser.add_argument("--json", action="store_true", help="the row and its stages as JSON")
    parser.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Find the request and draw it."""
    kept = store(asked.config, lambda told: sys.stderr.write(f"{told}\n"))
    try:
        decisions = DecisionLog(kept)
        found = decisions.find(asked.id) if asked.id else decisions.last(asked.last)
    finally:
        kept.close()
    if found is None:
        what = f"the id {asked.id!r}" if asked.id else f"the word {asked.last!r}"
        sys.stderr.write(f"no request in the decision log {kept.name} has {what}\n")
        return 1
    row, timeline = found
    sys.stdout.write(f"{json.dumps({'record': row, 'timeline': timeline}) if asked.json else render(row, timeline)}\n")
    return 0
