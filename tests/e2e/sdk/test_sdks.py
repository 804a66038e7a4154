"""Real SDKs against the gateway: what each feature of OpenAI's API comes to, there and at the upstream."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.sdk.clients import CLIENTS, KEY
from tests.gateway import Gateway, cost_of, embedding_model, nanos, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter import Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SHAPE = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Finds it.", "parameters": SHAPE}}
    for name in ("look_up", "book")
]
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": SHAPE, "strict": True}}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
)
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
PARIS, ROME = {"city": "Paris"}, {"city": "Rome"}
BOTH = 'tool_calls {"city": "Paris"} | {"city": "Rome"}'
EXTRAS = {"stop": ["END"], "seed": 7, "user": "u-1", "metadata": {"team": "web"}, "x_new": {"since": 2027}}


@dataclass(frozen=True)
class Feature:
    """One request."""

    step: str
    """What the upstream does with it."""
    body: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ("",)
    calls: tuple[tuple[str, Any], ...] = ()
    tokens: tuple[str, ...] | None = None
    content: Any = None
    """Parts to send besides the text."""
    before: tuple[dict[str, Any], ...] = ()
    """Messages before it."""
    after: tuple[dict[str, Any], ...] = ()

    @property
    def request(self) -> dict[str, Any]:
        said: Any = f"Where is it? [[{self.step}]]"
        if self.content:
            said = [{"type": "text", "text": said}, *self.content]
        messages = [*self.before, {"role": "user", "content": said}, *self.after]
        return {"model": "auto", "messages": messages, **self.body}


FEATURES: dict[str, Feature] = {
    "plain": Feature("ok Paris it is", {}, ("Paris it is",)),
    "streamed": Feature("ok Paris it is", STREAM, ("Paris it is",)),
    "parallel tools": Feature(BOTH, {"tools": TOOLS}, calls=(("look_up", PARIS), ("look_up", ROME))),
    "parallel tools, streamed": Feature(
        BOTH, {"tools": TOOLS, **STREAM}, calls=(("look_up", PARIS), ("look_up", ROME))
    ),
    "forced tool": Feature(
        "tool_call",
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "book"}}},
        calls=(("book", PARIS),),
    ),
    "tool results": Feature(
        "ok In Paris",
        {"tools": TOOLS},
        ("In Paris",),
        after=(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "Paris"},
        ),
    ),
    "json_schema": Feature('ok {"city": "Paris"}', {"response_format": JSON_SCHEMA}, ('{"city": "Paris"}',)),
    "json_schema, streamed": Feature(
        'ok {"city": "Paris"}', {"response_format": JSON_SCHEMA, **STREAM}, ('{"city": "Paris"}',)
    ),
    "json_object": Feature(
        'ok {"city": "Paris"}', {"response_format": {"type": "json_object"}}, ('{"city": "Paris"}',)
    ),
    "image": Feature(
        "ok A pixel", {}, ("A pixel",), content=[{"type": "image_url", "image_url": {"url": PIXEL}}]
    ),
    "n": Feature("ok Paris", {"n": 2}, ("Paris", "Paris")),
    "n, streamed": Feature("ok Paris", {"n": 2, **STREAM}, ("Paris", "Paris")),
    "stop, seed, user, metadata, unknown": Feature("ok Paris", EXTRAS, ("Paris",)),
    "logprobs": Feature("ok Paris it is", {"logprobs": True}, ("Paris it is",), tokens=("Paris ", "it ", "is")),
    "two system prompts": Feature(
        "ok Paris",
        {},
        ("Paris",),
        before=({"role": "system", "content": "Be short."}, {"role": "system", "content": "Be kind."}),
    ),
}  # fmt: skip


PRICES = {
    "small-1": Prices(150_000_000, 600_000_000),
    "large-1": Prices(2_500_000_000, 10_000_000_000),
    "embed-1": Prices(20_000_000, 0),
}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """An upstream that does as it is told."""
    async with Upstream(prices=PRICES) as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Gateway]:
    """A gateway in front of it; in the end every account of what a test's SDK asked for is the upstream's bill."""
    models = openai_models(upstream.url, timeout=5) | embedding_model(upstream.url)
    async with Gateway(write(tmp_path, models, {"embeddings": ["embed"]})) as running:
        yield running
    spans, records = running.seen.spans, running.records()
    assert upstream.charges
    assert {
        "spans that ask": cost_of(spans, "chat") + cost_of(spans, "embeddings"),
        "route spans": cost_of(spans, "route"),
        "ledger": running.query("SELECT coalesce(sum(cost_nanos), 0) FROM entries")[0][0],
        "records": sum(nanos(record["cost"]) for record in records.values()),
    } == dict.fromkeys(("spans that ask", "route spans", "ledger", "records"), upstream.nanos)


@pytest.mark.parametrize(
    ("sdk", "feature"),
    [(sdk, feature) for sdk, client in CLIENTS.items() for feature in FEATURES if feature not in client.lacks],
)
async def test_a_feature_works_with_an_sdk(gateway: Gateway, upstream: Upstream, sdk: str, feature: str) -> None:
    """What the SDK returns is what the upstream said, and what was asked has arrived there as it was."""
    client, wanted = CLIENTS[sdk], FEATURES[feature]
    said = await client.chat(f"{gateway.url}/v1", wanted.request)
    assert said.error is None, said
    assert said.texts == list(wanted.texts)
    assert said.calls == list(wanted.calls)
    assert said.tokens == (list(wanted.tokens) if wanted.tokens else None)
    (charge,) = upstream.charges
    assert said.usage == (charge.input, charge.output)
    sent = upstream.requests[0].body
    asked = wanted.request
    assert [message["role"] for message in sent["messages"]] == [message["role"] for message in asked["messages"]]
    for name, value in wanted.body.items():
        if name == "tools":
            assert [tool["function"]["name"] for tool in sent["tools"]] == ["look_up", "book"]
            assert all(tool["function"]["parameters"]["required"] == ["city"] for tool in sent["tools"])
        elif name == "response_format":
            assert sent[name]["type"] == value["type"]
            assert sent[name].get("json_schema", {}).get("schema") == value.get("json_schema", {}).get("schema")
        elif name not in STREAM:
            assert sent[name] == value
    if wanted.content:
        assert sent["messages"][0]["content"][1]["image_url"]["url"] == PIXEL


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_embeddings_work_with_an_sdk(gateway: Gateway, upstream: Upstream, sdk: str) -> None:
    """Each SDK gets its vectors, in whatever encoding it asks for, and they are charged as the upstream bills them."""
    said = await CLIENTS[sdk].embed(f"{gateway.url}/v1", {"model": "embed", "input": ["one text", "another"]})
    assert said.vectors == [[0.5] * 4, [1.5] * 4]
    (charge,) = upstream.charges
    assert said.usage in {None, (charge.input, 0)}  # langchain-openai keeps it to itself
    assert upstream.requests[0].body["model"] == "embed-1"
    (span,) = (span for span in gateway.seen.spans if span.name == "embeddings embed-1")
    assert span.attributes
    assert span.attributes["gen_ai.usage.input_tokens"] == charge.input


RAISED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "a wrong field": ({"temperature": 3}, 400, "BadRequestError", "ModelRequestRejectedError"),
    "an unknown model": ({"model": "gpt-9"}, 404, "NotFoundError", "ModelNotFoundError"),
    "a model of another tier": ({"model": "large"}, 403, "PermissionDeniedError", "ModelAuthenticationError"),
    "a rate limit": (
        {"messages": [{"role": "user", "content": "[[429 1]]"}]}, 429, "RateLimitError", "ModelRateLimitError",
    ),
    "a prompt that is too long": (
        {"messages": [{"role": "user", "content": "[[context_too_long]]"}]},
        400, "BadRequestError", "ModelContextWindowExceededError",
    ),
    "an upstream that fails": (
        {"messages": [{"role": "user", "content": "[[500]]"}]}, 502, "InternalServerError", "ModelServerError",
    ),
}  # fmt: skip
TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    502: "server_error",
}


@pytest.mark.parametrize("case", RAISED)
@pytest.mark.parametrize("sdk", CLIENTS)
async def test_an_error_is_the_sdks_own(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, sdk: str, case: str
) -> None:
    """Each error comes out of each SDK as the class and with the status that OpenAI's own error has there."""
    changed, status, raised, of_pydantic_ai = RAISED[case]
    monkeypatch.setenv("TR_KEYS", json.dumps([{"key": KEY, "tenant": "acme", "tier": "free"}]))
    policy = {"tiers": {"free": {"ladder": ["small"]}}}
    path = write(tmp_path, openai_models(upstream.url, timeout=5), policy, keys={"env": "TR_KEYS"})
    async with Gateway(path) as gateway:
        said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", FEATURES["plain"].request | changed)
    own = {"pydantic-ai": of_pydantic_ai, "curl": TYPES[status]}
    assert (said.status, said.error) == (status, own.get(sdk, raised))


STORMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "an upstream that is down": ("500", {}, 4),
    "an upstream that hangs": ("hang", {}, 2),
    "answers that are turned down": ("ok no JSON", {"response_format": JSON_SCHEMA}, 2),
    "a request that is wrong": ("400 No.", {}, 2),
}
"""What the upstream does, what else is asked, and how often the upstream is tried for it."""


@pytest.mark.parametrize("case", STORMS)
@pytest.mark.parametrize("sdk", [sdk for sdk, client in CLIENTS.items() if "retries" not in client.lacks])
async def test_a_retry_storm_ends_at_the_gateway(tmp_path: Path, upstream: Upstream, sdk: str, case: str) -> None:
    """An SDK with 3 retries asks once: each of two rungs is tried, with its model's one retry, and no more."""
    step, extra, tries = STORMS[case]
    async with Gateway(write(tmp_path, openai_models(upstream.url, timeout=0.3, retries=1), {})) as gateway:
        asked = {**FEATURES["plain"].request, **extra, "messages": [{"role": "user", "content": f"Go [[{step}]]"}]}
        said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", asked, retries=3)
        assert said.error
        assert len(upstream.requests) == tries
        assert sum(span.name == "route default@1" for span in gateway.seen.spans) == 1


@pytest.mark.parametrize("sdk", [sdk for sdk, client in CLIENTS.items() if "retries" not in client.lacks])
async def test_a_rate_limit_is_waited_for(gateway: Gateway, upstream: Upstream, sdk: str) -> None:
    """An SDK waits as long as the provider's ``retry-after`` says, and then has its answer."""
    asked = {"model": "small", "messages": [{"role": "user", "content": "Go [[429 1 then ok Paris]]"}]}
    started = time.monotonic()
    said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", asked, retries=3)
    assert (said.error, said.texts, len(upstream.requests)) == (None, ["Paris"], 2)
    assert time.monotonic() - started >= 1


LIMITS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "a budget": (
        {"quotas": [{"per": "tenant", "limit": "0 requests/day"}]}, 429, "RateLimitError", "ModelRateLimitError",
    ),
    "a budget that may be passed": (
        {"quotas": [{"per": "tenant", "limit": "0 requests/day", "then": ["confirm"]}]},
        409, "ConflictError", "ModelHTTPError",
    ),
    "a rate": ({"rates": [{"limit": "1 requests/minute"}]}, 429, "RateLimitError", "ModelRateLimitError"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIMITS)
@pytest.mark.parametrize("sdk", [sdk for sdk, client in CLIENTS.items() if "retries" not in client.lacks])
async def test_a_limit_is_told_once(tmp_path: Path, upstream: Upstream, sdk: str, case: str) -> None:
    """An SDK with 3 retries raises its own error for a limit that was reached, and asks once: waiting is for people."""
    policy, status, raised, of_pydantic_ai = LIMITS[case]
    async with Gateway(write(tmp_path, openai_models(upstream.url), policy)) as gateway:
        await gateway.router.route(Task.chat("the only one that a rate lets in"))
        said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", FEATURES["plain"].request, retries=3)
        assert sum(span.name == "route default@1" for span in gateway.seen.spans) == 2
    assert (said.status, said.error) == (status, {"pydantic-ai": of_pydantic_ai}.get(sdk, raised))


async def test_a_limit_is_passed_with_the_python_sdk(tmp_path: Path, upstream: Upstream) -> None:
    """What it raises holds the token, what it sends takes it, and 202 is an answer: of a job."""
    policy = {"quotas": [{"per": "tenant", "limit": "0 requests/day", "then": ["queue", "confirm"]}]}
    ask: Any = {"model": "auto", "messages": [{"role": "user", "content": "Go [[ok well]]"}]}
    async with (
        Gateway(write(tmp_path, openai_models(upstream.url), policy)) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client,
    ):
        with pytest.raises(openai.ConflictError) as raised:
            await client.chat.completions.create(**ask)
        told: Any = raised.value.body
        token = told["confirmation"]["token"]
        answer = await client.chat.completions.create(**ask, extra_headers={"x-tracerouter-confirm": token})
        assert answer.choices[0].message.content == "well"
        later = {"prefer": "respond-async", "x-tracerouter-cache": "no-store"}
        queued: Any = await client.chat.completions.create(**ask, extra_headers=later)
        assert (queued.object, queued.state) == ("tracerouter.job", "queued")
        assert queued.url == f"/tracerouter/jobs/{queued.id}"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_a_key_that_is_not_known(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, sdk: str
) -> None:
    """A key that is not known is an authentication error in each SDK."""
    monkeypatch.setenv("TR_KEYS", json.dumps([{"key": "another-key", "tenant": "acme"}]))
    path = write(tmp_path, openai_models(upstream.url), {}, keys={"env": "TR_KEYS"})
    async with Gateway(path) as gateway:
        said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", FEATURES["plain"].request)
    own = {"pydantic-ai": "ModelAuthenticationError", "curl": "authentication_error"}
    assert (said.status, said.error) == (401, own.get(sdk, "AuthenticationError"))


@pytest.mark.parametrize("step", ["cut 2", "cut_utf8 2", "error_after 2"])
@pytest.mark.parametrize("sdk", CLIENTS)
async def test_a_stream_that_breaks_is_an_error(gateway: Gateway, sdk: str, step: str) -> None:
    """A stream that breaks after its first words raises the SDK's own error: nobody takes half an answer for one."""
    asked = {**FEATURES["plain"].request, **STREAM, "messages": [{"role": "user", "content": f"Go on [[{step}]]"}]}
    said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", asked)
    own = {"curl": "server_error", "pydantic-ai": "ModelServerError"}
    assert said.error == own.get(sdk, "APIError")
    assert said.texts == []


BROKEN = {
    **FEATURES["plain"].request,
    "tools": TOOLS,
    "messages": [{"role": "user", "content": '[[small-1=tool_call {"city, large-1=tool_call {"city": "Rome"}]]'}],
}
"""A cheap model calls a tool with what is no JSON; the other one can do it."""


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_tool_arguments_that_are_no_json_are_repaired(gateway: Gateway, upstream: Upstream, sdk: str) -> None:
    """No SDK sees tool arguments that are no JSON: the next model makes the call again, and is told what was wrong."""
    said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", BROKEN)
    assert (said.error, said.calls) == (None, [("look_up", ROME)])
    asked, repaired = (request.body["messages"] for request in upstream.requests)
    assert repaired[: len(asked)] == asked
    assert "$.tool_calls[0].function.arguments: the arguments are no JSON" in repaired[-1]["content"]


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_streamed_tool_arguments_are_not_held_back(gateway: Gateway, upstream: Upstream, sdk: str) -> None:
    """In a stream arguments that are no JSON come out as the real service lets them out: at once, as they are."""
    said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", {**BROKEN, **STREAM})
    completed: dict[str, Any] = {"langchain-openai": {}}  # it makes what it can of an unfinished object
    assert (said.error, said.calls) == (None, [("look_up", completed.get(sdk, '{"city'))])
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_a_policy_holds_streamed_tool_calls_back(tmp_path: Path, upstream: Upstream, sdk: str) -> None:
    """Where the policy asks for it, streamed arguments are checked against the tool's parameters before they go out."""
    odd = '[[small-1=tool_call {"town": "Rome"}, large-1=tool_call {"city": "Rome"}]]'
    asked = {**BROKEN, **STREAM, "messages": [{"role": "user", "content": odd}]}
    path = write(tmp_path, openai_models(upstream.url, timeout=5), {"validate": ["empty", "tool_arguments"]})
    async with Gateway(path) as gateway:
        said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", asked)
    failed = [record["validation_failures"] for record in gateway.records().values()]
    assert (said.error, said.calls) == (None, [("look_up", ROME)])
    assert len(upstream.requests) == 2
    assert failed == [
        [f"{keyword} $.tool_calls[0].function.arguments" for keyword in ("additionalProperties", "required")]
    ]


async def test_tool_arguments_that_nobody_gets_right(gateway: Gateway, upstream: Upstream) -> None:
    """Where no model calls the tool with JSON the answer is an error that says so, and each call is in its cost."""
    asked: Any = [{"role": "user", "content": '[[tool_call {"city]]'}]
    tools: Any = TOOLS
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=3) as client:
        with pytest.raises(openai.InternalServerError, match="small: schema_invalid, large: schema_invalid") as raised:
            await client.chat.completions.create(model="auto", messages=asked, tools=tools)
    assert raised.value.status_code == 502
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("sdk", ["openai", "openai-node", "curl"])
async def test_broken_arguments_in_the_history_pass(gateway: Gateway, upstream: Upstream, sdk: str) -> None:
    """A history with arguments that are no JSON goes to a server of OpenAI's API as it is; other SDKs rewrite it."""
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city'}}
    asked = {**FEATURES["tool results"].request}
    first, called, result = asked["messages"]
    asked["messages"] = [first, {**called, "tool_calls": [call]}, result]
    said = await CLIENTS[sdk].chat(f"{gateway.url}/v1", asked)
    assert said.error is None, said
    assert upstream.requests[0].body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city'


async def test_an_agent_calls_its_tools(gateway: Gateway, upstream: Upstream) -> None:
    """pydantic-ai's agent calls a tool, sends its result back, and ends with an answer of its own type."""

    class Place(BaseModel):
        city: str

    provider = OpenAIProvider(base_url=f"{gateway.url}/v1", api_key=KEY)
    agent = Agent(OpenAIChatModel("auto", provider=provider), output_type=ToolOutput(Place, name="place"))
    looked_up: list[str] = []

    @agent.tool_plain
    def look_up(city: str) -> str:
        """Look it up."""
        looked_up.append(city)
        return "found"

    upstream.default["small-1"] = 'tool_call {"city": "Rome"} then tool_call place {"city": "Paris"}'
    result = await agent.run("Where is it?")
    assert looked_up == ["Rome"]
    assert result.output == Place(city="Paris")
    assert [message["role"] for message in upstream.requests[1].body["messages"]] == ["user", "assistant", "tool"]
    assert sum(span.name == "route default@1" for span in gateway.seen.spans) == 2


async def test_helpers_of_the_python_sdk(gateway: Gateway) -> None:
    """``parse`` makes an object of an answer, and ``stream`` puts streamed tool arguments together."""

    class Place(BaseModel):
        city: str

    messages: Any = [{"role": "user", "content": '[[ok {"city": "Paris"}]]'}]
    calling: Any = [{"role": "user", "content": f"[[{BOTH}]]"}]
    tools: Any = TOOLS
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        parsed = await client.chat.completions.parse(model="auto", messages=messages, response_format=Place)
        assert parsed.choices[0].message.parsed == Place(city="Paris")
        async with client.chat.completions.stream(model="auto", messages=calling, tools=tools) as stream:
            whole = await stream.get_final_completion()
    calls = whole.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == [PARIS, ROME]


def test_the_readme_has_this_table() -> None:
    """README's table of SDKs is what is tested here: no feature more, and none less."""
    lines = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| tested with |"))
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines[start : start + len(FEATURES) + 4]]
    assert rows[0] == ["tested with", *CLIENTS]
    assert rows[2:] == [
        [feature, *("—" if feature in client.lacks else "✓" for client in CLIENTS.values())]
        for feature in [*FEATURES, "embeddings", "retries"]
    ]
