"""What a run misses, sent again; and what never comes, put on record as failed.

While work is under way, a message that nobody has is sent again from what workers/flight.py keeps.
Whatever else is missing when nothing is under way is worked out from the store alone. Redis counts
how often each message was lost, so that it ends.
"""

import time
from collections.abc import Iterable, Iterator

from pipeline.types import (
    BasePrompt,
    Batch,
    DetailedPrompt,
    Failure,
    PromptBatch,
    Proposal,
    ProposalBatch,
)
from storage.progress import Progress
from storage.runs import RunFolder
from storage.seen import Seen
from workers import canvas
from workers.broker import Broker
from workers.flight import Entry, Flight
from workers.lease import Lease
from workers.settings import DispatchConfig

RESENDS = 3  # of one message, after which its items go alone; and of one alone

_CALL_S = 4.0  # between two roll calls
_CALLS_SHARE = 50  # a roll call takes no more than this part of the time


def missing(folder: RunFolder, progress: Progress) -> Iterator[Batch]:
    """What has neither record nor failure, in the messages that it takes; a stream.

    The batches of a message that was lost are the same as before.
    """
    run = folder.read()
    with Seen() as described:
        described.update(folder.prompted_ids())
        for batch in folder.inputs():
            bases, prompts = _unfinished(folder, progress, described, batch)
            if bases:
                yield PromptBatch(run=run.name, bases=tuple(bases), again=True)
            yield from _without_judged(canvas.batches(run, prompts), progress)


class RollCall:
    """Sends again what is under way and with nobody: neither in a queue nor with a worker.

    Celery takes a message off its list in Redis a moment before it notes which worker has it; what
    dies, or is cut off, between the two takes the message along. Who sends may die in such a moment
    as well. A message that two calls in turn do not find is lost. On a RabbitMQ nobody can call the
    roll, and nothing is lost so.
    """

    def __init__(self, folder: RunFolder, broker: Broker, lease: Lease) -> None:
        """lease: on the mending of the run."""
        self._name, self._broker, self._lease = folder.name, broker, lease
        self._flight = Flight(broker, folder.name)
        self._absent: set[str] = set()
        self._next = 0.0

    def call(self) -> None:
        """Often called, it does something only now and then.

        Raises ServiceError where the broker is away.
        """
        started = time.monotonic()
        if started < self._next:
            return
        absent = self._find_absent()
        lost, self._absent = absent & self._absent, absent
        if lost and self._lease.take():
            try:
                for id in lost:
                    self._send_again(id)
            finally:
                self._lease.release()
        ended = time.monotonic()
        self._next = ended + max(_CALL_S, _CALLS_SHARE * (ended - started))

    def _find_absent(self) -> set[str]:
        under_way = self._flight.ids()  # first: what is sent after that is not asked about
        if not under_way:
            return set()
        there = self._broker.batches(self._name)
        return set() if there is None else under_way - there

    def _send_again(self, id: str) -> None:
        batch = self._flight.message(id)
        if batch is None:  # its work is stored by now
            return
        if self._flight.resends(batch) < RESENDS:
            self._flight.count_resend(batch)
            canvas.send(batch.model_copy(update={"again": True}))
        else:
            self._flight.leave(batch)  # so that nobody waits for it before it is taken apart


class Resending:
    """Sends what is missing as there is room for it; to be begun when nothing is under way.

    Work that is under way after all is done twice but kept once. A message that is lost again and
    again is taken apart, and what is lost even alone is given up, so that the rest goes on.
    """

    def __init__(
        self, folder: RunFolder, progress: Progress, broker: Broker, dispatch: DispatchConfig
    ) -> None:
        self._folder, self._run, self._window = folder, folder.read(), dispatch.in_flight
        self._flight = Flight(broker, folder.name)
        self._flight.clear()
        self._batches = self._within_reason(missing(folder, progress))
        self._next: Batch | None = None

    def push(self) -> bool:
        """Send as much as there is room for; True when nothing is left to be sent.

        Raises ServiceError where store or broker is away: begin anew.
        """
        while batch := self._next or next(self._batches, None):
            self._next = batch
            match self._flight.enter(self._run, batch, self._window):
                case Entry.FULL:
                    return False
                case Entry.CANCELLED:
                    return True
                case Entry.ENTERED:
                    self._flight.count_resend(batch)
                    canvas.send(batch)
            self._next = None
        return True

    def _within_reason(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self._flight.resends(batch) < RESENDS:
                yield batch
            elif len(alone := list(canvas.alone(batch))) == 1:
                self._give_up(batch)
            else:
                yield from self._within_reason(alone)

    def _give_up(self, batch: Batch) -> None:
        """A message of one item."""
        (item,) = batch.bases if isinstance(batch, PromptBatch) else batch.proposals
        error = f"sent again {RESENDS} times, and nothing came of it: look into the workers' logs"
        if isinstance(item, BasePrompt):
            stage, subject, proposals = "prompt", item.text, self._run.proposals_per_base
        else:
            drawn = self._folder.has_image(item.id)
            stage, subject, proposals = "verify" if drawn else "propose", item.prompt.text, 1
        self._folder.write_failure(
            Failure(
                id=item.id,
                stage=stage,
                subject=subject,
                error=error,
                tries=RESENDS,
                proposals=proposals,
            )
        )


def _unfinished(
    folder: RunFolder, progress: Progress, described: Seen, batch: PromptBatch
) -> tuple[list[BasePrompt], list[DetailedPrompt]]:
    """The base prompts without detailed prompts, and the detailed prompts of the others.

    No request for a batch that is judged whole. Of one that is not, all are read, so that its
    proposals fall into the same batches as before.
    """
    bases: list[BasePrompt] = []
    prompts: list[DetailedPrompt] = []
    if all(map(progress.is_judged, batch.bases)):
        return bases, prompts
    for base in batch.bases:
        stored = folder.read_expansion(base) if base.id in described else None
        failed = base.id in progress.failed
        if stored:
            prompts += stored.prompts
        if not failed and (stored is None or stored.shortfall):
            bases.append(base)
    return bases, prompts


def _without_judged(
    batches: Iterable[ProposalBatch], progress: Progress
) -> Iterator[ProposalBatch]:
    """The batches, less the proposals that have a record or a failure."""

    def is_missing(proposal: Proposal) -> bool:
        return proposal.id not in progress.judged and proposal.id not in progress.failed

    for batch in batches:
        rest = [(each.prompt, each.seed) for each in batch.proposals if is_missing(each)]
        if rest:
            yield ProposalBatch.of(batch.run, batch.proposer, batch.sampler, rest, again=True)
