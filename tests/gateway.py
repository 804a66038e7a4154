"""The gateway as a test runs it: real HTTP on a real socket, its spans and its database within reach."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Self

import orjson
import yaml
from aiohttp import web
from opentelemetry.sdk.trace import SpanProcessor

from tracerouter import config
from tracerouter.telemetry import names
from tracerouter.web import application

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

CHAT = "/v1/chat/completions"
NANOS = 1_000_000_000


class Seen(SpanProcessor):
    """A span processor that remembers."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Remember it."""
        self.spans.append(span)


def write(folder: Path, models: Mapping[str, Any], policy: Mapping[str, Any], **settings: Any) -> Path:
    """Write the two files, and return the deployment's path."""
    told = {"models": models, "policy": "policy.yaml", "classifier": ["rules"], **settings}
    ladder = [alias for alias in models if alias not in policy.get("embeddings", ())]
    (folder / "policy.yaml").write_text(yaml.safe_dump({"ladder": ladder, "min_confidence": 0, **policy}))
    path = folder / "tracerouter.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    return path


def openai_models(url: str, **more: Any) -> dict[str, Any]:
    """Return `small` and `large`, both at one upstream."""
    common = {"provider": "openai", "base_url": url, "retries": 0, **more}
    return {
        "small": {**common, "model": "small-1", "price": {"input": "0.15", "output": "0.6"}},
        "large": {**common, "model": "large-1", "price": {"input": "2.5", "output": "10"}},
    }


def embedding_model(url: str) -> dict[str, Any]:
    """Return `embed`; put it behind the others, and its alias among the policy's `embeddings`."""
    price = {"input": "0.02", "output": "0"}
    return {"embed": {"provider": "openai", "base_url": url, "retries": 0, "model": "embed-1", "price": price}}


class Gateway:
    """The gateway on a free port; use it in ``async with``."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self.built = config.load(path)
        self.router = self.built.router
        self.seen = Seen()
        self.router.telemetry.span_processors = [self.seen]
        self.router.telemetry.delay = 0  # what a test looks at is told at once
        settings = self.built.settings
        app = application(self.router, keys=self.built.keys, max_body=settings.max_body, keep_alive=settings.keep_alive)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=5)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Read the database, as it was left."""
        connection = sqlite3.connect(self._folder / "tracerouter.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the decision log's rows by request id."""
        return {row[0]: orjson.loads(row[1]) for row in self.query("SELECT request_id, record FROM decisions")}

    def spans_by_request(self) -> dict[str, list[ReadableSpan]]:
        """Return the spans of each request, found by the id on its route span."""
        of_trace: dict[int, list[ReadableSpan]] = {}
        for span in self.seen.spans:
            assert span.context
            of_trace.setdefault(span.context.trace_id, []).append(span)
        found = {}
        for spans in of_trace.values():
            route = next((span for span in spans if span.name.startswith("route ")), None)
            if route is not None:
                found[str((route.attributes or {})[names.REQUEST_ID])] = spans
        return found


def nanos(amount: Any) -> int:
    """Read an amount in USD, whatever its type, as nano-dollars."""
    return round(float(amount) * NANOS)


def cost_of(spans: list[ReadableSpan], first_word: str) -> int:
    """Sum the cost of the spans whose name begins with a word (nano-dollars)."""
    found = [span for span in spans if span.name.split(" ")[0] == first_word]
    return sum(nanos((span.attributes or {})[names.COST]) for span in found)
