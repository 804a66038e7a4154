"""One SQLite file: one writer thread that commits in groups, so that a request never waits for the disk's own pace.

Three sorts of things are written. What must not be lost (the ledger) waits in a queue for as long as the disk fails;
what somebody waits for (a reservation, an item) fails with the disk; what may be lost (the decision log) has a bounded
queue, and is counted when it is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from tracerouter.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from pathlib import Path

T = TypeVar("T")

log = logging.getLogger(__name__)

VERSION: Final = 2
"""Of the tables, in ``PRAGMA user_version``."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    id TEXT NOT NULL, attempt INTEGER NOT NULL, request_id TEXT NOT NULL, time REAL NOT NULL, day TEXT NOT NULL,
    tenant TEXT NOT NULL, team TEXT, user TEXT, role TEXT NOT NULL, model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_nanos INTEGER, source TEXT NOT NULL,
    PRIMARY KEY (id, attempt)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounts (
    scope TEXT NOT NULL, day TEXT NOT NULL, tenant TEXT NOT NULL, role TEXT NOT NULL,
    cost_nanos INTEGER NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    held_nanos INTEGER NOT NULL, held_requests INTEGER NOT NULL, held_tokens INTEGER NOT NULL,
    PRIMARY KEY (scope, day, tenant, role)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reservations (
    id TEXT NOT NULL, attempt INTEGER NOT NULL, expires REAL NOT NULL,
    day TEXT NOT NULL, tenant TEXT NOT NULL, team TEXT, user TEXT, role TEXT NOT NULL,
    cost_nanos INTEGER NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (id, attempt)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reservations_by_expiry ON reservations (expires);
CREATE TABLE IF NOT EXISTS streams (
    stream TEXT NOT NULL, tenant TEXT NOT NULL, month TEXT NOT NULL, number INTEGER NOT NULL,
    id TEXT NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (stream, tenant, month, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    request_id TEXT NOT NULL, time REAL NOT NULL, trace_id TEXT NOT NULL, tenant TEXT NOT NULL, task TEXT,
    route TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, cost_nanos INTEGER,
    kept INTEGER NOT NULL, record TEXT NOT NULL, timeline TEXT
);
CREATE INDEX IF NOT EXISTS decisions_by_time ON decisions (time);
CREATE INDEX IF NOT EXISTS decisions_by_trace ON decisions (trace_id);
CREATE INDEX IF NOT EXISTS decisions_by_request ON decisions (request_id);
CREATE TABLE IF NOT EXISTS items (
    kind TEXT NOT NULL, id TEXT NOT NULL, tenant TEXT NOT NULL, user TEXT, state TEXT NOT NULL,
    version INTEGER NOT NULL, due REAL, expires REAL, created REAL NOT NULL, body TEXT NOT NULL, only_one TEXT,
    PRIMARY KEY (kind, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS items_only_one ON items (kind, tenant, only_one) WHERE only_one IS NOT NULL;
CREATE INDEX IF NOT EXISTS items_by_time ON items (kind, state, created);
CREATE INDEX IF NOT EXISTS items_by_due ON items (kind, state, due) WHERE due IS NOT NULL;
CREATE INDEX IF NOT EXISTS items_by_expiry ON items (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS item_history (
    kind TEXT NOT NULL, id TEXT NOT NULL, time REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS item_history_of ON item_history (kind, id);
CREATE TRIGGER IF NOT EXISTS item_history_is_not_rewritten BEFORE UPDATE ON item_history BEGIN
    SELECT raise(ABORT, 'the history of an item is append-only');
END;
CREATE TRIGGER IF NOT EXISTS item_history_goes_with_its_item BEFORE DELETE ON item_history
WHEN EXISTS (SELECT 1 FROM items WHERE kind = old.kind AND id = old.id) BEGIN
    SELECT raise(ABORT, 'the history of an item is append-only');
END;
CREATE TRIGGER IF NOT EXISTS item_gone AFTER DELETE ON items BEGIN
    DELETE FROM item_history WHERE kind = old.kind AND id = old.id;
END;
"""

_SUMS_OF_VERSION_1: Final = """
INSERT INTO accounts
SELECT scope.value, day, tenant, role,
    sum(cost_nanos), sum(iif(role = 'classify', 0, requests)), sum(input_tokens + output_tokens), 0, 0, 0
FROM spend, json_each(json_array('tenant', 'team:' || team, 'user:' || user)) AS scope
GROUP BY 1, 2, 3, 4
"""
"""Version 1 summed by tenant, team, user and role together, in a trigger."""

TICK: Final = 0.05
"""Seconds that a droppable row waits for others, about."""
_GROUP: Final = 1000
"""Rows in one commit, at most."""
_DROPPABLE: Final = 10_000
"""Droppable rows that wait, at most."""
_UNWRITTEN: Final = 100_000
"""Rows that must not be lost and wait for the disk, at most: some 50 MB."""
_LOCKED: Final = 5.0
"""Seconds to wait for another process's lock, at most."""
_LONGEST_PAUSE: Final = 0.5
"""Seconds between two tries while the disk fails, at most."""
_PATIENCE: Final = 0.5
"""Seconds that one try waits for another process to let go of the file."""
_LOOK: Final = 0.002
"""Seconds between two looks whether it has. SQLite's own wait comes to look every 100 ms, and finds it taken again."""

_NUDGE: Final = "rows were offered"
_CLOSE: Final = "write what is left, and end"
_GONE: Final = "the store's disk takes nothing"

_BROKEN: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""What is wrong with the row itself: it must not take the others with it, and trying again will not help."""

Row = tuple[str, "Sequence[Any]"]
"""A statement and its values."""

Work = Callable[[sqlite3.Connection], T]
"""Statements that belong together."""


class _Job(NamedTuple):
    work: Work[Any]
    done: asyncio.Future[Any] | None
    durable: bool
    """Whether it waits for a disk that fails; nobody waits for its result."""
    until: float = 0.0
    """When it gives up on other processes that have the file, on the monotonic clock, if it is not durable."""


class _Ended(NamedTuple):
    """How a job ended, and who is to be told."""

    done: asyncio.Future[Any] | None
    result: Any = None
    error: Exception | None = None
    broken: bool = False


class SqliteStore:
    """The file. Several processes on one machine may use the same one.

    Args:
        path: The file, made if it is not there; ``:memory:`` keeps all in this process.

    Raises:
        ConfigError: It can't be opened, is no database, or is a newer version's.
    """

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        self._in_memory = self.name == ":memory:"
        shared = f"file:tracerouter-{secrets.token_hex(8)}?mode=memory&cache=shared"
        self._address = shared if self._in_memory else self.name
        self._writer = self._open()
        self._writer.execute("PRAGMA busy_timeout = 0")
        self._patience = _PATIENCE
        self._locked = False
        """Whether it was another process that let the last try fail."""
        self._reader = self._open()
        self._reading = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | str] = queue.SimpleQueue()
        self._offered: deque[Callable[[], Row]] = deque()
        self._unwritten: list[_Job] = []  # the writer's own, as are the two counters of what it failed to write
        self._refused = self._failed = self._overflown = self._broken = 0
        self._nudged = self._closing = self._closed = False
        self._flush_at: float | None = None
        self._pause = self._try_at = 0.0
        self._thread = threading.Thread(target=self._run, name="tracerouter-store", daemon=True)
        self._thread.start()

    @property
    def available(self) -> bool:
        """Whether the disk took what was last written."""
        return not self._pause

    @property
    def waiting(self) -> int:
        """How much of what must not be lost waits for a disk that fails."""
        return sum(job.durable for job in list(self._unwritten))

    @property
    def dropped(self) -> int:
        """Return how many droppable rows were not written."""
        return self._refused + self._failed

    @property
    def dropped_by_reason(self) -> list[tuple[tuple[str], int]]:
        """Return the same as ``((reason,), rows)``."""
        return [(("queue_full",), self._refused), (("write_failed",), self._failed)]

    @property
    def lost_by_reason(self) -> list[tuple[tuple[str], int]]:
        """Return :attr:`lost` as ``((reason,), rows)``."""
        return [(("queue_full",), self._overflown), (("write_failed",), self._broken)]

    @property
    def lost(self) -> int:
        """Return how many rows that must not be lost were: more than disk and memory could take, or broken ones."""
        return self._overflown + self._broken

    def write(self, work: Work[object]) -> Awaitable[None]:
        """Queue what must not be lost. Await the result to know that it is committed.

        It is committed within about a millisecond. While the disk fails it stays queued, and what is awaited ends
        after the next try, within about a second, since a request must not hang on a disk.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed or self._jobs.qsize() + len(self._unwritten) >= _UNWRITTEN:
            self._overflown += 1
            done.set_result(None)
        else:
            self._jobs.put(_Job(work, done, durable=True))
        return done

    async def transact(self, work: Work[T]) -> T:
        """Do `work` in the writer's thread, all of it or nothing, and return what it returns, once that is committed.

        It must be short: all others wait for it. What it raises is raised here, and nothing of it is written.

        Raises:
            StoreUnavailable: The disk fails, other processes had the file for five seconds, or the store is closed;
                nothing was done.
        """
        if self._closed or self._jobs.qsize() >= _UNWRITTEN:
            raise StoreUnavailable(_GONE)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(work, done, durable=False, until=time.monotonic() + _LOCKED))
        return await done

    def offer(self, make: Callable[[], Row]) -> bool:
        """Queue a row that may be lost; `make` is called in the writer's thread. False: the queue is full.

        It is committed within about a :data:`TICK`, together with others: nobody waits for it.
        """
        if self._closed or len(self._offered) >= _DROPPABLE:
            self._refused += 1
            return False
        self._offered.append(make)
        if not self._nudged:
            self._nudged = True
            self._jobs.put(_NUDGE)
        return True

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query, of what is committed. Blocks; for terminals and gauges.

        Raises:
            StoreUnavailable: The disk fails, or the store is closed.
        """
        try:
            with self._reading:
                return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            msg = f"store: {self.name} can't be read ({error})"
            raise StoreUnavailable(msg) from None

    def secret(self) -> bytes:
        """Return 32 random bytes, the same for all who use this file and for ever."""
        with self._reading:
            made = ("secret", secrets.token_bytes(32))
            self._reader.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", made)
            found: bytes = self._reader.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()[0]
        return found

    def close(self) -> None:
        """Write what is queued and close the file; blocks, 10 seconds at most where the disk is slow."""
        self._closed = True  # nobody would write what comes now
        self._jobs.put(_CLOSE)
        self._thread.join(10)
        self._reader.close()
        if self.lost or self.dropped:
            log.error("the store lost %d rows of the ledger and %d of the decision log", self.lost, self.dropped)

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._address, uri=self._in_memory, isolation_level=None, check_same_thread=False, timeout=_LOCKED
            )
            _use_wal(connection)
            # a commit survives the death of the process, if not that of the machine
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")  # of what is deleted, prompts too, no bytes stay behind
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                msg = f"store: {self.name} was written by a newer tracerouter: upgrade, or use another file"
                raise ConfigError(msg)
            connection.executescript(_SCHEMA)
            _upgrade(connection)
        except sqlite3.Error as error:
            msg = f"store: {self.name} can't be used as a SQLite file ({error}); give another path, or move it away"
            raise ConfigError(msg) from None
        return connection

    def _run(self) -> None:
        """Write until the store is closed: jobs when they come, offered rows a tick after the first of them."""
        while not self._closing or (self._unwritten and not self._pause):
            jobs = self._taken(self._wait())
            # a disk that fails is tried at its own pace, not at that of the requests
            if self._closing or time.monotonic() >= self._try_at:
                self._commit([*self._unwritten, *jobs])
            else:
                self._unwritten += [job for job in jobs if self._waits(job)]
                _resolve([_refused(job) for job in jobs if not self._waits(job)])
            if self._flush_at is not None and (self._closing or time.monotonic() >= self._flush_at):
                self._commit_offered()
        self._overflown += self.waiting
        _resolve([_refused(job) for job in self._unwritten if not job.durable])
        self._writer.close()

    def _wait(self) -> float | None:
        """Return the seconds to wait for a job, at most; None: for ever."""
        due = [at for at in (self._flush_at, self._try_at if self._unwritten else None) if at is not None]
        return max(min(due) - time.monotonic(), 0.0) if due else None

    def _taken(self, wait: float | None) -> list[_Job]:
        """Return the jobs that have come, after waiting `wait` seconds at most for the first."""
        taken: list[_Job] = []
        with suppress(queue.Empty):
            job = self._jobs.get(timeout=wait)
            while True:
                if isinstance(job, _Job):
                    taken.append(job)
                elif self._flush_at is None:
                    self._flush_at = time.monotonic() + TICK
                self._closing = self._closing or job is _CLOSE
                if len(taken) == _GROUP:
                    break
                job = self._jobs.get_nowait()
        return taken

    def _commit(self, jobs: list[_Job]) -> None:
        """Do all in one transaction and wake who waits; what must not be lost is kept for the next try."""
        if not jobs:
            return
        try:
            ended = self._write(jobs)
        except sqlite3.Error as error:  # full, locked, read-only, gone: it may pass
            if not self._pause:
                log.error("the store takes no rows: the ledger's wait, the decision log's are dropped")
            self._locked = _is_busy(error)
            self._pause = min(_LONGEST_PAUSE, self._pause * 2 or TICK)
            self._unwritten = [job for job in jobs if self._waits(job)]
            ended = [
                _Ended(job.done) if job.durable else _refused(job)
                for job in jobs
                if not self._waits(job) or job.durable
            ]
        else:
            if self._pause:
                log.warning("the store takes rows again")
            self._pause = 0.0
            self._unwritten = []
            self._broken += sum(job.durable and end.broken for job, end in zip(jobs, ended, strict=True))
        self._try_at = time.monotonic() + self._pause
        _resolve(ended)

    def _commit_offered(self) -> None:
        """Write all that was offered; what can't be written is dropped, and counted."""
        self._flush_at = None
        self._nudged = False  # before they are taken: who offers one afterwards nudges again
        rows: list[Row] = []
        for _ in range(len(self._offered)):
            make = self._offered.popleft()
            try:
                rows.append(make())
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it
                self._failed += 1
                _tell_broken(error)
        try:
            ended = self._write([_Job(partial(_insert, row), None, durable=True) for row in rows])
        except sqlite3.Error:
            self._failed += len(rows)
        else:
            self._failed += sum(end.broken for end in ended)

    def _write(self, jobs: list[_Job]) -> list[_Ended]:
        """Do all in one transaction, but for broken ones; return how each ended."""
        with self._reading if self._in_memory else nullcontext():  # in memory a reader locks the table
            self._begin()
            try:
                ended = [self._done(job) for job in jobs]
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                raise
        return ended

    def _begin(self) -> None:
        until = time.monotonic() + self._patience
        while True:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > until:
                    raise
                time.sleep(_LOOK)
            else:
                return

    def _waits(self, job: _Job) -> bool:
        """Return whether a job that could not be done is tried again."""
        return job.durable or (self._locked and not self._closing and time.monotonic() < job.until)

    def _done(self, job: _Job) -> _Ended:
        """Do one job, all of it or nothing."""
        if not job.durable and job.done is not None and job.done.cancelled():  # who asked for it has gone
            return _Ended(None)
        self._writer.execute("SAVEPOINT job")
        try:
            result = job.work(self._writer)
            ended = _Ended(job.done, None if job.durable else result)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not isinstance(error, _BROKEN):  # the disk's, not the job's
                raise
            self._writer.execute("ROLLBACK TO job")
            _tell_broken(error)
            ended = _Ended(job.done, error=None if job.durable else error, broken=True)
        self._writer.execute("RELEASE job")
        return ended


def _insert(row: Row, connection: sqlite3.Connection) -> None:
    connection.execute(*row)


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring the tables of an older version up to this one's, once, whoever else starts now."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 1:
        connection.execute("DROP TRIGGER spent")
        connection.execute(_SUMS_OF_VERSION_1)
        connection.execute("DROP TABLE spend")
    if version != VERSION:
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. SQLite does not wait by itself while another process does the same to a new file."""
    until = time.monotonic() + _LOCKED
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _refused(job: _Job) -> _Ended:
    return _Ended(job.done, error=StoreUnavailable(_GONE))


def _tell_broken(error: Exception) -> None:
    log.error("a row could not be written: %s", type(error).__name__)  # its message and traceback hold users' data


def _resolve(ended: list[_Ended]) -> None:
    """Wake those who wait, once a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Ended]] = {}
    for end in ended:
        if end.done is not None:
            by_loop.setdefault(end.done.get_loop(), []).append(end)
    for loop, waiting in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set_done, waiting)


def _set_done(ended: list[_Ended]) -> None:
    for done, result, error, _ in ended:
        if done is None or done.done():
            continue
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
