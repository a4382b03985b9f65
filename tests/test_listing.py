"""What it costs to look at a run again and again: what is new, and a bounded share of the rest."""

from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import PrompterConfig, ProposerConfig
from pipeline.types import BasePrompt, DetailedPrompt, Expansion, Failure, PromptBatch, digest
from storage.ahead import ahead
from storage.folder import FolderStore
from storage.listing import ANSWER, ANSWERS_A_LOOK, Listing
from storage.progress import Progress
from storage.runs import RunFolder
from storage.seen import Counts
from tests.tiny import a_record, a_run
from workers import mending
from workers.canvas import batches

# A look may end with a part, and each part with an answer, that is not full.
MOST_A_LOOK = 2 * ANSWERS_A_LOOK * ANSWER


class Ids:
    """Ids as a store lists them, and how many it has listed."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.listed = 0
        self.breaks = False

    def grow(self, count: int) -> None:
        start = len(self.all)
        self.all = sorted(self.all + [digest(number) for number in range(start, start + count)])

    def __call__(self, begin: str) -> Iterator[str]:
        for id in self.all[bisect(self.all, begin) : bisect(self.all, begin + "g")]:
            self.listed += 1
            yield id
        if self.breaks:
            raise OSError("the store is away")


def test_few_ids_are_all_listed_at_every_look() -> None:
    ids = Ids()
    listing = Listing(ids)
    for _ in range(5):
        ids.grow(900)
        assert sorted(listing.look()) == ids.all
        assert listing.total == len(ids.all) and listing.complete


def test_a_look_at_many_ids_lists_no_more_when_they_are_more() -> None:
    ids = Ids()
    listing = Listing(ids)
    ids.grow(60_000)
    assert list(listing.look()) == ids.all  # the first: whatever there is
    for _ in range(3):
        ids.grow(40_000)
        ids.listed = 0
        assert len(list(listing.look())) == ids.listed <= MOST_A_LOOK
        assert not listing.complete


def test_a_new_id_comes_within_one_turn_and_is_counted() -> None:
    ids = Ids()
    listing = Listing(ids)
    ids.grow(100_000)
    known = set(listing.look())
    ids.grow(1000)
    found: set[str] = set()
    for _ in range(16 // 3 + 1):  # 16 parts of 7 answers each, so 3 a look
        found.update(set(listing.look()) - known)
    assert found == set(ids.all) - known
    assert listing.total == len(ids.all)


def test_a_whole_look_gives_each_id_once() -> None:
    ids = Ids()
    listing = Listing(ids)
    ids.grow(50_000)
    for _ in range(3):
        assert sorted(listing.look(whole=True)) == ids.all
        assert listing.complete and listing.total == len(ids.all)


def test_a_part_whose_listing_broke_off_is_the_next_one() -> None:
    ids = Ids()
    listing = Listing(ids)
    ids.grow(50_000)
    list(listing.look())
    ids.breaks = True
    with pytest.raises(OSError, match="away"):
        list(listing.look())
    first = next(iter(listing.look()))
    ids.breaks = False
    assert next(iter(listing.look())) == first
    assert sorted(listing.look(whole=True)) == ids.all


def test_requests_ahead_come_in_order_and_are_bounded() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    results = ahead(lambda number: number * 2, numbers())
    assert next(results) == 0
    assert len(asked) < 50
    assert list(results) == [number * 2 for number in range(1, 1000)]


def test_counts_add_up_by_id() -> None:
    counts = Counts()
    counts.add({"0a" * 16: 2})
    assert counts.add({"0a" * 16: 4, "0b" * 16: 1}) == {"0a" * 16: 6, "0b" * 16: 1}
    assert (counts["0a" * 16], counts["0c" * 16], len(counts)) == (6, 0, 2)


# Runs


class Counting(FolderStore):
    """A folder store that counts what is read and listed, by kind."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gets: Counter[str] = Counter()
        self.listed: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.gets[key.split("/")[2].partition(".")[0]] += 1
        self.keys[key] += 1
        return super().get(key)

    def list(self, prefix: str) -> Iterator[str]:
        for key in super().list(prefix):
            self.listed[key.split("/")[2]] += 1
            yield key

    def clear(self) -> None:
        for each in (self.gets, self.listed, self.keys):
            each.clear()


RUN = a_run(
    PrompterConfig(prompts_per_base=1),
    proposer=ProposerConfig(images_per_prompt=1, images_per_message=4),
)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


@pytest.fixture
def folder(store: Counting) -> RunFolder:
    folder = RunFolder(store, RUN.name)
    folder.write(RUN)
    return folder


@pytest.fixture
def _small_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if S3 gave one key at once, so that few objects are many."""
    monkeypatch.setattr("storage.listing.ANSWER", 1)


def enqueue(folder: RunFolder, numbers: range) -> list[PromptBatch]:
    """Base prompts as they are written before they are sent, four together."""
    bases = [BasePrompt(text=f"a mug, number {number}") for number in numbers]
    found = []
    for start in range(0, len(bases), 4):
        batch = PromptBatch(run=RUN.name, bases=tuple(bases[start : start + 4]))
        folder.write_input(batch)
        found.append(batch)
    return found


def describe(folder: RunFolder, base: BasePrompt) -> DetailedPrompt:
    prompt = DetailedPrompt(
        id=DetailedPrompt.id_of(RUN.prompter_digest, base.text, 0),
        base=base.text,
        index=0,
        text=base.text,
        category="power",
    )
    folder.write_expansion(base, Expansion(prompts=(prompt,)))
    return prompt


def work(folder: RunFolder, batch: PromptBatch) -> None:
    """What workers leave of a batch of base prompts."""
    prompts = [describe(folder, base) for base in batch.bases]
    for proposals in batches(RUN, prompts):
        for proposal in proposals.proposals:
            folder.write_image(proposal.id, b"png")
        records = [a_record(each, 0.9, 0.9, run=RUN.name) for each in proposals.proposals]
        folder.write_records(proposals, records)


def done(folder: RunFolder, count: int) -> None:
    for batch in enqueue(folder, range(count)):
        work(folder, batch)
    folder.write(RUN.model_copy(update={"base_prompts": count}))


def test_a_look_lists_no_more_of_a_run_that_has_grown(
    store: Counting, folder: RunFolder, _small_answers: None
) -> None:
    progress = Progress(folder)
    seen = []
    for start in (0, 80, 160):
        for batch in enqueue(folder, range(start, start + 80)):
            work(folder, batch)
        for _ in range(20):  # whatever is new has been read
            progress.update()
        store.clear()
        tally = progress.update()
        assert (tally.base_prompts, tally.judged) == (start + 80, start + 80)
        assert store.gets == Counter(run=1)
        seen.append(Counter(store.listed))
    for listed in seen:
        assert 0 < listed["images"] <= 2 * ANSWERS_A_LOOK
        assert 0 < listed["prompts"] <= 2 * ANSWERS_A_LOOK


def test_inputs_and_records_are_read_once_while_a_run_is_enqueued(
    store: Counting, folder: RunFolder
) -> None:
    progress = Progress(folder)
    for start in range(0, 40, 4):
        for batch in enqueue(folder, range(start, start + 4)):
            work(folder, batch)
        assert progress.update().base_prompts == start + 4
    del store.keys[f"runs/{RUN.name}/run.json"]
    assert len(store.keys) == 20
    assert set(store.keys.values()) == {1}


def test_the_last_figures_of_a_large_run_are_exact(
    store: Counting, folder: RunFolder, _small_answers: None
) -> None:
    sent = enqueue(folder, range(160))
    folder.write(RUN.model_copy(update={"base_prompts": 160}))
    for batch in sent[:-12]:
        work(folder, batch)
    progress = Progress(folder)
    progress.update()
    for batch in sent[-12:]:
        work(folder, batch)
        for base in batch.bases:  # given up by one worker, which has nothing to show for it
            folder.write_failure(
                Failure(id=base.id, stage="prompt", subject=base.text, error="it broke", tries=3)
            )
    store.clear()
    while not progress.update().finished:
        assert store.listed["images"] < 160 * 20, "it never ends"
    tally = progress.tally
    assert (tally.prompted, tally.drawn, tally.judged, tally.failed) == (160, 160, 160, 0)
    store.clear()
    progress.update()
    assert store.listed["images"] < 160  # they are exact already


@pytest.mark.parametrize("kind", ["records", "inputs"])
def test_what_could_not_be_read_is_read_at_the_next_look(
    store: Counting, folder: RunFolder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in enqueue(folder, range(8)):
        work(folder, batch)
    progress = Progress(folder)

    def broken(key: str) -> bytes:
        if f"/{kind}/" in key:
            raise OSError("the store is away")
        return FolderStore.get(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(store, "get", broken)
        with pytest.raises(OSError, match="away"):
            progress.update()
    tally = progress.update()
    assert (tally.base_prompts, tally.judged) == (8, 8)


# What is sent again


def test_a_whole_look_counts_whatever_is_done_though_a_look_lists_but_a_part(
    store: Counting, folder: RunFolder, _small_answers: None
) -> None:
    sent = enqueue(folder, range(400))
    folder.write(RUN.model_copy(update={"base_prompts": 400}))
    for batch in sent[:80]:
        work(folder, batch)
    partly, wholly = Progress(folder), Progress(folder)
    for progress in (partly, wholly):
        progress.update()
    for batch in sent[80:]:
        work(folder, batch)
    assert partly.update().judged < 400
    assert wholly.update(whole=True).judged == 400


def test_what_is_missing_is_found_without_reading_what_is_done(
    store: Counting, folder: RunFolder
) -> None:
    done(folder, 40)
    missing = enqueue(folder, range(40, 60))
    folder.write(RUN.model_copy(update={"base_prompts": 60}))
    progress = Progress(folder)
    progress.update()
    store.clear()
    found = list(mending.missing(folder, progress))
    assert {batch.id for batch in found} == {batch.id for batch in missing}
    assert store.gets["prompts"] == 0


def test_a_batch_that_is_judged_in_part_is_read_whole(store: Counting, folder: RunFolder) -> None:
    """So that its proposals fall into the same batches as before."""
    done(folder, 40)
    batch = enqueue(folder, range(40, 44))[0]
    described = [describe(folder, base) for base in batch.bases[:2]]
    folder.write_records(
        whole := next(iter(batches(RUN, described))),
        [a_record(each, 0.9, 0.9, run=RUN.name) for each in whole.proposals],
    )
    progress = Progress(folder)
    progress.update()
    store.clear()
    (found,) = mending.missing(folder, progress)
    assert isinstance(found, PromptBatch) and found.bases == batch.bases[2:]
    assert store.gets["prompts"] == 2
