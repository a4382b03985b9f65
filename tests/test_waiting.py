"""Batches that cannot be done here, or not now, wait in their queue, and people are told why."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from redis.commands.core import CoreCommands

from storage.progress import Progress
from storage.runs import RunFolder
from storage.s3 import S3Config, S3Store
from tests.conftest import RcloneServer
from tests.denying import denying
from tests.place import Place, until
from tests.tiny import save_tiny_pipeline, save_tiny_verifier
from workers.broker import Broker
from workers.cli.overview import Overview, lines
from workers.waiting import Wait, Waiting

BASES = ["a hand with a red mug", "a hand with a blue bag"]
PROPOSALS = len(BASES) * 4 * 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_pipeline(folder / "base", text_length=200)
    save_tiny_verifier(folder / "verifier")
    return folder


@pytest.fixture
def own_redis(redis_url: str) -> Iterator[str]:
    """A database that no other test's workers look into."""
    url = redis_url.removesuffix("/0") + "/8"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def place(
    tmp_path: Path, models: Path, own_redis: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A user's folder on a Redis and an S3 server of its own, with models that may be moved."""
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.setenv("PPV_BROKER_URL", own_redis)
    place = Place(tmp_path, tmp_path / "models", BASES)
    yield place
    place.clear()


@contextmanager
def worker(place: Place, *queues: str) -> Iterator[None]:
    """A Celery worker of a fleet's, for as long as inside."""
    command = [sys.executable, "-m", "celery", "-A", "tests.picky", "worker", "--loglevel=WARNING"]
    name = f"--hostname={'-'.join(queues)}-{os.urandom(3).hex()}@here"
    process = place.spawn(*command, "-Q", ",".join(queues), name)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def use_s3(monkeypatch: pytest.MonkeyPatch, server: S3Config, endpoint: str = "") -> S3Store:
    """Have commands and workers keep everything in a bucket there."""
    monkeypatch.setenv("PPV_STORE_URL", "s3://bucket")
    monkeypatch.setenv("PPV_S3__ENDPOINT", endpoint or server.endpoint)
    monkeypatch.setenv("PPV_S3__ACCESS_KEY", server.access_key)
    monkeypatch.setenv("PPV_S3__SECRET_KEY", server.secret_key.get_secret_value())
    return S3Store(server, "bucket")


def test_a_batch_waits_for_a_worker_that_has_its_model(
    place: Place, own_redis: str, own_s3_server: RcloneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the proposer's model is away when the first worker takes its batches."""
    store = use_s3(monkeypatch, own_s3_server.config)
    assert place.ppv("enqueue", "bases.txt", "--run", "lacking").code == 0
    base, away = place.folder / "models" / "base", place.folder / "elsewhere"
    waiting = Waiting(Broker(own_redis))
    progress = Progress(RunFolder(store, "lacking"))
    with redis.Redis.from_url(own_redis) as client, ExitStack() as stack:
        stack.enter_context(worker(place, "prompt"))
        until(lambda: client.llen("propose") == 4, "batches to be drawn")
        base.rename(away)
        stack.enter_context(worker(place, "propose"))
        until(lambda: waiting.of("lacking"), "a worker that lacks the model")
        (wait,) = waiting.of("lacking")
        assert not wait.passes and len(wait.workers) == 1
        assert wait.line.startswith(f"lacking on 1 worker: no model at '{base}'")
        shown = place.ppv("status", "lacking")
        assert wait.line[:60] in " ".join(shown.out.split())
        overview = Overview(store, None, Broker(own_redis))
        list(overview.look())
        assert any(wait.line in line for line in lines(overview))
        told = place.status("lacking")
        assert told["waiting"] == [{"reason": wait.reason, "workers": 1}]
        assert (told["failed"], told["missing"]) == (0, PROPOSALS)
        before = _published(client)
        until(lambda: _published(client) > before, "they go round")
        assert _published(client) - before < 100, "and not hot"
        assert not client.keys("ppv:redelivered:*"), "no worker is held to have died"
        away.rename(base)
        stack.enter_context(worker(place, "verify"))
        until(lambda: progress.update().finished, "the run")
        until(lambda: not client.exists(*("propose", "verify", "unacked")), "empty queues", 20)
    tally = progress.tally
    assert (tally.judged, tally.failed, tally.expected) == (PROPOSALS, 0, PROPOSALS)


def _published(client: "CoreCommands[bytes]") -> int:
    stats = client.info("commandstats")
    return int(stats["cmdstat_lpush"]["calls"])


def test_a_worker_that_lacks_one_runs_model_does_the_others_meanwhile(
    place: Place, own_redis: str, own_s3_server: RcloneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = use_s3(monkeypatch, own_s3_server.config)
    other = place.folder / "models" / "other"
    save_tiny_pipeline(other, seed=5, text_length=200)
    assert place.ppv("enqueue", "bases.txt", "--run", "mine").code == 0
    lacked = ("--set", f"proposer.model={other}")
    assert place.ppv("enqueue", "bases.txt", "--run", "theirs", *lacked).code == 0
    progress = Progress(RunFolder(store, "mine"))
    with redis.Redis.from_url(own_redis) as client, ExitStack() as stack:
        stack.enter_context(worker(place, "prompt"))
        until(lambda: client.llen("propose") == 8, "batches of both")
        shutil.rmtree(other)
        stack.enter_context(worker(place, "propose"))
        stack.enter_context(worker(place, "verify"))
        until(lambda: progress.update().finished, "the run that it can do")
        waits = Waiting(Broker(own_redis)).of("theirs")
        assert [wait.passes for wait in waits] == [False]
        assert place.ppv("cancel", "theirs").code == 0
        until(lambda: not client.exists("propose", "unacked"), "a cancelled run waits no more", 30)
    assert not list(RunFolder(store, "theirs").failed_ids())


def test_a_worker_leaves_a_newer_versions_messages_to_newer_workers(
    place: Place, own_redis: str, own_s3_server: RcloneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = use_s3(monkeypatch, own_s3_server.config)
    assert place.ppv("enqueue", "bases.txt", "--run", "rolling").code == 0
    with redis.Redis.from_url(own_redis) as client, ExitStack() as stack:
        folder = RunFolder(store, "rolling")
        key = "runs/rolling/run.json"
        newer = json.loads(store.get(key)) | {"colours": ["red"]}
        store.put(key, json.dumps(newer).encode())
        stack.enter_context(worker(place, "prompt"))
        waiting = Waiting(Broker(own_redis))
        until(lambda: waiting.of("rolling"), "a worker that is too old")
        assert "lacking on 1 worker: a newer ppv" in waiting.of("rolling")[0].line
        assert not list(folder.failed_ids())
        assert not client.exists("ppv:refused")
        del newer["colours"]
        store.put(key, json.dumps(newer).encode())
        until(lambda: len(list(folder.prompted_ids())) == 2, "what it can read after all")


def test_a_run_outlives_a_bucket_that_is_made_read_only_meanwhile(
    place: Place, own_redis: str, own_s3_server: RcloneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with denying(own_s3_server.port) as read_only, ExitStack() as stack:
        store = use_s3(monkeypatch, own_s3_server.config, read_only.address)
        # Workers wait for the store for half of that before they put a message back.
        monkeypatch.setenv("PPV_DISPATCH__VISIBILITY_TIMEOUT_S", "20")
        client = stack.enter_context(redis.Redis.from_url(own_redis))
        assert place.ppv("enqueue", "bases.txt", "--run", "denied").code == 0
        stack.enter_context(worker(place, "prompt"))
        until(lambda: client.llen("propose") == 4, "batches to be drawn")
        read_only.on = True
        stack.enter_context(worker(place, "propose", "verify"))
        waiting = Waiting(Broker(own_redis))
        until(lambda: waiting.of("denied"), "a worker that may not write")
        (wait,) = waiting.of("denied")
        assert wait.passes and "AccessDenied" in wait.line
        running = place.start("resume", "denied", "--out", "out")
        assert running.stderr
        said = ""
        while not said.startswith("waiting on 1 worker: store s3://bucket/"):
            said = running.stderr.readline()
            assert said, "it ended"
        assert "refused (AccessDenied" in said
        before = read_only.denied
        until(lambda: read_only.denied > before, "they try again")
        folder = RunFolder(store, "denied")
        assert not list(folder.failed_ids())
        read_only.on = False
        ended = place.end(running)
    assert ended.code == 0, ended.err
    tally = Progress(folder).update()
    assert (tally.judged, tally.failed, tally.expected) == (PROPOSALS, 0, PROPOSALS)


def test_a_run_that_only_this_machine_works_on_ends_when_it_lacks_the_model(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PPV_BROKER_URL")
    running = place.start("run", "bases.txt", "--run", "alone", "--out", "out")
    folder = place.run_folder("alone")
    until(folder.exists, "the run")
    shutil.rmtree(place.folder / "models" / "base")  # before a worker has looked into it
    ended = place.end(running)
    assert ended.code == 2, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("ppv: run 'alone' cannot be finished here: no model at ")
    assert "`ppv resume alone`" in last
    assert not list(folder.failed_ids())


def test_what_nobody_repeats_is_over_and_workers_with_one_reason_count_together(
    broker: Broker, run: str
) -> None:
    waiting = Waiting(broker)
    for name in ("a@x", "b@y", "b@y"):
        waiting.say(run, name, "no model", passes=False)
    waiting.say(run, "c@z", "no store", passes=True)
    no_model, no_store = waiting.of(run)
    assert no_model == Wait("no model", False, ("a@x", "b@y"))
    assert no_model.line == "lacking on 2 workers: no model"
    assert no_store.line == "waiting on 1 worker: no store"
    key = f"ppv:waiting:{run}"
    assert 0 < broker.client.ttl(key) <= 60
    for member, said_at in broker.client.zrange(key, 0, -1, withscores=True):
        broker.client.zadd(key, {member: said_at - 61})
    assert waiting.of(run) == []
