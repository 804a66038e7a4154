"""What tokens cost, in whole nano-dollars.

One call's cost is the sum of its tokens, each sort (plain input, input read from the provider's prompt cache, input
written to it, output) at its own price in nano-dollars per million tokens, divided by 10**6 and rounded once, half to
even.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, NamedTuple

from tracerouter.types import NANOS, Usage

_MILLION = 1_000_000


class Price(NamedTuple):
    """Nano-dollars per million tokens."""

    input: int
    output: int
    cached_input: int
    """Of input tokens that the provider read from its own prompt cache."""
    long_from: int | None = None
    """Calls of more input tokens than this cost `long` as a whole. None: the length does not matter."""
    long: Price | None = None
    cache_write: int | None = None
    """Of input tokens that the provider wrote to its own prompt cache. None: as other input."""
    cache_write_1h: int | None = None
    """Of those that it keeps for an hour. None: as others that it wrote."""

    @classmethod
    def per_million(
        cls,
        input_usd: Decimal,
        output_usd: Decimal,
        cached_input_usd: Decimal | None = None,
        cache_write_usd: Decimal | None = None,
        cache_write_1h_usd: Decimal | None = None,
    ) -> Price:
        """Make a price of USD per million tokens; input that is cached or written costs as other input by default."""
        cached = input_usd if cached_input_usd is None else cached_input_usd
        written, hour = (None if usd is None else _nanos(usd) for usd in (cache_write_usd, cache_write_1h_usd))
        return cls(_nanos(input_usd), _nanos(output_usd), _nanos(cached), cache_write=written, cache_write_1h=hour)

    def cost(self, usage: Usage) -> int:
        """Return what `usage` costs (nano-dollars), as if all of it were one call."""
        if self.long is not None and self.long_from is not None and usage.input > self.long_from:
            return self.long.cost(usage)
        cached = min(usage.cached, usage.input)
        written = min(usage.cache_write, usage.input - cached)
        hour = min(usage.cache_write_1h, written)
        write = self.input if self.cache_write is None else self.cache_write
        write_1h = write if self.cache_write_1h is None else self.cache_write_1h
        total = (usage.input - cached - written) * self.input + cached * self.cached_input + usage.output * self.output
        total += (written - hour) * write + hour * write_1h
        whole, rest = divmod(total, _MILLION)
        return whole + (rest * 2 > _MILLION or (rest * 2 == _MILLION and whole % 2 == 1))

    def most(self, tokens: int, output: int) -> int:
        """Return the most that so much input and output can cost (nano-dollars): writing to a cache may cost more."""
        inputs = (Usage(tokens, output), Usage(tokens, output, cache_write=tokens))
        return max(self.cost(usage) for usage in (*inputs, inputs[1]._replace(cache_write_1h=tokens)))


FREE = Price(0, 0, 0)


def known_price(provider: str, model: str) -> Price | None:
    """Look `model` up in genai-prices' dated table, as of now; None where it has no price per token."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - 0.2 s, once, at start

    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    prices = found.get_prices(datetime.now(UTC))
    output = Decimal(0) if prices.output_mtok is None and "embedding" in model else prices.output_mtok
    listed: list[Any] = [prices.input_mtok, output, prices.cache_read_mtok]
    listed += [getattr(prices, name, None) for name in ("cache_write_mtok", "cache_write_1h_mtok")]
    if None in listed[:2]:
        return None
    base = Price.per_million(*(getattr(price, "base", price) for price in listed))
    tiers = getattr(listed[0], "tiers", None)
    if not tiers:
        return base
    # the tables have one tier today; the last is the dearest, and the safe one should they get more
    long = Price.per_million(*(price.tiers[-1].price if hasattr(price, "tiers") else price for price in listed))
    return base._replace(long_from=tiers[0].start, long=long)


def _nanos(price: Decimal) -> int:
    return int((price * NANOS).to_integral_value(ROUND_HALF_EVEN))
