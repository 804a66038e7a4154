"""A file that an older version wrote is opened by this one, and its sums are those of its entries."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracerouter.quota import Calendar, SqliteLedger
from tracerouter.store import SqliteStore
from tracerouter.store.sqlite import VERSION
from tracerouter.types import Caller, Cost, Entry, Role, Source, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[3]
JANUARY = 1_767_225_600.0  # 2026-01-01 UTC
DAY = 86_400

VERSION_1 = """
PRAGMA journal_mode = WAL;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    id TEXT NOT NULL, attempt INTEGER NOT NULL, request_id TEXT NOT NULL, time REAL NOT NULL, day TEXT NOT NULL,
    tenant TEXT NOT NULL, team TEXT, user TEXT, role TEXT NOT NULL, model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_nanos INTEGER, source TEXT NOT NULL,
    PRIMARY KEY (id, attempt)
) WITHOUT ROWID;
CREATE TABLE spend (
    day TEXT NOT NULL, tenant TEXT NOT NULL, team TEXT NOT NULL, user TEXT NOT NULL, role TEXT NOT NULL,
    cost_nanos INTEGER NOT NULL, requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, team, user, role)
) WITHOUT ROWID;
CREATE TRIGGER spent AFTER INSERT ON entries BEGIN
    INSERT INTO spend VALUES (
        new.day, new.tenant, coalesce(new.team, ''), coalesce(new.user, ''), new.role,
        coalesce(new.cost_nanos, 0), 1, new.input_tokens, new.output_tokens
    ) ON CONFLICT DO UPDATE SET
        cost_nanos = cost_nanos + excluded.cost_nanos, requests = requests + 1,
        input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens;
END;
PRAGMA user_version = 1;
"""


def entries(count: int) -> Iterable[Entry]:
    """Entries of every role, of callers with and without team and user, over two months, some of unknown cost."""
    drawn = random.Random(5)
    for number in range(count):
        caller = Caller(
            drawn.choice(["acme", "globex"]), drawn.choice([None, "ops"]), drawn.choice([None, "ada", "bo"])
        )
        cost = drawn.choice([Cost(None, Source.UNKNOWN), Cost(drawn.randrange(10**10)), Cost(0)])
        at = JANUARY + drawn.randrange(59 * DAY)
        usage = Usage(drawn.randrange(1000), drawn.randrange(1000))
        yield Entry(f"r{number}", f"r{number}", 1, at, caller, drawn.choice([*Role]), "small", usage, cost)


def written_by_version_1(path: Path, booked: list[Entry]) -> None:
    calendar = Calendar()
    with closing(sqlite3.connect(path)) as file:
        file.executescript(VERSION_1)
        for one in booked:
            used = one.usage or Usage()
            row: tuple[Any, ...] = (one.id, one.attempt, one.request_id, one.time, calendar.day(one.time))
            row += (one.caller.tenant, one.caller.team, one.caller.user, one.role, one.model)
            file.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, used.input, used.output, one.cost.nanos, one.cost.source),
            )
        file.commit()


def accounts(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert file.execute("PRAGMA user_version").fetchone() == (VERSION,)
        return file.execute("SELECT * FROM accounts ORDER BY 1, 2, 3, 4").fetchall()


async def test_the_accounts_of_a_file_of_version_1_are_the_sums_of_its_entries(tmp_path: Path) -> None:
    """They are what this version makes of the same entries, and go on from there."""
    booked = [*entries(2000)]
    written_by_version_1(tmp_path / "old.db", booked[:1900])
    for name, settled in (("old.db", booked), ("new.db", booked)):
        store = SqliteStore(tmp_path / name)
        ledger = SqliteLedger(store)
        if name == "old.db":
            before = accounts(tmp_path / name)
            assert len(before) > 1000
        for one in settled:  # those that are there already are booked once
            done = ledger.settle(one)
        await done
        store.close()
    assert accounts(tmp_path / "old.db") == accounts(tmp_path / "new.db") != before


def test_processes_that_upgrade_a_file_at_once_upgrade_it_once(tmp_path: Path) -> None:
    """Whoever opens it first: nothing is summed twice, and nobody fails."""
    written_by_version_1(tmp_path / "old.db", [*entries(500)])
    code = (
        "import sys; from tracerouter.store import SqliteStore; print('ready', flush=True); sys.stdin.readline();"
        "SqliteStore(sys.argv[1]).close()"
    )
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", code, str(tmp_path / "old.db")], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.communicate("go\n", timeout=30)
    assert [process.returncode for process in started] == [0] * 4
    spent = sum(row[4] for row in accounts(tmp_path / "old.db") if row[0] == "tenant")
    with closing(sqlite3.connect(tmp_path / "old.db")) as file:
        assert file.execute("SELECT sum(cost_nanos) FROM entries").fetchone() == (spent,)
