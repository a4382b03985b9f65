"""One annotator's desk: what is asked in its order, what was said of it, and how to go back."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.errors import InputError
from pipeline.labels import now
from storage.said import Line

STEPS = 1000  # that can be taken back


class Asked(Protocol):
    @property
    def id(self) -> str: ...


class Opinion(Hashable, Protocol):
    """What is said of one thing; equal ones are held once."""

    @property
    def whole(self) -> bool:
        """Whether nothing is left to say."""

    @property
    def begun(self) -> bool:
        """Whether something is said, and something is left."""


Item = TypeVar("Item", bound=Asked)
Said = TypeVar("Said", bound=Opinion)


@dataclass(frozen=True)
class Progress:
    total: int
    whole: int  # all that is asked of them is said
    begun: int  # some of it
    skipped: int
    gone: int


@dataclass(frozen=True)
class Step(Generic[Said]):
    """What one key changed: what was said before of each of these items."""

    before: tuple[tuple[str, Said], ...] = ()
    skipped: str = ""

    @property
    def ids(self) -> list[str]:
        return [self.skipped] if self.skipped else [id for id, _ in self.before]


class Desk(ABC, Generic[Item, Said, Line]):
    """Safe to share between threads. What it was told is in the journal when a method returns."""

    kind: str  # what an item is called in messages
    nothing: Said  # what is said of an item before anything is

    def __init__(
        self,
        items: Sequence[Item],
        earlier: Iterable[Line],
        append: Callable[[list[Line]], None],
    ) -> None:
        """earlier: what this annotator said before, oldest first.

        append: makes lines last before it returns, or raises.
        """
        self._items, self._append = items, append
        self._index = {item.id: i for i, item in enumerate(items)}
        self._lock = threading.RLock()
        self._said: dict[str, Said] = {}
        self._values: dict[Said, Said] = {}  # equal opinions are held once
        self._steps: deque[Step[Said]] = deque(maxlen=STEPS)
        self._skipped: set[str] = set()
        self._gone: set[str] = set()
        self._news: list[str] = []  # of what is gone, not shown yet
        self._whole = self._begun = self._first = 0
        for line in earlier:
            self._replay(line)

    # What a line is

    @abstractmethod
    def _line(self, item: Item, said: Said, at: str, chosen: str) -> Line:
        """chosen: why the item came to be asked about, if not by its turn."""

    @abstractmethod
    def _read(self, line: Line) -> tuple[str, Said]:
        """The item that a line is about, and what it says of it."""

    # Looking

    def said(self, id: str) -> Said:
        return self._said.get(id, self.nothing)

    @property
    def progress(self) -> Progress:
        return Progress(
            total=len(self._items),
            whole=self._whole,
            begun=self._begun,
            skipped=len(self._skipped),
            gone=len(self._gone),
        )

    @property
    def can_undo(self) -> bool:
        return bool(self._steps)

    def _tell_news(self) -> str:
        """Once."""
        if not self._news:
            return ""
        first, *others = self._news
        self._news = []
        return f"Passed over: {first}{f', and {len(others)} more' if others else ''}."

    # Saying

    def skip(self, id: str) -> None:
        """Until the next start."""
        with self._lock:
            self._item(id)
            if id not in self._skipped:
                self._skipped.add(id)
                self._steps.append(Step(skipped=id))

    def gone(self, id: str, why: str) -> None:
        """It cannot be shown, and comes no more. What was said of it stays."""
        with self._lock:
            if id in self._index and id not in self._gone:
                self._gone.add(id)
                self._news.append(f"{self.kind} {id}, which {why}")

    def undo(self) -> list[str]:
        """Takes the last step back; the items that it was about."""
        with self._lock:
            if not self._steps:
                return []
            step = self._steps[-1]
            self._write(dict(step.before))
            self._steps.pop()
            if step.skipped:
                self._skipped.discard(step.skipped)
                self._reopen(step.skipped)
            return step.ids

    # Keeping

    def _say(self, new: Mapping[str, Said], chosen: str = "") -> None:
        changed = {id: said for id, said in new.items() if said != self.said(id)}
        before = tuple((id, self.said(id)) for id in changed)
        self._write(changed, chosen)
        if before:
            self._steps.append(Step(before=before))

    def _write(self, new: Mapping[str, Said], chosen: str = "") -> None:
        at = now()
        lines = [self._line(self._item(id), said, at, chosen) for id, said in new.items()]
        if lines:
            self._append(lines)
        for id, said in new.items():
            self._keep(id, said)

    def _keep(self, id: str, said: Said) -> None:
        if id in self._index:
            old = self.said(id)
            self._whole += said.whole - old.whole
            self._begun += said.begun - old.begun
            self._reopen(id)
        if said == self.nothing:
            self._said.pop(id, None)
        else:
            self._said[id] = self._values.setdefault(said, said)

    def _replay(self, line: Line) -> None:
        """As if it were said again, so that what was said before a restart can be taken back."""
        id, said = self._read(line)
        before = self.said(id)
        if id in self._index:
            last = self._steps[-1] if self._steps else Step[Said]()
            if last.before == ((id, said),):
                self._steps.pop()  # this was an undo
            else:
                self._steps.append(Step(before=((id, before),)))
        self._keep(id, said)

    # The order

    def _open(self) -> Iterator[Item]:
        """What is still to come, in its order."""
        while self._first < len(self._items) and self._closed(self._items[self._first]):
            self._first += 1
        turns = range(self._first, len(self._items))
        return (item for item in map(self._items.__getitem__, turns) if not self._closed(item))

    def _closed(self, item: Item) -> bool:
        id = item.id
        return id in self._skipped or id in self._gone or self.said(id).whole

    def _reopen(self, id: str) -> None:
        self._first = min(self._first, self._index[id])

    def _chosen(self, id: str | None) -> Item | None:
        """The item of this id, or the next one that is open; None if there is nothing left."""
        at = self._index.get(id) if id else None
        return next(self._open(), None) if at is None else self._items[at]

    def _item(self, id: str) -> Item:
        """Raises InputError if the page has no such item."""
        index = self._index.get(id)
        if index is None:
            raise InputError(f"no {self.kind} {id!r} on this page")
        return self._items[index]
