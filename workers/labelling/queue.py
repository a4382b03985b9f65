"""In which order pictures come to an annotator.

The same for the same run, set and seed, whatever order the store lists its records in.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from pipeline.labels import Chosen
from pipeline.types import Record, Verdict, digest

MOST_PICTURES = 1_000_000  # in memory at once, at about 400 bytes each


class Picture(NamedTuple):
    """What is kept of a record."""

    id: str
    prompt: str
    base: str
    category: str
    distance: float  # of the score nearest to its threshold: the smaller, the less sure


class Place(NamedTuple):
    """One picture's turn."""

    picture: Picture
    chosen: Chosen

    @property
    def id(self) -> str:
        return self.picture.id


def pictures(records: Iterable[Record]) -> Iterator[Picture]:
    """At most MOST_PICTURES; texts that several share are held once."""
    texts: dict[str, str] = {}
    for record in islice(records, MOST_PICTURES):
        prompt = record.proposal.prompt
        yield Picture(
            id=record.id,
            prompt=texts.setdefault(prompt.text, prompt.text),
            base=texts.setdefault(prompt.base, prompt.base),
            category=texts.setdefault(prompt.category, prompt.category),
            distance=_distance(record.verdict),
        )


def _distance(verdict: Verdict) -> float:
    return min(
        abs(verdict.fidelity - verdict.thresholds.fidelity),
        abs(verdict.alignment - verdict.thresholds.alignment),
    )


def in_order(
    all_pictures: Iterable[Picture],
    labelled_by_others: set[str],
    *,
    seed: str,
    random_share: float,
    overlap: float,
) -> list[Place]:
    """Each picture at most once.

    random_share: of the pictures that nobody has labelled, how many come by chance; the rest come
    as the verifier is unsure of them. overlap: how many of the pictures that others labelled come
    too, and at which rate until they are used up, so that agreement is known early.
    """
    by_chance = sorted(all_pictures, key=lambda picture: digest([seed, picture.id]))
    known = [picture for picture in by_chance if picture.id in labelled_by_others]
    fresh = [picture for picture in by_chance if picture.id not in labelled_by_others]
    unsure = sorted(fresh, key=lambda picture: (picture.distance, picture.id))
    return list(
        _mixed(
            _placed(known[: math.ceil(overlap * len(known))], "overlap"),
            _mixed(_placed(fresh, "random"), _placed(unsure, "unsure"), random_share),
            overlap,
        )
    )


def _placed(some: Iterable[Picture], chosen: Chosen) -> Iterator[Place]:
    return (Place(picture, chosen) for picture in some)


def _mixed(one: Iterator[Place], other: Iterator[Place], share: float) -> Iterator[Place]:
    """Of each picture its first place; `share` of the places are of the first while both last."""
    taken: set[str] = set()

    def fresh(places: Iterator[Place]) -> Iterator[Place]:
        return (place for place in places if place.picture.id not in taken)

    one, other = fresh(one), fresh(other)
    for number in range(MOST_PICTURES + 1):
        due = _whole((number + 1) * share) > _whole(number * share)
        for places in (one, other) if due else (other, one):
            if place := next(places, None):
                taken.add(place.picture.id)
                yield place
                break
        else:
            return


def _whole(number: float) -> int:
    return math.floor(number + 1e-9)  # 10 * 0.3 is a little less than 3 in binary
