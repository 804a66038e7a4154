"""Any server that speaks OpenAI's chat completions, or embeddings: OpenAI, vLLM, llama.cpp, Ollama, other gateways."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from tracerouter.errors import AnswerLost, RequestRejected
from tracerouter.providers.http import (
    MAX_STREAM_BYTES,
    are_objects,
    decoded,
    demand,
    posted,
    streamed,
    usage_of,
)
from tracerouter.types import CHAT, EMBEDDINGS, Completion, content_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import aiohttp

    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Meter

_DONE = b"[DONE]"
_CACHE = "cache_control"
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_NEVER_JOINED = frozenset({"role", "id", "type", "name"})


class OpenAIProvider:
    """Asks an OpenAI-compatible server, once a call; retries and time limits are the caller's.

    Some servers know ``cache_control``, and others turn it down with a 400, which costs nothing. Such a call is asked
    again without, and the next ones leave it out from the start: it changes no answer.

    Args:
        base_url: Up to and without ``/chat/completions``, such as ``https://api.openai.com/v1``.
        api_key: Sent as a bearer token. None: no ``authorization`` is sent.
        session: Returns the HTTP session to use. It is not closed here.
    """

    operations = (CHAT, EMBEDDINGS)

    def __init__(self, base_url: str, api_key: str | None, session: Callable[[], aiohttp.ClientSession]) -> None:
        self._urls = {
            CHAT: f"{base_url.rstrip('/')}/chat/completions",
            EMBEDDINGS: f"{base_url.rstrip('/')}/embeddings",
        }
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._session = session
        self._uncached = False

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        """Ask the model once; the answer is streamed from the server exactly where there is a `sink`.

        The sink gets the chunks with output, without usage and finish reasons, the role in each choice's
        first. A refusal alone is not pushed, so that another model can still be asked; it stands in the
        Completion. Where the server does not stream, nothing is pushed.

        Raises:
            ProviderError: There is no answer; ``tracerouter.providers.http`` has the table.
            TimeoutError: The session's own time limit passed.
        """
        if not self._uncached:
            try:
                return await self._ask(call, call.body, meter, sink)
            except RequestRejected as error:
                named = error.status == 400 and _CACHE in str(error)  # noqa: PLR2004 - HTTP's own number
                if not named or _without_cache_control(call.body) == call.body:
                    raise
                self._uncached = True
        return await self._ask(call, _without_cache_control(call.body), meter, sink)

    async def _ask(self, call: Call, body: Mapping[str, Any], meter: Meter, sink: Sink | None) -> Completion:
        asked = body if sink is None else {**body, **_STREAMED}
        headers = {**call.headers, **self._headers}
        async with posted(self._session(), self._urls[call.operation], asked, headers, meter) as answer:
            if call.operation == EMBEDDINGS:
                return _embedded(await answer.whole(MAX_STREAM_BYTES), meter)
            if sink is None or answer.is_json:  # some servers can't stream, and errors often come plain
                return plain(await answer.whole(), meter)
            return await streamed(answer, Stream(meter), sink)


def _without_cache_control(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `body` without it where a request may have it: on the whole, messages, their parts, and tools."""

    def without(found: Any) -> Any:
        return {name: value for name, value in found.items() if name != _CACHE} if isinstance(found, dict) else found

    told: dict[str, Any] = without({**body})
    for name in ("messages", "tools"):
        if isinstance(body.get(name), list):
            told[name] = [without(one) for one in body[name]]
    for message in told.get("messages") or ():
        if isinstance(message.get("content"), list):
            message["content"] = [without(part) for part in message["content"]]
    return told


def plain(raw: bytes, meter: Meter) -> Completion:
    """Read a whole answer; `meter` is told of its usage and its output.

    Raises:
        ProviderError: It is none.
    """
    body = decoded(raw)
    messages = _parts(body, "message")
    demand(messages, "has no choices")
    for message in messages:
        for text in _output(message):
            meter.received(text)
    _report(body, meter)
    return Completion(body)


def _embedded(raw: bytes, meter: Meter) -> Completion:
    body = decoded(raw)
    demand(are_objects(body.get("data")), "has no list of embeddings")
    told = body.get("usage")
    if isinstance(told, dict):
        usage = usage_of({**told, "completion_tokens": 0})
        if usage is not None:
            meter.reported(usage)
    return Completion(body)


class Stream:
    """An answer that is arriving, event by event; `meter` is told of its usage and its output."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._chunks: list[dict[str, Any]] = []
        self._opened: set[int] = set()
        self._usage: object = None
        self.ended = False
        """Whether the server has said that this was all."""

    def take(self, data: bytes) -> list[dict[str, Any]]:
        """Take an event's data; return the chunks that a sink gets of it.

        Raises:
            ProviderError: It is no event of an answer, or tells of an error.
        """
        if data.strip() == _DONE:
            self.ended = True
            return []
        chunk = decoded(data)
        for delta in _parts(chunk, "delta"):
            for text in _output(delta):
                self.meter.received(text)
        _report(chunk, self.meter)
        self._usage = chunk.pop("usage", None) or self._usage
        self._chunks.append(chunk)
        shown = _shown(chunk, self._opened)
        return [] if shown is None else [shown]

    def completion(self) -> Completion:
        """Return the answer as if it had come whole.

        Raises:
            AnswerLost: It ended too early, or is none.
        """
        completion = _assembled(self._chunks, self._usage)
        if not self.ended and not all(choice.get("finish_reason") for choice in completion.body["choices"]):
            msg = "the stream ended before the answer did"
            raise AnswerLost(msg)
        return completion


def _shown(chunk: Mapping[str, Any], opened: set[int]) -> dict[str, Any] | None:
    """Return what of `chunk` a sink gets, or None; `opened` holds the choices that it got something of."""
    shown = []
    for choice in chunk["choices"]:
        delta, index = choice.get("delta") or {}, choice.get("index", 0)
        told = {name for name, value in delta.items() if value} - {"role"}
        if not told or (told == {"refusal"} and index not in opened):
            continue
        if index not in opened:
            opened.add(index)
            delta = {**delta, "role": delta.get("role") or "assistant"}
        shown.append({**choice, "delta": delta, "finish_reason": None})
    return {**chunk, "choices": shown} if shown else None


def _assembled(chunks: list[dict[str, Any]], usage: object) -> Completion:
    try:
        body = _merged(chunks, join=False) or {}
    except RecursionError:
        msg = "the answer is nested too deeply"
        raise AnswerLost(msg) from None
    demand(body.get("choices"), "has no choices")
    for choice in body["choices"]:
        message = {"content": None, **(choice.pop("delta", None) or {})}
        message["role"] = message.get("role") or "assistant"
        if message.get("tool_calls"):
            message["tool_calls"] = [_without_index(call) for call in message["tool_calls"]]
        choice["message"] = message
    body["object"] = "chat.completion"
    return Completion(body if usage is None else {**body, "usage": usage})


def _merged(values: list[Any], *, join: bool) -> Any:
    """Make one value of those that a stream gave for it: objects by name, lists by their items' ``index``.

    Args:
        values: In the order in which they came; None counts as not given.
        join: Whether strings are pieces of one; otherwise the first that is not empty stands.
    """
    given = [value for value in values if value is not None]
    if not given:
        return None
    if all(isinstance(value, dict) for value in given):
        names = dict.fromkeys(chain.from_iterable(given))
        return {
            name: _merged(
                [value.get(name) for value in given],
                join=(join or name == "delta") and name not in _NEVER_JOINED,
            )
            for name in names
        }
    if all(isinstance(value, list) for value in given):
        return _merged_lists(given, join=join)
    if join and all(isinstance(value, str) for value in given):
        return "".join(given)
    return next((value for value in given if value), given[0])


def _merged_lists(lists: list[list[Any]], *, join: bool) -> list[Any]:
    items = list(chain.from_iterable(lists))
    if not all(isinstance(item, dict) and isinstance(item.get("index"), int) for item in items):
        return items
    by_index: dict[int, list[Any]] = {}
    for item in items:
        by_index.setdefault(item["index"], []).append(item)
    return [_merged(by_index[index], join=join) for index in sorted(by_index)]


def _without_index(call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "index"}


def _report(body: dict[str, Any], meter: Meter) -> None:
    """Tell the meter the usage in `body`; nonsense is taken out, since nobody could use it."""
    usage = usage_of(body.get("usage"))
    if usage is None:
        body.pop("usage", None)
    else:
        meter.reported(usage)


def _parts(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the ``message`` or ``delta`` of each choice, checked for all that is read of it later.

    Raises:
        AnswerLost: The answer is of the wrong shape.
    """
    choices = body.get("choices")
    demand(are_objects(choices), "has no list of choices")
    parts = []
    for choice in choices or ():
        demand(type(choice.setdefault("index", 0)) is int, "has an index that is no number")
        part = choice.get(name)
        if name == "delta":  # the last chunk of a choice may go without
            part = part or {}
        demand(isinstance(part, dict), f"has a choice without {name}")
        _check(part)
        parts.append(part)
    return parts


def _check(part: Mapping[str, Any]) -> None:
    demand(isinstance(part.get("tool_calls") or [], list), "has tool calls that are no list")
    calls = [*(part.get("tool_calls") or ()), {"function": part.get("function_call")}]
    demand(are_objects(calls), "has tool calls that are no objects")
    functions = [call.get("function") or {} for call in calls]
    demand(are_objects(functions), "calls a function that is no object")
    texts = [part.get(name) for name in _TEXTS if not are_objects(part.get(name))]
    texts += [function.get("arguments") for function in functions]
    demand(all(text is None or isinstance(text, str) for text in texts), "has a text that is no text")


def _output(part: Mapping[str, Any]) -> Iterator[str]:
    """Return all text in a message or delta that the model wrote, and bills as output."""
    for name in _TEXTS:
        if text := content_text(part.get(name)):
            yield text
    for call in (*(part.get("tool_calls") or ()), {"function": part.get("function_call")}):
        if arguments := (call.get("function") or {}).get("arguments"):
            yield arguments
