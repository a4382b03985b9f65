"""What the queues hold, asked directly: depths, cancelled runs, redeliveries.

All of it is in one Redis. Where the messages go by RabbitMQ, the Redis beside it has the rest.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from pydantic import ValidationError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from pipeline.errors import InputError, ServiceError
from pipeline.types import BATCH
from storage.certificates import trouble_of
from workers.rabbitmq import RabbitMQ, is_rabbitmq
from workers.tls import tls_options

QUEUES = ("prompt", "propose", "verify")
MEND = "mend"  # a queue of ticks: whoever has one looks after the runs (workers/mend.py)

CANCELLED = "ppv:cancelled"  # a set of run names, one for each run that was stopped by hand
_REDELIVERED = "ppv:redelivered:"  # a counter for each message that a worker died on
_REDELIVERED_TTL_S = 24 * 3600

_HELD, _HELD_INDEX = "unacked", "unacked_index"  # kombu's: messages that a worker has, by tag
_PAGE = 100  # messages that are read at once
_PICTURED = 1000  # messages of all runs of which a picture is taken: some 50 MB at most


class Broker:
    """A connection to what carries the queues, and to the Redis that workers share: mostly one.

    redis_url: where that Redis is, if the queues are on a RabbitMQ.
    tls_ca: a file of CA certificates, for rediss:// and amqps://.
    address: its address, for messages.
    """

    def __init__(self, url: str, redis_url: str = "", tls_ca: Path | None = None) -> None:
        try:
            self._rabbitmq = RabbitMQ(url, address_of(url), tls_ca) if is_rabbitmq(url) else None
            self._variable = "PPV_REDIS_URL" if self._rabbitmq else "PPV_BROKER_URL"
            self.address = address_of(redis_url or url)
            self._redis = redis.Redis.from_url(
                redis_url or url,
                socket_connect_timeout=3,
                socket_timeout=10,
                retry=Retry(ExponentialBackoff(cap=0.5), retries=3),
                decode_responses=True,
                **tls_options(redis_url or url, tls_ca),
            )
        except ValueError:  # whose message may hold a part of the password
            raise InputError(
                f"{'redis_url' if redis_url else 'broker_url'} is no address of a Redis: write "
                "redis://:password@host:port/0, with special characters of the password "
                "percent-encoded" + ("" if redis_url else ", or amqp://user:password@host/vhost")
            ) from None

    @property
    def addresses(self) -> str:
        """All that is connected, for people."""
        return f"{self._rabbitmq.address}, {self.address}" if self._rabbitmq else self.address

    @property
    def client(self) -> redis.Redis:
        """For what keeps more than queues in the same Redis; its errors are not yet explained."""
        return self._redis

    def close(self) -> None:
        self._redis.close()
        if self._rabbitmq:
            self._rabbitmq.close()

    def ping(self) -> None:
        """Raises ServiceError, with the address, if nobody answers or the password is wrong;
        InputError for a Redis that would lose messages when it is full."""
        if self._rabbitmq:
            self._rabbitmq.ping()
        what = "Redis" if self._rabbitmq else "broker"
        try:
            self._redis.ping()
        except redis.AuthenticationError:
            raise ServiceError(
                f"the {what} at {self.address} refused the password: check {self._variable}"
            ) from None
        except redis.RedisError as error:
            raise ServiceError(
                f"no {what} answers at {self.address} ({_reason(error)}): start Redis there, or "
                f"unset {self._variable} to use the embedded one"
            ) from None
        with explained(self.address):
            memory = self._redis.info("memory")
        if memory.get("maxmemory") and memory["maxmemory_policy"] != "noeviction":
            raise InputError(
                f"the Redis at {self.address} drops keys when it is full (maxmemory-policy "
                f"{memory['maxmemory_policy']}), and messages with them: set noeviction there"
            )

    def depths(self) -> dict[str, int]:
        """Messages that wait in each queue; those that a worker holds are not among them."""
        if self._rabbitmq:
            return self._rabbitmq.depths(QUEUES)
        with explained(self.address), self._redis.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.llen(queue)
            return dict(zip(QUEUES, pipe.execute(), strict=True))

    def holds(self, run: str, *, with_workers: bool = True) -> bool | None:
        """Whether there is any message of this run; None where a broker does not show that.

        with_workers: those that a worker has count, too, be it alive or not.
        """
        if self._rabbitmq:
            return None
        with explained(self.address):
            if any(True for queue in QUEUES for _ in self._waiting(queue, run)):
                return True
            return with_workers and any(True for _ in self._held(run))

    def batches(self, run: str) -> set[str] | None:
        """The ids of all batches of this run that wait or that a worker has, at one moment.

        None where that cannot be said: on a RabbitMQ, or of very many messages.
        """
        if self._rabbitmq:
            return None
        waiting = sum(self.depths().values())
        with explained(self.address), self._redis.pipeline() as pipe:  # MULTI: nothing moves
            if waiting + self._redis.hlen(_HELD) > _PICTURED:
                return None
            for queue in QUEUES:
                pipe.lrange(queue, 0, -1)
            pipe.hvals(_HELD)
            messages = chain.from_iterable(pipe.execute())
        return {batch_id for text in messages if (batch_id := _batch_id(str(text), run))}

    def cancel(self, run: str) -> None:
        """Workers drop the run's messages from now on; those in Redis go at once."""
        with explained(self.address):
            self._redis.sadd(CANCELLED, run)
            if self._rabbitmq:
                return
            for queue in QUEUES:
                for message in list(self._waiting(queue, run)):
                    self._redis.lrem(queue, -1, message)
            # What a worker has goes on, but does not come back if the worker dies.
            for tag in list(self._held(run)):
                self._redis.hdel(_HELD, tag)
                self._redis.zrem(_HELD_INDEX, tag)

    def _waiting(self, queue: str, run: str) -> Iterator[str]:
        """The run's messages in a queue of Redis, from the newest on.

        Workers take from the other end, so none is passed over while they do.
        """
        start = 0
        while page := self._redis.lrange(queue, start, start + _PAGE - 1):
            yield from (message for message in map(str, page) if _is_of(message, run))
            start += _PAGE

    def _held(self, run: str) -> Iterator[str]:
        """The tags of the run's messages that a worker has."""
        for tag, held in self._redis.hscan_iter(_HELD, count=_PAGE):
            if _is_of(held, run):
                yield tag

    def revive(self, run: str) -> None:
        """Undo `cancel`."""
        with explained(self.address):
            self._redis.srem(CANCELLED, run)

    def is_cancelled(self, run: str) -> bool:
        with explained(self.address):
            return bool(self._redis.sismember(CANCELLED, run))

    def count_redelivery(self, message: str) -> int:
        """How often this message has come back from a worker that died on it, this time included.

        message: its queue, run and batch.
        """
        key = _REDELIVERED + message
        with explained(self.address), self._redis.pipeline() as pipe:
            pipe.incr(key)
            pipe.expire(key, _REDELIVERED_TTL_S)
            count: int = pipe.execute()[0]
        return count

    def forget_redeliveries(self, message: str) -> None:
        with explained(self.address):
            self._redis.delete(_REDELIVERED + message)


def _is_of(text: str, run: str) -> bool:
    """Whether a message, as kombu keeps it, is about this run; a strange one is nobody's."""
    return _batch(text).get("run") == run


def _batch_id(text: str, run: str) -> str | None:
    """Which of this run's batches a message is, if it is one."""
    if (held := _batch(text)).get("run") != run:
        return None
    try:
        batch = BATCH.validate_python(held)
    except ValidationError:
        return None
    return batch.id


def _batch(text: str) -> dict[str, Any]:
    """The batch in a message as kombu keeps it; empty if there is none."""
    try:
        message = json.loads(text)
        if isinstance(message, list):  # one that a worker has: beside its exchange and queue
            message = message[0]
        batch = json.loads(base64.b64decode(message["body"]))[0][0]
    except (LookupError, TypeError, ValueError):
        return {}
    return batch if isinstance(batch, dict) else {}


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Every verb raises ServiceError, with the address, where Redis is away."""
    try:
        yield
    except redis.RedisError as error:
        raise ServiceError(f"the broker at {address} is away: {_reason(error)}") from None


def address_of(url: str) -> str:
    """The broker's host, port and database or virtual host, without user and password."""
    parts = urlsplit(url)
    port = parts.port or {"amqp": 5672, "amqps": 5671}.get(parts.scheme, 6379)
    return f"{parts.scheme}://{parts.hostname or ''}:{port}{parts.path}"


def _reason(error: Exception) -> str:
    return trouble_of(str(error)) or (str(error).splitlines() or [type(error).__name__])[0]
