"""What a ledger holds after its process was killed, and when several processes write to it at once."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.integration.store.settler import entry

ROOT = Path(__file__).parents[3]
KILLS = 20

Sums = tuple[int, int, int]
"""Nano-dollars, attempts, input and output tokens."""

_OF_ENTRIES = "SELECT coalesce(sum(cost_nanos), 0), count(*), sum(input_tokens + output_tokens) FROM entries"
_OF_ACCOUNTS = """
SELECT sum(cost_nanos), sum(requests), sum(tokens) FROM accounts
WHERE scope = 'tenant'
"""


def started(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.store.settler", str(path), name, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module


def killed(process: subprocess.Popen[str], after: int) -> list[str]:
    """Kill it without warning once it has told `after` ids; return all that it told."""
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    assert process.wait(10) == -signal.SIGKILL, "it ended before it was killed"
    return [*told, *rest[: rest.rfind("\n") + 1].split()]  # the last line may be half a line


def booked(path: Path) -> tuple[list[str], Sums, Sums, str]:
    """Return the ids in the file, the sums of both tables, and what SQLite says of the file."""
    with closing(sqlite3.connect(path)) as file:
        ids = [request_id for (request_id,) in file.execute("SELECT request_id FROM entries")]
        of_entries, of_accounts = (file.execute(query).fetchone() for query in (_OF_ENTRIES, _OF_ACCOUNTS))
        (state,) = file.execute("PRAGMA integrity_check").fetchone()
    return ids, of_entries, of_accounts, state


def test_what_was_settled_outlives_a_kill(tmp_path: Path) -> None:
    """After twenty kills every id told stands in the file exactly once, and the accounts are the sum of the entries."""
    path = tmp_path / "store.db"
    told: list[str] = []
    for turn in range(KILLS):
        told += killed(started(path, f"turn{turn}", 1_000_000), after=1 + 40 * turn)
        ids, of_entries, of_accounts, state = booked(path)
        assert state == "ok"
        assert len(ids) == len(set(ids))
        assert set(told) <= set(ids)
        assert of_accounts == of_entries
    assert len(told) > KILLS


def test_processes_lose_and_double_nothing(tmp_path: Path) -> None:
    """Three processes that settle at once, two of them the same entries, leave exact sums."""
    path = tmp_path / "store.db"
    count = 3_000
    writers = [started(path, name, count) for name in ("one", "other", "one")]
    for writer in writers:
        out, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
        assert len(out.split()) == count
    ids, of_entries, of_accounts, state = booked(path)
    assert state == "ok"
    assert sorted(ids) == sorted(f"{name}-{number}" for name in ("one", "other") for number in range(count))
    made = [entry(request_id, int(request_id.split("-")[1])) for request_id in ids]
    assert of_accounts == of_entries
    assert of_accounts == (
        sum(one.cost.nanos or 0 for one in made),
        len(made),
        sum(one.spend.tokens for one in made),
    )
