"""How far two annotators agree, on the pictures that both of them labelled."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.labels import QUESTIONS, Question, Said
from pipeline.miniature.figures import kappa


@dataclass(frozen=True)
class Agreement:
    """Of two annotators on one question."""

    n: int  # pictures that both answered
    agreed: int  # of these, with the same answer
    kappa: float | None  # Cohen's; None where both give one same answer throughout, or n is 0


def agreement(one: Mapping[str, Said], other: Mapping[str, Said], question: Question) -> Agreement:
    """one, other: what each says, by picture. Source: Cohen 1960."""
    pairs = [
        (mine, theirs)
        for id in _common(one, other)
        if (mine := one[id].answer(question)) is not None
        and (theirs := other[id].answer(question)) is not None
    ]
    return Agreement(
        n=len(pairs),
        agreed=sum(mine == theirs for mine, theirs in pairs),
        kappa=kappa([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
        if pairs
        else None,
    )


def disagreements(one: Mapping[str, Said], other: Mapping[str, Said]) -> Iterator[str]:
    """The pictures to which they give different answers, in any order."""
    for id in _common(one, other):
        for question in QUESTIONS:
            answers = {one[id].answer(question), other[id].answer(question)}
            if answers == {True, False}:
                yield id
                break


def _common(one: Mapping[str, Said], other: Mapping[str, Said]) -> Iterator[str]:
    few, many = sorted((one, other), key=len)
    return (id for id in few if id in many)
