"""``tracerouter quota`` reads a real ledger."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import write
from tracerouter import config
from tracerouter.cli import main
from tracerouter.types import Caller, Task

if TYPE_CHECKING:
    from pathlib import Path

PRICE = {"input": 1000, "output": 1000}
MODELS: dict[str, Any] = {alias: {"provider": "simulated", "price": PRICE} for alias in ("small", "large")}
QUOTAS: list[dict[str, Any]] = [
    {"per": "tenant", "limit": "5 USD/month"},
    {"per": "user", "limit": "2 requests/day", "role": "cheap"},
    {"per": "tenant", "limit": "9 requests/day", "tier": "free"},
]


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """A deployment in whose file a variable stands that is not set."""
    policy = {"ladder": [*MODELS], "quotas": QUOTAS, "tiers": {"free": {}}, "timezone": "Europe/Berlin"}
    keyed = {"provider": "openai", "model": "m", "price": PRICE, "api_key": "${NOT_AT_THIS_TERMINAL}"}
    return write(tmp_path, {**MODELS, "keyed": keyed}, policy)


async def route(path: Path, monkeypatch: pytest.MonkeyPatch, *asked: tuple[Caller, str]) -> int:
    """Route what is asked, and return what it cost (nano-dollars)."""
    monkeypatch.setenv("NOT_AT_THIS_TERMINAL", "secret")
    built = config.load(path)
    monkeypatch.delenv("NOT_AT_THIS_TERMINAL")
    outcomes = [await built.router.route(Task.chat(text, caller=caller)) for caller, text in asked]
    await built.router.close()
    return sum(outcome.cost_nanos or 0 for outcome in outcomes)


def run(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> tuple[int, str, str]:
    code = main(["quota", "--config", str(path), *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


ANN, BOB = Caller("acme", user="ann"), Caller("[b]globex", user="bob")


async def test_a_table_of_limits(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each limit with what was spent, is reserved and is left, and when that ends, in the policy's zone."""
    monkeypatch.setenv("COLUMNS", "150")
    await route(deployed, monkeypatch, (ANN, "one"), (ANN, "two"), (BOB, "three"))
    code, out, err = run(capsys, deployed)
    assert (code, err) == (0, "")
    assert "policy default@1, times of Europe/Berlin" in out
    assert "[b]globex" in out
    assert "user cheap" not in out
    assert out.count("tenant 5 USD/month ") == out.count("free tenant 9 requests/day ") == 2
    code, out, err = run(capsys, deployed, "--tenant", "acme", "--user", "ann", "--tier", "free")
    (row,) = (line for line in out.splitlines() if "user cheap" in line)
    assert row.lstrip().startswith("user cheap 2 requests/day, user ann ")
    assert row.split()[-8:-3] == ["2", "requests", "2", "0", "0"]
    assert row.rstrip().endswith(" 00:00")
    assert (code, err) == (0, "")


async def test_json_is_the_apis(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All tenants as a list, one as itself; money is exact."""
    cost = await route(deployed, monkeypatch, (ANN, "one"), (ANN, "two"))
    code, out, err = run(capsys, deployed, "--json")
    told = json.loads(out)
    assert (code, err, told["object"], told["has_more"]) == (0, "", "list", False)
    (acme,) = told["data"]
    assert acme["spent"]["month"] == f"0.{cost:09d}"
    _, out, _ = run(capsys, deployed, "--tenant", "acme", "--json")
    assert json.loads(out) == acme
    _, out, _ = run(capsys, deployed, "--tenant", "acme", "--user", "ann", "--json")
    assert [limit["spent"] for limit in json.loads(out)["limits"]] == [f"0.{cost:09d}", 2, 2]


async def test_twenty_tenants_are_shown(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that have spent most; how many others there are is said."""
    monkeypatch.setenv("COLUMNS", "150")
    await route(deployed, monkeypatch, *((Caller(f"t{n:02d}"), "word " * n) for n in range(1, 23)))
    _, out, err = run(capsys, deployed)
    assert out.count("USD today") == 20
    assert "t22" in out
    assert "t02" not in out
    assert err == "2 more tenants have spent less: --tenant shows one, --json all\n"
    _, out, _ = run(capsys, deployed, "--json")
    assert len(json.loads(out)["data"]) == 22


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--tenant", "acmee"), 0, "nothing is booked on the tenant 'acmee' this month (did you mean 'acme'?)\n"),
        (("--team", "web"), 2, "--team needs --tenant beside it\n"),
        (("--user", "ann"), 2, "--user needs --tenant beside it\n"),
        (("--tier", "fre"), 2, "--tier: the policy has no tier 'fre' (did you mean 'free'?)\n"),
    ],
)
async def test_what_is_asked_wrongly_is_said_in_a_line(
    deployed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    """A name that nothing is known of is shown all the same, since a tenant may not have asked yet."""
    await route(deployed, monkeypatch, (ANN, "one"))
    found, out, err = run(capsys, deployed, *arguments)
    assert (found, err) == (code, said)
    assert bool(out) == (code == 0)


async def test_without_limits_what_was_spent_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And without requests, that there were none."""
    path = write(tmp_path, MODELS, {})
    await route(path, monkeypatch)
    assert run(capsys, path) == (0, "", "policy default@1 sets no limits (`quotas`)\nnothing was spent this month\n")
    await route(path, monkeypatch, (ANN, "one"))
    code, out, err = run(capsys, path)
    assert (code, err) == (0, "policy default@1 sets no limits (`quotas`)\n")
    assert "acme" in out


def test_a_store_that_is_not_there(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not made by looking at it."""
    code, out, err = run(capsys, deployed)
    assert (code, out) == (2, "")
    assert "nothing was routed yet" in err
    assert not [*deployed.parent.glob("*.db")]


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """Every flag is told."""
    with pytest.raises(SystemExit):
        main(["quota", "--help"])
    told = capsys.readouterr().out
    assert "Example: tracerouter quota --config tracerouter.yaml --tenant acme --user ann" in told
    assert all(flag in told for flag in ("--tenant", "--team", "--user", "--tier", "--json"))
