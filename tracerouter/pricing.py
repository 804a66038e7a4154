"""What tokens cost, in whole nano-dollars.

One call's cost is ``(uncached input * input + cached * cached_input + output * output) / 10**6``, each price in
nano-dollars per million tokens, rounded once, half to even.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from tracerouter.types import NANOS

if TYPE_CHECKING:
    from tracerouter.types import Usage

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

    @classmethod
    def per_million(cls, input_usd: Decimal, output_usd: Decimal, cached_input_usd: Decimal | None = None) -> Price:
        """Make a price of USD per million tokens; cached input costs as much as other input by default."""
        cached = input_usd if cached_input_usd is None else cached_input_usd
        return cls(_nanos(input_usd), _nanos(output_usd), _nanos(cached))

    def cost(self, usage: Usage) -> int:
        """Return what `usage` costs (nano-dollars), as if all of it were one call."""
        if self.long is not None and self.long_from is not None and usage.input > self.long_from:
            return self.long.cost(usage)
        cached = min(usage.cached, usage.input)
        total = (usage.input - cached) * self.input + cached * self.cached_input + usage.output * self.output
        whole, rest = divmod(total, _MILLION)
        return whole + (rest * 2 > _MILLION or (rest * 2 == _MILLION and whole % 2 == 1))


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
