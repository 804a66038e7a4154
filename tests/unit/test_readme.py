"""The README's code does what the README says."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

import tracerouter
from tests.gateway import openai_models, write
from tests.upstream import Upstream
from tracerouter import Caller, Classification, Completion, Task
from tracerouter.cache import output_key
from tracerouter.config import WebhooksOf
from tracerouter.policy import Policy, PolicyFile, decide
from tracerouter.policy.model import Action, Denial, ReviewPolicy, WithoutLedger
from tracerouter.quota import QuotaState, SqliteLedger
from tracerouter.review import Webhooks
from tracerouter.store import SqliteStore
from tracerouter.validators import BUILT_IN, Checks, Custom

README = Path(__file__).parents[2] / "README.md"


def python_of(part: str) -> str:
    """Return the README's Python block that holds `part`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if part in block)
    return str(found)


def policy_of(part: str) -> Policy:
    """Return a policy of the README's YAML block that holds `part`."""
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if part in block)
    return Policy.of(PolicyFile.model_validate({"ladder": ["small"], **yaml.safe_load(found)}))


@pytest.fixture
def my_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the README's own validators where its policy looks for them."""
    module = ModuleType("my.module")
    for part in ("def total_adds_up", "class Order"):
        exec(python_of(part), vars(module))  # noqa: S102 - our own README
    monkeypatch.setitem(sys.modules, "my", ModuleType("my"))
    monkeypatch.setitem(sys.modules, "my.module", module)


@pytest.mark.usefixtures("my_module")
async def test_every_validator() -> None:
    """The README's list has every validator that there is, can be used as it stands, and finds what it says."""
    policy = policy_of("{length:")
    rules = policy.default.rules
    named = [one if isinstance(one, str) else one.validator for one in rules.validate]
    assert {*named} == {*BUILT_IN, "pydantic", "language", "length", "matches", "forbids", "my.module:total_adds_up"}
    calling = Task.parse({**Task.chat("x").body, "tools": [{"type": "function", "function": {"name": "f"}}]})
    made = {one.name: one for one in Checks(policy.validators).of(calling, rules)}
    assert [*made] == named
    order = Completion.of('{"prices": [1, 2], "total": 4}', model="m")
    for name in ("pydantic", "my.module:total_adds_up"):
        (failure,) = (await made[name].validate(Task.chat("x"), order)).failures
        assert "the total is not the sum of the prices" in failure.message


def test_which_questions_are_one() -> None:
    """The README's names, synonyms and noise do what it says."""
    policy = policy_of("freshness:")
    assert (policy.default.rules.cache_ttl, policy.task("news").rules.cache_ttl) == (86_400, 0)
    asked = ["Which color has the log in page?", "Hello! Which colour has the sign in page?\n\nKind regards,\nAnn"]
    keys = {output_key(Task.chat(one), scope=policy.scope, salt=policy.salt, normal=policy.normal) for one in asked}
    assert len(keys) == 1


def test_rates() -> None:
    """The README's rates, and the limits with what is put off, are ones that can be kept."""
    policy = policy_of("rates:")
    assert [rate.name for rate in policy.rates] == ["free key 60 requests/minute", "tenant 100000 tokens/minute"]
    assert [limit.then for limit in policy_of("then: [queue, refuse]").limits] == [
        ("shorten", "confirm", "refuse"),
        ("queue", "refuse"),
    ]


async def test_budgets(tmp_path: Path) -> None:
    """The README's limits are read as it says, it explains each action, and shows what is told of a limit."""
    readme = README.read_text(encoding="utf-8")
    policy = policy_of("timezone: Europe/Berlin")
    names = [limit.name for limit in policy.limits]
    assert names == [
        "tenant 500 USD/month",
        "acme a day",
        "free tenant expensive 20 requests/day",
        "team 2000000 tokens/day",
        "free user 100 requests/day",
    ]
    limits = [[limit.name for limit in policy.limits if limit.concerns(who)] for who in (Caller("acme"), Caller("b"))]
    assert limits == [[names[0], names[1], names[3]], [names[0], names[3]]]
    assert policy.without_ledger == WithoutLedger()
    rows = set(re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE))
    assert {*get_args(Action)} <= rows
    assert {*get_args(Denial)} <= {*re.findall(r"`(\w+)`", readme)}
    (shown,) = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", readme, re.DOTALL) if "quota" in block)
    store = SqliteStore(tmp_path / "tracerouter.db")
    told = QuotaState(SqliteLedger(store, policy.timezone), policy).of(Caller("acme", "web", "ann", "free"))
    store.close()
    (limit,) = (one for one in told["limits"] if one["name"] == "tenant 500 USD/month")
    assert [*shown] == [*told]
    changing = ("spent", "reserved", "remaining", "resets_at")
    assert [*limit] == [*shown["limits"][0]]
    assert {**limit, **dict.fromkeys(changing)} == {**shown["limits"][0], **dict.fromkeys(changing)}
    begins = datetime.fromtimestamp(shown["limits"][0]["resets_at"], ZoneInfo(policy.timezone))
    assert (begins.day, begins.hour) == (1, 0)


def test_answers_that_a_person_decides_on() -> None:
    """The README's policy sends to a person what it says, and no other; its webhooks are ones that can be had."""
    policy = policy_of("low_confidence:")
    caller, ladder = Caller(), ("small", "large")

    def decided(label: str, confidence: float, *risks: str) -> str | None:
        found = Classification(label, confidence, frozenset(risks))
        return decide(found, caller, policy, ladder=ladder).review

    assert decided("chat", 0.9) is None
    assert decided("chat", 0.1) == decided("other", 0.0) == "draft"
    assert decided("chat", 0.9, "legal") == decided("invoice", 0.9, "legal") == "draft"
    assert decided("invoice", 0.9) == "after_ladder"
    assert policy.review == ReviewPolicy(low_confidence="draft")  # what the comments say are the defaults
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (webhooks,) = (yaml.safe_load(block)["webhooks"] for block in blocks if block.startswith("webhooks:"))
    secret = f"whsec_{'QUJD' * 11}"
    made = WebhooksOf.model_validate({**webhooks, "secret": secret})
    Webhooks(made.allow, secret).check("https://hooks.example.com/reviews/acme")


async def test_the_client_middleware(tmp_path: Path) -> None:
    """The call that the README shows is answered by the cheap model, and goes out where that fails."""
    named: dict[str, Any] = {}
    exec(python_of("client_middleware(router"), named)  # noqa: S102 - our own README
    async with Upstream() as cheap, Upstream() as openai:
        router = tracerouter.load(write(tmp_path, {"small": openai_models(cheap.url)["small"]}, {}))
        assert await named["summary"]("[[ok briefly]]", router, openai.url) == "briefly"
        assert await named["summary"]("[[small-1=500, gpt-5=ok at length]]", router, openai.url) == "at length"
        await router.close()
    assert len(openai.requests) == 1


async def test_own_classifier_and_validator() -> None:
    """The classifier and the validator that the README shows work as they stand."""
    named: dict[str, Any] = {}
    exec(python_of("class Urgent"), named)  # noqa: S102 - our own README
    classifier = named["Urgent"]()
    assert (await classifier.classify(Task.chat("Reply ASAP please"))).label == "urgent"
    assert (await classifier.classify(Task.chat("whenever you like"))).abstained
    adds_up = Custom("total_adds_up", named["total_adds_up"])
    right = Completion.of('{"prices": [1, 2], "total": 3}', model="m")
    wrong = Completion.of('{"prices": [1, 2], "total": 4}', model="m")
    assert (await adds_up.validate(Task.chat("x"), right)).status == "passed"
    (failure,) = (await adds_up.validate(Task.chat("x"), wrong)).failures
    assert failure.message == "the total is not the sum of the prices"


async def test_own_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider that the README shows answers, costs what it reports, and falls back when its model is ill."""
    module = ModuleType("my.module")
    exec(python_of("class House"), vars(module))  # noqa: S102 - our own README
    monkeypatch.setitem(sys.modules, "my", ModuleType("my"))
    monkeypatch.setitem(sys.modules, "my.module", module)

    async def house(request: web.Request) -> web.Response:
        asked = (await request.json())[-1]["content"]
        told = {"text": "at your service", "read": 1000, "written": 500}
        return web.json_response(told, status=503 if asked == "ill" else 200)

    app = web.Application()
    app.router.add_post("/", house)
    async with TestServer(app) as server, Upstream() as upstream:
        price = {"input": 0.1, "output": 0.2}
        own = {"provider": "my.module:House", "options": {"url": str(server.make_url("/"))}, "price": price}
        models = {"house": own, "large": openai_models(upstream.url)["large"]}
        router = tracerouter.load(write(tmp_path, models, {}))
        well = await router.route(Task.chat("hello"))
        ill = await router.route(Task.chat("ill"))
        await router.close()
    assert well.completion is not None
    assert (well.completion.text, well.facts["cost"]) == ("at your service", "0.000200000")
    assert (ill.attempts[0].rung.alias, ill.attempts[0].cost.nanos) == ("house", 0)
    assert ill.facts["route"] == "fallback"
