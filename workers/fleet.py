"""Workers on this machine, and the watch that sees a run through to its end."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from pipeline.errors import RunStalled, ServiceError
from storage.progress import Progress, Tally
from storage.runs import RunFolder
from workers import dispatch
from workers.admission import Admission
from workers.broker import QUEUES, Broker
from workers.celery import app
from workers.processes import Child, stop_together
from workers.settings import Settings

MAX_PROMPT_PROCESSES = 8
VERIFY_PROCESSES = 2

_MAX_RESENDS = 5  # in a row, without any progress between them
_STALL_AFTER_DEATH_S = 2.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 20.0


class Crew:
    """One Celery worker for each queue that nobody else consumes; started when first tended.

    services: children that are up already, to be tended too.
    """

    def __init__(self, settings: Settings, services: Sequence[Child] = ()) -> None:
        self._settings, self._services = settings, services
        self._workers: list[Child] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stop_together(self._workers or ())

    def tend(self) -> bool:
        """Start those that are not there; say whether one had died.

        Raises ServiceError if one dies at every start.
        """
        died = [service.tend() for service in self._services]
        if self._workers is None:
            consumed = _consumed()
            self._workers = [
                celery_worker(self._settings, queue).__enter__()
                for queue in QUEUES
                if queue not in consumed
            ]
        died += [worker.tend() for worker in self._workers]
        return any(died)


def celery_worker(
    settings: Settings, queue: str, app_module: str = "workers", environment: Mapping[str, str] = {}
) -> Child:
    """A Celery worker for one queue, as a child.

    One process of a verify worker reads pictures while the other judges. Prompt workers that wait
    for an endpoint have as many processes as fill the run's window with one message each, and two
    more: a message is held until its slowest answer has come.
    """
    command = [sys.executable, "-m", "celery", f"--app={app_module}", "worker"]
    if queue == "prompt" and settings.prompter.kind == "openai":
        messages = -(-settings.endpoint.concurrency // settings.dispatch.bases_per_message)
        command += [f"--concurrency={min(messages + 2, MAX_PROMPT_PROCESSES)}"]
    elif queue == "verify":
        command += [f"--concurrency={VERIFY_PROCESSES}"]
    command += [f"--queues={queue}", f"--hostname={queue}-{os.getpid()}@%h", "--loglevel=WARNING"]
    command += ["--without-gossip", "--without-mingle"]
    return Child(f"worker-{queue}", command, settings.state_dir / "logs", environment)


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
        run = self.progress.run
        self._admission = (
            Admission(broker.client, run.name, broker.address) if run.asks_endpoint else None
        )
        self._next_look = 0.0
        self._done, self._changed_at, self._longest_silence_s = -1, time.monotonic(), 0.0
        self._resends, self._died = 0, False
        self._away_since: float | None = None
        self._over = False

    def look(self) -> None:
        """Count, show, tend, and send again what got lost; cheap to call often.

        Store and broker may be away for a while. Raises ServiceError when they stay away, and
        RunStalled when what is missing does not come though it was sent again and again.
        """
        started = time.monotonic()
        if started < self._next_look:
            return
        try:
            self._look(started)
            self._away_since = None
        except ServiceError:
            self._away_since = self._away_since or started
            if started - self._away_since > dispatch.PATIENCE_S:
                raise
            self._died = self._crew.tend() or self._died
        # A look costs the store a listing; at most a tenth of the time goes into that, unless it
        # took so long since this process was suspended or the store away.
        ended = time.monotonic()
        pause_s = max(_SHORTEST_PAUSE_S, 9 * (ended - started))
        self._next_look = ended + min(pause_s, _LONGEST_PAUSE_S)

    def doubt(self) -> None:
        """Take what is missing for lost as soon as the queues are empty."""
        self._died = True

    def until_done(self) -> Tally:
        """Wait until every expected proposal has a record or a failure, or the run is cancelled."""
        while True:
            self.look()
            if self._over:
                return self.progress.tally
            time.sleep(max(0.0, self._next_look - time.monotonic()))

    def send_missing_until_done(self) -> Tally:
        """Do not wait for a stall: nothing is under way."""
        self.look()
        if not self._over:
            dispatch.send_missing(
                self._folder, self.progress, self._broker, self._dispatch, self.look
            )
        return self.until_done()

    def _look(self, now: float) -> None:
        tally = self.progress.update()
        self._show(tally)
        self._over = tally.finished or self._broker.is_cancelled(self._folder.name)
        if self._over:
            return
        self._died = self._crew.tend() or self._died
        done = tally.prompted + tally.drawn + tally.judged + tally.failed
        if done != self._done:
            if self._done >= 0:
                self._longest_silence_s = max(self._longest_silence_s, now - self._changed_at)
            self._done, self._changed_at, self._resends = done, now, 0
        elif tally.enqueued and self._is_stalled(now):
            self._send_again(tally)

    def _is_stalled(self, now: float) -> bool:
        """Nothing waits in a queue or for an endpoint, and nothing has come for longer than a
        batch takes."""
        patience_s = max(self._dispatch.stall_s, 3 * self._longest_silence_s)
        if self._died:
            patience_s = _STALL_AFTER_DEATH_S
        return (
            now - self._changed_at > patience_s
            and not any(self._broker.depths().values())
            and not (self._admission and self._admission.is_busy())
        )

    def _send_again(self, tally: Tally) -> None:
        if self._resends == _MAX_RESENDS:
            raise RunStalled(
                f"{tally.missing} proposals of run {self._folder.name!r} do not come, though they "
                f"were sent {_MAX_RESENDS} times: look into the workers' logs, then `ppv resume`"
            )
        dispatch.send_missing(self._folder, self.progress, self._broker, self._dispatch)
        self._resends, self._died = self._resends + 1, False
        self._changed_at = time.monotonic()


def _consumed() -> set[str]:
    """The queues that workers elsewhere consume, as those that answer within a second say."""
    answers = app.control.inspect(timeout=1.0).active_queues() or {}
    return {queue["name"] for queues in answers.values() for queue in queues}
