"""What a verifier makes of pictures and prompts that were changed, and what it cannot tell.

Labelled pictures are changed in ways that leave their labels true, and in ways that make them
false; the same pictures untouched are what everything is compared with.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import InputError
from pipeline.evaluation.opinions import OpinionsMeasured
from pipeline.evaluation.robustness_pictures import TRANSFORMATIONS, Held, Transformation
from pipeline.evaluation.robustness_texts import Edit, edits
from pipeline.evaluation.verifier import HEADS, Ranking, Share
from pipeline.miniature.figures import wilson
from pipeline.training.verifier_labels import Judged, open_picture
from pipeline.training.verifier_negatives import Wordings
from pipeline.types import Frozen, ModelRef, Thresholds, Verdict
from pipeline.verifier.calibration import Floats, auc, auc_interval, auc_resamples

AT_ONCE = 32  # pictures that are decoded together
RESAMPLES = 1000
COUNT, SEED = 400, 20_260_501  # of the command

Kind = Literal["benign", "destroying", "edit"]
Answers = npt.NDArray[np.bool_]


class Mean(Frozen):
    """Of scores; the interval is 95%, by bootstrap over base prompts. None: of nothing."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Fall(Frozen):
    """By how much an AUC is lower than that of the same pictures untouched, with its interval."""

    value: float
    low: float
    high: float


class Level(Frozen):
    """One strength, on n pictures.

    held: what is held to be true afterwards, by question. means and accepted: of the pictures that
    were right in both before. wrong_accepted: of those that were wrong. flipped: verdicts other
    than before. auc: against the labels, of what is kept, and fall: how much less that is.
    told: of what is lost, the AUC of untouched pictures against changed ones.
    """

    label: str
    n: int
    held: dict[str, Held]
    means: dict[str, Mean]
    accepted: Share
    wrong_accepted: Share
    flipped: Share
    now_rejected: int
    now_accepted: int
    auc: dict[str, Ranking]
    fall: dict[str, Fall]
    told: dict[str, Ranking]

    @property
    def lost(self) -> bool:
        """Whether acceptance is wrong by now."""
        return "lost" in self.held.values()


class Curve(Frozen):
    """One way to change pictures or prompts, in growing strength.

    benign: what it leaves open or kept; destroying, edit: what must no longer be accepted.
    untouched: the same pictures before. left_out: pictures that it could not be done to.
    """

    name: str
    title: str
    kind: Kind
    about: str
    assumed: str
    untouched: Level
    levels: tuple[Level, ...]
    left_out: int


class Report(Frozen):
    """All figures of one verifier. limits: what it cannot tell, by `limits`.

    opinions: the configured second opinions on the same pictures, untouched.
    """

    verifier: ModelRef
    thresholds: Thresholds
    sources: tuple[str, ...]
    pictures: int
    labelled: int  # of which so many were taken
    base_prompts: int
    right: int  # in both
    wrong: int
    seed: int
    resamples: int = RESAMPLES
    untouched: Level
    curves: tuple[Curve, ...]
    opinions: OpinionsMeasured | None = None
    limits: tuple[str, ...] = ()


class Judge(Protocol):
    """A verifier."""

    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        """One verdict for each pair."""


Watched = Callable[[Sequence[Sequence[Judged]]], Iterable[Sequence[Judged]]]


def chosen(items: Sequence[Judged], count: int, seed: int) -> list[Judged]:
    """So many of them by their hashes under the seed, the same ones in whatever order they come.

    Raises InputError unless some are right in both and some are wrong.
    """

    def place(item: Judged) -> str:
        return hashlib.sha256(f"{seed}/{item.sha256}/{item.prompt}".encode()).hexdigest()

    some = sorted(items, key=place)[:count]
    answers = {_right(item) for item in some}
    if not {True, False} <= answers:
        lacking = "is right in both" if True not in answers else "is wrong"
        raise InputError(
            f"none of {len(some):,} labelled pictures {lacking}: give labels of accepted and "
            "rejected pictures, or a larger --count"
        )
    return some


def evaluate(
    verifier: Judge,
    items: Sequence[Judged],
    known: Wordings,
    thresholds: Thresholds,
    seed: int = SEED,
    watched: Watched = iter,
) -> tuple[Level, tuple[Curve, ...]]:
    """The figures of untouched pictures, and those of every transformation and edit.

    watched: sees the batches go by. Every picture is decoded once, AT_ONCE of them together.
    Raises InputError for a picture that is gone.
    """
    count = len(items)
    trials = [_Trial.of(change, count) for change in _changes(known)]
    untouched = _Scores.none(count)
    batches = [items[first : first + AT_ONCE] for first in range(0, count, AT_ONCE)]
    first = 0
    for batch in watched(batches):
        pictures = [open_picture(item.picture) for item in batch]
        places = list(range(first, first + len(batch)))
        prompts = [item.prompt for item in batch]
        untouched.put(places, verifier.judge(pictures, prompts, thresholds))
        for trial in trials:
            trial.judge(verifier, batch, pictures, first, thresholds, seed)
        first += len(batch)
    truth = _Truth.of(items)
    everywhere = np.ones(count, np.bool_)
    return (
        _level("untouched", _KEPT, untouched, untouched, truth, everywhere),
        tuple(trial.curve(untouched, truth) for trial in trials),
    )


@dataclass(frozen=True)
class Tile:
    """A picture to look at, changed at one strength, and what the verifier says of it."""

    label: str
    image: Image.Image
    text: str
    verdict: Verdict


def examples(
    verifier: Judge,
    items: Sequence[Judged],
    known: Wordings,
    thresholds: Thresholds,
    seed: int = SEED,
) -> dict[str, list[Tile]]:
    """By curve: the first right picture that it can be done to, untouched and at every strength."""
    found = {}
    for change in _changes(known):
        for item in items:
            if not _right(item):
                continue
            picture = open_picture(item.picture)
            pairs = [
                changed_pair(change, level, item, picture, seed)
                for level in range(len(change.labels))
            ]
            shown = [(picture, item.prompt), *(pair for pair in pairs if pair)]
            if len(shown) == 1:
                continue
            images, texts = zip(*shown, strict=True)
            verdicts = verifier.judge(images, texts, thresholds)
            labels = ("untouched", *change.labels)
            found[change.name] = [
                Tile(label, image, text, verdict)
                for label, (image, text), verdict in zip(labels, shown, verdicts, strict=True)
            ]
            break
    return found


# What is judged


_KEPT: Mapping[str, Held] = dict.fromkeys(HEADS, "kept")


@dataclass(frozen=True)
class _Scores:
    """By picture; nan where it was not judged."""

    scores: Floats  # N, 2: as HEADS
    accepted: Answers  # N

    @classmethod
    def none(cls, count: int) -> _Scores:
        return cls(np.full((count, len(HEADS)), np.nan), np.zeros(count, np.bool_))

    def put(self, places: Sequence[int], verdicts: Sequence[Verdict]) -> None:
        for place, verdict in zip(places, verdicts, strict=True):
            self.scores[place] = verdict.fidelity, verdict.alignment
            self.accepted[place] = verdict.accepted

    @property
    def judged(self) -> Answers:
        return np.asarray(~np.isnan(self.scores[:, 0]))


@dataclass(frozen=True)
class _Trial:
    """A transformation or an edit, and what became of the pictures under it."""

    change: Transformation | Edit
    scores: list[_Scores]  # by level

    @classmethod
    def of(cls, change: Transformation | Edit, count: int) -> _Trial:
        """count: pictures."""
        return cls(change, [_Scores.none(count) for _ in change.labels])

    def judge(
        self,
        verifier: Judge,
        batch: Sequence[Judged],
        pictures: Sequence[Image.Image],
        first: int,
        thresholds: Thresholds,
        seed: int,
    ) -> None:
        """first: the place of the batch's first picture among all."""
        for level, scores in enumerate(self.scores):
            pairs = [
                (first + place, *pair)
                for place, (item, picture) in enumerate(zip(batch, pictures, strict=True))
                if (pair := changed_pair(self.change, level, item, picture, seed))
            ]
            if pairs:
                places, images, texts = zip(*pairs, strict=True)
                scores.put(places, verifier.judge(images, texts, thresholds))

    def curve(self, untouched: _Scores, truth: _Truth) -> Curve:
        change, edit = self.change, isinstance(self.change, Edit)
        some = self.scores[0].judged
        able = truth.answers("alignment", True) if edit else np.ones_like(some)
        return Curve(
            name=change.name,
            title=change.title,
            kind="edit" if edit else "destroying" if _lost(change) else "benign",
            about=change.about,
            assumed=change.assumed,
            untouched=_level("untouched", _KEPT, untouched, untouched, truth, some),
            levels=tuple(
                _level(label, held, scores, untouched, truth, some)
                for label, held, scores in zip(
                    change.labels, change.holds, self.scores, strict=True
                )
            ),
            left_out=int((able & ~some).sum()),
        )


def _changes(known: Wordings) -> tuple[Transformation | Edit, ...]:
    return (*TRANSFORMATIONS, *edits(known))


def _lost(change: Transformation | Edit) -> bool:
    """Whether the picture must not be accepted in the end."""
    return "lost" in change.holds[-1].values()


def changed_pair(
    change: Transformation | Edit, level: int, item: Judged, picture: Image.Image, seed: int
) -> tuple[Image.Image, str] | None:
    """The picture and its prompt after the change; None where it cannot be done.

    Chance is drawn from the picture and the seed, and is the same at every level. A prompt is
    edited only where the picture shows it.
    """
    if isinstance(change, Transformation):
        rng = np.random.default_rng([seed, int(item.sha256[:12], 16)])
        changed = change.apply(picture, change.strengths[level], rng)
        return changed, change.text(item.prompt)
    if not item.alignment:
        return None
    texts = change.texts(item.prompt, random.Random(f"{seed}/{item.sha256}/{item.prompt}"))
    return None if texts is None else (picture, texts[level])


# What comes of it


@dataclass(frozen=True)
class _Truth:
    """What the labels say, by picture; -1 where they say nothing."""

    said: dict[str, npt.NDArray[np.int8]]  # N, by head
    right: npt.NDArray[np.int8]  # N, in both
    bases: npt.NDArray[np.str_]  # N

    @classmethod
    def of(cls, items: Sequence[Judged]) -> _Truth:
        def coded(values: Iterable[bool | None]) -> npt.NDArray[np.int8]:
            return np.array([-1 if value is None else value for value in values], np.int8)

        return cls(
            {head: coded(getattr(item, head) for item in items) for head in HEADS},
            coded(map(_right, items)),
            np.array([item.base for item in items]),
        )

    def answers(self, head: str, answer: bool) -> Answers:
        return np.asarray(self.said[head] == answer)


def _right(item: Judged) -> bool | None:
    """In both; None where that cannot be told."""
    if item.fidelity is False or item.alignment is False:
        return False
    return None if item.fidelity is None or item.alignment is None else True


def _level(
    label: str,
    held: Mapping[str, Held],
    scores: _Scores,
    untouched: _Scores,
    truth: _Truth,
    some: Answers,
) -> Level:
    """some: (N,) the pictures that count."""
    right, wrong = some & (truth.right == 1), some & (truth.right == 0)
    before, after = untouched.accepted[some], scores.accepted[some]
    ranked: dict[str, Ranking] = {}
    told: dict[str, Ranking] = {}
    fall: dict[str, Fall] = {}
    for column, head in enumerate(HEADS):
        now, then = scores.scores[:, column], untouched.scores[:, column]
        if held[head] == "kept":
            here = some & (truth.said[head] >= 0)
            answers, groups = truth.said[head][here] == 1, truth.bases[here].tolist()
            ranked[head] = _ranking(now[here], answers, groups)
            if scores is not untouched and (less := _fall(then[here], now[here], answers, groups)):
                fall[head] = less
        elif held[head] == "lost":
            here = some & truth.answers(head, True)
            both = np.concatenate([then[here], now[here]])
            answers = np.arange(len(both)) < here.sum()
            told[head] = _ranking(both, answers, truth.bases[here].tolist() * 2)
    return Level(
        label=label,
        n=int(some.sum()),
        held=dict(held),
        means={
            head: _mean(scores.scores[right, column], truth.bases[right].tolist())
            for column, head in enumerate(HEADS)
        },
        accepted=_share(scores.accepted[right]),
        wrong_accepted=_share(scores.accepted[wrong]),
        flipped=_share(before != after),
        now_rejected=int((before & ~after).sum()),
        now_accepted=int((after & ~before).sum()),
        auc=ranked,
        fall=fall,
        told=told,
    )


def _ranking(scores: Floats, truth: Answers, groups: list[str]) -> Ranking:
    n, yes = len(scores), int(truth.sum())
    interval = auc_interval(scores, truth, groups, RESAMPLES)
    if interval is None:
        return Ranking(auc=None, n=n, yes=yes)
    return Ranking(auc=auc(scores, truth), low=interval[0], high=interval[1], n=n, yes=yes)


def _fall(before: Floats, after: Floats, truth: Answers, groups: list[str]) -> Fall | None:
    """None where there is no AUC. Resample by resample, since both are of the same pictures."""
    one, other = auc(before, truth), auc(after, truth)
    if one is None or other is None:
        return None
    falls = auc_resamples(before, truth, groups, RESAMPLES) - auc_resamples(
        after, truth, groups, RESAMPLES
    )
    low, high = np.quantile(falls, [0.025, 0.975]).tolist()
    return Fall(value=one - other, low=low, high=high)


def _mean(values: Floats, groups: list[str]) -> Mean:
    """Source of the interval: the percentile bootstrap over clusters, Efron and Tibshirani 1993."""
    if not len(values):
        return Mean()
    names, place = np.unique(np.array(groups), return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES
    )
    sums = drawn @ np.bincount(place, values, len(names))
    means = sums / (drawn @ np.bincount(place, minlength=len(names)))
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Mean(value=float(values.mean()), low=low, high=high)


def _share(values: Answers) -> Share:
    hits, n = int(values.sum()), len(values)
    low, high = wilson(hits, n)
    return Share(hits=hits, n=n, value=hits / n if n else None, low=low, high=high)
