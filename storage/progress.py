"""How far a run is, read from the store alone; each look reads only what is new since the last."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from pipeline.config import Run
from pipeline.types import Failure, Record
from storage.runs import RunFolder
from storage.seen import Seen


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
    drawn: int = 0
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
        self._batches = Seen()
        self.bases, self.judged = Seen(), Seen()
        self.failed = Seen()  # ids of base prompts and of proposals that were given up
        self._given_up = Seen()  # the base prompts among them
        self._described = Seen()  # of these, those that have detailed prompts after all
        self.tally = Tally()

    def update(self, look: Callable[[Record], object] = lambda record: None) -> Tally:
        """look: is shown each new record, so that whoever wants them need not read them again."""
        tally = self.tally
        if not tally.enqueued:
            self.run = self._folder.read()
            self._count_inputs()
        for record in self.new_records():
            look(record)
            if record.id in self.failed:  # given up by one worker, done by another
                tally.failed -= 1
            category = tally.by_category.setdefault(
                record.proposal.prompt.category, CategoryTally()
            )
            if record.verdict.accepted:
                tally.accepted += 1
                category.accepted += 1
            else:
                tally.rejected += 1
                category.rejected += 1
        for failure in self._new_failures():
            if failure.stage == "prompt":
                self._given_up.add(failure.id)
                tally.failed += self.run.proposals_per_base
            else:
                tally.failed += failure.proposals
        tally.prompted = 0
        for base_id in self._folder.prompted_ids():
            tally.prompted += 1
            if base_id in self._given_up and self._described.add(base_id):
                prompts = self._folder.expansion(base_id).prompts
                tally.failed -= len(prompts) * self.run.proposals_per_prompt
        tally.drawn = sum(1 for _ in self._folder.image_ids())
        return tally

    def _count_inputs(self) -> None:
        tally, total = self.tally, self.run.base_prompts
        if total is None:
            for batch in self._folder.inputs():
                for base in batch.bases:
                    self.bases.add(base.id)
            total = len(self.bases)
        else:
            tally.enqueued = True
        tally.base_prompts = total
        tally.expected = total * self.run.proposals_per_base

    def new_records(self) -> Iterator[Record]:
        """The records that no earlier call has given, each proposal's once."""
        for batch in self.new_batches():
            yield from batch

    def new_batches(self) -> Iterator[list[Record]]:
        """The same, those together that were judged together."""
        for batch_id in sorted(self._folder.record_batches()):  # so the same one, however listed
            if self._batches.add(batch_id):
                records = self._folder.records_of(batch_id)
                yield [record for record in records if self.judged.add(record.id)]

    def _new_failures(self) -> Iterator[Failure]:
        for failure_id in self._folder.failed_ids():
            if failure_id not in self.judged and self.failed.add(failure_id):
                yield self._folder.read_failure(failure_id)


def failures(folder: RunFolder) -> Iterator[Failure]:
    """Every failure of a run; a stream, in no order."""
    return map(folder.read_failure, folder.failed_ids())


def batches(folder: RunFolder) -> Iterator[list[Record]]:
    """Every record of a run, each proposal's once, those together that were judged together."""
    yield from Progress(folder).new_batches()


def records(folder: RunFolder) -> Iterator[Record]:
    """Every record of a run, each proposal's once; a stream, in no order."""
    yield from Progress(folder).new_records()
