"""A drill is told at the end of the run: how long on-call would have waited for the alert, where they look, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.drills.drill import Drill
from tests.redis_server import redis, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Told

__all__ = ["redis", "redis_server"]

Drills = Callable[..., Drill]


@pytest.fixture
def drill_of(tmp_path: Path, told: Told) -> Iterator[Drills]:
    """Make a drill, of :class:`Drill`'s arguments; use it in ``async with``."""
    made: list[Drill] = []

    def make(**facts: Any) -> Drill:
        made.append(Drill(tmp_path, **facts))
        return made[-1]

    yield make
    for drill in made:
        told.count("drills")
        told.say(f"drill: {', '.join(f'{name} {what}' for name, what in drill.row.items())}")
