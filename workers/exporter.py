"""What Prometheus reads: one page for the whole fleet, made of a snapshot at each visit.

Workers need no port for it. Whatever can be named in advance is there from the beginning, at zero:
Prometheus does not see the increase of what was not there before.
"""

import threading
from collections.abc import Iterator
from itertools import product

from prometheus_client import Metric
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from pipeline.errors import ServiceError
from pipeline.types import BASE
from workers.broker import MEND, QUEUES, Broker
from workers.metrics import COUNTS, OUTCOMES, VERDICTS
from workers.snapshot import Labels, Snapshot

_SUMMARIES = ("batch_size", "wait_seconds")


class Fleet(Collector):
    """categories: of pictures that are to come, so that their counters begin at zero."""

    def __init__(self, broker: Broker, categories: tuple[str, ...] = ()) -> None:
        self._broker = broker
        self._lock = threading.Lock()  # of RabbitMQ's connection
        self._born: dict[str, list[Labels]] = {
            name: [(queue,) for queue in QUEUES]
            for name, count in COUNTS.items()
            if count.labels == ("queue",)
        }
        self._born["messages"] = list(product(QUEUES, OUTCOMES))
        self._born["failures"] = [(queue,) for queue in QUEUES]
        self._born["drawn"] = [(BASE,)]
        self._born["judged"] = list(product(categories, (BASE,), VERDICTS))
        self._born["base_prompts"] = self._born["uncounted"] = [()]

    def describe(self) -> list[Metric]:
        return []  # so that nothing is asked when this is registered

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("ppv_broker_up", "Whether the broker answers.")
        try:
            with self._lock:
                snapshot = Snapshot.take(self._broker)
        except ServiceError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from self._counters(snapshot)
        yield from _gauges(snapshot)

    def _counters(self, snapshot: Snapshot) -> Iterator[Metric]:
        for name, count in COUNTS.items():
            if name.startswith(_SUMMARIES):
                continue
            family = CounterMetricFamily(f"ppv_{name}", count.help, labels=count.labels)
            for labels, value in self._values(snapshot, name).items():
                family.add_metric(labels, value)
            yield family
        for name in _SUMMARIES:
            count = COUNTS[f"{name}_count"]
            summary = SummaryMetricFamily(f"ppv_{name}", count.help, labels=count.labels)
            sums = self._values(snapshot, f"{name}_sum")
            for labels, value in self._values(snapshot, f"{name}_count").items():
                summary.add_metric(labels, int(value), sums.get(labels, 0.0))
            yield summary

    def _values(self, snapshot: Snapshot, name: str) -> dict[Labels, float]:
        return dict.fromkeys(self._born.get(name, ()), 0.0) | snapshot.counters.get(name, {})


def _gauges(snapshot: Snapshot) -> Iterator[Metric]:
    def gauge(name: str, help: str, labels: Labels, values: dict[Labels, float]) -> Metric:
        family = GaugeMetricFamily(f"ppv_{name}", help, labels=labels)
        for each, value in values.items():
            family.add_metric(each, value)
        return family

    queues = {queue: (queue,) for queue in QUEUES}
    yield gauge(
        "queue_messages",
        "Messages that wait in a queue.",
        ("queue",),
        {queues[queue]: depth for queue, depth in snapshot.depths.items()},
    )
    yield gauge(
        "queue_oldest_seconds",
        "How long the first message of a queue has waited; RabbitMQ does not show it, so 0.",
        ("queue",),
        {queues[queue]: age_s for queue, age_s in snapshot.oldest_s.items()},
    )
    yield gauge(
        "workers",
        "Workers that said within the last minute that they live.",
        ("queue",),
        {(queue,): snapshot.workers(queue) for queue in (*QUEUES, MEND)},
    )
    yield gauge(
        "worker_processes",
        "Processes of a worker that lives.",
        ("queue", "worker"),
        dict(snapshot.processes),
    )
    yield gauge(
        "run_dollars",
        "What a run of the last day has paid to language models, in US dollars.",
        ("run",),
        {(run,): purse.spent for run, purse in snapshot.purses.items()},
    )
    yield gauge(
        "run_dollars_limit",
        "What it may pay: endpoint.spend_limit_usd.",
        ("run",),
        {(run,): purse.limit for run, purse in snapshot.purses.items() if purse.limit is not None},
    )
    redis = snapshot.redis
    yield gauge("redis_memory_bytes", "Used by Redis.", (), {(): redis["used_memory"]})
    yield gauge("redis_memory_limit_bytes", "maxmemory; 0: none.", (), {(): redis["maxmemory"]})
    evicted = CounterMetricFamily("ppv_redis_evicted_keys", "Keys that Redis dropped when full.")
    evicted.add_metric([], redis["evicted_keys"])
    yield evicted
