"""What gets lost on the way, found missing and sent again with nobody watching."""

import time
from types import SimpleNamespace

import pytest
from kombu import Connection

from pipeline.types import Failure
from storage.runs import RunFolder
from tests.fleets import IN_FLIGHT, PER_BASE, Fleet, lines
from tests.place import until
from workers.broker import QUEUES, Broker
from workers.flight import Flight
from workers.mend import Mender


def test_a_run_finishes_though_messages_were_lost_and_nobody_watches(fleet: Fleet) -> None:
    fleet.enqueue("lost", lines(32))
    assert fleet.waiting() == 2
    fleet.broker.client.delete("prompt")
    fleet.start_mender()
    fleet.start(*QUEUES)
    tally = fleet.until_finished("lost")
    assert (tally.accepted, tally.failed) == (32 * PER_BASE, 0)
    until(lambda: not fleet.broker.client.keys("ppv:flight:*"), "nothing under way")
    until(lambda: not list(fleet.store.list("entrusted/")), "nothing entrusted")


def test_a_fleet_without_workers_loses_and_fails_nothing(fleet: Fleet) -> None:
    fleet.enqueue("absent", lines(32))
    waiting = fleet.broker.client.lrange("prompt", 0, -1)
    fleet.enqueue("lost", lines(1))
    fleet.broker.client.lpop("prompt")  # the newest
    fleet.start_mender()
    until(lambda: fleet.waiting() == 3, "what was lost, sent again: the mender has looked")
    assert fleet.broker.client.lrange("prompt", 1, -1) == waiting
    assert not list(fleet.folder("absent").failed_ids())


def test_what_is_lost_comes_again_while_other_work_of_its_run_waits(fleet: Fleet) -> None:
    """As what a worker takes along that dies with it, before Celery noted who has it."""
    fleet.enqueue("goes-on", lines(48))
    lost = fleet.broker.batches("goes-on")
    fleet.broker.client.rpop("prompt")
    assert lost is not None and len(lost) == 3 and fleet.waiting() == 2
    fleet.start_mender()
    until(lambda: fleet.waiting() == 3, "the lost one again, though others wait")
    assert fleet.broker.batches("goes-on") == lost
    fleet.start(*QUEUES)
    assert fleet.until_finished("goes-on").accepted == 48 * PER_BASE


def test_what_workers_hold_is_with_somebody(fleet: Fleet) -> None:
    fleet.start(*QUEUES, propose_s=1)
    fleet.feed("held", lines(64))
    until(lambda: fleet.tally("held").judged > 0, "the first records")
    broker, flight = fleet.broker, Flight(fleet.broker, "held")

    def all_are_seen() -> bool:
        with_workers = broker.client.hlen("unacked")
        return bool(with_workers) and flight.ids() == broker.batches("held")

    until(all_are_seen, "all that is under way, some of it with workers")
    fleet.until_finished("held")
    assert not flight.ids()


@pytest.mark.parametrize("fast_s", [1334, -1334])
@pytest.mark.parametrize("others_are_right", [True, False])
def test_what_a_worker_with_a_wrong_clock_had_comes_back_in_time(
    fast_s: int,
    others_are_right: bool,
    broker: Broker,
    redis_url: str,
    run: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = SimpleNamespace(time=lambda: time.time() + fast_s)
    monkeypatch.setattr("kombu.transport.redis.time", wrong.time)
    monkeypatch.setattr("workers.consumer.time", wrong)
    names = {f"unacked{part}_key": f"unacked{part}-{run}" for part in ("", "_index", "_mutex")}
    options = names | {"visibility_timeout": 2}
    with Connection(
        redis_url, transport="workers.consumer:Transport", transport_options=options
    ) as connection:
        queue = connection.SimpleQueue(run)
        queue.put({})
        taken = queue.get(timeout=5)
        channel = taken.channel
        channel.qos.restore_visible(interval=1)
        assert broker.client.llen(run) == 0, "it was taken just now"
        if others_are_right:
            monkeypatch.undo()
        time.sleep(2.5)
        channel.qos.restore_visible(interval=1)
        assert broker.client.llen(run) == 1
    broker.client.delete(run)


def the_failure_of_poison(fleet: Fleet) -> Failure:
    """Of a run with one poisonous base prompt among four, once the others are accepted."""
    one_each = ("--set", "prompter.prompts_per_base=1", "--set", "proposer.images_per_prompt=1")
    fleet.enqueue("poison", [*lines(3), "a hand with poison"], *one_each)
    tally = fleet.until_finished("poison")
    assert (tally.accepted, tally.failed) == (3, 1)
    folder = fleet.folder("poison")
    (failure,) = map(folder.read_failure, folder.failed_ids())
    assert failure.subject == "a hand with poison"
    return failure


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prompt", "verify"])
def test_what_never_comes_ends_as_a_failure_and_the_rest_goes_on(stage: str, fleet: Fleet) -> None:
    fleet.start(*QUEUES, loses="poison", loses_in=stage)
    fleet.start_mender()
    failure = the_failure_of_poison(fleet)
    assert "sent again 3 times, and nothing came of it" in failure.error


def test_what_workers_die_of_is_given_up_alone_and_the_rest_goes_on(fleet: Fleet) -> None:
    fleet.start(*QUEUES, kills="poison")
    failure = the_failure_of_poison(fleet)
    assert failure.stage == "prompt"
    assert "it came back 4 times: workers died of it" in failure.error


def test_a_run_that_cannot_be_read_is_mended_by_nobody_and_the_others_are(fleet: Fleet) -> None:
    fleet.enqueue("a-newer", lines(1))
    key = "runs/a-newer/run.json"
    fleet.store.put(key, fleet.store.get(key).replace(b"{", b'{"of_tomorrow": 1,', 1))
    fleet.enqueue("lost", lines(32))
    fleet.broker.client.delete("prompt")
    mender = fleet.start_mender()
    fleet.start(*QUEUES)
    assert fleet.until_finished("lost").accepted == 32 * PER_BASE
    until(lambda: list(fleet.store.list("entrusted/")) == ["entrusted/a-newer"], "the rest done")
    assert mender.alive


def test_a_run_stays_entrusted_when_more_is_enqueued_as_it_is_let_go(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.start(*QUEUES)
    fleet.enqueue("grows", lines(16))
    fleet.until_finished("grows")
    withdraw = RunFolder.withdraw

    def more_comes_first(folder: RunFolder) -> None:
        folder.write(folder.read().model_copy(update={"base_prompts": None}))
        folder.entrust()
        withdraw(folder)

    monkeypatch.setattr(RunFolder, "withdraw", more_comes_first)
    Mender(fleet.store, fleet.broker, fleet.settings).look()
    assert list(fleet.store.list("entrusted/")) == ["entrusted/grows"]


def test_a_redis_that_is_wiped_in_mid_run_costs_time_only(fleet: Fleet) -> None:
    workers = fleet.start(*QUEUES, propose_s=0.5)
    fleet.start_mender()
    fleet.feed("wiped", lines(160))
    until(lambda: fleet.tally("wiped").judged > 0, "first records")
    fleet.broker.client.flushall()
    tally = fleet.until_finished("wiped")
    assert (tally.accepted, tally.failed) == (160 * PER_BASE, 0)
    assert all(worker.alive for worker in workers)


def test_workers_outlive_a_redis_that_takes_no_writes(fleet: Fleet) -> None:
    """As one whose disk is full; this one misses replicas, which it says in the same way."""
    workers = fleet.start(*QUEUES, propose_s=0.2)
    fleet.start_mender()
    fleet.feed("refused", lines(80))
    until(lambda: fleet.tally("refused").judged > 0, "first records")
    fleet.broker.client.config_set("min-replicas-to-write", 1)
    time.sleep(4)
    fleet.broker.client.config_set("min-replicas-to-write", 0)
    assert fleet.until_finished("refused").accepted == 80 * PER_BASE
    assert all(worker.alive for worker in workers)


@pytest.mark.slow
def test_a_full_window_of_lost_messages_does_not_stop_whoever_feeds(fleet: Fleet) -> None:
    feeding = fleet.feed("leaked", lines(160))
    until(lambda: fleet.waiting() == IN_FLIGHT / (16 * PER_BASE), "a full window")
    fleet.broker.client.delete("prompt")
    fleet.start(*QUEUES)
    until(lambda: feeding.poll() is not None, "all sent")
    assert feeding.returncode == 0
    fleet.start_mender()  # whoever feeds may end before all that was lost has found room
    assert fleet.until_finished("leaked").accepted == 160 * PER_BASE


def test_two_enqueue_the_same_run_at_once_and_nothing_is_lost_or_done_twice(fleet: Fleet) -> None:
    """Each has base prompts that the other has not, and some that it has."""
    everything = lines(400)
    pair = [fleet.feed("both", part) for part in (everything[:300], everything[100:])]
    fleet.start(*QUEUES)
    until(lambda: all(process.poll() is not None for process in pair), "both")
    assert [process.returncode for process in pair] == [0, 0]
    sent = [base.text for batch in fleet.folder("both").inputs() for base in batch.bases]
    assert sorted(sent) == sorted(everything)
    assert fleet.folder("both").read().base_prompts == 400
    assert fleet.until_finished("both").accepted == 400 * PER_BASE


@pytest.mark.slow
def test_another_feeds_on_when_the_first_was_killed(fleet: Fleet) -> None:
    first = fleet.feed("killed", lines(160))
    until(lambda: fleet.waiting() > 0, "a first message")
    first.kill()
    fleet.start(*QUEUES)
    fleet.start_mender()
    fleet.enqueue("killed", lines(160))
    assert fleet.until_finished("killed").accepted == 160 * PER_BASE


def test_what_is_under_way_is_counted_over_all_stages(fleet: Fleet) -> None:
    """A verifier that nobody runs stops the sending, not the filling of Redis."""
    fleet.start("prompt", "propose")
    fleet.feed("slow", lines(400))
    flight = Flight(fleet.broker, "slow")
    full = IN_FLIGHT // 64
    until(lambda: fleet.broker.depths() == {"prompt": 0, "propose": 0, "verify": full}, "a window")
    assert flight.share(fleet.folder("slow").read(), IN_FLIGHT) == (IN_FLIGHT, IN_FLIGHT)
    assert len(list(fleet.folder("slow").inputs())) == IN_FLIGHT // (16 * PER_BASE) + 1
    fleet.start("verify")
    assert fleet.until_finished("slow").accepted == 400 * PER_BASE
