"""``GET /tracerouter/quota`` of a real gateway: who may see what, and that it agrees with what requests cost."""

from __future__ import annotations

import json
import random
import sqlite3
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway import CHAT, Gateway, embedding_model, nanos, openai_models, write
from tests.upstream import Upstream
from tracerouter.telemetry import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATH = "/tracerouter/quota"
PRICE = {"input": 3, "output": 7}
SIMULATED: dict[str, Any] = {alias: {"provider": "simulated", "price": PRICE} for alias in ("small", "large")}
POLICY = {
    "cache": {"ttl": "10m", "scope": "user"},
    "tiers": {"free": {}},
    "quotas": [
        {"per": "tenant", "limit": "0.5 USD/month"},
        {"per": "team", "limit": "0.4 USD/day"},
        {"per": "user", "limit": "0.3 USD/day"},
        {"per": "user", "limit": "40 requests/day", "tier": "free"},
    ],
}
CALLERS: dict[str, dict[str, Any]] = {
    "key-of-acme-ann": {"tenant": "acme", "team": "web", "user": "ann", "tier": "free"},
    "key-of-acme-bob": {"tenant": "acme", "team": "web", "user": "bob"},
    "key-of-globex-eve": {"tenant": "globex", "team": "sales", "user": "eve"},
    "key-of-initech": {"tenant": "initech"},
}
ADMIN = "key-of-the-admin"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with limits of each kind, and a key for each caller."""
    keys = [{"key": key, **caller} for key, caller in CALLERS.items()]
    keys.append({"key": ADMIN, "tenant": "operations", "admin": True})
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    async with Gateway(write(tmp_path, SIMULATED, POLICY, keys={"file": "keys.json"})) as running:
        yield running


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """A client session with the gateway's address."""
    async with aiohttp.ClientSession(gateway.url) as session:
        yield session


async def get(http: aiohttp.ClientSession, key: str, **asked: str) -> tuple[int, Any]:
    """Ask for a quota."""
    async with http.get(PATH, params=asked, headers={"authorization": f"Bearer {key}"}) as response:
        told = await response.json()
        request_id = response.headers["x-request-id"]
        assert response.status == 200 or request_id in told["error"]["message"]
        return response.status, told


async def ask(http: aiohttp.ClientSession, key: str, text: str) -> tuple[dict[str, str], str]:
    """Have a question answered; return headers and body."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    async with http.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"}) as response:
        return dict(response.headers), await response.text()


def spent(told: dict[str, Any], per: str) -> int:
    """Return what was spent on the limit in USD of a tenant, team or user (nano-dollars)."""
    (limit,) = (one for one in told["limits"] if (one["per"], one["unit"]) == (per, "USD"))
    return nanos(limit["spent"])


def names_of(caller: dict[str, Any]) -> set[str]:
    return {value for name, value in caller.items() if name != "tier"}


async def test_no_tenant_sees_anothers_names_or_amounts(http: aiohttp.ClientSession) -> None:
    """Whoever asks what in whichever order: a caller is told of its own accounts, exactly, and of nobody else's."""
    drawn, costs = random.Random(7), dict.fromkeys(CALLERS, 0)
    for number in range(60):
        key = drawn.choice([*CALLERS])
        mine = CALLERS[key]
        headers, answer = await ask(http, key, f"{'word ' * drawn.randint(1, 400)}{number}")
        costs[key] += nanos(headers["x-tracerouter-cost"])
        asker = drawn.choice([*CALLERS])
        own = CALLERS[asker]
        status, told = await get(http, asker)
        assert status == 200
        assert {name: told[name] for name in ("tenant", "team", "user", "tier")} == {
            "tenant": None, "team": None, "user": None, "tier": None, **own,
        }  # fmt: skip

        def sum_of(*shared: str, own: dict[str, Any] = own) -> int:
            same = [k for k, c in CALLERS.items() if all(c.get(name) == own.get(name) for name in shared)]
            return sum(costs[k] for k in same)

        assert spent(told, "tenant") == sum_of("tenant")
        assert spent(told, "team") == sum_of("tenant", "team")
        assert spent(told, "user") == sum_of("tenant", "user")
        for who, text in ((mine, answer + json.dumps(headers)), (own, json.dumps(told))):
            foreign = set[str]().union(*(names_of(c) for c in CALLERS.values())) - names_of(who)
            foreign -= {"web"} if who["tenant"] == "acme" else set()
            assert not {name for name in foreign if f'"{name}"' in text}
        others = {costs[k] for k, c in CALLERS.items() if c["tenant"] != own["tenant"] and costs[k]}
        assert not {nanos(one[name]) for one in told["limits"] for name in ("spent", "reserved")} & others


@pytest.mark.parametrize(
    "asked", [{"tenant": "globex"}, {"tenant": "nobody"}, {"user": "bob"}, {"team": ""}, {"tier": "paid"}]
)
async def test_what_is_anothers_is_not_there(http: aiohttp.ClientSession, asked: dict[str, str]) -> None:
    """Whether it is another's or nobody's at all makes no difference in the answer."""
    await ask(http, "key-of-globex-eve", "hello")
    status, told = await get(http, "key-of-acme-ann", **asked)
    assert (status, told["error"]["code"]) == (404, "not_found")
    assert told["error"]["message"].startswith("there is no such quota (request id ")


async def test_a_caller_may_name_itself(http: aiohttp.ClientSession) -> None:
    """Asking for oneself by name is the same as asking."""
    status, told = await get(http, "key-of-acme-ann")
    assert status == 200
    assert (200, told) == await get(http, "key-of-acme-ann", tenant="acme", user="ann")


async def test_an_admin_sees_every_tenant(http: aiohttp.ClientSession) -> None:
    """By name, in pages; or one, and the team and user in it that are named."""
    for key in ("key-of-acme-ann", "key-of-acme-bob", "key-of-globex-eve"):
        await ask(http, key, f"hello from {key}")
    status, told = await get(http, ADMIN)
    assert (status, told["object"], told["has_more"]) == (200, "list", False)
    assert [one["tenant"] for one in told["data"]] == ["acme", "globex", "initech", "operations"]
    acme = told["data"][0]
    assert {limit["per"] for limit in acme["limits"]} == {"tenant"}
    assert nanos(acme["spent"]["day"]) == nanos(acme["spent"]["month"]) == spent(acme, "tenant") > 0
    assert (200, acme) == await get(http, ADMIN, tenant="acme")
    _, first = await get(http, ADMIN, limit="3")
    _, rest = await get(http, ADMIN, limit="3", after=first["data"][-1]["tenant"])
    assert [*first["data"], *rest["data"]] == told["data"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    _, ann = await get(http, ADMIN, tenant="acme", team="web", user="ann", tier="free")
    _, own = await get(http, "key-of-acme-ann")
    assert ann["limits"] == own["limits"]
    assert 0 < spent(ann, "user") < spent(ann, "team") == spent(ann, "tenant")


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"tennant": "acme"}, "tennant", "there is no parameter `tennant` here (did you mean 'tenant'?)"),
        ({"user": "ann"}, "tenant", "`user` needs `tenant` beside it"),
        ({"limit": "0"}, "limit", "`limit` must be a whole number from 1 to 1000"),
        ({"limit": "1001"}, "limit", "`limit` must be a whole number from 1 to 1000"),
        ({"limit": "²"}, "limit", "`limit` must be a whole number from 1 to 1000"),
        ({"tenant": "acme", "limit": "5"}, "limit", "there is no parameter `limit` here"),
    ],
)
async def test_what_is_asked_wrongly_is_named(
    http: aiohttp.ClientSession, asked: dict[str, str], param: str, said: str
) -> None:
    """A misspelt tenant would else be answered with all of them."""
    status, told = await get(http, ADMIN, **asked)
    assert (status, told["error"]["param"]) == (400, param)
    assert told["error"]["message"].startswith(said)


async def test_a_key_is_needed(http: aiohttp.ClientSession) -> None:
    """As for every other answer."""
    status, told = await get(http, "no-key-of-ours")
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")


async def test_without_keys_the_machines_owner_sees_all(tmp_path: Path) -> None:
    """The gateway listens on loopback only then."""
    async with Gateway(write(tmp_path, SIMULATED, POLICY)) as running, aiohttp.ClientSession(running.url) as http:
        await ask(http, "", "hello")
        status, told = await get(http, "")
    assert (status, [one["tenant"] for one in told["data"]]) == (200, ["default"])


async def test_a_ledger_that_cannot_be_read(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """It is said so, in OpenAI's shape, with nothing of the store's; other answers go on."""
    connection = sqlite3.connect(tmp_path / "tracerouter.db")
    connection.execute("ALTER TABLE accounts RENAME TO gone")
    connection.close()
    async with http.get(PATH, headers={"authorization": f"Bearer {ADMIN}"}) as response:
        told = await response.json()
        assert (response.status, response.headers["retry-after"]) == (503, "5")
    assert (told["error"]["type"], told["error"]["code"]) == ("server_error", "store_unavailable")
    assert told["error"]["message"].startswith("the store does not answer now (request id ")
    async with http.get("/v1/models", headers={"authorization": f"Bearer {ADMIN}"}) as response:
        assert response.status == 200


async def test_the_header_tells_what_the_request_leaves(http: aiohttp.ClientSession) -> None:
    """Of the limit with the smallest share left, as the ledger then has it; a cached answer takes and tells nothing."""
    key = "key-of-acme-ann"
    for number in range(3):
        headers, answer = await ask(http, key, f"{'word ' * 100 * number}and?")
        _, told = await get(http, key)
        shares = {one["name"]: float(one["remaining"]) / float(one["limit"]) for one in told["limits"]}
        (least,) = (one for one in told["limits"] if one["name"] == min(shares, key=lambda name: shares[name]))
        left = headers["x-tracerouter-budget-remaining"]
        assert left == f"{least['remaining']} {least['unit']}/{least['period']}"
        assert json.loads(answer)["tracerouter"]["budget_remaining"] == left
    headers, answer = await ask(http, key, "and?")
    assert headers["x-tracerouter-cache"] == "hit"
    assert "x-tracerouter-budget-remaining" not in headers
    assert "budget_remaining" not in json.loads(answer)["tracerouter"]
    assert (200, told) == await get(http, key)


async def test_embeddings_at_a_limit_are_refused(tmp_path: Path) -> None:
    """No other model can stand in, and there is no conversation to shorten: each action is passed over."""
    then = ["downgrade", "shorten", "stale", "refuse"]
    policy = {"embeddings": ["embed"], "quotas": [{"per": "tenant", "limit": "3 tokens/day", "then": then}]}
    async with Upstream() as upstream:
        path = write(tmp_path, openai_models(upstream.url) | embedding_model(upstream.url), policy)
        body = {"model": "embed", "input": "more words than there is room for"}
        async with (
            Gateway(path) as running,
            aiohttp.ClientSession(running.url) as http,
            http.post("/v1/embeddings", json=body) as response,
        ):
            told = await response.json()
        (quota,) = (span for span in running.seen.spans if span.name == "quota")
    assert (response.status, told["error"]["code"]) == (429, "budget_exhausted")
    assert response.headers["x-tracerouter-budget-remaining"] == "3 tokens/day"
    assert [(event.attributes or {})[names.QUOTA_ACTION] for event in quota.events] == then
    assert not upstream.requests


async def test_at_a_limit_the_header_tells_of_that_limit(http: aiohttp.ClientSession) -> None:
    """What it had left was too little."""
    for number in range(41):
        headers, answer = await ask(http, "key-of-acme-ann", f"question {number}")
    told = json.loads(answer)
    assert told["error"]["code"] == "budget_exhausted"
    assert "'free user 40 requests/day' has no room" in told["error"]["message"]
    assert headers["x-tracerouter-budget-remaining"] == "0 requests/day"
    _, quota = await get(http, "key-of-acme-ann")
    assert [one["remaining"] for one in quota["limits"] if one["unit"] == "requests"] == [0]
