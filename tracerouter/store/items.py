"""Durable things with a state: reviews, jobs, confirmation tokens, webhook deliveries.

They change by compare-and-set, so that of many who decide at once one wins, in whatever process; each change is
written down, and what is written down does not change.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import orjson

from tracerouter.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import EllipsisType

    from tracerouter.store.sqlite import SqliteStore

LISTED: Final = 100
"""Items of one list, where no other number is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A durable thing with a state. Times are Unix seconds."""

    kind: str
    """What it is: ``review``, ``job``, ``token``, ``webhook``."""
    tenant: str
    """Whose it is."""
    state: str
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    """Drawn so that nobody can guess it."""
    user: str | None = None
    version: int = 1
    """Grows by one with each change."""
    due: float | None = None
    """When something is to be done about it. None: nothing is."""
    expires: float | None = None
    """When it vanishes, its history too. None: never."""
    created: float = field(default_factory=time.time)
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What JSON can hold."""
    unique: str | None = None
    """Of a kind and a tenant there is one with this key: an idempotency key."""

    def changed(
        self,
        state: str | None,
        due: float | EllipsisType | None,
        expires: float | EllipsisType | None,
        body: Mapping[str, Any] | None,
    ) -> Item:
        """Return its next version; None, or an ellipsis where None has a meaning, leaves a field as it is."""
        return replace(
            self,
            version=self.version + 1,
            state=self.state if state is None else state,
            due=self.due if due is ... else due,
            expires=self.expires if expires is ... else expires,
            body=self.body if body is None else body,
        )


class Happened(NamedTuple):
    """One line of an item's history."""

    time: float
    """Unix seconds."""
    by: str
    what: str


class Depth(NamedTuple):
    """How many items there are, and since when the oldest of them."""

    number: int = 0
    oldest: float | None = None
    """Unix seconds; None: there are none."""


class Items(Protocol):
    """Keeps items. Each method raises :class:`tracerouter.errors.StoreUnavailable` where the store fails."""

    async def add(self, item: Item) -> Item:
        """Keep a new item and return it; where its `unique`, or its `id`, is taken, return the one that has it."""
        ...

    async def get(self, kind: str, id: str) -> Item | None:  # noqa: A002 - its name everywhere
        """Return an item, or None where there is none (any more)."""
        ...

    async def change(  # noqa: PLR0913 - what may change, each by its name
        self,
        item: Item,
        *,
        by: str,
        what: str,
        state: str | None = None,
        due: float | EllipsisType | None = ...,
        expires: float | EllipsisType | None = ...,
        body: Mapping[str, Any] | None = None,
    ) -> Item | None:
        """Change `item` and return its next version, or None where it has changed, or gone, since it was read.

        What is left out stays as it is. `by` whom and `what` go into its history.
        """
        ...

    async def take(self, kind: str, id: str) -> Item | None:  # noqa: A002 - as above
        """Return an item and delete it: of all who take it, one gets it."""
        ...

    async def due(self, kind: str, states: Collection[str], now: float, limit: int = LISTED) -> Sequence[Item]:
        """Return the items in one of `states` that are due by `now`, the earliest first."""
        ...

    async def list(
        self,
        kind: str,
        *,
        states: Collection[str] | None = None,
        tenant: str | None = None,
        user: str | None = None,
        limit: int = LISTED,
    ) -> Sequence[Item]:
        """Return items, the newest first: those in one of `states`, of this tenant, of this user."""
        ...

    async def depth(self, kind: str, states: Collection[str]) -> Depth:
        """Return how many items are in one of `states`, and the age of the oldest."""
        ...

    async def history(self, kind: str, id: str) -> Sequence[Happened]:  # noqa: A002 - as above
        """Return what was done with an item, in order."""
        ...


_COLUMNS: Final = "kind, tenant, state, id, user, version, due, expires, created, body, only_one"
_SELECT: Final = f"SELECT {_COLUMNS} FROM items"  # noqa: S608 - the names are ours; values are bound, here and below
_ALIVE: Final = "(expires IS NULL OR expires > ?)"


class SqliteItems:
    """Items in the store's file, for the processes of one machine."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    async def add(self, item: Item) -> Item:
        """Keep a new item: see :class:`Items`."""

        def work(file: sqlite3.Connection) -> Item:
            _purge(file)
            values = (item.kind, item.tenant, item.state, item.id, item.user, item.version, item.due, item.expires)
            told = (*values, item.created, _written(item.body), item.unique)
            added = file.execute(f"INSERT OR IGNORE INTO items ({_COLUMNS}) VALUES ({'?, ' * 10}?)", told)  # noqa: S608
            if added.rowcount:
                return item
            where = "WHERE kind = ? AND (id = ? OR tenant = ? AND only_one = ?)"
            found = file.execute(f"{_SELECT} {where}", (item.kind, item.id, item.tenant, item.unique))
            return _item(found.fetchone())

        return await self._store.transact(work)

    async def get(self, kind: str, id: str) -> Item | None:  # noqa: A002 - as in Items
        """Return an item: see :class:`Items`."""
        found = await self._read(f"{_SELECT} WHERE kind = ? AND id = ? AND {_ALIVE}", (kind, id, time.time()))
        return _item(found[0]) if found else None

    async def change(  # noqa: PLR0913 - as in Items
        self,
        item: Item,
        *,
        by: str,
        what: str,
        state: str | None = None,
        due: float | EllipsisType | None = ...,
        expires: float | EllipsisType | None = ...,
        body: Mapping[str, Any] | None = None,
    ) -> Item | None:
        """Change an item: see :class:`Items`."""
        new = item.changed(state, due, expires, body)

        def work(file: sqlite3.Connection) -> Item | None:
            now = _purge(file)
            changed = file.execute(
                "UPDATE items SET version = ?, state = ?, due = ?, expires = ?, body = ? "
                "WHERE kind = ? AND id = ? AND version = ?",
                (
                    *(new.version, new.state, new.due, new.expires, _written(new.body)),
                    *(item.kind, item.id, item.version),
                ),
            )
            if not changed.rowcount:
                return None
            file.execute("INSERT INTO item_history VALUES (?, ?, ?, ?, ?)", (item.kind, item.id, now, by, what))
            return new

        return await self._store.transact(work)

    async def take(self, kind: str, id: str) -> Item | None:  # noqa: A002 - as in Items
        """Return an item and delete it: see :class:`Items`."""

        def work(file: sqlite3.Connection) -> Item | None:
            _purge(file)
            found = file.execute(f"{_SELECT} WHERE kind = ? AND id = ?", (kind, id)).fetchall()
            file.execute("DELETE FROM items WHERE kind = ? AND id = ?", (kind, id))
            return _item(found[0]) if found else None

        return await self._store.transact(work)

    async def due(self, kind: str, states: Collection[str], now: float, limit: int = LISTED) -> Sequence[Item]:
        """Return the items that are due: see :class:`Items`."""

        def work(file: sqlite3.Connection) -> Sequence[Item]:
            _purge(file)
            where = f"WHERE kind = ? AND state IN ({_marks(states)}) AND due <= ? ORDER BY due LIMIT ?"
            return [_item(row) for row in file.execute(f"{_SELECT} {where}", (kind, *states, now, limit))]

        return await self._store.transact(work)

    async def list(
        self,
        kind: str,
        *,
        states: Collection[str] | None = None,
        tenant: str | None = None,
        user: str | None = None,
        limit: int = LISTED,
    ) -> Sequence[Item]:
        """Return items, the newest first: see :class:`Items`."""
        where, values = f"kind = ? AND {_ALIVE}", [kind, time.time()]
        if states is not None:
            where, values = f"{where} AND state IN ({_marks(states)})", [*values, *states]
        for name, value in (("tenant", tenant), ("user", user)):
            if value is not None:
                where, values = f"{where} AND {name} = ?", [*values, value]
        query = f"{_SELECT} WHERE {where} ORDER BY created DESC, id LIMIT ?"
        return [_item(row) for row in await self._read(query, (*values, limit))]

    async def depth(self, kind: str, states: Collection[str]) -> Depth:
        """Return how many items there are: see :class:`Items`."""
        query = (
            "SELECT count(*), min(created) FROM items "  # noqa: S608 - the values are bound
            f"WHERE kind = ? AND state IN ({_marks(states)}) AND {_ALIVE}"
        )
        ((count, oldest),) = await self._read(query, (kind, *states, time.time()))
        return Depth(count, oldest)

    async def history(self, kind: str, id: str) -> Sequence[Happened]:  # noqa: A002 - as in Items
        """Return what was done with an item: see :class:`Items`."""
        query = (
            "SELECT time, who, what FROM item_history WHERE kind = ?1 AND id = ?2 AND EXISTS "  # noqa: S608 - as above
            f"(SELECT 1 FROM items WHERE kind = ?1 AND id = ?2 AND {_ALIVE.replace('?', '?3')}) ORDER BY rowid"
        )
        return [Happened(*row) for row in await self._read(query, (kind, id, time.time()))]

    async def _read(self, sql: str, values: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
        try:
            return await asyncio.to_thread(self._store.read, sql, values)
        except sqlite3.Error as error:
            msg = f"the store can't be read ({type(error).__name__})"
            raise StoreUnavailable(msg) from None


def _purge(file: sqlite3.Connection) -> float:
    """Delete what has expired, and return the time (Unix seconds)."""
    now = time.time()
    file.execute("DELETE FROM items WHERE expires <= ?", (now,))
    return now


def _written(body: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(body)).decode()


def _marks(values: Collection[str]) -> str:
    return ", ".join("?" for _ in values)


def _item(row: tuple[Any, ...]) -> Item:
    kind, tenant, state, identity, user, version, due, expires, created, body, unique = row
    return Item(
        kind=kind,
        tenant=tenant,
        state=state,
        id=identity,
        user=user,
        version=version,
        due=due,
        expires=expires,
        created=created,
        body=orjson.loads(body),
        unique=unique,
    )
