"""A request to the Messages API as a chat request, and back again; answers are tested over sockets, with the SDK."""

from __future__ import annotations

from typing import Any

import pytest

from tracerouter.errors import BadRequest
from tracerouter.providers.messages import translated
from tracerouter.types import Task
from tracerouter.web.messages import chat_request

CACHED = {"cache_control": {"type": "ephemeral"}}
HI = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
LOOK_UP = {"name": "look_up", "description": "Looks up.", "input_schema": {"type": "object", "properties": {}}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"city": "Rom"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "31 °C"}]}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


def request(messages: object = None, **extra: Any) -> dict[str, Any]:
    return {"model": "claude", "max_tokens": 99, "messages": messages or HI, **extra}


@pytest.mark.parametrize(
    "asked",
    [
        request(temperature=0.5, metadata={"user_id": "u1"}),
        request(top_p=0.5, cache_control={"type": "ephemeral"}),
        request(system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", **CACHED}]),
        request(tools=[LOOK_UP, {**LOOK_UP, "name": "other", **CACHED}], tool_choice={"type": "auto"}),
        request(tools=[LOOK_UP], tool_choice={"type": "any", "disable_parallel_tool_use": True}),
        request(tools=[LOOK_UP], tool_choice={"type": "tool", "name": "look_up"}),
        request(tools=[LOOK_UP], tool_choice={"type": "none"}),
        request(
            [
                {"role": "user", "content": [{"type": "image", "source": PIXEL}, {"type": "text", "text": "Warm?"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "I look."}, CALL, {**CALL, "id": "toolu_2"}],
                },
                {
                    "role": "user",
                    "content": [RESULT, {**RESULT, "tool_use_id": "toolu_2"}, {"type": "text", "text": "Well?"}],
                },
            ],
            tools=[LOOK_UP],
        ),
        request(
            [*HI, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [RESULT]}], tools=[LOOK_UP]
        ),
        request(
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}, **CACHED}],
                }
            ]
        ),
    ],
)
def test_there_and_back_again(asked: dict[str, Any]) -> None:
    """What a chat request can say comes back the same from it: nothing is lost on the way to a model of Anthropic's."""
    assert translated(Task.parse(chat_request(asked)).body).body == asked


def test_plain_texts() -> None:
    """Texts alone are plain strings, which every OpenAI server takes."""
    asked = request(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, *HI], system="Be brief."
    )
    assert chat_request(asked)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Hi"},
    ]


def test_a_schema_is_asked_for_as_openai_does() -> None:
    """The shape of the answer becomes the response format, so that it is validated; a strict tool stays strict."""
    schema = {"type": "object", "required": ["id"]}
    task = Task.parse(chat_request(request(output_config={"format": {"type": "json_schema", "schema": schema}})))
    assert task.schema == schema
    assert chat_request(request(tools=[{**LOOK_UP, "strict": True}]))["tools"][0]["function"]["strict"] is True


@pytest.mark.parametrize(
    "asked",
    [
        request(thinking={"type": "adaptive"}),
        request(top_k=5),
        request(stop_sequences=["END"]),
        request(output_config={"effort": "low"}),
        request(metadata={"user_id": "u1", "other": 1}),
        request(service_tier="auto"),
        request(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
        request(tools=[{**LOOK_UP, "defer_loading": True}]),
        request(tool_choice={"type": "later"}),
        request([*HI, {"role": "assistant", "content": "The answer is"}]),
        request([{"role": "user", "content": [{"type": "document", "source": PIXEL}]}]),
        request([{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f1"}}]}]),
        request([{"role": "user", "content": [{"type": "text", "text": "Hi", "citations": {"enabled": True}}]}]),
        request([{"role": "user", "content": [{"type": "text", "text": "Hi"}, RESULT]}]),
        request([{"role": "user", "content": [{**RESULT, "is_error": True}]}]),
        request([{"role": "user", "content": [{**RESULT, "content": [{"type": "image", "source": PIXEL}]}]}]),
        request([*HI, {"role": "assistant", "content": [CALL, {"type": "text", "text": "!"}]}, *HI]),
        request([*HI, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}]}, *HI]),
        request([{"role": "system", "content": "Be brief."}, *HI]),
        request([{"role": "user", "content": []}]),
        request([{"role": "user", "content": "Hi", "name": "Ann"}]),
        request([{"role": "user", "content": 7}]),
        request(messages={"role": "user"}),
        request(system=7),
        request(["Hi"]),
        {"model": "claude"},
        [],
    ],
)  # fmt: skip
def test_what_would_be_lost_is_no_chat_request(asked: object) -> None:
    """What a chat request can't say, or what is none of the API's, is told apart instead of being left out."""
    with pytest.raises(BadRequest, match="can't be said"):
        chat_request(asked)


def test_what_is_none_is_not_given() -> None:
    """SDKs write ``null`` for what is not set; so it does not count as unknown."""
    assert chat_request(request(top_k=None, system=None, tool_choice=None)) == chat_request(request())
