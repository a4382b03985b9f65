"""A run under faults: nothing is lost, and `bench.chaos` would say if it were."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.audit import audit
from bench.chaos import DECK, Records, Struck, begun, dealt
from bench.faults import Strike
from pipeline.config import PrompterConfig, ProposerConfig
from pipeline.types import (
    BasePrompt,
    DetailedPrompt,
    Expansion,
    Failure,
    Proposal,
    ProposalBatch,
    digest,
)
from storage.folder import FolderStore
from storage.runs import RunFolder
from tests.tiny import a_record, a_run
from workers.canvas import batches

ROOT = Path(__file__).parents[1]
BASES = tuple(BasePrompt(text=text) for text in ("a mug", "a key"))
RUN = a_run(
    PrompterConfig(prompts_per_base=2),
    proposer=ProposerConfig(images_per_prompt=2, images_per_message=4),
    base_prompts=len(BASES),
)  # 2 x 2 x 2 = 8 proposals


def prompts_of(base: BasePrompt) -> tuple[DetailedPrompt, ...]:
    return tuple(
        DetailedPrompt(
            id=digest([base.text, index]), base=base.text, index=index, text=f"{base.text} {index}",
            category="power",
        )
        for index in range(2)
    )  # fmt: skip


def png(proposal: Proposal) -> bytes:
    from bench.counting import StandInProposer
    from pipeline.pictures import encode

    drawn = StandInProposer().draw([proposal.prompt.text], [proposal.seed], proposal.sampler)
    return encode(drawn[0], proposal)


def records(batch: ProposalBatch, score: float = 0.9) -> list[Any]:
    return [a_record(each, score, score, image=png(each)) for each in batch.proposals]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of which everything is done, each proposal once."""
    folder = RunFolder(FolderStore(tmp_path), RUN.name)
    folder.write(RUN)
    for base in BASES:
        folder.write_expansion(base, Expansion(prompts=prompts_of(base)))
    for batch in everything():
        for proposal in batch.proposals:
            folder.write_image(proposal.id, png(proposal))
        folder.write_records(batch, records(batch))
    return folder


def everything() -> list[ProposalBatch]:
    return list(batches(RUN, [prompt for base in BASES for prompt in prompts_of(base)]))


def part_of(batch: ProposalBatch) -> ProposalBatch:
    """What a batch is sent again as, when some of it has records already."""
    rest = [(each.prompt, each.seed) for each in batch.proposals[:2]]
    return ProposalBatch.of(batch.run, batch.proposer, batch.sampler, rest, again=True)


def test_a_whole_run_is_found_whole(folder: RunFolder) -> None:
    found = audit(folder, BASES)
    assert (found.expected, found.recorded, found.judged_twice) == (8, 8, 0)
    assert not found.missing + found.failed + found.duplicated + found.unreadable


def test_a_base_prompt_that_the_store_forgot_is_missing(folder: RunFolder) -> None:
    found = audit(folder, [*BASES, BasePrompt(text="a pen")])
    assert (found.expected, found.recorded, len(found.missing)) == (12, 8, 4)


def test_a_lost_batch_of_records_is_missing_unless_it_is_on_record_as_failed(
    folder: RunFolder,
) -> None:
    lost = everything()[0]
    folder.store.delete(f"runs/{RUN.name}/records/{lost.id}.jsonl")
    ids = sorted(each.id for each in lost.proposals)
    assert sorted(audit(folder, BASES).missing) == ids
    failure = {"stage": "propose", "subject": "", "error": "workers died on it", "tries": 3}
    folder.write_failure(Failure(id=ids[0], **failure))
    found = audit(folder, BASES)
    assert (found.failed, sorted(found.missing)) == (ids[:1], ids[1:])


def test_two_records_of_a_proposal_are_duplicates_only_if_they_disagree(folder: RunFolder) -> None:
    again = part_of(everything()[0])
    folder.write_records(again, records(again))
    found = audit(folder, BASES)
    assert (found.duplicated, found.judged_twice, found.recorded) == ([], 2, 8)
    folder.write_records(again, records(again, score=0.2))
    assert len(audit(folder, BASES).duplicated) == 2


def test_a_record_that_nobody_asked_for_is_a_duplicate(folder: RunFolder) -> None:
    found = audit(folder, BASES[:1])
    assert (found.expected, found.recorded, len(found.duplicated)) == (4, 4, 4)


@pytest.mark.parametrize("harm", ["gone", "torn", "another"])
def test_a_picture_that_is_not_the_recorded_one_is_unreadable(folder: RunFolder, harm: str) -> None:
    one, other = (batch.proposals[0] for batch in everything()[:2])
    if harm == "gone":
        folder.store.delete(f"runs/{RUN.name}/images/{one.id}.png")
    else:
        folder.write_image(one.id, png(one)[:-20] if harm == "torn" else png(other))
    assert audit(folder, BASES).unreadable == [one.id]


def test_recovery_is_the_next_record_and_held_the_last_of_what_was_under_way() -> None:
    seen = Records(Path("unread"), at={"a": 3.0, "b": 11.0, "c": 18.0}, times=[3.0, 11.0, 18.0])
    struck = Struck("kill worker", Strike("w", 1), ended_at=10.0, held={"a", "c"})
    assert (struck.recovery_s(seen), struck.held_s(seen)) == (1.0, 8.0)
    assert Struck("twice", Strike("", 1), ended_at=20.0, held={"a"}).recovery_s(seen) is None
    assert Struck("twice", Strike("", 1), ended_at=4.0, held={"z"}).held_s(seen) is None


def test_what_was_begun_is_counted_by_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "counts").write_text("drawn 4\njudged 3\ndrawn 2\n")
    assert begun(tmp_path / "counts") == (6, 3)


def test_a_deck_begins_with_one_fault_of_each_kind_and_is_the_seeds() -> None:
    import random

    kinds = list(DECK)
    deck = list(dealt(kinds, 100, random.Random(1)))
    assert sorted(deck[: len(kinds)]) == sorted(kinds)
    assert {kind: deck.count(kind) for kind in kinds} == {kind: 2 * DECK[kind][0] for kind in kinds}
    assert deck == list(dealt(kinds, 100, random.Random(1)))
    assert deck != list(dealt(kinds, 100, random.Random(2)))


SEND_AGAIN = """
from celery.exceptions import Retry
from pipeline.errors import ServiceError
from workers import refusal
from workers.verify import verify

def away(*_):
    raise ServiceError("away")

refusal.admit = away
batch = {"run": "some"}
verify.push_request(args=[batch], kwargs={}, called_directly=False, retries=0, id="1", hostname="x")
try:
    verify.run(batch)
except Retry:
    print("sent")
"""


def in_a_process(program: str, redis_url: str, *arguments: str, **environment: str) -> str:
    """What a program prints that runs in a process of its own, as workers and commands do."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PPV_BROKER_URL": redis_url, "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_task_that_is_sent_again_names_no_time_to_wait_for(redis_url: str) -> None:
    url = redis_url.removesuffix("/0") + "/7"
    assert in_a_process(SEND_AGAIN, url) == "sent\n"
    client = redis.Redis.from_url(url)
    (message,) = client.lrange("prompt", 0, -1) + client.lrange("verify", 0, -1)
    client.flushdb()
    client.close()
    headers = json.loads(message)["headers"]
    assert (headers["task"], headers["retries"], headers["eta"]) == ("verify", 1, None)


DIE_WHILE_LOOKING = """
import time
from kombu.transport.redis import Mutex
from workers.celery import app

with app.connection() as connection:
    channel = connection.default_channel
    app.amqp.queues["verify"](channel).declare()
    app.send_task("verify", args=[{}], queue="verify")
    held = channel.basic_get("verify")
    assert held and channel.client.hlen("unacked") == 1
    lock = Mutex(channel.client, channel.unacked_mutex_key, channel.unacked_mutex_expire)
    lock.__enter__()
    end = time.monotonic() + 60
    while not channel.client.llen("verify") and time.monotonic() < end:
        channel.qos.restore_visible()
        time.sleep(0.1)
    print(channel.client.llen("verify"))
    channel.qos._delivered.clear()
"""


def test_a_dead_workers_message_comes_back_though_another_died_while_it_looked_for_it(
    redis_url: str,
) -> None:
    url = redis_url.removesuffix("/0") + "/8"
    timeout = {"PPV_DISPATCH__VISIBILITY_TIMEOUT_S": "10"}
    assert in_a_process(DIE_WHILE_LOOKING, url, **timeout) == "1\n"
    with redis.Redis.from_url(url) as client:
        client.flushdb()


CLOSE_WHAT_IS_GONE = """
from workers.celery import app

with app.connection() as connection:
    channel = connection.default_channel
    app.amqp.queues["verify"](channel).declare()
    app.send_task("verify", args=[{}], queue="verify")
    channel.basic_get("verify")
    transport, client = connection.transport, connection.transport.client
    channel._disconnect_pools()
    transport.client = None  # as while a worker connects again
    try:
        channel.close()
    except connection.connection_errors as error:
        print(error)
    transport.client = client
    channel.qos._delivered.clear()
"""


def test_a_connection_that_is_gone_fails_as_one(redis_url: str) -> None:
    """Of anything else a worker dies."""
    url = redis_url.removesuffix("/0") + "/10"
    said = in_a_process(CLOSE_WHAT_IS_GONE, url)
    assert said == "the connection to the broker is gone\n"
    with redis.Redis.from_url(url) as client:
        client.flushdb()


FEED_WHILE_THE_STORE_IS_AWAY = """
import sys, threading
from pathlib import Path
from pipeline.types import BasePrompt
from storage.objects import open_store
from tests.conftest import RcloneServer
from workers import dispatch
from workers.embedded import broker_of
from workers.settings import load_settings

server, settings = RcloneServer(Path(sys.argv[1])), load_settings()
server.start()
store, broker = open_store("s3://objects", server.config), broker_of(settings)
folder = dispatch.open_run(store, broker, settings, "fed")

def away():
    server.kill()
    threading.Timer(2, server.start).start()

def bases():
    yield BasePrompt(text="a mug")
    yield BasePrompt(text="a key")
    away()

counts = dispatch.enqueue(folder, bases(), broker, settings.dispatch)
print(counts.sent, folder.read().base_prompts)
server.kill()
"""


def test_an_input_that_ends_while_the_store_is_away_is_enqueued_to_its_end(
    redis_url: str, tmp_path: Path
) -> None:
    url = redis_url.removesuffix("/0") + "/9"
    assert in_a_process(FEED_WHILE_THE_STORE_IS_AWAY, url, str(tmp_path)) == "2 2\n"
    with redis.Redis.from_url(url) as client:
        client.flushdb()


@pytest.mark.slow
def test_a_run_under_faults_loses_nothing_and_does_little_twice(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    kinds = "kill worker,kill child,kill redis,kill s3,twice"
    command = ["-m", "bench.chaos", "--faults=5", f"--kinds={kinds}", "--visibility=10"]
    ended = subprocess.run(
        [sys.executable, *command, f"--json={figures}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(figures.read_text())
    assert found["faults"] == 5 and found["expected"] == found["recorded"] > 20
    lost = [found[name] for name in ("missing", "failed", "duplicated", "unreadable")]
    assert lost == [0, 0, 0, 0]
    assert found["redone_batches_a_worker_a_fault"] <= 1
    assert found["unasked_worker_deaths"] == 0
