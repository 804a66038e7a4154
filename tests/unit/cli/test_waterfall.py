"""``tracerouter trace`` draws every request that there is a row of, however it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.test_router import rig
from tracerouter.classifiers import Chain
from tracerouter.cli.waterfall import render
from tracerouter.types import Classification, Task


class Asking:
    """Asks a model of the router that it classifies for."""

    router: Any

    async def classify(self, _: Task) -> Classification:
        """Ask, and know nothing."""
        await self.router.ask("large", {"messages": [{"role": "user", "content": "well?"}]}, 60)
        raise AssertionError


class Kept:
    """Keeps the newest row, and its stages."""

    row: Any
    stages: Any

    def append(self, row: Any, stages: Any) -> bool:
        """Keep it."""
        self.row, self.stages = row, stages
        return True


async def test_a_caller_who_leaves_while_a_classifier_asks() -> None:
    """A request that ended before it had a label is drawn all the same."""
    asking, kept = Asking(), Kept()
    with_models = rig("fine", "hang", classifier=Chain([asking]))
    asking.router, with_models.router.telemetry.decisions = with_models.router, kept
    routing = asyncio.create_task(with_models.router.route(Task.chat("hello")))
    await with_models.large.started.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    told = render(kept.row, kept.stages)
    assert "task not classified" in told
    assert "ERROR cancelled (the caller went away)" in next(line for line in told.splitlines() if "classify" in line)


async def test_what_a_classifier_asked_is_told_without_the_trace_too() -> None:
    """Of a request whose trace was not kept, the classifier's call stands before the attempts, with its failure."""
    asking, kept = Asking(), Kept()
    with_models = rig("fine", "429", classifier=Chain([asking]))
    asking.router, with_models.router.telemetry.decisions = with_models.router, kept
    await with_models.router.route(Task.chat("hello"))
    *_, classify, cheap = render(kept.row, None).splitlines()
    assert classify.startswith("  classify large: rate_limited, ")
    assert cheap.startswith("  cheap small: accepted, ")
    assert "ERROR rate_limited" in next(
        line for line in render(kept.row, kept.stages).splitlines() if "classify" in line
    )
