"""``tracerouter explain``: what would be decided, and why, without calling a model."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from tracerouter.cli.files import add_config, deployment
from tracerouter.config import LlmOf
from tracerouter.tokens import count_request
from tracerouter.types import Caller, Evidence, Task, usd

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from tracerouter.config import Deployment


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "explain",
        help="what would be decided and why",
        description="Classifies a prompt and applies the policy, without calling a model.",
        epilog='Example: tracerouter explain --config tracerouter.yaml "Summarise this contract: …" --tier free',
    )
    add_config(parser)
    parser.add_argument("prompt", help="the user's message")
    parser.add_argument("--tenant", default="default", help="who asks (default %(default)s)")
    parser.add_argument("--tier", help="the caller's tier")
    parser.add_argument("--task", help="the task's label, as a caller would name it")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Explain one prompt."""
    built = deployment(asked.config, lambda _: None, asks=False)
    task = Task.chat(asked.prompt, caller=Caller(tenant=asked.tenant, tier=asked.tier), hint=asked.task)
    told = asyncio.run(_explain(built, task))
    if asked.json:
        sys.stdout.write(f"{json.dumps(told)}\n")
        return 0
    ladder = " → ".join(f"{rung['model']} ({rung['role']})" for rung in told["rungs"]) or "nobody: refused"
    sys.stdout.write(
        f"task       {told['task']} with confidence {told['confidence']:.2f}, by {told['classifier']}\n"
        f"risks      {'; '.join(_risk(name, told['evidence']) for name in told['risks']) or 'none'}\n"
        f"threshold  {told['threshold']:.2f}\n"
        f"reason     {told['reason']}\n"
        f"ladder     {ladder}\n"
        f"review     {told['review'] or 'no'}\n"
        f"policy     {told['policy']}\n"
        f"validate   {', '.join(told['validate']) or 'nothing'}\n"
        f"cache      {'kept for %g s' % told['cache_ttl'] if told['cache_ttl'] else 'never'}\n"  # noqa: UP031 - %g drops the .0
        f"tokens     {told['input_tokens']} in, at most {told['max_output_tokens']} out\n"
        f"limits     {', '.join(told['limits']) or 'none'}\n"
    )
    for alias in told["not_asked"]:
        sys.stdout.write(f"not asked  {alias}, which classifies what the others are not sure of\n")
    for rung in told["rungs"]:
        sys.stdout.write(f"at most    {rung['model']}: {rung['most'] or 'cost unknown'}\n")
    return 0


async def _explain(built: Deployment, task: Task) -> dict[str, Any]:
    try:
        found, decision = await built.router.explain(task)
    finally:
        await built.router.close()
    tokens, limit = count_request(task.body), decision.rules.max_output_tokens
    policy = built.router.policy
    limits = {one.name: None for rung in decision.rungs for one in policy.limits_of(task.caller, rung.role)}
    return {
        "task": found.label,
        "confidence": found.confidence,
        "classifier": found.classifier,
        "not_asked": [one.llm for one in built.settings.classifier if isinstance(one, LlmOf)],
        "risks": sorted(found.risks),
        "evidence": [one._asdict() for one in found.evidence],
        "threshold": decision.threshold,
        "reason": decision.reason,
        "rungs": [
            {"model": rung.alias, "role": rung.role, "most": _most(built, rung.alias, tokens, limit)}
            for rung in decision.rungs
        ],
        "review": decision.review,
        "policy": decision.policy,
        "validate": [str(one) for one in decision.rules.validate],
        "cache_ttl": decision.rules.cache_ttl,
        "input_tokens": tokens,
        "max_output_tokens": limit,
        "limits": [*limits],
    }


def _risk(name: str, evidence: list[dict[str, Any]]) -> str:
    kinds = [Evidence(**one).told for one in evidence if one["risk"] == name]
    return f"{name} by {', '.join(kinds)}" if kinds else name


def _most(built: Deployment, alias: str, tokens: int, limit: int | None) -> str | None:
    """Return the most that one call of the question as it is can cost, in USD; a repair or a retry adds to it."""
    price = built.router.models[alias].price
    return f"${usd(price.most(tokens, limit))}" if price is not None and limit is not None else None
