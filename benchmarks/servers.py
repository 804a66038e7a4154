"""The servers of a benchmark, each in a process of its own, so that only the one under test is measured.

``python -m benchmarks.servers NAME …`` serves on a free port of 127.0.0.1 and prints it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "small-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The parcel arrives on Friday. " * 4},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 28, "total_tokens": 52},
    }
)


class Server:
    """A server process under our control."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.url = f"http://127.0.0.1:{int(process.stdout.readline())}"

    @property
    def cpu(self) -> float:
        """CPU seconds that its threads have used, user and system, to the nanosecond (Linux: ``schedstat``)."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9

    @property
    def memory(self) -> float:
        """Resident memory in MB (Linux: ``VmRSS``)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


@contextmanager
def serving(name: str, **options: Any) -> Iterator[Server]:
    """Start a server of this module, and end it afterwards."""
    command = [sys.executable, "-m", "benchmarks.servers", name, json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(process)
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def upstream() -> web.Application:
    """Answer every chat completion alike, at once, with usage."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=ANSWER, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    return app


def sink(*, hang: bool = False) -> web.Application:
    """Take OTLP over HTTP, and forget it; with `hang` never answer."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        if hang:
            await asyncio.Event().wait()
        return web.Response(content_type="application/x-protobuf")

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/{path:.*}", take)
    return app


def proxy(upstream: str, spans: list[dict[str, Any]] | None = None, otlp: str | None = None) -> web.Application:
    """Pass requests on: the floor. With `spans`, make that many live ones a request, with those attributes."""
    tracer, _ = live_tracer(otlp) if otlp else (None, None)
    session: list[aiohttp.ClientSession] = []

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        if tracer is not None:
            make_live_spans(tracer, spans or [])
        async with session[0].post(f"{upstream}/v1/chat/completions", data=body) as response:
            return web.Response(body=await response.read(), content_type="application/json")

    async def start(_: web.Application) -> None:
        session.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

    async def stop(_: web.Application) -> None:
        await session[0].close()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", forward)
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app


def gateway(upstream: str, otlp: str) -> web.Application:
    """Make the gateway under test, as ``tracerouter serve`` does."""
    from tracerouter import config
    from tracerouter.web import application

    folder = Path(tempfile.mkdtemp(prefix="tracerouter-benchmark-"))
    write_deployment(folder, upstream, otlp)
    built = config.load(folder / "tracerouter.yaml")
    settings = built.settings
    return application(built.router, keys=None, max_body=settings.max_body, keep_alive=settings.keep_alive)


def write_deployment(folder: Path, upstream: str, otlp: str | None) -> None:
    """Write the two files that every measurement of ours runs on."""
    told = f"telemetry: {{otlp: {otlp}}}\n" if otlp else ""
    (folder / "tracerouter.yaml").write_text(
        "models:\n"
        f"  small: {{provider: openai, base_url: {upstream}/v1, model: small-1, price: {{input: 0.1, output: 0.4}}}}\n"
        f"  large: {{provider: openai, base_url: {upstream}/v1, model: large-1, price: {{input: 1, output: 4}}}}\n"
        f"policy: policy.yaml\n{told}",
        encoding="utf-8",
    )
    (folder / "policy.yaml").write_text("ladder: [small, large]\nmin_confidence: 0\n", encoding="utf-8")


def live_tracer(otlp: str) -> tuple[Any, Any]:
    """Make a tracer, and its provider, as the documentation says: batched, over OTLP/HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{otlp}/v1/traces")))
    return provider.get_tracer("naive"), provider


def make_live_spans(tracer: Any, spans: list[dict[str, Any]]) -> None:
    """Make the spans of one request as code usually does: nested, an attribute at a time."""
    outermost, *inner = spans
    with tracer.start_as_current_span(outermost["name"]) as root:
        for span in inner:
            with tracer.start_as_current_span(span["name"]) as live:
                for name, value in span["attributes"].items():
                    live.set_attribute(name, value)
        for name, value in outermost["attributes"].items():
            root.set_attribute(name, value)


async def _serve(app: web.Application) -> None:
    runner = web.AppRunner(app, access_log=None, handle_signals=True, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)  # noqa: T201 - this is how the starter learns the port
    try:
        await asyncio.Event().wait()
    except (asyncio.CancelledError, web.GracefulExit):
        await runner.cleanup()


if __name__ == "__main__":
    makers: dict[str, Callable[..., web.Application]] = {
        "upstream": upstream,
        "sink": sink,
        "proxy": proxy,
        "gateway": gateway,
    }
    asyncio.run(_serve(makers[sys.argv[1]](**json.loads(sys.argv[2]))))
