"""Durable things with a state, on a SQLite file and on a real Redis: what holds of one holds of the other."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.redis_server import redis, redis_server  # noqa: F401 - fixtures
from tracerouter.errors import StoreUnavailable
from tracerouter.store import Item, Items, RedisItems, RedisStore, SqliteItems, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.redis_server import RedisServer

Open = Callable[[], Items]

_RACER = """
import asyncio, json, sys
from tracerouter.store import RedisItems, RedisStore, SqliteItems, SqliteStore

async def race(url, id, number):
    at_redis = url.startswith("redis:")
    store = RedisStore(url, timeout=30) if at_redis else SqliteStore(url)
    items = RedisItems(store) if at_redis else SqliteItems(store)
    item = await items.get("review", id)
    print("ready", flush=True)
    sys.stdin.readline()
    won = await asyncio.gather(
        *(items.change(item, by=f"{number}-{one}", what="claim", state="claimed") for one in range(50))
    )
    print(json.dumps(sum(one is not None for one in won)), flush=True)
    if not at_redis:
        store.close()

asyncio.run(race(*sys.argv[1:]))
"""


@pytest.fixture(params=["sqlite", "redis"])
async def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the items are: a URL, or a file's path."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    server: RedisServer = request.getfixturevalue("redis")
    return server.url


@pytest.fixture
async def another(where: str) -> AsyncIterator[Open]:
    """Open the same items again, as another process would."""
    closers: list[Callable[[], Awaitable[object]]] = []

    def made() -> Items:
        if where.startswith("redis:"):
            shared = RedisStore(where, timeout=30)  # a busy machine is no fault of an item's
            closers.append(shared.close)
            return RedisItems(shared)
        file = SqliteStore(where)
        closers.append(lambda: asyncio.to_thread(file.close))
        return SqliteItems(file)

    yield made
    for close in closers:
        await close()


@pytest.fixture
async def items(another: Open) -> Items:
    return another()


def review(**facts: Any) -> Item:
    return Item(
        **({"kind": "review", "tenant": "acme", "state": "pending", "body": {"prompt": "Is it legal? ✓"}} | facts)
    )


async def test_what_is_kept_is_found_by_every_process(items: Items, another: Open) -> None:
    """An item comes back as it was, whoever asks; an id that nobody has is None."""
    made = await items.add(review(user="ann", due=5.25, expires=time.time() + 60, unique="key"))
    assert await another().get("review", made.id) == made
    assert await items.get("review", "nothing") is None
    assert await items.get("job", made.id) is None


async def test_a_key_is_taken_once_in_a_tenant(items: Items) -> None:
    """The second item with a key is not kept: the first is returned. Another tenant or kind has keys of its own."""
    first = await items.add(review(unique="k", body={"is": 1}))
    assert await items.add(review(unique="k", body={"is": 2})) == first
    for other in (review(unique="k", tenant="b"), review(unique="k", kind="job"), review(unique="j"), review()):
        assert await items.add(other) == other
    assert len(await items.list("review", tenant="acme")) == 3


async def test_an_id_is_taken_once(items: Items) -> None:
    """An item whose id is there is not kept twice."""
    first = await items.add(review())
    assert await items.add(review(id=first.id, state="other")) == first


async def test_a_change_is_made_by_the_first_of_many(items: Items) -> None:
    """Who read an older version changes nothing; what was not named stays, and None is a value."""
    made = await items.add(review(due=1.0, unique="k"))
    claimed = await items.change(made, by="ann", what="claim", state="claimed", due=None)
    assert claimed is not None
    assert (claimed.version, claimed.state, claimed.due, claimed.body) == (2, "claimed", None, made.body)
    assert await items.get("review", made.id) == claimed
    assert await items.change(made, by="bob", what="claim", state="claimed") is None
    edited = await items.change(claimed, by="ann", what="edit", body={"answer": "no"}, expires=time.time() + 60)
    assert edited is not None
    assert await items.get("review", made.id) == edited
    assert [(by, what) for _, by, what in await items.history("review", made.id)] == [("ann", "claim"), ("ann", "edit")]


@pytest.mark.parametrize("processes", [1, 3])
async def test_of_all_who_change_at_once_one_wins(items: Items, where: str, processes: int) -> None:
    """Of fifty changes in each of some processes, exactly one is made, and one line written."""
    for _ in range(3):
        made = await items.add(review())
        racers = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _RACER, where, made.id, str(number)), stdin=PIPE, stdout=PIPE
            )
            for number in range(processes)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert await racer.stdout.readline() == b"ready\n"
        said = await asyncio.gather(*(racer.communicate(b"go\n") for racer in racers))
        assert sum(json.loads(out) for out, _ in said) == 1
        assert len(await items.history("review", made.id)) == 1


async def test_of_all_who_take_at_once_one_gets_it(items: Items, another: Open) -> None:
    """A token is used once; its key is free again, and its history is gone."""
    made = await items.add(review(kind="token", unique="k"))
    changed = await items.change(made, by="ann", what="ask")
    taken = await asyncio.gather(*(one.take("token", made.id) for one in (items, another()) * 20))
    assert [one for one in taken if one is not None] == [changed]
    assert await items.history("token", made.id) == []
    assert await items.list("token") == []
    assert await items.depth("token", ["pending"]) == (0, None)
    again = review(kind="token", unique="k")
    assert await items.add(again) == again


async def test_due_items_come_earliest_first(items: Items) -> None:
    """Only those that are due, in the states that are asked for, and not more than asked for."""
    later, first, second = [await items.add(review(due=due)) for due in (30.0, 10.0, 20.0)]
    for other in (review(), review(state="done", due=5.0), review(kind="job", due=5.0)):
        await items.add(other)
    claimed = await items.change(second, by="ann", what="claim", state="claimed")
    assert await items.due("review", ["pending", "claimed"], 25.0) == [first, claimed]
    assert await items.due("review", ["claimed", "pending"], 40.0, 2) == [first, claimed]
    assert await items.due("review", ["pending"], 40.0) == [first, later]
    assert await items.due("review", [], 40.0) == []


async def test_a_list_is_of_those_asked_for_newest_first(items: Items) -> None:
    """By state, tenant and user, in any combination; a tenant's list holds no other tenant's."""
    made = {
        name: await items.add(review(created=float(at), tenant=tenant, user=user, state=state))
        for at, (name, tenant, user, state) in enumerate(
            (
                ("a", "acme", "ann", "pending"),
                ("b", "acme", None, "done"),
                ("c", "b", "ann", "pending"),
                ("d", "acme", "bob", "pending"),
                ("e", "acme", "", "pending"),
            )
        )
    }

    async def found(**asked: Any) -> str:
        names = {item.id: name for name, item in made.items()}
        return "".join(names[one.id] for one in await items.list("review", **asked))

    assert await found() == "edcba"
    assert await found(limit=2) == "ed"
    assert await found(states=["pending"]) == "edca"
    assert await found(states=["pending", "done"], limit=4) == "edcb"
    assert await found(states=[]) == ""
    assert await found(tenant="acme") == "edba"
    assert await found(tenant="acme", user="ann") == "a"
    assert await found(user="ann") == "ca"
    assert await found(user="") == "e"
    assert await found(tenant="acme", states=["pending"], limit=2) == "ed"
    assert await found(tenant="ac") == ""


async def test_a_list_reaches_beyond_many_others(items: Items) -> None:
    """What is asked for is found below hundreds of newer items that are not."""
    wanted = await items.add(review(created=1.0, user="ann"))
    for _ in range(25):
        await asyncio.gather(*(items.add(review(created=2.0, user="bob")) for _ in range(10)))
    assert await items.list("review", user="ann") == [wanted]
    assert len(await items.list("review", limit=220)) == 220


async def test_depth_tells_the_number_and_the_oldest(items: Items) -> None:
    """Of the states that are asked for."""
    assert await items.depth("review", ["pending", "claimed"]) == (0, None)
    old = await items.add(review(created=1_700_000_000.123456))
    await items.add(review(created=1_700_000_001.0))
    await items.add(review(state="done", created=1.0))
    assert await items.depth("review", ["pending", "claimed"]) == (2, old.created)
    await items.change(old, by="ann", what="claim", state="claimed")
    assert await items.depth("review", ["claimed", "pending"]) == (2, old.created)
    assert (await items.depth("review", ["pending"])).number == 1


async def test_what_has_expired_is_gone_everywhere(items: Items, another: Open) -> None:
    """An expired item is in no list, cannot be changed, and leaves its key and no history."""
    gone = await items.add(review(expires=time.time() + 0.3, due=1.0, unique="k"))
    stays = await items.add(review(expires=time.time() + 60, due=2.0))
    await items.change(gone, by="ann", what="look", due=1.5)
    while time.time() < (gone.expires or 0) + 0.01:
        await asyncio.sleep(0.02)
    assert await items.get("review", gone.id) is None
    assert await items.history("review", gone.id) == []
    assert await items.list("review", tenant="acme") == [stays]
    assert await items.list("review") == [stays]
    assert await items.depth("review", ["pending"]) == (1, stays.created)
    assert await items.due("review", ["pending"], 9.0) == [stays]
    assert await items.change(gone, by="ann", what="claim") is None
    assert await another().take("review", gone.id) is None
    again = review(unique="k")
    assert await items.add(again) == again


async def test_a_later_expiry_and_none_are_kept_to(items: Items) -> None:
    """An item whose expiry was put off, or taken away, is there after the first one."""
    first = time.time() + 0.2
    made = [await items.add(review(expires=first, unique=key)) for key in ("a", "b")]
    later = await items.change(made[0], by="ann", what="wait", expires=first + 60)
    never = await items.change(made[1], by="ann", what="wait", expires=None)
    while time.time() < first + 0.01:
        await asyncio.sleep(0.02)
    assert await items.get("review", made[0].id) == later
    assert await items.get("review", made[1].id) == never
    assert len(await items.list("review")) == 2
    assert len(await items.history("review", made[1].id)) == 1
    assert await items.add(review(unique="b")) == never


async def test_a_redis_that_is_gone_is_unavailable(redis: RedisServer) -> None:  # noqa: F811 - the fixture
    """Every method says so, and nothing else."""
    shared = RedisStore(redis.url)
    items = RedisItems(shared)
    made = await items.add(review())
    redis.stop()
    try:
        calls = (
            lambda: items.add(review()),
            lambda: items.get("review", made.id),
            lambda: items.change(made, by="ann", what="claim"),
            lambda: items.take("review", made.id),
            lambda: items.due("review", ["pending"], 1.0),
            lambda: items.list("review"),
            lambda: items.depth("review", ["pending"]),
            lambda: items.history("review", made.id),
        )
        for call in calls:
            with pytest.raises(StoreUnavailable):
                await call()
    finally:
        redis.start()
        await shared.close()


async def test_a_file_that_is_locked_is_unavailable(tmp_path: Path) -> None:
    """A change waits five seconds for other processes; then it says that it can't be made, and none is made later."""
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    items = SqliteItems(store)
    made = await items.add(review())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await items.change(made, by="ann", what="claim", state="claimed")
        assert time.monotonic() - began < 8
        other.execute("ROLLBACK")
    assert await items.get("review", made.id) == made
    async with asyncio.timeout(5):
        while True:
            try:
                changed = await items.change(made, by="ann", what="claim", state="claimed")
            except StoreUnavailable:  # until its next try
                await asyncio.sleep(0.05)
            else:
                break
    assert changed is not None
    store.close()
    for call in (items.add(review()), items.get("review", made.id), items.list("review")):
        with pytest.raises(StoreUnavailable):
            await call


async def test_the_history_of_an_item_is_append_only(tmp_path: Path) -> None:
    """The file itself turns down who rewrites or deletes a line of an item that is there."""
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    items = SqliteItems(store)
    made = await items.add(review())
    await items.change(made, by="ann", what="claim")
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        for statement in ("UPDATE item_history SET who = 'bob'", "DELETE FROM item_history"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                file.execute(statement)
    store.close()


async def test_no_bytes_of_what_was_deleted_stay_in_the_file(tmp_path: Path) -> None:
    """A prompt that was deleted, or has expired, is not to be found in the file any more."""
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    items = SqliteItems(store)
    for secret in ("the first secret", "the second secret"):
        made = await items.add(review(body={"prompt": secret * 500}))
        if "first" in secret:
            await items.change(made, by="expiry", what="expire", body={})
        else:
            await items.take("review", made.id)
    assert (await items.list("review"))[0].body == {}
    store.close()
    files = [file.read_bytes() for file in tmp_path.iterdir()]  # noqa: ASYNC240 - small ones
    assert files
    assert not any(b"secret" in file for file in files)
