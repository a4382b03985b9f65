"""A lease in Redis: what one process at a time may do, and another once that one is dead."""

from contextlib import suppress
from types import TracebackType
from typing import Self

from redis.exceptions import LockError

from pipeline.errors import ServiceError
from workers.admission import Claim, Keeper
from workers.broker import Broker, explained

LIFE_S = 30.0  # how long it outlives a holder that was killed


class Lease:
    """Renewed in the background for as long as this process lives, or until it is released.

    Redis may be wiped and a process suspended, so whoever does something that must not be done
    twice asks `is_ours` before. Every verb raises ServiceError where Redis is away.
    """

    def __init__(self, broker: Broker, name: str, life_s: float = LIFE_S) -> None:
        self._address = broker.address
        self._lock = broker.client.lock(name, timeout=life_s, blocking=False, thread_local=False)
        self._claim = Claim(name, "")
        self._keeper = Keeper(self._renew, life_s / 3)

    def take(self) -> bool:
        """Whether it is ours now; taken if nobody has it."""
        if self.is_ours():
            return True
        with explained(self._address):
            taken = bool(self._lock.acquire())
        if taken:
            self._keeper.hold(self._claim)
        return taken

    def is_ours(self) -> bool:
        """Whether nobody can have taken it since `take`; it lives on from now."""
        with explained(self._address):
            try:
                self._lock.reacquire()
            except LockError:
                self._keeper.drop(self._claim)
                return False
        return True

    def release(self) -> None:
        self._keeper.drop(self._claim)
        with explained(self._address):
            try:
                self._lock.release()
            except LockError:  # it was not ours any more
                return

    def _renew(self, *held: Claim) -> None:
        self.is_ours()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ServiceError):  # it ends by itself
            self.release()
