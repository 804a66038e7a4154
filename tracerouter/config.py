"""Builds everything once from ``tracerouter.yaml``: the only place that knows every concrete class."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import aiohttp
from pydantic import AnyHttpUrl, BeforeValidator, Discriminator, Field, SecretStr, Tag, model_validator
from pydantic_core import PydanticCustomError

from tracerouter import policy as policies
from tracerouter.cache import BoundedMemoryCache, CachedClassifier, OutputCache
from tracerouter.classifiers import (
    Chain,
    EmbeddingsClassifier,
    ExamplesClassifier,
    LlmClassifier,
    RiskClassifier,
    RulesClassifier,
)
from tracerouter.errors import ConfigError, nearest
from tracerouter.keys import Keys, KeysOf
from tracerouter.policy.file import Seconds, Written, read
from tracerouter.policy.model import Probability
from tracerouter.pricing import FREE, Price, known_price
from tracerouter.providers import (
    AnthropicProvider,
    HandlerProvider,
    Model,
    OpenAIProvider,
    Simulated,
    SimulatedProvider,
)
from tracerouter.providers.simulated import Rule
from tracerouter.providers.simulated import Spread as LogNormal
from tracerouter.quota import Confirmations, Jobs, MemoryRates, QuotaState, RedisLedger, RedisRates, SqliteLedger
from tracerouter.review import LOOK, Reviews, Webhooks, Worker
from tracerouter.router import Router
from tracerouter.store import DecisionLog, RedisItems, RedisStore, SqliteItems, SqliteStore
from tracerouter.store.redis import SCHEMES
from tracerouter.telemetry import Keep, Telemetry, over_otlp, to_console
from tracerouter.tokens import count
from tracerouter.types import EMBEDDINGS, MAX_BODY_BYTES
from tracerouter.validators import Checks
from tracerouter.web import chat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracerouter.cache.shared import SharedCache
    from tracerouter.classifiers.llm import Ask
    from tracerouter.policy import Policy
    from tracerouter.protocols import Classifier
    from tracerouter.telemetry.metrics import Instruments
    from tracerouter.types import Completion

Positive = Annotated[Seconds, Field(gt=0)]
Usd = Annotated[Decimal, Field(ge=0)]


class PriceOf(Written):
    """USD per million tokens."""

    input: Usd
    output: Usd
    cached_input: Usd | None = Field(default=None, description="Read from the provider's prompt cache; as input")
    cache_write: Usd | None = Field(default=None, description="Written to it; as input")
    cache_write_1h: Usd | None = Field(default=None, description="Written to it for an hour; as cache_write")


class AnyModel(Written):
    """What every model takes."""

    timeout: Positive = Field(default=30.0, description="For one try")
    retries: Annotated[int, Field(ge=0, le=10)] = Field(default=1, description="After failures that may pass")
    price: PriceOf | None = Field(default=None, description="USD per million tokens")


Vision = Annotated[bool, Field(description="Whether it takes images")]


class OpenAIModel(AnyModel):
    """A model behind OpenAI's API, or behind any server that speaks it."""

    provider: Literal["openai"]
    model: str
    base_url: AnyHttpUrl = AnyHttpUrl("https://api.openai.com/v1")
    api_key: SecretStr | None = None
    vision: Vision = True


class AnthropicModel(AnyModel):
    """A model behind Anthropic's Messages API, or behind any server that speaks it."""

    provider: Literal["anthropic"]
    model: str
    base_url: AnyHttpUrl = AnyHttpUrl("https://api.anthropic.com")
    api_key: SecretStr | None = None
    vision: Vision = True


class LocalModel(AnyModel):
    """A small model in this process (extra ``local``)."""

    provider: Literal["local"]
    model: str = "smollm2-135m-instruct"
    threads: Annotated[int, Field(ge=1)] = 1


class Answer(Written):
    """What a simulated model says to prompts that match."""

    match: str = Field(description="Regular expression")
    answer: str


class Spread(Written):
    """A log-normal latency."""

    median: Seconds
    p99: Seconds


class SimulatedModel(AnyModel):
    """A model that is none: for demos, benchmarks and tests."""

    provider: Literal["simulated"]
    model: str = "simulated"
    latency: Spread | Seconds = 0.0
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    failures: list[str] = Field(default=[], description="Cycled through, a word a call: ok 429 500 timeout garbage …")
    answers: list[Answer] = []
    seed: int = 0
    vision: Vision = True


class HandlerModel(Written):
    """The wrapped service's own handler: asked once, for as long as it takes."""

    provider: Literal["handler"]
    model: str = "handler"
    price: PriceOf | None = Field(default=None, description="USD per million tokens")


class CustomModel(AnyModel):
    """A provider of your own: ``package.module:Class``, made with ``options``."""

    provider: str = Field(pattern=r"^[\w.]+:\w+$")
    model: str = "custom"
    options: dict[str, Any] = {}
    vision: Vision = True


_PROVIDERS = ("openai", "anthropic", "local", "simulated", "handler")


def _known_provider(found: Any) -> Any:
    provider = found.get("provider") if isinstance(found, dict) else None
    if isinstance(provider, str) and provider not in _PROVIDERS and ":" not in provider:
        msg = "there is no provider {provider}{nearest}; known are {known}, or package.module:Class"
        told = {"provider": repr(provider), "nearest": nearest(provider, _PROVIDERS), "known": ", ".join(_PROVIDERS)}
        raise PydanticCustomError("not_known", msg, told)  # noqa: EM101 - its code, not its message
    return found


def _kind(found: Any) -> str | None:
    provider = found.get("provider") if isinstance(found, dict) else getattr(found, "provider", None)
    return "custom" if isinstance(provider, str) and ":" in provider else provider


ModelOf = Annotated[
    Annotated[OpenAIModel, Tag("openai")]
    | Annotated[AnthropicModel, Tag("anthropic")]
    | Annotated[LocalModel, Tag("local")]
    | Annotated[SimulatedModel, Tag("simulated")]
    | Annotated[HandlerModel, Tag("handler")]
    | Annotated[CustomModel, Tag("custom")],
    Discriminator(
        _kind,
        custom_error_type="provider",
        custom_error_message=f"`provider` must be {', '.join(_PROVIDERS)}, or package.module:Class",
    ),
    BeforeValidator(_known_provider),
]


class ExamplesOf(Written):
    """The examples classifier, trained on folders of your own besides the packaged ones."""

    examples: list[Path] = Field(min_length=1)


class EmbeddingsOf(Written):
    """The embeddings classifier, trained on folders of your own besides the packaged ones (extra ``embeddings``)."""

    embeddings: list[Path] = Field(min_length=1)


class LlmOf(Written):
    """A model as classifier: it is asked which of the policy's tasks a request is."""

    llm: str = Field(description="The model's alias")
    timeout: Positive = Field(default=2.0, description="For all tries together; then the next classifier is asked")
    max_confidence: Probability = Field(
        default=0.7, description="What its label is worth at most: what a model says of its own confidence is a guess"
    )


def _sort(found: Any) -> str:
    if isinstance(found, LlmOf) or (isinstance(found, dict) and "llm" in found):
        return "of a model"
    if isinstance(found, EmbeddingsOf) or (isinstance(found, dict) and "embeddings" in found):
        return "of embeddings"
    return "of examples" if isinstance(found, (dict, ExamplesOf)) else "by name"


ClassifierOf = Annotated[  # a tag that were a key, too, would be taken for it in an error's place
    Annotated[ExamplesOf, Tag("of examples")]
    | Annotated[EmbeddingsOf, Tag("of embeddings")]
    | Annotated[LlmOf, Tag("of a model")]
    | Annotated[str, Tag("by name")],
    Discriminator(_sort),
]


class KeepOf(Written):
    """Which traces are kept."""

    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    slow: Seconds | None = None
    dear: Annotated[float, Field(ge=0)] | None = Field(default=None, description="USD")
    parent: Literal["honour", "ignore"] | None = Field(
        default=None, description="Whether an unsampled parent drops the trace; absent: only within the service itself"
    )


class TelemetryOf(Written):
    """Where telemetry goes."""

    otlp: AnyHttpUrl | None = Field(default=None, description="OTLP/HTTP endpoint, such as http://127.0.0.1:4318")
    console: bool = False
    metric_interval: Annotated[Positive, Field(le=60)] = Field(
        default=60.0, description="At most 60s: the alerts look at five minutes"
    )
    hash_users: bool = False
    keep: KeepOf = KeepOf()


def _store(found: object) -> object:
    if isinstance(found, str) and not found.startswith(("sqlite:///", "memory:", *SCHEMES)):
        msg = "names no store that is known: sqlite:///PATH, memory: or redis://HOST:PORT/DB (rediss:// for TLS)"
        raise PydanticCustomError("not_known", msg)  # noqa: EM101 - as above; what was found may be a secret
    return found


JOURNAL: Final = Path("tracerouter-journal.db")


class WebhooksOf(Written):
    """Where callers may be told what came of a review."""

    allow: list[str] = Field(min_length=1, description="URLs that a target must be below")
    secret: SecretStr = Field(description="whsec_ and random bytes in base64: signs what is sent")
    private: bool = Field(default=False, description="Whether targets may be at loopback and private addresses")


class Settings(Written):
    """``tracerouter.yaml``, the deployment."""

    models: Annotated[dict[str, ModelOf], Field(min_length=1)]
    classifier: list[ClassifierOf] = ["rules", "examples"]
    store: Annotated[str, BeforeValidator(_store)] = "sqlite:///tracerouter.db"
    journal: Path = Field(
        default=JOURNAL,
        description="Beside a redis:// store: the SQLite file of this machine's decision log and ledger",
    )
    keys: KeysOf | None = None
    telemetry: TelemetryOf = TelemetryOf()
    webhooks: WebhooksOf | None = None
    timeout: Positive = Field(default=120.0, description="A request's deadline, where the caller names none")
    keep_alive: Positive = Field(default=15.0, description="Silence in a stream after which a comment is sent")
    write_timeout: Positive = Field(
        default=60.0, description="Who takes nothing of a stream for so long counts as gone"
    )
    max_body: Annotated[int, Field(ge=1024)] = Field(default=MAX_BODY_BYTES, description="Bytes")
    policy: Path

    @model_validator(mode="after")
    def _journal_beside_redis(self) -> Self:
        if "journal" in self.model_fields_set and not self.store.startswith(SCHEMES):
            msg = "only a redis:// `store` has a journal beside it; this one is the file itself: leave `journal` out"
            raise PydanticCustomError("not_known", msg, {"key": "journal"})  # noqa: EM101 - as above
        return self

    @model_validator(mode="after")
    def _classifiers_ask_models(self) -> Self:
        known = [alias for alias, model in self.models.items() if not isinstance(model, HandlerModel)]
        for one in self.classifier:
            if isinstance(one, LlmOf) and one.llm not in known:
                msg = (
                    "`llm` names no model that can be asked{nearest}; known are {known}"  # no value: it may be a secret
                )
                told = {"key": "classifier", "nearest": nearest(one.llm, known), "known": ", ".join(known)}
                raise PydanticCustomError("not_known", msg, told)  # noqa: EM101 - as above
        return self


SELDOM = 60.0
"""Seconds between two looks at the queue where the policy adds nothing to it: what an older one left still expires."""
TELEMETRY_DELAY = 0.05
"""Seconds for which finished requests wait to be told together."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a process runs on. Closing the router frees all of it."""

    router: Router
    settings: Settings
    keys: Keys | None


def load(path: Path, *, serves: bool = True, **host: Any) -> Deployment:
    """Build everything that the file at `path` describes; only if it `serves`, API keys are read and models are asked.

    Args:
        path: ``tracerouter.yaml``.
        serves: Whether API keys are needed.
        host: ``span_processors`` and ``resource`` of a service that traces itself, if they are to take our spans.

    Raises:
        ConfigError: Names file, line, key, what was found, and the nearest right name.
    """
    beside = str(path.parent.resolve())
    if beside not in sys.path:
        sys.path.append(beside)  # `my.module:name` may lie there, as may the files it names
    return build(read(path, Settings, variables=True), path.parent, serves=serves, **host)


def build(settings: Settings, folder: Path = Path(), *, serves: bool = True, **host: Any) -> Deployment:
    """Build everything that `settings` describe; relative paths count from `folder`. `host` is as of :func:`load`.

    Raises:
        ConfigError: Something that they name is not there.
    """
    policy = policies.load(folder / settings.policy)
    policy.check_aliases(settings.models)
    _check_actions(policy, settings.store)
    keys = Keys.load(settings.keys, folder) if settings.keys and serves else None
    checks = Checks(policy.validators, policy.schemas)
    endpoint = _endpoint(settings.telemetry)
    session = _Session()

    async def ask(alias: str, body: Mapping[str, Any], timeout: float) -> Completion:  # noqa: ASYNC109 - of many rooms
        return await router.ask(alias, body, timeout)

    models = [_model(alias, model, session) for alias, model in settings.models.items()]
    classifiers = [
        _classifier(one, policy, folder, ask)
        for one in settings.classifier
        if serves or not isinstance(one, LlmOf)  # who only explains asks no model
    ]
    risks = RiskClassifier(Chain(classifiers), policy.risks)
    store = SqliteStore(store_path(settings.store, folder, settings.journal))
    redis = RedisStore(settings.store) if settings.store.startswith(SCHEMES) else None
    cache = OutputCache(BoundedMemoryCache(), _shared(redis) if redis else None)
    ledger = RedisLedger(redis, store, policy.timezone) if redis else SqliteLedger(store, policy.timezone)
    items = RedisItems(redis) if redis else SqliteItems(store)
    telemetry = _telemetry(settings.telemetry, endpoint, policy, store, host)
    quotas = QuotaState(ledger, policy, keys or ())
    reviews = Reviews(items, policy.review, telemetry=telemetry)
    webhooks = _webhooks(settings.webhooks)
    worker = Worker(reviews, webhooks, LOOK if policy.reviews else SELDOM)
    reviews.woken = worker.wake
    _read(telemetry.instruments, store, ledger, quotas, reviews if policy.reviews else None)

    async def starting() -> None:
        worker.wake()
        for classifier in (*classifiers, risks):
            warm = getattr(classifier, "warm", None)
            if warm is not None:
                await warm()
        await asyncio.to_thread(count, "")
        await ledger.start()

    async def closing() -> None:
        await worker.close()
        await cache.close()
        await ledger.close()
        if redis is not None:
            await redis.close()
        await session.close()
        for model in models:
            close = getattr(model.provider, "close", None)
            if close is not None:
                await close()
        telemetry.flush()
        await asyncio.to_thread(telemetry.close)
        await asyncio.to_thread(store.close)

    router = Router(
        models,
        policy,
        classifier=CachedClassifier(risks),
        checks=checks,
        cache=cache,
        ledger=ledger,
        quotas=quotas,
        rates=RedisRates(redis) if redis else MemoryRates(),
        confirmations=Confirmations(items),
        jobs=Jobs(items, chat.later) if "queue" in policy.actions else None,
        telemetry=telemetry,
        reviews=reviews,
        webhooks=webhooks,
        timeout=settings.timeout,
        write_timeout=settings.write_timeout,
        starting=starting,
        closing=closing,
    )
    return Deployment(router, settings, keys)


def _read(
    instruments: Instruments,
    store: SqliteStore,
    ledger: SqliteLedger | RedisLedger,
    quotas: QuotaState,
    reviews: Reviews | None,
) -> None:
    """Let gauges and counters of what is kept elsewhere be read there."""
    instruments.tenant_spend.read = quotas.spend
    instruments.budget_limit.read = quotas.budgets
    instruments.budget_remaining.read = quotas.remaining
    instruments.decisions_dropped.read = lambda: store.dropped_by_reason
    instruments.entries_lost.read = lambda: store.lost_by_reason
    instruments.ledger_available.read = lambda: [((), float(ledger.available))]
    instruments.entries_waiting.read = lambda: [((), ledger.waiting)]
    if reviews is not None:
        instruments.review_depth.read = reviews.depth
        instruments.review_age.read = reviews.oldest_age


def _check_actions(policy: Policy, store: str) -> None:
    """Check that what is promised for later is kept somewhere that outlives the process."""
    for action, what in (("confirm", "tokens"), ("queue", "requests")):
        if action in policy.actions and store == "memory:":
            msg = (
                f"{policy.source}: {policy.actions[action]}: `{action}` keeps {what} in the store, and "
                "`store: memory:` forgets them with the process: use sqlite:///PATH or redis://HOST:PORT/DB"
            )
            raise ConfigError(msg)


def _shared(redis: RedisStore) -> SharedCache:
    from tracerouter.cache.shared import SharedCache  # noqa: PLC0415 - extra `redis`

    return SharedCache(redis)


class _Session:
    """The one HTTP session of all providers, made where a loop runs."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def __call__(self) -> aiohttp.ClientSession:
        """Return it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None, connect=10),  # `Model` minds the rest
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
            )
        return self._session

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()


def _model(alias: str, found: Any, session: Callable[[], aiohttp.ClientSession]) -> Model:
    price = _price(found.price) if found.price else None
    told: dict[str, Any] = {"alias": alias, "name": found.model}
    if isinstance(found, HandlerModel):
        return Model(**told, provider=HandlerProvider(), kind="handler", price=price, timeout=None)
    told |= {"timeout": found.timeout, "retries": found.retries, "vision": getattr(found, "vision", False)}
    if isinstance(found, OpenAIModel | AnthropicModel):
        url = urlsplit(str(found.base_url))
        price = price or known_price(found.provider, found.model)
        if price is None:
            msg = (
                f"models.{alias}: the price of {found.model!r} is not known, so its cost could not be told; "
                "add `price: {input: …, output: …}` in USD per million tokens (0 for a server of your own)"
            )
            raise ConfigError(msg)
        key = found.api_key.get_secret_value() if found.api_key else None
        told |= {"kind": found.provider, "price": price}
        told |= {"address": url.hostname, "port": url.port or (443 if url.scheme == "https" else 80)}
        if isinstance(found, AnthropicModel):
            return Model(**told, provider=AnthropicProvider(str(found.base_url), key, session))
        own = url.hostname == "api.openai.com"
        told["provider"] = OpenAIProvider(str(found.base_url), key, session)
        return Model(**told, limit_field="max_completion_tokens" if own else "max_tokens")
    if isinstance(found, LocalModel):
        from tracerouter.providers.local import LocalProvider  # noqa: PLC0415 - extra `local`

        return Model(**told, provider=LocalProvider(threads=found.threads), kind="local", price=price or FREE)
    if isinstance(found, SimulatedModel):
        return Model(**told, provider=_simulated(alias, found), kind="simulated", price=price or FREE)
    made = _made(found.provider, f"models.{alias}.provider", found.options)
    return Model(**told, provider=made, kind="custom", price=price)


def _simulated(alias: str, found: SimulatedModel) -> SimulatedProvider:
    spread = found.latency
    try:
        simulated = Simulated(
            latency=LogNormal(spread.median, spread.p99) if isinstance(spread, Spread) else spread,
            tokens_per_second=found.tokens_per_second,
            failures=found.failures,
            answers=[Rule(answer.match, answer.answer) for answer in found.answers],
            seed=found.seed,
        )
    except ConfigError as error:
        msg = f"models.{alias}.{error}"
        raise ConfigError(msg) from None
    return SimulatedProvider(simulated)


def stand_in(model: ModelOf) -> SimulatedModel:
    """Return a simulated model of the same price, for where a real one can't be had."""
    return SimulatedModel(provider="simulated", model="simulated-small", price=model.price)


def _classifier(found: object, policy: Policy, folder: Path, ask: Ask) -> Classifier:
    if isinstance(found, LlmOf):
        if not policy.tasks:
            msg = f"{policy.source}: names no tasks, so that `classifier: {{llm: …}}` would have no label to choose"
            raise ConfigError(msg)
        limits = {"timeout": found.timeout, "max_confidence": found.max_confidence}
        return LlmClassifier(found.llm, policy.tasks, ask, **limits)
    if found == "rules":
        return RulesClassifier(policy.label_patterns)
    by_name = {one.name: one for one in (ExamplesClassifier, EmbeddingsClassifier)}
    if isinstance(found, str) and found in by_name:
        return by_name[found].packaged()
    if isinstance(found, ExamplesOf):
        return ExamplesClassifier.trained([folder / path for path in found.examples])
    if isinstance(found, EmbeddingsOf):
        return EmbeddingsClassifier.trained([folder / path for path in found.embeddings])
    if ":" not in str(found):
        known = ("rules", *by_name)
        told = f"known are {', '.join(known)}, or package.module:Class"
        msg = f"classifier: there is no classifier {found!r}{nearest(str(found), known)}; {told}"
        raise ConfigError(msg)
    made: Classifier = _made(str(found), "classifier", {})
    return made


def _webhooks(found: WebhooksOf | None) -> Webhooks | None:
    return None if found is None else Webhooks(found.allow, found.secret.get_secret_value(), private=found.private)


def _telemetry(
    found: TelemetryOf, endpoint: str | None, policy: Policy, store: SqliteStore, host: Mapping[str, Any]
) -> Telemetry:
    keep = Keep(found.keep.share, found.keep.slow, found.keep.dear, found.keep.parent)
    facts: dict[str, Any] = {
        "keep": keep,
        "decisions": DecisionLog(store),
        "tasks": frozenset([*policy.tasks, *([EMBEDDINGS] if policy.embeddings else [])]),
        "secret": store.secret(),
        "hash_users": found.hash_users,
        "delay": TELEMETRY_DELAY,
        **{name: value for name, value in host.items() if value},
    }
    if endpoint:
        return over_otlp(endpoint, metric_interval=found.metric_interval, **facts)
    if found.console:
        return to_console(metric_interval=found.metric_interval, **facts)
    return Telemetry(**facts)


_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_GRPC_PORT: Final = 4317


def _endpoint(found: TelemetryOf) -> str | None:
    """Return where OTLP goes, from the file or else from OpenTelemetry's own variable."""
    told, where = (str(found.otlp), "telemetry.otlp") if found.otlp else (os.environ.get(_ENDPOINT), _ENDPOINT)
    if not told:
        return None
    should_be = "it should be the base of an OTLP/HTTP endpoint, such as http://127.0.0.1:4318"
    shown = repr(told.rpartition("@")[2])  # what stands before an @ may be a password
    try:
        url = urlsplit(told)
        port = url.port
    except ValueError as error:
        msg = f"{where}: found {shown} ({error}); {should_be}"
        raise ConfigError(msg) from None
    if url.scheme not in {"http", "https"} or not url.hostname:
        msg = f"{where}: found {shown}; {should_be}"
        raise ConfigError(msg)
    if url.path.rstrip("/").endswith(("/v1/traces", "/v1/metrics", "/v1/logs")):
        msg = f"{where}: found {shown}; leave out {url.path!r}, which each signal adds for itself"
        raise ConfigError(msg)
    if port == _GRPC_PORT:
        msg = f"{where}: found {shown}; 4317 is OTLP over gRPC, and we speak OTLP over HTTP: try port 4318"
        raise ConfigError(msg)
    return told


def store_path(found: str, folder: Path, journal: Path = JOURNAL) -> Path | str:
    """Return the SQLite file that ``store`` names, or has beside it, or ``:memory:``."""
    if found.startswith(SCHEMES):
        return folder / journal
    return ":memory:" if found == "memory:" else folder / found.removeprefix("sqlite:///")


def _price(found: PriceOf) -> Price:
    return Price.per_million(found.input, found.output, found.cached_input, found.cache_write, found.cache_write_1h)


def _dotted(name: str, where: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"{where}: {name!r} can't be imported ({error}); it should be package.module:name"
        raise ConfigError(msg) from None


def _made(name: str, where: str, options: Mapping[str, Any]) -> Any:
    try:
        return _dotted(name, where)(**options)
    except (TypeError, ValueError) as error:
        msg = f"{where}: {name!r} can't be made with these options ({error})"
        raise ConfigError(msg) from None
