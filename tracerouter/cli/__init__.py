"""The commands. Each module here is one of them: ``add`` declares it, and ``run`` does it."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from tracerouter.cli import cache, demo, explain, policy, quota, review, serve, trace
from tracerouter.errors import TracerouterError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 not found or not good, 2 a mistake in what was given."""
    parser = argparse.ArgumentParser(
        prog="tracerouter",
        description="Sends easy LLM requests to a cheap model, validates its answer, and traces every step.",
        epilog="Start with: tracerouter demo",
    )
    parser.add_argument("--version", action="version", version=f"tracerouter {version('tracerouter')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, serve, explain, trace, quota, review, policy, cache):
        module.add(commands)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("urllib3", "opentelemetry.exporter"):  # each retry of a collector that is away, at length
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        code: int = asked.run(asked)
    except TracerouterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return code
