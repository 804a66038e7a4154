"""How long a disk that fails holds a request up, and how much work it makes."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from tests.unit.store.test_sqlite import does
from tracerouter.store import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

INSERT = "INSERT INTO meta VALUES (?, ?)"


async def test_a_locked_file_holds_a_request_up_for_about_a_second(tmp_path: Path) -> None:
    """An awaited write ends soon though another process holds the file, and the row is written later."""
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for name in ("a", "b", "c"):
            began = time.monotonic()
            await store.write(does((INSERT, (name, b""))))
            assert time.monotonic() - began < 2
        other.execute("ROLLBACK")
    store.close()
    assert store.lost == 0
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT name FROM meta ORDER BY name").fetchall() == [("a",), ("b",), ("c",)]


async def test_a_failing_disk_is_tried_at_its_own_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come while the disk fails make no further tries, each of which takes all rows that wait."""
    store = SqliteStore(tmp_path / "store.db")
    tries = 0

    def full(rows: list[object]) -> int:
        nonlocal tries
        tries += 1
        raise sqlite3.OperationalError

    with monkeypatch.context() as failing:
        failing.setattr(store, "_write", full)
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < 1:
            store.write(does((INSERT, (f"{number:05}", b""))))
            number += 1
            if number % 10 == 0:
                await store.write(does((INSERT, (f"awaited {number}", b""))))
        assert tries < 10
    store.close()
    assert store.lost == 0
