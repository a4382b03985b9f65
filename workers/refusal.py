"""Which messages are refused, and what is on record of them: the last hundred, in Redis.

A message is refused if it is no batch, or names what its run does not have: another configuration's
prompts, models or settings, or more than a message may hold. It is gone from its queue then, since
no worker and no time would make it right, and none of it is worked on. What a refused message held
is not kept.

    ppv:refused        a list of Refusals, the newest first
    ppv:refused:count  how many there ever were
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from celery.utils.log import get_task_logger
from pydantic import ValidationError

from pipeline.config import Run
from pipeline.errors import InputError, PpvError, ServiceError
from pipeline.routing import who_draws
from pipeline.types import (
    MESSAGE_FORMAT,
    DetailedPrompt,
    Frozen,
    PromptBatch,
    ProposalBatch,
    ProposerRef,
    seed_of,
)
from storage.runs import check_run_name
from workers import metrics, resources
from workers.broker import MEND, QUEUES, Broker, explained

KEPT = 100
BASES_AT_MOST = 1024  # in a message; proposals: as many as the run says

_LIST, _COUNT = "ppv:refused", "ppv:refused:count"

logger = get_task_logger(__name__)

Batch = TypeVar("Batch", PromptBatch, ProposalBatch)


class Refused(PpvError):
    """A message that must not be worked on, here or anywhere; says what is wrong with it."""


class TooNew(PpvError):
    """A message or a run that a newer version wrote, for workers of that version."""


class Refusal(Frozen):
    """What is on record of a refused message."""

    at: str  # ISO 8601, UTC
    queue: str  # "": its envelope did not say
    worker: str
    reason: str


class Refusals:
    """The record, in the Redis that workers share. Every verb raises ServiceError if it is away."""

    def __init__(self, broker: Broker) -> None:
        self._redis, self._address = broker.client, broker.address

    def add(self, refusal: Refusal) -> None:
        with explained(self._address), self._redis.pipeline() as pipe:
            pipe.lpush(_LIST, refusal.model_dump_json())
            pipe.ltrim(_LIST, 0, KEPT - 1)
            pipe.incr(_COUNT)
            pipe.execute()

    def count(self) -> int:
        """Of all that there were."""
        with explained(self._address):
            return int(self._redis.get(_COUNT) or 0)

    def latest(self, count: int = KEPT) -> Iterator[Refusal]:
        with explained(self._address):
            lines = self._redis.lrange(_LIST, 0, count - 1)
        for line in lines:
            with suppress(ValidationError):
                yield Refusal.model_validate_json(line)


def record(queue: str, worker: str, reason: str) -> None:
    """Say in the log and on record that a message was refused."""
    queue, reason = excerpt(queue, 40), excerpt(reason, 300)
    logger.error("refused a message on the queue %s: %s", queue or "?", reason)
    metrics.count_refusal(queue if queue in (*QUEUES, MEND) else "")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(ServiceError):  # then the log has it
        refusals = Refusals(resources.broker())
        refusals.add(Refusal(at=now, queue=queue, worker=worker, reason=reason))


def excerpt(text: object, characters: int) -> str:
    """The beginning of what a stranger wrote, in printable ASCII."""
    text = str(text)[:characters]
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1][:characters]


def admit(kind: type[Batch], message: dict[str, Any]) -> Batch:
    """The batch that a message holds, if it is one that its run can have sent.

    Raises Refused, TooNew, and ServiceError where the store is away. The text of a detailed prompt
    is taken as it is: comparing it with the store's would cost a request a prompt.
    """
    number = message.get("format", MESSAGE_FORMAT)
    if type(number) is int and number > MESSAGE_FORMAT:
        check_name(message)
        raise TooNew(f"a newer ppv: messages have format {number}, and it reads {MESSAGE_FORMAT}")
    try:
        # By way of JSON, whose strict reading knows lists for tuples and no other conversion.
        batch = kind.model_validate_json(json.dumps(message), strict=True)
    except ValidationError as error:
        raise Refused(_first_fault(error)) from None
    run = _run(batch.run)
    if isinstance(batch, PromptBatch):
        if len(batch.bases) > BASES_AT_MOST:
            raise Refused(f"{len(batch.bases)} base prompts: a message has {BASES_AT_MOST} at most")
    else:
        _check(batch, run)
    return batch


def check_name(message: dict[str, Any]) -> str:
    """The name of the run that a message is of. Raises Refused if it is none."""
    try:
        return check_run_name(message.get("run", ""))
    except InputError as error:
        raise Refused(str(error)) from None


def _run(name: str) -> Run:
    try:
        return resources.run(name)
    except InputError as error:
        raise Refused(str(error)) from None
    except ValidationError:
        raise TooNew(f"a newer ppv: it cannot read the configuration of run {name!r}") from None


def _check(batch: ProposalBatch, run: Run) -> None:
    """Raises Refused unless canvas.batches makes each of these proposals for this run."""
    if batch.proposer not in run.proposers:
        raise Refused(f"run {run.name!r} has no proposer {excerpt(batch.proposer.title, 100)!r}")
    if batch.sampler != run.proposer.sampler:
        raise Refused(f"run {run.name!r} has another sampler")
    proposals = sum(len(draw.seeds) for draw in batch.draws)
    if proposals > run.proposer.images_per_message:
        most = run.proposer.images_per_message
        raise Refused(f"{proposals} proposals: a message of run {run.name!r} has {most} at most")
    if len({draw.prompt.id for draw in batch.draws}) < len(batch.draws):
        raise Refused("a detailed prompt stands there twice")
    for draw in batch.draws:
        prompt = draw.prompt
        expected = DetailedPrompt.id_of(_prompter(run.name), prompt.base, prompt.index)
        if prompt.id != expected or prompt.index >= run.prompter.prompts_per_base:
            raise Refused(f"run {run.name!r} has no detailed prompt {prompt.id}")
        if prompt.category and prompt.category not in run.taxonomy.categories:
            category = excerpt(prompt.category, 40)
            raise Refused(f"the taxonomy of run {run.name!r} has no category {category!r}")
        seeds = _seeds(run, prompt, batch.proposer)
        if len(set(draw.seeds)) < len(draw.seeds) or not seeds.issuperset(draw.seeds):
            raise Refused(f"prompt {prompt.id} of run {run.name!r} has other seeds")


def _seeds(run: Run, prompt: DetailedPrompt, proposer: ProposerRef) -> set[int]:
    """With which this proposer draws this prompt."""
    images = range(run.proposer.images_per_prompt)
    return {seed_of(prompt, n) for n in images if proposer in who_draws(run, prompt, n)}


@lru_cache(maxsize=64)
def _prompter(run: str) -> str:
    return resources.run(run).prompter_digest


def _first_fault(error: ValidationError) -> str:
    """Where it is and what is wrong there, without what stands there."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(excerpt(part, 40) for part in first["loc"])
    return f"{place or 'message'}: {first['msg']}"
