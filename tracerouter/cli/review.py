"""``tracerouter review``: the queue of requests that wait for a person, at a terminal."""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tracerouter.cli.files import add_config, items
from tracerouter.review import ACTIONS, STATES, WAITING, Reviews, told_reviewer
from tracerouter.types import Completion, content_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

    from tracerouter.store import Item


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the commands."""
    parser = commands.add_parser(
        "review",
        help="requests that wait for a person: list, show, claim, approve, edit, reject",
        description="Works on the queue in the store. A gateway on the same store tells the caller what came of it.",
        epilog="Example: tracerouter review list; tracerouter review approve ID --as ann",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, about: str, example: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(
            name, help=about, description=about, epilog=f"Example: tracerouter review {example}"
        )
        add_config(made)
        made.add_argument("--json", action="store_true", help="as JSON")
        made.set_defaults(run=run)
        return made

    def on_one(name: str, about: str, example: str) -> argparse.ArgumentParser:
        made = action(name, about, example)
        made.add_argument("id", help="the review's id, or how it begins")
        if name != "show":
            made.add_argument(
                "--as", dest="by", metavar="NAME", default=None, help="who decides (default: your user name)"
            )
        return made

    listing = action("list", "those that wait, the newest first", "list --state pending --json")
    listing.add_argument("--state", action="append", choices=STATES, help="others; may be given several times")
    listing.add_argument("--tenant", help="of this tenant alone")
    listing.add_argument("--limit", type=int, default=50, help="at most so many (default %(default)s)")
    on_one("show", "one of them: question, draft, and who did what when", "show 3f2a")
    on_one("claim", "make it yours for the length of a lease", "claim 3f2a --as ann")
    on_one("approve", "let the caller have the draft as it is", "approve 3f2a --as ann")
    edit = on_one("edit", "let the caller have another answer", 'edit 3f2a --as ann --text "No, it is not."')
    edit.add_argument("--text", help="the answer; without it, it is read from standard input")
    reject = on_one("reject", "let the caller have no answer", 'reject 3f2a --as ann --why "Ask our lawyers."')
    reject.add_argument("--why", help="what the caller is told")


def run(asked: argparse.Namespace) -> int:
    """Do one of them."""
    return asyncio.run(_run(asked))


async def _run(asked: argparse.Namespace) -> int:
    async with items(asked.config, lambda told: sys.stderr.write(f"{told}\n")) as kept:
        reviews = Reviews(kept)
        if asked.action == "list":
            found = await reviews.listed(asked.state or WAITING, tenant=asked.tenant, limit=asked.limit)
            told = [told_reviewer(item) for item in found]
            sys.stdout.write(f"{json.dumps(told) if asked.json else _table(told)}\n")
            return 0
        item = await _one(reviews, asked.id)
        if item is None:
            sys.stderr.write(f"no review, or more than one, has an id that begins with {asked.id!r}\n")
            return 1
        if asked.action == "claim":
            item = await reviews.claim(item, _name(asked))
        elif asked.action in ACTIONS:
            item = await reviews.decide(item, asked.action, _name(asked), _text(asked))
        told_of_it = told_reviewer(item, await reviews.history(item))
    sys.stdout.write(f"{json.dumps(told_of_it) if asked.json else _page(told_of_it)}\n")
    return 0


async def _one(reviews: Reviews, begins: str) -> Item | None:
    """Return the review with this id, or the only one that waits and whose id begins so."""
    found = await reviews.items.get("review", begins)
    if found is not None:
        return found
    some = [one for one in await reviews.listed(WAITING, limit=10_000) if one.id.startswith(begins)]
    return some[0] if len(some) == 1 else None


def _name(asked: argparse.Namespace) -> str:
    return asked.by or getpass.getuser()


def _text(asked: argparse.Namespace) -> str | None:
    if asked.action == "edit":
        text: str = sys.stdin.read().rstrip("\n") if asked.text is None else asked.text
        return text
    return asked.why if asked.action == "reject" else None


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no review waits"
    return "\n".join(
        f"{row['id']}  {row['state']:<8}  {_age(row['created']):>6}  {row['reason']:<14}  {row['tenant']}"
        + (f"  {row['claimed_by']}" if row["state"] == "claimed" else "")
        for row in rows
    )


def _page(told: Mapping[str, Any]) -> str:
    lines = [
        f"{told['state']}: {told['reason']}, {told['how']}; tenant {told['tenant']}, task {told['task']}",
        f"review {told['id']}; request {told['request_id']}; trace {told['trace_id']}",
        f"waits since {_when(told['created'])}, until {_when(told['expires'])}",
    ]
    if told.get("request"):
        lines += ["", *(f"[{one['role']}] {content_text(one.get('content'))}" for one in told["request"]["messages"])]
    if told.get("draft"):
        lines += ["", f"draft by {told['draft_model']}:", _answer(told["draft"])]
        lines += [f"turned down: {failure}" for failure in told["failures"]]
    if told.get("completion") and told["state"] == "edited":
        lines += ["", f"answer by {told['decided_by']}:", _answer(told["completion"])]
    lines += ["", *(f"{_when(one['time'])}  {one['what']} by {one['by']}" for one in told["history"])]
    return _harmless("\n".join(lines).rstrip())


def _harmless(text: str) -> str:
    """Show control characters instead of letting a user's text steer the terminal."""
    return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)


def _answer(body: Mapping[str, Any]) -> str:
    completion = Completion(body)
    return completion.text or json.dumps(completion.tool_calls)


def _age(since: float) -> str:
    minutes = max(time.time() - since, 0) / 60
    return f"{minutes:.0f} m" if minutes < 120 else f"{minutes / 60:.0f} h"  # noqa: PLR2004 - two hours


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
