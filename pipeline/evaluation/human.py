"""What people chose, counted: strengths, wins and agreement, and who answered with care."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np

from pipeline.choices import QUESTIONS, Choice, Pair, Question, Study
from pipeline.evaluation.agreement import alpha
from pipeline.evaluation.bootstrap import (
    FEWEST_PROMPTS,
    RESAMPLES,
    SEED,
    Floats,
    cluster_sums,
    interval,
    resampled,
)
from pipeline.evaluation.strengths import connected, strengths

FEWEST_CHECKS: Final = 4  # fewer say nothing of somebody's care
FEWEST_PASSED: Final = 0.75  # a share of the attention checks; guessing passes a third
BY_CHANCE: Final = 0.001  # how rarely somebody fair leans so far to one side

Outcome = Literal[0, 1, 2]
"""The one wins, a tie, the other one wins."""

_VALUES = np.array([1.0, 0.0, -1.0])  # of these outcomes, for how far apart two of them are


@dataclass(frozen=True)
class Estimate:
    """With its 95% interval by bootstrap over prompts; None where that says nothing."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Wins:
    """What came of an arm's comparisons. share: of wins, in [0, 1], a tie counting one half."""

    share: Estimate
    won: int
    tied: int
    lost: int


@dataclass(frozen=True)
class Arm:
    """One arm in one question.

    strength: the log-odds of being chosen over the first arm, ties aside; None where not all arms
    are compared with one another yet. wins: over all others; against: by the other arm.
    """

    strength: Estimate | None
    wins: Wins | None
    against: dict[str, Wins]


@dataclass(frozen=True)
class Agreement:
    """Of all annotators. alpha: Krippendorff's, with a tie half way; None if nothing is known."""

    alpha: float | None
    pairs: int  # that two annotators or more answered


@dataclass(frozen=True)
class Asked:
    """What came of one question."""

    answers: int
    ties: int
    prompts: int
    arms: dict[str, Arm]
    agreement: Agreement


@dataclass(frozen=True)
class Annotator:
    """How one annotator went about it."""

    pairs: int  # that they answered whole, checks included
    checks: int  # attention checks among what they answered
    passed: int
    left: dict[Question, int]  # answers by side; the others are ties
    right: dict[Question, int]
    why_not: str = ""  # why what they say should not count; "": it should


@dataclass(frozen=True)
class Result:
    """What a study says so far."""

    arms: tuple[str, ...]
    annotators: dict[str, Annotator]
    counted: tuple[str, ...]  # the annotators whose answers the figures are of
    questions: dict[Question, Asked]


def result_of(
    study: Study,
    choices: Iterable[Choice],
    *,
    everybody: bool = False,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Result:
    """everybody: whoever answered without care counts too.

    The intervals say how other prompts might have come out, asked of the same people.
    """
    pairs = {pair.id: pair for pair in study.pairs}
    last = {(choice.annotator, choice.pair): choice for choice in choices}
    said: dict[str, list[Choice]] = {}
    for (name, pair), choice in sorted(last.items()):
        if pair in pairs and any(choice.answers):
            said.setdefault(name, []).append(choice)
    annotators = {name: annotator_of(theirs, pairs) for name, theirs in said.items()}
    counted = tuple(name for name, it in annotators.items() if everybody or not it.why_not)
    compared = [
        (pairs[choice.pair], choice)
        for name in counted
        for choice in said[name]
        if not pairs[choice.pair].check
    ]
    arms = tuple(study.request.arms)
    questions: dict[Question, Asked] = {}
    for question in QUESTIONS:
        answers = [
            (pair, found)
            for pair, choice in compared
            if (found := outcome(choice, pair, question)) is not None
        ]
        questions[question] = _asked(arms, answers, resamples, seed)
    return Result(arms, annotators, counted, questions)


def outcome(choice: Choice, pair: Pair, question: Question) -> Outcome | None:
    """None: not answered."""
    answer = choice.answers.answer(question)
    if answer is None:
        return None
    if answer == "tie":
        return 1
    return 0 if (answer == "left") == (choice.left == pair.one.id) else 2


# Annotators


def annotator_of(choices: Sequence[Choice], pairs: Mapping[str, Pair]) -> Annotator:
    """choices: one annotator's, one a pair."""
    checks = [
        found == 0
        for choice in choices
        if pairs[choice.pair].check
        and (found := outcome(choice, pairs[choice.pair], "alignment")) is not None
    ]
    sides: dict[str, dict[Question, int]] = {
        side: {q: sum(choice.answers.answer(q) == side for choice in choices) for q in QUESTIONS}
        for side in ("left", "right")
    }
    return Annotator(
        pairs=sum(choice.answers.whole for choice in choices),
        checks=len(checks),
        passed=sum(checks),
        left=sides["left"],
        right=sides["right"],
        why_not=_why_not(checks, sides["left"], sides["right"]),
    )


def _why_not(
    checks: Sequence[bool], left: Mapping[Question, int], right: Mapping[Question, int]
) -> str:
    if len(checks) >= FEWEST_CHECKS and sum(checks) < FEWEST_PASSED * len(checks):
        return (
            f"passed {sum(checks)} of {len(checks)} attention checks, fewer than "
            f"{FEWEST_PASSED:.0%}"
        )
    for question in QUESTIONS:
        side, most = max(("left", left[question]), ("right", right[question]), key=lambda s: s[1])
        decided = left[question] + right[question]
        if leans(most, decided):
            return (
                f"chose the {side} picture in {most} of {decided} answers about {question} that "
                "are no tie, though sides are by chance"
            )
    return ""


def leans(most: int, n: int) -> bool:
    """Whether so many of n to one side come less often than BY_CHANCE, were both as likely.

    Source: Hoeffding's inequality (1963), which errs towards no.
    """
    return n > 0 and 2 * math.exp(-2 * n * (most / n - 0.5) ** 2) < BY_CHANCE


# Arms


def _asked(
    arms: Sequence[str], answers: Sequence[tuple[Pair, Outcome]], resamples: int, seed: int
) -> Asked:
    matches = list(combinations(arms, 2))
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(p.prompt for p, _ in answers))}
    by_match = np.zeros((len(answers), len(matches), 3))
    for row, (pair, found) in enumerate(answers):
        by_match[row, matches.index((pair.one.arm, pair.other.arm)), found] = 1
    counts = by_match.sum(axis=0)  # (matches, 3)
    cluster = np.array([prompts[pair.prompt] for pair, _ in answers], dtype=np.intp)
    drawn = np.empty((0, len(matches), 3))
    if len(prompts) >= FEWEST_PROMPTS:
        sums = cluster_sums(cluster, by_match.reshape(len(answers), -1), len(prompts))
        drawn = resampled(sums, resamples, seed).reshape(resamples, len(matches), 3)
    others = {arm: [other for other in arms if other != arm] for arm in arms}
    wins = {arm: _wins(arm, others[arm], matches, counts, drawn) for arm in arms}
    strong = _strengths(counts, drawn, [wins[arm] for arm in arms])
    by_arm = {}
    for at, arm in enumerate(arms):
        against = {other: _wins(arm, [other], matches, counts, drawn) for other in others[arm]}
        by_arm[arm] = Arm(
            strength=strong[at] if strong else None,
            wins=wins[arm],
            against={other: found for other, found in against.items() if found},
        )
    return Asked(
        answers=len(answers),
        ties=int(counts[:, 1].sum()),
        prompts=len(prompts),
        arms=by_arm,
        agreement=_agreement(answers),
    )


def _strengths(counts: Floats, drawn: Floats, wins: Sequence[Wins | None]) -> list[Estimate]:
    """Nothing where not all arms are compared with one another.

    What won all or nothing has a value by grace of the half counts alone, and no interval.
    """
    compared = counts.sum(axis=1) > 0
    if not connected(len(wins), compared):
        return []
    found = strengths(np.concatenate([counts[None], drawn]), len(wins), compared)
    unbound = [it is not None and it.share.value in (0, 1) for it in wins]
    return [
        _estimate(found[0, at], found[1:, at] if not (unbound[0] or unbound[at]) else found[:0, at])
        for at in range(len(wins))
    ]


def _wins(
    arm: str,
    others: Sequence[str],
    matches: Sequence[tuple[str, str]],
    counts: Floats,
    drawn: Floats,
) -> Wins | None:
    """Over these others together; None if it was not compared with them."""
    found, anew = np.zeros(3), np.zeros((len(drawn), 3))
    for at, match in enumerate(matches):
        if arm in match and (match[0] in others or match[1] in others):
            won_first = slice(None, None, 1 if arm == match[0] else -1)
            found += counts[at, won_first]
            anew += drawn[:, at, won_first]
    if not found.any():
        return None
    with np.errstate(invalid="ignore"):  # a resample may lack these arms
        shares = (anew @ [1, 0.5, 0]) / anew.sum(axis=1)
    share = _estimate(float(found @ [1, 0.5, 0] / found.sum()), shares)
    won, tied, lost = (int(n) for n in found)
    return Wins(share, won, tied, lost)


def _estimate(value: float, drawn: Floats) -> Estimate:
    """drawn: what it came to in each resample. Where all came to the same, they say nothing."""
    if not len(drawn) or np.ptp(drawn) == 0:
        return Estimate(float(value), None, None)
    return Estimate(float(value), *interval(drawn))


def _agreement(answers: Sequence[tuple[Pair, Outcome]]) -> Agreement:
    seen = Counter((pair.id, found) for pair, found in answers)
    ids = {id: i for i, id in enumerate(dict.fromkeys(id for id, _ in seen))}
    counts = np.zeros((len(ids), 3))
    for (id, found), n in seen.items():
        counts[ids[id], found] = n
    return Agreement(alpha(counts, _VALUES), int((counts.sum(axis=1) >= 2).sum()))
