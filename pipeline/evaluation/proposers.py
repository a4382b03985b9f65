"""How good each proposer is, category by category, and how it fares against the base.

Proposers are compared on the same prompts and seeds. Pictures stream by; what is kept of each is
two dozen bytes, for the paired differences.
"""

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.evaluation.bootstrap import (
    FEWEST_PROMPTS,
    RESAMPLES,
    SEED,
    Floats,
    cluster_sums,
    interval,
    resampled,
)
from pipeline.miniature.figures import wilson
from pipeline.miniature.truth import Truth
from pipeline.types import BASE, ProposerRef, Record

SPECIALISTS: Final = "specialists"
"""The row of every category by its own specialist: what the route "specialist" would draw."""
ENSEMBLE: Final = "ensemble"
"""The row of all proposers together."""

Kind = Literal["base", "specialist", "specialists", "ensemble"]
Flags = npt.NDArray[np.int8]
"""1, 0, or -1 where nothing is known."""


@dataclass(frozen=True)
class Share:
    """How many of n pictures, with the 95% interval (Wilson 1927).

    Pictures of one prompt resemble each other, so that the true interval is wider.
    """

    hits: int
    n: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """How often the hand is faulty, beside the base's on the same prompts and seeds.

    difference: of the shares, below 0 where there are fewer faults. ratio: of the shares, 0.5 for
    half as many; None where the base makes no fault. Intervals of 95% by bootstrap over prompts,
    since pictures of one prompt resemble each other; None where there are too few prompts, or for
    a ratio no faults: resamples of none are none.
    """

    pairs: int
    prompts: int
    base: float
    faulty: float
    difference: float
    low: float | None
    high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True)
class Cell:
    """A proposer's pictures of one category, or of all.

    What nothing is known of is None, above all the ground truth outside of the miniature.
    """

    n: int = 0
    fidelity: float | None = None  # mean score, in [0, 1]
    alignment: float | None = None
    hand_right: Share | None = None  # by the verifier: fidelity reaches its threshold
    aligned: Share | None = None  # likewise
    accepted: Share | None = None
    faultless: Share | None = None  # by ground truth: a hand without a fault
    as_asked: Share | None = None  # by ground truth: everything that the prompt names
    paired: Paired | None = None  # by the verifier: a hand is faulty below the threshold
    paired_truth: Paired | None = None


@dataclass(frozen=True)
class Row:
    """A proposer, or several together. own: the categories that it is the specialist of."""

    label: str
    kind: Kind
    own: tuple[str, ...]
    cells: dict[str, Cell]  # by category
    all: Cell


@dataclass(frozen=True)
class Evaluation:
    """What came out. Of seen prompts nothing is counted anywhere else."""

    categories: tuple[str, ...]
    rows: tuple[Row, ...]  # base, specialists, both ways of taking them together
    prompts: int  # that count
    pictures: int  # likewise
    seen_prompts: int  # left out: a specialist was trained on them
    seen_pictures: int
    pairs: int  # prompts and seeds that every proposer has a picture of
    incomplete: int  # and those that some lack: no part of the paired figures
    judged_by_truth: bool
    resamples: int
    seed: int


def share_of(hits: int, n: int) -> Share | None:
    """None of nothing."""
    return Share(hits, n, hits / n, *wilson(hits, n)) if n else None


def evaluate(
    drawn: Iterable[tuple[Record, Truth | None]],
    proposers: Sequence[ProposerRef],
    categories: Sequence[str],
    specialists: Mapping[str, str] = {},
    seen: Collection[str] = (),
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Evaluation:
    """The figures of a run's records, in any order, with the ground truth where it is known.

    The other arguments are those of Drawings and of its `figures`.
    """
    drawings = Drawings(proposers, categories, specialists, seen)
    for record, truth in drawn:
        drawings.add(record, truth)
    return drawings.figures(resamples, seed)


def own_specialists(
    proposers: Sequence[ProposerRef], categories: Iterable[str], specialists: Mapping[str, str]
) -> dict[str, int]:
    """Which of the proposers is each category's specialist; a category may have none.

    specialists: as configured, NAME or NAME@VERSION or "base" by category. An adapter that serves
    two categories draws a prompt once, under the first of them.
    """
    own = {}
    for category in categories:
        name, _, version = specialists.get(category, category).partition("@")
        adapters = [(i, ref.adapter) for i, ref in enumerate(proposers) if ref.adapter]
        for_it = [i for i, adapter in adapters if adapter.category == category]
        named = [i for i, a in adapters if a.name == name and a.version.startswith(version)]
        if name != BASE and (found := for_it or named):
            own[category] = found[0]
    return own


class SeenTexts:
    """Prompts that a specialist was trained on, whether or not its rare token stands in front."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts: set[str] = set()
        for text in texts:
            words = text.casefold().split()
            self._texts |= {" ".join(words), " ".join(words[1:])}
        self._texts.discard("")

    def __contains__(self, text: str) -> bool:
        return " ".join(text.casefold().split()) in self._texts


class Drawings:
    """What is measured of pictures as they pass by."""

    def __init__(
        self,
        proposers: Sequence[ProposerRef],
        categories: Sequence[str],
        specialists: Mapping[str, str] = {},
        seen: Collection[str] = (),
    ) -> None:
        """proposers: those of the run. categories: the taxonomy's, in its order.

        specialists: as for own_specialists. seen: texts that a specialist was trained on.
        """
        self._proposers = {ref: index for index, ref in enumerate(proposers)}
        self._known = tuple(categories)
        self._specialists = specialists
        self._seen = SeenTexts(seen)
        self._seen_prompts: set[str] = set()
        self._seen_pictures = 0
        self._categories = {name: index for index, name in enumerate(categories)}
        self._sums: dict[tuple[int, int], _Sums] = {}  # by proposer and category
        # A column each, a row a picture.
        self._prompt, self._noise = array("Q"), array("Q")
        self._proposer, self._category = array("H"), array("H")
        self._right, self._faultless = array("b"), array("b")

    def add(self, record: Record, truth: Truth | None = None) -> bool:
        """False if the picture does not count, since its prompt was trained on.

        Raises InputError for a proposer that is none of the run's.
        """
        proposal, verdict = record.proposal, record.verdict
        proposer = self._proposers.get(proposal.proposer)
        if proposer is None:
            raise InputError(f"proposer {proposal.proposer.title!r} is none of the run's")
        if proposal.prompt.text in self._seen:
            self._seen_prompts.add(proposal.prompt.id)
            self._seen_pictures += 1
            return False
        category = self._categories.setdefault(proposal.prompt.category, len(self._categories))
        right = verdict.fidelity >= verdict.thresholds.fidelity
        self._sums[proposer, category] = self._sums.get((proposer, category), _Sums()).plus(
            _Sums(
                n=1,
                fidelity=verdict.fidelity,
                alignment=verdict.alignment,
                right=right,
                aligned=verdict.alignment >= verdict.thresholds.alignment,
                accepted=verdict.accepted,
                known=truth is not None,
                faultless=truth is not None and truth.faultless,
                as_asked=truth is not None and truth.as_asked,
            )
        )
        self._prompt.append(int(proposal.prompt.id[:16], 16))
        self._noise.append(proposal.seed)
        self._proposer.append(proposer)
        self._category.append(category)
        self._right.append(right)
        self._faultless.append(-1 if truth is None else truth.faultless)
        return True

    def figures(self, resamples: int = RESAMPLES, seed: int = SEED) -> Evaluation:
        """resamples: of the prompts, for the intervals of paired differences; drawn from `seed`."""
        others = sorted(self._categories.keys() - set(self._known))
        categories = (*self._known, *others)
        own = own_specialists(tuple(self._proposers), categories, self._specialists)
        base = next((i for ref, i in self._proposers.items() if ref.adapter is None), None)
        table = _Pairs.of(
            np.array(self._prompt),
            np.array(self._noise),
            np.array(self._proposer),
            np.array(self._category),
            {"verifier": np.array(self._right), "truth": np.array(self._faultless)},
            len(self._proposers),
        )
        rows = [_Plan(BASE, "base", base, ())] if base is not None else []
        labels = _labels(tuple(self._proposers))
        for index, label in enumerate(labels):
            if index != base:
                mine = tuple(name for name in categories if own.get(name) == index)
                rows.append(_Plan(label, "specialist", index, mine))
        if len(rows) > 1:
            rows += [_Plan(SPECIALISTS, SPECIALISTS, None, ()), _Plan(ENSEMBLE, ENSEMBLE, None, ())]
        routed = {number: own.get(name, base) for name, number in self._categories.items()}
        by_verifier, by_truth = (
            table.compared(kind, rows, base, routed, resamples, seed)
            for kind in ("verifier", "truth")
        )

        def cell(at: int, name: str | None) -> Cell:
            column = None if name is None else self._categories[name]
            sums = self._sum(rows[at], column, routed)
            return _cell(sums, by_verifier.get((column, at)), by_truth.get((column, at)))

        return Evaluation(
            categories=categories,
            rows=tuple(
                Row(
                    label=row.label,
                    kind=row.kind,
                    own=row.own,
                    cells={name: cell(at, name) for name in categories},
                    all=cell(at, None),
                )
                for at, row in enumerate(rows)
            ),
            prompts=len(np.unique(np.array(self._prompt))),
            pictures=len(self._prompt),
            seen_prompts=len(self._seen_prompts),
            seen_pictures=self._seen_pictures,
            pairs=int(table.complete("verifier").sum()),
            incomplete=int((~table.complete("verifier")).sum()),
            judged_by_truth=any(sums.known for sums in self._sums.values()),
            resamples=resamples,
            seed=seed,
        )

    def _sum(self, row: "_Plan", column: int | None, routed: Mapping[int, int | None]) -> "_Sums":
        """What the row's pictures of a category, or of all, add up to."""
        total = _Sums()
        for (proposer, category), sums in self._sums.items():
            if column in (None, category) and row.takes(proposer, routed[category]):
                total = total.plus(sums)
        return total


class _Sums(NamedTuple):
    """What pictures add up to; numbers of them but for the scores."""

    n: int = 0
    fidelity: float = 0.0
    alignment: float = 0.0
    right: int = 0
    aligned: int = 0
    accepted: int = 0
    known: int = 0  # whose ground truth is known
    faultless: int = 0
    as_asked: int = 0

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums._make(a + b for a, b in zip(self, other, strict=True))


@dataclass(frozen=True)
class _Plan:
    """A row to be filled. proposer: None for those that several make up."""

    label: str
    kind: Kind
    proposer: int | None
    own: tuple[str, ...]

    def takes(self, proposer: int, specialist: int | None) -> bool:
        """Whether a picture is its own. specialist: who draws the picture's category."""
        if self.kind == ENSEMBLE:
            return True
        return proposer == (specialist if self.kind == SPECIALISTS else self.proposer)


def _labels(proposers: Sequence[ProposerRef]) -> list[str]:
    """Their own, and the version after it where two are called the same."""
    own = [ref.label for ref in proposers]
    return [
        f"{label}@{ref.adapter.version}" if ref.adapter and own.count(label) > 1 else label
        for label, ref in zip(own, proposers, strict=True)
    ]


def _cell(sums: _Sums, paired: Paired | None, paired_truth: Paired | None) -> Cell:
    if not sums.n:
        return Cell()
    return Cell(
        n=sums.n,
        fidelity=sums.fidelity / sums.n,
        alignment=sums.alignment / sums.n,
        hand_right=share_of(sums.right, sums.n),
        aligned=share_of(sums.aligned, sums.n),
        accepted=share_of(sums.accepted, sums.n),
        faultless=share_of(sums.faultless, sums.known),
        as_asked=share_of(sums.as_asked, sums.known),
        paired=paired,
        paired_truth=paired_truth,
    )


# Pairs


@dataclass(frozen=True)
class _Pairs:
    """Every prompt and seed once, in a fixed order: what the proposers made of it."""

    prompt: npt.NDArray[np.uint64]  # (pairs,)
    category: npt.NDArray[np.uint16]  # (pairs,)
    right: dict[str, Flags]  # (pairs, proposers), by who says so

    @classmethod
    def of(
        cls,
        prompt: npt.NDArray[np.uint64],
        noise: npt.NDArray[np.uint64],
        proposer: npt.NDArray[np.uint16],
        category: npt.NDArray[np.uint16],
        right: Mapping[str, Flags],
        proposers: int,
    ) -> "_Pairs":
        """All arrays: (pictures,)."""
        order = np.lexsort((noise, prompt))
        prompt, noise = prompt[order], noise[order]
        new = np.ones(len(order), bool)
        new[1:] = (prompt[1:] != prompt[:-1]) | (noise[1:] != noise[:-1])
        pair = np.cumsum(new) - 1
        tables = {}
        for kind, flags in right.items():
            tables[kind] = np.full((int(new.sum()), proposers), -1, np.int8)
            tables[kind][pair, proposer[order]] = flags[order]
        return cls(prompt[new], category[order][new], tables)

    def complete(self, kind: str) -> npt.NDArray[np.bool_]:
        """Where all proposers are known."""
        return np.asarray((self.right[kind] >= 0).all(axis=1))

    def compared(
        self,
        kind: str,
        rows: Sequence[_Plan],
        base: int | None,
        routed: Mapping[int, int | None],
        resamples: int,
        seed: int,
    ) -> dict[tuple[int | None, int], Paired]:
        """Every row against the base, by category (None: all of them) and the row's place."""
        kept = self.complete(kind)
        if base is None or not kept.any():
            return {}
        faulty = 1 - self.right[kind][kept].astype(np.float64)  # (pairs, proposers)
        category, prompt = self.category[kept], self.prompt[kept]
        of_category = np.array([base if routed[i] is None else routed[i] for i in sorted(routed)])
        values = np.empty((len(faulty), len(rows)))
        for at, row in enumerate(rows):
            if row.kind == ENSEMBLE:
                values[:, at] = faulty.mean(axis=1)
            elif row.kind == SPECIALISTS:
                values[:, at] = faulty[np.arange(len(faulty)), of_category[category]]
            else:
                values[:, at] = faulty[:, row.proposer]
        found = {}
        for column in (None, *np.unique(category).tolist()):
            some = slice(None) if column is None else category == column
            stream = 0 if column is None else 1 + column
            results = paired_bootstrap(
                values[some], faulty[some, base], prompt[some], resamples, [seed, stream]
            )
            for at, result in enumerate(results):
                if rows[at].kind != "base":
                    found[column, at] = result
        return found


def paired_bootstrap(
    faulty: Floats,
    base: Floats,
    prompts: npt.NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int | Sequence[int] = SEED,
) -> list[Paired]:
    """Every column of `faulty` against `base`, with intervals over resampled prompts.

    faulty: (pairs, columns), base: (pairs,), both in [0, 1]. prompts: (pairs,), whose picture it
    is. At least one pair.
    """
    _, prompt = np.unique(prompts, return_inverse=True)
    count = int(prompt.max()) + 1
    columns = np.column_stack([np.ones(len(base)), base, faulty])
    sums = cluster_sums(prompt, columns, count)
    pairs, of_base, of_rows = len(base), float(base.mean()), faulty.mean(axis=0)
    drawn = resampled(sums, resamples, seed)
    differences = (drawn[:, 2:] - drawn[:, 1:2]) / drawn[:, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[:, 2:] / drawn[:, 1:2]  # nan or infinite where a resample has no base fault
    results = []
    for at, share in enumerate(of_rows.tolist()):
        enough = count >= FEWEST_PROMPTS
        low, high = interval(differences[:, at]) if enough else (None, None)
        ratio_low, ratio_high = interval(ratios[:, at]) if enough and share else (None, None)
        results.append(
            Paired(
                pairs=pairs,
                prompts=count,
                base=of_base,
                faulty=share,
                difference=share - of_base,
                low=low,
                high=high,
                ratio=share / of_base if of_base else None,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
            )
        )
    return results
