"""``tracerouter demo``: routes real prompts, then shows the route mix, the cost, and the most telling trace."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tracerouter.cli import files
from tracerouter.cli.waterfall import render
from tracerouter.errors import ConfigError
from tracerouter.store import DecisionLog
from tracerouter.types import NANOS, Status, Task, usd

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tracerouter.config import Deployment
    from tracerouter.types import Outcome

_AT_ONCE = 2
"""Requests under way together; the local model answers one at a time."""


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="route real prompts with no key and no server",
        description=(
            "Routes prompts on the packaged deployment: a real small model in this process first, then a paid one "
            "where OPENAI_API_KEY is set, else a simulated one."
        ),
        epilog="Example: tracerouter demo --requests 200 --input prompts.jsonl --json summary.json",
    )
    parser.add_argument("--requests", type=int, metavar="N", help="how many (default: all packaged prompts, or 100)")
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="JSON lines with a field `prompt` or `text`, taken evenly spread"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    parser.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Route the prompts and show what happened."""
    if asked.requests is not None and asked.requests < 1:
        msg = "--requests must be at least 1"
        raise ConfigError(msg)
    prompts = _prompts(asked.input or files.PACKAGED / "prompts.jsonl")
    wanted = asked.requests or (100 if asked.input else len(prompts))
    if wanted < len(prompts):
        prompts = [prompts[position * len(prompts) // wanted] for position in range(wanted)]
    console = Console()
    built = files.demo(lambda said: console.print(said, style="dim", highlight=False))
    outcomes = asyncio.run(_route(built, prompts, wanted, console))
    summary = _summary(outcomes)
    _show(console, outcomes, summary)
    if asked.json:
        asked.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return 0


def _prompts(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        msg = f"--input: {path} can't be read ({error.strerror})"
        raise ConfigError(msg) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            text = row.get("prompt") or row.get("text")
        except (orjson.JSONDecodeError, AttributeError):
            text = None
        if not isinstance(text, str):
            msg = f"--input: {path}:{number}: needs a JSON object with a string `prompt` or `text`"
            raise ConfigError(msg)
        found.append(text)
    if not found:
        msg = f"--input: {path} has no prompts"
        raise ConfigError(msg)
    return found


async def _route(built: Deployment, prompts: Sequence[str], wanted: int, console: Console) -> list[Outcome]:
    """Route `wanted` prompts in order, some at once; a list that is too short is gone through again."""
    outcomes: list[Outcome] = []
    columns = (
        TextColumn("routing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[mix]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    queue = iter([prompts[position % len(prompts)] for position in range(wanted)])
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=wanted, mix="")

        async def worker() -> None:
            for prompt in queue:
                outcomes.append(await built.router.route(Task.chat(prompt)))
                mix = Counter(str(outcome.facts["route"]) for outcome in outcomes)
                progress.update(bar, advance=1, mix=" ".join(f"{name} {count}" for name, count in mix.most_common()))

        try:
            await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
        finally:
            await built.router.close()
    return outcomes


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Sum up in the shape that ``--json`` promises; money in USD."""
    looked_up = [outcome for outcome in outcomes if outcome.facts["cache"] != "bypass"]
    hits = sum(outcome.status is Status.CACHED for outcome in outcomes)
    return {
        "requests": len(outcomes),
        "routes": dict(Counter(str(outcome.facts["route"]) for outcome in outcomes)),
        "outcomes": dict(Counter(str(outcome.status) for outcome in outcomes)),
        "reasons": dict(Counter(str(outcome.reason) for outcome in outcomes).most_common()),
        "cost": sum(outcome.cost_nanos or 0 for outcome in outcomes) / NANOS,
        "baseline_cost": sum(round(float(outcome.facts.get("baseline_cost", 0)) * NANOS) for outcome in outcomes)
        / NANOS,
        "cache_hit_ratio": hits / len(looked_up) if looked_up else 0.0,
        "traces": [outcome.facts["trace_id"] for outcome in outcomes],
    }


def _how_telling(outcome: Outcome) -> tuple[int, bool, int]:
    return len(outcome.attempts), outcome.status is not Status.CACHED, outcome.cost_nanos or 0


def _show(console: Console, outcomes: Sequence[Outcome], summary: dict[str, Any]) -> None:
    table = Table("route", "requests", "share", "cost", title=f"{summary['requests']} requests", title_justify="left")
    for route, number in sorted(summary["routes"].items(), key=lambda item: -item[1]):
        spent = sum(outcome.cost_nanos or 0 for outcome in outcomes if outcome.facts["route"] == route)
        table.add_row(route, str(number), f"{number / summary['requests']:.0%}", f"${usd(spent)}")
    console.print(table)
    cost, baseline = summary["cost"], summary["baseline_cost"]
    saved = f", {1 - cost / baseline:.0%} less" if 0 < cost < baseline else ""
    console.print(
        f"cost ${usd(round(cost * NANOS))}; always-expensive ${usd(round(baseline * NANOS))}{saved}; "
        f"cache hits {summary['cache_hit_ratio']:.0%}"
    )
    console.print(f"reasons: {', '.join(f'{name} {count}' for name, count in summary['reasons'].items())}\n")
    telling = max(outcomes, key=_how_telling)
    store = files.demo_store()
    try:
        found = DecisionLog(store).find(str(telling.facts["trace_id"]))
    finally:
        store.close()
    if found is not None:
        console.print("the most telling trace:\n", style="bold")
        console.file.write(f"{render(*found)}\n")  # not wrapped: a waterfall's lines belong together
        console.print("\nmore: tracerouter trace --last fallback", style="dim")
    if sys.stdout.isatty():
        console.print("next: tracerouter serve, and point any OpenAI client at it", style="dim")
