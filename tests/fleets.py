"""A fleet in small: Redis, a store, and real workers whose stages do nothing."""

import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.folder import FolderStore
from storage.progress import Progress, Tally
from storage.runs import RunFolder
from tests.place import Place, until
from workers.broker import Broker
from workers.embedded import broker_of, services
from workers.fleet import celery_worker
from workers.processes import Child
from workers.settings import Settings, load_settings

IN_FLIGHT = 512
PER_BASE = 4 * 2  # 4 detailed prompts a base prompt and 2 images a prompt, as is the default
CONFIG = {
    "PPV_DISPATCH__IN_FLIGHT": str(IN_FLIGHT),
    "PPV_DISPATCH__STALL_S": "3",
    "PPV_DISPATCH__VISIBILITY_TIMEOUT_S": "60",
}


@dataclass
class Fleet:
    """A folder in which commands find the fleet, whose workers start and stop as a test likes."""

    place: Place
    settings: Settings
    store: FolderStore
    broker: Broker
    stack: ExitStack

    def start(self, *queues: str, **idle: object) -> list[Child]:
        """Workers for these queues. idle: settings of tests/idle.py."""
        extra = {f"IDLE_{name.upper()}": str(value) for name, value in idle.items()}
        children = [celery_worker(self.settings, queue, "tests.idle", extra) for queue in queues]
        return [self.stack.enter_context(child) for child in children]

    def start_mender(self) -> Child:
        """The worker that sees entrusted runs through, as a fleet starts it."""
        schedule = self.settings.state_dir / "beat"
        command = [sys.executable, "-m", "celery", "--app=workers", "worker", "--queues=mend"]
        command += ["--beat", f"--schedule={schedule}", "--loglevel=WARNING"]
        logs = self.settings.state_dir / "logs"
        return self.stack.enter_context(Child("worker-mend", command, logs))

    def enqueue(self, run: str, lines: Sequence[str], *options: str) -> None:
        """And wait until the last line is sent."""
        text = "".join(f"{line}\n" for line in lines)
        ended = self.place.ppv("enqueue", "-", "--run", run, *options, stdin=text)
        assert ended.code == 0, ended.err

    def feed(self, run: str, lines: Sequence[str], *options: str) -> "subprocess.Popen[str]":
        """The same, without waiting."""
        file = self.place.folder / f"{secrets.token_hex(4)}.txt"
        file.write_text("".join(f"{line}\n" for line in lines))
        process = self.place.start("enqueue", str(file), "--run", run, *options)
        self.stack.callback(process.communicate)
        self.stack.callback(process.kill)
        return process

    def folder(self, run: str) -> RunFolder:
        return RunFolder(self.store, run)

    def tally(self, run: str) -> Tally:
        folder = self.folder(run)
        return Progress(folder).update() if folder.exists() else Tally()

    def until_finished(self, run: str) -> Tally:
        until(lambda: self.tally(run).finished, f"run {run}")
        return self.tally(run)

    def waiting(self) -> int:
        """Messages in the queues."""
        return sum(self.broker.depths().values())


def lines(count: int, word: str = "mug") -> list[str]:
    return [f"a hand with a {word} {number}" for number in range(count)]


@contextmanager
def a_fleet(folder: Path) -> Iterator[Fleet]:
    """Redis and a store, without workers; its configuration is in the environment."""
    place, store = Place(folder, folder, []), FolderStore(folder / "store")
    (folder / "ppv.toml").unlink()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in CONFIG.items():
            patch.setenv(name, value)
        patch.setenv("PPV_STORE_URL", store.address)
        patch.setenv("PPV_STATE_DIR", str(folder / ".ppv"))
        settings = load_settings()
        stack.callback(place.clear)
        stack.enter_context(services(settings))
        broker = stack.enter_context(closing(broker_of(settings)))
        yield Fleet(place, settings, store, broker, stack)
