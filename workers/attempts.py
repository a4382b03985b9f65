"""Trying again what time may heal, and giving up, on record, what it will not.

What is not the items' fault puts the message back at the end of its queue (`patiently`): a service
that is away or takes no writes, a model that this machine lacks, a message of a newer version.
Anything else is about the items: tried a few times, then one by one, so that one bad item costs no
other, then recorded as a failure.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn, TypeVar

import tenacity
from celery import Task
from celery.exceptions import Ignore
from celery.utils.log import get_task_logger

from pipeline.config import Run
from pipeline.errors import (
    InputError,
    ItemError,
    ModelNotHere,
    PpvError,
    PromptFailed,
    ServiceError,
)
from pipeline.types import BasePrompt, Batch, Failure, Proposal
from storage.objects import StoreError, check_use
from storage.runs import RunFolder
from workers import canvas, metrics, refusal, resources
from workers.flight import Entry
from workers.waiting import Waiting

TRIES = 3  # for an error that nobody foresaw
REDELIVERIES_TOGETHER = 2  # of a message of several items, at which it is taken apart
REDELIVERIES = 3  # of one item, after which it is held to kill workers

PATIENT: dict[str, Any] = {"bind": True, "max_retries": None}
"""Options of a task that outlives any time without store, broker or model."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = get_task_logger(__name__)
logger.addHandler(logging.NullHandler())  # the command line says itself what failed


def patiently(work: Callable[..., Result]) -> Callable[..., Result]:
    """A task that refuses what is no work, and puts back what cannot be done here or now.

    However often that happens, it is no try of the work itself, and nothing is given up by it.
    """

    @wraps(work)
    def run(task: Task, message: dict[str, Any]) -> Result:
        global _pause
        try:
            if _pause.store_failed:
                check_use(resources.folder(refusal.check_name(message)).store)
            result = work(task, message)
        except refusal.Refused as error:
            refusal.record(task.name, task.request.hostname, str(error))
            raise Ignore from None
        except (ModelNotHere, refusal.TooNew, ServiceError) as error:
            _put_back(task, message["run"], error)
        _pause = _Pause()  # something was done
        return result

    return run


def _put_back(task: Task, run: str, error: PpvError) -> NoReturn:
    """The message goes to the end of its queue: other runs' come first, and other workers try.

    It is there before this worker pauses, and its old copy goes only after. It names no time to
    wait for: that would be by this worker's clock, which may be wrong, and whoever takes such a
    message keeps it and takes the next.
    """
    passes = isinstance(error, ServiceError)
    reason = " ".join(str(error).split())[:300]
    if not _pause.spells:
        logger.warning("%s: put back into the queue %s: %s", run, task.name, reason)
    with suppress(ServiceError):
        if resources.broker().is_cancelled(run):
            raise Ignore
        Waiting(resources.broker()).say(run, task.request.hostname, reason, passes=passes)
    again = task.retry(exc=error, countdown=0, throw=False)
    _pause.begin(task.request.id, error)
    raise again from None


class _Pause:
    """How long this process waits after it put a message back, longer each time, at most 5 s.

    For what another worker may have, only when it meets a message for the second time: the queue
    has come round then, and holds nothing that can be done here.
    """

    def __init__(self) -> None:
        self.spells = self._rounds = 0
        self.store_failed = False  # the last thing that went wrong
        self._met: set[str] = set()

    def begin(self, message: str, error: PpvError) -> None:
        self.store_failed = isinstance(error, StoreError)
        self.spells += 1
        if message not in self._met and not isinstance(error, ServiceError):
            self._met.add(message)
            return
        self._met = {message}
        self._rounds += 1
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**self._rounds)
        time.sleep(random.uniform(0.5, 1) * longest)


_pause = _Pause()


class GivenUp(Exception):
    """Work that failed for good: the last error, and how often it was tried."""

    def __init__(self, error: BaseException, tries: int) -> None:
        super().__init__(f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}")
        self.tries = tries
        self.kind = type(error).__name__  # for logs: what it says may quote a prompt


def persist(work: Callable[[], Result]) -> Result:
    """What `work` returns, tried again after a growing pause.

    Raises GivenUp, and at once ServiceError and ModelNotHere: those are about the whole task.
    """
    never = (ItemError, InputError, ServiceError, ModuleNotFoundError)
    try:
        return tenacity.Retrying(
            retry=tenacity.retry_if_not_exception_type(never),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=30),
            stop=tenacity.stop_after_attempt(TRIES),
        )(work)
    except tenacity.RetryError as error:
        cause = error.last_attempt.exception()
        assert cause is not None
        raise GivenUp(cause, error.last_attempt.attempt_number) from cause
    except ModuleNotFoundError as error:
        raise ModelNotHere(f"{error.name} is not installed here") from error
    except ModelNotHere:
        raise
    except (ItemError, InputError) as error:
        raise GivenUp(error, 1) from error


def divide(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], list[Result]],
    give_up: Callable[[Item, GivenUp], None],
) -> list[tuple[Item, Result]]:
    """Each item with what `work` makes of all together; if that fails, of each alone.

    Items that fail alone are given up and left out.
    """
    if not items:
        return []
    try:
        return list(zip(items, persist(lambda: work(items)), strict=True))
    except GivenUp as error:
        if len(items) > 1:
            return [pair for item in items for pair in divide([item], work, give_up)]
        give_up(items[0], error)
        return []


def give_up(run: str, stage: str, proposal: Proposal, error: GivenUp) -> None:
    """Put it on record that a proposal will have no verdict."""
    metrics.count("failures", stage=stage)
    about = {"run": run, "proposal": proposal.id, "stage": stage}
    logger.warning("given up: %s", error.kind, extra=about)
    resources.folder(run).write_failure(
        Failure(
            id=proposal.id,
            stage=stage,
            subject=proposal.prompt.text,
            error=str(error),
            tries=error.tries,
        )
    )


def give_up_base(folder: RunFolder, run: Run, base: BasePrompt, error: GivenUp) -> None:
    """Put it on record that a base prompt has no detailed prompts, and what was paid for it."""
    metrics.count("failures", stage="prompt")
    about = {"run": run.name, "base": base.id, "stage": "prompt"}
    logger.warning("given up: %s", error.kind, extra=about)
    paid = error.__cause__ if isinstance(error.__cause__, PromptFailed) else PromptFailed("")
    folder.write_failure(
        Failure(
            id=base.id,
            stage="prompt",
            subject=base.text,
            error=str(error),
            tries=error.tries,
            proposals=run.proposals_per_base,
            usage=paid.usage,
            answers=paid.answers,
        )
    )


def is_repeated(task: Task) -> bool:
    """Whether an earlier try of the same message may have done a part of it."""
    return bool(task.request.retries) or _is_redelivered(task)


def _is_redelivered(task: Task) -> bool:
    return bool((task.request.delivery_info or {}).get("redelivered"))


def kills_workers(task: Task, batch: Batch) -> GivenUp | None:
    """The error of an item on which so many workers died that it must not be tried again.

    A message that comes back is taken for a death. Of one with several items nobody knows which it
    was: after fewer deaths each goes alone. Raises Ignore then, since nothing is left to do here.
    """
    if not _is_redelivered(task):
        return None
    deaths = resources.broker().count_redelivery(_message(task, batch))
    items = list(canvas.alone(batch))
    if len(items) == 1:
        if deaths <= REDELIVERIES:
            return None
        return GivenUp(ItemError(f"it came back {deaths} times: workers died of it"), deaths)
    if deaths < REDELIVERIES_TOGETHER:
        return None
    flight = resources.flight(batch.run)
    if flight.move(resources.run(batch.run), batch, items) is not Entry.CANCELLED:
        for item in items:
            canvas.send(item)
    raise Ignore


def settled(task: Task, batch: Batch) -> None:
    """A message that came back is done after all, or given up: its deaths count no more."""
    if _is_redelivered(task):
        resources.broker().forget_redeliveries(_message(task, batch))


def _message(task: Task, batch: Batch) -> str:
    return f"{task.name}:{batch.run}:{batch.id}"
