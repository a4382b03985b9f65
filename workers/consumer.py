"""What takes messages off the queues: those of the fleet's tasks go to their processes, others are
refused.

Stock Celery throws away what it cannot read with a page of its content in the log, and ends at
envelopes and headers that are broken in ways it did not foresee, one worker a message.
"""

import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import DecodeError, SerializerNotInstalled
from kombu.transport import redis

from workers import refusal
from workers.broker import MEND, QUEUES

BYTES_AT_MOST = 16 * 2**20  # of a message: 1,024 of the longest base prompts take 12 MB

_MALFORMED = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    *(DecodeError, SerializerNotInstalled),
)
"""What reading a broken message raises. Whatever a broken connection raises is none of these."""


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's own, for messages to a task of the queues that it consumes."""

    def create_task_handler(self, *arguments: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*arguments)

        def on_task_received(message: Any) -> None:
            try:
                if fault := self._fault(message):
                    self._refuse(message, fault)
                else:
                    handle(message)
            except _MALFORMED as error:
                self._refuse(message, f"it cannot be read: {type(error).__name__}")

        return on_task_received

    def _fault(self, message: Any) -> str:
        """What is wrong with a message; "" if it can be given to its task."""
        task = message.headers["task"]
        if task not in (*QUEUES, MEND) or task not in self.app.amqp.queues.consume_from:
            return f"no task {refusal.excerpt(task, 60)!r} here"
        if (size := len(message.body or b"")) > BYTES_AT_MOST:
            return f"{size} bytes: a message has {BYTES_AT_MOST} at most"
        arguments, options, _ = message.payload
        match task, arguments, options:
            case ("mend", [], {}) | ("prompt" | "propose" | "verify", [dict()], {}) if not options:
                return ""
        return "its task takes " + ("nothing" if task == MEND else "one batch")

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._refuse(message, "it is no task")

    def on_unknown_task(self, body: Any, message: Any, error: Exception) -> None:
        self._refuse(message, "its task is not known")

    def on_invalid_task(self, body: Any, message: Any, error: Exception) -> None:
        self._refuse(message, f"its task cannot be read: {type(error).__name__}")

    def on_decode_error(self, message: Any, error: Exception) -> None:
        self._refuse(message, f"it cannot be decoded: {type(error).__name__}")

    def _refuse(self, message: Any, reason: str) -> None:
        queue = (message.delivery_info or {}).get("routing_key", "")
        refusal.record(queue, self.hostname, reason)
        message.reject_log_error(refusal.logger, self.connection_errors)


class QoS(redis.QoS):  # type: ignore[misc]
    """Kombu's own, by Redis' clock: it notes when a worker took a message by the worker's. If that
    is an hour fast, what the worker dies with comes back an hour late."""

    def append(self, message: Any, delivery_tag: str) -> None:
        super().append(message, delivery_tag)
        with self.channel.conn_or_acquire() as client:
            client.eval(_TAKEN_NOW, 1, self.unacked_index_key, delivery_tag)

    @property
    def visibility_timeout(self) -> float:
        """What kombu takes from the worker's clock, for the time before which all comes back."""
        with self.channel.conn_or_acquire() as client:
            seconds, microseconds = client.time()
        fast_s = time.time() - float(seconds) - float(microseconds) / 1e6
        return float(self.channel.visibility_timeout) + fast_s


_TAKEN_NOW = """
local now = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'XX', string.format('%d.%06d', now[1], now[2]), ARGV[1])
"""


class Channel(redis.Channel):  # type: ignore[misc]
    """Kombu's own, which ends neither at an envelope that is none nor at a Redis that goes."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except _MALFORMED as error:
            refusal.record("", "", f"its envelope cannot be read: {type(error).__name__}")
            return True  # it has left its queue

    def _connparams(self, *args: Any, **options: Any) -> Any:
        # kombu 5.7 asks the connection that is gone for its host; of that a worker with a message
        # in hand would die, and what it had would come back only after the visibility timeout.
        if self.connection.client is None:
            raise ConnectionError("the connection to the broker is gone")
        return super()._connparams(*args, **options)


class Transport(redis.Transport):  # type: ignore[misc]
    """Redis by that channel."""

    Channel = Channel
