"""A small model in this process: llama.cpp by way of xllamacpp (extra ``local``).

xllamacpp's server can be asked by a function or over HTTP. The function takes a thread for each call and asks
whether to go on only after a token, so that a call can't be cancelled while its prompt is read, which takes this
model up to 17 seconds. Over HTTP a closed connection stops it within a batch, and what holds for every
OpenAI-compatible server holds for it too. So it is asked over a loopback port that the system picks (the server
opens one in any case), with a key that only this object knows.
"""

from __future__ import annotations

import asyncio
import ctypes
import secrets
import signal
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from tracerouter.errors import ConfigError, ProviderError, ProviderTimeout
from tracerouter.providers.openai import OpenAIProvider
from tracerouter.providers.weights import weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Completion, Meter

_BATCH = 64  # tokens that nothing interrupts, 0.5 s; 32 read a prompt a quarter slower, 512 no faster
_SILENT = -1


def check_installed() -> None:
    """Check that the extra ``local`` is there, without loading it.

    Raises:
        ConfigError: It is not; says how to install it.
    """
    if find_spec("xllamacpp") is None:
        msg = "the local model needs xllamacpp: pip install 'tracerouter[local]'"
        raise ConfigError(msg)


class LocalProvider:
    """Asks a model that runs in this process, one call after the other.

    The first call loads it, in a thread; xllamacpp holds the interpreter meanwhile, 0.2 s with the default weights.
    An object belongs to the event loop that first awaits it.

    Args:
        weights: A GGUF file with a chat template. None: SmolLM2-135M, fetched once by
            :func:`tracerouter.providers.weights.weights`.
        threads: For computing; more than there are idle cores slow it down.
        context: The most tokens that prompt and answer may have together.

    Raises:
        ConfigError: xllamacpp is not installed.
    """

    max_choices = 1

    def __init__(self, weights: Path | None = None, *, threads: int = 1, context: int = 2048) -> None:
        check_installed()
        self._weights = weights
        self._threads = threads
        self._context = context
        # computed side by side, calls are no faster, and one that is cancelled in line has cost nothing
        self._turn = asyncio.Lock()
        self._loading: asyncio.Task[_Loaded] | None = None

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        """Ask the model once, when its turn comes. Cancelling stops it, within half a second.

        It is always streamed, so that `meter` knows what was written when a call is cancelled. The sink gets what
        that of :class:`~tracerouter.providers.openai.OpenAIProvider` gets, and its errors pass through.

        Raises:
            ContextTooLong: The prompt alone has more than `context` tokens.
            ProviderTimeout: ``call.deadline`` passed; waiting and loading count.
            ProviderError: The model can't be loaded, or there is no answer; ``tracerouter.providers.http`` has
                the table.
        """
        try:
            async with asyncio.timeout_at(call.deadline) as limit, self._turn:
                provider = await self._loaded()
                return await provider.complete(call, meter, sink or _nowhere)
        except TimeoutError:
            if not limit.expired():  # the sink's own
                raise
            msg = "the local model gave no answer in time"
            raise ProviderTimeout(msg) from None

    async def close(self) -> None:
        """Free the model when the calls in line have ended; a later call loads it again."""
        async with self._turn:  # freed during a call, llama.cpp waits for itself without end
            if self._loading is None:
                return
            await asyncio.wait([self._loading])
            if self._loading.exception() is None:
                await self._loading.result().session.close()
            self._loading = None  # the last reference: llama.cpp ends with it

    async def _loaded(self) -> OpenAIProvider:
        if self._loading is None or (self._loading.done() and self._loading.exception()):
            self._loading = asyncio.create_task(self._load())
        try:
            # a cancelled call does not stop the thread that loads, so the next call takes what it makes
            return (await asyncio.shield(self._loading)).provider
        except ConfigError as error:
            raise ProviderError(str(error)) from error

    async def _load(self) -> _Loaded:
        key = secrets.token_urlsafe()
        server = await asyncio.to_thread(self._serve, key)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),  # the server closes them unannounced
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return _Loaded(server, session, OpenAIProvider(f"{server.listening_address}/v1", key, lambda: session))

    def _serve(self, key: str) -> Any:
        path = self._weights or weights()
        import xllamacpp  # noqa: PLC0415 - an extra, and 100 MB

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = [path.stem]
        params.n_ctx = self._context
        params.n_parallel = 1
        params.n_batch = params.n_ubatch = _BATCH
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [key]
        params.ui = False
        params.fit_params = False  # measures what a GPU can hold, and doubles the time to load
        params.verbosity = _SILENT
        try:
            with _signals_kept():
                return xllamacpp.Server(params)
        except RuntimeError:
            msg = f"the local model can't be loaded from {path}: it must be a whole GGUF file with a chat template"
            raise ConfigError(msg) from None


class _Loaded(NamedTuple):
    server: Any
    session: aiohttp.ClientSession
    provider: OpenAIProvider


async def _nowhere(_: Mapping[str, Any]) -> None:
    """Take a chunk and do nothing."""


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handlers that llama.cpp's server replaces, with which Ctrl+C would not end the process."""
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig  # `signal.signal` fails in a thread
    get.argtypes, put.argtypes = [ctypes.c_int], [ctypes.c_int, ctypes.c_void_p]
    get.restype = put.restype = ctypes.c_void_p
    kept = {number: get(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            put(number, handler)
