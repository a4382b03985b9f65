"""The queues on a RabbitMQ, asked how long they are.

Only messages go there. What workers share beside them, from pace and spending to which runs are
cancelled, takes decisions in one step, which is Redis' work: PPV_REDIS_URL says where.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from amqp.exceptions import AccessRefused, NotFound
from kombu import Connection
from kombu.exceptions import OperationalError

from pipeline.errors import ServiceError
from storage.certificates import trouble_of
from workers.tls import tls_options

_TIMEOUT_S = 5.0
_ATTEMPT = {"max_retries": 1, "interval_start": 0.2}


def is_rabbitmq(url: str) -> bool:
    return url.startswith(("amqp://", "amqps://"))


class RabbitMQ:
    """A connection for questions. Every verb raises ServiceError, with the address, if it fails."""

    def __init__(self, url: str, address: str, tls_ca: Path | None = None) -> None:
        self.address = address
        ssl = tls_options(url, tls_ca) or False
        self._connection = Connection(url, ssl=ssl, connect_timeout=_TIMEOUT_S)

    def close(self) -> None:
        self._connection.release()

    def ping(self) -> None:
        self.depths(())

    def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """Messages that wait in each queue; one that no worker ever declared is empty."""
        with self._explained():
            self._connection.ensure_connection(**_ATTEMPT)
            return {queue: self._depth(queue) for queue in queues}

    def _depth(self, queue: str) -> int:
        # The answer that there is no such queue closes the channel, so each has one of its own.
        channel = self._connection.channel()
        try:
            count: int = channel.queue_declare(queue, passive=True).message_count
        except NotFound:
            return 0
        channel.close()
        return count

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except AccessRefused:
            raise ServiceError(
                f"the broker at {self.address} refused user or password: check PPV_BROKER_URL"
            ) from None
        except (OperationalError, *self._connection.recoverable_connection_errors) as error:
            self._connection.release()  # so that the next question connects anew
            reason = trouble_of(str(error)) or error
            raise ServiceError(f"no broker answers at {self.address} ({reason})") from None
