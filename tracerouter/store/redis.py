"""One Redis for all replicas: a bounded pool of connections, scripts, and a word on whether it answers.

A Redis that fails or is slow must cost a request its shared state, and not its answer: a call ends within
:data:`TIMEOUT`, and after one that was not answered the next calls fail at once, until one may try again.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final

from tracerouter.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis as BlockingRedis
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

TIMEOUT: Final = 0.5
"""Seconds that a call may take, with waiting for a connection and making it."""
_TURNS: Final = 20
"""Turns of the loop after the time-out, in each of which an answer that has come gets one step further."""
QUEUE: Final = 5.0
"""Seconds that a call waits for a free connection, at most."""
PAUSE: Final = 0.5
"""Seconds after a call that was not answered, until one tries again."""

SCHEMES: Final = ("redis://", "rediss://")


class RedisStore:
    """The one pool of connections that a process has to a Redis.

    Keys of ours begin with ``tracerouter:``. Those that one script touches hold the same hash tag, such as
    ``{tenant}``, so that it is right on a cluster.

    Args:
        url: ``redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]``, or ``rediss://`` for TLS. Nothing is connected yet.
        max_connections: Connections, at most; who finds none free waits, for as long as Redis answers the others.
        timeout: Seconds that a call may take.

    Raises:
        ConfigError: The URL is none, or the extra ``redis`` is not installed.
    """

    def __init__(self, url: str, *, max_connections: int = 32, timeout: float = TIMEOUT) -> None:
        try:
            from redis import Redis as BlockingRedis  # noqa: PLC0415 - extra `redis`
            from redis import asyncio as client  # noqa: PLC0415
            from redis.backoff import NoBackoff  # noqa: PLC0415
            from redis.exceptions import NoScriptError, RedisError, ResponseError  # noqa: PLC0415
            from redis.retry import Retry  # noqa: PLC0415
        except ImportError:
            msg = "store: a redis:// store needs the extra `redis`: pip install 'tracerouter[redis]'"
            raise ConfigError(msg) from None
        self.name = _without_password(url)
        try:
            pool = client.BlockingConnectionPool.from_url(
                url,
                max_connections=max_connections,
                timeout=timeout,
                protocol=2,
                retry=Retry(NoBackoff(), 0),  # a script that was sent may have run
                socket_timeout=None,  # `run` minds the time: redis-py's `wait_for` can swallow a cancellation
                socket_connect_timeout=timeout,
            )
        except ValueError:  # its message may quote the password
            msg = f"store: {self.name} is no URL of a Redis; it should be redis://HOST:PORT/DB"
            raise ConfigError(msg) from None
        self.client: Redis = client.Redis(connection_pool=pool)
        """For libraries that want one; it has no time-out, raises redis-py's own errors, and tells nothing here."""
        self._blocking = BlockingRedis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, protocol=2)
        self.round_trips = 0
        """Requests that were sent and answered, with or without an error."""
        self.available = True
        """Whether the last call was answered."""
        self._timeout = timeout
        self._free = asyncio.Semaphore(max_connections)
        self._try_at = 0.0
        self._no_script, self._told_error, self._errors = NoScriptError, ResponseError, (RedisError, OSError)

    def script(self, lua: str) -> Script:
        """Return `lua` as what can be called; Redis takes its text once."""
        return Script(self, lua)

    async def run(self, *command: Any) -> Any:
        """Send one command, as ``run("GET", key)``, and return its answer as redis-py reads it; texts come as bytes.

        Raises:
            StoreUnavailable: There was no answer in time, or Redis answered with an error.
        """
        clock = asyncio.get_running_loop().time
        if clock() < self._try_at:
            msg = f"{self.name} did not answer lately"
            raise StoreUnavailable(msg)
        try:
            async with asyncio.timeout(QUEUE):
                await self._free.acquire()
        except TimeoutError:  # that many wait is no failure of Redis
            msg = f"{self.name} is slower than it is asked"
            raise StoreUnavailable(msg) from None
        try:
            if clock() < self._try_at:  # others found out meanwhile
                msg = f"{self.name} did not answer lately"
                raise StoreUnavailable(msg)
            if not self.available:
                self._try_at = clock() + PAUSE  # one tries, the others do not wait for it
            async with _Patience(self._timeout):
                answer = await self.client.execute_command(*command)  # type: ignore[no-untyped-call]
        except self._no_script:
            self._answered()
            raise
        except self._told_error as error:
            self.round_trips += 1
            code = str(error).partition(" ")[0]  # such as OOM or READONLY; what follows may hold data
            raise self._failed(code if code.isupper() else type(error).__name__, pause=0.0) from None
        except (*self._errors, TimeoutError) as error:
            raise self._failed(type(error).__name__, pause=PAUSE) from None
        finally:
            self._free.release()
        self._answered()
        return answer

    @contextmanager
    def blocking(self) -> Iterator[BlockingRedis]:
        """Lend a client that blocks, with connections of its own: for terminals and gauges.

        Raises:
            StoreUnavailable: What is asked of it fails.
        """
        try:
            yield self._blocking
        except self._errors as error:
            msg = f"{self.name} failed: {type(error).__name__}"
            raise StoreUnavailable(msg) from None

    async def close(self) -> None:
        """Close all connections."""
        self._blocking.close()
        await self.client.aclose()
        await self.client.connection_pool.disconnect()

    def _answered(self) -> None:
        self.round_trips += 1
        self._try_at = 0.0
        if not self.available:
            self.available = True
            log.warning("the store %s works again", self.name)

    def _failed(self, why: str, pause: float) -> StoreUnavailable:
        self._try_at = asyncio.get_running_loop().time() + pause
        if self.available:
            self.available = False
            log.warning("the store %s fails: %s", self.name, why)
        return StoreUnavailable(f"{self.name} failed: {why}")


class _Patience:
    """A time-out that is Redis's fault: where the loop itself was held up, what has come meanwhile is read first."""

    __slots__ = ("_handle", "_loop", "_scope", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._scope.__aenter__()
        self._handle: asyncio.Handle = self._loop.call_later(self._timeout, self._expire, _TURNS)

    async def __aexit__(self, *error: Any) -> None:  # noqa: PYI036 - as its own
        self._handle.cancel()
        await self._scope.__aexit__(*error)

    def _expire(self, turns: int) -> None:
        if turns:
            self._handle = self._loop.call_soon(self._expire, turns - 1)
        else:
            self._scope.reschedule(self._loop.time())


class Script:
    """A Lua script that Redis runs as one step: nothing else happens in between. Made by :meth:`RedisStore.script`."""

    __slots__ = ("_lua", "_sha", "_store")

    def __init__(self, store: RedisStore, lua: str) -> None:
        self._store = store
        self._lua = lua
        self._sha = sha1(lua.encode()).hexdigest()  # noqa: S324 - Redis's own name for it

    async def __call__(self, keys: Sequence[str], *args: str | bytes | float) -> Any:
        """Run it and return its answer; texts come as bytes. One round trip; two where Redis has lost the script.

        Raises:
            StoreUnavailable: As of :meth:`RedisStore.run`.
        """
        try:
            return await self._store.run("EVALSHA", self._sha, len(keys), *keys, *args)
        except self._store._no_script:  # noqa: SLF001 - one concept in two classes
            return await self._store.run("EVAL", self._lua, len(keys), *keys, *args)


def _without_password(url: str) -> str:
    """Return `url` without what may be secret."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
