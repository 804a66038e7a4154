"""The commands, run as a user runs them: in a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway import CHAT, nanos, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter import config
from tracerouter.cli import main
from tracerouter.policy import PolicyFile, load
from tracerouter.types import Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PRICES = {"small-1": Prices(150_000_000, 600_000_000)}
PACKAGE = Path(config.__file__).parent
SIMULATED = {
    "small": {"provider": "simulated", "price": {"input": 1, "output": 2}, "failures": ["ok", "500"]},
    "large": {"provider": "simulated", "price": {"input": 10, "output": 20}},
}


async def tracerouter(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tracerouter",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_demo_routes_on_the_local_model(tmp_path: Path) -> None:
    """The demo answers by a real small model, writes its summary, and leaves requests that ``trace`` finds."""
    summary = tmp_path / "summary.json"
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        "hi there, how are you?",
        "hi there, how are you?",
        "A train leaves at 9:15. When does it arrive? Show steps.",
    ]
    prompts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    arguments = ("demo", "--requests", "3", "--input", str(prompts), "--json", str(summary))
    code, out, err = await tracerouter(*arguments, COLUMNS="120")
    assert (code, err) == (0, "")
    assert "expensive model: simulated" in out
    assert "always-expensive" in out
    assert "route demo@1" in out
    told = json.loads(summary.read_text())
    assert told["requests"] == 3
    assert sum(told["routes"].values()) == sum(told["outcomes"].values()) == 3
    assert told["cost"] > 0
    assert told["baseline_cost"] > 0
    code, out, _ = await tracerouter("trace", told["traces"][-1])
    assert code == 0
    assert told["traces"][-1] in out


async def test_explain_calls_no_model(tmp_path: Path) -> None:
    """``explain`` says what would be decided, and the most that it can cost."""
    tiers = {"free": {"ladder": ["small"]}}
    path = write(tmp_path, SIMULATED, {"min_confidence": 0.5, "tiers": tiers}, classifier=["rules"])
    code, out, _ = await tracerouter("explain", "--config", str(path), "what is up?", "--tier", "free", "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["reason"], [rung["model"] for rung in told["rungs"]]) == ("tier", ["small"])
    code, out, _ = await tracerouter("explain", "--config", str(path), "what is up?", "--task", "sql")
    assert "confident" in out
    assert "small (cheap) → large (fallback)" in out
    assert "at most    small: $" in out
    connection = sqlite3.connect(tmp_path / "tracerouter.db")
    assert connection.execute("SELECT (SELECT count(*) FROM entries), (SELECT count(*) FROM decisions)").fetchone() == (
        0,
        0,
    )
    connection.close()


async def test_explain_tells_the_evidence_and_asks_no_classifiers_model(tmp_path: Path) -> None:
    """A risk is told with what raised it, and the model that would be asked for the label is named, not asked."""
    policy: dict[str, Any] = {"tasks": {"poem": {}}, "risks": {"pii": {}, "legal": {}}}
    path = write(tmp_path, SIMULATED, policy, classifier=["rules", {"llm": "small"}])
    prompt = "mail a@example.com and b@example.com about the lawsuit"
    code, out, err = await tracerouter("explain", "--config", str(path), prompt)
    assert (code, err) == (0, "")
    assert "risks      legal by dispute; pii by email x2\n" in out
    assert "not asked  small" in out
    _, out, _ = await tracerouter("explain", "--config", str(path), prompt, "--json")
    told = json.loads(out)
    assert told["evidence"][-1] == {"risk": "pii", "kind": "email", "times": 2}
    assert told["not_asked"] == ["small"]


async def test_trace_shows_who_classified_and_what_raised_a_risk(tmp_path: Path) -> None:
    """In the waterfall the classifier's call stands beneath its stage, with its cost, and a risk with its evidence."""
    models = {
        "small": {"provider": "simulated", "model": "small-1", "price": {"input": 1, "output": 2}},
        "tiny": {
            "provider": "simulated",
            "model": "tiny-1",
            "price": {"input": 1, "output": 2},
            "answers": [{"match": ".", "answer": '{"label": "poem", "confidence": 0.9}'}],
        },
    }
    policy = {"ladder": ["small"], "tasks": {"poem": {}}, "risks": {"pii": {}}}
    path = write(tmp_path, models, policy, classifier=["rules", {"llm": "tiny"}])
    built = config.load(path)
    outcome = await built.router.route(Task.chat("a poem for a@example.com"))
    await built.router.close()
    code, out, _ = await tracerouter("trace", "--config", str(path), outcome.request_id)
    assert code == 0
    lines = [line.strip("│ ") for line in out.splitlines()]
    classify = next(at for at, line in enumerate(lines) if line.startswith("├ classify "))
    assert lines[classify].endswith("poem 0.70; risks pii; pii by email")
    assert lines[classify + 1].startswith("└ chat tiny-1 ")
    assert " in, " in lines[classify + 1]
    assert any(line.startswith("├ cheap small ") for line in lines)


class Served:
    """``tracerouter serve`` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def ready(self) -> None:
        """Wait until it listens: it says so."""
        assert self.process.stderr
        async with asyncio.timeout(20):
            while b"/v1" not in await self.process.stderr.readline():
                pass
            async with aiohttp.ClientSession() as session:
                while True:
                    try:
                        async with session.get(f"{self.url}/readyz") as response:
                            assert response.status == 200
                            return
                    except aiohttp.ClientConnectorError:
                        await asyncio.sleep(0.02)


@pytest.fixture
async def served(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[tuple[Served, Upstream, Path]]:
    """A gateway process before a misbehaving upstream."""
    async with Upstream(prices=PRICES) as upstream:
        path = write(tmp_path, openai_models(upstream.url), {})
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tracerouter", "serve", "--config", str(path), "--port", str(unused_tcp_port)),
            stderr=asyncio.subprocess.PIPE,
        )
        gateway = Served(process, unused_tcp_port)
        try:
            await gateway.ready()
            yield gateway, upstream, path
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def ask(url: str, text: str) -> tuple[int, Any, Any]:
    """Send one request."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    async with aiohttp.ClientSession() as session, session.post(url + CHAT, json=body) as response:
        return response.status, response.headers, await response.json()


async def test_serve_drains_on_sigterm(served: tuple[Served, Upstream, Path]) -> None:
    """SIGTERM lets the request under way be answered; then the process ends well, and all is in its store."""
    gateway, upstream, path = served
    asked = asyncio.create_task(ask(gateway.url, "hi [[slow 0.1 a b c d]]"))
    await upstream.received()
    gateway.process.send_signal(signal.SIGTERM)
    status, headers, told = await asked
    assert status == 200
    assert await asyncio.wait_for(gateway.process.wait(), 20) == 0
    code, out, _ = await tracerouter("trace", "--config", str(path), headers["x-request-id"], "--json")
    assert code == 0
    record = json.loads(out)["record"]
    assert nanos(record["cost"]) == nanos(told["tracerouter"]["cost"]) == upstream.nanos
    code, out, _ = await tracerouter("trace", "--config", str(path), "--last", "cheap")
    assert (code, "chat small-1" in out) == (0, True)
    code, _, err = await tracerouter("trace", "--config", str(path), "--last", "fallback")
    assert (code, err.endswith("has the word 'fallback'\n")) == (1, True)


async def test_answered_requests_survive_kill_9(served: tuple[Served, Upstream, Path]) -> None:
    """What a client was told to have cost stands in the ledger, however the process dies."""
    gateway, upstream, path = served
    told = [nanos((await ask(gateway.url, f"{number} [[ok]]"))[1]["x-tracerouter-cost"]) for number in range(5)]
    gateway.process.kill()
    await gateway.process.wait()
    store = config.load(path)
    try:
        (spent,) = store.router.telemetry.instruments.tenant_spend.read()[:1] or [None]  # type: ignore[index]
    finally:
        await store.router.close()
    assert spent is not None
    assert nanos(spent[1]) == sum(told) == upstream.nanos


async def test_trace_finds_the_store_that_a_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the variables in the file, only the store's need be set to read what happened; one that is not is named."""
    path = write(tmp_path, {"small": {"provider": "simulated"}}, {}, store="sqlite:///${TRACEROUTER_STORE}")
    monkeypatch.setenv("TRACEROUTER_STORE", "kept.db")
    router = config.load(path).router
    outcome = await router.route(Task.chat("hello"))
    await router.close()
    path.write_text(path.read_text() + "timeout: ${NOBODY_SET_THIS}\n")
    (code, out, _) = await tracerouter("trace", "--config", str(path), outcome.request_id)
    assert (code, outcome.request_id in out) == (0, True)
    monkeypatch.delenv("TRACEROUTER_STORE")
    (code, _, err) = await tracerouter("trace", "--config", str(path), outcome.request_id)
    assert (code, "the variable TRACEROUTER_STORE is not set" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--input", "gone.jsonl"], "gone.jsonl can't be read"),
        (["demo", "--requests", "0"], "--requests must be at least 1"),
        (["serve", "--config", "gone.yaml"], "gone.yaml: can't be read"),
        (["explain", "--config", "gone.yaml", "hi"], "gone.yaml: can't be read"),
        (["policy", "check", "gone.yaml"], "gone.yaml: can't be read"),
        (["trace", "--config", "gone.yaml", "--last", "x"], "gone.yaml: can't be read"),
    ],
)
def test_a_users_mistake_is_a_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """A mistake ends with exit code 2 and a sentence, never with a traceback."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_demo_names_the_line_of_a_bad_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An input line without a prompt is named."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    assert main(["demo", "--input", str(path)]) == 2
    assert f"{path}:2: needs a JSON object" in capsys.readouterr().err


def test_serve_without_keys_stays_on_loopback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without API keys the gateway does not listen on other addresses, and says how to change that."""
    path = write(tmp_path, SIMULATED, {})
    assert main(["serve", "--config", str(path), "--host", "0.0.0.0"]) == 2  # noqa: S104 - it must refuse
    assert "keys: {env: TRACEROUTER_KEYS}" in capsys.readouterr().err


def test_policy_check_and_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``check`` says good or what is wrong, aliases and validators included; ``schema`` is JSON Schema."""
    path = write(tmp_path, SIMULATED, {})
    policy = str(tmp_path / "policy.yaml")
    assert main(["policy", "check", policy, "--config", str(path)]) == 0
    assert "policy default@1 is good" in capsys.readouterr().out
    (tmp_path / "policy.yaml").write_text("ladder: [smal]\n")
    assert main(["policy", "check", policy, "--config", str(path)]) == 2
    assert "no model is called 'smal' (did you mean 'small'?)" in capsys.readouterr().err
    (tmp_path / "policy.yaml").write_text("ladder: [small]\nvalidate: [json_shema]\n")
    assert main(["policy", "check", policy]) == 2
    assert "'json_shema' is no validator (did you mean 'json_schema'?)" in capsys.readouterr().err
    assert main(["policy", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == PolicyFile.model_json_schema()


@pytest.mark.parametrize(("name", "shape"), [("policy", PolicyFile), ("tracerouter", config.Settings)])
def test_committed_schemas_are_fresh(name: str, shape: type[PolicyFile | config.Settings]) -> None:
    """The schemas beside the defaults are those that the models make: ``python -m tracerouter.defaults``."""
    written = json.loads((PACKAGE / "defaults" / f"{name}.schema.json").read_text())
    assert written == shape.model_json_schema()


def test_the_packaged_policy_is_good() -> None:
    """The demo's policy names every label of the starter taxonomy, so that metrics can tell them apart."""
    labels = {file.stem for file in (PACKAGE / "classifiers" / "taxonomy").glob("*.txt")} - {"other"}
    assert set(load(PACKAGE / "defaults" / "policy.yaml").tasks) == labels


@pytest.mark.parametrize("command", ["", "demo", "serve", "explain", "trace", "policy check", "policy schema"])
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """``--help`` explains each command, with an example."""
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert "tracerouter" in capsys.readouterr().out.partition("usage:")[2].partition("\n\n")[2] or not command
