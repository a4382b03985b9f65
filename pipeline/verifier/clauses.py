"""A prompt that is longer than the verifier reads, cut into clauses that it can read one by one.

Nothing is cut off: the clauses together hold every word of the prompt, in its order. A cut is
made at the widest boundary that helps: a sentence's end, a semicolon or colon, a comma, a
conjunction or preposition, a space, and, in a word that is too long by itself, anywhere.
"""

import re
from collections.abc import Callable
from itertools import pairwise

from pipeline.types import ClauseScore, Score

Span = tuple[int, int]

_JOINTS = (
    "in front of|on top of|next to|with|without|while|and|or|but|against|behind|under|over|"
    "above|below|beside|between|near|around|through|across|inside|into|from|at|by|on|in"
)
BOUNDARIES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<=[.!?\n])\s+|\n",
        r"(?<=[;:])\s+",
        r"(?<=,)\s+",
        rf"\s+(?=(?:{_JOINTS})\s)",
        r"\s+",
    )
)
"""Where a prompt may be cut, from the widest boundary to the narrowest; cuts lie at match ends."""


def split_clauses(text: str, budget: int, count_tokens: Callable[[str], int]) -> list[str]:
    """The prompt as one clause where it fits, else as few clauses as neighbours can be packed into.

    budget: the most tokens a clause may have, at least 1; count_tokens: the tokens of a text,
    without the tokenizer's special ones. Returns at least one clause, and one only for a text
    without words.
    Raises ValueError for a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"a clause cannot have a budget of {budget} tokens: give at least 1")
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if start >= end:
        return [""]

    def fits(span: Span) -> bool:
        return count_tokens(text[span[0] : span[1]].strip()) <= budget

    spans = _cut(text, (start, end), 0, fits)
    return [text[a:b].strip() for a, b in spans]


def aggregate(clauses: list[ClauseScore]) -> tuple[Score, Score]:
    """Fidelity and alignment of a whole prompt from its clauses' scores.

    Fidelity is their mean: every clause is read beside the same hand. Alignment is their minimum:
    a picture shows the prompt only if it shows each clause. For alignment the minimum
    beats the mean, and a learned mixture of both is no better; for fidelity they do not differ:
    `python -m bench.verifier --aggregation`.
    """
    fidelity = sum(clause.fidelity for clause in clauses) / len(clauses)
    return fidelity, min(clause.alignment for clause in clauses)


def _cut(text: str, span: Span, level: int, fits: Callable[[Span], bool]) -> list[Span]:
    """The span in pieces that fit, in order and without gaps, cut at BOUNDARIES[level] or below."""
    if fits(span):
        return [span]
    if level == len(BOUNDARIES):
        return _cut_anywhere(span, fits)
    start, end = span
    cuts = [match.end() for match in BOUNDARIES[level].finditer(text, start, end)]
    edges = [start, *(cut for cut in dict.fromkeys(cuts) if start < cut < end), end]
    packed: list[Span] = []
    for piece in pairwise(edges):
        if packed and fits((packed[-1][0], piece[1])):
            packed[-1] = (packed[-1][0], piece[1])
        else:
            packed += _cut(text, piece, level + 1, fits)
    return packed


def _cut_anywhere(span: Span, fits: Callable[[Span], bool]) -> list[Span]:
    """One long word in pieces that fit, each as long as can be and of one character at least."""
    pieces = []
    start, end = span
    while start < end:
        stop = start + 1
        while stop < end and fits((start, stop + 1)):
            stop += 1
        pieces.append((start, stop))
        start = stop
    return pieces
