"""Workers on this machine, and the watch that sees a run through to its end."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from pipeline.errors import ModelNotHere, ServiceError
from storage.progress import Progress, Tally
from storage.runs import RunFolder
from workers import dispatch
from workers.admission import Admission
from workers.broker import QUEUES, Broker
from workers.celery import app
from workers.flight import Flight
from workers.lease import Lease
from workers.mending import Resending, RollCall
from workers.processes import Child, stop_together
from workers.settings import Settings
from workers.waiting import Wait, Waiting

MAX_PROMPT_PROCESSES = 8
VERIFY_PROCESSES = 2

_STALL_AFTER_DEATH_S = 2.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 20.0
_PUSH_S = 0.05  # until there may be room again for what is sent again
_GLANCE_S = 0.2


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

    def runs(self, worker: str) -> bool:
        """Whether the Celery worker of this name is one of ours."""
        name, _, _ = worker.partition("@")
        return any(name == f"{queue}-{os.getpid()}" for queue in QUEUES)


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
    """Looks at a run again and again: shows it, tends the crew, has lost work sent again.

    crew: None where the workers are somebody else's.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: Settings,
        broker: Broker,
        crew: Crew | None = None,
        show: Callable[[Tally], None] = lambda tally: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """show: is given each new tally. say: what is to be told in a line, when it changes."""
        self.progress = Progress(folder)
        self._folder, self._dispatch = folder, settings.dispatch
        self._broker, self._crew, self._show = broker, crew, show
        self._say, self._said = say, ""
        run = self.progress.run
        self._flight = Flight(broker, run.name)
        self._admission = (
            Admission(broker.client, run.name, broker.address) if run.asks_endpoint else None
        )
        self._mending = Lease(broker, f"ppv:mending:{run.name}")
        self._roll = RollCall(folder, broker, self._mending)
        self._resending: Resending | None = None
        self._steps: Iterator[None] | None = None  # of a look that has not counted all yet
        self._looked_s, self._next_look = 0.0, 0.0
        self._done, self._changed_at, self._longest_silence_s = -1, time.monotonic(), 0.0
        self._doubted = False
        self._away_since: float | None = None
        self.over = False

    def glance(self) -> None:
        """A part of a look, for whoever feeds the run in between: the next glance goes on."""
        self.look(_GLANCE_S)

    def look(self, most_s: float = math.inf) -> None:
        """Count, show, tend, and send again what got lost; cheap to call often.

        most_s: of reading what is new; what is left then is for the next call.
        Store and broker may be away for a while. Raises ServiceError when they stay away.
        """
        started = time.monotonic()
        is_due = started >= self._next_look
        if not is_due and not self._resending:
            return
        try:
            counted = is_due and self._count(started + most_s)
            if counted:
                self._look(started)
            self._push()
            self._away_since = None
        except ServiceError:
            counted, self._steps = is_due, None
            self._away_since = self._away_since or started
            if started - self._away_since > dispatch.PATIENCE_S:
                raise
            self._tend()
        ended = time.monotonic()
        if is_due:
            self._looked_s += ended - started
        if not counted:
            return
        # A look costs the store a listing; at most a tenth of the time goes into that, unless it
        # took so long since this process was suspended or the store away.
        pause_s = max(_SHORTEST_PAUSE_S, 9 * self._looked_s)
        self._looked_s, self._next_look = 0.0, ended + min(pause_s, _LONGEST_PAUSE_S)

    def doubt(self) -> None:
        """Take what is missing for lost as soon as no message of the run waits."""
        self._doubted = True
        self._changed_at -= _STALL_AFTER_DEATH_S

    def until_done(self) -> Tally:
        """Wait until every expected proposal has a record or a failure, or the run is cancelled."""
        while True:
            self.look()
            if self.over:
                return self.progress.tally
            pause_s = self._next_look - time.monotonic()
            time.sleep(max(0.0, min(pause_s, _PUSH_S) if self._resending else pause_s))

    def close(self) -> None:
        """Leave the mending of the run to others."""
        self._resending = None
        self._mending.release()

    def _count(self, until: float) -> bool:
        """Count on; whether all is counted."""
        self._steps = self._steps or self.progress.update_in_steps()
        for _ in self._steps:
            if time.monotonic() > until:
                self._show(self.progress.tally)
                return False
        self._steps = None
        return True

    def _look(self, now: float) -> None:
        tally = self.progress.tally
        self._show(tally)
        self.over = tally.finished or self._broker.is_cancelled(self._folder.name)
        if self.over:
            self._conclude(tally)
            return
        self._tend()
        done = tally.prompted + tally.drawn + tally.judged + tally.failed
        if self._done < 0:
            self._done = done
        elif done != self._done:
            self._longest_silence_s = max(self._longest_silence_s, now - self._changed_at)
            self._done, self._changed_at = done, now
        elif waits := self._tell_waits():
            self._check_that_somebody_can(waits, now)
        if self._resending:
            return
        if tally.missing and self._is_stalled(now):
            self._begin_resending()
        else:
            self._roll.call()

    def _tend(self) -> None:
        if self._crew and self._crew.tend():
            self._doubted = True

    def _conclude(self, tally: Tally) -> None:
        self.close()
        if tally.finished:
            self._flight.clear()
            self._flight.forget_resends()

    def _tell_waits(self) -> list[Wait]:
        """What workers say that they lack for this run: its messages are not lost."""
        waits = Waiting(self._broker).of(self._folder.name)
        line = "; ".join(wait.line for wait in waits)
        if line and line != self._said:
            self._say(line)
        self._said = line
        return waits

    def _check_that_somebody_can(self, waits: Sequence[Wait], now: float) -> None:
        """Raises ModelNotHere if only workers of our own are there, and lack something."""
        for wait in waits:
            ours = self._crew and not wait.passes and any(map(self._crew.runs, wait.workers))
            if ours and now - self._changed_at > self._dispatch.stall_s:
                raise ModelNotHere(
                    f"run {self._folder.name!r} cannot be finished here: {wait.reason}; then "
                    f"`ppv resume {self._folder.name}`"
                )

    def _is_stalled(self, now: float) -> bool:
        """Nothing is under way, and nothing has come for a while."""
        silence_s = now - self._changed_at
        doubted, patience_s = self._doubted, self._dispatch.stall_s
        if doubted:
            patience_s = _STALL_AFTER_DEATH_S
        if silence_s < patience_s or (self._admission and self._admission.is_busy()):
            return False
        # What a worker has is lost with it, and comes back after the visibility timeout, mostly.
        believed = not doubted and silence_s < 2 * self._dispatch.visibility_timeout_s
        holds = self._broker.holds(self._folder.name, with_workers=believed)
        # A RabbitMQ says only how many wait, of all runs: what one lost is found when none do.
        if holds is None:
            batch_s = 0.0 if doubted else 3 * self._longest_silence_s
            holds = (
                silence_s < batch_s
                or any(self._broker.depths().values())
                or (believed and _workers_have(self._folder.name))
            )
        return not holds

    def _begin_resending(self) -> None:
        """Unless somebody else does it, or a part of the store was only not looked at yet."""
        if self.progress.update(whole=True).missing and self._mending.take():
            self._resending = Resending(self._folder, self.progress, self._broker, self._dispatch)
        self._doubted = False
        self._changed_at = time.monotonic()

    def _push(self) -> None:
        if not self._resending:
            return
        try:
            if not self._mending.is_ours():
                self._resending = None
            elif self._resending.push():
                self.close()
        except ServiceError:
            self._resending = None  # its place in the store's listing is lost
            raise


def _workers_have(run: str) -> bool:
    """Whether a worker that answers within a second has a message of this run."""
    asked = app.control.inspect(timeout=1.0)
    for answers in (asked.active(), asked.reserved(), asked.scheduled()):
        for tasks in (answers or {}).values():
            for task in tasks:
                match task.get("request", task).get("args"):
                    case [{"run": name}, *_] if name == run:
                        return True
    return False


def _consumed() -> set[str]:
    """The queues that workers elsewhere consume, as those that answer within a second say."""
    answers = app.control.inspect(timeout=1.0).active_queues() or {}
    return {queue["name"] for queues in answers.values() for queue in queues}
