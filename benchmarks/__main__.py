"""``python -m benchmarks``: what a request costs beside its floor, and traffic for what looks at a gateway."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks import outage, paths, traffic


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for measured, what, example in (
        (paths, "what one request costs on each path", "paths --rounds 5 --requests 400 --json paths.json"),
        (outage, "what a failing collector costs a request", "outage --rounds 5 --json outage.json"),
    ):
        one = commands.add_parser(
            measured.__name__.rpartition(".")[2],
            help=what,
            description=measured.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"Example: python -m benchmarks {example}",
        )
        one.add_argument("--requests", type=int, default=400, help="each, a round (default %(default)s)")
        one.add_argument("--rounds", type=int, default=5, help="interleaved; medians are told (default %(default)s)")
        one.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
        one.set_defaults(measure=measured.run)
    mixed = commands.add_parser(
        "traffic",
        help="mixed synthetic traffic for a gateway",
        description=traffic.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m benchmarks traffic --url http://127.0.0.1:8080 --rate 20 --duration 60",
    )
    mixed.add_argument("--url", required=True, help="the gateway's, without /v1")
    mixed.add_argument("--rate", type=_positive, default=20.0, help="requests a second (default %(default)s)")
    mixed.add_argument("--duration", type=_positive, metavar="SECONDS", help="without it: until a signal")
    mixed.add_argument(
        "--keys", type=Path, metavar="FILE", help='API keys, as `keys: {file: …}` names them: [{"key": …}]'
    )
    mixed.add_argument("--seed", type=int, default=0, help="the same seed, the same requests (default %(default)s)")
    asked = parser.parse_args()
    if asked.command == "traffic":
        told = {"rate": asked.rate, "duration": asked.duration, "keys": asked.keys, "seed": asked.seed}
        asyncio.run(traffic.main(asked.url, **told))
    else:
        asked.measure(requests=asked.requests, rounds=asked.rounds, json_file=asked.json)


def _positive(found: str) -> float:
    number = float(found)
    if number <= 0:
        msg = "must be above 0"
        raise argparse.ArgumentTypeError(msg)
    return number


if __name__ == "__main__":
    main()
