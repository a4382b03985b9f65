"""Which runs wait, and for what: said by the workers that put their messages back.

ppv:waiting:<run>  a sorted set: [worker, reason, passes] -> when, by Redis' clock, it was said
"""

import json
from dataclasses import dataclass

from workers.broker import Broker, explained

FRESH_S = 60.0  # what nobody has repeated for so long is over

_KEY = "ppv:waiting:"


@dataclass(frozen=True)
class Wait:
    """What some workers lack for a run.

    passes: whether it is a service, whose coming back all wait for; else other workers may have it.
    """

    reason: str
    passes: bool
    workers: tuple[str, ...]

    @property
    def line(self) -> str:
        count = f"{len(self.workers)} worker{'s'[: len(self.workers) > 1]}"
        return f"{'waiting' if self.passes else 'lacking'} on {count}: {self.reason}"


class Waiting:
    """The record, in the Redis that workers share. Every verb raises ServiceError if it is away."""

    def __init__(self, broker: Broker) -> None:
        self._redis, self._address = broker.client, broker.address

    def say(self, run: str, worker: str, reason: str, *, passes: bool) -> None:
        with explained(self._address), self._redis.pipeline() as pipe:
            now = self._now()
            pipe.zadd(_KEY + run, {json.dumps([worker, reason, passes]): now})
            pipe.zremrangebyscore(_KEY + run, "-inf", now - FRESH_S)
            pipe.expire(_KEY + run, round(FRESH_S))
            pipe.execute()

    def of(self, run: str) -> list[Wait]:
        """What a run waits for now, by what most workers lack."""
        with explained(self._address):
            said = self._redis.zrangebyscore(_KEY + run, self._now() - FRESH_S, "+inf")
        workers: dict[tuple[str, bool], set[str]] = {}
        for line in said:
            worker, reason, passes = json.loads(str(line))
            workers.setdefault((reason, passes), set()).add(worker)
        waits = [Wait(*what, tuple(sorted(who))) for what, who in workers.items()]
        return sorted(waits, key=lambda wait: (-len(wait.workers), wait.reason))

    def _now(self) -> float:
        seconds, microseconds = self._redis.time()
        return float(seconds) + microseconds / 1e6
