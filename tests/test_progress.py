"""How far a run is, from the store alone: nothing counted twice, nothing read twice."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import PrompterConfig, ProposerConfig
from pipeline.types import (
    BasePrompt,
    DetailedPrompt,
    Expansion,
    Failure,
    PromptBatch,
    ProposalBatch,
    Record,
    digest,
)
from storage.folder import FolderStore
from storage.progress import Progress, failures, records
from storage.runs import RunFolder
from storage.seen import Seen
from tests.tiny import a_record, a_run
from workers.canvas import batches


class Counting(FolderStore):
    """A folder store that counts how often each key is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gets: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.gets[key] += 1
        return super().get(key)


BASES = tuple(BasePrompt(text=text) for text in ("a mug", "a key", "a pen"))
RUN = a_run(
    PrompterConfig(prompts_per_base=2),
    proposer=ProposerConfig(images_per_prompt=2, images_per_message=3),
    base_prompts=len(BASES),
)  # 3 x 2 x 2 = 12 proposals


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has been enqueued, with nothing done yet."""
    folder = RunFolder(Counting(tmp_path), RUN.name)
    folder.write(RUN)
    folder.write_input(PromptBatch(run=RUN.name, bases=BASES))
    return folder


def prompts_of(base: BasePrompt) -> tuple[DetailedPrompt, ...]:
    return tuple(
        DetailedPrompt(
            id=digest([base.text, index]), base=base.text, index=index, text=f"{base.text} {index}",
            category="pinch" if base.text == "a key" else "power",
        )
        for index in range(2)
    )  # fmt: skip


def proposals() -> list[ProposalBatch]:
    """All 12 proposals in batches of 3."""
    return list(batches(RUN, [prompt for base in BASES for prompt in prompts_of(base)]))


def judged(batch: ProposalBatch, score: float) -> Iterator[Record]:
    return (a_record(proposal, score, score, run=RUN.name) for proposal in batch.proposals)


def failed(id: str, stage: str) -> Failure:
    lost = RUN.proposals_per_base if stage == "prompt" else 1
    return Failure(id=id, stage=stage, subject="a mug", error="it broke", tries=3, proposals=lost)


def test_a_fresh_run_misses_everything(folder: RunFolder) -> None:
    tally = Progress(folder).update()
    assert (tally.expected, tally.missing, tally.finished) == (12, 12, False)


def test_records_are_counted_by_verdict_and_category(folder: RunFolder) -> None:
    for number, batch in enumerate(proposals()):
        folder.write_records(batch, judged(batch, 0.9 if number < 3 else 0.1))
    tally = Progress(folder).update()
    assert (tally.accepted, tally.rejected, tally.missing, tally.finished) == (9, 3, 0, True)
    pinch, power = tally.by_category["pinch"], tally.by_category["power"]
    assert (pinch.accepted, pinch.rejected) == (4, 0)
    assert (power.accepted, power.rejected) == (5, 3)


def test_a_proposal_with_two_records_counts_once(folder: RunFolder) -> None:
    batch = proposals()[0]
    folder.write_records(batch, judged(batch, 0.9))
    part = ProposalBatch.of(
        batch.run, batch.proposer, batch.sampler, [(p.prompt, p.seed) for p in batch.proposals[:2]]
    )
    folder.write_records(part, judged(part, 0.9))
    assert part.id != batch.id
    tally = Progress(folder).update()
    assert (tally.accepted, tally.missing) == (3, 9)
    assert len(list(records(folder))) == 3


def test_a_failed_base_prompt_counts_as_all_its_proposals(folder: RunFolder) -> None:
    folder.write_failure(failed(BASES[0].id, "prompt"))
    folder.write_failure(failed(proposals()[3].proposals[0].id, "propose"))
    tally = Progress(folder).update()
    assert (tally.failed, tally.missing) == (5, 7)
    assert {failure.stage for failure in failures(folder)} == {"prompt", "propose"}


@pytest.mark.parametrize(("came", "failed_then"), [(2, 0), (1, 2)])
@pytest.mark.parametrize("first", ["failure", "prompts"])
def test_a_base_prompt_with_prompts_has_failed_only_by_those_it_lacks(
    folder: RunFolder, first: str, came: int, failed_then: int
) -> None:
    """Given up by one worker, described by another, whichever ends first."""
    base, progress = BASES[0], Progress(folder)
    steps = [
        lambda: folder.write_failure(failed(base.id, "prompt")),
        lambda: folder.write_expansion(
            base,
            Expansion(prompts=prompts_of(base)[:came], shortfall="refused" if came < 2 else ""),
        ),
    ]
    for step in steps if first == "failure" else reversed(steps):
        step()
        progress.update()
    assert progress.update().failed == failed_then
    assert Progress(folder).update().failed == failed_then


def test_a_base_prompt_that_was_given_up_once_is_not_finished_without_its_records(
    folder: RunFolder,
) -> None:
    for base in BASES:
        folder.write_expansion(base, Expansion(prompts=prompts_of(base)))
    folder.write_failure(failed(BASES[0].id, "prompt"))
    for batch in proposals()[:-1]:
        folder.write_records(batch, judged(batch, 0.9))
    tally = Progress(folder).update()
    assert (tally.prompted, tally.failed, tally.missing, tally.finished) == (3, 0, 3, False)


def test_a_failure_of_what_was_judged_after_all_does_not_count(folder: RunFolder) -> None:
    batch = proposals()[0]
    folder.write_failure(failed(batch.proposals[0].id, "verify"))
    folder.write_records(batch, judged(batch, 0.9))
    tally = Progress(folder).update()
    assert (tally.accepted, tally.failed, tally.missing) == (3, 0, 9)


def test_a_record_that_comes_after_a_failure_takes_its_place(folder: RunFolder) -> None:
    progress, batch = Progress(folder), proposals()[0]
    folder.write_failure(failed(batch.proposals[0].id, "propose"))
    assert progress.update().failed == 1
    missing = progress.tally.missing
    folder.write_records(batch, judged(batch, 0.9))
    tally = progress.update()
    assert tally.failed == 0
    assert tally.missing == missing + 1 - len(batch.proposals)


def test_a_run_is_finished_only_when_all_of_it_was_enqueued(folder: RunFolder) -> None:
    for batch in proposals():
        folder.write_records(batch, judged(batch, 0.9))
    folder.write(RUN.model_copy(update={"base_prompts": None}))
    progress = Progress(folder)
    tally = progress.update()
    assert (tally.base_prompts, tally.missing, tally.finished) == (3, 0, False)
    folder.write(RUN)
    assert progress.update().finished


def test_a_second_look_reads_only_what_is_new(folder: RunFolder) -> None:
    store = folder.store
    assert isinstance(store, Counting)
    progress = Progress(folder)
    for batch in proposals():
        folder.write_records(batch, judged(batch, 0.9))
        progress.update()
    folder.write_failure(failed("0" * 32, "propose"))
    progress.update()
    progress.update()
    read = {key: count for key, count in store.gets.items() if "records" in key or "fail" in key}
    assert len(read) == 5
    assert set(read.values()) == {1}


def test_a_count_that_was_left_midway_is_taken_up_and_counts_nothing_twice(
    folder: RunFolder,
) -> None:
    for batch in proposals():
        folder.write_records(batch, judged(batch, 0.9))
    progress = Progress(folder)
    steps = progress.update_in_steps()
    next(steps)
    assert progress.tally.judged == 3
    assert progress.update().judged == 12, "another look, in the middle of that one"
    for _ in steps:
        pass
    assert (progress.tally.judged, progress.tally.finished) == (12, True)


def test_a_run_that_was_done_is_not_when_more_is_enqueued(folder: RunFolder) -> None:
    for batch in proposals():
        folder.write_records(batch, judged(batch, 0.9))
    progress = Progress(folder)
    assert progress.update().finished
    more = (BasePrompt(text="a bag"), BasePrompt(text="a pin"))
    folder.write(RUN.model_copy(update={"base_prompts": None}))
    folder.write_input(PromptBatch(run=RUN.name, bases=more))
    tally = progress.update()
    assert (tally.base_prompts, tally.missing, tally.finished) == (5, 8, False)
    folder.write(RUN.model_copy(update={"base_prompts": 5}))
    assert (progress.update().missing, progress.tally.enqueued) == (8, True)


def test_seen_knows_each_id_once() -> None:
    with Seen() as seen:
        assert seen.add(["0a" * 16, "0c" * 16]) == {"0a" * 16, "0c" * 16}
        assert seen.add(["0a" * 16]) == set()
        assert "0a" * 16 in seen and "0b" * 16 not in seen
        assert len(seen) == 2


def test_a_hundred_thousand_ids_take_little_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    with Seen() as seen:
        seen.update(f"{number:032x}" for number in range(100_000))
        assert len(seen) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
