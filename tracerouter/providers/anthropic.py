"""Anthropic's Messages API, or any server that speaks it, asked and answering as OpenAI's chat completions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from tracerouter.errors import AnswerLost, RequestRejected
from tracerouter.providers.http import are_counts, are_objects, decoded, demand, posted, streamed
from tracerouter.providers.images import image_tokens
from tracerouter.providers.messages import translated
from tracerouter.types import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import aiohttp

    from tracerouter.protocols import Sink
    from tracerouter.providers.messages import Translated
    from tracerouter.types import Call, Meter

VERSION = "2023-06-01"
"""Of the API. The next one, 2026-10-21, takes no sampling parameters from any model."""

_MAY_TURN_DOWN = ("temperature", "top_p", "tool_choice")
_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
}
_TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class AnthropicProvider:
    """Asks a server of the Messages API, once a call; retries and time limits are the caller's.

    Newer models take neither sampling parameters nor forced tools, and say so with a 400, which costs nothing. Such a
    call is asked again without, and the next ones leave out from the start what this model turned down.

    Args:
        base_url: Up to and without ``/v1/messages``, such as ``https://api.anthropic.com``.
        api_key: Sent as ``x-api-key``. None: no key is sent.
        session: Returns the HTTP session to use. It is not closed here.
    """

    max_choices = 1
    image_tokens = staticmethod(image_tokens)

    def __init__(self, base_url: str, api_key: str | None, session: Callable[[], aiohttp.ClientSession]) -> None:
        self._url = f"{base_url.rstrip('/')}/v1/messages"
        self._headers = {"anthropic-version": VERSION} | ({} if api_key is None else {"x-api-key": api_key})
        self._session = session
        self._turned_down: set[str] = set()

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        """Ask the model once; the answer is streamed from the server exactly where there is a `sink`.

        The sink gets text and tool calls as OpenAI's chunks, and of an answer to a schema only the JSON. Thinking is
        billed, and not told.

        Raises:
            ProviderError: There is no answer; ``tracerouter.providers.http`` has the table.
            TimeoutError: The session's own time limit passed.
        """
        while True:
            request = translated(call.body, self._turned_down)
            try:
                return await self._ask(request, call.headers, meter, sink)
            except RequestRejected as error:
                named = _turned_down(request, error)
                if named is None:
                    raise
                self._turned_down.add(named)

    async def _ask(
        self, request: Translated, headers: Mapping[str, str], meter: Meter, sink: Sink | None
    ) -> Completion:
        body = request.body if sink is None else {**request.body, "stream": True}
        async with posted(self._session(), self._url, body, {**headers, **self._headers}, meter) as answer:
            if sink is None or answer.is_json:  # errors come plain
                return plain(await answer.whole(), meter, request.answer_tool)
            return await streamed(answer, Stream(meter, request.answer_tool), sink)


def _turned_down(request: Translated, error: RequestRejected) -> str | None:
    """Return what of `request` we can do without, if that is what the 400 names."""
    if error.status != 400:  # noqa: PLR2004 - HTTP's own number
        return None
    for name in _MAY_TURN_DOWN:
        ours = name != "tool_choice" or request.answer_tool is not None  # a caller's own choice is not ours to drop
        if ours and name in request.body and re.search(rf"\b{name}\b", str(error)):
            return name
    return None


@dataclass
class _Block:
    """One block of an answer: text, thinking, or a tool call with its arguments as JSON text."""

    kind: str
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    index: int = 0
    """Among the tool calls."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def call(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.text or "{}"}
        return {"id": self.id, "type": "function", "function": function}


def _block(told: Mapping[str, Any]) -> _Block:
    kind = told.get("type")
    demand(isinstance(kind, str), "has a block without a type")
    texts = [told.get(name, "") for name in ("id", "name")]
    demand(all(isinstance(text, str) for text in texts), "has a block whose name is no text")
    return _Block(str(kind), *texts)


def plain(raw: bytes, meter: Meter, answer_tool: str | None = None) -> Completion:
    """Read a whole answer; `meter` is told of its usage and its output.

    Args:
        raw: The answer.
        meter: Of its call.
        answer_tool: The tool whose input is the answer, if there is one.

    Raises:
        ProviderError: It is none.
    """
    message = decoded(raw)
    demand(are_objects(message.get("content")), "has no list of blocks")
    blocks = [_whole(told) for told in message["content"]]
    for block in blocks:
        if block.text:
            meter.received(block.text)
    usage = _usage(message.get("usage"))
    if usage is not None:
        meter.reported(usage)
    return _completion(message, blocks, usage, answer_tool)


def _whole(told: Mapping[str, Any]) -> _Block:
    block = _block(told)
    text = told.get(block.kind, "")
    if block.kind == "tool_use" and told.get("input"):
        text = orjson.dumps(told["input"]).decode()
    demand(isinstance(text, str), "has a text that is no text")
    return _Block(block.kind, block.id, block.name, [text])


class Stream:
    """An answer that is arriving, event by event; `meter` is told of its usage and its output.

    Args:
        meter: Of its call.
        answer_tool: The tool whose input is the answer, if there is one.
    """

    def __init__(self, meter: Meter, answer_tool: str | None = None) -> None:
        self.meter = meter
        self._answer_tool = answer_tool
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}
        self._usage: dict[str, Any] = {}
        self._opened = False
        self.ended = False
        """Whether the server has said that this was all."""

    def take(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take an event's data; return what it adds to the answer, as OpenAI's chunks.

        Raises:
            ProviderError: It is no event of an answer, or tells of an error.
        """
        for delta in self._deltas(decoded(data)):
            if not self._opened:
                self._opened, delta["role"] = True, "assistant"
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield {**_identity(self._message), "object": "chat.completion.chunk", "choices": [choice]}

    def completion(self) -> Completion:
        """Return the answer as if it had come whole.

        Raises:
            AnswerLost: It ended too early.
        """
        if not self.ended and self._message.get("stop_reason") is None:
            msg = "the stream ended before the answer did"
            raise AnswerLost(msg)
        blocks = [self._blocks[index] for index in sorted(self._blocks)]
        return _completion(self._message, blocks, _usage(self._usage), self._answer_tool)

    def _deltas(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Return what an event adds to the answer, as OpenAI's deltas. Unknown events are no mistake."""
        match event.get("type"):
            case "message_start":
                self._message = _object(event, "message")
                self._count(self._message)
            case "content_block_start":
                yield from self._start(_index(event), _object(event, "content_block"))
            case "content_block_delta":
                yield from self._grow(_index(event), _object(event, "delta"))
            case "content_block_stop":
                yield from self._stop(_index(event))
            case "message_delta":
                self._message = {**self._message, **_object(event, "delta")}
                self._count(event)
            case "message_stop":
                self.ended = True

    def _start(self, index: int, told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        calls = sum(block.kind == "tool_use" for block in self._blocks.values())
        block = self._blocks[index] = _block(told)
        block.index = calls
        if block.kind == "tool_use":
            if not self._is_answer(block):
                function = {"name": block.name, "arguments": ""}
                yield {"tool_calls": [{"index": calls, "id": block.id, "type": "function", "function": function}]}
        elif told.get(block.kind):  # it may begin with text
            yield from self._grow(index, {"type": f"{block.kind}_delta", block.kind: told[block.kind]})

    def _grow(self, index: int, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        demand(index in self._blocks, "goes on with a block that it did not start")
        kind = delta.get("type")
        if kind not in _TEXTS:
            return
        text, block = delta.get(_TEXTS[kind]), self._blocks[index]
        demand(isinstance(text, str), "has a text that is no text")
        if not text:
            return
        block.pieces.append(text)
        self.meter.received(text)
        yield from self._told(block, text)

    def _stop(self, index: int) -> Iterator[dict[str, Any]]:
        block = self._blocks.get(index)
        if block is not None and block.kind == "tool_use" and not block.pieces:
            yield from self._told(block, "{}")

    def _told(self, block: _Block, text: str) -> Iterator[dict[str, Any]]:
        if block.kind == "tool_use":
            call = {"index": block.index, "function": {"arguments": text}}
            yield {"content": text} if self._is_answer(block) else {"tool_calls": [call]}
        elif block.kind == "text" and self._answer_tool is None:  # else what counts is the JSON that follows
            yield {"content": text}

    def _is_answer(self, block: _Block) -> bool:
        return self._answer_tool is not None and block.name == self._answer_tool

    def _count(self, told: Mapping[str, Any]) -> None:
        """Tell the meter the usage in an event; its counts are cumulative, and the last to come are whole."""
        found = told.get("usage")
        if not isinstance(found, dict):
            return
        self._usage |= {name: value for name, value in found.items() if value is not None}
        usage = _usage(self._usage)
        if usage is None:
            return
        if self._message.get("stop_reason") is None:
            self.meter.begun(usage)
        else:
            self.meter.reported(usage)


def _completion(
    message: Mapping[str, Any], blocks: Sequence[_Block], usage: Usage | None, answer_tool: str | None
) -> Completion:
    """Make OpenAI's body of an answer; of an answer to a schema, the tool's input is the text."""
    reason = message.get("stop_reason")
    calls = [block for block in blocks if block.kind == "tool_use"]
    answers = [block for block in calls if answer_tool is not None and block.name == answer_tool]
    said = "".join(block.text for block in blocks if block.kind == "text")
    told: dict[str, Any] = {"role": "assistant", "content": said or None, "refusal": _refusal(message)}
    if answers:
        told["content"] = answers[0].text or "{}"
    elif calls:
        told["tool_calls"] = [block.call for block in calls]
    finish = _FINISH.get(str(reason), "stop")
    if finish == "tool_calls" and not told.get("tool_calls"):
        finish = "stop"
    choice = {"index": 0, "message": told, "finish_reason": finish}
    body = {**_identity(message), "object": "chat.completion", "choices": [choice]}
    return Completion(body) if usage is None else Completion(body).with_usage(usage)


def _refusal(message: Mapping[str, Any]) -> str | None:
    """Return why the model declined, where it says so."""
    details = message.get("stop_details")
    why = details.get("explanation") if isinstance(details, dict) else None
    return why if isinstance(why, str) and message.get("stop_reason") == "refusal" else None


def _identity(message: Mapping[str, Any]) -> dict[str, str]:
    return {name: message[name] for name in ("id", "model") if isinstance(message.get(name), str)}


def _usage(told: object) -> Usage | None:
    """Read a ``usage`` object; None where it is missing or holds nonsense.

    Its ``input_tokens`` are those that were neither read from the cache nor written to it; ours are all of them.
    """
    if not isinstance(told, dict):
        return None
    written, thought = told.get("cache_creation") or {}, told.get("output_tokens_details") or {}
    if not isinstance(written, dict) or not isinstance(thought, dict):
        return None
    plain, output = told.get("input_tokens", -1), told.get("output_tokens", -1)
    read, write = (told.get(f"cache_{name}_input_tokens") or 0 for name in ("read", "creation"))
    hour, thinking = written.get("ephemeral_1h_input_tokens") or 0, thought.get("thinking_tokens") or 0
    if not are_counts((plain, output, read, write, hour, thinking)):
        return None
    return Usage(plain + read + write, output, read, thinking, write, hour)


def _object(event: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = event.get(name)
    if not isinstance(found, dict):
        msg = f"the answer has an event without {name}"
        raise AnswerLost(msg)
    return found


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    if type(index) is not int:
        msg = "the answer has a block without an index"
        raise AnswerLost(msg)
    return index
