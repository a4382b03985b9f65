"""What sees the fleet's runs through: those that `ppv enqueue` left to it, with nobody waiting.

    celery -A workers worker -Q mend --beat     # one, on any machine; it never loads torch

Every few seconds Celery's beat has each of these runs looked at, as `ppv run` looks at its own. If
several such workers run, a lease per run lets one of them at a time send again.
"""

import sqlite3
import time
from contextlib import suppress
from functools import lru_cache

from celery.utils.log import get_task_logger
from pydantic import ValidationError

from pipeline.errors import InputError, PpvError, ServiceError
from storage.objects import ObjectStore
from storage.runs import RunFolder, entrusted
from workers import resources
from workers.broker import Broker
from workers.celery import app
from workers.embedded import store_of
from workers.fleet import Watch
from workers.settings import Settings, settings

_TICK_S = 3.0  # of reading what is new, of all runs
_LEFT_ALONE_S = 60.0

logger = get_task_logger(__name__)


class Mender:
    """A watch over every run that was entrusted to the fleet, until it is done or cancelled."""

    def __init__(self, store: ObjectStore, broker: Broker, settings: Settings) -> None:
        self._store, self._broker, self._settings = store, broker, settings
        self._watches: dict[str, Watch] = {}
        self._left_until: dict[str, float] = {}  # runs that could not be looked at

    def look(self) -> None:
        """At each of them, once; what takes long to read is read in parts.

        A run that cannot be looked at (a newer version wrote it, say) is left alone for a minute.
        Raises ServiceError where store or broker is away.
        """
        names = set(entrusted(self._store))
        for name in self._watches.keys() - names:  # cancelled, or done by somebody else
            self._forget(name)
        for name in sorted(names):
            if time.monotonic() < self._left_until.get(name, 0.0):
                continue
            try:
                self._look_at(name, _TICK_S / len(names))
            except ServiceError:
                raise
            except InputError as error:  # the run is gone
                logger.warning("run %s is watched no more: %s", name, error)
                RunFolder(self._store, name).withdraw()
                self._forget(name)
            except (PpvError, ValueError, sqlite3.Error) as error:
                # What is wrong with a value may quote it.
                said = error.title if isinstance(error, ValidationError) else error
                logger.warning("run %s cannot be read: %s: %s", name, type(error).__name__, said)
                self._left_until[name] = time.monotonic() + _LEFT_ALONE_S
                self._forget(name)

    def doubt(self) -> None:
        """A worker has died, and what it had is lost."""
        for watch in self._watches.values():
            watch.doubt()

    def _look_at(self, name: str, most_s: float) -> None:
        folder = RunFolder(self._store, name)
        watch = self._watches.get(name)
        if watch is None:
            folder.reread()  # so that one that is only being replaced is not taken for gone
            watch = self._watches[name] = Watch(folder, self._settings, self._broker)
        watch.look(most_s)
        if watch.over:
            folder.withdraw()
            self._forget(name)
            # Who enqueues more entrusts it only after that shows; so if we undid it, we see it.
            if not self._is_over(folder, watch):
                folder.entrust()

    def _is_over(self, folder: RunFolder, watch: Watch) -> bool:
        if self._broker.is_cancelled(folder.name):
            return True
        seen = watch.progress
        return seen.tally.finished and folder.reread().base_prompts == seen.run.base_prompts

    def _forget(self, name: str) -> None:
        watch = self._watches.pop(name, None)
        if watch:
            with suppress(ServiceError):
                watch.close()


@lru_cache(maxsize=1)
def _mender() -> Mender:
    return Mender(store_of(settings()), resources.broker(), settings())


@app.task(name="mend")
def mend() -> None:
    """Look at the runs that were entrusted to the fleet."""
    _mender().look()
