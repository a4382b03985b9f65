"""What every command begins with: settings, a store, and a broker where one is needed."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from storage.objects import ObjectStore
from workers.broker import Broker
from workers.embedded import broker_of, services, store_of
from workers.processes import Child
from workers.settings import Settings, settings


@dataclass(frozen=True)
class Session:
    """An open store, an open broker, and the children that we had to start for them."""

    settings: Settings
    store: ObjectStore
    broker: Broker
    children: list[Child]


@contextmanager
def session() -> Iterator[Session]:
    """Store and broker, started if they are not configured and nobody keeps them up."""
    config = settings()
    with services(config) as children, closing(broker_of(config)) as broker:
        yield Session(config, store_of(config), broker, children)


@contextmanager
def open_for_reading() -> Iterator[ObjectStore]:
    """The store alone, for commands that send no work."""
    config = settings()
    with services(config, broker=False):
        yield store_of(config)
