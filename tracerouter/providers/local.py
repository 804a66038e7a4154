"""A small model in this process: llama.cpp by way of xllamacpp (extra ``local``)."""

from __future__ import annotations

import asyncio
import ctypes
import secrets
import signal
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from tracerouter.errors import ConfigError, ProviderTimeout, Unreachable
from tracerouter.providers.openai import OpenAIProvider
from tracerouter.providers.weights import weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Completion, Meter

_BATCH = 64
_SILENT = -1
_WAITING = 64


def check_installed() -> None:
    """Check that the extra ``local`` is there, without loading it.

    Raises:
        ConfigError: It is not; says how to install it.
    """
    if find_spec("xllamacpp") is None:
        msg = "the local model needs xllamacpp: pip install 'tracerouter[local]'"
        raise ConfigError(msg)


class LocalProvider:
    """Asks a model that runs in this process; it is loaded by the first call, and never on the event loop.

    Args:
        weights: A GGUF file with a chat template. None: SmolLM2-135M, downloaded once into the user's cache.
        threads: For computing. More than the free cores makes it collapse, not only slow.
        context: Tokens of prompt and answer together, for each call.
        slots: Calls that are computed at the same time; more of them wait in line.

    Raises:
        ConfigError: xllamacpp is not installed.
    """

    def __init__(self, weights: Path | None = None, *, threads: int = 1, context: int = 2048, slots: int = 1) -> None:
        check_installed()
        self._weights = weights
        self._threads = threads
        self._context = context
        self._slots = slots
        self._loading: asyncio.Task[_Loaded] | None = None

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        """Ask the model once; it stops when the awaiting task is cancelled.

        The sink gets what that of :class:`~tracerouter.providers.OpenAIProvider` gets.

        Raises:
            ContextTooLong: The prompt has more tokens than `context`.
            ProviderTimeout: The deadline passed, be it while the model was being loaded.
            Unreachable: The model can't be loaded, so nothing was asked.
            ProviderError: There is no answer for another reason.
        """
        try:
            async with asyncio.timeout_at(call.deadline) as limit:
                loaded = await self._loaded()
                # streamed even if nobody listens, so that the meter knows what a cancelled call has cost
                return await loaded.asking.complete(call, meter, sink or _to_nobody)
        except TimeoutError:
            if not limit.expired():  # the sink's own
                raise
            msg = "the local model gave no answer in time"
            raise ProviderTimeout(msg) from None

    async def close(self) -> None:
        """Stop what is running, and free the model; a later call loads it again."""
        loading, self._loading = self._loading, None
        if loading is None:
            return
        await asyncio.wait([loading])
        if loading.exception() is None:
            await loading.result().session.close()
        # the last reference is gone: llama.cpp frees the model

    async def _loaded(self) -> _Loaded:
        if self._loading is None or (self._loading.done() and self._loading.exception()):
            self._loading = asyncio.create_task(self._load())
        try:
            return await asyncio.shield(self._loading)  # others may wait for it too
        except (ConfigError, RuntimeError) as error:
            msg = f"the local model can't be loaded: {error}"
            raise Unreachable(msg) from error

    async def _load(self) -> _Loaded:
        key = secrets.token_urlsafe()
        server = await asyncio.to_thread(self._serve, key)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=None)
        )
        asking = OpenAIProvider(f"{server.listening_address}/v1", key, lambda: session)
        return _Loaded(server, session, asking)

    def _serve(self, key: str) -> Any:
        import xllamacpp  # noqa: PLC0415 - an extra, and 100 MB

        params = xllamacpp.CommonParams()
        params.model.path = str(self._weights or weights())
        params.n_ctx = self._context * self._slots
        params.n_parallel = self._slots
        params.n_batch = params.n_ubatch = _BATCH
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.verbosity = _SILENT
        params.port = 0
        params.api_keys = [key]
        params.ui = False
        params.n_threads_http = self._slots + _WAITING
        with _signals_kept():
            return xllamacpp.Server(params)


class _Loaded(NamedTuple):
    server: Any
    session: aiohttp.ClientSession
    asking: OpenAIProvider


async def _to_nobody(_: Mapping[str, Any]) -> None:
    """Be a sink."""


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handlers that llama.cpp's server takes away, or Ctrl+C would no longer end the process."""
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig  # `signal` works in the main thread only
    get.restype = put.restype = ctypes.c_void_p
    put.argtypes = [ctypes.c_int, ctypes.c_void_p]
    kept = {number: get(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            put(number, handler)
