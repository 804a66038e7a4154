"""Processes that ask a router, as many as a test wants: one has loaded everything, and forks the others.

``python -m tests.integration.quota.callers`` reads a line of JSON for each, and says its process id::

    {"config": FILE, "go": FILE, "asks": [[NAME, TEXT, MODEL], …], "margin": SECONDS, "timeout": SECONDS}

Each builds its router, says ``ready``, waits until the file `go` is there, and asks all at once. Of each answer it
tells ``{"pid", "name", "status", "reason", "cost", "seconds"}``, and at the end ``{"pid", "end": ROUND_TRIPS}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tracerouter import config, router
from tracerouter.tokens import count
from tracerouter.types import Task


def _tell(**told: Any) -> None:
    os.write(1, json.dumps({"pid": os.getpid(), **told}).encode() + b"\n")  # one call: lines of several do not mix


async def _ask(asked: dict[str, Any]) -> None:
    vars(router)["LEASE_MARGIN"] = asked["margin"]  # a test does not wait for ten seconds
    made = config.load(Path(asked["config"])).router
    await made.start()
    _tell(ready=True)
    while not Path(asked["go"]).exists():  # noqa: ASYNC240
        await asyncio.sleep(0.01)

    async def one(name: str, text: str, model: str) -> None:
        began = time.monotonic()
        task = Task.chat(text, model=model, request_id=name, timeout=asked["timeout"])
        outcome = await made.route(task)
        told = {"status": outcome.status, "reason": outcome.reason, "cost": outcome.cost_nanos}
        _tell(name=name, seconds=time.monotonic() - began, **told)

    await asyncio.gather(*(one(*ask) for ask in asked["asks"]))
    store = getattr(made._ledger, "_store", None)
    await made.close()
    _tell(end=getattr(store, "round_trips", 0))


def main() -> None:
    """Fork a process for each line."""
    count("")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.run(_ask(json.loads(line)))
                code = 0
            finally:
                os._exit(code)
        _tell(forked=child)


if __name__ == "__main__":
    main()
