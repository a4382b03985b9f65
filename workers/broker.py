"""What the queues hold, asked of Redis directly: depths, cancelled runs, redeliveries."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from pipeline.errors import InputError, ServiceError

QUEUES = ("prompt", "propose", "verify")

CANCELLED = "ppv:cancelled"  # a set of run names, one for each run that was stopped by hand
_REDELIVERED = "ppv:redelivered:"  # a counter for each batch that a worker died on
_REDELIVERED_TTL_S = 24 * 3600


class Broker:
    """A connection to the Redis that carries the queues."""

    def __init__(self, url: str) -> None:
        try:
            self.address = address_of(url)
            self._redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=3,
                socket_timeout=10,
                retry=Retry(ExponentialBackoff(cap=0.5), retries=3),
                decode_responses=True,
            )
        except ValueError:  # whose message may hold a part of the password
            raise InputError(
                "broker_url is no address of a Redis: write redis://:password@host:port/0, with "
                "special characters of the password percent-encoded"
            ) from None

    @property
    def client(self) -> redis.Redis:
        """For what keeps more than queues in the same Redis; its errors are not yet explained."""
        return self._redis

    def close(self) -> None:
        self._redis.close()

    def ping(self) -> None:
        """Raises ServiceError, with the address, if nobody answers or the password is wrong."""
        try:
            self._redis.ping()
        except redis.AuthenticationError:
            raise ServiceError(
                f"the broker at {self.address} refused the password: check PPV_BROKER_URL"
            ) from None
        except redis.RedisError as error:
            raise ServiceError(
                f"no broker answers at {self.address} ({_reason(error)}): start Redis there, or "
                "unset PPV_BROKER_URL to use the embedded one"
            ) from None

    def depths(self) -> dict[str, int]:
        """Messages that wait in each queue; those that a worker holds are not among them."""
        with explained(self.address), self._redis.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.llen(queue)
            return dict(zip(QUEUES, pipe.execute(), strict=True))

    def cancel(self, run: str) -> None:
        """Workers drop the run's messages from now on."""
        with explained(self.address):
            self._redis.sadd(CANCELLED, run)

    def revive(self, run: str) -> None:
        """Undo `cancel`."""
        with explained(self.address):
            self._redis.srem(CANCELLED, run)

    def is_cancelled(self, run: str) -> bool:
        with explained(self.address):
            return bool(self._redis.sismember(CANCELLED, run))

    def count_redelivery(self, batch_id: str) -> int:
        """How often this batch has come back from a worker that died on it, this time included."""
        key = _REDELIVERED + batch_id
        with explained(self.address), self._redis.pipeline() as pipe:
            pipe.incr(key)
            pipe.expire(key, _REDELIVERED_TTL_S)
            count: int = pipe.execute()[0]
        return count


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Every verb raises ServiceError, with the address, where Redis is away."""
    try:
        yield
    except redis.RedisError as error:
        raise ServiceError(f"the broker at {address} is away: {_reason(error)}") from None


def address_of(url: str) -> str:
    """The broker's host, port and database, without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}:{parts.port or 6379}{parts.path}"


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
