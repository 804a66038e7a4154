"""``tracerouter policy``: check a policy file, and its JSON Schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tracerouter import config
from tracerouter.policy import PolicyFile, load
from tracerouter.policy.file import read
from tracerouter.validators import Checks

if TYPE_CHECKING:
    import argparse
    from typing import Any


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the commands."""
    parser = commands.add_parser("policy", help="check a policy file; its JSON Schema")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="read a policy file and say what is wrong with it",
        epilog="Example: tracerouter policy check policy.yaml --config tracerouter.yaml",
    )
    check.add_argument("file", type=Path)
    check.add_argument("--config", type=Path, metavar="FILE", help="check its aliases against this deployment's models")
    check.add_argument("--json", action="store_true", help="as JSON")
    check.set_defaults(run=run_check)
    schema = actions.add_parser(
        "schema",
        help="print the JSON Schema of a file, for editors",
        epilog="Example: tracerouter policy schema > policy.schema.json",
    )
    schema.add_argument("--deployment", action="store_true", help="of tracerouter.yaml, instead of policy.yaml")
    schema.set_defaults(run=run_schema)


def run_check(asked: argparse.Namespace) -> int:
    """Check one file."""
    policy = load(asked.file)
    Checks(policy.validators, policy.schemas)
    if asked.config:
        settings = read(asked.config, config.Settings, variables=True)
        policy.check_aliases(settings.models)
        config.check_actions(policy, settings.store)
    aliases = sorted({alias for _, alias in policy.aliases()})
    if asked.json:
        told = {"policy": policy.id, "aliases": aliases, "aliases_checked": bool(asked.config)}
        sys.stdout.write(f"{json.dumps(told)}\n")
        return 0
    note = "" if asked.config else f" (aliases not checked, give --config for that: {', '.join(aliases)})"
    sys.stdout.write(f"{asked.file}: policy {policy.id} is good{note}\n")
    return 0


def run_schema(asked: argparse.Namespace) -> int:
    """Print one schema."""
    shape = config.Settings if asked.deployment else PolicyFile
    sys.stdout.write(json.dumps(shape.model_json_schema(), indent=2) + "\n")
    return 0
