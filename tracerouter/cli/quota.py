"""``tracerouter quota``: how limits stand, at a terminal."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

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
    columns = ("tenant", "name", "for", "limit", "spent", "reserved", "left", "resets")
    table = Table(*columns, title=f"policy {policy.id}", title_justify="left")
    for column in table.columns[3:7]:
        column.justify = "right"
    zone = ZoneInfo(policy.timezone)
    for one in found:
        day, month = (f"{_short(one['spent'][period])} USD" for period in ("day", "month"))
        table.add_row(escape(one["tenant"]), "[dim]all of today[/dim]", "", "", day)
        table.add_row("", "[dim]all of this month[/dim]", "", "", month)
        for limit in one["limits"]:
            resets = datetime.fromtimestamp(limit["resets_at"], zone).strftime("%d %b %H:%M %Z")
            table.add_row(
                "",
                limit["name"],
                escape(_whose(limit, one)),
                *(f"{_short(limit[name])} {limit['unit']}" for name in ("limit", "spent", "reserved", "remaining")),
                resets,
                style="red" if not float(limit["remaining"]) else None,
            )
        table.add_section()
    Console().print(table)


def _whose(limit: dict[str, Any], one: dict[str, Any]) -> str:
    tier, role = limit["tier"], limit["role"]
    who = "" if limit["per"] == "tenant" else f"{limit['per']} {one[limit['per']]}"
    parts = (who, f"tier {tier}" if tier else "", f"{role} models" if role else "")
    return ", ".join(part for part in parts if part) or "all"


def _short(amount: str | int) -> str:
    """Write an amount without the zeros at its end, cents excepted."""
    if isinstance(amount, int):
        return str(amount)
    whole, _, rest = amount.partition(".")
    return f"{whole}.{rest.rstrip('0'):0<2}"


def _say(told: str) -> None:
    sys.stderr.write(f"{told}\n")
