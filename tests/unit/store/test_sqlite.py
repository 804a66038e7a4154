"""The SQLite file: grouped commits, rows that wait, rows that may be dropped, and files that can't be used."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from tracerouter.errors import ConfigError, StoreUnavailable
from tracerouter.store import SqliteStore, sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

INSERT = "INSERT INTO meta VALUES (?, ?)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(path)
    made._patience = 0.05  # what a lock lasts longer than in these tests
    yield made
    made.close()


def does(one: tuple[str, tuple[Any, ...]]) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute(*one)


def row(name: str) -> tuple[str, tuple[Any, ...]]:
    return INSERT, (name, b"")


def names(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as other:
        return [name for (name,) in other.execute("SELECT name FROM meta ORDER BY name")]


class Held:
    """Holds the writer's thread inside a statement until it is released."""

    def __init__(self, store: SqliteStore) -> None:
        self.began, self._release = threading.Event(), threading.Event()
        store._writer.create_function("hold", 0, self._hold)
        self.waiting = store.write(does(("INSERT INTO meta SELECT 'held', hold()", ())))

    def _hold(self) -> bytes:
        self.began.set()
        self._release.wait(10)
        return b""

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.began.wait, 10)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._release.set()
        await self.waiting


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other


async def test_what_is_awaited_is_there_for_others(store: SqliteStore, path: Path) -> None:
    """When a write has been awaited another connection reads the row."""
    for number in range(5):
        await store.write(does(row(str(number))))
        assert names(path) == [str(each) for each in range(number + 1)]


async def test_many_writes_are_one_commit(store: SqliteStore, path: Path) -> None:
    """Rows that wait while a commit is under way are committed together."""
    began: list[str] = []
    store._writer.set_trace_callback(lambda sql: began.append(sql) if sql.startswith("BEGIN") else None)
    async with Held(store):
        began.clear()
        waiting = [store.write(does(row(f"{number:03}"))) for number in range(900)]
    await asyncio.gather(*waiting)
    assert began == ["BEGIN IMMEDIATE"]
    assert len(names(path)) == 901


async def test_offered_rows_are_one_commit(store: SqliteStore, path: Path) -> None:
    """Rows that nobody waits for are committed together."""
    began: list[str] = []
    store._writer.set_trace_callback(lambda sql: began.append(sql) if sql.startswith("BEGIN") else None)
    for number in range(500):
        assert store.offer(lambda number=number: row(f"{number:03}"))  # type: ignore[misc]
    store.close()
    assert began == ["BEGIN IMMEDIATE"]
    assert len(names(path)) == 500


async def test_a_commit_has_a_bound(store: SqliteStore, path: Path) -> None:
    """More rows than a commit takes are written in several, and none is left over."""
    await asyncio.gather(*(store.write(does(row(f"{number:05}"))) for number in range(3500)))
    assert len(names(path)) == 3500


async def test_awaiting_is_not_needed(path: Path) -> None:
    """A write that nobody awaits, or whose caller went away, is written all the same."""
    store = SqliteStore(path)
    store.write(does(row("a")))
    waiting = asyncio.ensure_future(store.write(does(row("b"))))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    store.close()
    assert names(path) == ["a", "b"]


async def test_a_full_queue_drops_and_counts(store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When as many droppable rows wait as may, a further one is dropped and counted; a row of the ledger is not."""
    monkeypatch.setattr(sqlite, "_DROPPABLE", 3)
    async with Held(store):
        taken = [store.offer(lambda name=name: row(name)) for name in "abcde"]  # type: ignore[misc]
        must = store.write(does(row("m")))
    await must
    assert taken == [True, True, True, False, False]
    store.close()
    assert (store.dropped, store.lost) == (2, 0)
    assert names(path) == ["a", "b", "c", "held", "m"]


async def test_rows_that_must_not_be_lost_are_bounded_too(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no memory is left for is counted as lost, and does not hold the request up."""
    monkeypatch.setattr(sqlite, "_UNWRITTEN", 2)
    async with Held(store):
        kept = [store.write(does(row(name))) for name in ("b", "c")]
        await store.write(does(row("d")))
        assert store.lost == 1
    await asyncio.gather(*kept)
    assert names(path) == ["b", "c", "held"]
    await store.write(does(row("e")))
    assert store.lost == 1


@pytest.mark.parametrize("rows", [999, 1000, 1001, 2000, 3001, 4003])
async def test_closing_leaves_no_row_of_many(store: SqliteStore, path: Path, rows: int) -> None:
    """However many rows wait when the store is closed, each is written and each waiting caller is woken."""
    async with Held(store):
        waiting = [store.write(does(row(f"{number:04}"))) for number in range(rows)]
        closing_it = asyncio.create_task(asyncio.to_thread(store.close))
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    await closing_it
    assert len(names(path)) == rows + 1


async def test_a_bad_row_takes_no_other_with_it(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each row that can't be written is counted and logged without its values; its neighbours are written."""

    def broken() -> tuple[str, tuple[Any, ...]]:
        msg = "secret prompt"
        raise ValueError(msg)

    waiting = [store.write(does(row("a")))]
    store.offer(broken)
    waiting += [
        store.write(does(row("b"))),
        store.write(does((INSERT, ("secret prompt", None)))),
        store.write(does(row("a"))),
    ]
    store.offer(lambda: (INSERT, ("c", 1 << 70)))
    store.offer(lambda: row("d"))
    waiting.append(store.write(does(row("e"))))
    await asyncio.gather(*waiting)
    store.close()
    assert names(path) == ["a", "b", "d", "e"]
    assert (store.dropped, store.lost) == (2, 2)
    assert caplog.messages[-1] == "the store lost 2 rows of the ledger and 2 of the decision log"
    assert sorted(caplog.messages[:-1]) == [
        "a row could not be written: IntegrityError",
        "a row could not be written: IntegrityError",
        "a row could not be written: OverflowError",
        "a row could not be written: ValueError",
    ]


async def test_a_locked_file_delays_and_loses_nothing_that_matters(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While another holds the file the awaited write returns, the droppable is counted; later the row is written."""
    turns: list[str] = []
    with locked(path) as other:
        store.offer(lambda: row("droppable"))
        while not store.dropped or len(turns) < 3:
            turns.append(f"a{len(turns):03}")
            await store.write(does(row(turns[-1])))
        assert names(path) == []
        other.execute("COMMIT")
    await store.write(does(row("b")))
    assert names(path) == [*turns, "b"]
    store.close()
    assert (store.dropped, store.lost) == (1, 0)
    assert caplog.messages == [
        "the store takes no rows: the ledger's wait, the decision log's are dropped",
        "the store takes rows again",
        "the store lost 0 rows of the ledger and 1 of the decision log",
    ]


async def test_a_bad_row_in_a_locked_file_loses_nothing_either(store: SqliteStore, path: Path) -> None:
    """A bad row and a lock at once: the rows that must not be lost still wait for the lock to end."""
    with locked(path) as other:
        await asyncio.gather(*(store.write(does(each)) for each in (row("a"), (INSERT, ("bad", None)), row("b"))))
        assert names(path) == []
        other.execute("COMMIT")
    await store.write(does(row("c")))
    assert names(path) == ["a", "b", "c"]
    assert store.lost == 1


async def test_a_bad_row_costs_its_neighbours_no_commit_of_their_own(store: SqliteStore, path: Path) -> None:
    """The rows beside a bad one are one commit, so that no lock can come between them."""
    began: list[str] = []
    store._writer.set_trace_callback(lambda sql: began.append(sql) if sql.startswith("BEGIN") else None)
    async with Held(store):
        began.clear()
        waiting = [store.write(does(each)) for each in (row("a"), (INSERT, ("bad", None)), row("b"))]
    await asyncio.gather(*waiting)
    assert began == ["BEGIN IMMEDIATE"]
    assert names(path) == ["a", "b", "held"]


async def test_closing_writes_what_is_queued(path: Path) -> None:
    """``close`` returns when all that was queued is in the file."""
    store = SqliteStore(path)
    for number in range(2500):
        store.write(does(row(f"m{number}")))
        store.offer(lambda number=number: row(f"o{number}"))  # type: ignore[misc]
    store.close()
    assert len(names(path)) == 5000
    assert not store._thread.is_alive()
    assert not path.with_name("store.db-wal").exists()


async def test_a_store_that_is_closed_takes_nothing_and_holds_nobody_up(path: Path) -> None:
    """After ``close`` rows are counted as lost and dropped, and awaiting one ends; closing again does nothing."""
    store = SqliteStore(path)
    store.close()
    store.close()
    await asyncio.wait_for(store.write(does(row("late"))), 5)
    assert store.offer(lambda: row("later")) is False
    assert (store.lost, store.dropped) == (1, 1)
    assert names(path) == []


async def test_closing_a_locked_file_gives_up_and_counts(store: SqliteStore, path: Path) -> None:
    """A file that stays locked does not keep the process from ending; what is lost so is counted."""
    with locked(path):
        await store.write(does(row("a")))
        store.offer(lambda: row("b"))
        store.close()
        assert not store._thread.is_alive()
    assert (store.lost, store.dropped) == (1, 1)


@pytest.mark.parametrize("content", [b"no database " * 500, b"\x00" * 4096])
def test_another_file_is_not_touched(path: Path, content: bytes) -> None:
    """A file that is no database is named in an error, and left as it is."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"store: {path} can't be used as a SQLite file"):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_a_path_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    """A folder, or a file in a folder that is not there, is named in an error."""
    for path in (tmp_path, tmp_path / "gone" / "store.db"):
        with pytest.raises(ConfigError, match=f"store: {path} can't be used"):
            SqliteStore(path)


def test_a_newer_versions_file_is_refused(path: Path) -> None:
    """A file of a newer version is not written to; the error says to upgrade."""
    SqliteStore(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {sqlite.VERSION + 1}")
    with pytest.raises(ConfigError, match="written by a newer tracerouter: upgrade"):
        SqliteStore(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (sqlite.VERSION + 1,)


async def test_a_file_is_used_again(path: Path) -> None:
    """What one store wrote the next one reads."""
    store = SqliteStore(str(path))
    await store.write(does(row("a")))
    secret = store.secret()
    store.close()
    again = SqliteStore(path)
    assert (again.read("SELECT name FROM meta WHERE name = 'a'"), again.secret()) == ([("a",)], secret)
    again.close()


def test_processes_that_start_at_once_have_one_secret(path: Path) -> None:
    """All processes that use a file hash with the same secret, also if they make the file at the same moment."""
    code = (
        "import sys; from tracerouter.store import SqliteStore; print('ready', flush=True); sys.stdin.readline();"
        "store = SqliteStore(sys.argv[1]); print(store.secret().hex()); store.close()"
    )
    started = [
        subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=30)[0].strip() for process in started]
    assert len(set(told)) == 1
    assert len(bytes.fromhex(told[0])) == 32


def test_two_files_have_two_secrets(tmp_path: Path) -> None:
    """The secret is drawn, not derived."""
    stores = [SqliteStore(tmp_path / name) for name in ("a", "b")]
    assert len({store.secret() for store in stores}) == 2
    for store in stores:
        store.close()


async def test_memory_is_a_store_of_its_own() -> None:
    """``:memory:`` keeps what is written, apart from every other store in memory."""
    one, other = SqliteStore(":memory:"), SqliteStore(":memory:")
    await one.write(does(row("a")))
    assert one.read("SELECT name FROM meta") == [("a",)]
    assert other.read("SELECT name FROM meta") == []
    assert one.secret() == one.secret() != other.secret()
    one.close()
    other.close()


@pytest.mark.parametrize("where", [":memory:", "file"])
async def test_reading_while_writing(path: Path, where: str) -> None:
    """Readers in any thread and the writer do not get into each other's way."""
    store = SqliteStore(path if where == "file" else where)

    def reading() -> None:
        for _ in range(300):
            store.read("SELECT count(*) FROM meta")
            store.secret()

    readers = [asyncio.to_thread(reading) for _ in range(2)]

    async def writing() -> None:
        for number in range(300):
            store.offer(lambda number=number: row(f"o{number}"))  # type: ignore[misc]
            await store.write(does(row(f"m{number}")))

    await asyncio.gather(writing(), *readers)
    store.close()
    assert (store.dropped, store.lost) == (0, 0)


async def test_work_reads_and_writes_and_returns(store: SqliteStore, path: Path) -> None:
    """What it returns comes back once it is committed; what it raises comes back too, and nothing of it is written."""

    def count(file: sqlite3.Connection) -> int:
        file.execute(*row(f"work {threading.current_thread().name}"))
        ((number,),) = file.execute("SELECT count(*) FROM meta")
        return int(number)

    def fail(file: sqlite3.Connection) -> None:
        file.execute(*row("never"))
        msg = "no"
        raise LookupError(msg)

    async with Held(store):
        before, failing = store.write(does(row("before"))), asyncio.ensure_future(store.transact(fail))
        counting = asyncio.ensure_future(store.transact(count))
        await asyncio.sleep(0)
        after = store.write(does(row("after")))
    with pytest.raises(LookupError):
        await failing
    assert await counting == 3
    await asyncio.gather(before, after)
    assert names(path) == ["after", "before", "held", "work tracerouter-store"]


async def test_work_whose_caller_left_is_not_done(store: SqliteStore, path: Path) -> None:
    """A cancelled caller changes nothing for the others in the group, and what it asked for is not begun."""
    async with Held(store):
        leaving = asyncio.ensure_future(store.transact(lambda file: file.execute(*row("left"))))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
    await store.write(does(row("next")))
    assert names(path) == ["held", "next"]


async def test_work_is_told_that_the_disk_fails_and_rows_wait(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work in a group that can't be committed is given up; the group's rows are written later, and work succeeds."""
    monkeypatch.setattr(sqlite, "_LOCKED", 0.3)
    with locked(path) as other:
        written = asyncio.ensure_future(store.write(does(row("row"))))
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.transact(lambda file: file.execute(*row("work")))
        other.execute("ROLLBACK")
    await written
    async with asyncio.timeout(5):
        while "row" not in names(path):
            await asyncio.sleep(0.02)
    await store.transact(lambda file: file.execute(*row("later")))
    assert names(path) == ["later", "row"]
    assert [one.getMessage() for one in caplog.records].count("the store takes rows again") == 1
    store.close()
    with pytest.raises(StoreUnavailable):
        await store.transact(lambda file: file.execute(*row("closed")))
