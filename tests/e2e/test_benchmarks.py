"""The benchmark suite works; what it measures is for a person to read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks import outage, paths

if TYPE_CHECKING:
    from pathlib import Path


def test_paths(tmp_path: Path) -> None:
    """A short run measures every path at both doors beside both floors, and writes its rows."""
    file = tmp_path / "paths.json"
    paths.run(requests=30, rounds=1, json_file=file)
    told = json.loads(file.read_text())
    measured = {
        (row["path"], row["door"], row["floor"]) for row in told["rows"] if row["telemetry"] == paths.EVERYTHING
    }
    assert any(row["telemetry"] == paths.SPANS for row in told["rows"])
    names = (paths.CHEAP, paths.CHEAP_NEW, paths.HIT)
    assert measured == {(n, d, f) for n in names for d in ("in process", "http") for f in ("bare", "naive")}
    assert all(row["p50_us"] > 0 for row in told["rows"])


def test_outage(tmp_path: Path) -> None:
    """A short run measures a gateway whose collector answers, one whose hangs and one whose is gone."""
    file = tmp_path / "outage.json"
    outage.run(requests=30, rounds=1, json_file=file)
    rows = {row["collector"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == [outage.ANSWERS, outage.HANGS, outage.GONE]
    assert all(row["p99_us"] > 0 and row["memory_mb"] > 0 for row in rows.values())
