"""What is under way: bounded, shared between runs, and counted anew when Redis forgot."""

from pathlib import Path

import pytest

from pipeline.config import Priority, Run
from pipeline.types import BasePrompt, Batch, DetailedPrompt, PromptBatch, ProposalBatch, digest
from storage.folder import FolderStore
from tests.place import until
from workers import canvas
from workers.broker import Broker
from workers.dispatch import new_run
from workers.flight import RUNS, Entry, Flight
from workers.settings import Settings

WINDOW = 1024
PER_MESSAGE = 16 * 4 * 2  # 16 base prompts, 4 detailed prompts each, 2 images each


@pytest.fixture(autouse=True)
def nobody_else(broker: Broker) -> None:
    """Runs of other tests have no share of this window."""
    for name in broker.client.smembers(RUNS):
        broker.client.delete(f"{RUNS}:{name}")


@pytest.fixture
def frozen(tmp_path: Path) -> Run:
    return new_run(Settings(), "any", FolderStore(tmp_path))


def message(number: int) -> PromptBatch:
    bases = tuple(BasePrompt(text=f"a hand, number {16 * number + n}") for n in range(16))
    return PromptBatch(run="any", bases=bases)


def made_of(run: Run, batch: PromptBatch) -> list[ProposalBatch]:
    prompts = [
        DetailedPrompt(
            id=digest([base.text, index]), base=base.text, index=index, text=base.text, category="x"
        )
        for base in batch.bases
        for index in range(4)
    ]
    return list(canvas.batches(run, prompts))


def fill(flight: Flight, run: Run, priority: Priority = "normal") -> int:
    """Send until there is no more room; how many messages that took."""
    run, sent = run.model_copy(update={"priority": priority}), 0
    while flight.enter(run, message(sent), WINDOW) is Entry.ENTERED:
        sent += 1
    return sent


def test_a_run_has_a_window_under_way_until_its_work_is_stored(
    broker: Broker, frozen: Run, run: str
) -> None:
    flight = Flight(broker, run)
    assert fill(flight, frozen) == WINDOW // PER_MESSAGE
    assert flight.share(frozen, WINDOW) == (WINDOW, WINDOW)
    made = made_of(frozen, message(0))
    assert len(made) == 2
    assert flight.move(frozen, message(0), made) is Entry.ENTERED
    assert flight.enter(frozen, message(8), WINDOW) is Entry.FULL, "drawn is not yet judged"
    flight.leave(made[0])
    assert flight.enter(frozen, message(8), WINDOW) is Entry.FULL, "half a message of room"
    flight.leave(made[1])
    assert flight.enter(frozen, message(8), WINDOW) is Entry.ENTERED


def test_what_is_under_way_can_be_sent_again_until_it_is_stored(
    broker: Broker, frozen: Run, run: str
) -> None:
    flight, made = Flight(broker, run), made_of(frozen, message(0))
    flight.enter(frozen, message(0), WINDOW)
    assert flight.ids() == {message(0).id}
    assert flight.message(message(0).id) == message(0)
    flight.move(frozen, message(0), made)
    assert flight.ids() == {batch.id for batch in made}
    assert [flight.message(batch.id) for batch in made] == made
    for batch in made:
        flight.leave(batch)
    assert not flight.ids()
    assert flight.message(made[0].id) is None


def test_a_message_that_is_delivered_twice_counts_once(
    broker: Broker, frozen: Run, run: str
) -> None:
    flight, made = Flight(broker, run), made_of(frozen, message(0))
    assert flight.enter(frozen, message(0), WINDOW) is Entry.ENTERED
    assert flight.enter(frozen, message(0), WINDOW) is Entry.THERE
    for _ in range(2):
        flight.move(frozen, message(0), made)
    assert flight.share(frozen, WINDOW).under_way == PER_MESSAGE
    for _ in range(2):
        flight.leave(made[0])
    assert flight.share(frozen, WINDOW).under_way == PER_MESSAGE / 2


def test_a_message_larger_than_the_window_goes_alone(broker: Broker, frozen: Run, run: str) -> None:
    flight = Flight(broker, run)
    assert flight.enter(frozen, message(0), 10) is Entry.ENTERED
    assert flight.enter(frozen, message(1), 10) is Entry.FULL


@pytest.mark.parametrize(
    ("first", "second", "shares"),
    [("normal", "normal", (4, 4)), ("high", "normal", (6, 1)), ("normal", "low", (6, 1))],
)
def test_runs_share_the_window_by_their_priorities(
    first: Priority, second: Priority, shares: tuple[int, int], broker: Broker, frozen: Run
) -> None:
    one, other = Flight(broker, f"one-{first}-{second}"), Flight(broker, f"two-{first}-{second}")
    alone = fill(one, frozen, first)
    assert alone == WINDOW // PER_MESSAGE
    assert fill(other, frozen, second) == shares[1], "room at once, though the window is full"
    leave: list[Batch] = [message(n) for n in range(alone)]
    while fill(one, frozen, first) == 0:  # what it has over its share has to land first
        done = leave.pop()
        assert isinstance(done, PromptBatch)
        one.move(frozen, done, [])
    assert one.share(frozen, WINDOW).under_way // PER_MESSAGE == shares[0]
    assert fill(other, frozen, second) == 0
    for flight in (one, other):
        flight.clear()


def test_a_run_that_has_nothing_left_gives_its_share_back(
    broker: Broker, frozen: Run, run: str
) -> None:
    one, other = Flight(broker, run), Flight(broker, f"{run}-2")
    assert one.enter(frozen, message(0), WINDOW) is Entry.ENTERED
    assert other.enter(frozen, message(0), WINDOW) is Entry.ENTERED
    other.move(frozen, message(0), [])
    assert one.share(frozen, WINDOW).share == WINDOW / 2, "it may be about to send more"
    until(lambda: one.share(frozen, WINDOW).share == WINDOW, "the whole window", deadline_s=30)


def test_nothing_of_a_cancelled_run_is_sent(broker: Broker, frozen: Run, run: str) -> None:
    flight = Flight(broker, run)
    flight.enter(frozen, message(0), WINDOW)
    broker.cancel(run)
    assert flight.enter(frozen, message(1), WINDOW) is Entry.CANCELLED
    assert flight.move(frozen, message(0), made_of(frozen, message(0))) is Entry.CANCELLED
    assert flight.share(frozen, WINDOW).under_way == 0
    broker.revive(run)
    assert flight.enter(frozen, message(1), WINDOW) is Entry.ENTERED


def test_a_count_that_was_wiped_begins_anew_and_is_never_below_zero(
    broker: Broker, frozen: Run, run: str
) -> None:
    flight = Flight(broker, run)
    flight.enter(frozen, message(0), WINDOW)
    flight.enter(frozen, message(1), WINDOW)
    flight.clear()
    flight.move(frozen, message(0), [])
    assert flight.share(frozen, WINDOW).under_way == 0
    flight.enter(frozen, message(2), WINDOW)
    assert flight.share(frozen, WINDOW).under_way == PER_MESSAGE
