"""A store that waits where another would say at once that it cannot be used.

What is away may come back: a server that starts again, a full disk that is emptied, a clock that is
set right, since S3 refuses whoever's clock is wrong.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity

from storage.objects import ObjectStore, StoreError

Result = TypeVar("Result")


def patiently(work: Callable[[], Result], patience_s: float) -> Result:
    """What `work` returns, tried again after each StoreError until so much time has passed."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreError),
        wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=2, jitter=0.1),
        stop=tenacity.stop_after_delay(patience_s),
        reraise=True,
    )(work)


class PatientStore:
    """Another store, each of whose verbs is tried again for a while before it fails.

    So what a worker has drawn waits for the store, and is not drawn again; and a worker that alone
    cannot reach the store keeps its message, and does not take the whole queue.
    """

    def __init__(self, store: ObjectStore, patience_s: float) -> None:
        self.address = store.address
        self._store, self._patience_s = store, patience_s

    def put(self, key: str, data: bytes) -> None:
        patiently(lambda: self._store.put(key, data), self._patience_s)

    def get(self, key: str) -> bytes:
        return patiently(lambda: self._store.get(key), self._patience_s)

    def exists(self, key: str) -> bool:
        return patiently(lambda: self._store.exists(key), self._patience_s)

    def list(self, prefix: str) -> Iterator[str]:
        """Not tried again: what was listed before it broke was listed already."""
        return self._store.list(prefix)

    def folders(self, key: str) -> Iterator[str]:
        """As `list`."""
        return self._store.folders(key)

    def delete(self, key: str) -> None:
        patiently(lambda: self._store.delete(key), self._patience_s)
