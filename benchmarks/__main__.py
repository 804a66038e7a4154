"""``python -m benchmarks``: CPU and time of each path of a request, beside its floor in the same run."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import paths


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "paths",
        help="what one request costs on each path",
        description=paths.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m benchmarks paths --rounds 5 --requests 400 --json paths.json",
    )
    one.add_argument("--requests", type=int, default=400, help="a path, a round (default %(default)s)")
    one.add_argument("--rounds", type=int, default=5, help="interleaved; medians are told (default %(default)s)")
    one.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    asked = parser.parse_args()
    paths.run(requests=asked.requests, rounds=asked.rounds, json_file=asked.json)


if __name__ == "__main__":
    main()
