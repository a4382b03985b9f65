"""Takes requests to the provider in batches, and brings the answers into the cache.

Nothing is paid for twice. A batch is on record in the store as soon as it exists, and a later call
waits for it first. One that was created just before a crash, and so is on no record, is found in
the provider's list by run and chunk in its metadata.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, TypeVar
from uuid import uuid4

from openai.types import Batch

from pipeline.config import EndpointConfig
from pipeline.errors import EndpointAway, InputError, PromptFailed, PromptRejected, SpendingLimit
from pipeline.prompter.dialogue import Reply, Request
from pipeline.prompter.prices import Price
from pipeline.types import Answer
from storage.answers import Answers
from storage.runs import RunFolder, SentBatch
from workers.batch_endpoint import BatchEndpoint, line_of, outcome_of

SLICE = 64  # objects of the store that are fetched or put side by side
TIMES_SENT = 3  # a request that comes back undone or with an error is sent no more than this

_ENDED = ("completed", "failed", "expired", "cancelled")
_NO_ROOM = "token_limit_exceeded"  # a file that was refused since too much is queued already

T = TypeVar("T")


class Purse:
    """What a run spent, and what is under way may cost. Safe between threads."""

    def __init__(
        self, run: str, limit_usd: float | None, price: Price | None, spent_usd: float
    ) -> None:
        self._run, self._limit, self._price, self._spent = run, limit_usd, price, spent_usd
        self._reserved = 0.0
        self._counted: set[str] = set()  # keys of answers that are part of what was spent
        self._lock = threading.Lock()

    def reserve(self, request: Request) -> None:
        """Set aside what a request may cost. Raises SpendingLimit if it must not be sent."""
        if self._limit is None or self._price is None:
            return
        usd = self._price.of(*request.expected_tokens, batch=True)
        if self._spent + self._reserved + usd > self._limit:
            raise SpendingLimit.of(self._limit)
        self._reserved += usd

    def settle(self) -> None:
        """Nothing is under way any more: what came was counted, what did not come costs nothing."""
        self._reserved = 0.0

    def count(self, key: str, answer: Answer) -> None:
        """Count an answer that this run paid, once."""
        with self._lock:
            if self._limit is not None and answer.run == self._run and key not in self._counted:
                self._counted.add(key)
                self._spent += answer.usage.usd or 0.0

    def forget(self) -> None:
        """What was counted until now stays spent; nobody asks for it again."""
        self._counted.clear()


@dataclass
class UnderWay:
    """A batch at the provider."""

    sent: SentBatch
    keys: set[str] = field(default_factory=set)  # of its requests; none if an earlier call sent it
    answered: int = 0  # as the provider says


@dataclass
class Courier:
    """Gathers requests into files as large as may be, and has a batch made of each."""

    folder: RunFolder
    answers: Answers
    provider: BatchEndpoint
    limits: EndpointConfig
    price: Price | None
    purse: Purse
    pool: ThreadPoolExecutor
    file: IO[bytes]  # requests that are to go out as the next batch
    under_way: list[UnderWay] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keys: set[str] = set()  # of the requests in the file
        self._taken: set[str] = set()  # since the last wait
        self.forget()

    def forget(self) -> None:
        """What befell requests until now is of no use any more."""
        self._times = Counter[str]()  # that a request was sent
        self._troubles: dict[str, PromptFailed] = {}  # of requests, for good
        self._errors: dict[str, str] = {}  # of requests, that may pass
        self._most = self.limits.batch_requests
        self.purse.forget()

    def resume(self) -> None:
        """Wait for what an earlier call sent, on record or not."""
        sent = {each.chunk: each for each in self.folder.batches()}
        for chunk, batch in self.provider.batches_of(self.folder.name).items():
            if chunk not in sent:
                counts = batch.request_counts
                sent[chunk] = self._record(chunk, batch, counts.total if counts else 0)
        # Another address has another key and other answers: what it did stays as it is.
        here = (each for each in sent.values() if each.address == self.provider.address)
        self.under_way = [UnderWay(each) for each in here if not each.done]
        self.wait()

    def reply(self, request: Request) -> Reply | None:
        """None if it is to be taken to the provider."""
        answer = self.answers.get(request.key)
        if answer is None:
            return self._troubles.get(request.key)
        self.purse.count(request.key, answer)
        return answer

    def take(self, request: Request) -> None:
        """Have it sent, once until the next wait; if it must not be, its reply says why."""
        key, line = request.key, line_of(request)
        if key in self._taken:
            return
        try:
            self._check(request, len(line))
        except PromptFailed as error:
            self._troubles[key] = error
            return
        size = self.file.tell() + len(line)
        if len(self._keys) >= self._most or size > self.limits.batch_bytes:
            self._send()
        self.file.write(line)
        self._keys.add(key)
        self._taken.add(key)
        self._times[key] += 1

    def wait(self) -> None:
        """Until all that was taken has ended, and its answers are in the cache."""
        self._send()
        refused: set[str] = set()  # for want of room
        while self.under_way:
            for each in list(self.under_way):
                batch = self.provider.look(each.sent.batch)
                if batch is None or batch.status in _ENDED:
                    refused |= self._bring_home(each, batch)
                    self.under_way.remove(each)
                elif counts := batch.request_counts:
                    each.answered = counts.completed + counts.failed
            self.provider.progress()
            if self.under_way:
                time.sleep(self.limits.batch_poll_s)
        if refused and self._most > 1:
            self._times.subtract(refused)  # that was no attempt
            if refused == self._taken:
                self._most = max(1, min(self._most, len(refused)) // 2)
        self._taken.clear()
        self.purse.settle()

    def _check(self, request: Request, size: int) -> None:
        """Raises PromptFailed if it must not be sent."""
        if size > self.limits.batch_bytes:
            raise PromptRejected(
                f"a request of {size} bytes is more than endpoint.batch_bytes allow"
            )
        if self._times[request.key] >= TIMES_SENT:
            said = self._errors.get(request.key, "it was not done")
            raise EndpointAway(f"sent in {TIMES_SENT} batches: {said}")
        self.purse.reserve(request)

    # To the provider

    def _send(self) -> None:
        if not self._keys:
            return
        chunk = uuid4().hex
        batch = self.provider.create(self.folder.name, chunk, self.file)
        self.under_way.append(UnderWay(self._record(chunk, batch, len(self._keys)), self._keys))
        self._keys = set()
        self.file.seek(0)
        self.file.truncate()
        self.provider.progress()

    def _record(self, chunk: str, batch: Batch, requests: int) -> SentBatch:
        sent = SentBatch(
            chunk=chunk,
            address=self.provider.address,
            batch=batch.id,
            input_file=batch.input_file_id,
            requests=requests,
        )
        self.folder.write_batch(sent)
        return sent

    # And back

    def _bring_home(self, each: UnderWay, batch: Batch | None) -> set[str]:
        """Take all that came of a batch; the keys of what was refused for want of room.

        Raises InputError if the file was refused for another reason.
        """
        if batch is not None:
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                for lines in slices(self.provider.read(file_id), SLICE):
                    self._take_home(lines)
            if batch.status == "cancelled":
                cancelled = EndpointAway(f"{self.provider.address} cancelled the batch {batch.id}")
                self._troubles.update(dict.fromkeys(each.keys, cancelled))
        self.folder.write_batch(each.sent.model_copy(update={"done": True}))
        self.provider.delete(each.sent.input_file)
        # What an earlier call sent in vain is sent again, and refused again if need be.
        if batch is None or batch.status != "failed" or not each.keys:
            return set()
        errors = (batch.errors and batch.errors.data) or []
        if any(error.code == _NO_ROOM for error in errors):
            self._errors.update(dict.fromkeys(each.keys, "the provider's queue has no room"))
            return each.keys
        said = "; ".join(error.message or error.code or "?" for error in errors[:3])
        raise InputError(
            f"{self.provider.address} refused a batch of {each.sent.requests} requests: "
            f"{' '.join(said.split())[:300] or 'it does not say why'}; leave out --batch"
        )

    def _take_home(self, lines: list[bytes]) -> None:
        good: list[tuple[str, Answer]] = []
        for line in lines:
            try:
                key, outcome = outcome_of(line, self.price, self.folder.name)
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # what cannot be read was not done
            if isinstance(outcome, Answer):
                good.append((key, outcome))
                self.purse.count(key, outcome)
            elif isinstance(outcome, PromptFailed):
                self._troubles[key] = outcome
            else:
                self._errors[key] = outcome
        list(self.pool.map(lambda pair: self.answers.put(*pair), good))


def slices(items: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(items)
    while some := list(islice(stream, size)):
        yield some
