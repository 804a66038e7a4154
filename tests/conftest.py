"""What holds for every test."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy one is slow, and that is no fault of an example
settings.load_profile("any machine")

_skipped: list[str] = []
_counted: Counter[str] = Counter()
_said: list[str] = []


class Told:
    """What a test adds to the end of the run; it travels with the test's report, from whichever process ran it."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def count(self, what: str, number: int = 1) -> None:
        """Add to a sum, such as of ``queries``."""
        self._properties.append(("counted", (what, number)))

    def say(self, line: str) -> None:
        """Add a line."""
        self._properties.append(("said", line))


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    """Tell what the end of the run is to show."""
    return Told(request.node.user_properties)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what would make a test depend on the machine: keys, and an exporter's address."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or name in {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}:
            monkeypatch.delenv(name)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped, and what is to be told."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)
    if report.when == "teardown":
        for kind, what in report.user_properties:
            match kind, what:
                case "counted", (str(name), int(number)) | [str(name), int(number)]:  # a list, if it came from a worker
                    _counted[name] += number
                case "said", line:
                    _said.append(str(line))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a CI run that skipped a test: there all servers are to be had."""
    if _skipped and os.environ.get("CI") == "true" and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was counted, and which tests were skipped where CI does not allow it."""
    for line in _said:
        terminalreporter.write_line(line)
    if _counted:
        terminalreporter.write_line(f"checked: {', '.join(f'{number} {what}' for what, number in _counted.items())}")
    if _skipped and os.environ.get("CI") == "true":
        terminalreporter.write_line(f"skipped, which CI does not allow: {', '.join(_skipped)}")
