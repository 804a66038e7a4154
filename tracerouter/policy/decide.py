"""How a Classification and a caller become a Decision. Pure, and total: every input has a Decision.

What depends on the policy alone is resolved once and remembered with it; what changes from one moment to the next is
for later steps to apply.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from tracerouter.types import Decision, Reason, Review, Role, Rung

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    key = (classification.label, classification.risks, caller.tier, tuple(ladder), pinned)
    found: _Resolved | None = policy.decided.get(key)
    if found is None:
        found = _resolve(classification, caller, policy, tuple(ladder), pinned)
        policy.decided.insert(key, found)
    return found.decisions[found.standing(classification, input_tokens)]


class _Resolved(NamedTuple):
    """All that a policy says of a label, its risks, a tier and a ladder: what remains is to compare three numbers."""

    threshold: float
    task_threshold: float
    max_input_tokens: int | None
    decisions: Mapping[Reason, Decision]
    """By how a request can stand."""

    def standing(self, classification: Classification, input_tokens: int) -> Reason:
        """Return how a request stands where nothing else says where it starts."""
        if self.max_input_tokens is not None and input_tokens > self.max_input_tokens:
            return Reason.TOO_LONG
        if classification.abstained and self.threshold > 0:
            return Reason.ABSTAINED
        if classification.confidence < self.threshold:
            enough_without_risk = classification.confidence >= self.task_threshold
            return Reason.RISK if enough_without_risk else Reason.LOW_CONFIDENCE
        return Reason.CONFIDENT


_UNSURE: Final = (Reason.ABSTAINED, Reason.RISK, Reason.LOW_CONFIDENCE)
_STANDINGS: Final = (Reason.TOO_LONG, Reason.ABSTAINED, Reason.RISK, Reason.LOW_CONFIDENCE, Reason.CONFIDENT)


def _resolve(
    classification: Classification, caller: Caller, policy: Policy, ladder: tuple[str, ...], pinned: tuple[str, ...]
) -> _Resolved:
    rule = policy.task(classification.label)
    threshold = _threshold(classification, policy, rule)
    tier = policy.tiers.get(caller.tier) if caller.tier else None
    bound = tier.ladder if tier else None
    own = policy.ladder_of(caller)
    rules = rule.rules
    if any(policy.risks[risk].cache is not None for risk in classification.risks if risk in policy.risks):
        rules = replace(rules, cache_ttl=None)
    forced = _forced(classification, policy, rule, tier)

    def decision(standing: Reason) -> Decision:
        review, cause = _review(classification, policy, rule, standing)
        sure = standing is Reason.CONFIDENT or (review is Review.DRAFT and standing is not Reason.TOO_LONG)
        start, reason = forced or (own[0] if sure else None, standing)
        rungs: tuple[Rung, ...] = ()
        if pinned:
            reason = Reason.NOT_ALLOWED if bound and not {*pinned} <= {*bound} else Reason.PINNED
            rungs = _pinned(pinned, ladder) if reason is Reason.PINNED else ()
        elif not ladder:
            reason = Reason.NO_RUNG_LEFT
        else:
            if start is None:
                start, reason = ladder[-1], Reason.TIER if bound and policy.ladder[-1] not in bound else standing
            elif start not in ladder and start not in own:
                start, reason = ladder[-1], Reason.TIER
            elif start not in ladder:
                later = (alias for alias in own[own.index(start) :] if alias in ladder)
                start, reason = next(later, ladder[-1]), Reason.UNSUPPORTED
            rungs = _rungs(ladder, start)
        if not rungs:
            review = None
        held = rules
        if review is Review.DRAFT:
            reason, held = cause, replace(rules, cache_ttl=None)  # a draft is for nobody else
        return Decision(rungs, reason, classification.label, threshold, held, policy.id, review=review)

    decisions = {standing: decision(standing) for standing in _STANDINGS}
    return _Resolved(threshold, rule.threshold, rule.max_input_tokens, decisions)


def _threshold(classification: Classification, policy: Policy, rule: TaskRule) -> float:
    """Return the strictest of the task's and every risk's."""
    risky = (policy.risks[risk].min_confidence for risk in classification.risks if risk in policy.risks)
    return max([rule.threshold, *(limit for limit in risky if limit is not None)])


def _forced(
    classification: Classification, policy: Policy, rule: TaskRule, tier: TierPolicy | None
) -> tuple[str, Reason] | None:
    """Return the alias that the policy starts at whatever the confidence, and why."""
    if rule.start:
        return rule.start, Reason.FORCED_TASK
    for risk in sorted(classification.risks):
        start = policy.risks[risk].start if risk in policy.risks else None
        if start:
            return start, Reason.RISK
    if classification.risks and tier and tier.on_risk:
        return tier.on_risk.start, Reason.RISK
    return None


def _review(
    classification: Classification, policy: Policy, rule: TaskRule, standing: Reason
) -> tuple[Review | None, Reason]:
    """Return how a person comes in, in the strictest of the ways that apply, and why."""
    risks = (policy.risks[risk].review for risk in classification.risks if risk in policy.risks)
    found: list[tuple[str | None, Reason]] = [*((how, Reason.RISK) for how in risks), (rule.review, Reason.FORCED_TASK)]
    if standing in _UNSURE:
        found.append((policy.review.low_confidence, standing))
    for how in (Review.DRAFT, Review.AFTER_LADDER):
        for one, why in found:
            if one == how:
                return how, why
    return None, standing


def _pinned(pinned: tuple[str, ...], ladder: tuple[str, ...]) -> tuple[Rung, ...]:
    """Give each rung that the caller asks for by name its role."""
    known = ladder if pinned[0] in ladder else pinned
    is_cheap = pinned[0] in known[:-1] or ladder == pinned[:1]  # one that stands on no ladder may be as dear as any
    first = Rung(pinned[0], Role.CHEAP if is_cheap else Role.EXPENSIVE)
    return (first, *(Rung(alias, Role.FALLBACK) for alias in pinned[1:]))


def _rungs(ladder: tuple[str, ...], start: str) -> tuple[Rung, ...]:
    """Give each rung from `start` on its role: the first tried is cheap or expensive, a later one a fallback."""
    first = ladder.index(start)
    last_first = first == len(ladder) - 1 and len(ladder) > 1
    roles = [Role.EXPENSIVE if last_first else Role.CHEAP] + [Role.FALLBACK] * (len(ladder) - first - 1)
    return tuple(Rung(alias, role) for alias, role in zip(ladder[first:], roles, strict=True))
