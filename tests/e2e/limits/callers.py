"""Who asks a gateway in tests, and how: keys of two tenants, and what they send."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest

from tests.gateway import CHAT
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from multidict import CIMultiDictProxy

    from tests.gateway import Gateway

ANN, BOB, BETA = "key-of-ann", "key-of-bob", "key-of-beta"
KEYS = [
    {"key": ANN, "tenant": "acme", "user": "ann", "tier": "free"},
    {"key": BOB, "tenant": "acme", "user": "bob"},
    {"key": BETA, "tenant": "beta", "user": "ann", "tier": "free"},
]


class Said(NamedTuple):
    status: int
    headers: CIMultiDictProxy[str]
    body: Any


class Callers:
    """Send requests to a gateway."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(
        self, gateway: Gateway | str, body: Any, *, key: str = ANN, path: str = CHAT, **headers: str
    ) -> Said:
        """Post a body; `headers` have underscores for hyphens."""
        return await self.ask("POST", gateway, path, key=key, json=body, **headers)

    async def ask(
        self, method: str, gateway: Gateway | str, path: str, *, key: str = ANN, json: Any = None, **headers: str
    ) -> Said:
        """Send any request."""
        told = {name.replace("_", "-"): value for name, value in headers.items()} | {"authorization": f"Bearer {key}"}
        url = gateway if isinstance(gateway, str) else gateway.url
        async with self._session.request(method, url + path, json=json, headers=told) as response:
            return Said(response.status, response.headers, await response.json())


def asking(text: str, **extra: Any) -> dict[str, Any]:
    """Make a chat request's body."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **extra}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """Run a misbehaving upstream."""
    async with Upstream() as running:
        yield running


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    """Let callers ask."""
    async with aiohttp.ClientSession() as session:
        yield Callers(session)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Give the gateway its callers' keys."""
    monkeypatch.setenv("TR_KEYS", json.dumps(KEYS))
    return {"env": "TR_KEYS"}
