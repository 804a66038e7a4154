"""Requests that are run later, over HTTP: 202 for what was queued, and what has become of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from tracerouter.types import Job, Outcome

PATH: Final = "/tracerouter/jobs/{id}"


def accepted(job: Job, outcome: Outcome) -> web.Response:
    """Say that a request was queued, and where to ask for its answer."""
    headers = {**outcome.headers, "location": url(job), "preference-applied": "respond-async"}
    body = {**told(job), "tracerouter": outcome.facts}
    return web.Response(body=orjson.dumps(body), status=202, headers=headers, content_type="application/json")


def told(job: Job) -> dict[str, Any]:
    """Make what a job's caller is told of it; `answer` is what HTTP would have answered, with `status`."""
    made: dict[str, Any] = {
        "id": job.id,
        "object": "tracerouter.job",
        "state": job.state,
        "url": url(job),
        "limit": job.limit,
        "reason": job.reason,
        "created_at": int(job.created),
    }
    if job.due is not None:
        made["due_at"] = int(job.due)
    if job.status is not None:
        made |= {"status": job.status, "answer": job.answer}
    return made


def url(job: Job) -> str:
    """Return where its caller asks for it, from the gateway's root."""
    return PATH.format(id=job.id)
