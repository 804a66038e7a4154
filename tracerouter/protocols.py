"""What a room on floor 3 must be able to do: one method each, so that a function's worth of code will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from tracerouter.types import (
        Admission,
        Call,
        Caller,
        Check,
        Claim,
        Classification,
        Completion,
        Denied,
        Entry,
        Limit,
        Meter,
        Reservation,
        Task,
    )

    Sink = Callable[[Mapping[str, Any]], Awaitable[None]]
    """Takes OpenAI ``chat.completion.chunk`` objects with content, as they arrive; awaiting it is the back-pressure."""


class Provider(Protocol):
    """Speaks to one kind of model.

    It may say more of itself: ``operations = ("chat", "embeddings")`` if it can embed too, ``max_choices = 1`` if it
    gives no more than one answer a request (``n``), and ``image_tokens(part, model)`` if its images do not count as
    OpenAI's.
    """

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        """Ask the model once.

        Write to `meter` what is sent and received while it happens; with a `sink`, push content chunks.

        Raises:
            ProviderError: The model gave no answer.
        """
        ...


class Classifier(Protocol):
    """Says what a request is."""

    async def classify(self, task: Task) -> Classification:
        """Return the label with its probability, or an abstaining Classification."""
        ...


class Validator(Protocol):
    """Says whether an answer will do."""

    async def validate(self, task: Task, completion: Completion) -> Check:
        """Return what was found. Raises nothing for a bad answer."""
        ...


class Ledger(Protocol):
    """Keeps what is reserved and what was spent."""

    async def reserve(self, claim: Claim) -> Reservation | Denied:
        """Hold the claim's bound on all of its caller's accounts, or on none, if a limit has no room for it.

        Raises:
            StoreUnavailable: It can't be told; nothing is held.
        """
        ...

    def release(self, claim: Claim) -> Awaitable[None]:
        """Give back at once what was reserved for `claim`, if it was: nothing came of it."""
        ...

    def settle(self, entry: Entry) -> Awaitable[None]:
        """Book one attempt at once, and release what was reserved for it; await the result to know it is durable."""
        ...


class Rates(Protocol):
    """Knows how fast callers ask."""

    async def take(self, caller: Caller, rates: Sequence[Limit], tokens: int) -> Admission:
        """Take one request of `tokens` from all `rates`, or from none where one has no room.

        Raises:
            StoreUnavailable: It can't be told.
        """
        ...

    def owe(self, caller: Caller, rates: Sequence[Limit], tokens: int) -> None:
        """Take `tokens` that were used, whether there is room or not."""
        ...
