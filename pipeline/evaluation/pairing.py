"""Which pictures people compare: pairs of one prompt and seed, and checks of which we know more.

The same for the same pictures and request, in whatever order a store lists them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, zip_longest
from typing import Final, NamedTuple

from pipeline.choices import Pair, Request, Side, Study
from pipeline.errors import InputError
from pipeline.types import Record, digest

MOST_ALIKE: Final = 0.5  # of the words of two prompts, by Jaccard, for one to be a check
CHECKED_AGAINST: Final = 500  # pictures of an arm, of which one becomes the other one of a check


@dataclass(frozen=True)
class Picture:
    """What is kept of a record."""

    id: str
    prompt: str
    seed: int
    sha256: str
    accepted: bool

    @classmethod
    def of(cls, record: Record) -> "Picture":
        return cls(
            id=record.id,
            prompt=record.proposal.prompt.text,
            seed=record.proposal.seed,
            sha256=record.image_sha256,
            accepted=record.verdict.accepted,
        )

    @property
    def asked(self) -> tuple[str, int]:
        """What it was drawn from: two pictures are compared where this is the same."""
        return self.prompt, self.seed


def study_of(request: Request, pictures: Mapping[str, Iterable[Picture]]) -> Study:
    """pictures: by arm; those that the request is confined to.

    Every two arms are compared equally often, as far as they have pictures in common, and each
    prompt once before any of them twice. A check shows a picture that the verifier accepted beside
    one by the same arm of a prompt in other words: which of them shows what the text says is known.

    Raises InputError for fewer than two arms, and for two arms without a picture in common.
    """
    if len(request.arms) < 2:
        raise InputError("people compare two arms or more")
    drawn = {label: {each.asked: each for each in pictures[label]} for label in request.arms}
    alike, by_arms = 0, []
    for one, other in combinations(drawn, 2):
        common = drawn[one].keys() & drawn[other].keys()
        if not common:
            raise InputError(
                f"arms {one!r} and {other!r} have no picture of the same prompt and seed: "
                "people compare what was drawn from the same"
            )
        found = [_pair(request, drawn, asked, one, other) for asked in common]
        differ = [pair for pair in found if pair]
        alike += len(found) - len(differ)
        by_arms.append(_each_prompt_first(differ, request.seed))
    pairs = list(islice(_in_turn(by_arms), request.pairs))
    if not pairs:
        raise InputError("all arms have drawn the very same pictures: there is nothing to compare")
    share = request.check_share
    wanted = round(len(pairs) * share / (1 - share))
    checks = list(
        islice(_in_turn([_checks(request, arm, drawn[arm].values()) for arm in drawn]), wanted)
    )
    notes = []
    if len(pairs) < request.pairs:
        notes.append(f"the arms have pictures for {len(pairs):,} of {request.pairs:,} pairs")
    if len(checks) < wanted:
        notes.append(
            f"{len(checks):,} of {wanted:,} attention checks could be made, from pictures that the "
            "verifier accepted and prompts in other words"
        )
    return Study(request=request, pairs=(*pairs, *checks), alike=alike, notes=tuple(notes))


def _in_turn(some: Sequence[Iterable[Pair]]) -> Iterator[Pair]:
    return (pair for turn in zip_longest(*some) for pair in turn if pair is not None)


def _pair(
    request: Request,
    drawn: Mapping[str, Mapping[tuple[str, int], Picture]],
    asked: tuple[str, int],
    one: str,
    other: str,
) -> Pair | None:
    """None if it is one and the same picture."""
    here, there = drawn[one][asked], drawn[other][asked]
    if here.sha256 == there.sha256:
        return None
    return Pair(
        id=digest([here.id, there.id]),
        prompt=here.prompt,
        one=Side(arm=one, run=request.arms[one], id=here.id),
        other=Side(arm=other, run=request.arms[other], id=there.id),
    )


def _each_prompt_first(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    """By chance: a pair of every prompt, then a second one of every prompt, and so on."""
    by_chance = sorted(pairs, key=lambda pair: digest([seed, pair.id]))
    taken = Counter[str]()
    turn = {}
    for pair in by_chance:
        turn[pair.id] = taken[pair.prompt]
        taken[pair.prompt] += 1
    return sorted(by_chance, key=lambda pair: turn[pair.id])


def _checks(request: Request, arm: str, drawn: Iterable[Picture]) -> Iterator[Pair]:
    """Every accepted picture beside the accepted one whose prompt shares the fewest words."""
    run = request.arms[arm]
    accepted = sorted(
        (picture for picture in drawn if picture.accepted),
        key=lambda picture: digest([request.seed, "check", picture.id]),
    )
    others = [(other, set(other.prompt.split())) for other in accepted[:CHECKED_AGAINST]]
    for picture in accepted:
        words = set(picture.prompt.split())
        other, theirs = min(
            others,
            key=lambda each: (_alike(words, each[1]), digest([picture.id, each[0].id])),
        )
        if _alike(words, theirs) <= MOST_ALIKE:
            yield Pair(
                id=digest([picture.id, other.id, "check"]),
                prompt=picture.prompt,
                one=Side(arm=arm, run=run, id=picture.id),
                other=Side(arm=arm, run=run, id=other.id),
                check=True,
            )


def _alike(words: set[str], others: set[str]) -> float:
    return len(words & others) / len(words | others)


class Turn(NamedTuple):
    """One pair as one annotator sees it."""

    pair: Pair
    left: Side
    right: Side

    @property
    def id(self) -> str:
        return self.pair.id


def turns(study: Study, seed: str) -> list[Turn]:
    """All pairs in an order by chance, each with its sides by chance, and checks evenly among them.

    seed: of the study's name and the annotator's.
    """
    by_chance = sorted(study.pairs, key=lambda pair: digest([seed, pair.id]))
    pairs = [pair for pair in by_chance if not pair.check]
    checks = [pair for pair in by_chance if pair.check]
    # In [0, 1): checks each at a random place in a stretch of its own.
    placed = [((i + 0.5) / len(pairs), pair) for i, pair in enumerate(pairs)]
    placed += [((i + _chance(seed, c, "place")) / len(checks), c) for i, c in enumerate(checks)]
    placed.sort(key=lambda each: each[0])
    return [_turn(pair, seed) for _, pair in placed]


def _turn(pair: Pair, seed: str) -> Turn:
    if _chance(seed, pair, "side") < 0.5:
        return Turn(pair, pair.one, pair.other)
    return Turn(pair, pair.other, pair.one)


def _chance(seed: str, pair: Pair, what: str) -> float:
    """In [0, 1), the same for the same."""
    return int(digest([seed, pair.id, what])[:12], 16) / 16**12
