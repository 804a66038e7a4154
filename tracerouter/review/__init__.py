"""Requests that a person answers: the queue, those who are told what came of it, and the worker that sees to both."""

from tracerouter.review.queue import ACTIONS, PATH, REVIEW, STATES, WAITING, Reviews, told, told_reviewer, url
from tracerouter.review.webhooks import HEADER, Webhooks
from tracerouter.review.worker import LOOK, Worker

__all__ = [
    "ACTIONS",
    "HEADER",
    "LOOK",
    "PATH",
    "REVIEW",
    "STATES",
    "WAITING",
    "Reviews",
    "Webhooks",
    "Worker",
    "told",
    "told_reviewer",
    "url",
]
