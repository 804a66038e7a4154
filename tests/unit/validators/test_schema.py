"""Whether an answer is JSON of the right shape, and what is said where it is not."""

from __future__ import annotations

from typing import Any

import pytest

from tracerouter.errors import BadRequest
from tracerouter.types import Check, Completion, Reason, Task
from tracerouter.validators import JsonObject, JsonSchema
from tracerouter.validators.schema import SCHEMA_PARAM

TASK = Task.chat("Who was born when?")
PEOPLE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "years": {"type": "array", "items": {"type": "integer"}}},
                "required": ["name"],
            },
        }
    },
    "required": ["people"],
}


def said(text: str) -> Completion:
    return Completion.of(text, model="m")


async def checked(text: str, schema: dict[str, Any] | None = PEOPLE) -> Check:
    return await JsonSchema(schema).validate(TASK, said(text))


async def found(text: str, schema: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(failure.path, failure.detail) for failure in (await checked(text, schema)).failures]


async def test_a_right_answer_passes() -> None:
    """JSON that the schema accepts passes as it stands."""
    check = await checked('{"people": [{"name": "Ada", "years": [1815, 1852]}]}')
    assert (check.status, check.failures, check.repaired) == ("passed", (), None)


@pytest.mark.parametrize(
    ("text", "failures"),
    [
        ("{}", [("$", "required")]),
        ("[]", [("$", "type")]),
        ('{"people": [{"name": "Ada"}, {"years": [1815, "1852"]}]}', [("$.people[1]", "required")]),
        ('{"people": [{"name": 1}, {"name": "B", "years": [1, "2", 3, 4.5]}]}', [("$.people[0].name", "type")]),
    ],
)
async def test_a_wrong_answer_fails_with_place_and_keyword(text: str, failures: list[tuple[str, str]]) -> None:
    """Each failure names the place in the answer, also inside nested lists, and the keyword that failed."""
    check = await checked(text)
    assert check.status == "failed"
    assert {failure.code for failure in check.failures} == {Reason.SCHEMA_INVALID}
    assert set(failures) <= {(failure.path, failure.detail) for failure in check.failures}


async def test_every_failure_is_found_at_once() -> None:
    """All that is wrong is told together, so that the next model can mend all of it."""
    text = '{"people": [{"name": 1}, {"years": [1, "2", 3, 4.5]}]}'
    assert set(await found(text, PEOPLE)) == {
        ("$.people[0].name", "type"),
        ("$.people[1]", "required"),
        ("$.people[1].years[1]", "type"),
        ("$.people[1].years[3]", "type"),
    }


@pytest.mark.parametrize(
    ("schema", "text", "keyword"),
    [
        ({"enum": ["a", "b"]}, '"c"', "enum"),
        ({"const": 1}, "2", "const"),
        ({"pattern": "^x"}, '"y"', "pattern"),
        ({"minLength": 3}, '"y"', "minLength"),
        ({"maximum": 3}, "4", "maximum"),
        ({"uniqueItems": True}, "[1, 1]", "uniqueItems"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "1", "anyOf"),
        ({"additionalProperties": False, "properties": {"a": {}}}, '{"b": 1}', "additionalProperties"),
    ],
)
async def test_the_detail_is_the_keyword(schema: dict[str, Any], text: str, keyword: str) -> None:
    """The detail of a failure is the JSON Schema keyword."""
    assert await found(text, schema) == [("$", keyword)]


async def test_the_detail_is_never_a_name_of_the_callers() -> None:
    """A property that a schema forbids does not put its own name where a keyword stands."""
    schema = {"properties": {"secret_project": False}}
    assert await found('{"secret_project": 1}', schema) == [("$.secret_project", "falseSchema")]


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"people": []}\n```',
        '```\n{"people": []}\n```\n',
        '{"people": [],}',
        "{'people': []}",
        "{people: []}",
        '{"people": []',
        'Here you are: {"people": []} I hope it helps.',
        '\ufeff{"people": []}',
    ],
)
async def test_almost_json_is_repaired(text: str) -> None:
    """What is JSON but for a slip is repaired, and the answer to go on with is clean JSON."""
    check = await checked(text)
    assert (check.status, check.failures) == ("repaired", ())
    assert check.repaired is not None
    assert check.repaired.text == '{"people":[]}'


async def test_a_repair_keeps_the_rest_of_the_answer() -> None:
    """Only the text changes: model, finish reason and usage stay."""
    answer = Completion({**said("{'people': []}").body, "id": "x", "usage": {"prompt_tokens": 3}})
    check = await JsonSchema(PEOPLE).validate(TASK, answer)
    assert check.repaired is not None
    assert check.repaired == answer.with_text('{"people":[]}')
    assert answer.text == "{'people': []}"


async def test_a_repaired_answer_of_the_wrong_shape_fails() -> None:
    """Repairing helps with the syntax alone: the schema still has its say."""
    check = await checked("{'persons': []}")
    assert (check.status, check.repaired) == ("failed", None)
    assert [failure.detail for failure in check.failures] == ["required"]


@pytest.mark.parametrize(
    "text", ["", "   ", "There was nobody of that name.", "lorem ipsum " * 2000, "\ud800", '{"people": ["\ud800"]}']
)
@pytest.mark.parametrize("schema", [PEOPLE, {}])
async def test_what_is_no_json_is_told_so(text: str, schema: dict[str, Any]) -> None:
    """A text in which no JSON can be found fails as ``not_json``, whatever the schema."""
    assert await found(text, schema) == [("$", "not_json")]


@pytest.mark.parametrize("opening", ["[", '{"a":', "[[", '[{"a":'])
@pytest.mark.parametrize("times", [300, 2_000, 100_000])
async def test_endless_nesting_is_an_ordinary_failure(opening: str, times: int) -> None:
    """An answer nested without end fails, and nothing breaks."""
    check = await checked(opening * times)
    assert check.status == "failed"


async def test_endless_nesting_that_closes_is_an_ordinary_failure() -> None:
    """Well-formed JSON that is nested too deeply fails as well."""
    check = await checked("[" * 100_000 + "]" * 100_000, {})
    assert check.status == "failed"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ],
)
async def test_a_schema_that_refers_to_itself_ends(schema: dict[str, Any]) -> None:
    """References within the schema are followed, in a circle too."""
    assert (await checked('{"a": {"a": {}}}', schema)).status == "passed"


async def test_at_most_twenty_failures() -> None:
    """A thoroughly wrong answer is told in twenty failures."""
    failures = await found(str(["x"] * 500).replace("'", '"'), {"items": {"type": "integer"}})
    assert failures == [(f"$[{index}]", "type") for index in range(20)]


async def test_long_values_are_cut() -> None:
    """Neither message nor path grows with the answer."""
    check = await checked(f'{{"{"k" * 5000}": "{"v" * 5000}"}}', {"additionalProperties": {"type": "integer"}})
    (failure,) = check.failures
    assert (len(failure.message), len(failure.path)) == (200, 200)
    assert failure.message.endswith("...")


async def test_a_tool_call_without_text_is_skipped() -> None:
    """A tool call is no answer yet, so its missing text is not judged; text beside a tool call is."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
    silent = Completion({"choices": [{"message": call, "finish_reason": "tool_calls"}]})
    for validator in (JsonSchema(PEOPLE), JsonObject()):
        assert (await validator.validate(TASK, silent)).status == "skipped"
        assert (await validator.validate(TASK, silent.with_text("Let me look."))).status == "failed"


async def test_without_a_schema_all_is_skipped() -> None:
    """Where no schema is known nothing is said of the answer."""
    assert (await checked("no JSON", None)).status == "skipped"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strnig"},
        {"type": 5},
        {"required": "name"},
        {"pattern": "("},
        {"$ref": 5},
        {"$ref": "#/nowhere"},
        {"$schema": "https://example.org/unheard-of"},
        {"properties": {"a": {"minimum": "low"}}},
        {"const": 1 << 70},
    ],
)
def test_a_schema_that_is_none_is_the_callers_mistake(schema: dict[str, Any]) -> None:
    """A wrong schema is refused before any model is asked, and the field is named."""
    with pytest.raises(BadRequest, match="is no JSON Schema") as raised:
        JsonSchema(schema)
    assert raised.value.param == SCHEMA_PARAM
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"items": {"anyOf": [{}, {"$ref": "other.json#/a"}]}},
        {"$dynamicRef": "//example.org/x"},
        {"$ref": f"https://example.org/{'x' * 5000}"},
    ],
)
def test_a_reference_that_leaves_the_schema_is_refused(schema: dict[str, Any]) -> None:
    """No schema makes this process read a file or an address."""
    with pytest.raises(BadRequest, match="only references within the schema") as raised:
        JsonSchema(schema, param="tasks.x.schema")
    assert raised.value.param == "tasks.x.schema"
    assert len(str(raised.value)) < 300


async def test_a_property_may_be_called_ref() -> None:
    """A property by the name of ``$ref`` is no reference."""
    schema = {"properties": {"$ref": {"type": "string"}}}
    assert await found('{"$ref": 1}', schema) == [("$.$ref", "type")]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("{}", "passed"),
        ('{"any": ["thing"]}', "passed"),
        ("```json\n{}\n```", "repaired"),
        ("[1]", "failed"),
        ('"text"', "failed"),
        ("no", "failed"),
    ],
)
async def test_json_object(text: str, status: str) -> None:
    """``json_object`` takes any object, and nothing else."""
    check = await JsonObject().validate(TASK, said(text))
    assert (check.validator, check.status) == ("json_schema", status)


async def test_prose_with_brackets_is_no_json() -> None:
    """An aside in brackets does not make a list of an answer, however loose the schema is."""
    said = Completion.of("I can't [do] that, see [1].", model="m")
    check = await JsonSchema({}).validate(Task.chat("x"), said)
    assert (check.status, check.failures[0].detail) == ("failed", "not_json")
    fenced = Completion.of('Here it is:\n```json\n["a",]\n```', model="m")
    assert (await JsonSchema({}).validate(Task.chat("x"), fenced)).status == "repaired"
