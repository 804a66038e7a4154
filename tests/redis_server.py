"""A real Redis for tests, on a free port of 127.0.0.1: in a container where a Docker engine runs, else from the binary.

A module that uses it begins with ``from tests.redis_server import redis, redis_server  # noqa: F401``, or its folder's
``conftest.py`` does. One server serves all tests of a process, and each test finds it empty and running.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Self

import pytest
import redis as client

from tests.observability import Program, binary, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

REDIS = Program(
    name="redis-server",
    path_variable="TRACEROUTER_REDIS",
    image_variable="REDIS_IMAGE",
    image="redis:7.4-alpine",
    install="install Redis (Debian: apt-get install redis-server)",
)


class RedisServer:
    """The server, for a test to look into, stop, flush or slow down.

    Args:
        cluster: Whether it is a cluster, of which it has all slots.
    """

    def __init__(self, *, cluster: bool = False) -> None:
        self._cluster = cluster
        self._port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._running: _Process | _Container | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it, empty, if it does not run, and wait until it answers."""
        if self._running is None:
            said = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            said += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())] if self._cluster else []
            self._running = _Container(said) if REDIS.in_container else _Process(said, self._folder.name)
        until = time.monotonic() + 20
        while True:
            with suppress(client.RedisError):
                self.ask("PING")
                break
            assert time.monotonic() < until, f"{self.url} does not answer"
            time.sleep(0.02)  # a server that starts gives no event to wait for
        if self._cluster and "cluster_slots_assigned:0" in str(self.ask("CLUSTER", "INFO")):
            self.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            while "cluster_state:ok" not in str(self.ask("CLUSTER", "INFO")):
                time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, with all that it holds."""
        running, self._running = self._running, None
        if running is not None:
            running.end()

    def pause(self) -> None:
        """Let it hang: it takes connections, and answers nobody until :meth:`resume`."""
        assert self._running
        self._running.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._running is not None:
            self._running.signal(signal.SIGCONT)

    def ask(self, *command: str) -> Any:
        """Send one command, and return the answer: a look past the code that is tested."""
        with closing(client.Redis.from_url(self.url, socket_timeout=5, protocol=2)) as connection:
            return connection.execute_command(*command)  # type: ignore[no-untyped-call]

    def dump(self, key: str) -> Any:
        """Return what a key holds, for :meth:`restore`."""
        with closing(client.Redis.from_url(self.url, protocol=2)) as connection:
            found: Any = connection.dump(key)
            return found

    def restore(self, key: str, dumped: Any) -> None:
        """Let a key hold what it held then."""
        with closing(client.Redis.from_url(self.url, protocol=2)) as connection:
            connection.restore(key, 0, dumped, replace=True)


class _Process:
    def __init__(self, said: list[str], folder: str) -> None:
        command = [str(binary(REDIS, ", or start a Docker engine")), *said, "--dir", folder]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - a test's own

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class _Container:
    def __init__(self, said: list[str]) -> None:
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - where there is an engine

        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # it ends with its fixture
        container = DockerContainer(os.environ.get(REDIS.image_variable, REDIS.image))
        container = container.with_command(["redis-server", *said]).with_kwargs(network_mode="host")
        self._container = container.start()

    def signal(self, number: signal.Signals) -> None:
        self._container.get_wrapped_container().kill(number.name)

    def end(self) -> None:
        self._container.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Start the server of this process's tests."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster_server() -> Iterator[RedisServer]:
    """Start a server that is a cluster."""
    with RedisServer(cluster=True) as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[RedisServer]:
    """Give a test the server, empty and running, whatever the test before did to it."""
    yield from _emptied(redis_server)


@pytest.fixture
def redis_cluster(redis_cluster_server: RedisServer) -> Iterator[RedisServer]:
    """Give a test the cluster, empty and running."""
    yield from _emptied(redis_cluster_server)


def _emptied(server: RedisServer) -> Iterator[RedisServer]:
    server.start()
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    yield server
    server.resume()
