"""What is under way of each run, so that queues stay short and runs share the fleet.

    ppv:flight          the runs that have something under way, or something to send
    ppv:flight:<run>    its messages under way, each beside the proposals that it stands for
    ppv:resends:<run>   how often each message that was lost has been sent again

A message is under way from when it is sent until its work is stored, over all three stages: a
prompt message stands for the proposals that it will become. All runs together may have a window of
proposals under way (`dispatch.in_flight`), of which each has its share by its priority. So a slow
verifier slows the sending instead of filling Redis. Every decision is one call of flight.lua.

What is counted here is nobody's truth: it may be wiped, and is begun anew by who watches the run.
A message that is under way and with nobody is sent again from here (workers/mending.py).
"""

from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipeline.config import Run
from pipeline.types import BATCH, Batch, ProposalBatch
from workers.broker import CANCELLED, Broker, explained

RUNS = "ppv:flight"
WEIGHTS = {"low": 1, "normal": 4, "high": 16}

_RESENDS_TTL_S = 24 * 3600

_COUNTERS = {"proposals", "weight", "asked_at"}  # the fields of a run's hash that are no message


class Entry(Enum):
    """What became of a message that wants to be sent."""

    ENTERED = 0
    FULL = 1  # the run has its share under way: ask again
    THERE = 2  # it is under way already
    CANCELLED = 3  # nothing of the run is to be sent any more


class Share(NamedTuple):
    """Proposals under way, and how many of them there may be."""

    under_way: int
    share: int


class Flight:
    """One run's messages under way. Every verb raises ServiceError where Redis is away."""

    def __init__(self, broker: Broker, run: str) -> None:
        self._redis, self._address = broker.client, broker.address
        self._run, self._key = run, f"{RUNS}:{run}"
        self._resends = f"ppv:resends:{run}"
        self._script = self._redis.register_script(_source())

    def enter(self, run: Run, batch: Batch, window: int) -> Entry:
        """Count a message as under way, if there is room for it; then it is to be sent.

        window: the proposals that all runs together may have under way.
        """
        message = _field(proposals_of(run, batch), batch)
        return Entry(self._call("enter", window, WEIGHTS[run.priority], batch.id, message))

    def move(self, run: Run, done: Batch, made: Iterable[Batch]) -> Entry:
        """A message has become others, which are to be sent unless the run is cancelled."""
        pairs = ((batch.id, _field(proposals_of(run, batch), batch)) for batch in made)
        return Entry(self._call("move", done.id, *chain.from_iterable(pairs)))

    def leave(self, done: Batch) -> None:
        """The work of a message is stored, or to be counted no more."""
        self._call("move", done.id)

    def ids(self) -> set[str]:
        """Of the messages under way."""
        with explained(self._address):
            return {str(field) for field in self._redis.hkeys(self._key)} - _COUNTERS

    def message(self, id: str) -> Batch | None:
        """One that is under way; None if it is not, or if a newer version sent it."""
        with explained(self._address):
            field = self._redis.hget(self._key, id)
        try:
            batch = BATCH.validate_json(str(field or "").partition(" ")[2])
        except ValidationError:
            return None
        return batch

    def share(self, run: Run, window: int) -> Share:
        return Share(*self._call("share", window, WEIGHTS[run.priority]))

    def clear(self) -> None:
        """What was under way is lost."""
        with explained(self._address):
            self._redis.delete(self._key)

    def count_resend(self, batch: Batch) -> None:
        with explained(self._address), self._redis.pipeline() as pipe:
            pipe.hincrby(self._resends, batch.id, 1)
            pipe.expire(self._resends, _RESENDS_TTL_S)
            pipe.execute()

    def resends(self, batch: Batch) -> int:
        """How often this message was sent again."""
        with explained(self._address):
            return int(self._redis.hget(self._resends, batch.id) or 0)

    def forget_resends(self) -> None:
        with explained(self._address):
            self._redis.delete(self._resends)

    def _call(self, verb: str, *arguments: str | int) -> Any:
        with explained(self._address):
            return self._script(keys=[RUNS, CANCELLED], args=[verb, self._run, *arguments])


def proposals_of(run: Run, batch: Batch) -> int:
    """How many a message stands for."""
    if isinstance(batch, ProposalBatch):
        return len(batch.proposals)
    return len(batch.bases) * run.proposals_per_base


def _field(proposals: int, batch: Batch) -> str:
    return f"{proposals} {batch.model_dump_json()}"


@lru_cache(maxsize=1)
def _source() -> str:
    return Path(__file__).with_name("flight.lua").read_text()
