"""The decision log: what was appended is found again, with its stages where the trace was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tracerouter.store import DecisionLog, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = [{"name": "classify", "ms": 1.5}, {"name": "call", "ms": 210}]


@pytest.fixture
def store() -> Iterator[SqliteStore]:
    made = SqliteStore(":memory:")
    yield made
    made.close()


def decision(number: int, **facts: Any) -> dict[str, Any]:
    told = {
        "request_id": f"r{number}",
        "trace_id": f"t{number}",
        "time": 1000.0 + number,
        "tenant": "acme",
        "task": "summarize",
        "route": "cheap",
        "outcome": "answered",
        "reason": "confident",
        "cost": 0.000000125,
        "prompt": "ärger 😀",
    }
    return {**told, **facts}


async def appended(store: SqliteStore, *rows: tuple[dict[str, Any], list[dict[str, Any]] | None]) -> DecisionLog:
    decisions = DecisionLog(store)
    for row, stages in rows:
        assert decisions.append(row, stages) is True
    while store._offered or store._nudged:
        await store.transact(lambda _: None)
    await store.transact(lambda _: None)
    return decisions


async def test_a_row_is_found_by_either_id(store: SqliteStore) -> None:
    """A request is found by its request id and by its trace id, as it was appended; its stages if it was kept."""
    decisions = await appended(store, (decision(1), STAGES), (decision(2), None))
    assert decisions.find("r1") == decisions.find("t1") == (decision(1), STAGES)
    assert decisions.find("t2") == (decision(2), None)
    assert decisions.find("r3") is None
    assert decisions.find("%") is None


async def test_a_kept_trace_without_stages_is_not_one_that_was_dropped(store: SqliteStore) -> None:
    """No stages and no trace are two things."""
    decisions = await appended(store, (decision(1), []))
    assert decisions.find("r1") == (decision(1), [])


async def test_the_newest_of_equal_ids_is_found(store: SqliteStore) -> None:
    """A caller that sends an id twice finds its newest request, in whichever order the rows came."""
    decisions = await appended(store, (decision(9, request_id="r"), None), (decision(3, request_id="r"), None))
    assert decisions.find("r") == (decision(9, request_id="r"), None)


@pytest.mark.parametrize("word", ["fallback", "failed", "timeout", "translate", "globex"])
async def test_the_last_of_a_kind(store: SqliteStore, word: str) -> None:
    """The newest request is found by its route, outcome, reason, task or tenant."""
    kinds = {
        "fallback": "route",
        "failed": "outcome",
        "timeout": "reason",
        "translate": "task",
        "globex": "tenant",
    }
    wanted = [decision(number, **{kinds[word]: word}) for number in (2, 4)]
    decisions = await appended(store, *((row, None) for row in (decision(1), wanted[1], wanted[0], decision(5))))
    assert decisions.last(word) == (wanted[1], None)
    assert decisions.last("unheard of") is None
    assert decisions.last("r4") is None


async def test_a_request_without_a_task_is_logged(store: SqliteStore) -> None:
    """What was refused before it was classified has no task, and is found all the same."""
    decisions = await appended(store, (decision(1, task=None, route="none", outcome="refused", cost=0), None))
    found = decisions.last("refused")
    assert found is not None
    assert found[0]["task"] is None


async def test_the_cost_is_kept_in_whole_nanos(store: SqliteStore) -> None:
    """Costs can be summed without rounding."""
    await appended(store, *((decision(number), None) for number in range(1000)))
    assert store.read("SELECT sum(cost_nanos) FROM decisions") == [(125_000,)]


async def test_a_row_that_can_not_be_written_is_counted(store: SqliteStore) -> None:
    """A row that is no JSON, or lacks what each has, is dropped and counted, and takes no other with it."""
    rows = [decision(1), decision(2, prompt=object()), decision(3, trace_id=None), decision(4)]
    decisions = await appended(store, *((row, None) for row in rows))
    assert [decisions.find(f"r{number}") is not None for number in (1, 2, 3, 4)] == [True, False, False, True]
    assert (store.dropped, store.lost) == (2, 0)


async def test_a_full_queue_says_so(store: SqliteStore) -> None:
    """``append`` returns False when the row had to be dropped."""
    store.close()
    assert DecisionLog(store).append(decision(1), None) is False
    assert store.dropped == 1
