"""Having a run's prompts written through the provider's batches endpoint, at its lower price.

Answers end up in the same cache, under the same keys, as those of the live path, and the same
dialogue reads them: what comes of a base prompt does not depend on the way its answers took.

In rounds: every unfinished base prompt's dialogue is replayed against the cache, until it asks
what the cache does not hold; those requests go out, are waited for, and come home into the cache;
and again, until nothing is missing. Memory holds a wave of base prompts.
"""

import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.config import EndpointConfig
from pipeline.errors import InputError, PromptFailed
from pipeline.prompter.dialogue import Prompter, Request
from pipeline.prompter.endpoint import Endpoint
from pipeline.prompter.prices import Price
from pipeline.types import BasePrompt, Expansion
from storage.answers import Answers
from storage.runs import RunFolder
from workers.batch_endpoint import BatchEndpoint
from workers.courier import SLICE, Courier, Purse, slices

WAVE = 50_000  # base prompts whose dialogues are under way at once; about 100 MB
_THREADS = 16


@dataclass(frozen=True)
class BatchProgress:
    """How far a call of `by_batches` is."""

    described: int  # base prompts
    failed: int
    waiting: int  # of this wave
    batches: int  # at the provider
    requests: int  # in them
    answered: int  # of these, as the provider says

    def __str__(self) -> str:
        under_way = (
            f"{self.batches} batches at the provider, {self.answered:,} of {self.requests:,} "
            "requests done"
            if self.batches
            else "no batch at the provider"
        )
        return f"{under_way}; {self.described:,} base prompts described, {self.failed:,} failed"


def by_batches(
    folder: RunFolder,
    answers: Answers,
    bases: Iterable[BasePrompt],
    prompter: Prompter,
    endpoint: Endpoint,
    limits: EndpointConfig,
    price: Price | None,
    describe: Callable[[BasePrompt, Expansion], None],
    fail: Callable[[BasePrompt, PromptFailed], None],
    show: Callable[[BatchProgress], None],
    *,
    spent_usd: float = 0.0,
    wave: int = WAVE,
) -> None:
    """Describe base prompts, or have them fail, by answers from the batches endpoint.

    bases: a stream; those that are described already are not to be among them. spent_usd: what
    the run paid until now. May be stopped anywhere, by an error of `show` too: a later call goes
    on. Raises InputError if the endpoint has no batches, or refuses key or file; ServiceError if
    store or endpoint stay away.
    """
    if limits.spend_limit_usd is not None and price is None:
        raise InputError("endpoint.spend_limit_usd: no price is known for the model to count by")
    purse = Purse(folder.name, limits.spend_limit_usd, price, spent_usd)
    with tempfile.TemporaryFile() as file, ThreadPoolExecutor(_THREADS) as pool:
        provider = BatchEndpoint(endpoint, limits)
        courier = Courier(folder, answers, provider, limits, price, purse, pool, file)
        work = _Work(courier, prompter, pool, describe, fail, show)
        provider.progress = work.show
        courier.resume()
        for some in slices(bases, wave):
            work.finish(some)


@dataclass
class _Work:
    """The base prompts, a wave at a time."""

    courier: Courier
    prompter: Prompter
    pool: ThreadPoolExecutor
    describe: Callable[[BasePrompt, Expansion], None]
    fail: Callable[[BasePrompt, PromptFailed], None]
    report: Callable[[BatchProgress], None]
    described: int = 0
    failed: int = 0
    waiting: int = 0

    def finish(self, wave: list[BasePrompt]) -> None:
        """Have every base prompt of a wave described or failed."""
        while wave:
            wave = self._round(wave)
            self.courier.wait()
        self.courier.forget()

    def show(self) -> None:
        under_way = self.courier.under_way
        self.report(
            BatchProgress(
                described=self.described,
                failed=self.failed,
                waiting=self.waiting,
                batches=len(under_way),
                requests=sum(each.sent.requests for each in under_way),
                answered=sum(each.answered for each in under_way),
            )
        )

    def _round(self, bases: list[BasePrompt]) -> list[BasePrompt]:
        """Go on with each as far as the cache reaches; those that wait for more."""
        left: list[BasePrompt] = []
        self.waiting = len(bases)
        for some in slices(bases, SLICE):
            for base, outcome in zip(some, self.pool.map(self._replay, some), strict=True):
                if isinstance(outcome, list):
                    for request in outcome:
                        self.courier.take(request)
                    left.append(base)
                    continue
                self.waiting -= 1
                if isinstance(outcome, Expansion):
                    self.describe(base, outcome)
                    self.described += 1
                else:
                    self.fail(base, outcome)
                    self.failed += 1
            self.show()
        return left

    def _replay(self, base: BasePrompt) -> Expansion | PromptFailed | list[Request]:
        """What came of a base prompt, or the requests whose replies are missing."""
        dialogue = self.prompter.expand(base)
        try:
            requests = next(dialogue)
            while True:
                replies = [self.courier.reply(request) for request in requests]
                found = tuple(reply for reply in replies if reply is not None)
                if len(found) < len(requests):
                    pairs = zip(requests, replies, strict=True)
                    return [request for request, reply in pairs if reply is None]
                requests = dialogue.send(found)
        except PromptFailed as error:
            return error
        except StopIteration as end:
            expansion: Expansion = end.value
            return expansion
        finally:
            dialogue.close()
