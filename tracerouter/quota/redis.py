"""The ledger in Redis: what is reserved and what was spent, for all replicas.

Every process writes its own entries down in its journal, a SQLite file, and then books them in Redis: as a stream, of
which Redis knows by a cursor how far it is booked. So an entry is booked once, however often it is sent; what could
not be sent is sent later; and a Redis that lost its state, or came back with an older one, is brought up to date from
the journals. The scripts themselves see that it must be: what they work on has the name of a *generation*, which is
gone with the state. While the replicas rebuild a new generation no limit can be checked, and `reserve` says so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson

from tracerouter.errors import StoreUnavailable
from tracerouter.quota import scripts
from tracerouter.quota.accounts import ALL, Account, Calendar, roles, scopes
from tracerouter.quota.ledger import insert
from tracerouter.types import NANOS, Balance, Denied, Headroom, Reservation, Spend

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Iterable

    from tracerouter.store import RedisStore, SqliteStore
    from tracerouter.store.redis import Script
    from tracerouter.types import Claim, Entry

    Told = Callable[[str | None], Iterable[Any]]
    """What a script is told, given the generation."""
    Who = tuple[str, str | None, str | None, str]
    """Day, team, user and role of an entry."""

log = logging.getLogger(__name__)

REBUILD: Final = 5.0
"""Seconds for which a new generation waits for all replicas to notice it; then for those that still rebuild it."""
WATCH: Final = 1.0
"""Seconds in which a replica notices a new generation, at most, and tries again what could not be sent."""
_JOIN: Final = 0.5
"""Seconds that the first reservation of a process waits for the generation."""
_POLL: Final = 0.2
"""Seconds between two looks while the ledger is rebuilt."""
_BATCH: Final = 1000
"""Entries that are booked by one script, and releases."""
_WAITING: Final = 10_000
"""Entries of a stream that wait in memory; more are read from the journal when they can be sent."""
_DRAIN: Final = 3.0
"""Seconds that closing waits for Redis."""

_GENERATION: Final = "tracerouter:{ledger}"
_KNOWN: Final = "tracerouter:{{ledger}}:{generation}:{month}"
"""The tenants that have accounts in a month."""
_ZERO: Final = Spend()

_STREAM: Final = "INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?)"
_STREAMS: Final = "SELECT stream, tenant, month, max(number) FROM streams WHERE month >= ? GROUP BY 1, 2, 3"
_FORGET: Final = "DELETE FROM streams WHERE month < ?"
_ENTRIES: Final = """
SELECT day, entries.team, entries.user, role, coalesce(sum(cost_nanos), 0), sum(role <> 'classify'),
    sum(input_tokens + output_tokens)
FROM streams JOIN entries USING (id, attempt)
WHERE stream = ? AND streams.tenant = ? AND month = ? AND number > ? AND number <= ? GROUP BY 1, 2, 3, 4
"""


class _Rebuilding(StoreUnavailable):
    """The ledger in Redis does not know all that it should; nothing was held."""

    def __init__(self) -> None:
        super().__init__("the ledger is being rebuilt")


class _Line:
    """An entry on its way to Redis."""

    __slots__ = ("member", "new", "number", "spend", "who")

    def __init__(self, number: int, who: Who, spend: Spend, member: str | None) -> None:
        self.number, self.who, self.spend = number, who, spend
        self.member = member
        """The reservation that is released in the same step."""
        self.new = True
        """Whether the journal did not have it; what it can't tell is taken to be new."""


class _Stream:
    """The entries of one process for one tenant and month, in their order, and what Redis has yet to hear of them."""

    def __init__(self, identity: str, tenant: str, month: str, last: int = 0) -> None:
        self.id, self.tenant, self.month = identity, tenant, month
        self.key = f"tracerouter:ledger:{{{_tag(tenant)}}}:{month}"
        self.last = last
        """The number of the newest entry."""
        self.journaled = last
        """Up to here the journal has them, or could not take them."""
        self.base = last
        """Up to here they are not in memory any more."""
        self.booked = last
        """Up to here they are booked, as far as is known."""
        self.waiting: deque[_Line] = deque()
        self.releases: dict[str, float] = {}
        """Reservations of which nothing came, and for how many seconds none of that name may be made."""
        self.held: dict[str, tuple[float, list[bytes]]] = {}
        """Reservations that stand: until when on the loop's clock, and their claims."""
        self.checked: str | None = None
        """The generation that is known to have all up to `booked`."""
        self.known: str | None = None
        """The generation in which the tenant is known to have accounts in this month."""
        self.opening = asyncio.Lock()
        self.sending: asyncio.Task[None] | None = None
        self.waiters: list[tuple[int, asyncio.Future[None]]] = []

    def keys(self, *days: str) -> list[str]:
        return [self.key, f"{self.key}:leases", f"{self.key}:held", *(f"{self.key}{day[7:]}" for day in days)]

    def to_tell(self, generation: str | None) -> bool:
        """Return whether Redis has something to hear."""
        return bool(self.releases) or self.booked < self.journaled or self.unchecked(generation)

    def unchecked(self, generation: str | None) -> bool:
        """Return whether a generation may not know all that it should."""
        return self.checked != generation and bool(self.last or self.held)

    def lines(self) -> list[_Line]:
        """Return the next entries that wait in memory and are in the journal."""
        found: list[_Line] = []
        for line in self.waiting:
            if line.number > self.journaled or len(found) == _BATCH:
                break
            if line.number > self.booked:
                found.append(line)
        return found

    def told(self, number: int) -> None:
        """Note that all up to `number` are booked."""
        self.booked = number
        while self.waiting and self.waiting[0].number <= number:
            self._forget()

    def shorten(self) -> None:
        """Leave to the journal what has waited longest."""
        while len(self.waiting) > _WAITING and self.waiting[0].number <= self.journaled:
            self._forget()

    def _forget(self) -> None:
        line = self.waiting.popleft()
        self.base = line.number
        if line.member is not None:
            self.held.pop(line.member, None)

    def wake(self, above: int, number: int) -> None:
        """Let go of who waits for entries after `above` and up to `number`; 0 are those who wait for a release."""
        kept = []
        for at, done in self.waiters:
            if not above < at <= number:
                kept.append((at, done))
            elif not done.done():
                done.set_result(None)
        self.waiters = kept


class RedisLedger:
    """Accounts in Redis, entries in a journal of the process's own. An attempt is booked once.

    Leases run on Redis's clock, days and months on that of the process. Close it before its store and journal.

    Args:
        store: Where all replicas keep their accounts.
        journal: Where this process writes its entries down; processes of one machine may use the same file.
        zone: IANA name of the time zone whose midnight ends a day.
        window: Seconds that a new generation waits for all replicas to notice it.
    """

    def __init__(self, store: RedisStore, journal: SqliteStore, zone: str = "UTC", *, window: float = REBUILD) -> None:
        self.calendar = Calendar(zone)
        self._store, self._journal, self._window = store, journal, window
        self._reserve, self._settle = store.script(scripts.RESERVE), store.script(scripts.SETTLE)
        self._watch, self._know = store.script(scripts.WATCH), store.script(scripts.KNOW)
        self._id = secrets.token_hex(8)
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._numbers = itertools.count()
        self._generation: str | None = None
        self._rebuilt: str | None = None
        """The generation that has all that this process knows."""
        self._ready_at = math.inf
        self._looks = 0
        self._looked_at = 0.0
        self._look_lock = asyncio.Lock()
        self._wake, self._looked = asyncio.Event(), asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def available(self) -> bool:
        """Whether limits can be checked, as far as is known; who has not begun, or has ended, does not miss it."""
        return self._watching is None or (self._store.available and time.monotonic() >= self._ready_at)

    @property
    def waiting(self) -> int:
        """How many entries are not booked yet."""
        return 0 if self._closed else sum(stream.last - stream.booked for stream in list(self._streams.values()))

    async def reserve(self, claim: Claim) -> Reservation | Denied:
        """Hold the claim's bound on all of its caller's accounts, or on none, if a limit has no room for it.

        Raises:
            StoreUnavailable: Redis does not answer, or does not yet know all that was spent.
        """
        await self._began()
        if time.monotonic() < self._ready_at:
            raise _Rebuilding
        caller, day = claim.caller, self.calendar.day(claim.time)
        stream = self._stream(caller.tenant, day[:7])
        member = _member(claim.id, claim.attempt)
        told = _claim((day, caller.team, caller.user, claim.role), claim.bound)
        limits = orjson.dumps([self._limit(claim, number) for number in range(len(claim.limits))])
        try:
            found = await self._asked(
                self._reserve,
                stream,
                [day],
                lambda generation: (
                    stream.booked if stream.checked == generation else 0,
                    *(member, claim.lease, told, limits),
                ),
            )
        except _Rebuilding:
            raise
        except StoreUnavailable:
            self._release(stream, member, claim.lease)  # it may have come about all the same
            raise
        if found[0] == b"held":
            until, claims = asyncio.get_running_loop().time() + claim.lease, stream.held.get(member, (0.0, []))[1]
            stream.held[member] = (until, [*claims, told])
            left = [
                limit.amount - limit.of(_spend(taken)) - limit.of(claim.bound)
                for limit, taken in zip(claim.limits, found[1:], strict=True)
            ]
            return Reservation(claim.bound, tuple(map(Headroom, claim.limits, left)))
        if found[0] == b"released":
            msg = "the claim was given back before it came"
            raise StoreUnavailable(msg)
        limit = claim.limits[found[1] - 1]
        ends = self.calendar.end(limit.period, claim.time)
        return Denied(limit, max(limit.amount - limit.of(_spend(found[2])), 0), max(ends - time.time(), 0.0))

    def release(self, claim: Claim) -> Awaitable[None]:
        """Give back what was reserved for `claim`, if it was, and also if it will be yet."""
        stream = self._stream(claim.caller.tenant, self.calendar.day(claim.time)[:7])
        done = self._told(stream, 0)
        self._release(stream, _member(claim.id, claim.attempt), claim.lease)
        return done

    def settle(self, entry: Entry) -> Awaitable[None]:
        """Book one attempt, in the periods of its request's start, and release what was reserved for it.

        Await the result to know that it is in the journal, and in Redis, if that answers.
        """
        caller, day = entry.caller, self.calendar.day(entry.time)
        stream = self._stream(caller.tenant, day[:7])
        stream.last += 1
        member = _member(entry.id, entry.attempt) if entry.reservation is not None else None
        line = _Line(stream.last, (day, caller.team, caller.user, entry.role), entry.spend, member)
        stream.waiting.append(line)
        stream.shorten()
        done = self._told(stream, line.number)

        def journaled(_: object) -> None:
            stream.journaled = max(stream.journaled, line.number)
            self._send(stream)

        written = asyncio.ensure_future(self._journal.write(partial(_journal, line, entry, stream)))
        written.add_done_callback(journaled)
        return done

    def balance(self, tenant: str, account: Account) -> Balance:
        """Return what was spent on an account, and what is reserved. Blocks; for terminals and gauges.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        key = f"tracerouter:ledger:{{{_tag(tenant)}}}:{account.period[:7]}"
        with self._store.blocking() as reader:
            asked = reader.pipeline()  # MULTI: all of one moment
            asked.hget(f"{key}{account.period[7:]}", f"{account.role}:{account.scope}")
            asked.hgetall(f"{key}:held")
            asked.zrange(f"{key}:leases", 0, -1, withscores=True)
            asked.time()
            taken, claims, leases, (seconds, micros) = asked.execute()
        now, ends = seconds + micros / 1e6, dict(leases)
        held = live = _ZERO
        for member, told in claims.items():
            for claim in orjson.loads(told):
                if claim[0].startswith(account.period) and account.scope in claim[1] and account.role in claim[2]:
                    bound = _of_parts(claim[3])
                    held = held.plus(bound)
                    live = live.plus(bound) if ends.get(member, 0.0) > now else live
        return Balance(Spend(*(amount - part for amount, part in zip(_spend(taken), held, strict=True))), live)

    def leaders(self, period: str) -> list[tuple[str, int]]:
        """Return what each tenant has spent (nano-dollars) in a day or month, most first. Blocks; for gauges.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        with self._store.blocking() as reader:
            generation: Any = reader.hget(_GENERATION, "id") or b""
            names: Any = reader.smembers(_known(generation.decode(), period[:7]))
            tenants = [name.decode() for name in names]
            asked = reader.pipeline(transaction=False)
            for tenant in tenants:
                key = f"tracerouter:ledger:{{{_tag(tenant)}}}:{period[:7]}"
                asked.hget(f"{key}{period[7:]}", f"{ALL}:tenant")
                asked.hvals(f"{key}:held")
            found = asked.execute()
        rows = []
        for tenant, taken, claims in zip(tenants, found[::2], found[1::2], strict=True):
            held = sum(
                _of_parts(claim[3]).cost_nanos
                for told in claims
                for claim in orjson.loads(told)
                if claim[0].startswith(period)
            )
            if taken is not None:
                rows.append((tenant, _spend(taken).cost_nanos - held))
        return sorted(rows, key=lambda row: -row[1])

    async def close(self) -> None:
        """Send what waits, for some seconds; what Redis does not take by then the next process sends."""
        if self._watching is None:
            return
        self._closed = True
        await self._journal.write(_nothing)  # all before it are written, then
        await asyncio.sleep(0)
        sending = [stream.sending for stream in self._streams.values() if stream.sending]
        if sending:
            await asyncio.wait(sending, timeout=_DRAIN)
        for task in (self._watching, *sending):
            task.cancel()
        await asyncio.gather(self._watching, *sending, return_exceptions=True)
        self._watching = None
        if not any(stream.to_tell(self._generation) for stream in self._streams.values()):
            with suppress(StoreUnavailable):  # nobody need wait for what this process knows
                await self._store.run("HDEL", _GENERATION, f"busy:{self._id}")

    # --- streams -----------------------------------------------------------------------------------------------------

    def _stream(self, tenant: str, month: str) -> _Stream:
        found = self._streams.get((tenant, month))
        if found is None:
            identity = f"{self._id}.{next(self._numbers)}"
            found = self._streams[tenant, month] = _Stream(identity, tenant, month)
        return found

    def _limit(self, claim: Claim, number: int) -> tuple[str, str, str, int, int]:
        limit = claim.limits[number]
        account = self.calendar.account(limit, claim.caller, claim.time)
        most = limit.amount - limit.of(claim.bound)
        dollars, nanos = divmod(most, NANOS) if limit.unit == "cost_nanos" else (most, 0)
        return limit.period, f"{account.role}:{account.scope}", limit.unit, dollars, nanos

    def _release(self, stream: _Stream, member: str, lease: float) -> None:
        stream.held.pop(member, None)
        if len(stream.releases) < _WAITING:  # the others' leases end
            stream.releases[member] = max(lease, stream.releases.get(member, 0.0))
        self._send(stream)

    def _told(self, stream: _Stream, number: int) -> asyncio.Future[None]:
        """Return what ends when Redis has heard all that there is to say, or does not answer."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream.waiters.append((number, done))
        return done

    def _send(self, stream: _Stream) -> None:
        """Tell Redis what it has yet to hear, unless that is under way."""
        if stream.sending is None:
            stream.sending = asyncio.get_running_loop().create_task(self._sent(stream))

    async def _sent(self, stream: _Stream) -> None:
        try:
            await self._began()
            while stream.to_tell(self._generation):
                await self._step(stream)
                stream.wake(0, stream.booked)
        except StoreUnavailable:
            pass  # it is in the journal; the watch tries again
        finally:
            stream.sending = None
            stream.wake(-1, stream.journaled)

    async def _step(self, stream: _Stream) -> None:
        """Book some entries, and give back what is to be given back."""
        generation, start = self._generation, stream.booked
        from_memory = start >= stream.base
        if not from_memory:
            lines: list[_Line] = []
            to, entries = await self._read(stream)
        else:
            lines = stream.lines()
            to, entries = (lines[-1].number if lines else start), _summed(lines)
        given_back = dict(list(stream.releases.items())[:_BATCH])
        releases = {**{line.member: 0.0 for line in lines if line.member is not None}, **given_back}
        holds = stream.held if stream.checked != generation else {}
        now = asyncio.get_running_loop().time()
        told = [
            [[*_parts(who), _amounts(spend)] for who, spend in entries.items()],
            list(releases.items()),
            [
                (member, until - now, f"[{b','.join(claims).decode()}]")
                for member, (until, claims) in holds.items()
                if until > now and member not in releases
            ],
        ]
        days = sorted({day for day, *_ in entries})
        found = await self._asked(self._settle, stream, days, lambda _: (start, to, *map(orjson.dumps, told)))
        if found[0] == b"behind":
            at = int(found[1])
            if at < start and stream.checked == generation:  # it knew more
                await self._renew(generation)
            for line in stream.waiting:  # another process has booked them, and released nothing
                if line.member is not None and line.number <= at:
                    stream.releases.setdefault(line.member, 0.0)
            stream.told(at)
            return
        stream.told(to)
        if from_memory and len(lines) < _BATCH:  # else there may be more
            stream.checked = generation
        for member, lease in given_back.items():
            if stream.releases.get(member) == lease:
                del stream.releases[member]

    async def _read(self, stream: _Stream) -> tuple[int, dict[Who, Spend]]:
        """Return entries that are not in memory, summed, and the number of the last."""
        to = min(stream.booked + _BATCH, stream.base)
        values = (stream.id, stream.tenant, stream.month, stream.booked, to)
        rows = await asyncio.to_thread(self._journal.read, _ENTRIES, values)
        return to, {(day, team, user, role): Spend(*sums) for day, team, user, role, *sums in rows}

    # --- generations -------------------------------------------------------------------------------------------------

    async def _asked(self, script: Script, stream: _Stream, days: Iterable[str], told: Told) -> list[Any]:
        """Run a script on a tenant's month, and open that where it is new."""
        generation = self._generation
        if stream.known != generation:
            async with stream.opening:  # one does for all that come at once
                if stream.known != generation:
                    return await self._opened(script, stream, days, told)
        found: list[Any] = await script(stream.keys(*days), generation or "", "", stream.id, *told(generation))
        return await self._opened(script, stream, days, told) if found[0] == b"lost" else found

    async def _opened(self, script: Script, stream: _Stream, days: Iterable[str], told: Told) -> list[Any]:
        opening = ""
        for _ in range(2):
            generation = self._generation
            if generation is None:
                raise _Rebuilding
            known = [_known(generation, stream.month)]
            found: list[Any] = await script(stream.keys(*days), generation, opening, stream.id, *told(generation))
            if found[0] != b"lost":
                await self._know(known, stream.tenant)
                stream.known = generation
                return found
            await self._look()
            if self._generation != generation:
                raise _Rebuilding
            # a month that is known there and yet not found is looked for once more: somebody may be opening it
            opening = "" if await self._store.run("SISMEMBER", *known, stream.tenant) else "1"
        await self._renew(generation)
        raise _Rebuilding

    async def _renew(self, generation: str | None) -> None:
        """Begin a new generation in place of one that was found to be lost."""
        await self._look(replaced=generation or "")
        raise _Rebuilding

    async def start(self) -> None:
        """Begin to look after the generation; it need not be called."""
        if self._watching is None and not self._closed:
            self._watching = asyncio.get_running_loop().create_task(self._watched())

    async def _began(self) -> None:
        """Wait a moment for the generation, where this process has just begun."""
        await self.start()
        if not self._looked.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_JOIN):
                    await self._looked.wait()

    async def _look(self, replaced: str = "") -> None:
        """Ask for the generation, later than now, and begin a new one where it is gone."""
        asked = self._looks
        async with self._look_lock:
            if self._looks > asked and not replaced:
                return
            self._looks += 1
            self._looked_at = time.monotonic()
            run = (await self._store.run("INFO", "server"))["run_id"]
            fresh, rebuilt = secrets.token_hex(8), self._rebuilt or ""
            told = (run, fresh, self._id, rebuilt, replaced, self._window)
            found, busy, wait = await self._watch([_GENERATION], *told)
            generation = found.decode()
            if generation != self._generation:
                if self._generation is not None:
                    log.warning("the ledger's state in Redis is not what it was: it is rebuilt from the journals")
                self._generation = generation
                self._wake.set()
            self._ready_at = math.inf if busy else time.monotonic() + float(wait)

    async def _watched(self) -> None:
        """See to it that Redis knows all that this process does, for as long as that runs."""
        self._journal.write(partial(_forget, self._recent()))
        while True:
            self._wake.clear()
            with suppress(StoreUnavailable):
                try:
                    await self._look()
                finally:
                    self._looked.set()
                if self._rebuilt != self._generation:
                    await self._rebuild(self._generation)
                    await self._look()
                for key, stream in list(self._streams.items()):
                    if stream.to_tell(self._generation):
                        self._send(stream)
                    elif stream.month < self._recent() and not stream.waiting:
                        del self._streams[key]
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH if time.monotonic() >= self._ready_at else _POLL):
                    await self._wake.wait()

    async def _rebuild(self, generation: str | None) -> None:
        """Book whatever a generation does not know: of this process, and of those before that used its journal."""
        rows = await asyncio.to_thread(self._journal.read, _STREAMS, (self._recent(),))
        for other in (_Stream(*row) for row in rows if not row[0].startswith(self._id)):
            while other.checked != generation:
                await self._step(other)
                await self._keep_busy()
        for stream in list(self._streams.values()):
            while stream.unchecked(generation):
                self._send(stream)
                if stream.sending is not None:  # which goes on for as long as there are new entries
                    await asyncio.wait({stream.sending}, timeout=_POLL)
                await self._keep_busy()
                if self._generation != generation or (stream.sending is None and stream.unchecked(generation)):
                    raise _Rebuilding
        self._rebuilt = generation

    async def _keep_busy(self) -> None:
        """Let the others know that this process still rebuilds: they wait ten seconds for one that says nothing."""
        if time.monotonic() > self._looked_at + 2 * WATCH:
            await self._look()

    def _recent(self) -> str:
        """Return the oldest month that requests under way may be of."""
        return self.calendar.period("month", time.time() - 86_400)


def _journal(line: _Line, entry: Entry, stream: _Stream, connection: sqlite3.Connection) -> None:
    line.new = insert(entry, line.who[0], connection)
    if line.new:
        row = (stream.id, stream.tenant, stream.month, line.number, entry.id, entry.attempt)
        connection.execute(_STREAM, row)


def _forget(month: str, connection: sqlite3.Connection) -> None:
    connection.execute(_FORGET, (month,))


def _nothing(_: sqlite3.Connection) -> None:
    pass


def _summed(lines: Iterable[_Line]) -> dict[Who, Spend]:
    found: dict[Who, Spend] = {}
    for line in lines:
        if line.new:
            found[line.who] = found.get(line.who, _ZERO).plus(line.spend)
    return found


def _claim(who: Who, spend: Spend) -> bytes:
    return orjson.dumps([*_parts(who), _amounts(spend)])


@lru_cache(maxsize=1024)
def _parts(who: Who) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    day, team, user, role = who
    return day, scopes(team, user), roles(role)


def _amounts(spend: Spend) -> tuple[int, int, int, int]:
    """Return `spend` as the scripts take it: money in whole dollars and nano-dollars, each exact as a double."""
    return (*divmod(spend.cost_nanos, NANOS), spend.requests, spend.tokens)


def _of_parts(parts: Iterable[int]) -> Spend:
    dollars, nanos, requests, tokens = parts
    return Spend(dollars * NANOS + nanos, requests, tokens)


def _spend(account: bytes | None) -> Spend:
    """Read an account."""
    return _of_parts(map(int, account.split())) if account else _ZERO


def _member(identity: str, attempt: int) -> str:
    return f"{identity}:{attempt}"


def _known(generation: str | None, month: str) -> str:
    return _KNOWN.format(generation=generation, month=month)


@lru_cache(maxsize=1024)
def _tag(tenant: str) -> str:
    """Return a tenant's name as a hash tag: without braces, and never empty."""
    return quote(tenant, safe="") or "%"
