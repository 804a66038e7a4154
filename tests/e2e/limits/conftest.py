"""What the tests of limits share."""

from __future__ import annotations

from tests.e2e.limits.callers import callers, keys, upstream

__all__ = ["callers", "keys", "upstream"]
