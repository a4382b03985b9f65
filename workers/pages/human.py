"""The page of a comparison by people: strengths, wins and agreement, question by question."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

from pipeline.choices import ASKED, Study
from pipeline.evaluation.human import Agreement, Asked, Estimate, Result, Wins
from workers.pages.atomic import replacing
from workers.pages.charts import share
from workers.pages.proposers import MINUS
from workers.pages.rendering import content_security_policy, environment, inlined
from workers.pages.wording import count, percent

PROMPT_CHARACTERS = 600


def write_human_page(
    title: str, study: Study, result: Result, notes: Sequence[str], to: Path
) -> None:
    """Whole or not at all. title: the study's name."""
    style = inlined("report.css", "proposers.css", "human.css")
    templates = environment(PROMPT_CHARACTERS)
    templates.globals |= {
        "agreed": agreed, "asked": ASKED, "between": between, "matches": _matches, "odds": odds,
        "percent": percent, "share": share, "strength": strength, "tone": tone,
    }  # fmt: skip
    page = templates.get_template("human.html.j2").render(
        title=title,
        result=result,
        pairs=sum(not pair.check for pair in study.pairs),
        checks=sum(pair.check for pair in study.pairs),
        notes=notes,
        style=style,
        policy=content_security_policy(style),
    )
    with replacing(to) as file:
        file.write(page.encode())


def _matches(asked: Asked) -> Iterator[tuple[str, str, Wins]]:
    """Every two arms that were compared; the one first that won more."""
    for one, other in combinations(asked.arms, 2):
        if wins := asked.arms[one].against.get(other):
            if wins.share.value < 0.5:
                one, other, wins = other, one, asked.arms[other].against[one]
            yield one, other, wins


# Words


def strength(value: float) -> str:
    """Log-odds, with their sign: "+0.72", or "0" of what the others are told against."""
    return f"{value:+.2f}".replace("-", MINUS) if value else "0"


def odds(value: float) -> str:
    """Of a strength: "2.1 : 1"."""
    return f"{math.exp(value):.3g} : 1"


def tone(estimate: Estimate) -> str:
    """The class of a strength that is clearly above or below the first arm's."""
    if estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high:
        return ""
    return "fewer" if estimate.low > 0 else "more"


def between(estimate: Estimate, words: Callable[[float], str]) -> str:
    """An interval in words; nothing if there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{words(estimate.low)} to {words(estimate.high)}"


def agreed(agreement: Agreement) -> str:
    if not agreement.pairs:
        return "No pair was compared by two people yet."
    pairs = f"on {count(agreement.pairs)} pairs that two people or more compared"
    if agreement.alpha is None:
        return f"Agreement {pairs}: all gave the same answer."
    alpha = f"{round(agreement.alpha, 2) + 0:.2f}".replace("-", MINUS)  # no minus zero
    return f"Agreement {pairs}: Krippendorff's alpha {alpha}."
