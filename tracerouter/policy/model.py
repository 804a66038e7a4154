"""``policy.yaml``: what product, platform and finance can read and argue about.

:class:`PolicyFile` is what is written, :class:`Policy` what ``decide`` reads: files read in, defaults filled in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import orjson
from cachebox import LRUCache
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from tracerouter.errors import ConfigError, nearest
from tracerouter.policy.file import NotYet, Seconds, Written, read, seconds
from tracerouter.policy.patterns import BoundedPattern
from tracerouter.types import NANOS, Limit, Review, Role, Rules, Wanted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from tracerouter.types import Caller

Probability = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=1)]
ReviewHow = Literal["draft", "after_ladder"]
Risk = Literal["pii", "legal", "financial", "medical", "security", "user_facing"]


def _is_pattern(found: str) -> str:
    try:
        re.compile(found)
    except re.error as error:
        msg = "found {found}, which is no regular expression: {why}"
        raise PydanticCustomError("pattern", msg, {"found": repr(found), "why": str(error)}) from None
    return found


Pattern = Annotated[str, AfterValidator(_is_pattern)]


def _no_rung_twice(ladder: list[str]) -> list[str]:
    if len(set(ladder)) < len(ladder):
        raise PydanticCustomError("twice", "found {found}; an alias stands in it twice", {"found": str(ladder)})
    return ladder


Ladder = Annotated[list[str], Field(min_length=1), AfterValidator(_no_rung_twice)]


def _not_auto(found: str) -> str:
    if found == "auto":
        raise PydanticCustomError("taken", "a ladder can't be called auto, which is `ladder` itself")
    return found


LadderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$"), AfterValidator(_not_auto)]

DECISIONS = 1024
"""How many resolutions of a policy are remembered, at most; some 2 kB each."""

RISKS: tuple[str, ...] = get_args(Risk)


def _never(found: object) -> object:
    """Read ``never``; YAML reads ``off`` and ``no`` as false, and whoever writes that means never."""
    return {"ttl": None} if found == "never" or found is False else found


def _ttl(found: object) -> float:
    try:
        return seconds(found)
    except PydanticCustomError:
        msg = "found {found}, but a duration such as 10m, 1h or 7d, or a name of `freshness`, belongs here"
        raise PydanticCustomError("duration", msg, {"found": repr(found)}) from None


Ttl = Annotated[float, BeforeValidator(_ttl, json_schema_input_type=float | str)]


def _each_ends_somewhere(synonyms: dict[str, str]) -> dict[str, str]:
    words = {word.casefold() for word in synonyms}
    for word, instead in synonyms.items():
        if instead.casefold() in words:
            told = {"instead": repr(instead), "key": word}
            raise PydanticCustomError("twice", "{instead} stands for another word itself", told)
    return synonyms


Synonyms = Annotated[dict[Annotated[str, Field(min_length=1)], str], AfterValidator(_each_ends_somewhere)]


class NormalizeOf(Written):
    """What makes no difference in a question, besides its white space and the width of its letters."""

    synonyms: Synonyms = Field(default={}, description="Word: the word that it stands for")
    noise: list[BoundedPattern] = Field(default=[], description="Regular expressions of what is left out")


def _off(found: object) -> object:
    return None if found in ("off", "never", False) else found


class TaskCache(Written):
    """How long one task's answers are kept.

    Who shares them is the whole policy's to say, since the look-up comes before the task is known.
    """

    ttl: Ttl | None = Field(description="How long an answer is kept: 10m, 1h, or a name of `freshness`")


class CachePolicy(Written):
    """How long answers are kept, who shares them, and which questions are one."""

    ttl: Ttl | None = Field(default=600.0, description="How long an answer is kept: 10m, 1h, or a name of `freshness`")
    scope: Literal["user", "tenant"] = Field(default="tenant", description="Who may be given another's answer")
    normalize: Annotated[
        NormalizeOf | None, BeforeValidator(_off, json_schema_input_type=NormalizeOf | Literal["off"])
    ] = Field(default=NormalizeOf(), description="Which questions are one; off: only equal ones")


CacheRule = Annotated[CachePolicy, BeforeValidator(_never, json_schema_input_type=CachePolicy | Literal["never"])]
TaskCacheRule = Annotated[TaskCache, BeforeValidator(_never, json_schema_input_type=TaskCache | Literal["never"])]


class LengthOf(Written):
    """How long an answer may be."""

    min: Annotated[int, Field(ge=1)] | None = None
    max: Annotated[int, Field(ge=1)] | None = None
    unit: Literal["characters", "words", "tokens"] = "characters"

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise PydanticCustomError("bound", "needs `min`, `max`, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError("bound", "no answer has at least {min} and at most {max}", dict(self))
        return self


class ValidatorOf(Written):
    """A validator with its arguments, under its name."""

    pydantic: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$", description="package.module:Model")
    language: str | Annotated[list[str], Field(min_length=1)] | None = Field(default=None, description="ISO 639: en")
    length: LengthOf | None = None
    matches: BoundedPattern | None = Field(default=None, description="Regular expression that the answer must have")
    forbids: BoundedPattern | None = Field(default=None, description="Regular expression that it must not have")
    citations: BoundedPattern | None = Field(default=None, description="How a citation looks, its number in a group")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1 or None in self._args:
            known = ", ".join(type(self).model_fields)
            raise PydanticCustomError("one", "needs one of {known}", {"known": known})
        return self

    @property
    def _args(self) -> tuple[Any, ...]:
        (found,) = (getattr(self, name) for name in self.model_fields_set)
        return tuple(found) if isinstance(found, list) else (found,)

    @property
    def wanted(self) -> Wanted:
        """Itself, as the rules of a task hold it."""
        (name,) = self.model_fields_set
        args = (self.length.min, self.length.max, self.length.unit) if self.length else self._args
        return Wanted(name, args)


ValidatorRule = Annotated[
    Annotated[str, Tag("name")] | Annotated[ValidatorOf, Tag("arguments")],
    Discriminator(lambda found: "name" if isinstance(found, str) else "arguments"),
]


class TaskPolicy(Written):
    """What holds for one label."""

    min_confidence: Probability | None = None
    start: str | None = Field(default=None, description="The alias to start at, whatever the confidence")
    match: list[Pattern] = Field(default=[], description="Regular expressions that give a request this label")
    max_input_tokens: Tokens | None = Field(default=None, description="Longer requests start at the last rung")
    max_output_tokens: Tokens | None = None
    cache: TaskCacheRule | None = None
    checks: list[ValidatorRule] | None = Field(
        default=None, alias="validate", description="Validators, instead of the policy's"
    )
    prompt: Path | None = Field(default=None, description="A text file: instructions put before the messages")
    schema_file: Path | None = Field(default=None, alias="schema", description="A JSON Schema file for the answer")
    review: ReviewHow | None = Field(default=None, description="When a person decides on the answer")


class RiskPolicy(Written):
    """What holds, besides, for requests that carry one risk."""

    min_confidence: Probability | None = None
    start: str | None = None
    match: list[Pattern] = Field(default=[], description="Regular expressions that raise this risk, too")
    tasks: list[str] = Field(default=[], description="Labels that raise this risk, too")
    detect: bool = Field(default=True, description="Whether the packaged detection looks for it")
    cache: Annotated[TaskCache | None, BeforeValidator(_never, json_schema_input_type=Literal["never"])] = None
    review: ReviewHow | None = Field(default=None, description="When a person decides on the answer")


class ReviewPolicy(Written):
    """When a person decides on an answer, besides by task and by risk, and how long that may take."""

    low_confidence: ReviewHow | None = Field(default=None, description="Where the classifier is not sure enough")
    expires: Annotated[Seconds, Field(ge=1)] = Field(
        default=86_400.0, description="A request that nobody decided on by then has no answer; its text is deleted"
    )
    lease: Annotated[Seconds, Field(ge=1)] = Field(
        default=600.0, description="How long a review is its reviewer's alone, once it is claimed"
    )
    history: Annotated[Seconds, Field(ge=1)] = Field(
        default=2_592_000.0, description="How long it is known who did what when, without prompt and answer"
    )

    @model_validator(mode="after")
    def _is_history_longer(self) -> Self:
        if self.history < 2 * self.expires:
            msg = "should be at least twice as long as `expires`: an answer is kept for as long again"
            raise PydanticCustomError("not_known", msg, {"key": "history"})
        return self


class OnRisk(Written):
    """Where a tier's risky requests start."""

    start: str


class TierPolicy(Written):
    """What holds for the callers of one tier."""

    ladder: Ladder | None = None
    embeddings: list[str] | None = Field(default=None, description="Instead of the policy's")
    on_risk: OnRisk | None = None


_RATE: Final = re.compile(r"([1-9]\d*) *(requests|tokens) */ *(second|minute|hour)")
_LIMIT: Final = re.compile(r"(\d+(?:\.\d{1,9})?) *(USD|requests|tokens) */ *(day|month)")
_UNITS: Final = {"USD": "cost_nanos", "requests": "requests", "tokens": "tokens"}


class Amount(NamedTuple):
    """What may be spent in a period, as it is written."""

    written: str
    unit: str
    amount: int
    period: str


def _amount(found: object) -> Amount:
    match = _LIMIT.fullmatch(found.strip()) if isinstance(found, str) else None
    if match is None or ("." in match[1] and match[2] != "USD"):
        msg = "found {found}, but a limit such as 5 USD/month, 20 requests/day or 100000 tokens/day belongs here"
        raise PydanticCustomError("limit", msg, {"found": repr(found)})
    number, unit, period = match.groups()
    amount = int(Decimal(number) * NANOS) if unit == "USD" else int(number)
    return Amount(f"{number} {unit}/{period}", _UNITS[unit], amount, period)


def _rate(found: object) -> Amount:
    match = _RATE.fullmatch(found.strip()) if isinstance(found, str) else None
    if match is None:
        msg = "found {found}, but a rate such as 60 requests/minute or 100000 tokens/minute belongs here"
        raise PydanticCustomError("limit", msg, {"found": repr(found)})
    number, unit, period = match.groups()
    return Amount(f"{number} {unit}/{period}", unit, int(number), period)


Action = Literal["downgrade", "shorten", "confirm", "queue", "stale", "refuse"]
Denial = Literal["accept", "stale", "refuse"]


def _zone(found: str) -> str:
    try:
        ZoneInfo(found)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        msg = "found {found}, which is no time zone{nearest}; it should be an IANA name such as Europe/Berlin"
        told = {"found": repr(found), "nearest": nearest(found, available_timezones())}
        raise PydanticCustomError("zone", msg, told) from None
    return found


class AnyLimit(Written):
    """What every limit takes."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _./-]{0,63}$",
        description="How it is called; as it is written, if absent",
    )
    tier: str | None = Field(default=None, description="The callers that it holds for; all, if absent")
    tenant: str | None = Field(default=None, description="The one tenant that it holds for; all, if absent")


class RateOf(AnyLimit):
    """How fast callers may ask."""

    per: Literal["key", "tenant", "user"] = Field(default="key", description="Whose requests are counted together")
    limit: Annotated[Amount, BeforeValidator(_rate, json_schema_input_type=str)] = Field(
        description="Such as 60 requests/minute, 100000 tokens/minute, 5 requests/second"
    )

    @property
    def resolved(self) -> Limit:
        """Itself, as it is kept."""
        written, unit, amount, period = self.limit
        name = self.name or " ".join(part for part in (self.tenant, self.tier, self.per, written) if part is not None)
        return Limit(name, self.per, unit, amount, period, tier=self.tier, tenant=self.tenant)


class QuotaOf(AnyLimit):
    """What may be spent in a day or a month, and what is done when that is reached."""

    per: Literal["tenant", "team", "user"] = Field(description="Whose spend is summed; always within one tenant")
    role: Literal["cheap", "expensive", "fallback"] | None = Field(
        default=None, description="The attempts that count, fallbacks as expensive ones, too; all, if absent"
    )
    limit: Annotated[Amount, BeforeValidator(_amount, json_schema_input_type=str)] = Field(
        description="Such as 5 USD/month, 20 requests/day, 100000 tokens/day"
    )
    then: Annotated[list[Action], Field(min_length=1)] = Field(
        default=["refuse"], description="What is tried, in order, where there is no room for a request"
    )
    fallback: Denial = Field(
        default="refuse",
        description="Where there is no room for a fallback: accept the answer that was turned down, stale, or refuse",
    )

    @model_validator(mode="after")
    def _ends_in_what_always_works(self) -> Self:
        if "refuse" in self.then[:-1]:
            raise PydanticCustomError("order", "nothing comes after refuse", {"key": "then"})
        if len(set(self.then)) < len(self.then):
            raise PydanticCustomError("twice", "an action stands in it twice", {"key": "then"})
        return self

    @property
    def resolved(self) -> Limit:
        """Itself, as the ledger reads it."""
        written, unit, amount, period = self.limit
        name = self.name or " ".join(
            part for part in (self.tenant, self.tier, self.per, self.role, written) if part is not None
        )
        role = Role(self.role) if self.role else None
        then = tuple(self.then)
        return Limit(name, self.per, unit, amount, period, role, self.tier, self.tenant, then, self.fallback)


class WithoutLedger(Written):
    """What is done while the ledger can't be reached, so that no limit can be checked."""

    closed: list[Literal["cheap", "expensive"]] = Field(
        default=["expensive"], description="The roles that are not served then, fallbacks as expensive ones"
    )
    then: Annotated[list[Literal["downgrade", "stale", "refuse"]], Field(min_length=1)] = [
        "downgrade",
        "stale",
        "refuse",
    ]
    fallback: Denial = "refuse"


class PolicyFile(Written):
    """The whole file."""

    name: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    version: Annotated[int, Field(ge=1)] = 1
    ladder: Ladder = Field(description="Model aliases, the cheapest first")
    min_confidence: Probability = 0.70
    ladders: dict[LadderName, Ladder] = Field(default={}, description="Others, that a caller asks for as its `model`")
    embeddings: list[str] = Field(default=[], description="Model aliases that a request for embeddings may name")
    max_output_tokens: Tokens = Field(default=1024, description="Sent to the model, so that its answer has a bound")
    max_choices: Annotated[int, Field(ge=1, le=128)] = Field(default=8, description="The most `n` that is taken")
    checks: list[ValidatorRule] = Field(default=["empty"], alias="validate", description="Validators of every answer")
    cache: CacheRule = CachePolicy()
    freshness: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], Seconds] = Field(
        default={}, description="Names for how old an answer may be"
    )
    tasks: dict[str, TaskPolicy] = {}
    risks: dict[Risk, RiskPolicy] = {}
    tiers: dict[str, TierPolicy] = {}
    review: ReviewPolicy = ReviewPolicy()
    windows: NotYet = None
    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        default="UTC", description="IANA name of the zone whose midnight ends a day and a month"
    )
    rates: list[RateOf] = Field(default=[], description="How fast callers may ask")
    quotas: list[QuotaOf] = Field(default=[], description="What callers may spend")
    without_ledger: WithoutLedger = WithoutLedger()
    storm: NotYet = None

    @model_validator(mode="before")
    @classmethod
    def _names_of_freshness(cls, found: Any) -> Any:
        """Put the duration where a `ttl` has its name."""
        labels = found.get("freshness") if isinstance(found, dict) else None
        if not isinstance(labels, dict):
            return found
        tasks = found.get("tasks")
        if isinstance(tasks, dict):
            found = {**found, "tasks": {label: _aged(task, labels) for label, task in tasks.items()}}
        return _aged(found, labels)

    @model_validator(mode="after")
    def _risky_tasks_are_tasks(self) -> Self:
        for name, risk in self.risks.items():
            for label in risk.tasks:
                if label not in self.tasks:
                    msg = "{name}.tasks: {label} is none of the tasks{nearest}"
                    told = {"name": name, "label": repr(label), "nearest": nearest(label, self.tasks)}
                    raise PydanticCustomError("not_known", msg, {"key": "risks", **told})
        return self

    @model_validator(mode="after")
    def _limits_have_names_of_their_own(self) -> Self:
        known = {*self.tiers}
        names: set[str] = set()
        limits: list[tuple[str, int, QuotaOf | RateOf]] = [("quotas", at, one) for at, one in enumerate(self.quotas)]
        for key, at, limit in [*limits, *(("rates", at, one) for at, one in enumerate(self.rates))]:
            if limit.tier is not None and limit.tier not in known:
                msg = "{key}.{at}.tier: {tier} is none of the policy's `tiers`{nearest}"
                told = {"at": at, "tier": repr(limit.tier), "nearest": nearest(limit.tier, known), "key": key}
                raise PydanticCustomError("not_known", msg, told)
            name = limit.resolved.name
            if name in names:
                msg = "{key}.{at}: another one is called {name}, too; give one of them a `name` of its own"
                raise PydanticCustomError("twice", msg, {"at": at, "name": repr(name), "key": key})
            names.add(name)
        return self

    @model_validator(mode="after")
    def _tiers_embed_with_what_there_is(self) -> Self:
        for name, tier in self.tiers.items():
            for alias in tier.embeddings or ():
                if alias not in self.embeddings:
                    msg = "tiers.{name}.embeddings: {alias} is not among the policy's `embeddings`{nearest}"
                    told = {"name": name, "alias": repr(alias), "nearest": nearest(alias, self.embeddings)}
                    raise PydanticCustomError("not_known", msg, told)
        return self

    @model_validator(mode="after")
    def _starts_stand_on_a_ladder(self) -> Self:
        rungs = {*self.ladder, *(alias for tier in self.tiers.values() for alias in tier.ladder or ())}
        starts = {f"tasks.{label}": task.start for label, task in self.tasks.items()}
        starts |= {f"risks.{name}": risk.start for name, risk in self.risks.items()}
        starts |= {f"tiers.{name}.on_risk": tier.on_risk.start for name, tier in self.tiers.items() if tier.on_risk}
        for where, start in starts.items():
            if start is not None and start not in rungs:
                msg = "{where}.start: {start} stands on no ladder{nearest}"
                told = {"where": where, "start": repr(start), "nearest": nearest(start, rungs)}
                raise PydanticCustomError("not_known", msg, told)
        return self


def _aged(holder: Any, labels: dict[Any, Any]) -> Any:
    cache = holder.get("cache") if isinstance(holder, dict) else None
    if not isinstance(cache, dict) or not isinstance(cache.get("ttl"), str) or cache["ttl"] not in labels:
        return holder
    return {**holder, "cache": {**cache, "ttl": labels[cache["ttl"]]}}


@dataclass(frozen=True, slots=True)
class Normal:
    """What is done to a question before it is looked for among those that were answered."""

    synonyms: tuple[tuple[str, str], ...] = ()
    """A word, and the one that it stands for."""
    noise: tuple[str, ...] = ()
    """Patterns of what is left out."""


@dataclass(frozen=True, slots=True)
class TaskRule:
    """What ``decide`` reads of one task, with the policy's defaults filled in."""

    threshold: float
    start: str | None
    max_input_tokens: int | None
    rules: Rules
    review: Review | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, ready to decide. Make one with :func:`load` or :meth:`of`."""

    name: str
    version: int
    ladder: tuple[str, ...]
    default: TaskRule
    tasks: Mapping[str, TaskRule]
    risks: Mapping[str, RiskPolicy]
    tiers: Mapping[str, TierPolicy]
    scope: str
    """Who shares a cached answer: ``tenant`` or ``user``."""
    normal: Normal | None
    """Which questions are one. None: only equal ones."""
    freshness: Mapping[str, float]
    """How old an answer may be (seconds), by the names that tasks and callers use."""
    label_patterns: Mapping[str, tuple[str, ...]] = field(repr=False)
    ladders: Mapping[str, tuple[str, ...]]
    """Those that a caller may ask for by name."""
    embeddings: tuple[str, ...]
    """The models that a request for embeddings may name, whatever the tier."""
    rates: tuple[Limit, ...]
    limits: tuple[Limit, ...]
    without_ledger: WithoutLedger
    timezone: str
    """IANA name of the zone whose midnight ends a day and a month."""
    max_choices: int
    """The most ``n`` that is taken."""
    review: ReviewPolicy
    source: str
    """The file it was read from."""
    salt: str = field(repr=False)
    """Digest of all that changes what a model answers; thresholds do not, so a new one keeps the cache."""
    decided: LRUCache[tuple[Any, ...], Any] = field(
        init=False, repr=False, compare=False, default_factory=lambda: LRUCache(DECISIONS)
    )
    """What ``decide`` remembers under this policy; it goes when the policy does."""

    @classmethod
    def of(cls, written: PolicyFile, folder: Path = Path(), source: str = "policy") -> Policy:
        """Read in the files that `written` names, relative to `folder`; errors name `source`.

        Raises:
            ConfigError: A prompt or schema can't be read.
        """
        default = _rule(written, TaskPolicy(), folder)
        tasks = {label: _rule(written, task, folder) for label, task in written.tasks.items()}
        tiers = dict(written.tiers)
        usual = replace(default.rules, cache_ttl=None)
        special = {label: replace(rule.rules, cache_ttl=None) for label, rule in tasks.items()}
        asked = written.cache.normalize
        normal = Normal(tuple(asked.synonyms.items()), tuple(asked.noise)) if asked else None
        changing: list[Any] = [
            [usual, {label: rules for label, rules in special.items() if rules != usual}],
            [written.ladder, {name: tier.ladder for name, tier in tiers.items()}, written.ladders],
        ]
        if normal not in (None, Normal()):
            changing.append(normal)  # what was taken for one question before may be two now
        drafts = sorted(where for where, how in _reviews(written) if how is Review.DRAFT)
        if drafts:
            changing.append(drafts)  # a person's answer, and not the one that was given before without asking one
        salt = blake2b(orjson.dumps(changing, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
        return cls(
            name=written.name,
            version=written.version,
            ladder=tuple(written.ladder),
            default=default,
            tasks=tasks,
            risks={str(name): risk for name, risk in written.risks.items()},
            tiers=tiers,
            scope=written.cache.scope,
            normal=normal,
            freshness=written.freshness,
            label_patterns={label: tuple(task.match) for label, task in written.tasks.items() if task.match},
            ladders={name: tuple(ladder) for name, ladder in written.ladders.items()},
            embeddings=tuple(written.embeddings),
            rates=tuple(rate.resolved for rate in written.rates),
            limits=tuple(quota.resolved for quota in written.quotas),
            without_ledger=written.without_ledger,
            timezone=written.timezone,
            max_choices=written.max_choices,
            review=written.review,
            source=source,
            salt=salt,
        )

    @property
    def id(self) -> str:
        """``name@version``, as spans, record and headers tell it."""
        return f"{self.name}@{self.version}"

    def task(self, label: str) -> TaskRule:
        """Return what holds for `label`."""
        return self.tasks.get(label, self.default)

    def ladder_of(self, caller: Caller) -> tuple[str, ...]:
        """Return the rungs that the caller's tier allows."""
        tier = self.tiers.get(caller.tier) if caller.tier else None
        return tuple(tier.ladder) if tier and tier.ladder else self.ladder

    def embeddings_of(self, caller: Caller) -> tuple[str, ...]:
        """Return the models that the caller's tier may embed with."""
        tier = self.tiers.get(caller.tier) if caller.tier else None
        return self.embeddings if tier is None or tier.embeddings is None else tuple(tier.embeddings)

    def limits_of(self, caller: Caller, role: Role) -> tuple[Limit, ...]:
        """Return the limits that must have room for what `caller` asks in `role`."""
        return tuple(limit for limit in self.limits if limit.holds_for(caller, role)) if self.limits else ()

    def rates_of(self, caller: Caller) -> tuple[Limit, ...]:
        """Return the rates that bound how fast `caller` may ask."""
        return tuple(rate for rate in self.rates if rate.concerns(caller)) if self.rates else ()

    @property
    def actions(self) -> dict[str, str]:
        """What is done where a limit is reached: each action, and the place where it is named first."""
        found: dict[str, str] = {}
        for at, limit in enumerate(self.limits):
            for action in limit.then:
                found.setdefault(action, f"quotas.{at}.then")
        return found

    @property
    def caches(self) -> bool:
        """Whether any answer is ever kept."""
        return any(rule.rules.cache_ttl for rule in (self.default, *self.tasks.values()))

    @property
    def reviews(self) -> set[Review]:
        """In which ways a person may come in."""
        by_risk = {risk.review for risk in self.risks.values()}
        by_task = {rule.review for rule in self.tasks.values()}
        return {Review(how) for how in (*by_risk, *by_task, self.review.low_confidence) if how}

    @property
    def validators(self) -> set[str | Wanted]:
        """Every validator that is named."""
        return {name for rule in (self.default, *self.tasks.values()) for name in rule.rules.validate}

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Every JSON Schema, by the place where it is named."""
        found = {f"tasks.{label}.schema": rule.rules.schema for label, rule in self.tasks.items()}
        return {where: schema for where, schema in found.items() if schema is not None}

    def aliases(self) -> Iterator[tuple[str, str]]:
        """Yield each alias that is named, after the place where it is."""
        named = {f"ladders.{name}": ladder for name, ladder in self.ladders.items()}
        for where, ladder in {"ladder": self.ladder, **named, "embeddings": self.embeddings}.items():
            for alias in ladder:
                yield where, alias
        for label, rule in self.tasks.items():
            if rule.start:
                yield f"tasks.{label}.start", rule.start
        for name, risk in self.risks.items():
            if risk.start:
                yield f"risks.{name}.start", risk.start
        for name, tier in self.tiers.items():
            for alias in tier.ladder or ():
                yield f"tiers.{name}.ladder", alias
            if tier.on_risk:
                yield f"tiers.{name}.on_risk.start", tier.on_risk.start

    def check_aliases(self, known: Collection[str]) -> None:
        """Check that every alias is one of `known`.

        Raises:
            ConfigError: Names the place, the alias, and the nearest known one; or the ladder that is called as a model.
        """
        for name in self.ladders.keys() & set(known):
            msg = f"{self.source}: ladders.{name}: a model is called so too; a caller's `model` could mean either"
            raise ConfigError(msg)
        for where, alias in self.aliases():
            if alias not in known:
                msg = f"{self.source}: {where}: no model is called {alias!r}{nearest(alias, known)}"
                raise ConfigError(msg)


def load(path: Path) -> Policy:
    """Read a policy file and what it names.

    Raises:
        ConfigError: Names file, line, key, what was found, and the nearest right name.
    """
    return Policy.of(read(path, PolicyFile), path.parent, str(path))


def _rule(written: PolicyFile, task: TaskPolicy, folder: Path) -> TaskRule:
    ttl = written.cache.ttl if task.cache is None else task.cache.ttl
    return TaskRule(
        threshold=written.min_confidence if task.min_confidence is None else task.min_confidence,
        start=task.start,
        max_input_tokens=task.max_input_tokens,
        rules=Rules(
            prompt=_text(folder / task.prompt) if task.prompt else None,
            schema=_schema(folder / task.schema_file) if task.schema_file else None,
            validate=tuple(
                one if isinstance(one, str) else one.wanted
                for one in (written.checks if task.checks is None else task.checks)
            ),
            max_output_tokens=task.max_output_tokens or written.max_output_tokens,
            cache_ttl=ttl,
        ),
        review=Review(task.review) if task.review else None,
    )


def _reviews(written: PolicyFile) -> Iterator[tuple[str, Review]]:
    """Yield each way in which a person comes in, after the place that says so."""
    places: dict[str, ReviewHow | None] = {f"tasks.{label}": task.review for label, task in written.tasks.items()}
    places |= {f"risks.{name}": risk.review for name, risk in written.risks.items()}
    places["review.low_confidence"] = written.review.low_confidence
    for where, how in places.items():
        if how is not None:
            yield where, Review(how)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        msg = f"{path}: can't be read ({error.strerror})"
        raise ConfigError(msg) from None
    except UnicodeDecodeError:
        msg = f"{path}: is not UTF-8"
        raise ConfigError(msg) from None


def _schema(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(_text(path))
    except orjson.JSONDecodeError as error:
        msg = f"{path}:{error.lineno}: is no JSON: {error.msg}"
        raise ConfigError(msg) from None
    if not isinstance(found, dict):
        msg = f"{path}: a JSON Schema is an object"
        raise ConfigError(msg)
    return found
