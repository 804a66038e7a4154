"""The README's code does what the README says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tracerouter
from tests.gateway import openai_models, write
from tests.upstream import Upstream
from tracerouter import Completion, Task
from tracerouter.validators import Custom

README = Path(__file__).parents[2] / "README.md"


def python_of(part: str) -> str:
    """Return the README's Python block that holds `part`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if part in block)
    return str(found)


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
