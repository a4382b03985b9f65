"""Prompts through the batches endpoint: the same as live, in limits, and never paid for twice."""

import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from bench.provider import Provider
from pipeline.config import EndpointConfig, PrompterConfig
from pipeline.errors import (
    EndpointAway,
    InputError,
    PromptFailed,
    PromptFiltered,
    PromptRejected,
    ServiceError,
    SpendingLimit,
)
from pipeline.prompter.dialogue import Dialogue, Request, converse
from pipeline.prompter.endpoint import Endpoint
from pipeline.prompter.prices import Price
from pipeline.types import Answer, BasePrompt, DetailedPrompt, Expansion, Usage
from storage.answers import Answers
from storage.folder import FolderStore
from storage.runs import RunFolder, SentBatch
from workers.batches import BatchProgress, by_batches

PRICE = Price(input=1.0, output=2.0, batch_discount=0.5)
PROMPTS = {
    "type": "object",
    "properties": {
        "prompts": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {"type": "object", "properties": {"text": {"type": "string"}}},
        }
    },
}


class Curious:
    """Asks two things of a base prompt, and a third that depends on the answers."""

    def __init__(self, address: str) -> None:
        self._address = address

    def expand(self, base: BasePrompt) -> Dialogue:
        first = yield (self.request(f"{base.text}: left"), self.request(f"{base.text}: right"))
        said = [self._text(reply) for reply in first]
        (last,) = yield (self.request(f"{base.text}: between {' and '.join(said)}"),)
        said.append(self._text(last))
        usage = sum((each.usage for each in (*first, last) if isinstance(each, Answer)), Usage())
        prompts = tuple(
            DetailedPrompt(
                id=DetailedPrompt.id_of("curious", base.text, index),
                base=base.text,
                index=index,
                text=text,
                category="power",
            )
            for index, text in enumerate(said)
        )
        return Expansion(prompts=prompts, usage=usage)

    def request(self, text: str) -> Request:
        schema = {"name": "descriptions", "schema": PROMPTS}
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": text}],
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        return Request(address=self._address, body=body)

    def _text(self, reply: Answer | PromptFailed) -> str:
        if isinstance(reply, PromptFailed):
            raise reply
        text: str = json.loads(reply.content or "")["prompts"][0]["text"]
        return text


class Place:
    """A run in a folder, and an endpoint."""

    def __init__(self, folder: Path, provider: Provider) -> None:
        self.provider = provider
        self.folder = RunFolder(FolderStore(folder), "batched")
        self.answers = Answers(self.folder.store)
        config = PrompterConfig(kind="openai", model="tiny", base_url=provider.url)
        self.endpoint = Endpoint(config, timeout_s=10)
        self.prompter = Curious(self.endpoint.address)
        self.expansions: dict[str, Expansion] = {}
        self.failures: dict[str, PromptFailed] = {}
        self.seen: list[BatchProgress] = []

    def run(
        self,
        bases: Iterable[BasePrompt],
        show: Callable[[BatchProgress], None] = lambda progress: None,
        spent_usd: float = 0.0,
        wave: int = 1000,
        **limits: Any,
    ) -> None:
        def describe(base: BasePrompt, expansion: Expansion) -> None:
            assert base.text not in self.expansions
            self.expansions[base.text] = expansion

        def fail(base: BasePrompt, error: PromptFailed) -> None:
            assert base.text not in self.failures
            self.failures[base.text] = error

        def watch(progress: BatchProgress) -> None:
            self.seen.append(progress)
            show(progress)

        by_batches(
            self.folder,
            self.answers,
            bases,
            self.prompter,
            self.endpoint,
            EndpointConfig(batch_poll_s=0.01, **{"patience_s": 20, **limits}),
            PRICE,
            describe,
            fail,
            watch,
            spent_usd=spent_usd,
            wave=wave,
        )

    def live(self, base: BasePrompt) -> Expansion:
        return converse(self.prompter.expand(base), self.endpoint.ask)

    def texts(self) -> dict[str, list[str]]:
        return {
            base: [prompt.text for prompt in expansion.prompts]
            for base, expansion in self.expansions.items()
        }

    def batches(self) -> list[int]:
        """The sizes of those that the provider took on."""
        sizes: list[int] = self.provider.counts()["batch_sizes"]
        return sizes


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture
def place(server: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    server.stop()
    server.start()  # it knows nothing of the test before
    server.control(batch_s=0.02)
    place = Place(tmp_path / "store", server)
    yield place
    place.endpoint.client.close()


def some(count: int) -> list[BasePrompt]:
    return [BasePrompt(text=f"mug {number}") for number in range(count)]


class Killed(Exception):
    """Somebody pulled the plug."""


def kill_when(
    condition: Callable[[BatchProgress], bool],
) -> Callable[[BatchProgress], None]:
    def show(progress: BatchProgress) -> None:
        if condition(progress):
            raise Killed

    return show


# The same as live


def test_expansions_are_those_of_the_live_path(place: Place) -> None:
    bases = some(8)
    place.run(bases)
    live = {base.text: [prompt.text for prompt in place.live(base).prompts] for base in bases}
    assert place.texts() == live and not place.failures
    assert place.batches() == [16, 8]


def test_an_answer_is_half_as_dear_as_live(place: Place) -> None:
    (base,) = some(1)
    place.run([base])
    batched = place.expansions[base.text].usage
    key = place.prompter.request(f"{base.text}: left").key
    answer = place.answers.get(key)
    assert answer is not None and answer.run == "batched"
    assert batched.usd == pytest.approx(
        (batched.input_tokens * 1.0 + batched.output_tokens * 2.0) / 2e6
    )


def test_what_is_in_the_cache_is_not_sent(place: Place) -> None:
    bases = some(4)
    place.run(bases)
    place.expansions.clear()
    place.run([*bases, BasePrompt(text="a key")])
    assert len(place.expansions) == 5
    assert place.batches() == [8, 4, 2, 1]


def test_base_prompts_come_in_waves(place: Place) -> None:
    read = []

    def stream() -> Iterator[BasePrompt]:
        for base in some(7):
            read.append((base, len(place.expansions)))
            yield base

    place.run(stream(), wave=3)
    assert len(place.expansions) == 7
    assert [done for _, done in read] == [0, 0, 0, 3, 3, 3, 6]


def test_progress_is_shown(place: Place) -> None:
    place.run(some(4))
    assert max(progress.requests for progress in place.seen) == 8
    assert place.seen[-1] == BatchProgress(
        described=4, failed=0, waiting=0, batches=0, requests=0, answered=0
    )


def test_uploaded_files_are_deleted(place: Place) -> None:
    place.run(some(2))
    purposes = {file.purpose for file in place.endpoint.client.files.list()}
    assert "batch" not in purposes


# Limits


def test_chunks_stay_within_the_limit_of_requests(place: Place) -> None:
    place.provider.control(batch_requests=5)
    place.run(some(8), batch_requests=5)
    assert len(place.expansions) == 8
    assert sorted(place.batches()) == sorted([5, 5, 5, 1, 5, 3])


def test_chunks_stay_within_the_limit_of_bytes(place: Place) -> None:
    place.provider.control(batch_bytes=2000)
    place.run(some(8), batch_bytes=2000)
    assert len(place.expansions) == 8
    assert max(place.batches()) <= 5 and sum(place.batches()) == 24


def test_a_request_that_fits_no_file_fails_its_base_prompt(place: Place) -> None:
    long = BasePrompt(text="mug " * 400)
    place.run([long, *some(2)], batch_bytes=2000)
    assert isinstance(place.failures[long.text], PromptRejected)
    assert len(place.expansions) == 2


@pytest.mark.parametrize("spent_usd", [0.0, 0.0008])
def test_what_goes_beyond_the_spending_limit_is_not_sent(place: Place, spent_usd: float) -> None:
    bases = some(20)
    asked = place.prompter.request("mug 1: left").expected_tokens
    limit = 0.002
    place.run(bases, spend_limit_usd=limit, spent_usd=spent_usd)
    assert all(isinstance(error, SpendingLimit) for error in place.failures.values())
    assert len(place.expansions) + len(place.failures) == 20 and place.failures
    assert place.batches()[0] == int((limit - spent_usd) / PRICE.of(*asked, batch=True))


def test_answers_of_a_call_that_was_killed_count_as_spent(place: Place) -> None:
    bases = some(4)
    with pytest.raises(Killed):
        place.run(bases, kill_when(lambda progress: progress.batches > 0))
    answered = 8 * PRICE.of(*place.prompter.request("mug 1: left").expected_tokens, batch=True)
    place.run(bases, spend_limit_usd=answered / 100)
    assert len(place.failures) == 4 and place.batches() == [8]


# Stopped and started again


def test_a_killed_call_goes_on_where_it_was(place: Place) -> None:
    bases = some(6)
    with pytest.raises(Killed):
        place.run(bases, kill_when(lambda progress: progress.batches == 2), batch_requests=6)
    place.run(bases, batch_requests=6)
    assert len(place.expansions) == 6
    counts = place.provider.counts()
    assert counts["batches"] == 3 and counts["answered"] == 18
    assert counts["answered_twice"] == 0


def test_a_batch_that_is_on_no_record_is_found_by_its_metadata(place: Place) -> None:
    bases = some(6)
    with pytest.raises(Killed):
        place.run(bases, kill_when(lambda progress: progress.batches == 2), batch_requests=6)
    forgotten, _ = sorted(place.folder.batches(), key=lambda sent: sent.batch)[::-1]
    place.folder.store.delete(f"runs/batched/batches/{forgotten.chunk}.json")
    place.run(bases, batch_requests=6)
    counts = place.provider.counts()
    assert counts["batches"] == 3 and counts["answered_twice"] == 0
    assert len(place.expansions) == 6


def test_a_call_that_is_killed_all_the_time_pays_once(place: Place) -> None:
    """Killed at the first show, the second, the third: each call gets as far or further."""
    bases, calls = some(5), 0
    while len(place.expansions) < 5:
        calls += 1
        left = iter(range(calls))
        try:
            place.run(bases, kill_when(lambda _, left=left: next(left, None) is None))  # type: ignore[misc]
        except Killed:
            assert calls < 200
            place.expansions.clear()
    assert place.provider.counts()["answered_twice"] == 0
    assert place.provider.counts()["batches"] == 2


def test_a_batch_whose_creation_was_not_confirmed_is_not_created_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = place.endpoint.client.batches
    create, broken = batches.create, []

    def break_off(**request: Any) -> object:
        batch = create(**request)
        if not broken:
            broken.append(batch)
            raise openai.APITimeoutError(request=None)  # type: ignore[arg-type]
        return batch

    monkeypatch.setattr(batches, "create", break_off)
    place.run(some(3))
    assert place.batches() == [6, 3] and len(place.expansions) == 3


def test_batches_of_other_runs_are_left_alone(place: Place, tmp_path: Path) -> None:
    place.run(some(2))
    other = RunFolder(place.folder.store, "other")
    place.folder, place.answers = other, Answers(FolderStore(tmp_path / "fresh"))
    place.expansions.clear()
    place.run(some(2))
    assert place.batches() == [4, 2, 4, 2]


def test_a_record_of_another_endpoint_is_left_as_it_is(place: Place) -> None:
    sent = SentBatch(
        chunk="0" * 32, address="http://elsewhere/v1", batch="b", input_file="f", requests=1
    )
    place.folder.write_batch(sent)
    place.run(some(1))
    assert place.folder.read_batch(sent.chunk) == sent
    assert all(each.done for each in place.folder.batches() if each != sent)


def test_a_batch_that_the_provider_has_forgotten_is_sent_again(place: Place) -> None:
    with pytest.raises(Killed):
        place.run(some(2), kill_when(lambda progress: progress.batches > 0))
    place.provider.stop()
    place.provider.start()
    place.run(some(2))
    assert len(place.expansions) == 2


def test_an_output_that_the_provider_no_longer_has_is_asked_for_again(place: Place) -> None:
    with pytest.raises(Killed):
        place.run(some(2), kill_when(lambda progress: progress.batches > 0))
    client = place.endpoint.client
    (sent,) = place.folder.batches()
    end = time.monotonic() + 20
    while (batch := client.batches.retrieve(sent.batch)).status != "completed":
        assert time.monotonic() < end
    assert batch.output_file_id is not None
    client.files.delete(batch.output_file_id)
    place.run(some(2))
    assert len(place.expansions) == 2 and place.batches() == [4, 4, 2]


# What goes wrong at the provider


@pytest.mark.parametrize("outcome", ["expired", "errors"])
def test_what_was_not_done_is_sent_again(place: Place, outcome: str) -> None:
    place.provider.control(next_batches=[outcome, "ok"])
    place.run(some(6))
    assert len(place.expansions) == 6 and not place.failures
    counts = place.provider.counts()
    assert counts["answered"] == 18 and counts["answered_twice"] == 0
    assert sum(place.batches()) == 18 + 6


def test_what_is_never_done_fails_after_three_times(place: Place) -> None:
    place.provider.control(fail=1.0, faults="500")
    place.run(some(2))
    assert place.batches() == [4, 4, 4]
    error = place.failures["mug 0"]
    assert isinstance(error, EndpointAway) and "3 batches" in str(error) and "500" in str(error)


@pytest.mark.parametrize(
    ("fault", "kind"), [("400", PromptRejected), ("filtered_prompt", PromptFiltered)]
)
def test_what_is_refused_fails_at_once(place: Place, fault: str, kind: type[PromptFailed]) -> None:
    place.provider.control(fail=1.0, faults=fault)
    place.run(some(2))
    assert place.batches() == [4]
    assert [type(error) for error in place.failures.values()] == [kind, kind]


def test_a_batch_that_somebody_cancelled_is_not_sent_again(place: Place) -> None:
    place.provider.control(next_batches=["cancelled"])
    place.run(some(2))
    assert len(place.failures) + len(place.expansions) == 2 and place.failures
    assert all("cancelled" in str(error) for error in place.failures.values())


def test_a_file_that_is_refused_is_the_configurations_fault(place: Place) -> None:
    place.provider.control(next_batches=["failed"])
    with pytest.raises(InputError, match=r"not available for batches.*--batch") as refused:
        place.run(some(2))
    assert place.endpoint.address in str(refused.value)
    place.run(some(2))  # once mended
    assert len(place.expansions) == 2


def test_files_get_smaller_while_the_providers_queue_is_full(place: Place) -> None:
    place.provider.control(next_batches=["full", "full", "full"])
    place.run(some(4))
    assert len(place.expansions) == 4 and not place.failures
    assert max(place.batches()) <= 4


def test_a_provider_that_is_away_for_a_while_is_waited_for(place: Place) -> None:
    def show(progress: BatchProgress) -> None:
        if progress.batches and not outages:
            outages.append(1)
            place.provider.control(away_s=0.7)

    outages: list[int] = []
    place.run(some(2), show)
    assert outages and len(place.expansions) == 2


def test_a_provider_that_stays_away_is_a_service_error(place: Place) -> None:
    place.provider.control(away_s=60)
    started = time.monotonic()
    with pytest.raises(ServiceError, match=place.endpoint.address):
        place.run(some(2), patience_s=0.3)
    assert time.monotonic() - started < 10


def test_an_endpoint_without_batches_is_named(place: Place) -> None:
    place.provider.control(batches=False)
    with pytest.raises(InputError, match=f"{place.endpoint.address} has no batches.*--batch"):
        place.run(some(2))


def test_a_wrong_key_is_said_to_be_wrong(place: Place) -> None:
    place.provider.control(key="sk-other")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as refused:
        place.run(some(2))
    assert "hunter2" not in str(refused.value)


def test_a_limit_without_a_price_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_batches.PRICE", None)
    with pytest.raises(InputError, match="price"):
        place.run(some(1), spend_limit_usd=1.0)


# Memory


class Forgetful(Answers):
    """Keeps what the last waves need in memory, and counts."""

    def __init__(self) -> None:
        self.kept: set[str] = set()

    def get(self, key: str) -> Answer | None:
        return Answer(content='{"prompts": [{"text": "a"}]}') if key in self.kept else None

    def put(self, key: str, answer: Answer) -> None:
        self.kept.add(key)


def test_memory_grows_with_the_wave_and_not_with_the_input(place: Place) -> None:
    place.answers = Forgetful()
    place.expansions = Nothing()
    place.provider.control(latency_s=0, batch_s=0.0)

    def peak(bases: range, wave: int) -> float:
        tracemalloc.start()
        try:
            place.run((BasePrompt(text=f"mug {number}") for number in bases), wave=wave)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(range(10), 10)  # what is made once
    one = peak(range(10, 210), 200)
    five = peak(range(210, 1210), 200)
    assert five < one + 1e6 and one < 3e6


class Nothing(dict[str, Expansion]):
    """Forgets what is put into it."""

    def __setitem__(self, key: str, value: Expansion) -> None:
        pass
