"""Workers on this machine, and the watch that sees a run through to its end."""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pipeline.errors import ServiceError
from storage.progress import Progress, Tally
from storage.runs import RunFolder
from workers import dispatch
from workers.broker import QUEUES, Broker
from workers.celery import app
from workers.processes import Child, stop_together
from workers.settings import Settings

_MAX_RESENDS = 5  # in a row, without any progress between them
_STALL_AFTER_DEATH_S = 2.0
_SHORTEST_PAUSE_S = 0.3


class Crew:
    """One Celery worker for each queue that nobody else consumes; started when first tended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.children: list[Child] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stop_together(self.children or ())

    def tend(self) -> bool:
        """Start those that are not there; say whether one had died.

        Raises ServiceError if one dies at every start.
        """
        if self.children is None:
            consumed = _consumed()
            self.children = [
                self._worker(queue).__enter__() for queue in QUEUES if queue not in consumed
            ]
        return any([child.tend() for child in self.children])

    def _worker(self, queue: str) -> Child:
        command = [sys.executable, "-m", "celery", "--app=workers", "worker", f"--queues={queue}"]
        command += [f"--hostname={queue}-{os.getpid()}@%h", "--loglevel=WARNING"]
        command += ["--without-gossip", "--without-mingle"]
        # Two torch processes share these cores: one that waits must not spin.
        quiet = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        return Child(f"worker-{queue}", command, self._settings.state_dir / "logs", quiet)


def flower(settings: Settings, port: int) -> Child:
    """Flower as a child; its login is as workers/flowerconfig.py says."""
    command = [sys.executable, "-m", "celery", "--app=workers", "flower", f"--port={port}"]
    return Child("flower", command, settings.state_dir / "logs")


class Watch:
    """Looks at a run again and again: shows it, tends the crew, has lost work sent again."""

    def __init__(
        self,
        folder: RunFolder,
        settings: Settings,
        broker: Broker,
        crew: Crew,
        show: Callable[[Tally], None],
    ) -> None:
        self.progress = Progress(folder)
        self._folder, self._dispatch = folder, settings.dispatch
        self._broker, self._crew, self._show = broker, crew, show
        self._next_look = 0.0
        self._done, self._changed_at, self._longest_silence_s = -1, time.monotonic(), 0.0
        self._resends, self._died = 0, False

    def look(self) -> None:
        """Count, show, tend; cheap to call often."""
        started = time.monotonic()
        if started < self._next_look:
            return
        tally = self.progress.update()
        self._show(tally)
        if not tally.finished:
            self._died = self._crew.tend() or self._died
        done = tally.prompted + tally.drawn + tally.judged + tally.failed
        if done != self._done:
            if self._done >= 0:
                self._longest_silence_s = max(self._longest_silence_s, started - self._changed_at)
            self._done, self._changed_at, self._resends = done, started, 0
        # A look costs the store a listing; at most a tenth of the time goes into that.
        ended = time.monotonic()
        self._next_look = ended + max(_SHORTEST_PAUSE_S, 9 * (ended - started))

    def until_done(self) -> Tally:
        """Wait until every expected proposal has a record or a failure, or the run is cancelled.

        Raises ServiceError if what is missing does not come though it was sent again and again.
        """
        while True:
            self.look()
            tally = self.progress.tally
            if tally.finished or self._broker.is_cancelled(self._folder.name):
                return tally
            if self._is_stalled():
                if self._resends == _MAX_RESENDS:
                    raise ServiceError(
                        f"{tally.missing} proposals of run {self._folder.name!r} do not come, "
                        f"though they were sent {_MAX_RESENDS} times: look into the workers' "
                        "logs, then `ppv resume`"
                    )
                dispatch.send_missing(self._folder, self.progress, self._broker, self._dispatch)
                self._resends, self._died = self._resends + 1, False
                self._changed_at = time.monotonic()
            time.sleep(max(0.0, self._next_look - time.monotonic()))

    def _is_stalled(self) -> bool:
        """Nothing waits in a queue, and nothing has come for longer than a batch takes."""
        patience_s = max(self._dispatch.stall_s, 3 * self._longest_silence_s)
        if self._died:
            patience_s = _STALL_AFTER_DEATH_S
        silent_s = time.monotonic() - self._changed_at
        return silent_s > patience_s and not any(self._broker.depths().values())


def _consumed() -> set[str]:
    """The queues that workers elsewhere consume, as those that answer within a second say."""
    answers = app.control.inspect(timeout=1.0).active_queues() or {}
    return {queue["name"] for queues in answers.values() for queue in queues}
