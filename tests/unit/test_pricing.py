"""Money is exact: whole nano-dollars, rounded once a call, half to even."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.pricing import FREE, Price, known_price
from tracerouter.types import Usage, usd

AMOUNT = st.integers(0, 10**13)
TOKENS = st.integers(0, 10**9)


def exact(price: Price, usage: Usage) -> int:
    """Compute the cost in fractions; ``round`` takes the even one of two equally near."""
    cached = min(usage.cached, usage.input)
    written = min(usage.cache_write, usage.input - cached)
    hour = min(usage.cache_write_1h, written)
    parts = (
        (usage.input - cached - written, price.input),
        (cached, price.cached_input),
        (written - hour, price.cache_write or 0),
        (hour, price.cache_write_1h or 0),
        (usage.output, price.output),
    )
    return round(Fraction(sum(tokens * amount for tokens, amount in parts), 10**6))


@given(st.tuples(*[AMOUNT] * 5), st.tuples(*[TOKENS] * 6))
def test_cost_is_the_fraction_rounded_half_to_even(amounts: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    """Whatever price and usage, the cost is what arithmetic without any loss says, rounded once."""
    plain, output, cached, written, hour = amounts
    price, usage = Price(plain, output, cached, cache_write=written, cache_write_1h=hour), Usage(*tokens)
    assert price.cost(usage) == exact(price, usage)


@pytest.mark.parametrize(
    ("tokens", "nanos"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4), (999_999, 500_000)]
)
def test_halves_go_to_the_even_number(tokens: int, nanos: int) -> None:
    """At half a nano-dollar a token, 1 token rounds down to 0, 3 up to 2, and 5 down to 2."""
    assert Price(500_000, 0, 500_000).cost(Usage(tokens)) == nanos


def test_prices_are_usd_per_million_tokens() -> None:
    """A price of the file is read exactly, and cached input costs as much as other input unless it is named."""
    assert Price.per_million(Decimal("0.05"), Decimal("0.40")) == Price(50_000_000, 400_000_000, 50_000_000)
    price = Price.per_million(Decimal("1.25"), Decimal(10), Decimal("0.125"))
    assert price.cost(Usage(1_000_000, 1_000_000)) == 11_250_000_000
    assert FREE.cost(Usage(10**9, 10**9, 10**9)) == 0


def test_cached_tokens_are_part_of_the_input() -> None:
    """Cached tokens are billed at their own price instead of the input's, never more of them than there is input."""
    price = Price(1_000_000, 0, 100_000)
    assert price.cost(Usage(100, 0, cached=0)) == 100
    assert price.cost(Usage(100, 0, cached=60)) == 46
    assert price.cost(Usage(100, 0, cached=500)) == 10


def test_tokens_written_to_the_cache_are_part_of_the_input() -> None:
    """Written tokens are billed at their own price, by how long they are kept; one that is not named is the next."""
    used = Usage(100, cached=10, cache_write=50, cache_write_1h=20)
    plain = Price(1_000_000, 0, 100_000)
    assert plain.cost(used) == 40 + 1 + 50
    assert plain._replace(cache_write=2_000_000).cost(used) == 40 + 1 + 100
    assert plain._replace(cache_write=2_000_000, cache_write_1h=3_000_000).cost(used) == 40 + 1 + 60 + 60
    named = Price.per_million(Decimal(3), Decimal(15), Decimal("0.3"), Decimal("3.75"), Decimal(6))
    assert named.cost(Usage(1_000_000, 0, 0, 0, 1_000_000, 400_000)) == 2_250_000_000 + 2_400_000_000


def test_the_most_that_tokens_can_cost() -> None:
    """A bound counts all input at its dearest: written to the prompt cache, where that is dearer."""
    plain = Price(1_000_000, 1_000_000, 100_000)
    assert plain.most(100, 7) == 107
    assert plain._replace(cache_write=2_000_000).most(100, 7) == 207
    assert plain._replace(cache_write=2_000_000, cache_write_1h=3_000_000).most(100, 7) == 307
    assert plain._replace(cache_write=0).most(100, 7) == 107


def test_reasoning_tokens_are_part_of_the_output() -> None:
    """Reasoning tokens cost nothing besides: they stand in the output already."""
    price = Price(1_000_000, 1_000_000, 1_000_000)
    assert price.cost(Usage(1, 9, reasoning=8)) == price.cost(Usage(1, 9)) == 10


def test_a_long_call_costs_the_long_price_as_a_whole() -> None:
    """From one token above the bound on, all tokens of the call cost the higher tier."""
    long = Price(2_000_000, 4_000_000, 1_000_000)
    price = Price(1_000_000, 2_000_000, 500_000, long_from=1000, long=long)
    assert price.cost(Usage(1000, 10, 100)) == 900 + 50 + 20
    assert price.cost(Usage(1001, 10, 100)) == 1802 + 100 + 40


def test_known_prices() -> None:
    """OpenAI's models have a price offline, with cached input cheaper; what has none is None, not 0."""
    known = known_price("openai", "gpt-5-mini")
    assert known is not None
    assert 0 < known.cached_input < known.input < known.output
    assert known_price("openai", "no-such-model-here") is None
    assert known_price("no-such-provider", "gpt-5-mini") is None


def test_known_prices_of_the_prompt_cache() -> None:
    """Anthropic's models are known with what it costs to write to the prompt cache, in the longer tier too."""
    known = known_price("anthropic", "claude-sonnet-4-5")
    assert known is not None
    assert known.cache_write is not None
    assert known.cache_write_1h is not None
    assert known.cached_input < known.input < known.cache_write < known.cache_write_1h
    assert known.long is not None
    assert known.long.cache_write is not None
    assert known.long.cache_write > known.cache_write


def test_a_known_price_may_have_a_tier() -> None:
    """A model that is dearer for long prompts has both prices, the longer one the dearer."""
    known = known_price("google", "gemini-2.5-pro")
    assert known is not None
    assert known.long is not None
    assert known.long_from == 200_000
    assert known.long.input > known.input


@given(st.integers(0, 10**18))
def test_usd_is_fixed_point(nanos: int) -> None:
    """Dollars are written with nine digits after the point, and read back as the same nano-dollars."""
    told = usd(nanos)
    assert len(told.split(".")[1]) == 9
    assert Decimal(told) * 10**9 == nanos


def test_sums_of_usage() -> None:
    """Usages add up field by field."""
    assert Usage(1, 2, 3, 4, 5, 6).plus(Usage(10, 20, 30, 40, 50, 60)) == Usage(11, 22, 33, 44, 55, 66)
