"""Messages that are no work of their run: refused, on record, and never worked on."""

import base64
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import JsonValue

from pipeline.config import Run
from pipeline.types import (
    MESSAGE_FORMAT,
    Adapter,
    BasePrompt,
    DetailedPrompt,
    PromptBatch,
    ProposalBatch,
    ProposerRef,
    seed_of,
)
from storage.folder import FolderStore
from storage.runs import RunFolder
from tests.place import Place, until
from tests.tiny import a_run, save_weights
from workers import canvas, refusal, resources
from workers.broker import Broker
from workers.refusal import KEPT, Refusal, Refusals, Refused, TooNew, admit
from workers.settings import settings
from workers.snapshot import Snapshot

SECRET = "hunter2-in-a-message"

Message = dict[str, Any]


@pytest.fixture
def own_redis(redis_url: str) -> Iterator[str]:
    """A database that no other test's workers look into."""
    url = redis_url.removesuffix("/0") + "/7"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def store(tmp_path: Path, own_redis: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderStore]:
    """A folder that workers here and in child processes take for their store."""
    monkeypatch.setenv("PPV_BROKER_URL", own_redis)
    monkeypatch.setenv("PPV_STORE_URL", (tmp_path / "store").as_uri())
    cached = (settings, resources.broker, resources.store, resources.folder, resources.run)
    for each in cached:
        each.cache_clear()
    yield FolderStore(tmp_path / "store")
    monkeypatch.undo()
    for each in cached:
        each.cache_clear()


@pytest.fixture
def known(store: FolderStore, run: str) -> Run:
    """A run that the store has."""
    config = a_run().model_copy(update={"name": run})
    RunFolder(store, run).write(config)
    return config


def prompts_of(run: Run) -> list[DetailedPrompt]:
    return [
        DetailedPrompt(
            id=DetailedPrompt.id_of(run.prompter_digest, "a mug", index),
            base="a mug",
            index=index,
            text=f"a hand with a mug, {index}",
            category="power",
        )
        for index in range(run.prompter.prompts_per_base)
    ]


def proposals_of(run: Run) -> Message:
    """A message as the canvas makes it."""
    (batch,) = canvas.batches(run, prompts_of(run))
    return json.loads(batch.model_dump_json())  # type: ignore[no-any-return]


def test_what_the_canvas_makes_is_admitted_whatever_the_route(known: Run) -> None:
    assert len(admit(ProposalBatch, proposals_of(known)).proposals) == 8
    bases = PromptBatch(run=known.name, bases=(BasePrompt(text="a mug"),))
    assert admit(PromptBatch, bases.model_dump(mode="json")) == bases
    pinch = Adapter(name="pinch", weights=f"sha256:{'5' * 64}", category="pinch")
    for route in ("all", "specialist", {"base": 1.0, "specialist": 1.0}):
        proposer = known.proposer.model_copy(update={"route": route, "images_per_prompt": 8})
        both = (known.proposers[0], ProposerRef.of(known.proposers[0].base, pinch))
        routed = known.model_copy(
            update={"name": f"{known.name}-r", "proposer": proposer, "proposers": both}
        )
        RunFolder(resources.folder(known.name).store, routed.name).write(routed)
        resources.run.cache_clear()
        for batch in canvas.batches(routed, prompts_of(routed)):
            assert admit(ProposalBatch, json.loads(batch.model_dump_json())) == batch


def test_a_message_of_an_older_sender_has_no_format_and_is_admitted(known: Run) -> None:
    message = proposals_of(known)
    del message["format"]
    assert admit(ProposalBatch, message).format == MESSAGE_FORMAT


def _another_text_id(message: Message) -> None:
    message["draws"][0]["prompt"]["id"] = "0" * 32


def _another_base(message: Message) -> None:
    message["draws"][0]["prompt"]["base"] = "a violin"


def _another_index(message: Message) -> None:
    prompt = message["draws"][0]["prompt"]
    digest = resources.run(message["run"]).prompter_digest
    prompt["index"] = 99
    prompt["id"] = DetailedPrompt.id_of(digest, prompt["base"], 99)


def _another_seed(message: Message) -> None:
    message["draws"][0]["seeds"][0] += 1


def _more_seeds(message: Message) -> None:
    prompt = DetailedPrompt.model_validate(message["draws"][0]["prompt"])
    message["draws"][0]["seeds"] = [seed_of(prompt, n) for n in range(3)]


def _a_seed_twice(message: Message) -> None:
    message["draws"][0]["seeds"] = message["draws"][0]["seeds"][:1] * 2


def _a_prompt_twice(message: Message) -> None:
    message["draws"].append(message["draws"][0])


def _too_many(message: Message) -> None:
    message["draws"] = message["draws"] * 9


def _set(*path: str | int) -> Callable[[JsonValue], Callable[[Message], None]]:
    def to(value: JsonValue) -> Callable[[Message], None]:
        def change(message: Message) -> None:
            place: Any = message
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value

        return change

    return to


ADAPTER = {"name": "pinch", "weights": "sha256:" + "5" * 64}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("run")("../../etc"), "run: String should match pattern"),
        (_set("run")("no-such-run"), "no run 'no-such-run'"),
        (_set("run")(None), "run: Input should be a valid string"),
        (_set("extra")(SECRET), "extra: Extra inputs are not permitted"),
        (_set("draws")([]), "draws: Tuple should have at least 1 item"),
        (_set("draws", 0, "seeds")(["7"]), "draws.0.seeds.0: Input should be a valid integer"),
        (_set("draws", 0, "seeds")([-1]), "has other seeds"),
        (_set("again")("yes"), "again: Input should be a valid boolean"),
        (_set("format")("2"), "format: Input should be a valid integer"),
        (_set("format")(0), "format: Input should be greater than or equal to 1"),
        (_set("proposer", "name")("/etc/passwd"), "has no proposer '/etc/passwd'"),
        (_set("proposer", "weights")("sha256:" + "1" * 64), "has no proposer 'tiny'"),
        (_set("proposer", "adapter")(ADAPTER), "has no proposer 'tiny + pinch@555555555555'"),
        (_set("sampler", "num_inference_steps")(999), "has another sampler"),
        (_set("draws", 0, "prompt", "category")("../x"), "has no category '../x'"),
        (_another_text_id, "has no detailed prompt 0000"),
        (_another_base, "has no detailed prompt"),
        (_another_index, "has no detailed prompt"),
        (_another_seed, "has other seeds"),
        (_more_seeds, "has other seeds"),
        (_a_seed_twice, "has other seeds"),
        (_a_prompt_twice, "a detailed prompt stands there twice"),
        (_too_many, "72 proposals: a message of run"),
    ],
)
def test_a_batch_that_its_run_cannot_have_sent_is_refused(
    known: Run, change: Callable[[Message], None], reason: str
) -> None:
    message = proposals_of(known)
    change(message)
    with pytest.raises(Refused) as refused:
        admit(ProposalBatch, message)
    assert reason in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_message_of_another_runs_proposals_is_refused(known: Run) -> None:
    prompter = known.prompter.model_copy(update={"prompts_per_base": 3})
    other = known.model_copy(update={"name": f"{known.name}-other", "prompter": prompter})
    RunFolder(resources.folder(known.name).store, other.name).write(other)
    message = proposals_of(known) | {"run": other.name}
    with pytest.raises(Refused, match="has no detailed prompt"):
        admit(ProposalBatch, message)


def test_more_base_prompts_than_a_message_has_are_refused(known: Run) -> None:
    bases = [{"text": f"a mug, {n}"} for n in range(refusal.BASES_AT_MOST + 1)]
    with pytest.raises(Refused, match="1025 base prompts"):
        admit(PromptBatch, {"run": known.name, "bases": bases})


def test_what_a_newer_version_wrote_is_left_to_it(known: Run, store: FolderStore) -> None:
    newer = {"format": MESSAGE_FORMAT + 1, "run": known.name, "colours": []}
    with pytest.raises(TooNew, match="messages have format 2, and it reads 1"):
        admit(ProposalBatch, newer)
    with pytest.raises(Refused, match="run name"):
        admit(ProposalBatch, newer | {"run": "../x"})
    run_json = json.loads(store.get(f"runs/{known.name}/run.json"))
    store.put(f"runs/{known.name}/run.json", json.dumps(run_json | {"colours": []}).encode())
    resources.run.cache_clear()
    with pytest.raises(TooNew, match=f"cannot read the configuration of run '{known.name}'"):
        admit(ProposalBatch, proposals_of(known))


def test_the_record_keeps_the_latest_and_counts_all(own_redis: str) -> None:
    broker = Broker(own_redis)
    refusals = Refusals(broker)
    for number in range(KEPT + 20):
        refusals.add(Refusal(at="now", queue="prompt", worker="w", reason=str(number)))
    kept = list(refusals.latest())
    assert refusals.count() == KEPT + 20
    assert [each.reason for each in kept] == [str(n) for n in reversed(range(20, KEPT + 20))]
    broker.close()


def test_an_excerpt_is_short_and_printable() -> None:
    assert refusal.excerpt("a\x1b[31m\nred", 8) == "a\\x1b[31"
    assert refusal.excerpt("m" * 500, 40) == "m" * 40


# On a real worker


class Junk:
    """Messages as a stranger with the broker's password may send them."""

    def __init__(self, run: str) -> None:
        self._tags = 0
        batch = {"run": run, "bases": [{"text": "a mug"}], "colour": SECRET}
        self.raw: list[bytes] = [
            b"",
            b"\xff\xfe" + SECRET.encode(),
            b"not json " + SECRET.encode(),
            b"null",
            b"7",
            b"[]",
            b"{}",
            b"[" * 100_000,
            b'{"properties": {}}',
            b'{"properties": {"delivery_tag": "t"}, "body": "!"}',
            self.message([[batch], {}, {}], body="%%%"),
            self.message([[batch], {}, {}], headers=None),
            self.message([[batch], {}, {}], headers={}),
            self.message([[batch], {}, {}], headers={"task": ["prompt"], "id": "1"}),
            self.message([[batch], {}, {}], headers={"task": "prompt"}),
            self.message([[batch], {}, {}], headers={"task": "prompt", "id": "1", "eta": "soon"}),
            self.message([[batch], {}, {}], task="prompt", content_type="application/x-pickle"),
            self.message([[batch], {}, {}], task="os.system"),
            self.message([[batch], {}, {}], task="celery.backend_cleanup"),
            self.message([[batch], {}, {}], task="propose"),  # which this worker does not serve
            self.message([[batch] * 2, {}, {}], task="prompt"),
            self.message([["text"], {}, {}], task="prompt"),
            self.message([[], {"message": batch}, {}], task="prompt"),
            self.message(None, task="prompt"),
            self.message(5, task="prompt"),
            self.message([[batch | {"bases": ["x" * 17_000_000]}], {}, {}], task="prompt"),
            self.message([[batch], {}, {}], task="prompt"),
            self.message([[batch | {"run": "../../etc"}], {}, {}], task="prompt"),
            self.pickled(),
        ]

    def message(
        self,
        content: JsonValue,
        task: str = "",
        headers: Any = False,
        body: str = "",
        content_type: str = "application/json",
    ) -> bytes:
        self._tags += 1
        if headers is False:
            headers = {"task": task, "id": f"id-{self._tags}", "lang": "py"}
        return json.dumps(
            {
                "body": body or base64.b64encode(json.dumps(content).encode()).decode(),
                "content-encoding": "utf-8",
                "content-type": content_type,
                "headers": headers,
                "properties": {
                    "delivery_tag": f"tag-{self._tags}",
                    "delivery_info": {"exchange": "", "routing_key": "prompt"},
                    "delivery_mode": 2,
                    "body_encoding": "base64",
                    "priority": 0,
                },
            }
        ).encode()

    def pickled(self) -> bytes:
        body = base64.b64encode(pickle.dumps([[], {}, {}])).decode()
        return self.message(
            None, task="prompt", body=body, content_type="application/x-python-serialize"
        )


def test_a_worker_refuses_whatever_is_no_message_of_its_and_goes_on(
    store: FolderStore, own_redis: str, tmp_path: Path, known: Run
) -> None:
    for name, value in (("base", 0.0), ("verifier", 1.0)):
        save_weights(tmp_path / name, value)
    place = Place(tmp_path, tmp_path, ["a hand with a mug"])
    junk = Junk(known.name).raw
    command = (sys.executable, "-m", "celery", "-A", "bench.nothing", "worker", "-Q", "prompt")
    with redis.Redis.from_url(own_redis) as client:
        client.lpush("prompt", *junk)
        worker = place.spawn(*command)
        try:
            assert place.ppv("enqueue", "bases.txt", "--run", "after").code == 0
            after = RunFolder(store, "after")
            until(lambda: list(after.prompted_ids()), "what came after the junk", 60)
            assert worker.poll() is None, "the same worker is there"
            until(lambda: not client.exists("unacked"), "all were acknowledged", 10)
        finally:
            worker.terminate()
            _, log = worker.communicate(timeout=60)
        refusals = Refusals(Broker(own_redis))
        assert refusals.count() == len(junk)
        counted = Snapshot.take(Broker(own_redis)).counters["messages"]
        assert sum(n for (_, outcome), n in counted.items() if outcome == "dropped") == len(junk)
        everything = b"".join(bytes(line) for line in client.lrange("ppv:refused", 0, -1))
    assert len(everything) < 300 * len(junk)
    assert SECRET not in log and SECRET not in everything.decode()
    assert log.count("refused a message") == len(junk)
    assert "Traceback" not in log
    assert not list(RunFolder(store, known.name).prompted_ids())
    doctor = place.ppv("doctor").out
    assert f"workers refused {len(junk)} messages, the last ones:" in doctor
    assert "prompt: run: String should match pattern" in doctor
