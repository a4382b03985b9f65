"""The ids of one kind of a run's objects, listed again and again at a cost that stays the same.

While there are few, every look lists them all. Of many, a look lists the next part, in turn: ids
are hashes, so those that begin with the same digits are an equal share of all, and a store lists
them by that prefix.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator

ANSWER = 1000  # keys that S3 gives in one answer
ANSWERS_A_LOOK = 20

_ANSWERS_A_PART = 16
_DIGITS = 3  # by which a part is divided at once: into 4,096 at most


class Listing:
    """Ids of which there are more at every look."""

    def __init__(self, ids: Callable[[str], Iterator[str]]) -> None:
        """ids: lists those that begin with the digits it is given."""
        self._ids = ids
        self._parts = deque([""])  # the beginnings of ids, the next to be listed first
        self._counts = {"": 0}  # of each part, when it was listed last
        self.complete = False  # whether the last look listed all

    @property
    def total(self) -> int:
        """How many there were when each was listed last."""
        return sum(self._counts.values())

    def look(self, whole: bool = False) -> Iterator[str]:
        """The ids of the next parts, old and new; of all parts at the first look, or if `whole`."""
        answers, self.complete = 0, False
        for _ in range(len(self._parts)):
            if answers >= ANSWERS_A_LOOK and not whole:
                return
            part, counts = self._parts[0], Counter[str]()
            for id in self._ids(part):
                counts[id[: len(part) + _DIGITS]] += 1
                yield id
            # Only now: a part whose listing broke off is the next one again.
            self._parts.popleft()
            del self._counts[part]
            self._put(part, counts)
            answers += _answers(counts.total())
        self.complete = True

    def _put(self, part: str, counts: Counter[str]) -> None:
        """At the end of the turn, in as many parts as are listed with a few answers each."""
        count = counts.total()
        if _answers(count) <= _ANSWERS_A_PART or part in counts:  # not counted any finer
            self._parts.append(part)
            self._counts[part] = count
            return
        for digit in "0123456789abcdef":
            begin = part + digit
            inner = {id: some for id, some in counts.items() if id.startswith(begin)}
            self._put(begin, Counter(inner))


def _answers(keys: int) -> int:
    return keys // ANSWER + 1
