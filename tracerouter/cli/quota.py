"""``tracerouter quota``: how limits stand, at a terminal."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tracerouter.cli.files import add_config, quotas
from tracerouter.errors import ConfigError, nearest
from tracerouter.types import Caller

if TYPE_CHECKING:
    import argparse

    from tracerouter.policy import Policy

_SHOWN: Final = 20
"""Tenants in a table, at most."""


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "quota",
        help="what tenants have spent, and what their limits leave",
        description=(
            "Reads the ledger beside the policy's limits: of every tenant, the 20 that have spent most this month "
            "first, or of one, and of a team or user in it."
        ),
        epilog="Example: tracerouter quota --config tracerouter.yaml --tenant acme --user ann",
    )
    add_config(parser)
    parser.add_argument("--tenant", metavar="NAME", help="this one alone")
    parser.add_argument("--team", metavar="NAME", help="its limits per team, too, as they stand for this one")
    parser.add_argument("--user", metavar="NAME", help="its limits per user, too, as they stand for this one")
    parser.add_argument("--tier", metavar="NAME", help="only the limits that hold for this tier (default: of any)")
    parser.add_argument("--json", action="store_true", help="as GET /tracerouter/quota answers; all tenants")
    parser.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Show how limits stand."""
    if asked.tenant is None and (asked.team is not None or asked.user is not None):
        msg = f"{'--team' if asked.team is not None else '--user'} needs --tenant beside it"
        raise ConfigError(msg)
    with quotas(asked.config, _say) as (state, policy):
        if asked.tier is not None and asked.tier not in policy.tiers:
            msg = f"--tier: the policy has no tier {asked.tier!r}{nearest(asked.tier, policy.tiers)}"
            raise ConfigError(msg)
        names = state.tenants()
        if asked.tenant is not None:
            found = [state.of_tenant(Caller(asked.tenant, asked.team, asked.user, asked.tier))]
            if asked.tenant not in names:
                _say(f"nothing is booked on the tenant {asked.tenant!r} this month{nearest(asked.tenant, names)}")
        else:
            shown = names if asked.json else names[:_SHOWN]
            found = [state.of_tenant(Caller(name, tier=asked.tier)) for name in shown]
    if asked.json:
        told = found[0] if asked.tenant is not None else {"object": "list", "data": found, "has_more": False}
        sys.stdout.write(f"{json.dumps(told)}\n")
        return 0
    if found:
        _show(found, policy)
    if not policy.limits:
        _say(f"policy {policy.id} sets no limits (`quotas`)")
    if len(names) > len(found) and asked.tenant is None:
        _say(f"{len(names) - len(found)} more tenants have spent less: --tenant shows one, --json all")
    if not names:
        _say("nothing was spent this month")
    return 0


def _show(found: list[dict[str, Any]], policy: Policy) -> None:
    console, zone = Console(highlight=False), ZoneInfo(policy.timezone)
    for one in found:
        today, month = (_short(one["spent"][period]) for period in ("day", "month"))
        console.print(f"[bold]{escape(one['tenant'])}[/bold]  spent {today} USD today, {month} USD this month")
        table = Table("limit", box=SIMPLE_HEAD, pad_edge=False)
        for column in ("of", "spent", "reserved", "left", "resets"):
            table.add_column(column, justify="right", no_wrap=True)
        for limit in one["limits"]:
            whose = "" if limit["per"] == "tenant" else f", {limit['per']} {one[limit['per']]}"
            amount, *others = (_short(limit[name]) for name in ("limit", "spent", "reserved", "remaining"))
            resets = datetime.fromtimestamp(limit["resets_at"], zone).strftime("%d %b %H:%M")
            table.add_row(
                escape(f"{limit['name']}{whose}"),
                f"{amount} {limit['unit']}",
                *others,
                resets,
                style="red" if not float(limit["remaining"]) else None,
            )
        if one["limits"]:
            console.print(table)
    console.print(f"policy {policy.id}, times of {policy.timezone}", style="dim")


def _short(amount: str | int) -> str:
    """Write an amount without the zeros at its end, cents excepted."""
    if isinstance(amount, int):
        return str(amount)
    whole, _, rest = amount.partition(".")
    return f"{whole}.{rest.rstrip('0'):0<2}"


def _say(told: str) -> None:
    sys.stderr.write(f"{told}\n")
