"""What is sent to a model: the caller's request, as the policy and an escalation shape it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from tracerouter.types import Completion, Escalation, Rules, Task

_OURS = frozenset({"model", "stream", "stream_options", "max_tokens", "max_completion_tokens"})
_ANSWER_AGAIN = "Answer the request again in full. Keep what was right, and reply with the answer alone."
_CALL_AGAIN = "Answer the request again in full. That answer was tool calls: make the right ones, don't write them."
_LONGEST_QUOTE = 20_000
"""Characters of an earlier answer that are quoted to the model that repairs it."""


def compose(task: Task, rules: Rules, escalation: Escalation | None, *, model: str, limit_field: str) -> dict[str, Any]:
    """Make the OpenAI chat request for one model call.

    Args:
        task: The caller's request; fields that are not known here pass through.
        rules: The policy's prompt, schema and bound for the task.
        escalation: Why an earlier rung's answer does not do; the model is asked to repair it.
        model: As the provider names it.
        limit_field: The name under which the provider takes the bound on its answer.
    """
    body = {name: value for name, value in task.body.items() if name not in _OURS}
    body["model"] = model
    limits = [limit for limit in (task.max_output_tokens, rules.max_output_tokens) if limit is not None]
    if limits:
        body[limit_field] = min(limits)
    if rules.schema is not None and body.get("response_format") is None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": rules.schema}}
    if rules.prompt:
        body["messages"] = [{"role": "system", "content": rules.prompt}, *body["messages"]]
    if escalation is not None:
        body["messages"] = [*body["messages"], *_repair(escalation)]
    return body


def _repair(escalation: Escalation) -> list[dict[str, Any]]:
    """Hand over what there is to build on: nothing, where the earlier rung gave no answer and the cache held none."""
    messages: list[dict[str, Any]] = []
    said = []
    if escalation.rejected is not None:
        messages.append({"role": "assistant", "content": _quoted(escalation.rejected)})
        points = "\n".join(f"- {failure.path}: {failure.message}" for failure in escalation.failures)
        said.append(f"Automatic checks turned that answer down:\n{points}")
    if escalation.stale is not None:
        said.append(f"An earlier answer to the same request, possibly out of date:\n{_quoted(escalation.stale)}")
    if said:
        found = escalation.classification
        if not found.abstained:
            said.append(f"The request was classified as {found.label!r} with confidence {found.confidence:.2f}.")
        calls = escalation.rejected is not None and escalation.rejected.tool_calls and not escalation.rejected.text
        said.append(_CALL_AGAIN if calls else _ANSWER_AGAIN)
        messages.append({"role": "user", "content": "\n\n".join(said)})
    return messages


def _quoted(completion: Completion) -> str:
    text = completion.text or orjson.dumps(completion.tool_calls).decode()
    return text[:_LONGEST_QUOTE]
