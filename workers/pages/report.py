"""The report of a run: one HTML file that holds all it shows and asks nothing of a network.

Records and failures are read as streams. What is kept of them is bounded: counts, and a choice of
pictures, so that neither memory nor page grows with the run.
"""

import base64
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TypeVar

from pipeline.config import Run
from pipeline.types import Failure, Record, Usage, Verdict
from storage.objects import ObjectNotFound
from storage.progress import Tally
from workers.pages.atomic import replacing
from workers.pages.rendering import content_security_policy, environment, inlined
from workers.pages.thumbnails import thumbnail
from workers.pages.wording import percent, shorten, visible

PICTURES = 240  # on one page, unless asked otherwise
OPENING_CHARACTERS = 180  # of a prompt, below its picture
PROMPT_CHARACTERS = 2000  # of each text wherever it has room
FAILURES = 100  # listed one by one
REASONS = 500  # kept apart while counting; beyond that they count as other errors
BINS = 20  # of each score's distribution: 0.05 a bin

ImageOf = Callable[[Record], bytes]
"""A record's picture as stored. Raises ObjectNotFound."""

T = TypeVar("T")


def write_report(
    run: Run,
    records: Iterable[Record],
    failures: Iterable[Failure],
    tally: Tally,
    image_of: ImageOf,
    to: Path,
    *,
    usage: Usage = Usage(),
    pictures: int = PICTURES,
) -> None:
    """Write the run's page to the file `to`, whole or not at all.

    records: each proposal's once, in any order. tally: says what was expected and what failed;
    what was accepted and rejected is counted from the records themselves.
    usage: what the prompts cost. pictures: at most this many are shown.
    """
    survey = Survey(pictures)
    for record in records:
        survey.add(record)
    troubles = Troubles()
    for failure in failures:
        troubles.add(failure)

    style, script = inlined("report.css"), inlined("report.js")
    templates = environment(PROMPT_CHARACTERS)
    templates.filters["opening"] = lambda text: shorten(visible(text), OPENING_CHARACTERS)
    templates.globals |= {"percent": percent, "margin": margin}
    page = templates.get_template("report.html.j2").stream(
        run=run,
        usage=usage,
        survey=survey,
        troubles=troubles,
        expected=tally.expected,
        failed=tally.failed,
        missing=max(0, tally.expected - survey.judged - tally.failed),
        chart=Chart(survey, run),
        gallery=_gallery(survey.choice.records(), image_of),
        style=style,
        script=script,
        policy=content_security_policy(style, script),
    )
    page.enable_buffering()
    with replacing(to) as file:
        for part in page:
            file.write(part.encode())


def margin(verdict: Verdict) -> float:
    """How far the deciding score is from its threshold; not negative if it was accepted.

    Where only second opinions object, by how much: their scales are their own.
    """
    own = min(
        verdict.fidelity - verdict.thresholds.fidelity,
        verdict.alignment - verdict.thresholds.alignment,
    )
    if own < 0 or not verdict.objections:
        return own
    least = verdict.accept_if
    return min(verdict.opinions.get(n, least[n] - 1) - least[n] for n in verdict.objections)


@dataclass
class CategoryCount:
    accepted: int = 0
    rejected: int = 0

    @property
    def judged(self) -> int:
        return self.accepted + self.rejected


@dataclass
class Survey:
    """What the page says of the records, gathered while they stream by."""

    pictures: int  # to choose at most
    accepted: int = 0
    rejected: int = 0
    low_fidelity: int = 0  # rejected for their fidelity alone
    low_alignment: int = 0  # rejected for their alignment alone
    low_both: int = 0
    objected: int = 0  # rejected by second opinions alone
    by_category: dict[str, CategoryCount] = field(default_factory=dict)
    bins: Counter[tuple[int, int, bool]] = field(default_factory=Counter)
    """How many have their alignment and fidelity in these bins, by whether they were accepted."""

    def __post_init__(self) -> None:
        self.choice = Choice(self.pictures)

    @property
    def judged(self) -> int:
        return self.accepted + self.rejected

    def add(self, record: Record) -> None:
        verdict = record.verdict
        category = self.by_category.setdefault(record.proposal.prompt.category, CategoryCount())
        if verdict.accepted:
            self.accepted += 1
            category.accepted += 1
        else:
            self.rejected += 1
            category.rejected += 1
            low_fidelity = verdict.fidelity < verdict.thresholds.fidelity
            low_alignment = verdict.alignment < verdict.thresholds.alignment
            self.low_both += low_fidelity and low_alignment
            self.low_fidelity += low_fidelity and not low_alignment
            self.low_alignment += low_alignment and not low_fidelity
            self.objected += not low_fidelity and not low_alignment
        self.bins[_bin(verdict.alignment), _bin(verdict.fidelity), verdict.accepted] += 1
        self.choice.add(record)


def _bin(value: float) -> int:
    return min(BINS - 1, int(value * BINS))


class Choice:
    """A bounded choice of records, the same in whatever order they come.

    All of them while they are few. Beyond `size`, the categories take turns, and each gives in
    turn its best accepted, its nearest to the operating point and its worst rejected.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._all: list[Record] | None = []
        self._highest: dict[str, tuple[Highest, Highest, Highest]] = {}

    def add(self, record: Record) -> None:
        if self._all is not None:
            self._all.append(record)
            if len(self._all) > self._size:
                self._all = None
        best, nearest, worst = self._of(record.proposal.prompt.category)
        by = margin(record.verdict)
        nearest.add(-abs(by), record)
        if record.verdict.accepted:
            best.add(by, record)
        else:
            worst.add(-by, record)

    def _of(self, category: str) -> "tuple[Highest, Highest, Highest]":
        if category not in self._highest:
            # The more categories there are, the fewer pictures each can be asked for.
            share = math.ceil(self._size / (len(self._highest) + 1))
            for three in self._highest.values():
                for highest in three:
                    highest.shrink(share)
            self._highest[category] = (Highest(share), Highest(share), Highest(share))
        return self._highest[category]

    def records(self) -> list[Record]:
        if self._all is not None:
            return list(self._all)
        categories = (
            _distinct(_in_turns(*(highest.ranked() for highest in three)))
            for _, three in sorted(self._highest.items())
        )
        return list(islice(_in_turns(*categories), self._size))


class Highest:
    """The `size` records that rank highest; ties by id."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, str, Record]] = []

    def add(self, rank: float, record: Record) -> None:
        push = heapq.heappush if len(self._heap) < self._size else heapq.heappushpop
        push(self._heap, (rank, record.id, record))

    def shrink(self, size: int) -> None:
        self._size = size
        while len(self._heap) > size:
            heapq.heappop(self._heap)

    def ranked(self) -> list[Record]:
        return [record for _, _, record in sorted(self._heap, reverse=True)]


def _in_turns(*sequences: Iterable[T]) -> Iterator[T]:
    """The first of each, then the second of each, as long as they last."""
    over = object()
    for item in chain.from_iterable(zip_longest(*sequences, fillvalue=over)):
        if item is not over:
            yield item  # type: ignore[misc]


def _distinct(records: Iterable[Record]) -> Iterator[Record]:
    seen: set[str] = set()
    for record in records:
        if record.id not in seen:
            seen.add(record.id)
            yield record


class Troubles:
    """What failed: counted by stage and error, and the first few in the order of their subjects."""

    def __init__(self) -> None:
        self.total = 0
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._others: Counter[str] = Counter()  # by stage
        self._kept: list[Failure] = []

    def add(self, failure: Failure) -> None:
        self.total += 1
        first_line = failure.error.strip().partition("\n")[0]
        reason = (failure.stage, shorten(visible(first_line), 200))
        if reason in self._reasons or len(self._reasons) < REASONS:
            self._reasons[reason] += 1
        else:
            self._others[failure.stage] += 1
        self._kept.append(failure)
        if len(self._kept) > 2 * FAILURES:
            self._kept = self.listed()

    def reasons(self) -> list[tuple[str, str, int]]:
        """Stage, error and how often, the most frequent first."""
        named = [(stage, error, n) for (stage, error), n in self._reasons.items()]
        others = [(stage, "other errors", n) for stage, n in self._others.items()]
        return sorted(named, key=lambda reason: (-reason[2], reason)) + sorted(others)

    def listed(self) -> list[Failure]:
        return sorted(self._kept, key=lambda f: (f.stage, f.subject, f.id))[:FAILURES]


@dataclass(frozen=True)
class Card:
    """One picture of the page; its bytes are fetched when the page comes to it."""

    record: Record
    image_of: ImageOf

    def picture(self) -> str | None:
        """A data: URI, or None if the store has no such picture any more, or a broken one."""
        try:
            return data_uri(self.image_of(self.record))
        except ObjectNotFound:
            return None


def _gallery(records: list[Record], image_of: ImageOf) -> list[tuple[str, list[Card]]]:
    """Cards by category, the best first."""
    by_category: dict[str, list[Card]] = {}
    for record in sorted(records, key=lambda r: (-margin(r.verdict), r.id)):
        cards = by_category.setdefault(record.proposal.prompt.category, [])
        cards.append(Card(record, image_of))
    return sorted(by_category.items())


def data_uri(picture: bytes) -> str | None:
    """The picture for a page, a large one as a thumbnail; None if it cannot be read."""
    small = thumbnail(picture)
    if small is None:
        return None
    data, kind = small
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Dot:
    """The proposals whose two scores fall into one bin each, as a circle of their number's area."""

    x: float
    y: float
    r: float
    accepted: bool


@dataclass(frozen=True)
class Bar:
    """A bin of one score's distribution: its offset along the axis and the lengths of its parts."""

    at: float
    accepted: float
    rejected: float


class Chart:
    """Where the scores lie, with the operating point: alignment to the right, fidelity upwards.

    Geometry in the SVG's units: a square of SIDE, and beyond two of its edges the distribution of
    each score alone, at most DEPTH high.
    """

    SIDE, DEPTH = 320, 56

    def __init__(self, survey: Survey, run: Run) -> None:
        step = self.SIDE / BINS
        self.step = step
        self.threshold_x = run.thresholds.alignment * self.SIDE
        self.threshold_y = (1 - run.thresholds.fidelity) * self.SIDE
        most = max(survey.bins.values(), default=1)
        self.dots = [
            Dot(
                x=(across + 0.5) * step,
                y=self.SIDE - (up + 0.5) * step,
                r=max(1.6, step * 0.62 * math.sqrt(n / most)),
                accepted=accepted,
            )
            for (across, up, accepted), n in sorted(survey.bins.items())
        ]
        self.alignment = self._bars(_along(survey, 0))
        self.fidelity = self._bars(_along(survey, 1))

    def _bars(self, counts: Counter[tuple[int, bool]]) -> list[Bar]:
        most = max((counts[i, True] + counts[i, False] for i in range(BINS)), default=0) or 1
        return [
            Bar(
                at=i * self.step,
                accepted=self.DEPTH * counts[i, True] / most,
                rejected=self.DEPTH * counts[i, False] / most,
            )
            for i in range(BINS)
            if counts[i, True] or counts[i, False]
        ]


def _along(survey: Survey, axis: int) -> Counter[tuple[int, bool]]:
    """The bins of one score, whatever the other: axis 0 is alignment, 1 fidelity."""
    counts: Counter[tuple[int, bool]] = Counter()
    for (*place, accepted), n in survey.bins.items():
        counts[place[axis], accepted] += n
    return counts
