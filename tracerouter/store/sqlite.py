"""One SQLite file: one writer thread that commits in groups, so that a request never waits for the disk's own pace.

Rows of two kinds are written. What must not be lost (the ledger) waits in a queue for as long as the disk fails; what
may be (the decision log) has a bounded queue, and is counted when it is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import sqlite3
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Of the tables, in ``PRAGMA user_version``."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    request_id TEXT NOT NULL, attempt INTEGER NOT NULL, time REAL NOT NULL, day TEXT NOT NULL,
    tenant TEXT NOT NULL, team TEXT, user TEXT, role TEXT NOT NULL, model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_nanos INTEGER, source TEXT NOT NULL,
    UNIQUE (request_id, attempt)
);
CREATE TABLE IF NOT EXISTS spend (
    day TEXT NOT NULL, tenant TEXT NOT NULL, team TEXT NOT NULL, user TEXT NOT NULL, role TEXT NOT NULL,
    cost_nanos INTEGER NOT NULL, requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, team, user, role)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS spent AFTER INSERT ON entries BEGIN
    INSERT INTO spend VALUES (
        new.day, new.tenant, coalesce(new.team, ''), coalesce(new.user, ''), new.role,
        coalesce(new.cost_nanos, 0), 1, new.input_tokens, new.output_tokens
    ) ON CONFLICT DO UPDATE SET
        cost_nanos = cost_nanos + excluded.cost_nanos, requests = requests + 1,
        input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens;
END;
CREATE TABLE IF NOT EXISTS decisions (
    request_id TEXT NOT NULL, time REAL NOT NULL, trace_id TEXT NOT NULL, tenant TEXT NOT NULL, task TEXT,
    route TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, cost_nanos INTEGER NOT NULL,
    kept INTEGER NOT NULL, record TEXT NOT NULL, timeline TEXT
);
CREATE INDEX IF NOT EXISTS decisions_by_time ON decisions (time);
CREATE INDEX IF NOT EXISTS decisions_by_trace ON decisions (trace_id);
CREATE INDEX IF NOT EXISTS decisions_by_request ON decisions (request_id);
"""

_GROUP: Final = 1000
"""Rows in one commit, at most."""
_DROPPABLE: Final = 10_000
"""Droppable rows that wait, at most."""
_UNWRITTEN: Final = 100_000
"""Rows that must not be lost and wait for the disk, at most: some 50 MB."""
_LONGEST_PAUSE: Final = 2.0
"""Seconds between two tries while the disk fails."""

Row = tuple[str, "Sequence[Any]"]
"""A statement and its values."""


class _Job(NamedTuple):
    make: Callable[[], Row]
    droppable: bool
    done: asyncio.Future[None] | None


class SqliteStore:
    """The file. Several processes on one machine may use the same one.

    Args:
        path: The file, made if it is not there; ``:memory:`` keeps all in this process.

    Raises:
        ConfigError: It can't be opened, is no database, or is a newer version's.
    """

    def __init__(self, path: Path | str) -> None:
        self._name = str(path)
        self._in_memory = self._name == ":memory:"
        shared = f"file:tracerouter-{secrets.token_hex(8)}?mode=memory&cache=shared"
        self._address = shared if self._in_memory else self._name
        self._writer = self._open()
        self._reader = self._open()
        self._reading = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._droppable = 0
        self._must = 0
        self.dropped = 0
        """Droppable rows that were not written."""
        self.lost = 0
        """Rows that must not be lost, and were: more than the disk could take and memory could hold."""
        self._thread = threading.Thread(target=self._run, name="tracerouter-store", daemon=True)
        self._thread.start()

    def write(self, sql: str, values: Sequence[Any]) -> Awaitable[None]:
        """Queue a row that must not be lost. Await the result to know that it is committed.

        It is committed within about a millisecond. While the disk fails the row stays queued, and what is awaited
        ends after the first try, since a request must not hang on a disk.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._must >= _UNWRITTEN:
            self.lost += 1
            done.set_result(None)
            return done
        self._must += 1
        self._jobs.put(_Job(lambda: (sql, values), droppable=False, done=done))
        return done

    def offer(self, make: Callable[[], Row]) -> bool:
        """Queue a row that may be lost; `make` is called in the writer's thread. False: the queue is full."""
        if self._droppable >= _DROPPABLE:
            self.dropped += 1
            return False
        self._droppable += 1
        self._jobs.put(_Job(make, droppable=True, done=None))
        return True

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query, of what is committed. Blocks; for terminals and gauges."""
        with self._reading:
            return self._reader.execute(sql, values).fetchall()

    def secret(self) -> bytes:
        """Return 32 random bytes, the same for all who use this file and for ever."""
        with self._reading:
            made = ("secret", secrets.token_bytes(32))
            self._reader.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", made)
            found: bytes = self._reader.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()[0]
        return found

    def close(self) -> None:
        """Write what is queued and close the file; blocks, 10 seconds at most where the disk fails."""
        self._jobs.put(None)
        self._thread.join(10)
        self._reader.close()

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._address, uri=self._in_memory, isolation_level=None, check_same_thread=False, timeout=5
            )
            connection.execute("PRAGMA journal_mode = WAL")
            # a commit survives the death of the process, if not that of the machine
            connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                msg = f"store: {self._name} was written by a newer tracerouter: upgrade, or use another file"
                raise ConfigError(msg)
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error as error:
            msg = f"store: {self._name} can't be used as a SQLite file ({error}); give another path, or move it away"
            raise ConfigError(msg) from None
        return connection

    def _run(self) -> None:
        unwritten: list[_Job] = []
        pause, closing = 0.0, False
        while not closing or unwritten:
            batch, ended = self._batch(pause if unwritten else None)
            if closing and not batch and pause:
                return  # the disk failed through the last tries
            closing = closing or ended
            unwritten = self._commit([*unwritten, *batch])
            if not unwritten and pause:
                log.warning("the store takes rows again")
                pause = 0.0
            elif unwritten:
                if not pause:
                    log.error("the store takes no rows; the ledger's wait, the decision log's are dropped")
                pause = min(_LONGEST_PAUSE, pause * 2 or 0.05)
        self._writer.close()

    def _batch(self, pause: float | None) -> tuple[list[_Job], bool]:
        """Wait for jobs, `pause` seconds at most; return them, and whether the store is closing."""
        batch: list[_Job] = []
        with suppress(queue.Empty):
            job = self._jobs.get(timeout=pause)
            while job is not None:
                batch.append(job)
                if len(batch) == _GROUP:
                    return batch, False
                job = self._jobs.get_nowait()
            return batch, True
        return batch, False

    def _commit(self, batch: list[_Job]) -> list[_Job]:
        """Write all in one transaction; return what must be tried again."""
        if not batch:
            return []
        failed: list[_Job] = []
        try:
            self._write([job.make() for job in batch])
        except sqlite3.OperationalError:  # full, locked, read-only, gone: it may pass
            failed = [job for job in batch if not job.droppable]
            self.dropped += len(batch) - len(failed)
        except Exception:  # noqa: BLE001 - one bad row must not take the others with it
            for job in batch:
                try:
                    self._write([job.make()])
                except Exception as error:  # noqa: BLE001 - as above
                    log.error("a row could not be written: %s", type(error).__name__)  # noqa: TRY400 - rows hold users' data
                    self.dropped += job.droppable
                    self.lost += not job.droppable
        self._droppable -= sum(job.droppable for job in batch)
        self._must = self._must - sum(not job.droppable for job in batch) + len(failed)
        _resolve([job.done for job in batch if job.done is not None])
        return [job._replace(done=None) for job in failed]

    def _write(self, rows: list[Row]) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in rows:
                self._writer.execute(sql, values)
            self._writer.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            raise


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    """Wake those who wait, once a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, waiting in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set_done, waiting)


def _set_done(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
