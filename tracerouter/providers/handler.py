"""The wrapped service as a model: its own handler is the last rung of the ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracerouter.errors import Unreachable
from tracerouter.providers.http import usage_of

if TYPE_CHECKING:
    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Completion, Meter


class HandlerProvider:
    """Calls the handler that ``tracerouter.web`` put into the Task. What it answers is passed on as it is."""

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:  # noqa: ARG002 - a handler that streams writes to its client itself
        """Run the handler; its answer's ``usage`` counts, if it has one.

        Raises:
            Unreachable: The request did not come in through a wrapped endpoint.
        """
        if call.handler is None:
            msg = "there is no handler behind this request: it did not come in through a wrapped endpoint"
            raise Unreachable(msg)
        meter.sent()
        meter.unknowable()
        completion = await call.handler(call, meter)
        usage = usage_of(completion.body.get("usage"))
        if usage is not None and meter.uses[-1].usage is None:
            meter.reported(usage)
        return completion
