"""How models compare on a suite: the same prompts and seeds, figure by figure.

Every picture is a row of figures. A prompt is a cluster: intervals are by bootstrap over prompts,
of which every arm's pictures are drawn together, so that differences are paired.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

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
from pipeline.types import Record

Unit = Literal["share", "score"]


@dataclass(frozen=True)
class Metric:
    """One figure of a picture. share: 1 or 0, so that its mean is one."""

    name: str
    title: str
    unit: Unit
    higher_is_better: bool = True


METRICS: Final = (
    Metric("faulty", "Faulty hands, by ground truth", "share", higher_is_better=False),
    Metric("as_asked", "All as asked, by ground truth", "share"),
    Metric("rejected_hand", "Faulty hands, by the verifier", "share", higher_is_better=False),
    Metric("accepted", "Accepted by the verifier", "share"),
    Metric("fidelity", "Fidelity, by the verifier", "score"),
    Metric("alignment", "Alignment, by the verifier", "score"),
    Metric("clip_score", "CLIPScore", "score"),
    Metric("preference", "Preference", "score"),
    Metric("image_reward", "ImageReward", "score"),
    Metric("fid", "FID to the reference", "score", higher_is_better=False),
    Metric("kid", "1000 KID to the reference", "score", higher_is_better=False),
)
"""In the order in which they are shown."""

DISTANCES: Final = ("fid", "kid")
"""Those that are of many pictures together."""

BY_NAME: Final = {metric.name: metric for metric in METRICS}


def figures_of(
    record: Record, truth: Truth | None, scores: Mapping[str, float] = {}
) -> dict[str, float]:
    """A picture's figures by metric; what nobody knows is not there.

    scores: as second opinions give them. clip_score becomes 100 times the cosine, as torchmetrics'
    CLIPScore has it.
    """
    verdict = record.verdict
    found = {
        "rejected_hand": float(verdict.fidelity < verdict.thresholds.fidelity),
        "accepted": float(verdict.accepted),
        "fidelity": verdict.fidelity,
        "alignment": verdict.alignment,
    }
    if truth is not None:
        found |= {"faulty": float(not truth.faultless), "as_asked": float(truth.as_asked)}
    return found | {
        name: 100 * score if name == "clip_score" else score for name, score in scores.items()
    }


@dataclass(frozen=True)
class Estimate:
    """A mean over n pictures, with its 95% interval; None where there are too few prompts.

    Resamples of pictures that are all alike are too: a share of 0 or 1 has Wilson's interval, with
    a picture a prompt.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Against:
    """An arm beside another one on the same prompts: its mean less the other's, and over it.

    The ratio is of shares only, and None where the other's share is none.
    """

    difference: float
    low: float | None
    high: float | None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True)
class Wins:
    """How often an arm's picture is better than the other's of the same prompt and seed.

    share: in [0, 1], a tie counting one half.
    """

    share: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class ArmFigures:
    """One arm on one suite."""

    pictures: int
    metrics: dict[str, Estimate]
    categories: dict[str, dict[str, Estimate]]
    against: dict[str, dict[str, Against]] = field(default_factory=dict)  # by arm and metric
    wins: dict[str, Wins] = field(default_factory=dict)  # against the first arm, by metric


@dataclass(frozen=True)
class SuiteFigures:
    """What all arms make of one suite."""

    prompts: int
    arms: dict[str, ArmFigures]


def shown_metrics(suite: SuiteFigures) -> list[Metric]:
    """Those that some arm has a figure of."""
    return [m for m in METRICS if any(m.name in arm.metrics for arm in suite.arms.values())]


def clearly(metric: Metric, against: Against) -> Literal["better", "worse", ""]:
    """Whether an arm is better or worse than the other, with the interval clear of zero."""
    if against.low is None or against.high is None or against.low <= 0 <= against.high:
        return ""
    return "better" if (against.difference > 0) == metric.higher_is_better else "worse"


@dataclass(frozen=True, slots=True)
class _Picture:
    arm: int
    prompt: int
    pair: tuple[str, int]
    category: str
    figures: dict[str, float]


class Comparison:
    """What is measured of a suite's pictures as they pass by; some hundred bytes of each stay."""

    def __init__(self, arms: Sequence[str]) -> None:
        """arms: their labels; the others are compared with the first above all."""
        self._arms = tuple(arms)
        self._prompts: dict[str, int] = {}
        self._pictures: list[_Picture] = []
        self._wholes: dict[int, dict[str, Estimate]] = {}

    def add(
        self, arm: int, prompt: str, record: Record, category: str, figures: Mapping[str, float]
    ) -> None:
        """A picture's figures. prompt: of the suite, whatever the arm was given of it."""
        place = self._prompts.setdefault(prompt, len(self._prompts))
        pair = (record.proposal.prompt.base, record.proposal.seed)
        self._pictures.append(_Picture(arm, place, pair, category, dict(figures)))

    def add_whole(self, arm: int, figures: Mapping[str, float], pictures: int) -> None:
        """What is known of an arm's pictures together only, and so without an interval."""
        self._wholes[arm] = {
            name: Estimate(value, None, None, pictures) for name, value in figures.items()
        }

    def figures(self, resamples: int = RESAMPLES, seed: int = SEED) -> SuiteFigures:
        """With intervals from so many resamples of the prompts, drawn from `seed`."""
        everything = _Table.of(self._pictures, resamples, seed)
        categories = sorted({picture.category for picture in self._pictures} - {""})
        parts = {
            name: _Table.of(
                [picture for picture in self._pictures if picture.category == name], resamples, seed
            )
            for name in categories
        }
        arms = {
            label: ArmFigures(
                pictures=sum(picture.arm == at for picture in self._pictures),
                metrics=everything.estimates(at) | self._wholes.get(at, {}),
                categories={name: part.estimates(at) for name, part in parts.items()},
                against={
                    other: everything.against(at, beside) | self._whole_against(at, beside)
                    for beside, other in enumerate(self._arms)
                    if beside != at
                },
                wins=self._wins(at, resamples, seed) if at else {},
            )
            for at, label in enumerate(self._arms)
        }
        return SuiteFigures(len(self._prompts), arms)

    def _whole_against(self, arm: int, other: int) -> dict[str, Against]:
        mine, theirs = self._wholes.get(arm, {}), self._wholes.get(other, {})
        return {
            name: Against(mine[name].value - theirs[name].value, None, None)
            for name in mine.keys() & theirs.keys()
        }

    def _wins(self, arm: int, resamples: int, seed: int) -> dict[str, Wins]:
        first = {p.pair: p.figures for p in self._pictures if p.arm == 0}
        mine = [p for p in self._pictures if p.arm == arm and p.pair in first]
        found = {}
        for metric in METRICS:
            some = [p for p in mine if metric.name in p.figures and metric.name in first[p.pair]]
            if not some:
                continue
            gains = [p.figures[metric.name] - first[p.pair][metric.name] for p in some]
            sign = 1 if metric.higher_is_better else -1
            won = (np.sign(np.array(gains)) * sign + 1) / 2
            table = _Sums.of(won, np.array([p.prompt for p in some]), resamples, seed)
            low, high = table.bounds
            found[metric.name] = Wins(table.mean, low, high, len(some))
        return found


@dataclass(frozen=True)
class _Sums:
    """A mean, and what it comes to in every resample of the prompts."""

    mean: float
    drawn: Floats  # (resamples,)
    prompts: int

    @classmethod
    def of(
        cls, values: Floats, prompts: npt.NDArray[np.intp], resamples: int, seed: int
    ) -> "_Sums":
        _, cluster = np.unique(prompts, return_inverse=True)
        count = int(cluster.max()) + 1
        columns = np.column_stack([values, np.ones(len(values))])
        drawn = resampled(cluster_sums(cluster, columns, count), resamples, seed)
        return cls(float(values.mean()), drawn[:, 0] / drawn[:, 1], count)

    @property
    def bounds(self) -> tuple[float, float] | tuple[None, None]:
        return interval(self.drawn) if self.prompts >= FEWEST_PROMPTS else (None, None)


@dataclass(frozen=True)
class _Column:
    """A metric of an arm. drawn: its mean in every resample, the same ones for all arms."""

    mean: float
    drawn: Floats  # (resamples,); nan where a resample has no picture of it
    n: int


class _Table:
    """The columns of all arms over one resampling of the prompts."""

    def __init__(self, columns: Mapping[tuple[int, str], _Column], prompts: int) -> None:
        self._columns, self._prompts = columns, prompts

    @classmethod
    def of(
        cls,
        pictures: Iterable[_Picture],
        resamples: int,
        seed: int,
    ) -> "_Table":
        by_column: dict[tuple[int, str], tuple[list[int], list[float]]] = {}
        for picture in pictures:
            for name, value in picture.figures.items():
                places, values = by_column.setdefault((picture.arm, name), ([], []))
                places.append(picture.prompt)
                values.append(value)
        if not by_column:
            return cls({}, 0)
        seen = sorted({place for places, _ in by_column.values() for place in places})
        number = {place: at for at, place in enumerate(seen)}
        sums = []
        for places, values in by_column.values():
            cluster = np.array([number[place] for place in places])
            columns = np.column_stack([values, np.ones(len(values))])
            sums.append(cluster_sums(cluster, columns, len(seen)))
        drawn = resampled(np.concatenate(sums, axis=1), resamples, seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = drawn[:, 0::2] / drawn[:, 1::2]
        return cls(
            {
                key: _Column(float(np.mean(values)), means[:, at], len(values))
                for at, (key, (_, values)) in enumerate(by_column.items())
            },
            len(seen),
        )

    def estimates(self, arm: int) -> dict[str, Estimate]:
        found = {}
        for metric in METRICS:
            if column := self._columns.get((arm, metric.name)):
                low, high = self._bounds(column.drawn)
                if low is not None and metric.unit == "share" and column.mean in (0, 1):
                    low, high = wilson(round(column.mean * self._prompts), self._prompts)
                found[metric.name] = Estimate(column.mean, low, high, column.n)
        return found

    def against(self, arm: int, other: int) -> dict[str, Against]:
        found = {}
        for metric in METRICS:
            mine = self._columns.get((arm, metric.name))
            theirs = self._columns.get((other, metric.name))
            if mine and theirs:
                found[metric.name] = self._against(metric, mine, theirs)
        return found

    def _against(self, metric: Metric, mine: _Column, theirs: _Column) -> Against:
        difference = Against(mine.mean - theirs.mean, *self._bounds(mine.drawn - theirs.drawn))
        if metric.unit != "share" or not theirs.mean:
            return difference
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = mine.drawn / theirs.drawn
        low, high = self._bounds(ratios) if mine.mean else (None, None)
        return Against(
            difference.difference,
            difference.low,
            difference.high,
            ratio=mine.mean / theirs.mean,
            ratio_low=low,
            ratio_high=high,
        )

    def _bounds(self, drawn: Floats) -> tuple[float, float] | tuple[None, None]:
        return interval(drawn) if self._prompts >= FEWEST_PROMPTS else (None, None)
