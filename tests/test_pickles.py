"""A message that could run code: whoever reaches the broker may send one."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from kombu import Connection, Queue

from tests.place import until
from workers.broker import Broker
from workers.embedded import broker_url, services
from workers.settings import Settings


class Evil:
    """What unpickling it would do: make a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


def test_a_pickled_message_is_taken_off_the_queue_and_not_read(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / ".ppv", store_url=f"file://{tmp_path}/store")
    log, ran = tmp_path / "worker.log", tmp_path / "ran"
    worker = [sys.executable, "-m", "celery", "--app=workers", "worker", "--queues=prompt"]
    root = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": root, "PPV_STORE_URL": settings.store_url}
    with services(settings):
        url = broker_url(settings)
        with Connection(url) as connection, connection.Producer(serializer="pickle") as producer:
            queue = Queue("prompt", routing_key="prompt")
            headers = {"task": "prompt", "id": "1", "lang": "py"}
            body = ([Evil(ran)], {}, {})
            producer.publish(body, routing_key="prompt", declare=[queue], headers=headers)
        broker = Broker(url)
        assert broker.depths()["prompt"] == 1
        with log.open("w") as out:
            process = subprocess.Popen(
                worker, cwd=tmp_path, env=os.environ | environment, stdout=out, stderr=out
            )
        try:
            until(lambda: broker.depths()["prompt"] == 0, "the message is taken")
            until(
                lambda: "refused a message on the queue prompt" in log.read_text(),
                "it is refused",
                60,
            )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            broker.close()
    assert not ran.exists()
