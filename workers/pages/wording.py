"""How pages put scores, counts and text from elsewhere into words."""

import math
import re
from decimal import ROUND_DOWN, Decimal

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_PICTURES = 0x2400  # U+2400 is the picture of U+0000, and so on


def score(value: float) -> str:
    """Two decimals, rounded down: a score that misses a threshold of 0.50 never reads 0.50."""
    return str(Decimal(str(value)).quantize(Decimal("0.01"), rounding=ROUND_DOWN))


def count(number: int) -> str:
    return f"{number:,}"


def percent(part: int, whole: int) -> str:
    """Rounded down, so that 100% means all; an en dash if there is nothing to take a share of."""
    return f"{100 * part // whole}%" if whole else "\N{EN DASH}"


def visible(text: str) -> str:
    """The text on one line, with its control characters as pictures of themselves."""

    def picture(match: re.Match[str]) -> str:
        code = ord(match[0])
        if match[0] in "\t\n\r":
            return " "
        return chr(_CONTROL_PICTURES + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"

    return _UNPRINTABLE.sub(picture, text)


def shorten(text: str, characters: int) -> str:
    """The beginning of a long text, and how much more there is."""
    rest = len(text) - characters
    return text if rest <= 0 else f"{text[:characters]}… ({count(rest)} more characters)"


def dollars(usd: float | None) -> str:
    """With as many digits as a small sum needs: "$12.30", "$0.00021"."""
    if usd is None:
        return "at a price that is not known"
    if usd == 0 or usd >= 0.1:
        return f"${usd:,.2f}"
    return f"${usd:.{1 - math.floor(math.log10(usd))}f}"
