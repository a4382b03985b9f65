"""RabbitMQ in Redis' place, by PPV_BROKER_URL alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kombu import Connection

from pipeline.errors import InputError, ServiceError
from tests.fleets import PER_BASE, Fleet, a_fleet, lines
from tests.place import Place, until
from tests.rabbitmq import PASSWORD, RabbitServer
from tests.tiny import save_tiny_pipeline, save_tiny_verifier
from workers.broker import QUEUES, Broker
from workers.embedded import Embedded
from workers.snapshot import Snapshot

BASES = ["a hand with a red mug", "a hand with a blue bag"]
PROPOSALS = len(BASES) * 4 * 2


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    server.start()
    yield server
    server.end()


@pytest.fixture
def place(tmp_path: Path, rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    save_tiny_pipeline(tmp_path / "base", text_length=200)
    save_tiny_verifier(tmp_path / "verifier")
    monkeypatch.setenv("PPV_BROKER_URL", rabbit.url)
    place = Place(tmp_path, tmp_path, BASES, num_inference_steps=50)
    yield place
    place.clear()


def test_a_run_goes_through_rabbitmq_and_outlives_its_kill_9(
    place: Place, rabbit: RabbitServer
) -> None:
    running = place.start("run", "bases.txt", "--run", "rabbit", "--out", "out")
    images = place.folder / ".ppv" / "s3" / "ppv" / "runs" / "rabbit" / "images"
    until(lambda: images.is_dir() and any(images.iterdir()), "a first picture")
    embedded = Embedded.model_validate_json((place.folder / ".ppv" / "embedded.json").read_text())
    with redis.Redis.from_url(embedded.redis_url) as shared:
        assert not [queue for queue in QUEUES if shared.exists(queue)], "a message went by Redis"
    asked = Broker(rabbit.url, embedded.redis_url)
    assert asked.depths().keys() == set(QUEUES)
    rabbit.kill()
    with pytest.raises(ServiceError, match="no broker answers"):
        asked.depths()
    rabbit.start()
    assert asked.depths().keys() == set(QUEUES), "it connects anew"
    asked.close()
    ended = place.end(running)
    assert ended.code == 0, ended.err
    status = place.status("rabbit")
    assert (status["expected"], status["missing"], status["failed"]) == (PROPOSALS, 0, 0)


@pytest.fixture
def rabbit_fleet(
    tmp_path: Path, rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    monkeypatch.setenv("PPV_BROKER_URL", rabbit.url)
    with a_fleet(tmp_path) as fleet:
        yield fleet


def test_what_a_rabbitmq_lost_is_sent_again_and_a_cancelled_run_is_dropped(
    rabbit_fleet: Fleet, rabbit: RabbitServer
) -> None:
    fleet = rabbit_fleet
    fleet.enqueue("lost", lines(16))
    with Connection(rabbit.url) as connection:
        assert connection.default_channel.queue_purge("prompt") == 1
    fleet.enqueue("gone", lines(16, "bag"))
    assert fleet.place.ppv("cancel", "gone").code == 0
    assert fleet.waiting() == 1, "which only a worker can drop"
    fleet.start(*QUEUES)
    fleet.start_mender()
    assert fleet.until_finished("lost").accepted == 16 * PER_BASE
    assert fleet.waiting() == 0
    assert fleet.tally("gone").prompted == 0
    # What workers count is in the Redis beside it.
    until(lambda: Snapshot.take(fleet.broker).total("judged") >= 16 * PER_BASE, "all counted")
    assert [Snapshot.take(fleet.broker).workers(queue) for queue in QUEUES] == [1, 1, 1]


def test_waiting_messages_are_counted_and_a_queue_that_nobody_made_is_empty(
    rabbit: RabbitServer, redis_url: str
) -> None:
    broker = Broker(rabbit.url, redis_url)
    broker.ping()
    with Connection(rabbit.url) as connection:
        queue = connection.SimpleQueue("verify")
        queue.put("one")
        queue.put("two")
        assert broker.depths() == {"prompt": 0, "propose": 0, "verify": 2}
        queue.clear()
        queue.queue.delete()
    broker.close()


def test_a_wrong_password_and_an_absent_broker_are_said_without_it(
    rabbit: RabbitServer, redis_url: str
) -> None:
    wrong = Broker(rabbit.url.replace(PASSWORD, "never-the-word"), redis_url)
    with pytest.raises(ServiceError, match=r"refused user or password") as refused:
        wrong.ping()
    absent = Broker("amqp://ppv:never-the-word@127.0.0.1:1//", redis_url)
    with pytest.raises(ServiceError, match=r"no broker answers at amqp://127\.0\.0\.1:1") as away:
        absent.ping()
    assert "never-the-word" not in f"{refused.value} {away.value}"


@pytest.mark.parametrize("url", ["http://host", "redis://host:port/0", "kafka://host"])
def test_an_address_that_is_no_broker_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(InputError, match=r"redis://.* amqp://"):
        Broker(url)
