"""What sees the fleet's runs through: those that `ppv enqueue` left to it, with nobody waiting.

    celery -A workers worker -Q mend --beat     # one, on any machine; it never loads torch

Every few seconds Celery's beat has each of these runs looked at, as `ppv run` looks at its own. If
several such workers run, a lease per run lets one of them at a time send again.
"""

from contextlib import suppress
from functools import lru_cache

from celery.utils.log import get_task_logger

from pipeline.errors import InputError, ServiceError
from storage.objects import ObjectStore
from storage.runs import RunFolder, entrusted
from workers import resources
from workers.broker import Broker
from workers.celery import app
from workers.embedded import store_of
from workers.fleet import Watch
from workers.settings import Settings, settings

logger = get_task_logger(__name__)


class Mender:
    """A watch over every run that was entrusted to the fleet, until it is done or cancelled."""

    def __init__(self, store: ObjectStore, broker: Broker, settings: Settings) -> None:
        self._store, self._broker, self._settings = store, broker, settings
        self._watches: dict[str, Watch] = {}

    def look(self) -> None:
        """At each of them, once.

        Raises ServiceError where store or broker is away.
        """
        names = set(entrusted(self._store))
        for name in self._watches.keys() - names:  # cancelled, or done by somebody else
            self._forget(name)
        for name in sorted(names):
            try:
                self._look_at(name)
            except InputError as error:  # the run is gone
                logger.warning("run %s is left alone: %s", name, error)
                RunFolder(self._store, name).withdraw()

    def doubt(self) -> None:
        """A worker has died, and what it had is lost."""
        for watch in self._watches.values():
            watch.doubt()

    def _look_at(self, name: str) -> None:
        folder = RunFolder(self._store, name)
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = Watch(folder, self._settings, self._broker)
        watch.look()
        if watch.over:
            folder.withdraw()
            self._forget(name)

    def _forget(self, name: str) -> None:
        with suppress(ServiceError):
            self._watches.pop(name).close()


@lru_cache(maxsize=1)
def _mender() -> Mender:
    return Mender(store_of(settings()), resources.broker(), settings())


@app.task(name="mend")
def mend() -> None:
    """Look at the runs that were entrusted to the fleet."""
    _mender().look()
