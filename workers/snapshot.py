"""What a fleet is doing at this moment, read from the broker and from what workers say there."""

import json
import time
from dataclasses import dataclass
from typing import Any, Self

from workers.broker import CANCELLED, QUEUES, Broker, explained
from workers.metrics import COUNTERS, RUNS, SENT_AT, WORKERS

ALIVE_S = 60  # since a worker last said so
_BILLION = 1_000_000_000

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Purse:
    """What a run has paid to language models, in US dollars, and what it may pay."""

    spent: float
    limit: float | None


@dataclass(frozen=True)
class Snapshot:
    """counters: by name and labels, as metrics.COUNTS has them. oldest_s: how long the first
    message of a queue has waited; only of queues that are in Redis, where one can look at it."""

    depths: dict[str, int]
    oldest_s: dict[str, float]
    counters: dict[str, dict[Labels, float]]
    processes: dict[Labels, int]  # by queue and worker, of those that live
    purses: dict[str, Purse]  # by run
    cancelled: frozenset[str]  # runs
    redis: dict[str, Any]  # what its INFO says

    @classmethod
    def take(cls, broker: Broker) -> Self:
        """Raises ServiceError where the broker is away."""
        depths = broker.depths()
        with explained(broker.address), broker.client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(COUNTERS)
            pipe.zrange(WORKERS, 0, -1, withscores=True)
            pipe.zrange(RUNS, 0, -1)
            pipe.smembers(CANCELLED)
            pipe.info("memory")
            pipe.info("stats")
            for queue in QUEUES:
                pipe.lindex(queue, -1)
            (now, _), fields, workers, runs, cancelled, memory, stats, *first = pipe.execute()
        counters: dict[str, dict[Labels, float]] = {}
        for field, value in fields.items():
            name, *labels = json.loads(field)
            counters.setdefault(name, {})[tuple(labels)] = float(value)
        processes = counters.pop("processes", {})
        alive = {tuple(json.loads(name)) for name, at in workers if now - at < ALIVE_S}
        return cls(
            depths=depths,
            oldest_s={queue: _age_s(message) for queue, message in zip(QUEUES, first, strict=True)},
            counters=counters,
            processes={who: int(processes.get(who, 1)) for who in sorted(alive)},
            purses=_purses(broker, runs),
            cancelled=frozenset(cancelled),
            redis=memory | stats,
        )

    def workers(self, queue: str) -> int:
        return sum(1 for of, _ in self.processes if of == queue)

    def total(self, name: str) -> float:
        """A counter's sum over all its labels."""
        return sum(self.counters.get(name, {}).values())


def _age_s(message: str | None) -> float:
    """Seconds since a message was sent; 0 if there is none, or it does not say."""
    try:
        sent_at = json.loads(message or "{}")["headers"][SENT_AT]
        return max(0.0, time.time() - float(sent_at))
    except (KeyError, TypeError, ValueError):
        return 0.0


def _purses(broker: Broker, runs: list[str]) -> dict[str, Purse]:
    with explained(broker.address), broker.client.pipeline(transaction=False) as pipe:
        for run in runs:
            pipe.hmget(f"ppv:admission:{run}", ["restored", "spent", "limit"])
        found = pipe.execute()
    purses = {}
    for run, (restored, spent, limit) in zip(runs, found, strict=True):
        if restored is not None or spent is not None:
            paid = (int(restored or 0) + int(spent or 0)) / _BILLION
            most = int(limit or -1)
            purses[run] = Purse(paid, most / _BILLION if most >= 0 else None)
    return purses
