"""What ``import tracerouter`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tracerouter

HEAVY = ("grpc", "numpy", "wordllama", "sklearn", "tracerouter.config")


def loaded_by(statement: str) -> set[str]:
    """Run a statement in an interpreter of its own, and return the modules that it loads."""
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)  # noqa: S603
    return set(run.stdout.split())


def test_every_exported_name_exists() -> None:
    """Each name in ``__all__`` can be had, once, and they stand in order."""
    assert all(hasattr(tracerouter, name) for name in tracerouter.__all__)
    assert sorted(set(tracerouter.__all__)) == tracerouter.__all__


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import tracerouter", HEAVY),
        ("import tracerouter.config, tracerouter.web", ("grpc", "numpy", "wordllama", "sklearn")),
        ("import tracerouter.router", ("grpc", "numpy", "wordllama", "sklearn", "aiohttp.web")),
    ],
)
def test_imports_stay_light(statement: str, unwanted: tuple[str, ...]) -> None:
    """What a process does not use is not loaded: no numpy without the examples classifier, no gRPC at all."""
    assert loaded_by(statement).isdisjoint(unwanted)
