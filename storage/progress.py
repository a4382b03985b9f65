"""How far a run is, read from the store alone.

Each look reads only what is new since the last, and of what is old it lists a bounded share
(storage.listing). So a look at a million records costs about what one at ten thousand does.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from pipeline.config import Run
from pipeline.types import BasePrompt, Failure, Outcome, Record
from storage.ahead import ahead
from storage.listing import Listing
from storage.runs import RunFolder
from storage.seen import Counts, Seen

Judged = TypeVar("Judged", Record, Outcome)


@dataclass
class CategoryTally:
    accepted: int = 0
    rejected: int = 0


@dataclass
class Tally:
    """Counts of one run; proposals unless said."""

    base_prompts: int = 0  # enqueued so far
    enqueued: bool = False  # whether the whole input has been enqueued
    prompted: int = 0  # base prompts that have their detailed prompts
    expected: int = 0
    drawn: int = 0  # like prompted, at least so many: of a large run, a look counts a part anew
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    by_category: dict[str, CategoryTally] = field(default_factory=dict)

    @property
    def judged(self) -> int:
        return self.accepted + self.rejected

    @property
    def missing(self) -> int:
        return max(0, self.expected - self.judged - self.failed)

    @property
    def finished(self) -> bool:
        return self.enqueued and self.missing == 0

    def as_json(self) -> dict[str, object]:
        """What `ppv status --json` prints."""
        derived = {"judged": self.judged, "missing": self.missing, "finished": self.finished}
        return asdict(self) | derived


class Progress:
    """A run's counts, kept up to date by `update`.

    A proposal counts once, however often a queue that delivers at least once had it judged. So a
    base prompt that was given up by one worker and described by another has failed only by the
    prompts that it lacks.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.run: Run = folder.read()
        self._inputs, self._records = Listing(folder.input_ids), Listing(folder.record_batches)
        self._prompts, self._images = Listing(folder.prompted_ids), Listing(folder.image_ids)
        self._failures = Listing(folder.failed_ids)
        self._batches, self._inputs_read = Seen(), Seen()
        self._bases = 0  # enqueued, as far as was read
        self.judged = Seen()
        self._judged_of = Counts()  # proposals by base prompt
        self.failed = Seen()  # ids of base prompts and of proposals that were given up
        self._given_up = Seen()  # the base prompts among them
        self._described = Seen()  # of these, those that have detailed prompts after all
        self.tally = Tally()

    def update(
        self, look: Callable[[Record], object] | None = None, *, whole: bool = False
    ) -> Tally:
        """look: is shown each new record, so that whoever wants them need not read them again.
        Without it no record is read further than counting takes.

        whole: whatever is done counts, however much there is to list; for who acts on what is not.
        """
        for _ in self.update_in_steps(look, whole=whole):
            pass
        return self.tally

    def update_in_steps(
        self, look: Callable[[Record], object] | None = None, *, whole: bool = False
    ) -> Iterator[None]:
        """The same, in steps of one batch of records, for who has other work meanwhile.

        It may be left where it is; then what it did not read, a later one does.
        """
        tally, was_finished = self.tally, self.tally.finished
        self.run = self._folder.reread()  # more may be enqueued to a run that was done
        self._count_inputs(whole)
        for outcomes in self._new_outcomes(look, whole):
            self._count_outcomes(outcomes)
            yield
        for failure in self._new_failures(whole):
            if failure.stage == "prompt":
                self._given_up.add([failure.id])
                tally.failed += self.run.proposals_per_base
            else:
                tally.failed += failure.proposals
        self._count_prompts_and_images()
        if tally.finished and not was_finished:  # once, the last figures are to be exact
            self._count_prompts_and_images(whole=True)

    def is_judged(self, base: BasePrompt) -> bool:
        """Whether all its proposals have records."""
        return self._judged_of[base.id] >= self.run.proposals_per_base

    def _count_inputs(self, whole: bool) -> None:
        tally, total = self.tally, self.run.base_prompts
        if total is None:
            new = (id for id in self._inputs.look(whole) if id not in self._inputs_read)
            for batch in ahead(self._folder.read_input, new):
                if self._inputs_read.add([batch.id]):
                    self._bases += len(batch.bases)
            total = self._bases
        tally.enqueued = self.run.base_prompts is not None
        tally.base_prompts = total
        tally.expected = total * self.run.proposals_per_base

    def _new_outcomes(
        self, look: Callable[[Record], object] | None, whole: bool
    ) -> Iterator[list[Outcome]]:
        if look is None:
            yield from self._new(self._folder.outcomes_of, whole)
            return
        for records in self._new(self._folder.records_of, whole):
            for record in records:
                look(record)
            yield [record.outcome for record in records]

    def _count_outcomes(self, outcomes: list[Outcome]) -> None:
        tally = self.tally
        for outcome in outcomes:
            if outcome.id in self.failed:  # given up by one worker, done by another
                tally.failed -= 1
            category = tally.by_category.setdefault(outcome.category, CategoryTally())
            if outcome.accepted:
                tally.accepted += 1
                category.accepted += 1
            else:
                tally.rejected += 1
                category.rejected += 1
        texts = Counter(outcome.base for outcome in outcomes)
        self._judged_of.add({BasePrompt(text=text).id: count for text, count in texts.items()})

    def _count_prompts_and_images(self, whole: bool = False) -> None:
        tally = self.tally
        if not (whole and self._prompts.complete):
            for base_id in self._prompts.look(whole):
                if base_id in self._given_up and base_id not in self._described:
                    prompts = self._folder.expansion(base_id).prompts
                    self._described.add([base_id])
                    tally.failed -= len(prompts) * self.run.proposals_per_prompt
        if not (whole and self._images.complete):
            for _ in self._images.look(whole):
                pass
        # What was judged was drawn before, though its part may not have been listed again.
        tally.drawn = max(self._images.total, tally.judged)
        tally.prompted = max(self._prompts.total, tally.judged // self.run.proposals_per_base)

    def new_records(self) -> Iterator[Record]:
        """The records that no earlier call has given, each proposal's once."""
        for batch in self.new_batches():
            yield from batch

    def new_batches(self) -> Iterator[list[Record]]:
        """The same, those together that were judged together."""
        return self._new(self._folder.records_of)

    def _new(
        self, read: Callable[[str], list[Judged]], whole: bool = False
    ) -> Iterator[list[Judged]]:
        listed = sorted(self._records.look(whole))  # so the same one, however listed
        new = (id for id in listed if id not in self._batches)
        for batch_id, judged in ahead(lambda id: (id, read(id)), new):
            if self._batches.add([batch_id]):  # only now: an earlier call may have broken off here
                there = {each.id: each for each in judged}
                unknown = self.judged.add(there)
                yield [each for id, each in there.items() if id in unknown]

    def _new_failures(self, whole: bool) -> Iterator[Failure]:
        for failure_id in self._failures.look(whole):
            if failure_id not in self.judged and failure_id not in self.failed:
                failure = self._folder.read_failure(failure_id)
                self.failed.add([failure_id])
                yield failure


def failures(folder: RunFolder) -> Iterator[Failure]:
    """Every failure of a run; a stream, in no order."""
    return map(folder.read_failure, folder.failed_ids())


def batches(folder: RunFolder) -> Iterator[list[Record]]:
    """Every record of a run, each proposal's once, those together that were judged together."""
    yield from Progress(folder).new_batches()


def records(folder: RunFolder) -> Iterator[Record]:
    """Every record of a run, each proposal's once; a stream, in no order."""
    yield from Progress(folder).new_records()
