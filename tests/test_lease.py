"""What one process at a time may do."""

import os
import signal
import subprocess
import sys

import pytest

from tests.place import until
from workers.broker import Broker
from workers.lease import Lease

HOLD = """
import sys, time
from workers.broker import Broker
from workers.lease import Lease
assert Lease(Broker(sys.argv[1]), sys.argv[2], life_s=1.0).take()
print("held", flush=True)
time.sleep(600)
"""


def test_one_at_a_time_holds_it_until_it_is_released(broker: Broker, run: str) -> None:
    one, other = Lease(broker, run), Lease(broker, run)
    assert one.take() and one.take()
    assert not other.take()
    assert one.is_ours() and not other.is_ours()
    one.release()
    assert other.take()
    other.release()


def test_who_lost_it_to_another_is_told(broker: Broker, run: str) -> None:
    one, other = Lease(broker, run), Lease(broker, run)
    assert one.take()
    broker.client.delete(run)
    assert other.take()
    assert not one.is_ours()
    one.release()
    assert other.is_ours(), "what is another's is not released"
    other.release()


def test_it_lives_as_long_as_its_process_and_no_longer(
    redis_url: str, broker: Broker, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", HOLD, redis_url, run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        other = Lease(broker, run)
        left_ms = broker.client.pttl(run)
        until(lambda: broker.client.pttl(run) > left_ms, "that it is renewed", deadline_s=60)
        assert not other.take()
        os.kill(holder.pid, signal.SIGKILL)
        until(other.take, "that it ends", deadline_s=60)
        other.release()
