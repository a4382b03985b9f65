"""Admission to a paid endpoint, on a real Redis: what all workers of a run share."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from uuid import uuid4

import pytest

from pipeline.config import EndpointConfig
from pipeline.errors import ServiceError
from tests.conftest import REDIS_PASSWORD
from workers.admission import Admission, Claim, Decision, Kind
from workers.broker import Broker

LIMITS = EndpointConfig()


@pytest.fixture
def admission(broker: Broker, run: str) -> Admission:
    return Admission(broker.client, run, broker.address)


def ask(
    admission: Admission,
    key: str = "key",
    holder: str = "me",
    limits: EndpointConfig = LIMITS,
    tokens: int = 0,
    usd: float = 0.0,
) -> Decision:
    return admission.admit(key, holder, limits, tokens, usd)


def poll(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# One request, one asker


def test_of_threads_that_race_for_a_request_one_goes(admission: Admission) -> None:
    start = Barrier(8)

    def race(holder: int) -> Kind:
        start.wait()
        return ask(admission, holder=str(holder)).kind

    with ThreadPoolExecutor(8) as threads:
        kinds = list(threads.map(race, range(8)))

    assert kinds.count(Kind.GO) == 1
    assert kinds.count(Kind.TAKEN) == 7


CHILD = """
import os, sys, time
from pipeline.config import EndpointConfig
from workers.admission import Admission
from workers.broker import Broker
broker = Broker(os.environ["URL"])
admission = Admission(broker.client, sys.argv[1], broker.address, claim_s=0.8)
sys.stdin.readline()
limits = EndpointConfig(spend_limit_usd=1.0)
print(admission.admit("key", str(os.getpid()), limits, 0, 0.9).kind.name, flush=True)
time.sleep(60)
"""


def start_child(redis_url: str, run: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, run],
        env={**os.environ, "URL": redis_url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_race_and_the_killed_ones_claim_and_dollars_return(
    redis_url: str, run: str, admission: Admission
) -> None:
    limits = EndpointConfig(spend_limit_usd=1.0)
    children = [start_child(redis_url, run) for _ in range(2)]
    try:
        kinds = []
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            assert child.stdout is not None
            kinds.append(child.stdout.readline().strip())
        assert sorted(kinds) == ["GO", "TAKEN"]

        # The claim outlives its 0.8 s for as long as its process does, dollars and all.
        end = time.monotonic() + 1.6
        while time.monotonic() < end:
            assert admission.under_way() == 1
            assert ask(admission, "other", limits=limits, usd=0.2).kind is Kind.WAIT
            time.sleep(0.1)
    finally:
        for child in children:
            child.kill()
            child.communicate()

    poll(lambda: admission.under_way() == 0)
    assert ask(admission, limits=limits, usd=1.0).kind is Kind.GO


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_keeps_its_own_claims_and_not_its_parents(broker: Broker, run: str) -> None:
    admission = Admission(broker.client, run, broker.address, claim_s=0.6)
    reading, writing = os.pipe()

    def hold() -> None:
        ask(admission, "parent's")
        if os.fork():
            time.sleep(60)
        os.close(writing)
        ask(admission, "child's")
        os.read(reading, 1)  # until the test closes its end
        os._exit(0)

    parent = multiprocessing.get_context("fork").Process(target=hold)
    parent.start()
    try:
        poll(lambda: admission.under_way() == 2)
        parent.kill()
        parent.join()
        poll(lambda: admission.under_way() == 1)
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            assert admission.under_way() == 1
            time.sleep(0.05)
        assert ask(admission, "child's", holder="test").kind is Kind.TAKEN
    finally:
        os.close(writing)
        os.close(reading)
    poll(lambda: admission.under_way() == 0)


def test_only_the_holder_prolongs_a_claim(admission: Admission, broker: Broker, run: str) -> None:
    def expiry() -> float:
        return float(broker.client.zscore(f"ppv:admission:{run}:claims", "key") or 0)

    ask(admission, holder="me")
    before = expiry()

    admission.renew(Claim("key", "you"), Claim("other", "me"))
    assert expiry() == before
    admission.renew(Claim("other", "me"), Claim("key", "me"))
    assert expiry() > before
    assert admission.under_way() == 1


def test_who_asks_twice_goes_and_reserves_once(admission: Admission) -> None:
    limits = EndpointConfig(spend_limit_usd=1.0)

    assert ask(admission, limits=limits, usd=0.6).kind is Kind.GO
    assert ask(admission, limits=limits, usd=0.6).kind is Kind.GO
    assert ask(admission, "other", limits=limits, usd=0.4).kind is Kind.GO


def test_only_the_holder_ends_a_claim(admission: Admission) -> None:
    ask(admission, holder="me")

    admission.settle("key", "you", usd=0.1, tokens=0)
    admission.release("key", "you")
    assert admission.under_way() == 1

    admission.settle("key", "me", usd=0.1, tokens=0)
    assert admission.under_way() == 0
    assert ask(admission, holder="you").kind is Kind.GO


# The window


def test_no_more_than_the_window_are_under_way(admission: Admission) -> None:
    limits = EndpointConfig(concurrency=3)

    decisions = [ask(admission, str(index), limits=limits) for index in range(4)]

    assert [decision.kind for decision in decisions] == [Kind.GO] * 3 + [Kind.WAIT]
    assert 0 < decisions[3].wait_s <= 0.2
    admission.release("0", "me")
    assert ask(admission, "3", limits=limits).kind is Kind.GO


def test_the_window_halves_once_a_second_and_grows_by_its_inverse(admission: Admission) -> None:
    limits = EndpointConfig(concurrency=8)
    ask(admission, limits=limits)
    assert admission.window() is None

    admission.release("key", "me", busy=True, overloaded=True)
    shrunk = time.monotonic()
    admission.release("key", "me", busy=True, overloaded=True)
    assert admission.window() == 4

    def halved() -> bool:
        admission.release("key", "me", busy=True, overloaded=True)
        return admission.window() == 2

    poll(halved)
    assert time.monotonic() - shrunk > 0.9

    for expected in (2.5, 2.9, 3.244828):  # 2 + 1/2, 2.5 + 1/2.5, 2.9 + 1/2.9
        admission.settle("key", "me", usd=0, tokens=0)
        assert admission.window() == expected
    decisions = [ask(admission, str(index), limits=limits).kind for index in range(4)]
    assert decisions == [Kind.GO] * 3 + [Kind.WAIT]
    for _ in range(30):  # (8**2 - 3.24**2) / 2 = 27 successes, more or less
        admission.settle("key", "me", usd=0, tokens=0)
    assert admission.window() is None


def test_the_window_never_closes(admission: Admission) -> None:
    limits = EndpointConfig(concurrency=1)
    ask(admission, limits=limits)

    admission.release("key", "me", busy=True, overloaded=True)

    assert admission.window() == 1
    assert ask(admission, limits=limits).kind is Kind.GO


# Pauses


def test_all_wait_for_the_longest_pause(admission: Admission) -> None:
    start = time.monotonic()
    admission.release("a", "me", busy=True, overloaded=True, retry_after_s=0.6)
    admission.release("b", "me", busy=True, overloaded=True, retry_after_s=0.1)

    decision = ask(admission)
    assert decision.kind is Kind.WAIT
    assert 0.3 < decision.wait_s < 0.6 * 1.5
    poll(lambda: ask(admission).kind is Kind.GO)
    assert 0.6 <= time.monotonic() - start < 2


def test_a_pause_ends_after_ten_minutes(admission: Admission) -> None:
    admission.release("a", "me", busy=True, overloaded=True, retry_after_s=86400)

    assert 599 < ask(admission).wait_s < 602


def test_an_error_that_is_not_busy_pauses_nothing(admission: Admission) -> None:
    ask(admission)
    admission.release("key", "me", busy=False, retry_after_s=60)

    assert admission.window() is None
    assert ask(admission).kind is Kind.GO


# Rates


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        (EndpointConfig(requests_per_minute=1200), 0),
        (EndpointConfig(tokens_per_minute=12000), 10),
    ],
)
def test_twenty_a_second_and_two_seconds_worth_at_once(
    admission: Admission, limits: EndpointConfig, tokens: int
) -> None:
    start, gone, index = time.monotonic(), 0, 0
    while time.monotonic() - start < 1.5:
        index += 1
        decision = ask(admission, str(index), limits=limits, tokens=tokens)
        if decision.kind is Kind.GO:
            gone += 1
            admission.settle(str(index), "me", usd=0, tokens=tokens)
        else:
            assert decision.kind is Kind.WAIT
            assert 0 < decision.wait_s <= 0.05 * 1.5
            time.sleep(0.005)
    elapsed_s = time.monotonic() - start

    assert 40 + 20 * 1.5 - 4 <= gone <= 40 + 20 * elapsed_s + 1


def test_a_request_larger_than_the_bucket_goes_though_small_ones_hurry(
    admission: Admission,
) -> None:
    limits = EndpointConfig(tokens_per_minute=60_000)  # 1,000 a second: the bucket holds 2,000
    ask(admission, "first", limits=limits, tokens=1_000)
    gone = Event()

    def hurry() -> None:
        while not gone.is_set():
            key = uuid4().hex
            if ask(admission, key, limits=limits, tokens=20).kind is Kind.GO:
                admission.settle(key, "me", usd=0, tokens=20)
            time.sleep(0.002)

    with ThreadPoolExecutor(1) as threads:
        small = threads.submit(hurry)
        try:
            start = time.monotonic()
            while (decision := ask(admission, "large", limits=limits, tokens=3_000)).wait_s:
                assert time.monotonic() - start < 6
                time.sleep(decision.wait_s)
        finally:
            gone.set()
        small.result()

    assert decision.kind is Kind.GO
    after = ask(admission, "after", limits=limits, tokens=1_000)
    assert 1.5 < after.wait_s <= 3  # the large one's debt: 3 s, less the one that is left of 2


def test_tokens_that_were_not_used_return(admission: Admission) -> None:
    limits = EndpointConfig(tokens_per_minute=6000)  # 100 a second: the bucket holds 200
    ask(admission, "a", limits=limits, tokens=200)
    assert ask(admission, "b", limits=limits, tokens=90).kind is Kind.WAIT

    admission.settle("a", "me", usd=0, tokens=50)

    assert ask(admission, "b", limits=limits, tokens=150).kind is Kind.GO
    assert 0.5 < ask(admission, "c", limits=limits, tokens=100).wait_s <= 1.5


def test_tokens_beyond_what_was_expected_count_from_now(admission: Admission) -> None:
    limits = EndpointConfig(tokens_per_minute=6000)
    start = time.monotonic()
    ask(admission, "a", limits=limits, tokens=1)
    poll(lambda: time.monotonic() - start > 0.5)

    admission.settle("a", "me", usd=0, tokens=301)

    waits = [ask(admission, "b", limits=limits, tokens=100).wait_s for _ in range(20)]
    assert min(waits) > 1.8 and max(waits) <= 3.01  # (300 + 100 - 200) / 100, and up to 1 late


# Dollars


def test_racing_threads_never_spend_more_than_the_limit(admission: Admission) -> None:
    limits = EndpointConfig(spend_limit_usd=1.0)
    admission.restore(0.1)

    def spend(holder: int) -> None:
        index = 0
        while ask(admission, f"{holder}-{index}", limits=limits, usd=0.03).kind is Kind.GO:
            admission.settle(f"{holder}-{index}", "me", usd=0.03, tokens=0)
            index += 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(spend, range(8)))

    # Whoever asked while others reserved may have given up before the last one went.
    spent = admission.spent()
    assert spent is not None
    assert 1.0 - 8 * 0.03 <= spent <= 1.0


def test_reserved_dollars_become_spent_ones_or_return(admission: Admission) -> None:
    limits = EndpointConfig(spend_limit_usd=1.0)
    admission.restore(0.0)

    ask(admission, "a", limits=limits, usd=0.9)
    assert ask(admission, "b", limits=limits, usd=0.2).kind is Kind.WAIT  # "a" may cost less
    assert ask(admission, "b", limits=limits, usd=1.1).kind is Kind.BROKE
    admission.release("a", "me", busy=True, overloaded=True)
    assert ask(admission, "b", limits=limits, usd=1.0).kind is Kind.GO
    admission.settle("b", "me", usd=0.25, tokens=0)

    assert admission.spent() == 0.25
    assert ask(admission, "c", limits=limits, usd=0.75).kind is Kind.GO


def test_a_run_is_busy_while_somebody_sends_or_waits(admission: Admission) -> None:
    assert not admission.is_busy()
    ask(admission, "a")
    assert admission.is_busy()
    admission.settle("a", "me", usd=0.0, tokens=0)
    assert not admission.is_busy()
    ask(admission, "b")
    admission.release("b", "me", busy=True, overloaded=True, retry_after_s=5.0)
    assert admission.is_busy() and admission.under_way() == 0


def test_what_is_just_broken_does_not_shrink_the_window(admission: Admission) -> None:
    ask(admission, "a")
    admission.release("a", "me", busy=True)
    assert admission.window() is None


def test_a_cancelled_run_sends_nothing(admission: Admission, redis_url: str) -> None:
    broker = Broker(redis_url)
    broker.cancel(admission._run)
    assert ask(admission, "a").kind is Kind.CANCELLED
    broker.revive(admission._run)
    assert ask(admission, "a").kind is Kind.GO


def test_a_forgotten_account_is_asked_of_the_store_again(admission: Admission) -> None:
    admission.restore(1.0)
    ask(admission, "a")
    admission.settle("a", "me", usd=0.5, tokens=0)
    admission.forget()
    assert admission.spent() is None
    admission.restore(7.0)
    assert admission.spent() == 7.0


def test_the_store_says_once_what_was_spent(admission: Admission) -> None:
    assert admission.spent() is None
    admission.settle("late", "me", usd=0.25, tokens=0)  # of before Redis was wiped
    assert admission.spent() is None

    admission.restore(1.5)
    admission.restore(9.0)

    assert admission.spent() == 1.75
    limits = EndpointConfig(spend_limit_usd=1.76)
    assert ask(admission, limits=limits, usd=0.02).kind is Kind.BROKE


# Redis


def test_what_is_kept_expires_and_ends_with_the_requests(
    admission: Admission, broker: Broker, run: str
) -> None:
    limits = EndpointConfig(requests_per_minute=6000, tokens_per_minute=60_000, spend_limit_usd=1)
    state = f"ppv:admission:{run}"
    keys = [state, f"{state}:claims", f"{state}:records"]

    ask(admission, limits=limits, tokens=10, usd=0.1)
    assert all(86_000 < broker.client.ttl(key) <= 86_400 for key in keys)

    admission.settle("key", "me", usd=0.1, tokens=10)
    assert sorted(broker.client.scan_iter(match=f"{state}*")) == [state]
    assert broker.client.hget(state, "reserved") == "0"


def test_a_redis_that_lost_its_scripts_gets_them_again(
    admission: Admission, broker: Broker
) -> None:
    ask(admission)
    broker.client.script_flush()

    admission.settle("key", "me", usd=0, tokens=0)
    assert admission.under_way() == 0


def test_the_error_names_the_address_but_not_the_password(run: str) -> None:
    broker = Broker(f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0")
    admission = Admission(broker.client, run, broker.address)
    verbs: list[Callable[[], object]] = [
        lambda: ask(admission),
        lambda: admission.settle("key", "me", usd=0, tokens=0),
        lambda: admission.release("key", "me"),
        lambda: admission.renew(),
        admission.under_way,
        admission.window,
        admission.spent,
        lambda: admission.restore(1.0),
    ]
    for verb in verbs:
        with pytest.raises(ServiceError, match=r"redis://127\.0\.0\.1:1/0") as caught:
            verb()
        assert REDIS_PASSWORD not in str(caught.value)
    broker.close()
