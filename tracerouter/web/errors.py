"""Errors as OpenAI-shaped JSON, with the status that OpenAI's clients act on."""

from __future__ import annotations

import logging
from math import ceil, isinf
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from aiohttp import web

from tracerouter.errors import BadRequest, ProviderError, RequestRejected, ServerFailed, TracerouterError
from tracerouter.quota.confirmations import HEADER
from tracerouter.review import url as review_url
from tracerouter.types import Outcome, Reason, Status, usd
from tracerouter.web.jobs import url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracerouter.types import Confirmation, Denied

log = logging.getLogger(__name__)

_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_REFUSED = {
    Reason.NOT_ALLOWED: (403, "your tier may not use this model"),
    Reason.REVIEW_UNAVAILABLE: (503, "the answer needs a person's review, and the queue for that can't be written"),
}


class Problem(NamedTuple):
    """What an error answer says."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after: float | None = None
    """Seconds."""
    retry: bool = False
    """Whether the same request may do better later. SDKs retry 409, 429 and 5xx by themselves, unless
    ``x-should-retry`` says no: what was tried here, on every rung and with each model's own retries, would be tried,
    and paid for, again."""

    more: Mapping[str, Any] | None = None
    """What stands in the error besides."""
    facts: Mapping[str, Any] | None = None
    """The ``tracerouter`` object beside the error."""

    @property
    def kind(self) -> str:
        """OpenAI's name for this sort of error."""
        return _BY_STATUS.get(self.status, "server_error")


UNAVAILABLE = Problem(503, "the store does not answer now", "store_unavailable", retry_after=5.0, retry=True)
INTERNAL = Problem(500, "something went wrong here", "internal")


def of_bad_request(error: BadRequest) -> Problem:
    """Tell what is wrong with the request."""
    return Problem(error.status, error.message, error.code, error.param)


def of_error(error: TracerouterError) -> Problem:
    """Tell of an error of ours, or of what is wrong with the request."""
    return of_bad_request(error) if isinstance(error, BadRequest) else Problem(500, str(error), "internal")


def of_outcome(outcome: Outcome) -> Problem:  # noqa: PLR0911 - one for each way to have no answer
    """Tell why there is no answer: the last attempt's failure decides the status."""
    if outcome.job is not None:
        return Problem(202, f"the request is run later; ask for its answer at {url(outcome.job)}", outcome.status)
    if outcome.review is not None:
        message = f"a person will answer this request; ask for the answer at {review_url(outcome.review)}"
        return Problem(409, message, outcome.status, facts=review_facts(outcome))
    if outcome.confirmation is not None:
        return _to_confirm(outcome, outcome.confirmation)
    if outcome.status is Status.REFUSED and (
        outcome.denied is not None or outcome.reason in _REFUSED or not outcome.attempts
    ):
        return _refused(outcome)
    tried = ", ".join(f"{a.rung.alias}: {a.reason}" for a in outcome.attempts) or "none was tried"
    message = f"no model gave an acceptable answer ({tried})"
    last = outcome.attempts[-1] if outcome.attempts else None
    error = last.error if last else None
    if last is None or error is None:
        return Problem(502, message, outcome.reason)
    if last.reason is Reason.TIMEOUT:
        return Problem(504, message, outcome.reason)
    if last.reason is Reason.RATE_LIMITED:
        return Problem(429, message, outcome.reason, retry_after=error.retry_after, retry=True)
    if last.reason is Reason.CONTEXT_TOO_LONG:
        return Problem(400, message, "context_length_exceeded", "messages")
    return _failed(error, message, outcome.reason)


def review_facts(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome's facts with its review: id, and where to ask for it."""
    review = {"id": outcome.review, "url": review_url(outcome.review or "")}
    return {**outcome.facts, "review": review}


def _refused(outcome: Outcome) -> Problem:
    """Tell what does not let the request pass: a limit by its name, and when its period ends."""
    denied = outcome.denied
    if denied is None:
        status, message = _REFUSED.get(outcome.reason, (503, "no model is left that may serve this request"))
        return Problem(status, message, outcome.reason)
    if denied.reason is Reason.LEDGER_UNAVAILABLE:
        message = "limits can't be checked at the moment, and policy then serves no expensive model"
        return Problem(503, message, denied.reason, retry_after=denied.retry_after)
    if isinf(denied.retry_after):
        return Problem(429, f"{_no_room(denied)}, and it never has so much", denied.reason)
    return Problem(429, _no_room(denied), denied.reason, retry_after=denied.retry_after)


def _no_room(denied: Denied) -> str:
    limit = denied.limit
    return (
        f"the limit {limit.name!r} has no room for this request: "
        f"{limit.told(denied.left)} of {limit.told(limit.amount)} are left this {limit.period}"
    )


def _to_confirm(outcome: Outcome, offered: Confirmation) -> Problem:
    """Tell what it would cost to pass the limit, and how."""
    most = "has a cost that is not known" if offered.most is None else f"costs at most {usd(offered.most)} USD"
    no_room = _no_room(outcome.denied) if outcome.denied else "a limit has no room for this request"
    message = (
        f"{no_room}; one call of {offered.model!r} {most}: to make it all the same, send the same request "
        f"with this error's `confirmation.token` in the header `{HEADER}`"
    )
    told = {
        "token": offered.token,
        "limit": offered.limit,
        "model": offered.model,
        "most": None if offered.most is None else usd(offered.most),
        "expires_at": int(offered.expires),
    }
    facts = {**outcome.facts, "confirmation": told}
    return Problem(409, message, outcome.status, more={"confirmation": told}, facts=facts)


def response(
    problem: Problem, request_id: str, headers: Mapping[str, str] | None = None, written: bytes | None = None
) -> web.Response:
    """Make the error answer; it says which request id to quote. `written` is its body, by default as OpenAI's."""
    log.warning("request %s answered %d: %s", request_id, problem.status, problem.code)
    told = dict(headers or {})
    told["x-request-id"] = request_id
    told["x-should-retry"] = "true" if problem.retry else "false"
    if problem.retry_after is not None:
        told["retry-after"] = str(max(1, ceil(problem.retry_after)))
    if problem.status == 401:  # noqa: PLR2004 - HTTP's own number
        told["www-authenticate"] = "Bearer"
    written = written or body(problem, request_id)
    return web.Response(body=written, status=problem.status, headers=told, content_type="application/json")


def body(problem: Problem, request_id: str | None) -> bytes:
    """Write the error as OpenAI writes its own."""
    message = problem.message if request_id is None else f"{problem.message} (request id {request_id})"
    error = {"message": message, "type": problem.kind, "code": problem.code, "param": problem.param}
    told: dict[str, Any] = {"error": {**error, **(problem.more or {})}}
    return orjson.dumps(told if problem.facts is None else {**told, "tracerouter": problem.facts})


def _failed(error: ProviderError, message: str, reason: str) -> Problem:
    """Blame the caller only for what the provider said of the request itself."""
    if isinstance(error, ServerFailed) and error.retry_after is not None:
        return Problem(503, message, reason, retry_after=error.retry_after, retry=True)
    if isinstance(error, RequestRejected) and error.reason == Reason.BAD_REQUEST:
        return Problem(400, f"{message}: {error}", "invalid_request")
    return Problem(502, message, reason)
