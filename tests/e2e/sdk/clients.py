"""The client SDKs, each brought to one shape: a request as OpenAI's API writes it in, what the SDK makes of it out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr
from pydantic_ai import Embedder, ImageUrl, ModelAPIError, ModelHTTPError, ToolDefinition
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.providers.openai import OpenAIProvider

if TYPE_CHECKING:
    from collections.abc import Mapping

NODE = Path(__file__).parent / "node"
KEY = "a-key-of-tests"


@dataclass
class Said:
    """What an SDK made of an answer."""

    texts: list[str] = field(default_factory=list)
    """Of each choice."""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """Name and arguments of each tool call."""
    usage: tuple[int, int] | None = None
    """Input and output tokens."""
    tokens: list[str] | None = None
    """Those that log probabilities were told of."""
    vectors: list[list[float]] | None = None
    error: str | None = None
    """The name of the error that the SDK raised."""
    status: int | None = None
    """The HTTP status that it tells."""


class Client(Protocol):
    """One SDK."""

    lacks: frozenset[str]
    """The features that the SDK itself does not offer."""

    async def chat(self, url: str, body: Mapping[str, Any], *, retries: int = 0) -> Said:
        """Send a chat completion request to the base `url`."""
        ...

    async def embed(self, url: str, body: Mapping[str, Any]) -> Said:
        """Send a request for embeddings."""
        ...


class OpenAIPython:
    """``openai`` for Python."""

    lacks = frozenset[str]()

    async def chat(self, url: str, body: Mapping[str, Any], *, retries: int = 0) -> Said:
        known = {name: value for name, value in body.items() if not name.startswith("x_")}
        unknown = {name: value for name, value in body.items() if name.startswith("x_")}
        client: Any
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=retries) as client:
            try:
                answer = await client.chat.completions.create(**known, extra_body=unknown)
                if body.get("stream"):
                    return gathered([chunk.model_dump(exclude_none=True) async for chunk in answer])
                return read(answer.model_dump())
            except openai.APIError as error:
                return Said(error=type(error).__name__, status=getattr(error, "status_code", None))

    async def embed(self, url: str, body: Mapping[str, Any]) -> Said:
        client: Any
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            answer = await client.embeddings.create(**body)
        used = (answer.usage.prompt_tokens, 0)
        return Said(vectors=[one.embedding for one in answer.data], usage=used)


class OpenAINode:
    """``openai`` for Node."""

    lacks = frozenset[str]()

    async def chat(self, url: str, body: Mapping[str, Any], *, retries: int = 0) -> Said:
        told = await self._run({"url": url, "key": KEY, "retries": retries, "chat": body})
        if "error" in told:
            return Said(error=told["error"], status=told.get("status"))
        return gathered(told["chunks"]) if body.get("stream") else read(told["answer"])

    async def embed(self, url: str, body: Mapping[str, Any]) -> Said:
        answer = (await self._run({"url": url, "key": KEY, "retries": 0, "embed": body}))["answer"]
        used = (answer["usage"]["prompt_tokens"], 0)
        return Said(vectors=[one["embedding"] for one in answer["data"]], usage=used)

    async def _run(self, told: dict[str, Any]) -> dict[str, Any]:
        script = str(NODE / "ask.cjs")
        found = json.loads(await output(["node", script, str(node_modules())], json.dumps(told)))
        assert isinstance(found, dict)
        return found


class Curl:
    """curl: no SDK at all."""

    lacks = frozenset({"retries"})

    async def chat(self, url: str, body: Mapping[str, Any], *, retries: int = 0) -> Said:
        assert not retries
        status, content = await self._post(f"{url}/chat/completions", body)
        if status >= 400:
            return Said(error=json.loads(content)["error"]["type"], status=status)
        if not body.get("stream"):
            return read(json.loads(content))
        events = [line.removeprefix("data: ") for line in content.splitlines() if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        if "error" in chunks[-1]:
            return Said(error=chunks[-1]["error"]["type"])
        return gathered(chunks)

    async def embed(self, url: str, body: Mapping[str, Any]) -> Said:
        _, content = await self._post(f"{url}/embeddings", body)
        answer = json.loads(content)
        used = (answer["usage"]["prompt_tokens"], 0)
        return Said(vectors=[one["embedding"] for one in answer["data"]], usage=used)

    async def _post(self, url: str, body: Mapping[str, Any]) -> tuple[int, str]:
        options = ["-sS", "-N", "-H", "content-type: application/json", "-H", f"authorization: Bearer {KEY}"]
        command = ["curl", *options, "-w", "\n%{http_code}", "-d", "@-", url]
        content, _, status = (await output(command, json.dumps(body))).rpartition("\n")
        return int(status), content


class LangChain:
    """``langchain-openai``."""

    lacks = frozenset({"n, streamed"})

    async def chat(self, url: str, body: Mapping[str, Any], *, retries: int = 0) -> Said:
        asked = dict(body)
        messages, model, stream = asked.pop("messages"), asked.pop("model"), asked.pop("stream", False)
        asked.pop("stream_options", None)
        unknown = {name: asked.pop(name) for name in list(asked) if name == "metadata" or name.startswith("x_")}
        made = ChatOpenAI(
            model=model, base_url=url, api_key=SecretStr(KEY), max_retries=retries, stream_usage=True,
            extra_body=unknown or None,
        )  # fmt: skip
        try:
            if stream:
                parts = [part async for part in made.bind(**asked).astream(messages)]
                whole: Any = parts[0]
                for part in parts[1:]:
                    whole += part
                answers = [whole]
            elif asked.get("n"):
                converted = made._convert_input(messages).to_messages()
                results = await made.agenerate([converted], **asked)
                answers = [one.message for one in results.generations[0]]  # type: ignore[union-attr]
                answers[0].usage_metadata = _counted((results.llm_output or {}).get("token_usage"))
            else:
                answers = [await made.bind(**asked).ainvoke(messages)]
        except openai.APIError as error:  # a class of its own, below one of the SDK that it stands on
            name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] == "openai")
            return Said(error=name, status=getattr(error, "status_code", None))
        used = answers[0].usage_metadata
        logprobs = answers[0].response_metadata.get("logprobs")
        return Said(
            texts=[str(answer.text) for answer in answers],
            calls=[(call["name"], call["args"]) for answer in answers for call in answer.tool_calls]
            + [(call["name"], call["args"]) for answer in answers for call in answer.invalid_tool_calls],
            usage=(used["input_tokens"], used["output_tokens"]) if used else None,
            tokens=[one["token"] for one in logprobs["content"]] if logprobs else None,
        )

    async def embed(self, url: str, body: Mapping[str, Any]) -> Said:
        told: dict[str, Any] = {"base_url": url, "api_key": KEY, "check_embedding_ctx_length": False}
        made = OpenAIEmbeddings(model=body["model"], max_retries=0, **told)
        return Said(vectors=await made.aembed_documents(list(body["input"])))


class PydanticAI:
    """``pydantic-ai``."""

    lacks = frozenset({"n", "n, streamed"})

    async def chat(self, url: str, body: Mapping[str, Any], *, retries: int = 0) -> Said:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=retries) as client:
            model = OpenAIChatModel(body["model"], provider=OpenAIProvider(openai_client=client))
            told: dict[str, Any] = {
                "messages": [_message(message) for message in body["messages"]],
                "model_settings": _settings(body),
                "model_request_parameters": _parameters(body),
            }
            try:
                if not body.get("stream"):
                    return _said(await model_request(model, **told))
                async with model_request_stream(model, **told) as events:
                    async for _ in events:
                        pass
                return _said(events.get())
            except ModelHTTPError as error:
                return Said(error=type(error).__name__, status=error.status_code)
            except ModelAPIError as error:
                return Said(error=type(error).__name__)

    async def embed(self, url: str, body: Mapping[str, Any]) -> Said:
        provider = OpenAIProvider(base_url=url, api_key=KEY)
        found = await Embedder(OpenAIEmbeddingModel(body["model"], provider=provider)).embed_documents(body["input"])
        return Said(vectors=[list(one) for one in found.embeddings], usage=(found.usage.input_tokens, 0))


CLIENTS: dict[str, Client] = {
    "openai": OpenAIPython(),
    "openai-node": OpenAINode(),
    "langchain-openai": LangChain(),
    "pydantic-ai": PydanticAI(),
    "curl": Curl(),
}


def node_modules() -> Path:
    """Return the folder with the Node SDKs; without it a test is skipped."""
    named = os.environ.get("TRACEROUTER_NODE_SDK")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = hashlib.sha256((NODE / "package.json").read_bytes()).hexdigest()
    found = Path(named) if named else caches / "tracerouter" / "node" / wanted
    if shutil.which("node") is None or not (found / "node_modules").is_dir():
        pytest.skip("the Node SDK is not installed: install Node 20 or later with npm, and run .ci/node-sdk")
    return found


async def output(command: list[str], told: str) -> str:
    """Run a program, and return what it writes."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    written, problems = await process.communicate(told.encode())
    assert process.returncode == 0, problems.decode()
    return written.decode()


def read(answer: Mapping[str, Any]) -> Said:
    """Read a plain answer in OpenAI's own shape."""
    messages = [choice["message"] for choice in answer["choices"]]
    logprobs, used = answer["choices"][0].get("logprobs"), answer["usage"]
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    return Said(
        texts=[message.get("content") or "" for message in messages],
        calls=[(call["name"], _parsed(call["arguments"])) for call in calls],
        usage=(used["prompt_tokens"], used["completion_tokens"]),
        tokens=[one["token"] for one in logprobs["content"]] if logprobs else None,
    )


def gathered(chunks: list[Any]) -> Said:
    """Put the chunks of a stream together, as an application does by hand."""
    texts: dict[int, str] = {}
    calls: dict[int, list[str]] = {}
    said = Said()
    for chunk in chunks:
        if chunk.get("usage"):
            said.usage = (chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"])
        for choice in chunk["choices"]:
            delta, at = choice["delta"], choice["index"]
            texts[at] = texts.get(at, "") + (delta.get("content") or "")
            for call in delta.get("tool_calls") or ():
                name, arguments = calls.get(call["index"], ["", ""])
                function = call.get("function") or {}
                calls[call["index"]] = [
                    name + (function.get("name") or ""),
                    arguments + (function.get("arguments") or ""),
                ]
            for one in (choice.get("logprobs") or {}).get("content") or ():
                said.tokens = [*(said.tokens or ()), one["token"]]
    said.texts = [texts[at] for at in sorted(texts)]
    said.calls = [(name, _parsed(arguments)) for name, arguments in calls.values()]
    return said


def _parsed(arguments: str) -> Any:
    """Return arguments as values; as they are, where they are no JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _counted(told: Any) -> Any:
    return told and {"input_tokens": told["prompt_tokens"], "output_tokens": told["completion_tokens"]}


def _message(message: dict[str, Any]) -> ModelMessage:
    content = message["content"]
    if message["role"] == "assistant":
        calls = [(call["id"], call["function"]) for call in message["tool_calls"]]
        return ModelResponse([ToolCallPart(one["name"], one["arguments"], tool_call_id=id_) for id_, one in calls])
    if message["role"] == "tool":
        return ModelRequest([ToolReturnPart("look_up", content, tool_call_id=message["tool_call_id"])])
    if message["role"] == "system":
        return ModelRequest([SystemPromptPart(content)])
    if isinstance(content, list):
        content = [part["text"] if part["type"] == "text" else ImageUrl(part["image_url"]["url"]) for part in content]
    return ModelRequest([UserPromptPart(content)])


def _settings(body: Mapping[str, Any]) -> OpenAIChatModelSettings:
    known = {"seed": "seed", "stop": "stop_sequences", "logprobs": "openai_logprobs", "user": "openai_user"}
    known["temperature"] = "temperature"
    told: Any = {ours: body[name] for name, ours in known.items() if name in body}
    told["extra_body"] = {name: body[name] for name in body if name == "metadata" or name.startswith("x_")}
    if isinstance(body.get("tool_choice"), dict):
        told["tool_choice"] = [body["tool_choice"]["function"]["name"]]
    settings: OpenAIChatModelSettings = told
    return settings


def _parameters(body: Mapping[str, Any]) -> ModelRequestParameters:
    functions = [tool["function"] for tool in body.get("tools") or ()]
    tools = [ToolDefinition(name=one["name"], parameters_json_schema=one["parameters"]) for one in functions]
    wanted = body.get("response_format")
    if wanted is None:
        return ModelRequestParameters(function_tools=tools)
    if wanted["type"] == "json_object":
        shape = OutputObjectDefinition(json_schema={"type": "object", "properties": {}})
        return ModelRequestParameters(output_mode="prompted", output_object=shape, prompted_output_template=False)
    named = wanted["json_schema"]
    shape = OutputObjectDefinition(json_schema=named["schema"], name=named["name"])
    return ModelRequestParameters(output_mode="native", output_object=shape)


def _said(response: ModelResponse) -> Said:
    details = response.provider_details or {}
    return Said(
        texts=["".join(part.content for part in response.parts if isinstance(part, TextPart))],
        calls=[
            (one.tool_name, _parsed(one.args) if isinstance(one.args, str) else one.args)
            for one in response.parts
            if isinstance(one, ToolCallPart)
        ],
        usage=(response.usage.input_tokens, response.usage.output_tokens),
        tokens=[one["token"] for one in details["logprobs"]] if "logprobs" in details else None,
    )
