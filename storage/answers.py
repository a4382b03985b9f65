"""What language models answered, kept for every run that asks the same again.

    answers/<two digits>/<request key>.json

The key is a hash of the whole request, so nothing is ever paid for twice.
"""

from pipeline.types import Answer
from storage.objects import ObjectNotFound, ObjectStore


class Answers:
    """A cache of answers that never forgets by itself."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get(self, key: str) -> Answer | None:
        """None if this was never asked."""
        try:
            return Answer.model_validate_json(self._store.get(_key(key)))
        except ObjectNotFound:
            return None

    def put(self, key: str, answer: Answer) -> None:
        self._store.put(_key(key), answer.model_dump_json().encode())

    def forget(self, key: str) -> None:
        """So that it is asked anew, and paid for again."""
        self._store.delete(_key(key))


def _key(key: str) -> str:
    return f"answers/{key[:2]}/{key}.json"
