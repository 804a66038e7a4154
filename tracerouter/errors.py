"""Every error that tracerouter raises on purpose.

    TracerouterError
    ├── ConfigError            a file or setting of the owner's is wrong; names file, line and the fix
    ├── BadRequest             what the caller sent is wrong; names the field        (HTTP 400)
    │   ├── Unauthorized       no key, or one that is not known                      (HTTP 401)
    │   ├── Forbidden          its key may not do that                               (HTTP 403)
    │   ├── NotFound           there is no such thing, or it is another tenant's     (HTTP 404)
    │   ├── Conflict           somebody else was first, or it is too late            (HTTP 409)
    │   ├── KeyReused          an idempotency key came with another request before   (HTTP 422)
    │   ├── NotNow             what it needs does not answer at the moment           (HTTP 503)
    │   ├── UnknownModel       `model` is neither `auto` nor an alias                (HTTP 404)
    │   └── TooLarge           a body or prompt over the limit                       (HTTP 413)
    ├── CallerGone             the caller stopped reading its stream
    ├── StoreUnavailable       the store can't be reached, or its disk fails
    └── ProviderError          one attempt at one model failed
        ├── ProviderTimeout    no answer in the time that was left
        ├── RateLimited        429; may say when to come back
        ├── ContextTooLong     the prompt does not fit the model
        ├── RequestRejected    another 4xx: the provider will not take this request
        ├── Unaffordable       a limit has no room for the call, so nothing was sent
        ├── Unreachable        no connection, so nothing was sent
        ├── ServerFailed       5xx: the provider says itself that it failed
        └── AnswerLost         sent, but what came back was no answer (cut off, garbage, too large)

A ``ProviderError`` never leaves :meth:`tracerouter.Router.route`: it becomes a failed attempt in the
Outcome. Foreign libraries' errors are translated where they come in, and nowhere else.
"""

from __future__ import annotations

from difflib import get_close_matches
from traceback import extract_tb
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


_FRAMES = 4
"""Calls that a log tells of an error, at most."""


class TracerouterError(Exception):
    """The base of all of them."""


class ConfigError(TracerouterError):
    """A file or setting of the owner's is wrong; ``str()`` is the sentence to show."""


class BadRequest(TracerouterError):
    """What the caller sent is wrong.

    Args:
        message: A sentence for the caller, without secrets.
        param: The field that is wrong, as a path from the request's body, or None.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class Unauthorized(BadRequest):
    """No API key, or one that is not known."""

    status = 401
    code = "invalid_api_key"


class Forbidden(BadRequest):
    """The caller's key may not do that."""

    status = 403
    code = "forbidden"


class NotFound(BadRequest):
    """There is no such thing, or none that is the caller's to see."""

    status = 404
    code = "not_found"


class Conflict(BadRequest):
    """Somebody else was first, or it is too late."""

    status = 409
    code = "conflict"


class KeyReused(BadRequest):
    """An idempotency key came with another request before."""

    status = 422
    code = "idempotency_key_reused"


class NotNow(BadRequest):
    """What the request needs does not answer at the moment; it may be sent again."""

    status = 503
    code = "store_unavailable"


class UnknownModel(BadRequest):
    """The model asked for is neither ``auto`` nor an alias of the file."""

    status = 404
    code = "model_not_found"


class TooLarge(BadRequest):
    """A body or a prompt over the limit."""

    status = 413
    code = "request_too_large"


_OF_THE_REQUEST = frozenset({400, 409, 413, 415, 422})
"""Statuses that blame the request itself, and not who sends it or where to."""


class CallerGone(TracerouterError):
    """The caller stopped reading its stream, so there is nobody left to answer."""


class StoreUnavailable(TracerouterError):
    """The store can't be reached, or its disk fails: what needs it degrades; ``str()`` holds no data."""


class ProviderError(TracerouterError):
    """One attempt at one model failed.

    Args:
        message: What happened, for the owner; never a key, prompt or answer.
        status: The HTTP status, where there was one.
        retry_after: Seconds after which the provider asks to be tried again, where it said so.
    """

    reason: str = "provider_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ProviderTimeout(ProviderError):
    """No answer in the time that was left."""

    reason = "timeout"


class RateLimited(ProviderError):
    """The provider answered 429."""

    reason = "rate_limited"
    retryable = True


class ContextTooLong(ProviderError):
    """The prompt does not fit the model."""

    reason = "context_too_long"


class RequestRejected(ProviderError):
    """The provider will not take this request (a 4xx other than 429): the caller's doing, or that of our key or URL."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status=status, retry_after=retry_after)
        if status in _OF_THE_REQUEST:
            self.reason = "bad_request"


class Unaffordable(ProviderError):
    """A limit has no room for the call, so nothing was sent."""

    reason = "budget_exhausted"


class Unreachable(ProviderError):
    """No connection could be made, so nothing was sent."""

    retryable = True


class ServerFailed(ProviderError):
    """The provider answered 5xx."""

    retryable = True


class AnswerLost(ProviderError):
    """The request was sent, but what came back was no answer."""

    retryable = True


def place(error: BaseException) -> str:
    """Return an error's type and the calls that led to it, innermost first, for a log.

    Not its message, and not the lines of code: they may hold a prompt or a key.
    """
    frames = reversed(extract_tb(error.__traceback__)[-_FRAMES:])
    return f"{type(error).__name__} at {' < '.join(f'{frame.filename}:{frame.lineno}' for frame in frames)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name nearest to `name`, or an empty string."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
