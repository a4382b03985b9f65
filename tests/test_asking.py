"""Asking a provider for a run: never twice, never faster or dearer than the run may."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bench.provider import Provider
from pipeline.config import EndpointConfig, PrompterConfig
from pipeline.errors import EndpointAway, InputError, PromptRejected, SpendingLimit
from pipeline.prompter.dialogue import Request
from pipeline.prompter.endpoint import Endpoint
from pipeline.prompter.prices import Price
from storage.answers import Answers
from storage.folder import FolderStore
from tests.tiny import a_run
from workers.admission import Admission
from workers.asking import Asker, RunCancelled
from workers.broker import Broker

Make = Callable[..., Asker]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(latency_s=0.02) as provider:
        yield provider


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(FolderStore(tmp_path / "store"))


@pytest.fixture
def asker(
    provider: Provider, redis_url: str, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> Make:
    """An asker of one run, as each of its workers has one."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    run, broker = f"asking-{uuid4().hex[:8]}", Broker(redis_url)

    def make(price: Price | None = None, timeout_s: float = 5, **limits: Any) -> Asker:
        prompter = PrompterConfig(kind="openai", model="tiny", base_url=provider.url)
        whole = a_run(prompter).model_copy(
            update={"name": run, "endpoint": EndpointConfig(**limits), "price": price}
        )
        return Asker(
            whole,
            Endpoint(prompter, timeout_s),
            answers,
            Admission(broker.client, run, broker.address),
        )

    return make


def question(number: int = 0, **body: Any) -> Request:
    """One that asks for a single description."""
    entry = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    prompts = {"type": "array", "minItems": 1, "maxItems": 1, "items": entry}
    schema = {"type": "object", "properties": {"prompts": prompts}, "required": ["prompts"]}
    whole = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "d", "strict": True, "schema": schema},
        },
    }
    return Request(address="here", body=whole | body)


def test_an_answer_is_paid_for_once(asker: Make, provider: Provider, answers: Answers) -> None:
    first = asker().ask(question())
    assert answers.get(question().key) == first
    assert first.usage.input_tokens > 0 and first.run.startswith("asking-")
    assert asker().ask(question()) == first
    assert provider.counts()["requests"] == 1


def test_workers_that_ask_the_same_at_once_pay_once(asker: Make, provider: Provider) -> None:
    provider.control(latency_s=0.3)
    with ThreadPoolExecutor(8) as pool:
        said = set(pool.map(lambda _: asker().ask(question()).content, range(8)))
    assert len(said) == 1
    assert provider.counts()["answered"] == 1


@pytest.mark.parametrize("fault", ["500", "503", "drop", "429"])
def test_what_fails_once_is_asked_again(asker: Make, provider: Provider, fault: str) -> None:
    provider.control(next=[fault, fault], retry_after_s=0.1)
    assert asker().ask(question()).content
    assert provider.counts()["requests"] == 3


def test_a_hang_ends_with_the_timeout(asker: Make, provider: Provider) -> None:
    provider.control(next=["hang"])
    assert asker(timeout_s=0.3).ask(question()).content


def test_retry_after_holds_for_everybody_of_the_run(asker: Make, provider: Provider) -> None:
    provider.control(next=["429"], retry_after_s=1.2)
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(asker().ask, question(1))
        while provider.counts()["requests"] < 1:
            time.sleep(0.01)
        time.sleep(0.05)  # its way back
        asker().ask(question(2))
        assert time.monotonic() - started > 1.1
        assert refused.result().content


def test_patience_has_an_end(asker: Make, provider: Provider) -> None:
    provider.control(fail=1.0, faults="500")
    with pytest.raises(EndpointAway, match=r"asked \d+ times: .* answered 500"):
        asker(patience_s=0.5).ask(question())


def test_a_cancelled_run_does_not_wait_on(asker: Make, provider: Provider, redis_url: str) -> None:
    provider.control(fail=1.0, faults="429", retry_after_s=60)
    waiting = asker()
    name = waiting._run.name
    threading.Timer(0.3, lambda: Broker(redis_url).cancel(name)).start()
    with pytest.raises(RunCancelled):
        waiting.ask(question())
    asked = provider.counts()["requests"]
    with pytest.raises(RunCancelled):
        waiting.ask(question(2))
    assert provider.counts()["requests"] == asked


def test_the_run_spends_no_more_than_it_may(asker: Make, provider: Provider) -> None:
    price = Price(input=1000.0, output=1000.0)  # about 15 cents an answer, mostly reserved output
    asking = asker(price, spend_limit_usd=1.0)

    def outcome(number: int) -> float | None:
        try:
            return asking.ask(question(number)).usage.usd
        except SpendingLimit as error:
            assert "the run may spend $1.00" in str(error)
            return None

    with ThreadPoolExecutor(16) as pool:
        paid = [usd for usd in pool.map(outcome, range(40)) if usd is not None]
    assert 0 < len(paid) < 40
    assert sum(paid) <= 1.0
    assert provider.counts()["answered"] == len(paid)


def test_what_will_not_heal_is_not_asked_again(asker: Make, provider: Provider) -> None:
    provider.control(next=["401"])
    with pytest.raises(InputError, match="check OPENAI_API_KEY"):
        asker().ask(question(1))
    provider.control(next=["400"])
    with pytest.raises(PromptRejected):
        asker().ask(question(2))
    assert provider.counts()["requests"] == 2


def test_with_a_tenth_failing_everything_is_answered_and_nothing_twice(
    asker: Make, provider: Provider
) -> None:
    provider.control(fail=0.1, faults="500,drop,429", seed=3, retry_after_s=0.05)
    asking = asker()
    with ThreadPoolExecutor(32) as pool:
        said = list(pool.map(lambda number: asking.ask(question(number)).content, range(300)))
    counts = provider.counts()
    assert len(said) == counts["answered"] == 300
    assert counts["answered_twice"] == 0
