"""The gateway over real HTTP: answers, streams, headers, errors, keys, shutdown."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest

from tests.gateway import CHAT, Gateway, embedding_model, nanos, openai_models, write
from tests.upstream import Upstream
from tracerouter.telemetry import Keep, names
from tracerouter.telemetry.projections import SPAN_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A misbehaving upstream."""
    async with Upstream() as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Gateway]:
    """A gateway in front of it."""
    policy = {
        "embeddings": ["embed"],
        "ladders": {"careful": ["large"]},
        "tasks": {"sql": {"start": "large"}},
        "risks": {"pii": {"match": ["secret"], "cache": "never"}},
        "freshness": {"volatile": 0, "daily": "1d"},
    }
    models = openai_models(upstream.url, timeout=1, vision=False) | embedding_model(upstream.url)
    async with Gateway(write(tmp_path, models, policy)) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client session."""
    async with aiohttp.ClientSession() as session:
        yield session


def asking(text: str, **extra: Any) -> dict[str, Any]:
    """Make a request's body."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **extra}


async def post(
    http: aiohttp.ClientSession, gateway: Gateway, body: Any, **headers: str
) -> tuple[int, Any, dict[str, Any]]:
    """Send a body, JSON or raw bytes."""
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(gateway.url + CHAT, headers=told, **sent) as response:
        return response.status, response.headers, json.loads(await response.read())


async def test_a_plain_answer(http: aiohttp.ClientSession, gateway: Gateway) -> None:
    """An answer is OpenAI's, with the request's facts in the headers and in its ``tracerouter`` object."""
    status, headers, told = await post(http, gateway, asking("hi [[ok well]]"), x_request_id="mine-1")
    assert status == 200
    assert told["object"] == "chat.completion"
    assert told["choices"][0]["message"]["content"] == "well"
    facts = told["tracerouter"]
    assert headers["x-request-id"] == facts["request_id"] == "mine-1"
    assert headers["x-tracerouter-route"] == facts["route"] == "cheap"
    assert headers["x-tracerouter-reason"] == facts["reason"]
    assert headers["x-tracerouter-model"] == facts["model"] == "small"
    assert headers["x-tracerouter-policy"] == "default@1"
    assert headers["x-tracerouter-cache"] == "miss"
    assert headers["x-tracerouter-attempts"] == "1"
    assert nanos(headers["x-tracerouter-cost"]) == nanos(facts["cost"]) > 0
    assert headers["traceparent"].split("-")[1] == facts["trace_id"]


async def test_a_stream_has_the_facts_in_its_last_chunk(http: aiohttp.ClientSession, gateway: Gateway) -> None:
    """The usage chunk carries them where usage was asked for, else the chunk with the finish reason."""
    for extra in ({}, {"stream_options": {"include_usage": True}}):
        body = asking("hi [[ok one two]]", stream=True, **extra)
        async with http.post(gateway.url + CHAT, json=body, headers={"x-tracerouter-cache": "no-store"}) as response:
            events = [line[6:].strip() async for line in response.content if line.startswith(b"data: ")]
        assert events.pop() == b"[DONE]"
        chunks = [json.loads(event) for event in events]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        assert text == "one two"
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
        assert chunks[-1]["tracerouter"]["route"] == "cheap"
        assert ("usage" in chunks[-1]) == bool(extra)


async def test_openai_sdk(gateway: Gateway) -> None:
    """OpenAI's client works by its base URL: plain, streamed, tools, schemas, and its errors are its own."""
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": "hi [[ok well]]"}]
    answer = await client.chat.completions.create(model="auto", messages=messages)
    assert answer.choices[0].message.content == "well"
    assert answer.usage
    with pytest.raises(openai.NotFoundError, match="there is no model 'lagre'"):
        await client.chat.completions.create(model="lagre", messages=messages)
    with pytest.raises(openai.BadRequestError, match="`messages`"):
        await client.chat.completions.create(model="auto", messages=[])
    failing: Any = [{"role": "user", "content": "hi [[429 3]]"}]
    with pytest.raises(openai.RateLimitError) as limited:
        await client.chat.completions.create(model="auto", messages=failing)
    assert limited.value.response.headers["retry-after"] == "3"
    assert [model.id async for model in client.models.list()] == ["auto", "careful", "small", "large", "embed"]
    await client.close()


@pytest.mark.parametrize(
    ("step", "status", "code"),
    [
        ("503 9", 503, "no_rung_left"),
        ("500", 502, "no_rung_left"),
        ("hang", 504, "no_rung_left"),
        ("429 7", 429, "no_rung_left"),
        ("garbage", 502, "no_rung_left"),
        ("context_too_long", 400, "context_length_exceeded"),
        ("401", 502, "no_rung_left"),
        ("400 Unsupported parameter.", 400, "invalid_request"),
    ],
)
async def test_when_every_rung_fails(
    http: aiohttp.ClientSession, gateway: Gateway, step: str, status: int, code: str
) -> None:
    """The last failure decides the status; the answer names the attempts and the request id, and leaks nothing."""
    found, headers, told = await post(http, gateway, asking(f"private words [[{step}]]"))
    assert (found, told["error"]["code"]) == (status, code)
    assert headers["x-request-id"] in told["error"]["message"]
    assert "small: " in told["error"]["message"]
    assert headers["x-tracerouter-route"] == ("refused" if status == 400 else "failed")
    assert headers.get("retry-after") == {"503 9": "9", "429 7": "7"}.get(step)
    assert headers["x-should-retry"] == ("true" if "retry-after" in headers else "false")
    leaked = json.dumps(told) + str(dict(headers))
    assert not any(word in leaked for word in ("private words", "Traceback", "Bearer", "Incorrect API key"))


DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD: dict[str, tuple[Any, int, str | None]] = {
    "empty body": (b"", 400, None),
    "no json": (b"{nope", 400, None),
    "invalid utf-8": (b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, None),
    "nested 100,000 deep": (DEEP, 400, None),
    "nested 500 deep": (
        b'{"messages": [{"role": "user", "content": "a"}], "x": ' + b"[" * 500 + b"]" * 500 + b"}",
        400,
        None,
    ),
    "no object": ([1], 400, None),
    "no messages": ({"model": "auto"}, 400, "messages"),
    "empty messages": ({"messages": []}, 400, "messages"),
    "messages of the wrong shape": ({"messages": {"role": "user"}}, 400, "messages"),
    "a message that is none": ({"messages": ["hi"]}, 400, "messages[0]"),
    "unknown role": ({"messages": [{"role": "king", "content": "a"}]}, 400, "messages[0].role"),
    "a role of the wrong type": ({"messages": [{"role": ["user"], "content": "a"}]}, 400, "messages[0].role"),
    "content of the wrong type": ({"messages": [{"role": "user", "content": 1}]}, 400, "messages[0].content"),
    "negative max_tokens": (asking("a", max_tokens=-1), 400, "max_tokens"),
    "max_tokens that is no number": (asking("a", max_completion_tokens="x"), 400, "max_completion_tokens"),
    "max_tokens true": (asking("a", max_tokens=True), 400, "max_tokens"),
    "temperature of 3": (asking("a", temperature=3), 400, "temperature"),
    "stream that is no bool": (asking("a", stream="yes"), 400, "stream"),
    "stream_options that are none": (asking("a", stream=True, stream_options=[1]), 400, "stream_options"),
    "unknown response_format": (asking("a", response_format={"type": "xml"}), 400, "response_format.type"),
    "a schema that is no schema": (
        asking("a", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objec"}}}),
        400,
        "response_format.json_schema.schema",
    ),
    "a schema with a remote $ref": (
        asking("a", response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}}}),
        400,
        "response_format.json_schema.schema",
    ),
    "an unknown model": (asking("a") | {"model": "gpt-9"}, 404, "model"),
    "a model that is no string": (asking("a") | {"model": 7}, 400, "model"),
    "an image for models that take none": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        400,
        "messages",
    ),
    "n of 100": (asking("a", n=100), 400, "n"),
    "n of 0": (asking("a", n=0), 400, "n"),
    "2 MB": (asking("a " * 1_000_000), 413, "messages"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input(http: aiohttp.ClientSession, gateway: Gateway, upstream: Upstream, name: str) -> None:
    """Bad input is a 4xx that names the field; nothing is sent, kept or charged for it, and the process goes on."""
    body, status, param = BAD[name]
    found, headers, told = await post(http, gateway, body)
    assert (found, told["error"]["param"]) == (status, param), told
    assert headers["x-request-id"] in told["error"]["message"]
    assert headers["x-should-retry"] == "false"
    assert len(told["error"]["message"]) < 600
    assert upstream.requests == []
    assert gateway.query("SELECT count(*) FROM entries") == [(0,)]
    assert (await post(http, gateway, asking("still there? [[ok]]")))[0] == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-tracerouter-task", "no such name!"),
        ("x-tracerouter-cache", "please"),
        ("x-tracerouter-cache", "max-age=soon"),
        ("x-tracerouter-timeout", "-1"),
        ("x-tracerouter-timeout", "nan"),
    ],
)
async def test_a_bad_header_is_named(http: aiohttp.ClientSession, gateway: Gateway, header: str, value: str) -> None:
    """A header that can't be read is a 400 that names it."""
    status, _, told = await post(http, gateway, asking("a"), **{header.replace("-", "_"): value})
    assert (status, told["error"]["param"]) == (400, header)


async def test_headers_of_the_request(http: aiohttp.ClientSession, gateway: Gateway) -> None:
    """Task, cache and timeout are as the headers say; a malformed request id is replaced."""
    _, headers, _ = await post(http, gateway, asking("q [[ok]]"), x_tracerouter_task="sql")
    assert headers["x-tracerouter-route"] == "expensive"
    assert headers["x-tracerouter-reason"] == "forced_task"
    await post(http, gateway, asking("keep [[ok]]"))
    assert (await post(http, gateway, asking("keep [[ok]]")))[1]["x-tracerouter-cache"] == "hit"
    fresh = await post(http, gateway, asking("keep [[ok]]"), x_tracerouter_cache="max-age=0")
    assert fresh[1]["x-tracerouter-cache"] == "stale"
    for name, found in (("volatile", "stale"), ("daily", "hit")):
        _, headers, _ = await post(http, gateway, asking("keep [[ok]]"), x_tracerouter_cache=name)
        assert headers["x-tracerouter-cache"] == found
    bypassed = await post(http, gateway, asking("keep [[ok]]"), x_tracerouter_cache="no-store")
    assert bypassed[1]["x-tracerouter-cache"] == "bypass"
    status, headers, _ = await post(http, gateway, asking("late [[hang]]"), x_tracerouter_timeout="0.2")
    assert (status, headers["x-tracerouter-attempts"]) == (504, "1")
    _, headers, _ = await post(http, gateway, asking("id [[ok]]"), x_request_id="bad id")
    assert headers["x-request-id"] != "bad id"


async def test_a_pinned_model_is_called(http: aiohttp.ClientSession, gateway: Gateway, upstream: Upstream) -> None:
    """An alias as ``model`` is what answers, and no other."""
    _, headers, _ = await post(http, gateway, asking("hi [[500]]") | {"model": "large"})
    assert headers["x-tracerouter-attempts"] == "1"
    assert [request.body["model"] for request in upstream.requests] == ["large-1"]


async def test_a_risk_keeps_an_answer_out_of_the_cache(http: aiohttp.ClientSession, gateway: Gateway) -> None:
    """What carries a risk with ``cache: never`` is not kept."""
    for _ in range(2):
        _, headers, _ = await post(http, gateway, asking("my secret [[ok]]"))
        assert headers["x-tracerouter-cache"] == "miss"


async def test_traceparent_in_and_out(http: aiohttp.ClientSession, gateway: Gateway, upstream: Upstream) -> None:
    """The caller's trace goes on: our server span is its child, and the upstream's parent is our chat span."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    _, headers, _ = await post(http, gateway, asking("hi [[ok]]"), traceparent=parent)
    spans = {span.name: span for span in gateway.seen.spans}
    server, route, cheap, chat = (spans[n] for n in (f"POST {CHAT}", "route default@1", "cheap", "chat small-1"))
    assert server.parent and route.parent and chat.parent  # noqa: PT018 - for the type checker
    assert server.context and cheap.context and chat.context and server.attributes  # noqa: PT018
    assert f"{server.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert route.parent.span_id == server.context.span_id
    assert chat.parent.span_id == cheap.context.span_id
    sent = upstream.requests[0].headers["traceparent"]
    assert sent == f"00-4bf92f3577b34da6a3ce929d0e0e4736-{chat.context.span_id:016x}-01"
    assert headers["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    assert server.attributes["http.response.status_code"] == 200


async def test_real_requests_emit_what_the_table_says(  # noqa: PLR0915 - one request after another
    tmp_path_factory: pytest.TempPathFactory, http: aiohttp.ClientSession, gateway: Gateway, upstream: Upstream
) -> None:
    """What real requests emit is the code's table: no attribute more, of no other type, and none that is for show."""
    gateway.router.telemetry.capture_content = True
    steps = ["ok", "small-1=500, large-1=ok", "500", "small-1=empty, large-1=ok", "no_usage"]
    for step in steps:
        await post(http, gateway, asking(f"secret [[{step}]]"))
    for _ in range(2):
        await post(http, gateway, asking("q [[ok]]"), x_tracerouter_task="sql")
    await post(http, gateway, asking("q [[500]]"), x_tracerouter_task="sql")
    await post(http, gateway, asking("q [[ok a b]]", stream=True) | {"stream": False})
    async with http.post(gateway.url + CHAT, json=asking("s [[ok a b]]", stream=True)) as response:
        await response.read()
    await asyncio.gather(*(post(http, gateway, asking("at once [[slow 0.3 a b c]]")) for _ in range(2)))
    async with http.post(gateway.url + CHAT, data=b"no JSON") as response:
        assert response.status == 400
    for step in ("ok", "500"):
        body = {"model": "embed", "input": f"embed [[{step}]]"}
        async with http.post(f"{gateway.url}/v1/embeddings", json=body) as response:
            await response.read()
    leaving = asyncio.create_task(post(http, gateway, asking("a [[hang]]")))
    seen = len(upstream.requests)
    await upstream.received(seen + 1)
    leaving.cancel()
    async with asyncio.timeout(5):
        while not any((span.attributes or {}).get("error.type") == "cancelled" for span in gateway.seen.spans[-1:]):
            await asyncio.sleep(0.01)
    by_model = write(
        tmp_path_factory.mktemp("by_model"),
        openai_models(upstream.url),
        {"tasks": {"sql": {}}},
        classifier=[{"llm": "small"}],
    )
    async with Gateway(by_model) as classifying:
        await post(http, classifying, asking("a [[ok]]"))
    quota = {"per": "tenant", "limit": "3 requests/day", "then": ["queue", "confirm"]}
    policy = {"tasks": {"sql": {"start": "large"}}, "quotas": [quota]}
    async with Gateway(write(tmp_path_factory.mktemp("limited"), openai_models(upstream.url), policy)) as limited:
        await post(http, limited, asking("a [[small-1=500, large-1=ok]]"))
        for _ in range(2):
            _, _, offer = await post(http, limited, asking("q [[500]]"), x_tracerouter_task="sql")
        token = offer["error"]["confirmation"]["token"]
        await post(http, limited, asking("q [[500]]"), x_tracerouter_task="sql", x_tracerouter_confirm=token)
        await post(http, limited, asking("q [[500]]"), prefer="respond-async")
    reviews = write(
        tmp_path_factory.mktemp("reviews"), openai_models(upstream.url), {"tasks": {"sql": {"review": "draft"}}}
    )
    async with Gateway(reviews) as reviewing:
        _, _, held = await post(http, reviewing, asking("a [[ok]]"), x_tracerouter_task="sql")
        async with http.post(f"{reviewing.url}{held['tracerouter']['review']['url']}/approve") as response:
            assert response.status == 200
        async with asyncio.timeout(5):
            while reviewing.seen.spans[-1].name != "review decision":
                await asyncio.sleep(0.01)
    emitted: dict[str, set[str]] = {kind: set() for kind in SPAN_ATTRIBUTES}
    for span in (*gateway.seen.spans, *classifying.seen.spans, *limited.seen.spans, *reviewing.seen.spans):
        kind = "server" if span.kind.name == "SERVER" else span.name.split(" ")[0]
        told = span.attributes or {}
        emitted[kind] |= set(told)
        for name, value in told.items():
            shape = tuple if isinstance(value, (list, tuple)) else type(value)
            assert issubclass(shape, SPAN_ATTRIBUTES[kind][name]), (kind, name, value)
        if kind not in {"server", "chat", "embeddings"}:
            wanted = {names.TOKENS_INPUT, names.TOKENS_OUTPUT, names.COST, names.LATENCY}
            assert wanted <= set(told), kind
    never = {kind: set(table) - emitted[kind] for kind, table in SPAN_ATTRIBUTES.items()}
    fails_by_exception = {kind: {names.ERROR_TYPE} for kind in ("cache", "classify", "quota", "validate", "review")}
    assert {kind: left for kind, left in never.items() if left} == fails_by_exception


async def test_shutdown_drains(tmp_path: Path, upstream: Upstream, http: aiohttp.ClientSession) -> None:
    """A request under way when the gateway stops is answered, and its spans are told."""
    path = write(tmp_path, openai_models(upstream.url), {})
    async with Gateway(path) as running:
        asked = asyncio.create_task(post(http, running, asking("hi [[slow 0.1 a b c]]")))
        await upstream.received()
    status, _, _ = await asked
    assert status == 200
    assert any(span.name == "chat small-1" for span in running.seen.spans)
    assert len(running.records()) == 1


async def test_keys(
    tmp_path: Path, upstream: Upstream, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key stands for its tenant and tier; without one, or with another, the answer is 401 and shows no key."""
    monkeypatch.setenv("TR_KEYS", json.dumps([{"key": "key-of-acme", "tenant": "acme", "tier": "free"}]))
    policy = {"tiers": {"free": {"ladder": ["small"]}}}
    path = write(tmp_path, openai_models(upstream.url), policy, keys={"env": "TR_KEYS"})
    async with Gateway(path) as running:
        status, headers, told = await post(http, running, asking("a [[ok]]"))
        assert (status, told["error"]["code"]) == (401, "invalid_api_key")
        assert headers["www-authenticate"] == "Bearer"
        status, _, told = await post(http, running, asking("a"), authorization="Bearer wrong-key-1")
        assert status == 401
        assert "wrong-key-1" not in json.dumps(told)
        status, _, _ = await post(http, running, asking("a [[ok]]"), authorization="Bearer key-of-acme")
        assert status == 200
        pinned = asking("a [[ok]]") | {"model": "large"}
        status, headers, told = await post(http, running, pinned, authorization="Bearer key-of-acme")
        assert (status, told["error"]["code"], headers["x-tracerouter-route"]) == (403, "not_allowed", "refused")
    assert {record["tenant"] for record in running.records().values()} == {"acme"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health(http: aiohttp.ClientSession, gateway: Gateway, path: str) -> None:
    """The probes answer 200, and make no spans."""
    async with http.get(gateway.url + path) as response:
        assert response.status == 200
    assert gateway.seen.spans == []


async def test_an_unknown_path_is_a_json_404(http: aiohttp.ClientSession, gateway: Gateway) -> None:
    """A path or method that is not there is answered in OpenAI's shape."""
    for method, status in (("GET", 405), ("POST", 404)):
        url = gateway.url + (CHAT if method == "GET" else "/v1/nope")
        async with http.request(method, url) as response:
            assert response.status == status
            assert "error" in await response.json()


async def test_a_repeated_request_id_is_charged_each_time(
    http: aiohttp.ClientSession, gateway: Gateway, upstream: Upstream
) -> None:
    """Whoever sends the same request id twice pays twice."""
    told = [
        nanos((await post(http, gateway, asking(f"{n} [[ok]]"), x_request_id="same"))[1]["x-tracerouter-cost"])
        for n in range(3)
    ]
    assert gateway.query("SELECT count(*), sum(cost_nanos) FROM entries WHERE request_id = 'same'") == [(3, sum(told))]


async def test_a_cached_answer_names_its_model(http: aiohttp.ClientSession, gateway: Gateway) -> None:
    """An answer from the cache says which alias gave it, and costs nothing; so does its record."""
    for _ in range(2):
        _, headers, _ = await post(http, gateway, asking("again [[ok]]"))
    assert (headers["x-tracerouter-route"], headers["x-tracerouter-model"]) == ("cached", "small")
    assert nanos(headers["x-tracerouter-cost"]) == 0


async def test_error_traces_are_whole_when_nothing_else_is_kept(
    http: aiohttp.ClientSession, gateway: Gateway, upstream: Upstream
) -> None:
    """At share 0 a failed, a wrong and a cancelled request keep the span of the HTTP request too; others keep none."""
    gateway.router.telemetry.keep = Keep(share=0)
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objec"}}}
    await post(http, gateway, asking("fine [[ok]]"))
    assert gateway.seen.spans == []
    await post(http, gateway, asking("a [[500]]"))
    await post(http, gateway, asking("a", response_format=wrong))
    leaving = asyncio.create_task(post(http, gateway, asking("a [[hang]]")))
    await upstream.received(4)
    leaving.cancel()
    async with asyncio.timeout(5):
        while sum(span.kind.name == "SERVER" for span in gateway.seen.spans) < 3:
            await asyncio.sleep(0.01)
    for spans in gateway.spans_by_request().values():
        ids = {span.context.span_id for span in spans if span.context}
        assert all(span.parent is None or span.parent.span_id in ids for span in spans)


async def test_an_upstreams_words_reach_the_caller_but_no_span(http: aiohttp.ClientSession, gateway: Gateway) -> None:
    """What a provider says of a request may quote the prompt: the caller reads it, spans and records do not."""
    status, _, told = await post(http, gateway, asking("x [[400 Bad content: MY-SECRET-PROMPT]]"))
    assert status == 400
    assert "MY-SECRET-PROMPT" in told["error"]["message"]
    spans = "".join(span.to_json() for span in gateway.seen.spans)
    assert "MY-SECRET-PROMPT" not in spans + json.dumps(gateway.records())


async def test_the_baseline_counts_the_question_once(
    http: aiohttp.ClientSession, gateway: Gateway, tmp_path: Path, upstream: Upstream
) -> None:
    """However often a question was sent, the baseline is one straight answer's price on the top rung."""
    baselines = {}
    for step in ("ok", "small-1=429, large-1=ok", "small-1=hang, large-1=ok", "small-1=empty, large-1=ok"):
        text = f"same length of words [[{step}]]"
        _, _, told = await post(http, gateway, asking(text))
        sent = (
            upstream.charges[-1]
            if step == "ok"
            else next(c for c in reversed(upstream.charges) if c.model == "small-1")
        )
        price = 2.5e-6 * sent.input + 10e-6 * told["usage"]["completion_tokens"]
        baselines[step] = (float(told["tracerouter"]["baseline_cost"]), pytest.approx(price))
    assert all(told == wanted for told, wanted in baselines.values()), baselines


@pytest.mark.parametrize("calls", [5, [1], ["x"]])
async def test_tool_calls_of_the_wrong_shape(http: aiohttp.ClientSession, gateway: Gateway, calls: Any) -> None:
    """``tool_calls`` that are no list of objects are a 400 that names them."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    status, _, told = await post(http, gateway, {"messages": messages})
    assert (status, told["error"]["param"]) == (400, "messages[1].tool_calls")
