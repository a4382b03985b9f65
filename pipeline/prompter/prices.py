"""What tokens cost, read from a file: prices change, and every provider has its own."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.shipped import read_yaml
from pipeline.types import Frozen, Usage

SHIPPED = Path(__file__).parent / "prices"

Dollars = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Rates(Frozen):
    """US dollars for a million tokens."""

    input: Dollars
    output: Dollars


class Price(Rates):
    """What one model costs, live and through the batches endpoint."""

    batch_discount: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    def of(self, input_tokens: int, output_tokens: int, *, batch: bool = False) -> float:
        """US dollars."""
        usd = (input_tokens * self.input + output_tokens * self.output) / 1e6
        return usd * (1 - self.batch_discount) if batch else usd


class Prices(Frozen):
    """A file of prices."""

    batch_discount: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    models: dict[str, Rates]


def load_price(source: str, model: str) -> Price | None:
    """The price of a model by the file that ships under this name, or the user's own.

    A dated snapshot ("gpt-4o-mini-2024-07-18") has the price of the longest name that begins it.
    None if the file does not know the model. Raises InputError for a file that cannot be used.
    """
    prices = read_yaml(Prices, source, SHIPPED, "prices")
    names = [name for name in prices.models if model == name or model.startswith(f"{name}-20")]
    if not names:
        return None
    rates = prices.models[max(names, key=len)]
    return Price(**rates.model_dump(), batch_discount=prices.batch_discount)


def usage_of(
    price: Price | None, input_tokens: int, output_tokens: int, *, batch: bool = False
) -> Usage:
    """What one answer took; its dollars are None where no price is known."""
    usd = price.of(input_tokens, output_tokens, batch=batch) if price else None
    return Usage(requests=1, input_tokens=input_tokens, output_tokens=output_tokens, usd=usd)
