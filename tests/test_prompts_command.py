"""`ppv prompts` and the prompt queue on a provider, as a user has them: with real services."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.provider import Provider
from storage.folder import FolderStore
from storage.runs import RunFolder
from tests.place import Place, until

BASES = [f"a {color} {thing}" for color in ("red", "blue") for thing in ("mug", "bag", "key")]
REFUSED = "ppv: {} refused the key: check OPENAI_API_KEY\n"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(latency_s=0.02) as provider:
        yield provider


@pytest.fixture
def place(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The miniature drawing at once, prompted by the provider."""
    place = Place(tmp_path, tmp_path, BASES)
    (tmp_path / "prices.yaml").write_text("models: {tiny: {input: 1000, output: 1000}}\n")
    (tmp_path / "ppv.toml").write_text(
        f'[prompter]\nkind = "openai"\nmodel = "tiny"\nbase_url = "{provider.url}"\n'
        'prompts_per_base = 2\n[endpoint]\nprices = "prices.yaml"\nconcurrency = 4\n'
        "[proposer]\nimages_per_prompt = 1\nsampler = { num_inference_steps = 1 }\n"
        "[verifier]\nthresholds = { fidelity = 0.0, alignment = 0.0 }\n"
        "[dispatch]\nbases_per_message = 2\nstall_s = 5.0\n"
    )
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    yield place
    place.clear()


def made(place: Place, *arguments: str, code: int = 0) -> dict[str, Any]:
    ended = place.ppv("prompts", "bases.txt", "--json", *arguments)
    assert ended.code == code, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_an_estimate_sends_and_writes_nothing(place: Place, provider: Provider) -> None:
    estimate = made(place, "--dry-run", "--run", "first")
    assert provider.counts()["requests"] == 0
    assert not place.run_folder("first").exists()
    assert (estimate["base_prompts"], estimate["requests"], estimate["cached"]) == (6, 6, 0)
    paid = made(place, "--run", "first")["usage"]
    each = paid["input_tokens"] / paid["requests"]
    assert estimate["input_tokens"] / estimate["requests"] == pytest.approx(each, rel=0.5)
    assert estimate["usd"] == pytest.approx(
        (estimate["input_tokens"] + estimate["output_tokens"]) / 1000
    )
    again = made(place, "--dry-run", "--run", "other")
    assert (again["requests"], again["cached"], again["usd"]) == (0, 6, 0.0)
    shown = place.ppv("prompts", "bases.txt", "--dry-run", "--run", "third")
    assert "nothing was sent" in shown.out and "dollars" in shown.out


def test_prompts_are_paid_for_once_whatever_asks_for_them(place: Place, provider: Provider) -> None:
    first = made(place, "--run", "first")
    assert (first["base_prompts"], first["prompts"], first["failed"]) == (6, 12, 0)
    asked = provider.counts()["answered"]
    assert first["usage"]["requests"] == asked
    assert first["usage"]["usd"] > 0
    assert made(place, "--run", "first") == first
    other = made(place, "--run", "other")
    assert (other["prompts"], other["usage"]["requests"], other["usage"]["usd"]) == (12, 0, 0.0)

    drawn = place.ppv("run", "bases.txt", "--run", "first", "--out", "out")
    assert drawn.code == 0, drawn.err
    assert place.status("first")["missing"] == 0
    assert provider.counts()["answered"] == asked
    report = (place.folder / "out" / "report.html").read_text()
    assert "Paid for prompts" in report and "an accepted image" in report

    stats = place.ppv("prompts", "stats", "first", "--to", "coverage.png")
    assert stats.code == 0 and "category" in stats.out
    assert (place.folder / "coverage.png").stat().st_size > 10_000
    compared = place.ppv("evaluate", "prompts", "first", "other", "--json", "--to", "both.png")
    assert compared.code == 0, compared.err


def test_kill_9_loses_nothing_and_pays_nothing_twice(place: Place, provider: Provider) -> None:
    (place.folder / "bases.txt").write_text("".join(f"a mug, number {n}\n" for n in range(24)))
    provider.control(latency_s=0.2, fail=0.1, faults="500,drop", seed=1)
    running = place.start("prompts", "bases.txt", "--run", "killed")
    until(lambda: provider.counts()["answered"] > 8, "first answers")
    for victim in place.processes():  # with Redis, and what it knew of claims
        os.kill(victim, signal.SIGKILL)
    running.communicate()
    whole = made(place, "--run", "killed")
    assert (whole["base_prompts"], whole["prompts"], whole["failed"]) == (24, 48, 0)
    assert provider.counts()["answered_twice"] == 0


@pytest.mark.parametrize("command", ["run", "prompts", "enqueue"])
def test_a_wrong_key_is_said_once_before_anything_is_enqueued(
    place: Place, provider: Provider, command: str
) -> None:
    provider.control(key="sk-another")
    services = ("--set", f"store_url={(place.folder / 'store').as_uri()}")
    broker = ("--set", "broker_url=redis://127.0.0.1:1/0") if command == "enqueue" else ()
    ended = place.ppv(command, "bases.txt", "--run", "wrong", *services, *broker)
    if command == "enqueue":  # a broker that is away is said first
        assert ended.code == 3
        return
    assert (ended.code, ended.err) == (2, REFUSED.format(provider.url))
    assert "hunter2" not in ended.out
    assert not RunFolder(FolderStore(place.folder / "store"), "wrong").exists()


def test_a_missing_key_is_said_before_anything_is_enqueued(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    ended = place.ppv("run", "bases.txt", "--run", "wrong")
    assert (ended.code, ended.err) == (
        2,
        "ppv: the openai prompter needs a key: set OPENAI_API_KEY\n",
    )
    assert not place.run_folder("wrong").exists()


def test_a_spending_limit_ends_the_run_cleanly_and_a_higher_one_finishes_it(
    place: Place, provider: Provider
) -> None:
    limit = ("--set", "endpoint.spend_limit_usd=5", "--set", "endpoint.concurrency=1")
    stopped = place.ppv("run", "bases.txt", "--run", "dear", "--out", "out", *limit)
    assert stopped.code == 1
    assert "SpendingLimit: the run may spend $5.00" in stopped.err
    status = place.status("dear")
    assert status["missing"] == 0 and 0 < status["failed"] < status["expected"]
    asked = provider.counts()["answered"]

    more = ("--set", "endpoint.spend_limit_usd=500")
    done = made(place, "--run", "dear", "--failed", *more)
    assert (done["prompts"], done["failed"]) == (12, 0)
    assert place.status("dear")["failed"] == 0
    assert provider.counts()["answered_twice"] == 0 and provider.counts()["answered"] > asked


def test_what_batches_cost_counts_for_live_calls_too(place: Place, provider: Provider) -> None:
    (place.folder / "more.txt").write_text("".join(f"a mug, number {n}\n" for n in range(8)))
    limit = ("--set", "endpoint.spend_limit_usd=12", "--set", "endpoint.batch_poll_s=0.1")
    batch = made(place, "--run", "both", "--batch", *limit)
    assert 0 < batch["usage"]["usd"] <= 12
    ended = place.ppv("prompts", "more.txt", "--run", "both", "--json", *limit)
    assert ended.code == 1 and "SpendingLimit" in ended.err
    assert json.loads(ended.out)["usage"]["usd"] <= 12


def test_a_wrong_model_is_said_once(place: Place, provider: Provider) -> None:
    provider.control(models="another")
    ended = place.ppv("prompts", "bases.txt", "--run", "wrong")
    assert ended.code == 2 and ended.err.count("has no model 'tiny'") == 1
    assert not any(place.run_folder("wrong").failed_ids())


def test_repeated_lines_are_one_base_prompt(place: Place) -> None:
    (place.folder / "bases.txt").write_text("a red mug\na red mug\n\na red mug\n")
    assert made(place, "--run", "once")["base_prompts"] == 1


def test_resuming_what_was_only_prompted_says_what_to_do(place: Place) -> None:
    made(place, "--run", "only")
    ended = place.ppv("resume", "only")
    assert ended.code == 2 and "ppv run FILE --run only" in ended.err


def test_a_spending_limit_without_a_price_is_refused(place: Place) -> None:
    limit = ("--set", "endpoint.spend_limit_usd=5", "--set", "endpoint.prices=default")
    ended = place.ppv("prompts", "bases.txt", *limit)
    assert ended.code == 2 and "have none for 'tiny'" in ended.err


def test_refusals_are_failures_on_record_that_can_be_tried_again(
    place: Place, provider: Provider
) -> None:
    provider.control(next=["refusal"] * 2)
    some = made(place, "--run", "some", code=1)
    assert (some["prompts"], some["failed"]) == (8, 2)
    assert made(place, "--run", "some", code=1) == some, "it was tried again without being asked"
    again = made(place, "--run", "some", "--failed")
    assert (again["prompts"], again["failed"]) == (12, 0)
    paid = again["usage"]["requests"]
    assert paid == provider.counts()["answered"], "what a refusal cost was forgotten"


def test_through_the_batches_endpoint_the_prompts_are_the_same_for_less(
    place: Place, provider: Provider
) -> None:
    live = made(place, "--run", "live")
    for key in (place.folder / ".ppv" / "s3" / "ppv" / "answers").rglob("*.json"):
        key.unlink()
    some = ("--set", "endpoint.batch_poll_s=0.1", "--set", "endpoint.batch_requests=4")
    batch = made(place, "--run", "batch", "--batch", *some)
    assert provider.counts()["batches"] >= 2
    for name in ("prompts", "failed"):
        assert batch[name] == live[name]
    texts = [
        sorted(p.text for e in place.run_folder(run).expansions() for p in e.prompts)
        for run in ("live", "batch")
    ]
    assert texts[0] == texts[1]


def test_the_grammar_needs_no_key_and_has_no_batches(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    grammar = ("--set", "prompter.kind=grammar")
    assert made(place, "--run", "free", *grammar)["usage"]["requests"] == 0
    assert made(place, "--dry-run", *grammar)["usd"] == 0.0
    ended = place.ppv("prompts", "bases.txt", "--run", "free2", "--batch", *grammar)
    assert ended.code == 2 and "--batch needs an endpoint" in ended.err
