"""Tells at the end which drills ran, and how long on-call would have waited for the alert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.drills.drill import ROWS

if TYPE_CHECKING:
    from collections import Counter


@pytest.fixture(autouse=True)
def _drill_counted(counted: Counter[str]) -> None:
    counted["drills"] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row for each drill."""
    for row in ROWS:
        terminalreporter.write_line(f"drill: {', '.join(f'{name} {told}' for name, told in row.items())}")
