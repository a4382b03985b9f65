"""Near-duplicate texts: one contract over both indexes, and what Redis keeps of it."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from pipeline.errors import ServiceError
from pipeline.prompter.near import MemoryNeighbours, Neighbours, bands
from pipeline.types import digest
from tests.conftest import REDIS_PASSWORD
from workers.broker import Broker
from workers.neighbours import RedisNeighbours

A, B, C, D = (digest(letter) for letter in "abcd")

MUG = (
    "A close photograph of a left hand that holds a red mug by its handle, with four fingers "
    "through it and the thumb on top, before a plain grey wall in soft light from a window."
)
KEY = "Two fingertips and a thumb pinch a small brass key above a wooden table at dusk."


def index_of(broker: Broker, run: str, threshold: float) -> RedisNeighbours:
    return RedisNeighbours(broker.client, run, threshold, broker.address)


Make = Callable[[float], Neighbours]


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest, broker: Broker, run: str) -> Make:
    if request.param == "memory":
        return MemoryNeighbours
    return lambda threshold: index_of(broker, run, threshold)


def test_a_text_belongs_to_the_first_id_that_claims_it(make: Make) -> None:
    neighbours = make(0.85)

    assert neighbours.claim([(A, MUG)]) == [True]
    assert neighbours.claim([(B, MUG), (B, KEY)]) == [False, True]
    assert neighbours.claim([(A, MUG)]) == [True]
    assert neighbours.claim([(A, KEY)]) == [False]


def test_case_punctuation_and_space_make_no_new_text(make: Make) -> None:
    neighbours = make(0.85)
    neighbours.claim([(A, MUG)])

    other = MUG.upper().replace(" ", "\n ").replace(",", " \N{EN DASH}") + "!"
    assert neighbours.claim([(B, other)]) == [False]


def test_a_nearly_same_text_is_not_new(make: Make) -> None:
    neighbours = make(0.6)
    neighbours.claim([(A, MUG)])

    near = MUG.replace("window", "lamp")  # 31 of 33 trigrams are common to both: Jaccard .91
    assert neighbours.claim([(B, near), (B, KEY)]) == [False, True]


def test_items_of_one_call_meet_each_other_in_order(make: Make) -> None:
    assert make(0.85).claim([(A, MUG), (B, MUG), (C, KEY), (A, KEY)]) == [True, False, True, False]


def test_nothing_of_a_text_that_is_not_new_is_kept(make: Make) -> None:
    left, right = (" ".join(f"{word}{n}" for n in range(20)) for word in ("mug", "key"))
    both = f"{left} {right}"
    assert set(bands(both, 0.3)) & set(bands(right, 0.3))
    neighbours = make(0.3)
    neighbours.claim([(A, left)])

    assert neighbours.claim([(B, both)]) == [False]
    assert neighbours.claim([(C, right)]) == [True]


def test_an_id_may_change_its_text(make: Make) -> None:
    neighbours = make(0.85)

    assert neighbours.claim([(A, MUG), (A, KEY), (A, MUG)]) == [True, True, True]


def test_short_texts_count_whole(make: Make) -> None:
    neighbours = make(0.85)

    assert neighbours.claim([(A, "red mug"), (B, "Red mug."), (B, "red"), (C, "blue mug")]) == [
        True,
        False,
        True,
        True,
    ]
    assert neighbours.claim([(A, "..."), (B, "")]) == [True, False]


def test_at_one_only_the_same_text_counts(make: Make) -> None:
    neighbours = make(1.0)
    neighbours.claim([(A, MUG)])

    assert neighbours.claim([(B, MUG + " today"), (C, MUG.lower())]) == [True, False]


def test_no_items_no_answers(make: Make) -> None:
    assert make(0.85).claim([]) == []


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.85, 0.95, 0.96, 0.99, 1.0])
def test_every_threshold_finds_the_same_text(threshold: float) -> None:
    assert bands(MUG, threshold) == bands(MUG.upper(), threshold)
    assert not set(bands(MUG, threshold)) & set(bands(KEY, threshold))
    assert {len(band) for band in bands(MUG, threshold)} == {6}


def test_the_nearer_the_likelier() -> None:
    """At .85, 8 bands of 16 rows find a Jaccard similarity of s with 1 - (1 - s^16)^8."""
    rng = random.Random(1)

    def found(common: int) -> float:
        """common: of 20 trigrams, so that .7 is 14."""
        count = 0
        for _ in range(400):
            words = [f"word{rng.randrange(3000)}" for _ in range(22)]
            near = " ".join(words[20 - common :])
            count += bool(set(bands(" ".join(words), 0.85)) & set(bands(near, 0.85)))
        return count / 400

    # Worked by hand: .026, .461, .990; three standard errors of 400 trials are .075 at most.
    assert found(14) == pytest.approx(0.026, abs=0.075)
    assert found(17) == pytest.approx(0.461, abs=0.075)
    assert found(19) == pytest.approx(0.990, abs=0.075)


# Redis


def test_of_workers_that_race_for_a_text_one_has_it(broker: Broker, run: str) -> None:
    start = Barrier(8)

    def race(index: int) -> bool:
        neighbours = index_of(broker, run, 0.85)
        start.wait()
        return neighbours.claim([(digest(index), MUG)])[0]

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(race, range(8))) == 1


def test_the_index_stays_compact_and_expires(broker: Broker, run: str) -> None:
    neighbours = index_of(broker, run, 0.85)
    rng = random.Random(1)
    texts = [" ".join(str(rng.random()) for _ in range(9)) for _ in range(500)]
    neighbours.rebuild([])
    neighbours.claim([(digest(text), text) for text in texts])

    hashes = list(broker.client.scan_iter(match=f"ppv:texts:{run}:????", count=1000))
    assert 3000 < len(hashes) <= 4000  # 4,000 bands over 16,384 hashes
    with broker.client.pipeline(transaction=False) as pipe:
        for key in hashes:
            pipe.object("encoding", key)
        assert set(pipe.execute()) <= {"ziplist", "listpack"}
        for key in hashes:
            pipe.ttl(key)
        assert all(86_400 < ttl <= 26 * 3600 for ttl in pipe.execute())
    assert 86_000 < broker.client.ttl(f"ppv:texts:{run}") <= 86_400


def test_a_claim_puts_off_the_expiry_of_all_once_an_hour(broker: Broker, run: str) -> None:
    neighbours = index_of(broker, run, 1.0)
    neighbours.rebuild([(A, MUG)])
    (mug,) = broker.client.scan_iter(match=f"ppv:texts:{run}:????", count=1000)
    broker.client.expire(mug, 4000)
    broker.client.expire(f"ppv:texts:{run}", 300)

    neighbours.claim([(B, KEY)])
    assert broker.client.ttl(mug) <= 4000
    assert broker.client.ttl(f"ppv:texts:{run}") > 86_000

    broker.client.delete(f"ppv:texts:{run}:refreshed")  # as an hour would
    neighbours.claim([(B, KEY)])
    assert broker.client.ttl(mug) > 86_400


def test_an_index_is_rebuilt_once_until_redis_forgets(broker: Broker, run: str) -> None:
    neighbours = index_of(broker, run, 0.85)
    assert not neighbours.is_whole()
    neighbours.rebuild(iter([(A, MUG)]))
    assert neighbours.is_whole()
    assert neighbours.claim([(B, MUG)]) == [False]

    unread = iter([(B, KEY)])
    index_of(broker, run, 0.85).rebuild(unread)
    assert next(unread) == (B, KEY)

    broker.client.delete(*broker.client.scan_iter(match=f"ppv:texts:{run}*", count=1000))
    neighbours.rebuild((digest(index), f"{KEY} {index}" * index) for index in range(600))
    assert neighbours.claim([(A, MUG), (A, KEY + " 1")]) == [True, False]


def test_a_full_index_takes_in_no_more_and_compares_with_what_it_has(
    broker: Broker, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.neighbours._MOST_BANDS", len(bands(MUG, 0.85)))
    neighbours = index_of(broker, run, 0.85)
    assert neighbours.claim([(A, MUG), (A, MUG), (B, KEY)]) == [True, True, True]
    assert neighbours.claim([(C, KEY), (C, MUG), (D, KEY)]) == [True, False, False]
    assert broker.client.get(f"ppv:texts:{run}:bands") == str(len(bands(MUG, 0.85)))


def test_who_dies_while_rebuilding_is_replaced(broker: Broker, run: str) -> None:
    def dying() -> Iterator[tuple[str, str]]:
        yield A, MUG
        raise KeyboardInterrupt

    neighbours = index_of(broker, run, 0.85)
    with pytest.raises(KeyboardInterrupt):
        neighbours.rebuild(dying())
    neighbours.claim([(B, KEY)])
    assert not neighbours.is_whole()
    assert 0 < broker.client.ttl(f"ppv:texts:{run}") <= 60  # a claim does not make it whole

    broker.client.delete(f"ppv:texts:{run}")  # as a minute would
    neighbours.rebuild([(A, MUG)])
    assert neighbours.claim([(C, MUG)]) == [False]


def test_the_error_names_the_address_but_not_the_password(run: str) -> None:
    broker = Broker(f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0")
    neighbours = index_of(broker, run, 0.85)
    verbs: list[Callable[[], object]] = [
        lambda: neighbours.claim([(A, MUG)]),
        neighbours.is_whole,
        lambda: neighbours.rebuild([]),
    ]
    for verb in verbs:
        with pytest.raises(ServiceError, match=r"redis://127\.0\.0\.1:1/0") as caught:
            verb()
        assert REDIS_PASSWORD not in str(caught.value)
    broker.close()
