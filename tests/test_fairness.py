"""Runs beside each other, and runs that are stopped."""

import json
import signal
import time
from collections.abc import Iterable, Iterator

import pytest

from pipeline.types import BasePrompt
from tests.fleets import IN_FLIGHT, PER_BASE, Fleet, lines
from tests.place import until
from workers.broker import QUEUES, Broker
from workers.dispatch import Enqueued, enqueue, open_run
from workers.embedded import Embedded


def judged(fleet: Fleet, run: str) -> list[float]:
    """When each message of 64 proposals had its records, sorted."""
    folder = fleet.place.folder / "store" / "runs" / run / "records"
    return sorted(file.stat().st_mtime for file in folder.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("priority", "least"), [("normal", 0.35), pytest.param("high", 0.6, marks=pytest.mark.slow)]
)
def test_a_short_run_is_not_kept_waiting_by_a_long_one(
    priority: str, least: float, fleet: Fleet
) -> None:
    """least: the part of what is judged from then on that is the short run's."""
    fleet.start(*QUEUES, propose_s=0.2)
    long = fleet.feed("long", lines(16_000))
    until(lambda: len(judged(fleet, "long")) > 4, "the long run under way")
    fleet.feed("short", lines(320), "--priority", priority)
    until(lambda: len(judged(fleet, "short")) == 320 * PER_BASE / 64, "the short run")
    mine = judged(fleet, "short")
    others = [at for at in judged(fleet, "long") if mine[0] <= at <= mine[-1]]
    assert len(mine) / (len(mine) + len(others)) > least
    assert long.poll() is None
    fleet.until_finished("short")
    status = fleet.place.status("long")
    assert (status["priority"], status["missing"] > 0) == ("normal", True)
    until(lambda: 0 < fleet.place.status("long")["in_flight"] <= IN_FLIGHT, "its share again")


def test_a_cancelled_run_leaves_redis_within_seconds_though_nobody_works(fleet: Fleet) -> None:
    fleet.enqueue("other", lines(16, "bag"))
    feeding = fleet.feed("gone", lines(160))
    until(lambda: fleet.waiting() == 3, "its half of the window, and the other run's message")
    started = time.monotonic()
    ended = fleet.place.ppv("cancel", "gone")
    assert ended.code == 0, ended.err
    assert fleet.waiting() == 1, "the other run's"
    assert time.monotonic() - started < 60, "seconds, on a machine that is busy with other things"
    stopped = fleet.place.end(feeding)
    assert (stopped.code, "was cancelled" in stopped.err) == (1, True)
    assert not fleet.broker.client.exists("ppv:flight:gone")
    assert list(fleet.store.list("entrusted/")) == ["entrusted/other"]

    fleet.start(*QUEUES)
    assert fleet.until_finished("other").accepted == 16 * PER_BASE
    assert fleet.tally("gone").judged == 0
    again = fleet.place.ppv("resume", "gone", "--out", "out")
    assert again.code in (0, 1), again.err  # pictures that do not exist cannot be exported
    tally = fleet.tally("gone")
    assert tally.base_prompts > 0
    assert (tally.accepted, tally.missing) == (tally.base_prompts * PER_BASE, 0)


def test_what_a_worker_has_of_a_cancelled_run_does_not_come_back(fleet: Fleet) -> None:
    (proposer,) = fleet.start("propose", propose_s=120)
    fleet.start("prompt")
    fleet.enqueue("held", lines(8))
    until(lambda: fleet.broker.client.hlen("unacked"), "a worker that draws")
    until(lambda: fleet.broker.depths()["prompt"] == 0, "all prompts")
    fleet.broker.cancel("held")
    assert fleet.broker.client.hlen("unacked") == 0
    assert fleet.broker.client.zcard("unacked_index") == 0
    assert fleet.waiting() == 0
    assert proposer.alive


def test_a_redis_that_drops_keys_when_full_is_refused_in_one_line(fleet: Fleet) -> None:
    client = fleet.broker.client
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert fleet.place.ppv("doctor").code != 3, "it has no limit, so it never drops any"
    client.config_set("maxmemory", 100_000_000)
    for command in (("enqueue", "-", "--run", "x"), ("run", "-", "--run", "x"), ("doctor",)):
        ended = fleet.place.ppv(*command, stdin="a hand with a mug\n")
        assert ended.code == 2, ended.err
        (said,) = [line for line in f"{ended.out}{ended.err}".splitlines() if "allkeys-lru" in line]
        assert "set noeviction there" in said
        assert _password(fleet) not in said
    client.config_set("maxmemory-policy", "noeviction")
    Broker.ping(fleet.broker)


def test_what_is_under_way_is_said_by_status_and_its_store_alone_suffices(fleet: Fleet) -> None:
    fleet.enqueue("shown", lines(32), "--priority", "low")
    status = fleet.place.status("shown")
    assert (status["priority"], status["in_flight"], status["share"]) == ("low", 256, IN_FLIGHT)
    assert "256 proposals are under way, of 512" in fleet.place.ppv("status", "shown").out
    alone = fleet.place.ppv("status", "shown", "--json", "--set", "broker_url=redis://127.0.0.1:1")
    assert json.loads(alone.out)["in_flight"] is None
    assert json.loads(alone.out)["missing"] == 32 * PER_BASE


def test_an_interrupted_enqueue_leaves_its_place_to_the_next(fleet: Fleet) -> None:
    first = fleet.feed("handed", lines(160))
    until(lambda: fleet.waiting() == 4, "a full window")
    first.send_signal(signal.SIGINT)
    assert fleet.place.end(first).code == 130
    assert not fleet.broker.client.exists("ppv:feeding:handed")


def test_who_lost_the_turn_sends_nothing_of_what_the_other_sent_meanwhile(fleet: Fleet) -> None:
    bases = [BasePrompt(text=text) for text in lines(40)]
    folder = open_run(fleet.store, fleet.broker, fleet.settings, "shared")
    others: list[Enqueued] = []

    def feed(some: Iterable[BasePrompt]) -> Enqueued:
        return enqueue(folder, some, fleet.broker, fleet.settings.dispatch)

    def interrupted() -> Iterator[BasePrompt]:
        yield bases[0]  # once more, so that messages and what is looked up at once are not the same
        for number, base in enumerate(bases):
            if number == 20:  # among what is looked up before the first message is sent
                fleet.broker.client.delete("ppv:feeding:shared")
                others.append(feed(bases[8:]))
            yield base

    first, (other,) = feed(interrupted()), others
    assert (first.sent, first.known, first.duplicates) == (8, 32, 1)
    assert (other.sent, other.known, other.duplicates) == (32, 0, 0)
    sent = [base.text for batch in folder.inputs() for base in batch.bases]
    assert sorted(sent) == sorted(base.text for base in bases)
    assert folder.read().base_prompts == 40


def _password(fleet: Fleet) -> str:
    state = (fleet.settings.state_dir / "embedded.json").read_text()
    return Embedded.model_validate_json(state).redis_password
