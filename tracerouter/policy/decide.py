"""How a Classification and a caller become a Decision. Pure, and total: every input has a Decision."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from tracerouter.types import Decision, Reason, Role, Rung

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracerouter.policy.model import Policy, TaskRule, TierPolicy
    from tracerouter.types import Caller, Classification


def decide(  # noqa: PLR0913 - all that a decision may depend on, and nothing else
    classification: Classification,
    caller: Caller,
    policy: Policy,
    *,
    ladder: Sequence[str],
    pinned: tuple[str, ...] = (),
    input_tokens: int = 0,
) -> Decision:
    """Choose the rungs to try.

    Args:
        classification: What the request is.
        caller: Who asks.
        policy: The rules.
        ladder: The rungs that this caller may use (:meth:`Policy.ladder_of`), less those that can't serve this
            request, and with the wrapped service last where there is one.
        pinned: The rungs that the caller asks for by name, of an alias or of a ladder.
        input_tokens: Of the request; 0 where no rule needs them.

    Returns:
        A Decision; its rungs are empty where the caller is refused.
    """
    rule = policy.task(classification.label)
    threshold = _threshold(classification, policy, rule)
    tier = policy.tiers.get(caller.tier) if caller.tier else None
    bound = tier.ladder if tier else None
    rungs: tuple[Rung, ...] = ()
    if pinned:
        reason = Reason.NOT_ALLOWED if bound and not {*pinned} <= {*bound} else Reason.PINNED
        if reason is Reason.PINNED:
            is_last = len(ladder) > 1 and pinned[0] == ladder[-1]
            first = Rung(pinned[0], Role.EXPENSIVE if is_last else Role.CHEAP)
            rungs = (first, *(Rung(alias, Role.FALLBACK) for alias in pinned[1:]))
    elif not ladder:
        reason = Reason.NO_RUNG_LEFT
    else:
        start, reason = _start(classification, policy, rule, tier, threshold, input_tokens)
        if start is None:
            start = ladder[-1]
            if bound and policy.ladder[-1] not in bound:
                reason = Reason.TIER
        elif start not in ladder:
            own = policy.ladder_of(caller)
            if start != _FIRST and start not in own:
                start, reason = ladder[-1], Reason.TIER
            else:
                wanted = own[own.index(start) if start else 0 :]
                start = next((alias for alias in wanted if alias in ladder), ladder[-1])
                reason = reason if start == wanted[0] else Reason.UNSUPPORTED
        rungs = _rungs(tuple(ladder), start)
    rules = rule.rules
    if any(policy.risks[risk].cache is not None for risk in classification.risks if risk in policy.risks):
        rules = replace(rules, cache_ttl=None)
    return Decision(rungs, reason, classification.label, threshold, rules, policy.id)


_FIRST = ""
_LAST = None


def _threshold(classification: Classification, policy: Policy, rule: TaskRule) -> float:
    """Return the strictest of the task's and every risk's."""
    risky = (policy.risks[risk].min_confidence for risk in classification.risks if risk in policy.risks)
    return max([rule.threshold, *(limit for limit in risky if limit is not None)])


def _start(  # noqa: PLR0911, PLR0913 - a table of rules, the first that holds wins
    classification: Classification,
    policy: Policy,
    rule: TaskRule,
    tier: TierPolicy | None,
    threshold: float,
    input_tokens: int,
) -> tuple[str | None, Reason]:
    """Return where to start and why: an alias, ``_FIRST`` or ``_LAST``."""
    if rule.start:
        return rule.start, Reason.FORCED_TASK
    if classification.risks:
        for risk in sorted(classification.risks):
            if risk in policy.risks and policy.risks[risk].start:
                return policy.risks[risk].start, Reason.RISK
        if tier and tier.on_risk:
            return tier.on_risk.start, Reason.RISK
    if rule.max_input_tokens is not None and input_tokens > rule.max_input_tokens:
        return _LAST, Reason.TOO_LONG
    if classification.abstained and threshold > 0:
        return _LAST, Reason.ABSTAINED
    if classification.confidence < threshold:
        enough_without_risk = classification.confidence >= rule.threshold
        return _LAST, Reason.RISK if enough_without_risk else Reason.LOW_CONFIDENCE
    return _FIRST, Reason.CONFIDENT


@lru_cache(maxsize=1024)
def _rungs(ladder: tuple[str, ...], start: str) -> tuple[Rung, ...]:
    """Give each rung from `start` on its role: the first tried is cheap or expensive, a later one a fallback."""
    first = ladder.index(start)
    last_first = first == len(ladder) - 1 and len(ladder) > 1
    roles = [Role.EXPENSIVE if last_first else Role.CHEAP] + [Role.FALLBACK] * (len(ladder) - first - 1)
    return tuple(Rung(alias, role) for alias, role in zip(ladder[first:], roles, strict=True))
