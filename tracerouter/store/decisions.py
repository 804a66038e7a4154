"""The decision log: one row a request, kept or not; with its stages, where its trace was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from tracerouter.types import NANOS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracerouter.store.sqlite import Row, SqliteStore

    Found = tuple[dict[str, Any], list[dict[str, Any]] | None]
    """A row, and its trace's stages; None where that was not kept."""

_INSERT: Final = "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FAILED_BY: Final = (
    "EXISTS (SELECT 1 FROM json_each(record, '$.attempts') AS attempt WHERE attempt.value ->> '$.failure' = ?1)"
)
_SELECT: Final = "SELECT record, timeline FROM decisions"


class DecisionLog:
    """Writes and finds rows. Writing never delays a request: when the queue is full, rows are dropped and counted."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def append(self, row: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]] | None) -> bool:
        """Queue one row; False where it had to be dropped."""
        return self._store.offer(lambda: _row(row, timeline))

    def find(self, identity: str) -> Found | None:
        """Return the newest request with this trace id or request id."""
        where = "WHERE trace_id = ?1 OR request_id = ?1 ORDER BY time DESC LIMIT 1"
        return _found(self._store.read(f"{_SELECT} {where}", (identity,)))

    def last(self, word: str) -> Found | None:
        """Return the newest request that `word` tells of.

        It may be a route, outcome, reason, task, tenant or policy, or why one of its attempts failed.
        """
        where = f"WHERE ?1 IN (route, outcome, reason, task, tenant, record ->> '$.policy') OR {_FAILED_BY}"
        return _found(self._store.read(f"{_SELECT} {where} ORDER BY time DESC LIMIT 1", (word,)))


def _row(row: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]] | None) -> Row:
    stages = None if timeline is None else orjson.dumps(timeline).decode()
    told = (
        row.get(name) for name in ("request_id", "time", "trace_id", "tenant", "task", "route", "outcome", "reason")
    )
    nanos = round(row["cost"] * NANOS) if "cost" in row else None
    return _INSERT, (*told, nanos, timeline is not None, orjson.dumps(dict(row)).decode(), stages)


def _found(rows: list[tuple[Any, ...]]) -> Found | None:
    if not rows:
        return None
    record, stages = rows[0]
    return orjson.loads(record), None if stages is None else orjson.loads(stages)
