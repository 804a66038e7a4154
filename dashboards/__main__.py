"""``python -m dashboards``: write the dashboards, the rules and the runbook, or say which of them are stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dashboards import FOLDER, files
from dashboards.promql import DashboardError

ROOT = Path(__file__).parents[1]


def stale(folder: Path, made: dict[Path, str]) -> list[Path]:
    """Return the files in `folder` that differ from what is generated, are missing, or belong to no board."""
    left_over = {path.relative_to(folder) for path in (folder / FOLDER).glob("*.json")} - made.keys()
    return sorted(left_over | {path for path, text in made.items() if not _holds(folder / path, text)})


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` compare them; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dashboards", description=__doc__, epilog="python -m dashboards --check"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; say which files are stale, and exit 1")
    parser.add_argument("--out", type=Path, default=ROOT, metavar="FOLDER", help="instead of this checkout")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every duration of the alerts, for drills")
    given = parser.parse_args(arguments)
    try:
        made = files(given.scale)
    except DashboardError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    wrong = stale(given.out, made)
    if given.check:
        for path in wrong:
            sys.stderr.write(f"stale: {path}; run python -m dashboards\n")
        return 1 if wrong else 0
    for path in made.keys() | set(wrong):
        if path not in made:
            (given.out / path).unlink()
            continue
        (given.out / path).parent.mkdir(parents=True, exist_ok=True)
        (given.out / path).write_text(made[path], encoding="utf-8")
    for path in sorted(made):
        sys.stdout.write(f"{path}{' (changed)' if path in wrong else ''}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
