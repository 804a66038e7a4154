"""Where a request goes, and why: every reason a decision can have is reached here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.policy import Policy, PolicyFile, decide
from tracerouter.policy.model import DECISIONS, RISKS, ReviewPolicy
from tracerouter.types import Caller, Classification, Decision, Reason, Review, Role


def policy_of(**written: Any) -> Policy:
    return Policy.of(PolicyFile.model_validate({"ladder": ["small", "large"], **written}))


POLICY = policy_of(
    min_confidence=0.7,
    tasks={
        "summarize": {"min_confidence": 0.6, "max_input_tokens": 100},
        "reasoning": {"start": "large"},
    },
    risks={"legal": {"min_confidence": 0.9}, "medical": {"start": "large"}, "pii": {"cache": "never"}},
    tiers={"free": {"ladder": ["small"]}, "enterprise": {"on_risk": {"start": "large"}}},
)


def decided(
    label: str = "summarize",
    confidence: float = 0.8,
    risks: tuple[str, ...] = (),
    *,
    tier: str | None = None,
    policy: Policy = POLICY,
    **facts: Any,
) -> Decision:
    caller = Caller(tier=tier)
    found = Classification(label, confidence, frozenset(risks))
    return decide(found, caller, policy, **{"ladder": policy.ladder_of(caller), **facts})


def climbed(decision: Decision) -> list[tuple[str, Role]]:
    return [(rung.alias, rung.role) for rung in decision.rungs]


CHEAP_FIRST = [("small", Role.CHEAP), ("large", Role.FALLBACK)]
STRAIGHT = [("large", Role.EXPENSIVE)]
ONLY_SMALL = [("small", Role.CHEAP)]


@pytest.mark.parametrize(
    ("decision", "reason", "rungs"),
    [
        (decided(), Reason.CONFIDENT, CHEAP_FIRST),
        (decided(confidence=0.6), Reason.CONFIDENT, CHEAP_FIRST),
        (decided(confidence=0.59), Reason.LOW_CONFIDENCE, STRAIGHT),
        (decided("translate", 0.69), Reason.LOW_CONFIDENCE, STRAIGHT),
        (decided("other", 0.0), Reason.ABSTAINED, STRAIGHT),
        (decided("reasoning", 0.99), Reason.FORCED_TASK, STRAIGHT),
        (decided(confidence=0.8, risks=("legal",)), Reason.RISK, STRAIGHT),
        (decided(confidence=0.95, risks=("legal",)), Reason.CONFIDENT, CHEAP_FIRST),
        (decided(confidence=0.5, risks=("legal",)), Reason.LOW_CONFIDENCE, STRAIGHT),
        (decided(confidence=0.99, risks=("medical",)), Reason.RISK, STRAIGHT),
        (decided(confidence=0.99, risks=("pii",), tier="enterprise"), Reason.RISK, STRAIGHT),
        (decided(input_tokens=101), Reason.TOO_LONG, STRAIGHT),
        (decided(input_tokens=100), Reason.CONFIDENT, CHEAP_FIRST),
        (decided(tier="free"), Reason.CONFIDENT, ONLY_SMALL),
        (decided(confidence=0.1, tier="free"), Reason.TIER, ONLY_SMALL),
        (decided("reasoning", 0.99, tier="free"), Reason.TIER, ONLY_SMALL),
        (decided(tier="unheard of"), Reason.CONFIDENT, CHEAP_FIRST),
        (decided(pinned=("large",)), Reason.PINNED, [("large", Role.EXPENSIVE)]),
        (decided(pinned=("large",), tier="free"), Reason.NOT_ALLOWED, []),
        (decided(pinned=("small", "large")), Reason.PINNED, CHEAP_FIRST),
        (decided(pinned=("large", "small")), Reason.PINNED, [("large", Role.EXPENSIVE), ("small", Role.FALLBACK)]),
        (decided(pinned=("small", "large"), tier="free"), Reason.NOT_ALLOWED, []),
        (decided(ladder=("large",)), Reason.UNSUPPORTED, [("large", Role.CHEAP)]),
        (decided("reasoning", 0.99, ladder=("small",)), Reason.UNSUPPORTED, ONLY_SMALL),
        (decided(confidence=0.1, ladder=("large",)), Reason.LOW_CONFIDENCE, [("large", Role.CHEAP)]),
        (decided(ladder=()), Reason.NO_RUNG_LEFT, []),
    ],
)
def test_reason_and_rungs(decision: Decision, reason: Reason, rungs: list[tuple[str, Role]]) -> None:
    """Each rule of the policy, and each ruling where two rules meet, has its reason and its rungs."""
    assert (decision.reason, climbed(decision)) == (reason, rungs)


def test_the_strictest_threshold_holds() -> None:
    """The threshold is the highest of the task's and of every risk's."""
    assert decided().threshold == 0.6
    assert decided(risks=("legal", "pii")).threshold == 0.9


def test_abstaining_goes_on_where_no_confidence_is_asked_for() -> None:
    """An abstaining classifier escalates only if the threshold is above zero."""
    lenient = policy_of(min_confidence=0)
    assert decided("other", 0.0, policy=lenient).reason is Reason.CONFIDENT


def test_a_risk_keeps_answers_out_of_the_cache() -> None:
    """``cache: never`` under a risk wins over the task's own rule."""
    assert decided().rules.cache_ttl == 600
    assert decided(risks=("pii",)).rules.cache_ttl is None


def test_a_middle_rung_called_first_is_cheap() -> None:
    """Only the last rung is ever expensive; those after the first are fallbacks."""
    three = policy_of(ladder=["a", "b", "c"], tasks={"sql": {"start": "b"}})
    assert climbed(decided("sql", policy=three)) == [("b", Role.CHEAP), ("c", Role.FALLBACK)]


@given(
    label=st.sampled_from(["summarize", "reasoning", "translate", "other"]),
    confidence=st.floats(0, 1),
    risks=st.frozensets(st.sampled_from([*RISKS, "unheard of"])),
    tier=st.sampled_from([None, "free", "enterprise", "x"]),
    pinned=st.sampled_from([(), ("small",), ("large",), ("large", "small")]),
    able=st.sampled_from([(), ("small",), ("large",), ("small", "large")]),
    tokens=st.integers(0, 1000),
)
def test_every_input_has_a_decision(
    label: str,
    confidence: float,
    risks: frozenset[str],
    tier: str | None,
    pinned: tuple[str, ...],
    able: tuple[str, ...],
    tokens: int,
) -> None:
    """Any request has a Decision, and it is the same whether the policy was just read or has decided before."""
    caller = Caller(tier=tier)
    found = Classification(label, confidence, risks)
    ladder = tuple(alias for alias in POLICY.ladder_of(caller) if alias in able)
    decision = decide(found, caller, POLICY, ladder=ladder, pinned=pinned, input_tokens=tokens)
    assert decision.rungs or decision.reason is (Reason.NOT_ALLOWED if pinned else Reason.NO_RUNG_LEFT)
    assert all(rung.alias in (pinned or ladder) for rung in decision.rungs)
    new = replace(POLICY)
    assert decision == decide(found, caller, new, ladder=ladder, pinned=pinned, input_tokens=tokens)
    assert decision is decide(found, caller, POLICY, ladder=ladder, pinned=pinned, input_tokens=tokens)


def test_another_policy_decides_for_itself() -> None:
    """What one policy has decided says nothing about a copy of it with another threshold."""
    assert decided(confidence=0.8).reason is Reason.CONFIDENT
    stricter = replace(POLICY, tasks={"summarize": replace(POLICY.task("summarize"), threshold=0.9)})
    assert decided(confidence=0.8, policy=stricter).reason is Reason.LOW_CONFIDENCE
    assert decided(confidence=0.8).reason is Reason.CONFIDENT


REVIEWS = policy_of(
    min_confidence=0.7,
    tasks={
        "sign": {"review": "draft"},
        "check": {"review": "after_ladder"},
        "reasoning": {"start": "large", "review": "draft"},
        "summarize": {"max_input_tokens": 100, "review": "draft"},
    },
    risks={
        "legal": {"review": "draft", "min_confidence": 0.9},
        "financial": {"review": "after_ladder"},
        "medical": {"start": "large", "review": "after_ladder"},
    },
    tiers={"free": {"ladder": ["small"]}},
)
UNSURE = replace(REVIEWS, review=ReviewPolicy(low_confidence="draft"))


@pytest.mark.parametrize(
    ("decision", "review", "reason", "rungs"),
    [
        (decided("x", 0.9, policy=REVIEWS), None, Reason.CONFIDENT, CHEAP_FIRST),
        (decided("x", 0.1, policy=REVIEWS), None, Reason.LOW_CONFIDENCE, STRAIGHT),
        (decided("sign", 0.9, policy=REVIEWS), Review.DRAFT, Reason.FORCED_TASK, CHEAP_FIRST),
        (decided("sign", 0.1, policy=REVIEWS), Review.DRAFT, Reason.FORCED_TASK, CHEAP_FIRST),
        (decided("check", 0.9, policy=REVIEWS), Review.AFTER_LADDER, Reason.CONFIDENT, CHEAP_FIRST),
        (decided("check", 0.1, policy=REVIEWS), Review.AFTER_LADDER, Reason.LOW_CONFIDENCE, STRAIGHT),
        (decided("check", 0.9, ("legal",), policy=REVIEWS), Review.DRAFT, Reason.RISK, CHEAP_FIRST),
        (decided("sign", 0.9, ("financial",), policy=REVIEWS), Review.DRAFT, Reason.FORCED_TASK, CHEAP_FIRST),
        (decided("x", 0.9, ("financial", "pii"), policy=REVIEWS), Review.AFTER_LADDER, Reason.CONFIDENT, CHEAP_FIRST),
        (decided("x", 0.9, ("medical",), policy=REVIEWS), Review.AFTER_LADDER, Reason.RISK, STRAIGHT),
        (decided("reasoning", 0.9, policy=REVIEWS), Review.DRAFT, Reason.FORCED_TASK, STRAIGHT),
        (decided("summarize", 0.9, policy=REVIEWS, input_tokens=101), Review.DRAFT, Reason.FORCED_TASK, STRAIGHT),
        (decided("sign", 0.9, policy=REVIEWS, pinned=("large",)), Review.DRAFT, Reason.FORCED_TASK, STRAIGHT),
        (decided("sign", 0.9, policy=REVIEWS, pinned=("large",), tier="free"), None, Reason.NOT_ALLOWED, []),
        (decided("sign", 0.9, policy=REVIEWS, ladder=()), None, Reason.NO_RUNG_LEFT, []),
        (decided("sign", 0.1, policy=REVIEWS, tier="free"), Review.DRAFT, Reason.FORCED_TASK, ONLY_SMALL),
        (decided("x", 0.9, policy=UNSURE), None, Reason.CONFIDENT, CHEAP_FIRST),
        (decided("x", 0.1, policy=UNSURE), Review.DRAFT, Reason.LOW_CONFIDENCE, CHEAP_FIRST),
        (decided("other", 0.0, policy=UNSURE), Review.DRAFT, Reason.ABSTAINED, CHEAP_FIRST),
        (decided("check", 0.1, policy=UNSURE), Review.DRAFT, Reason.LOW_CONFIDENCE, CHEAP_FIRST),
    ],
)
def test_review(decision: Decision, review: Review | None, reason: Reason, rungs: list[tuple[str, Role]]) -> None:
    """The strictest way holds, and a draft's reason is what makes it one; the cheap model writes it, unless forced."""
    assert (decision.review, decision.reason, climbed(decision)) == (review, reason, rungs)


def test_a_draft_is_not_kept() -> None:
    """Nor does an equal request wait for it."""
    assert decided("sign", 0.9, policy=REVIEWS).rules.cache_ttl is None
    assert decided("check", 0.9, policy=REVIEWS).rules.cache_ttl == 600


def test_a_new_rule_for_drafts_empties_the_cache() -> None:
    """What was answered without a person is not given out once one is to decide; other rules change no key."""
    plain = policy_of(risks={"legal": {"min_confidence": 0.9}})
    salts = {
        how: policy_of(risks={"legal": {"min_confidence": 0.9, "review": how}}).salt
        for how in ("draft", "after_ladder")
    }
    assert plain.salt == salts["after_ladder"] != salts["draft"]


def test_what_is_remembered_is_bounded() -> None:
    """Callers may name any task: no more resolutions are kept than was said."""
    policy = replace(POLICY)
    for number in range(DECISIONS + 100):
        decided(f"label-{number}", policy=policy)
    assert len(policy.decided) == DECISIONS
