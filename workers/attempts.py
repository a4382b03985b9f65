"""Trying again what time may heal, and giving up, on record, what it will not.

A service that is away is waited for, and then the task is sent again (`PATIENT`).
Anything else is about the items: tried a few times, then one by one, so that one bad item costs no
other, then recorded as a failure.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tenacity
from celery import Task

from pipeline.config import Run
from pipeline.errors import InputError, ItemError, PromptFailed, ServiceError
from pipeline.types import BasePrompt, Failure, Proposal
from storage.runs import RunFolder
from workers import resources
from workers.settings import settings

TRIES = 3  # for an error that nobody foresaw
REDELIVERIES = 3  # of one batch, after which it is held to kill workers

PAUSE_S = 30.0  # at most, before a task is sent again


class WaitingTask(Task):  # type: ignore[misc]
    """A task that waits here before it is sent again.

    Its message never names a time to wait for: that would be by this worker's clock, which may be
    wrong, and whoever takes such a message keeps it and takes the next, however many there are.
    """

    def retry(self, *args: Any, **options: Any) -> Any:
        longest_s = min(PAUSE_S, settings().dispatch.visibility_timeout_s / 4)
        time.sleep(min(2.0**self.request.retries, longest_s))
        return super().retry(*args, **options | {"countdown": 0})


PATIENT: dict[str, Any] = {
    "bind": True,
    "base": WaitingTask,
    "autoretry_for": (ServiceError,),
    "max_retries": 30,
}
"""Options of a task that outlives a quarter of an hour without store or broker."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class GivenUp(Exception):
    """Work that failed for good: the last error, and how often it was tried."""

    def __init__(self, error: BaseException, tries: int) -> None:
        super().__init__(f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}")
        self.tries = tries


def persist(work: Callable[[], Result]) -> Result:
    """What `work` returns, tried again after a growing pause.

    Raises GivenUp, and ServiceError at once: that is for the whole task to wait for.
    """
    try:
        return tenacity.Retrying(
            retry=tenacity.retry_if_not_exception_type((ItemError, InputError, ServiceError)),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=30),
            stop=tenacity.stop_after_attempt(TRIES),
        )(work)
    except tenacity.RetryError as error:
        cause = error.last_attempt.exception()
        assert cause is not None
        raise GivenUp(cause, error.last_attempt.attempt_number) from cause
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


def kills_workers(task: Task, batch_id: str) -> GivenUp | None:
    """The error of a batch on which so many workers died that it must not be tried again."""
    if not _is_redelivered(task):
        return None
    if resources.broker().count_redelivery(f"{task.name}:{batch_id}") <= REDELIVERIES:
        return None
    return GivenUp(ItemError(f"workers died on its batch {batch_id}"), REDELIVERIES)
