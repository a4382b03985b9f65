"""What workers say of their work, for Prometheus and `ppv status --watch`: counters in Redis.

    ppv:metrics          a hash: a counter's name and labels, as a JSON list -> its value
    ppv:metrics:workers  a sorted set: [queue, worker] -> when it last said that it lives
    ppv:metrics:runs     a sorted set: run -> when a message of it was last worked on

A process keeps what it counts until its message ends, and says it in one call of metrics.lua.
Nothing of it may harm the work: a Redis that does not answer at once is left alone for a while,
and what was counted meanwhile is said later. It tells rates, not results: work that is done twice
counts twice, and a Redis that is wiped begins at zero. The store knows how far a run is.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from celery import signals, states
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from pipeline.config import Run
from pipeline.errors import PpvError
from pipeline.types import Record
from workers.embedded import broker_of
from workers.settings import load_settings

COUNTERS, WORKERS, RUNS = KEYS = ("ppv:metrics", "ppv:metrics:workers", "ppv:metrics:runs")


@dataclass(frozen=True)
class Count:
    """What is counted, and by which labels."""

    help: str
    labels: tuple[str, ...] = ()


COUNTS = {
    "messages": Count("Messages worked on, by what came of them.", ("queue", "outcome")),
    "redeliveries": Count("Messages that came back from a worker that died.", ("queue",)),
    "wait_seconds_count": Count("How long messages waited for a worker.", ("queue",)),
    "wait_seconds_sum": Count("", ("queue",)),
    "busy_seconds": Count("Seconds in which a model or an endpoint was used.", ("queue", "worker")),
    "batch_size_count": Count("Items that a model was given at once.", ("queue",)),
    "batch_size_sum": Count("", ("queue",)),
    "base_prompts": Count("Base prompts that were described."),
    "drawn": Count("Pictures drawn and stored.", ("proposer",)),
    "judged": Count("Pictures judged.", ("category", "proposer", "verdict")),
    "failures": Count("Base prompts and proposals that were given up.", ("stage",)),
    "dollars": Count("Paid to language models, in US dollars.", ("model",)),
    "uncounted": Count("Counts under labels for which there was no room."),
}
OUTCOMES = ("done", "retried", "dropped", "failed")  # dropped: refused by a worker
VERDICTS = ("accepted", "rejected")

_LABEL = 100  # characters
_SAY_S = 5.0  # a long message says meanwhile how far it is
_PATIENCE_S = 1.0
_LEFT_ALONE_S = 10.0
_HEARTBEAT_S = 10.0


class Line:
    """A way to Redis on which nobody waits for long.

    connect: gives a client of our own. left_alone_s: for how long after it failed.
    """

    def __init__(
        self, connect: Callable[[], redis.Redis], left_alone_s: float = _LEFT_ALONE_S
    ) -> None:
        self._connect, self._left_alone_s = connect, left_alone_s
        self._script: Script | None = None
        self._quiet_until = 0.0

    def call(self, *arguments: str | float) -> bool:
        """Whether Redis has heard it."""
        if time.monotonic() < self._quiet_until:
            return False
        try:
            self._script = self._script or self._register()
            self._script(keys=KEYS, args=arguments)
        except (redis.RedisError, PpvError):
            self._quiet_until = time.monotonic() + self._left_alone_s
            return False
        return True

    def _register(self) -> Script:
        client = self._connect()
        patience = {"socket_timeout": _PATIENCE_S, "socket_connect_timeout": _PATIENCE_S}
        client.connection_pool.connection_kwargs.update(patience)
        client.set_retry(Retry(NoBackoff(), 0))
        return client.register_script(Path(__file__).with_suffix(".lua").read_text())


class Ledger:
    """What this process has counted and not said yet. Safe between threads."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._next_at = 0.0
        self.worker = ""  # in whose name it counts

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """name: one of COUNTS, with all its labels."""
        known = COUNTS[name].labels
        assert labels.keys() == set(known), f"{name} has the labels {known}"
        with self._lock:
            field = _json(name, *(labels[label][:_LABEL] for label in known))
            self._counts[field] += amount  # type: ignore[assignment]  # seconds are fractions
        if time.monotonic() > self._next_at:
            self.say()

    def say(self, run: str = "") -> None:
        """All of it; what cannot be said is kept."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        self._next_at = time.monotonic() + _SAY_S
        pairs = [part for field, amount in counts.items() for part in (amount, field)]
        if counts and not self._line.call("count", run, *pairs):
            with self._lock:
                self._counts.update(counts)


_line = Line(lambda: broker_of(load_settings()).client)
ledger = Ledger(_line)
count = ledger.count


def count_refusal(queue: str) -> None:
    """Said at once: a worker's main process has no message at whose end it would be said."""
    count("messages", queue=queue, outcome="dropped")
    ledger.say()


def count_verdicts(records: Iterable[Record]) -> None:
    """What came of a batch that was judged."""
    for (category, proposer, accepted), amount in Counter(
        (record.proposal.prompt.category, record.proposal.proposer.label, record.verdict.accepted)
        for record in records
    ).items():
        verdict = VERDICTS[0] if accepted else VERDICTS[1]
        count("judged", amount, category=category, proposer=proposer, verdict=verdict)


def count_dollars(run: str, model: str, usd: float) -> None:
    """Said at once: a message may wait for many answers, and the command line has no messages."""
    if usd:
        count("dollars", usd, model=model)
        ledger.say(run)


@contextmanager
def at_work(queue: str, items: int) -> Iterator[None]:
    """Counts the seconds inside as those in which a queue's model was used, on so many items."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - started
        count("batch_size_count", queue=queue)
        count("batch_size_sum", items, queue=queue)
        count("busy_seconds", seconds, queue=queue, worker=ledger.worker)


def expect(run: Run) -> None:
    """Begin what a run will count at zero: what is not there yet cannot be seen to increase."""
    for ref in run.proposers:
        count("drawn", 0, proposer=ref.label)
        own = ref.adapter.category if ref.adapter else ""
        for category in run.taxonomy.categories:
            if own in ("", category) or run.proposer.route != "specialist":
                for verdict in VERDICTS:
                    count("judged", 0, category=category, proposer=ref.label, verdict=verdict)
    prompter = run.prompter.model if run.prompter.kind == "openai" else ""
    for model in filter(None, (prompter, run.verifier.opinions.vision)):
        count("dollars", 0, model=model)
    ledger.say(run.name)


def connect() -> None:
    """Have Celery tell what becomes of messages, and when a worker lives."""
    signals.before_task_publish.connect(_stamp)
    signals.task_prerun.connect(_begin)
    signals.task_postrun.connect(_end)
    signals.worker_init.connect(_remember)
    signals.heartbeat_sent.connect(_say_alive)
    signals.worker_shutdown.connect(_say_gone)


SENT_AT = "sent_at"
"""The header of a message that says when it was sent, in seconds since 1970."""


def _stamp(headers: dict[str, Any], **_: object) -> None:
    headers[SENT_AT] = time.time()


def _begin(task: Any, **_: object) -> None:
    queue, request = task.name, task.request
    ledger.worker = request.hostname or ""
    if (request.delivery_info or {}).get("redelivered"):
        count("redeliveries", queue=queue)
    elif isinstance(sent_at := request.get(SENT_AT), float) and not request.retries:
        count("wait_seconds_count", queue=queue)
        count("wait_seconds_sum", max(0.0, time.time() - sent_at), queue=queue)


def _end(task: Any, args: Any, state: str | None, **_: object) -> None:
    if state != states.IGNORED:  # refused, which counts by itself; cancelled; or taken apart
        outcome = {states.SUCCESS: "done", states.RETRY: "retried"}.get(state or "", "failed")
        count("messages", queue=task.name, outcome=outcome)
    message = args[0] if args else None
    run = message.get("run") if isinstance(message, dict) else None
    ledger.say(run if isinstance(run, str) and len(run) <= 64 else "")


class _Life:
    """A worker's signs of life, from its main process."""

    def __init__(self) -> None:
        self.processes = 1
        self.names: list[str] = []
        self.next_at = 0.0


_life = _Life()


def _remember(sender: Any, **_: object) -> None:
    queues = sender.app.amqp.queues.consume_from
    _life.processes = sender.concurrency
    _life.names = [_json(queue, sender.hostname) for queue in queues]


def _say_alive(**_: object) -> None:
    if time.monotonic() > _life.next_at:
        _life.next_at = time.monotonic() + _HEARTBEAT_S
        _line.call("alive", _life.processes, *_life.names)
        ledger.say()


def _say_gone(**_: object) -> None:
    _line.call("gone", *_life.names)


def _json(*parts: str) -> str:
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
