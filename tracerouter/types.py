"""The nouns: slotted, frozen, without behaviour beyond reading themselves.

Money is a whole number of nano-dollars (1 USD = 10**9), so that sums are exact. Times are seconds as
``float`` unless a name ends in ``_ns``. The one noun that changes is :class:`Meter`, which says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import orjson

from tracerouter.errors import BadRequest, TooLarge
from tracerouter.request import checked, checked_embeddings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tracerouter.errors import ProviderError

NANOS = 1_000_000_000
"""Nano-dollars in a dollar."""

CHAT: Final = "chat"
EMBEDDINGS: Final = "embeddings"

MAX_BODY_BYTES = 1_048_576
"""The largest request body that is taken where nothing else is configured (bytes)."""


class Role(StrEnum):
    """What a rung is in one request (design.md, "Rulings")."""

    CHEAP = "cheap"
    EXPENSIVE = "expensive"
    FALLBACK = "fallback"
    CLASSIFY = "classify"
    """No rung: a model that a classifier asks what the request is."""


class Status(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    CACHED = "cached"
    STALE = "stale"
    """With an expired answer, since a limit was reached."""
    NEEDS_CONFIRMATION = "needs_confirmation"
    """Not served, since a limit was reached that its caller may pass by saying so."""
    QUEUED = "queued"
    """To be run later, since a limit was reached."""
    IN_REVIEW = "in_review"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """The closed set of reason codes: on-call greps one word, and finds it everywhere."""

    # why this route
    CONFIDENT = "confident"
    LOW_CONFIDENCE = "low_confidence"
    ABSTAINED = "abstained"
    FORCED_TASK = "forced_task"
    RISK = "risk"
    TIER = "tier"
    TOO_LONG = "too_long"
    PINNED = "pinned"
    UNSUPPORTED = "unsupported"
    CACHE_HIT = "cache_hit"
    # why a fallback
    SCHEMA_INVALID = "schema_invalid"
    EMPTY = "empty"
    REFUSAL = "refusal"
    TRUNCATED = "truncated"
    CHECK_FAILED = "check_failed"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    PROVIDER_ERROR = "provider_error"
    CONTEXT_TOO_LONG = "context_too_long"
    # why no answer, or a lesser one
    RATE_LIMIT = "rate_limit"
    BUDGET_EXHAUSTED = "budget_exhausted"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    NOT_ALLOWED = "not_allowed"
    REVIEW_UNAVAILABLE = "review_unavailable"
    NO_RUNG_LEFT = "no_rung_left"
    CANCELLED = "cancelled"
    BAD_REQUEST = "bad_request"
    INTERNAL = "internal"


class Review(StrEnum):
    """How a person comes in."""

    DRAFT = "draft"
    """The cheap rung's answer is a draft: a person decides on it before the caller gets anything."""
    AFTER_LADDER = "after_ladder"
    """Only where no rung gave an acceptable answer."""


class Source(StrEnum):
    """Where a usage, and so a cost, comes from."""

    REPORTED = "reported"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Comes from the API key or from ``identify``, never from a header a caller can set."""

    tenant: str = "default"
    team: str | None = None
    user: str | None = None
    tier: str | None = None
    key: str | None = field(default=None, compare=False)
    """Tells its API key from others, for rate limits: a digest."""
    admin: bool = False
    """May see and do what concerns every tenant."""
    reviewer: bool = False
    """May see and decide its tenant's reviews."""


class Freshness(NamedTuple):
    """What a caller lets the cache do (``x-tracerouter-cache``)."""

    no_store: bool = False
    """Neither look up nor keep."""
    max_age: float | None = None
    """Seconds; an older entry does not count. None: any entry that has not expired."""
    label: str | None = None
    """A name of the policy's `freshness`, which says how old an entry may be."""


class Origin(NamedTuple):
    """Where a task comes from that is run later than it was asked."""

    job: str
    """Its id."""
    traceparent: str
    """Of the request that queued it."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a caller asks: the OpenAI chat request (or that for embeddings) as it came, and who asks it how.

    Make one with :meth:`chat`, :meth:`parse` or :meth:`embeddings`, which check the body.
    """

    body: Mapping[str, Any]
    caller: Caller = Caller()
    hint: str | None = None
    """The task's label, where the caller knows it; risks are looked for all the same."""
    freshness: Freshness = Freshness()  # noqa: RUF009 - a tuple does not change
    timeout: float | None = None
    """Seconds from the start of ``route`` to the deadline. None: the router's."""
    request_id: str | None = None
    """None: the router draws one."""
    webhook: str | None = None
    """The URL that is to be told what came of a review."""
    handler: Callable[[Call, Meter], Awaitable[Completion]] | None = None
    """The wrapped service's own handler, which an alias of provider ``handler`` calls."""
    confirm: str | None = None
    """The token that lets it pass a limit, once."""
    respond_async: bool = False
    """Whether the caller takes an answer later, where policy queues."""
    idempotency_key: str | None = None
    """Makes one job of equal requests that are queued."""
    origin: Origin | None = None
    """The job that it runs. None: it is asked now."""

    @classmethod
    def chat(cls, text: str, *, model: str = "auto", **facts: Any) -> Self:
        """Ask one question: a Task with a single user message. `facts` are the other fields."""
        return cls.parse({"model": model, "messages": [{"role": "user", "content": text}]}, **facts)

    @classmethod
    def parse(cls, body: object, *, max_bytes: int = MAX_BODY_BYTES, **facts: Any) -> Self:
        """Check the shape of an OpenAI chat request and make a Task of it.

        Args:
            body: The decoded JSON. Fields that are not known here pass through to the model.
            max_bytes: The largest body, encoded.
            facts: The other fields of Task.

        Raises:
            BadRequest: Names the field that is wrong.
            TooLarge: The body is larger than `max_bytes`.
        """
        return cls._of(checked(body), max_bytes, facts)

    @classmethod
    def embeddings(cls, body: object, *, max_bytes: int = MAX_BODY_BYTES, **facts: Any) -> Self:
        """Check the shape of an OpenAI request for embeddings and make a Task of it, for :meth:`Router.embed`.

        Arguments and errors are those of :meth:`parse`.
        """
        return cls._of(checked_embeddings(body), max_bytes, facts)

    @classmethod
    def _of(cls, found: dict[str, Any], max_bytes: int, facts: dict[str, Any]) -> Self:
        try:
            size = len(orjson.dumps(found))
        except TypeError as error:  # orjson names no path, so neither can we
            msg = f"the request can't be written as JSON: {error}"
            raise BadRequest(msg) from None
        if size > max_bytes:
            msg = f"the request has {size} bytes; at most {max_bytes} are taken"
            raise TooLarge(msg, "messages" if "messages" in found else "input")
        return cls(found, **facts)

    @property
    def operation(self) -> str:
        """What it is a request for: ``chat`` or ``embeddings``."""
        return CHAT if "messages" in self.body else EMBEDDINGS

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages, oldest first."""
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    @property
    def text(self) -> str:
        """The text of the last user message (or of the last message, where no user speaks; or to be embedded)."""
        if "messages" not in self.body:
            given = self.body["input"]
            return given if isinstance(given, str) else "\n".join(one for one in given if isinstance(one, str))
        for message in reversed(self.messages):
            if message["role"] == "user":
                return content_text(message.get("content"))
        return content_text(self.messages[-1].get("content"))

    @property
    def model(self) -> str:
        """The model asked for; ``auto`` lets the router choose."""
        return str(self.body.get("model") or "auto")

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema that the caller's own ``response_format`` asks for, if it does."""
        wanted = self.body.get("response_format") or {}
        if wanted.get("type") != "json_schema":
            return None
        schema: Mapping[str, Any] | None = wanted["json_schema"].get("schema")
        return schema

    @property
    def wants_json(self) -> bool:
        """Whether the caller's ``response_format`` is ``json_object`` (any object will do)."""
        return (self.body.get("response_format") or {}).get("type") == "json_object"

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools that the model may call."""
        return self.body.get("tools") or []

    @property
    def has_images(self) -> bool:
        """Whether a message holds an image."""
        parts = (
            part for message in self.messages if isinstance(message.get("content"), list) for part in message["content"]
        )
        return any(part.get("type") == "image_url" for part in parts)

    @property
    def choices(self) -> int:
        """How many answers are asked for (``n``)."""
        return self.body.get("n") or 1

    @property
    def max_output_tokens(self) -> int | None:
        """The caller's own bound on the answer, by either of its two names."""
        limit: int | None = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        return limit


class Usage(NamedTuple):
    """Tokens of one or more model calls; input includes cached and cache_write, output includes reasoning tokens."""

    input: int = 0
    output: int = 0
    cached: int = 0
    """Read from the provider's own prompt cache."""
    reasoning: int = 0
    cache_write: int = 0
    """Written to the provider's own prompt cache; includes cache_write_1h."""
    cache_write_1h: int = 0
    """Of those, the ones kept for an hour instead of some minutes."""

    def plus(self, other: Usage) -> Usage:
        """Return the sum, field by field."""
        return Usage(*(mine + its for mine, its in zip(self, other, strict=True)))


class Cost(NamedTuple):
    """Nano-dollars and how well they are known; `nanos` is None only where `source` is unknown."""

    nanos: int | None = 0
    source: Source = Source.REPORTED


@dataclass(slots=True)
class Use:
    """One request that a provider sent upstream: a retry makes another."""

    refused: bool = False
    """The upstream said itself that it did not serve it (4xx, 5xx): costs nothing."""
    usage: Usage | None = None
    """As reported; None: not reported (yet)."""
    begun: Usage | None = None
    """The input alone, as reported before the answer was written."""
    unknowable: bool = False
    """Unless its input is reported there is nothing to count by."""
    charged_nanos: int | None = None
    """What the upstream itself says that it charged, where it does."""
    received: list[str] = field(default_factory=list)
    """Text, reasoning and tool arguments that arrived, for counting what a lost answer cost."""


class Meter:
    """What one model call has used so far, retries included.

    The provider writes it while it works, so that the truth is there however the call ends.
    """

    __slots__ = ("asked", "cost", "first_chunk_ns", "usage", "uses")

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.first_chunk_ns: int | None = None
        """``time.perf_counter_ns()`` when the first content arrived."""
        self.usage: Usage | None = Usage()
        """Of all that was sent; None: not known. Set when the call has ended, as are the next two."""
        self.cost = Cost()
        self.asked = 0
        """Input tokens of the question, counted once however often it was sent."""

    def sent(self) -> None:
        """Note that a request is on its way, and may be billed."""
        self.uses.append(Use())

    def refused(self) -> None:
        """Note that the request was answered with an error, and so is not billed."""
        if self.uses:
            self.uses[-1].refused = True

    def received(self, text: str) -> None:
        """Note output that arrived."""
        self.uses[-1].received.append(text)

    def reported(self, usage: Usage) -> None:
        """Note the usage that the provider reports; a later report replaces an earlier one."""
        self.uses[-1].usage = usage

    def begun(self, usage: Usage) -> None:
        """Note the input that the provider reports ahead of its answer: until the whole is, output is counted."""
        self.uses[-1].begun = usage._replace(output=0)

    def unknowable(self) -> None:
        """Note that what is not reported can't be counted either, as where a wrapped service does the work."""
        self.uses[-1].unknowable = True

    def charged(self, nanos: int) -> None:
        """Note what the upstream itself says that it charged (nano-dollars)."""
        self.uses[-1].charged_nanos = nanos


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer: the OpenAI chat completion (or list of embeddings) as it came, with typed accessors."""

    body: Mapping[str, Any]

    @classmethod
    def of(cls, text: str, *, model: str, finish_reason: str = "stop") -> Self:
        """Make a completion of plain text, for a model that does not speak OpenAI."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        return cls({"object": "chat.completion", "model": model, "choices": [choice]})

    @property
    def message(self) -> Mapping[str, Any]:
        """The first choice's message."""
        message: Mapping[str, Any] = self.body["choices"][0]["message"]
        return message

    @property
    def text(self) -> str:
        """The first choice's text; empty where there are only tool calls."""
        return content_text(self.message.get("content"))

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The first choice's tool calls; a call by the older ``function_call`` too."""
        older = self.message.get("function_call")
        return self.message.get("tool_calls") or ([{"type": "function", "function": older}] if older else [])

    @property
    def refusal(self) -> str | None:
        """The model's own refusal, where the provider marks it as one."""
        return self.message.get("refusal")

    @property
    def finish_reasons(self) -> list[str]:
        """Each choice's finish reason."""
        return [str(choice.get("finish_reason") or "unknown") for choice in self.body["choices"]]

    @property
    def model(self) -> str | None:
        """The model that answered, as the provider names it."""
        return self.body.get("model")

    @property
    def id(self) -> str | None:
        """The provider's own id of the answer."""
        return self.body.get("id")

    @property
    def each(self) -> list[Completion]:
        """Its choices, each as a completion of its own."""
        choices = self.body["choices"]
        return [self] if len(choices) == 1 else [Completion({**self.body, "choices": [one]}) for one in choices]

    def with_text(self, text: str) -> Completion:
        """Return a copy whose first choice says `text`."""
        first, *rest = self.body["choices"]
        changed = {**first, "message": {**first["message"], "content": text}}
        return Completion({**self.body, "choices": [changed, *rest]})

    def with_usage(self, usage: Usage) -> Completion:
        """Return a copy with `usage` in the shape that OpenAI gives it."""
        counted = {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        }
        return Completion({**self.body, "usage": counted})


class Spend(NamedTuple):
    """What is counted of model calls: nano-dollars, attempts, tokens both ways. A classifier's call is no attempt."""

    cost_nanos: int = 0
    requests: int = 0
    tokens: int = 0

    def plus(self, other: Spend) -> Spend:
        """Return the sum, field by field."""
        return Spend(*(mine + its for mine, its in zip(self, other, strict=True)))


class Balance(NamedTuple):
    """Of one account in one day or month."""

    spent: Spend = Spend()
    held: Spend = Spend()
    """Reserved for attempts that are under way."""

    @property
    def taken(self) -> Spend:
        """What limits look at: what is reserved counts as spent."""
        return self.spent.plus(self.held)


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be spent on one account in a day or a month, and what is done when it is reached; or a rate."""

    name: str
    """How spans, metrics and answers call it."""
    per: str
    """Whose account: ``tenant``, ``team`` or ``user``; of a rate ``key``, too. None is wider than a tenant."""
    unit: str
    """Of `amount`: the field of Spend that it bounds."""
    amount: int
    period: str
    """``day`` or ``month``; of a rate ``second``, ``minute`` or ``hour``."""
    role: Role | None = None
    """The attempts that count; those of ``expensive`` are all that ``fallback`` makes, too. None: every call."""
    tier: str | None = None
    """The callers that it holds for. None: all."""
    tenant: str | None = None
    then: tuple[str, ...] = ("refuse",)
    """What is tried, in order, before a rung that it does not let pass is given up."""
    fallback: str = "refuse"
    """What is done where it does not let a fallback pass: ``accept`` the answer that was turned down, ``stale``."""

    def holds_for(self, caller: Caller, role: Role) -> bool:
        """Return whether it bounds what `caller` spends in `role`."""
        counts = self.role in (None, role) or (self.role is Role.EXPENSIVE and role is Role.FALLBACK)
        return counts and self.concerns(caller)

    def concerns(self, caller: Caller) -> bool:
        """Return whether it bounds what `caller` spends in some role."""
        return self.tier in (None, caller.tier) and self.tenant in (None, caller.tenant)

    def of(self, spend: Spend) -> int:
        """Return the part of `spend` that it bounds."""
        found: int = getattr(spend, self.unit)
        return found

    def told(self, amount: int) -> str:
        """Write an amount with its unit: ``0.250000000 USD``, ``3 requests``."""
        return f"{usd(amount)} USD" if self.unit == "cost_nanos" else f"{amount} {self.unit}"


@dataclass(frozen=True, slots=True)
class Claim:
    """What an attempt may cost at most, to be reserved before it is made."""

    id: str
    """Of the request, as of :class:`Entry`."""
    attempt: int
    time: float
    """Unix seconds of the request's start: it says which day and month are charged."""
    caller: Caller
    role: Role
    bound: Spend
    limits: tuple[Limit, ...]
    """Those that must have room for all of `bound`."""
    lease: float
    """Seconds after which the reservation is void, should its owner have died."""


class Headroom(NamedTuple):
    """What a limit has left, in its own unit; what is reserved counts as spent."""

    limit: Limit
    left: int


class Standing(NamedTuple):
    """How a caller stands against a rate."""

    limit: Limit
    left: int
    """In the rate's unit."""
    reset: float
    """Seconds until all of it is there again."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room in the ledger that an attempt holds until it is settled."""

    bound: Spend
    headroom: tuple[Headroom, ...] = ()
    """Of each limit of the claim, with the reservation counted."""


@dataclass(frozen=True, slots=True)
class Denied:
    """A limit has no room for an attempt."""

    limit: Limit
    left: int
    """Before the attempt, in the limit's unit."""
    retry_after: float
    """Seconds until the limit's period ends, or until a rate has room; infinite where it never has so much."""
    reason: Reason = Reason.BUDGET_EXHAUSTED

    @property
    def headroom(self) -> float:
        """What is left, as spans and record tell it: USD, requests or tokens."""
        return self.left / NANOS if self.limit.unit == "cost_nanos" else float(self.left)


class Admission(NamedTuple):
    """Whether a request may come in, by how fast its caller asks."""

    standings: tuple[Standing, ...] = ()
    denied: Denied | None = None


class Confirmation(NamedTuple):
    """What a caller is offered at a limit: to say that it is worth it."""

    token: str
    limit: str
    """The name of the limit that was reached."""
    model: str
    """The alias of the model that it is good for."""
    most: int | None
    """What one call of that can cost (nano-dollars). None: not known."""
    expires: float
    """Unix seconds."""


class Confirmed(NamedTuple):
    """What a caller has said is worth it."""

    model: str
    """The alias that it holds for."""
    limits: tuple[str, ...]
    """The names of the limits that need no room for it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is run later. Times are Unix seconds."""

    id: str
    state: str
    """``queued``, ``running``, ``done`` or ``failed``."""
    limit: str
    """The name of the limit that was reached."""
    reason: Reason
    created: float
    due: float | None
    """When it is run at the latest. None: it is not waiting."""
    status: int | None = None
    """The HTTP status of its answer. None: there is none yet."""
    answer: Mapping[str, Any] | None = field(default=None, repr=False)
    """As OpenAI tells it; an error, too."""


@dataclass(frozen=True, slots=True)
class Call:
    """One model call, ready to be sent."""

    body: Mapping[str, Any]
    """An OpenAI chat request, its ``model`` as the provider names it, without ``stream``."""
    deadline: float
    """On the event loop's clock (``loop.time()``)."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """W3C trace context, to be sent along."""
    operation: str = CHAT
    """``chat`` or ``embeddings``, as the GenAI conventions name them: what `body` is a request for."""
    handler: Callable[[Call, Meter], Awaitable[Completion]] | None = None
    escalation: Escalation | None = None
    room: Callable[[], Awaitable[bool]] | None = None
    """Holds as much again for another try, if there is room; to be asked where an earlier one may be billed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that a validator found wrong."""

    code: Reason
    message: str
    """For the record and for the model that repairs; a caller's own data may stand in it."""
    path: str = "$"
    """JSONPath of the place in the answer; ``$`` is the whole of it."""
    detail: str | None = None
    """A custom validator's own code, or the JSON Schema keyword that failed."""

    @property
    def told(self) -> str:
        """How spans and record tell it: the code closest to the cause, and the place."""
        return f"{self.detail or self.code} {self.path}"


@dataclass(frozen=True, slots=True)
class Check:
    """What one validator says of a Completion."""

    validator: str
    status: str
    """``passed``, ``repaired``, ``skipped`` or ``failed``."""
    failures: tuple[Failure, ...] = ()
    repaired: Completion | None = None
    """The answer to go on with, where the validator could repair it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the validators say of a Completion together."""

    checks: tuple[Check, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether no validator failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Every failure, in the validators' order."""
        return tuple(failure for check in self.checks for failure in check.failures)

    @property
    def status(self) -> str:
        """The telling one of the checks' states: failed, repaired, passed, skipped."""
        found = {check.status for check in self.checks}
        return next((s for s in ("failed", "repaired", "passed") if s in found), "skipped")


class Evidence(NamedTuple):
    """What was found that raises a risk: a kind and how often, never the text itself."""

    risk: str
    kind: str
    """Such as ``email`` or ``contract``; ``match`` for a pattern of the policy's, ``task`` for one of its labels."""
    times: int = 1

    @property
    def told(self) -> str:
        """How spans and people are told: ``email``, ``email x2``."""
        return self.kind if self.times == 1 else f"{self.kind} x{self.times}"


@dataclass(frozen=True, slots=True)
class Classification:
    """What a request is, as far as can be told."""

    label: str = "other"
    confidence: float = 0.0
    """A calibrated probability that the label is right; 0 where the classifier abstains."""
    risks: frozenset[str] = frozenset()
    classifier: str = "none"
    version: str = ""
    cached: bool = False
    """Whether it was remembered from an equal request."""
    evidence: tuple[Evidence, ...] = ()
    """Why the risks, where the detection is ours."""
    failed: str = ""
    """Why a classifier was passed over, so that asking again may tell more: its model's failure as a reason code, or
    the exception's type. Empty: none failed, or another was sure all the same."""

    @property
    def abstained(self) -> bool:
        """Whether nothing could be told."""
        return self.label == "other" and self.confidence == 0


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a ladder: a model's alias, and its role in this request."""

    alias: str
    role: Role


@dataclass(frozen=True, slots=True)
class Wanted:
    """A validator that a policy asks for with arguments: ``{length: {max: 2000}}``."""

    validator: str
    args: tuple[Any, ...]
    """What it is made with: strings, numbers and None."""

    def __str__(self) -> str:
        return f"{self.validator}({', '.join('any' if arg is None else str(arg) for arg in self.args)})"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a policy says of one task, on top of where to send it."""

    prompt: str | None = None
    """Instructions put before the caller's messages."""
    schema: Mapping[str, Any] | None = None
    validate: tuple[str | Wanted, ...] = ()
    max_output_tokens: int | None = None
    cache_ttl: float | None = None
    """Seconds; None: never keep."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The ladder to climb, from where, and why."""

    rungs: tuple[Rung, ...]
    """The rungs to try, in order; empty where the caller is refused."""
    reason: Reason
    label: str
    threshold: float
    rules: Rules
    policy: str
    """``name@version``."""
    arm: str = "stable"
    review: Review | None = None
    """Whether and how a person comes in. With a draft the rungs are those that may write it, and the reason is what
    makes it one."""


@dataclass(frozen=True, slots=True)
class Escalation:
    """Why a later rung is tried, and all that it may build on: it repairs instead of restarting."""

    source: str
    """The alias that was tried before."""
    reason: Reason
    classification: Classification
    rejected: Completion | None = None
    failures: tuple[Failure, ...] = ()
    stale: Completion | None = None
    """What the cache held, if it had expired."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One rung tried. A rejected, failed or cancelled one still costs."""

    rung: Rung
    usage: Usage | None
    """Of all its tries; None: not known."""
    cost: Cost
    latency: float
    asked: int = 0
    """Input tokens of the question, counted once however often it was sent."""
    completion: Completion | None = None
    verdict: Verdict | None = None
    error: ProviderError | None = None
    cancelled: bool = False
    reservation: Reservation | None = None

    @property
    def underreserved(self) -> bool:
        """Whether it cost more than was reserved: reasoning tokens, or a tokenizer that is not the model's."""
        if self.reservation is None:
            return False
        bound, used = self.reservation.bound, self.usage or Usage()
        over = used.input + used.output > bound.tokens > 1  # 1 is held where no bound is known
        return over or (self.cost.nanos or 0) > bound.cost_nanos > 1

    @property
    def spend(self) -> Spend:
        """What it adds to its caller's accounts."""
        return _spend(self.rung.role, self.usage, self.cost)

    @property
    def accepted(self) -> bool:
        """Whether its completion is the answer."""
        return self.verdict is not None and self.verdict.accepted

    @property
    def reason(self) -> Reason | None:
        """Why it is not the answer: the error's code, or the first failure's."""
        if self.cancelled:
            return Reason.CANCELLED
        if self.error is not None:
            return Reason(self.error.reason)
        if self.verdict is None:
            return Reason.INTERNAL
        return self.verdict.failures[0].code if self.verdict.failures else None


class Hit(NamedTuple):
    """What the cache held for a request."""

    completion: Completion | None = None
    status: str = "miss"
    """``hit``, ``miss``, ``stale`` (expired, or older than the caller takes) or ``bypass``."""
    layer: str = "memory"
    key: str | None = None
    age: float | None = None
    """Seconds since it was kept."""
    alias: str | None = None
    """The model that gave the answer."""
    looked: tuple[tuple[str, str], ...] = ()
    """The layers that were asked, and what each said: the statuses, or ``error``."""
    leader: str | None = None
    """The equal request that it waited for, as a W3C ``traceparent``."""
    waited: float = 0.0
    """Seconds that it waited for it."""

    @property
    def fresh(self) -> bool:
        """Whether it answers the request."""
        return self.status == "hit"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger: what one attempt, or one classifier's call of a model, cost, and whom."""

    id: str
    """Of the request, drawn by us: a caller may send the same request id twice."""
    request_id: str
    attempt: int
    """From 1, in the order of the calls."""
    time: float
    """Unix seconds of the request's start: midnight charges to the period of the reservation."""
    caller: Caller
    role: Role
    model: str
    usage: Usage | None
    cost: Cost
    reservation: Reservation | None = None
    """To be released."""

    @property
    def spend(self) -> Spend:
        """What it adds to the accounts."""
        return _spend(self.role, self.usage, self.cost)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: the answer if there is one, and every attempt."""

    status: Status
    reason: Reason
    request_id: str
    facts: Mapping[str, Any]
    """The ``tracerouter`` object of the answer: a projection of the Record."""
    headers: Mapping[str, str]
    """The response headers: another one."""
    keep: str | None = None
    """Why the request's trace is kept; None: it is dropped."""
    completion: Completion | None = None
    attempts: tuple[Attempt, ...] = ()
    classifier_calls: tuple[Attempt, ...] = ()
    """The models that classifiers asked; no rungs, but they cost too."""
    denied: Denied | None = None
    """The last limit that was reached, if one was."""
    confirmation: Confirmation | None = None
    """What was offered, where it needs confirmation."""
    job: Job | None = None
    """What was queued."""
    review: str | None = None
    """The id of the review, where it is for a person to answer."""

    @property
    def cost_nanos(self) -> int | None:
        """What the request cost (nano-dollars); None: a part of it is not known."""
        nanos = [attempt.cost.nanos for attempt in (*self.classifier_calls, *self.attempts)]
        return None if None in nanos else sum(cost for cost in nanos if cost)


def _spend(role: Role, usage: Usage | None, cost: Cost) -> Spend:
    used = usage or Usage()
    return Spend(cost.nanos or 0, int(role is not Role.CLASSIFY), used.input + used.output)


def usd(nanos: int) -> str:
    """Write nano-dollars as dollars, fixed-point: ``1250`` is ``0.000001250``."""
    return f"{nanos // NANOS}.{nanos % NANOS:09d}"


def content_text(content: object) -> str:
    """Return the text of a message's ``content``: a string, a list of parts, or None."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return ""
