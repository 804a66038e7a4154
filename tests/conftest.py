"""What holds for every test."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_skipped: list[str] = []
_COUNTED = pytest.StashKey[Counter[str]]()


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Counter[str]:
    """Count what the end of the run tells: ``counted["queries"] += 40``."""
    return request.config.stash.setdefault(_COUNTED, Counter())


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what would make a test depend on the machine: keys, and an exporter's address."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or name in {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}:
            monkeypatch.delenv(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember what was skipped."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(item.nodeid)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a CI run that skipped a test: there all servers are to be had."""
    if _skipped and os.environ.get("CI") == "true" and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was counted, and which tests were skipped where CI does not allow it."""
    counted = terminalreporter.config.stash.get(_COUNTED, None)
    if counted:
        terminalreporter.write_line(f"checked: {', '.join(f'{number} {what}' for what, number in counted.items())}")
    if _skipped and os.environ.get("CI") == "true":
        terminalreporter.write_line(f"skipped, which CI does not allow: {', '.join(_skipped)}")
