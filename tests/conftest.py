"""What holds for every test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_skipped: list[str] = []


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what would make a test depend on the machine: keys, and an exporter's address."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or name == "OPENAI_API_KEY":
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
    """Say which tests were skipped, and that CI does not allow it."""
    if _skipped and os.environ.get("CI") == "true":
        terminalreporter.write_line(f"skipped, which CI does not allow: {', '.join(_skipped)}")
