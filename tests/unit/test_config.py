"""The deployment file: what it builds, and how it says that something is wrong, without showing a secret."""

# ruff: noqa: ARG002 - stand-ins have the signatures of what they stand for

from __future__ import annotations

import json
import re
import threading
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import tracerouter
from tracerouter import config
from tracerouter.errors import ConfigError
from tracerouter.policy.file import read
from tracerouter.pricing import FREE, Price
from tracerouter.providers import AnthropicProvider, HandlerProvider, OpenAIProvider, SimulatedProvider
from tracerouter.types import Caller, Completion, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracerouter.protocols import Sink
    from tracerouter.router import Router
    from tracerouter.types import Call, Meter

SECRET = "sk-do-not-show-me-ever"
SIMULATED: dict[str, Any] = {"small": {"provider": "simulated"}}
README = Path(__file__).parents[2] / "README.md"


class Echo:
    """A provider of an owner's own."""

    def __init__(self, volume: int = 1) -> None:
        self.volume = volume
        self.closed = False

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        meter.sent()
        return Completion.of(str(call.body["messages"][-1]["content"]) * self.volume, model="echo")

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)


def write(folder: Path, text: str | None = None, *, policy: str = "ladder: [small]", **told: Any) -> Path:
    """Write both files; the deployment as text, or as what is told over a simulated model."""
    (folder / "policy.yaml").write_text(policy)
    path = folder / "tracerouter.yaml"
    whole = {"models": SIMULATED, "policy": "policy.yaml", "classifier": ["rules"], "store": "memory:", **told}
    path.write_text(text if text is not None else yaml.safe_dump(whole))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        config.load(path)
    return str(raised.value).replace(str(path), "tracerouter.yaml")


async def close(router: Router) -> None:
    """Close it without the collector that it names, which does not run here."""
    for exporter in router.telemetry.exporters:
        exporter.shutdown()
    await router.close()


async def test_the_readme_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two files of the README are files that work."""
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    deployment = next(block for block in blocks if block.startswith("models:"))
    policy = next(block for block in blocks if "ladder:" in block)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    monkeypatch.setenv("TRACEROUTER_KEYS", '[{"key": "0123456789", "tenant": "acme"}]')
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "extract.md").write_text("Extract.")
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "ticket.json").write_text("{}")
    built = config.load(write(tmp_path, deployment, policy=policy))
    assert built.router.names == ["auto", "careful", "small", "large", "house"]
    assert built.router.policy.id == "default@3"
    assert built.keys is not None
    assert len(built.keys) == 1
    small, large, house, _ = (built.router.models[alias] for alias in built.router.aliases)
    assert (small.timeout, small.retries, small.limit_field, small.address, small.port) == (
        20.0,
        1,
        "max_completion_tokens",
        "api.openai.com",
        443,
    )
    assert isinstance(large.provider, AnthropicProvider)
    assert (large.kind, large.timeout, large.address, large.port) == ("anthropic", 90.0, "api.anthropic.com", 443)
    assert large.price is not None
    assert large.price.cache_write is not None
    assert large.price.cached_input < large.price.input < large.price.cache_write < large.price.output
    assert (house.limit_field, house.address, house.port) == ("max_tokens", "127.0.0.1", 8000)
    assert house.price == Price(100_000_000, 200_000_000, 100_000_000)
    assert (built.router.telemetry.keep.share, built.router.telemetry.keep.slow) == (0.05, 5.0)
    await close(built.router)


@pytest.mark.parametrize("name", ["demo.yaml", "openai.yaml"])
async def test_the_defaults_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is packaged loads as it is."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    folder = Path(str(files(tracerouter))) / "defaults"
    settings = read(folder / name, config.Settings, variables=True)
    models: dict[str, Any] = {
        alias: config.stand_in(model) if isinstance(model, config.LocalModel) else model
        for alias, model in settings.models.items()
    }
    told = {"models": models, "store": "memory:", "classifier": ["rules"]}
    built = config.build(settings.model_copy(update=told), folder)
    assert built.router.aliases == ["small", "large"]
    assert built.keys is None
    assert all(model.price not in (None, FREE) for alias, model in built.router.models.items() if alias != "handler")
    await built.router.close()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"models": {"small": {"provider": "opnai", "model": "x"}}},
            "there is no provider 'opnai' (did you mean 'openai'?); known are openai, anthropic, local, simulated, ha",
        ),
        ({"models": {"small": {"model": "x"}}}, "`provider` must be openai, anthropic, local, simulated, handler, or"),
        ({"models": {"small": "openai"}}, "models.small: found 'openai'; `provider` must be"),
        ({"models": {}}, "models: found an empty mapping; dictionary should have at least 1 item"),
        ({"models": {"small": {"provider": "openai"}}}, "models.small.model: is missing"),
        (
            {"models": {"small": {"provider": "openai", "model": "mystery"}}},
            "models.small: the price of 'mystery' is not known, so its cost could not be told; add `price: {input: ",
        ),
        (
            {"models": {"small": {"provider": "anthropic", "model": "mystery"}}},
            "models.small: the price of 'mystery' is not known, so its cost could not be told; add `price: {input: ",
        ),
        ({"models": {"small": {"provider": "anthropic"}}}, "models.small.model: is missing"),
        (
            {"models": {"small": {"provider": "antropic", "model": "x"}}},
            "there is no provider 'antropic' (did you mean 'anthropic'?)",
        ),
        (
            {"models": {"small": {"provider": "anthropic", "model": "x", "base_ulr": "http://a"}}},
            "models.small.base_ulr: is not a key here (did you mean 'base_url'?)",
        ),
        (
            {"models": {"small": {"provider": "simulated", "price": {"input": 1, "output": 1, "cache_writes": 2}}}},
            "models.small.price.cache_writes: is not a key here (did you mean 'cache_write'?)",
        ),
        (
            {"models": {"small": {"provider": "simulated", "price": {"input": -1, "output": 1}}}},
            "models.small.price.input: found -1; input should be greater than or equal to 0",
        ),
        ({"models": {"small": {"provider": "simulated", "price": {"input": 1}}}}, "models.small.price.output: is miss"),
        (
            {"models": {"small": {"provider": "simulated", "retrys": 1}}},
            "models.small.retrys: is not a key here (did you mean 'retries'?)",
        ),
        (
            {"models": {"small": {"provider": "simulated", "timeout": "soon"}}},
            "models.small.timeout: found 'soon', but",
        ),
        (
            {"models": {"small": {"provider": "simulated", "failures": ["501", "slow"]}}},
            "models.small.failures: 'slow'",
        ),
        (
            {"models": {"small": {"provider": "simulated", "latency": {"median": "2s", "p99": "1s"}}}},
            "models.small.latency: median 2.0 must be above 0 and no more than p99 1.0",
        ),
        (
            {"models": {"small": {"provider": "simulated", "answers": [{"match": "(", "answer": ""}]}}},
            "models.small.answers: '(' is no regular expression",
        ),
        ({"models": {"small": {"provider": "no.such:Thing"}}}, "models.small.provider: 'no.such:Thing' can't be imp"),
        (
            {"models": {"small": {"provider": "tests.unit.test_config:Echo", "options": {"pitch": 1}}}},
            "models.small.provider: 'tests.unit.test_config:Echo' can't be made with these options",
        ),
        ({"models": {"smal": {"provider": "simulated"}}}, "ladder: no model is called 'small' (did you mean 'smal'?)"),
        (
            {"store": f"redsi://:{SECRET}@host/0"},
            "store: names no store that is known: sqlite:///PATH, memory: or redis://HOST",
        ),
        (
            {"store": f"redis://:{SECRET}@host:x/0"},
            "store: redis://host:x/0 is no URL of a Redis; it should be redis://",
        ),
        ({"journal": "x.db"}, "journal: only a redis:// `store` has a journal beside it"),
        (
            {"classifier": ["rules", {"llm": "smal"}]},
            "classifier: `llm` names no model that can be asked (did you mean",
        ),
        (
            {"classifier": [{"llm": "small"}]},
            "policy.yaml: names no tasks, so that `classifier: {llm: …}` would have no",
        ),
        ({"classifier": [{"llm": "small", "timeout": 0}]}, "classifier.0.timeout: found 0; input should be greater"),
        ({"classifier": [{"llm": "small", "max_confidence": 2}]}, "classifier.0.max_confidence: found 2; input shou"),
        (
            {
                "models": {"small": {"provider": "simulated"}, "house": {"provider": "handler"}},
                "classifier": [{"llm": "house"}],
            },
            "classifier: `llm` names no model that can be asked; known are small",
        ),
        ({"classifier": [{"examples": []}]}, "classifier.0.examples: found []; list should have at least 1 item"),
        ({"classifier": [{"embeddings": []}]}, "classifier.0.embeddings: found []; list should have at least 1 item"),
        ({"classifier": ["embedings"]}, "there is no classifier 'embedings' (did you mean 'embeddings'?)"),
        ({"classifier": [{"embeddings": ["gone"]}]}, "gone: holds no .txt files"),
        ({"classifier": ["ruls"]}, "classifier: there is no classifier 'ruls' (did you mean 'rules'?)"),
        ({"classifier": ["no.such:Thing"]}, "classifier: 'no.such:Thing' can't be imported"),
        ({"telemetry": {"keep": {"share": 2}}}, "telemetry.keep.share: found 2; input should be less than or equal"),
        ({"telemetry": {"keep": {"share": -0.1}}}, "telemetry.keep.share: found -0.1; input should be greater than"),
        ({"telemetry": {"keep": {"parent": "x"}}}, "telemetry.keep.parent: found 'x'; known are honour, ignore"),
        ({"telemetry": {"otlp": "http://127.0.0.1:4317"}}, "telemetry.otlp: found 'http://127.0.0.1:4317/'; 4317 is"),
        ({"telemetry": {"metric_interval": "2m"}}, "telemetry.metric_interval: found '2m'"),
        ({"telemetry": {"otlp": "http://u:secret@127.0.0.1:4317"}}, "telemetry.otlp: found '127.0.0.1:4317/'; 4317"),
        ({"telemetry": {"otlp": "http://c:4318/v1/traces"}}, "leave out '/v1/traces', which each signal adds"),
        ({"telemetry": {"otlp": "collector:4317"}}, "telemetry.otlp: found 'collector:4317'; URL scheme should be"),
        ({"max_body": 1}, "max_body: found 1"),
        ({"models": {"small": {"provider": "simulated", "vision": "maybe"}}}, "models.small.vision: found 'maybe'"),
        ({"models": {"small": {"provider": "local", "vision": True}}}, "models.small.vision: is not a key here"),
        ({"polcy": 1}, "polcy: is not a key here (did you mean 'policy'?)"),
        ({"keys": {}}, "keys: needs `env` or `file`"),
        ({"keys": {"env": "SOME_API_KEYS"}}, "the variable SOME_API_KEYS is not set (did you mean 'SOME_API_KEY'?)"),
        ({"keys": {"file": "gone.json"}}, "gone.json can't be read (FileNotFoundError)"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    """Each mistake ends in a sentence that names the place, what was found, and what would be right."""
    shown = error_of(write(tmp_path, **told))
    assert said in shown
    assert SECRET not in shown


def test_a_policy_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A policy file that can't be read is named by its path."""
    text = "policy: gone.yaml\nmodels: {small: {provider: simulated}}"
    assert error_of(write(tmp_path, text)).endswith("gone.yaml: can't be read (No such file or directory)")


def test_the_line_is_named(tmp_path: Path) -> None:
    """An error begins with file and line, also below a model's tag."""
    text = "policy: policy.yaml\nmodels:\n  small:\n    provider: simulated\n    retries: many\n"
    assert error_of(write(tmp_path, text)).startswith("tracerouter.yaml:5: models.small.retries: found 'many'; ")


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    """A variable that is missing is an error with its line, not an empty key."""
    text = "policy: policy.yaml\nmodels:\n  small: {provider: openai, model: m, api_key: '${SOME_API_KYE}'}\n"
    said = "tracerouter.yaml:3: the variable SOME_API_KYE is not set (did you mean 'SOME_API_KEY'?)"
    assert error_of(write(tmp_path, text)) == said


SPOILED = [
    "models: {small: {api_key: '${SOME_API_KEY}', provider: opnai, model: x}}",
    "models: {small: {api_key: '${SOME_API_KEY}', model: x}}",
    f"models: {{small: {{api_key: {SECRET}, model: x}}}}",
    "models: {small: '${SOME_API_KEY}'}",
    "models: ['${SOME_API_KEY}']",
    "models: '${SOME_API_KEY}'",
    "models: {small: {provider: openai, model: x, api_key: ['${SOME_API_KEY}']}}",
    f"models: {{small: {{provider: openai, model: x, api_key: [{SECRET}]}}}}",
    f"models: {{small: {{provider: openai, model: x, api_key: {{{SECRET}: 1}}}}}}",
    "models: {small: {provider: openai, model: x, base_url: 'x://me:${SOME_API_KEY}@host'}}",
    "models: {small: {provider: openai, model: x, api_key: '${SOME_API_KEY}'}}",
    "models: {small: {provider: openai, model: x, api_key: '${SOME_API_KEY}', price: '${SOME_API_KEY}'}}",
    "models: {small: {provider: openai, model: gpt-5-mini, timeout: '${SOME_API_KEY}'}}",
    "models: {small: {provider: anthropic, model: x, api_key: ['${SOME_API_KEY}']}}",
    "models: {small: {provider: anthropic, model: x, api_key: '${SOME_API_KEY}', retries: '${SOME_API_KEY}'}}",
    "models: {small: {provider: simulated}}\nclassifier: [{llm: '${SOME_API_KEY}'}]",
    "models: {small: {provider: simulated}}\nstore: '${SOME_API_KEY}'",
    "models: {small: {provider: simulated}}\nkeys: {env: SOME_API_KEY}",
]


@pytest.mark.parametrize("text", SPOILED)
def test_an_error_never_shows_a_secret(tmp_path: Path, text: str) -> None:
    """Whatever is wrong around a key, the error shows the variable's name or nothing, never the key."""
    said = error_of(write(tmp_path, f"{text}\npolicy: policy.yaml"))
    assert SECRET[:6] not in said


async def test_secrets_are_not_in_what_is_printed(tmp_path: Path) -> None:
    """Neither settings nor the models made of them show a key when they are printed or dumped."""
    price = {"input": 1, "output": 1}
    keyed = {"model": "m", "api_key": "${SOME_API_KEY}", "price": price}
    models = {"small": {"provider": "openai", **keyed}, "large": {"provider": "anthropic", **keyed}}
    built = config.load(write(tmp_path, models=models))
    settings = built.settings
    printed = f"{settings!r}{settings}{settings.model_dump_json()}{built!r}{built.router.models!r}"
    assert SECRET not in printed
    provider = built.router.models["small"].provider
    assert isinstance(provider, OpenAIProvider)
    assert provider._headers == {"authorization": f"Bearer {SECRET}"}
    await built.router.close()


KEY = "tr-0123456789"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (KEY, 'must hold a JSON list of {"key", "tenant", "team", "user", "tier", "admin", "reviewer"}'),
        ({"key": KEY}, "must hold a JSON list"),
        ([KEY], "entry 0: needs a `key` of at least 8 characters"),
        ([{"key": KEY, "tenant": "a"}, {"key": "short", "tenant": "a"}], "entry 1: needs a `key` of at least 8"),
        ([{"key": KEY}], "entry 0: needs a `tenant`"),
        ([{"key": KEY, "tenant": "a", "tiers": "free"}], "entry 0: 'tiers' is not known (did you mean 'tier'?)"),
        ([{"key": KEY, "tenant": "a", "tier": 1}], "entry 0: 'tier' must be a string"),
        ([{"key": 12345678, "tenant": "a"}], "entry 0: needs a `key`"),
        ([{"key": KEY, "tenant": "a", "admin": "no"}], "entry 0: 'admin' must be true or false"),
        ([{"key": KEY, "tenant": "a", "reviewer": None}], "entry 0: 'reviewer' must be true or false"),
    ],
)
@pytest.mark.parametrize("place", ["env", "file"])
def test_wrong_keys_are_named_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, entries: Any, said: str
) -> None:
    """An error in the list of API keys names place and entry; no key stands in it."""
    text = entries if isinstance(entries, str) else json.dumps(entries)
    (tmp_path / "keys.json").write_text(text)
    monkeypatch.setenv("SOME_KEYS", text)
    keys = {"env": "SOME_KEYS"} if place == "env" else {"file": "keys.json"}
    told = error_of(write(tmp_path, keys=keys))
    assert said in told
    assert KEY not in told
    assert ("the variable SOME_KEYS" if place == "env" else "keys.json") in told


async def test_keys_stand_for_callers(tmp_path: Path) -> None:
    """A key is found by its digest, and only that is held."""
    (tmp_path / "keys.json").write_text(json.dumps([{"key": KEY, "tenant": "acme", "team": None, "tier": "free"}]))
    built = config.load(write(tmp_path, keys={"file": "keys.json"}))
    assert built.keys is not None
    caller = built.keys.caller(KEY)
    assert caller is not None
    assert caller.key
    assert caller == Caller("acme", tier="free")
    assert built.keys.caller(f"{KEY}0") is built.keys.caller("") is built.keys.caller("\ud800") is None
    assert KEY not in repr(vars(built.keys))
    await built.router.close()


async def test_a_key_may_have_rights(tmp_path: Path) -> None:
    """Only what the list gives: nobody is an admin or a reviewer by leaving it out."""
    rights: tuple[dict[str, Any], ...] = ({}, {"admin": True}, {"reviewer": True}, {"admin": False, "reviewer": True})
    entries: list[dict[str, Any]] = [
        {"key": f"{KEY}{at}", "tenant": "acme", **given} for at, given in enumerate(rights)
    ]
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    built = config.load(write(tmp_path, keys={"file": "keys.json"}))
    assert built.keys is not None
    found = [built.keys.caller(entry["key"]) for entry in entries]
    assert found == [Caller("acme", **given) for given in rights]
    await built.router.close()


@pytest.mark.parametrize(("action", "what"), [("confirm", "tokens"), ("queue", "requests")])
def test_what_is_for_later_needs_a_store_that_keeps_it(tmp_path: Path, action: str, what: str) -> None:
    """A store that forgets is no place for what callers are promised: the error names the action and the way out."""
    policy = f"ladder: [small]\nquotas: [{{per: tenant, limit: 1 USD/day, then: [stale, {action}]}}]"
    told = error_of(write(tmp_path, policy=policy))
    assert f"policy.yaml: quotas.0.then: `{action}` keeps {what} in the store, and `store: memory:` forgets" in told
    assert "use sqlite:///PATH" in told


async def test_relative_paths_count_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process was started, policy, keys and store are found beside the file that names them."""
    folder, elsewhere = tmp_path / "deployment", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "keys.json").write_text("[]")
    path = write(folder, store="sqlite:///here.db", keys={"file": "keys.json"})
    monkeypatch.chdir(elsewhere)
    built = config.load(path)
    assert (await built.router.route(Task.chat("hi"))).completion
    await built.router.close()
    assert (folder / "here.db").is_file()
    assert not list(elsewhere.iterdir())
    assert config.store_path("sqlite:////var/lib/x.db", folder) == Path("/var/lib/x.db")
    assert config.store_path("redis://127.0.0.1", folder) == folder / "tracerouter-journal.db"


async def test_load_is_the_short_form(tmp_path: Path) -> None:
    """``tracerouter.load`` gives the router of a file, by path or string."""
    router = tracerouter.load(str(write(tmp_path)))
    outcome = await router.route(Task.chat("hi"))
    assert outcome.completion is not None
    assert outcome.completion.text == "Simulated answer to: hi"
    await router.close()


def kinds(models: Mapping[str, Any]) -> dict[str, type]:
    return {alias: type(model.provider) for alias, model in models.items()}


async def test_each_provider_is_made(tmp_path: Path) -> None:
    """Every kind of model is built with what the file says, an owner's own included, and closed with the router."""
    models = {
        "small": {
            "provider": "simulated",
            "answers": [{"match": "a", "answer": "b"}],
            "price": {"input": 1, "output": 2},
        },
        "house": {"provider": "handler"},
        "mine": {
            "provider": "tests.unit.test_config:Echo",
            "options": {"volume": 2},
            "price": {"input": 0, "output": 0},
        },
    }
    built = config.load(write(tmp_path, policy="ladder: [small]\nmin_confidence: 0", models=models))
    made = built.router.models
    assert kinds(made) == {"small": SimulatedProvider, "house": HandlerProvider, "mine": Echo}
    assert (made["small"].price, made["house"].price) == (Price(1_000_000_000, 2_000_000_000, 1_000_000_000), None)
    outcome = await built.router.route(Task.chat("ha", model="mine"))
    assert outcome.completion is not None
    assert outcome.completion.text == "haha"
    await built.router.close()
    assert isinstance(made["mine"].provider, Echo)
    assert made["mine"].provider.closed


async def test_telemetry_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address nothing is exported; OpenTelemetry's own variable is as good as the file's."""
    quiet = config.load(write(tmp_path, telemetry={"hash_users": True}))
    assert quiet.router.telemetry.traces is None
    assert quiet.router.telemetry.hash_users
    await quiet.router.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    told = config.load(write(tmp_path)).router
    assert told.telemetry.traces is not None
    assert told.telemetry.meter_provider is not None
    await close(told)


@pytest.mark.parametrize("wrong", ["collector", "127.0.0.1:4318", "ftp://collector:21", "http://:4318", "http://c:no"])
def test_a_wrong_variable_is_named(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in OpenTelemetry's variable that can't be one is an error at start, before anything is opened."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", wrong)
    before = {*threading.enumerate()}
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT: found .*such as http://127.0.0.1:4318"):
        config.load(write(tmp_path))
    assert not [thread for thread in {*threading.enumerate()} - before if thread.name == "tracerouter-store"]
