"""Proposers compared: figures worked by hand, the command over a run, the page in a browser."""

import hashlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from pipeline.config import ProposerConfig, Run
from pipeline.errors import InputError
from pipeline.evaluation.proposers import (
    RESAMPLES,
    SEED,
    Evaluation,
    Row,
    SeenTexts,
    evaluate,
    own_specialists,
    paired_bootstrap,
)
from pipeline.miniature.judge import Reading, load_judge
from pipeline.miniature.render import render
from pipeline.miniature.scenes import HAND_FAULTS, sample, with_fault
from pipeline.miniature.truth import JUDGE, Truth, truth
from pipeline.taxonomy import Taxonomy, load_taxonomy
from pipeline.types import (
    Adapter,
    DetailedPrompt,
    Failure,
    ModelRef,
    Proposal,
    ProposalBatch,
    ProposerRef,
    Record,
    Sampler,
    digest,
)
from storage.folder import FolderStore
from storage.runs import RunFolder, run_names
from tests import tiny
from tests.pages import quiet
from workers import settings
from workers.cli import cli
from workers.cli import evaluate as commands
from workers.cli.evaluate_proposers import (
    draw,
    evaluate_run,
    run_name_for,
    seen_texts,
)
from workers.cli.ground_truth import with_truth
from workers.cli.session import Session
from workers.pages.charts import DARK_HEAT, HEAT, HeatMap, draw_heat_maps
from workers.pages.proposers import Samples, against_base, headline, points, write_proposers_page

MODEL = ModelRef(name="tiny", weights="sha256:" + "0" * 64)
CATEGORIES = ("power", "pinch")
SAMPLER = Sampler()


def a_specialist(category: str, name: str = "", letter: str = "a", token: str = "") -> ProposerRef:
    adapter = Adapter(
        name=name or category, weights="sha256:" + letter * 64, category=category, token=token
    )
    return ProposerRef.of(MODEL, adapter)


ALONE, POWER, PINCH = ProposerRef.of(MODEL), a_specialist("power"), a_specialist("pinch")
PROPOSERS = (ALONE, POWER, PINCH)


def a_prompt(number: int, category: str = "power", text: str = "", **attributes: str) -> Any:
    return DetailedPrompt(
        id=digest(["prompt", number]),
        base="a mug",
        index=0,
        text=text or f"prompt {number}",
        category=category,
        attributes=attributes,
    )


def drawn(
    prompt: DetailedPrompt,
    proposer: ProposerRef,
    right: bool = True,
    aligned: bool = True,
    seed: int = 0,
    run: str = "tiny",
) -> Record:
    proposal = Proposal(prompt=prompt, proposer=proposer, seed=seed, sampler=SAMPLER)
    fidelity, alignment = 0.25 + right / 2, 0.25 + aligned / 2
    return tiny.a_record(proposal, fidelity, alignment, run=run)


def evaluated(records: Sequence[Record], **options: Any) -> Evaluation:
    truths = options.pop("truths", {})
    pairs = [(record, truths.get(record.id)) for record in records]
    return evaluate(pairs, options.pop("proposers", PROPOSERS), CATEGORIES, **options)


def row(evaluation: Evaluation, label: str) -> Row:
    return next(each for each in evaluation.rows if each.label == label)


# Cells


def test_shares_and_means_of_a_cell_worked_by_hand() -> None:
    records = [drawn(a_prompt(n), POWER, right=n < 8, aligned=n < 9) for n in range(10)]
    cell = row(evaluated(records), "power").cells["power"]
    assert (cell.n, cell.fidelity, cell.alignment) == (10, 0.65, 0.7)
    assert cell.hand_right and cell.aligned and cell.accepted
    assert (cell.hand_right.hits, cell.hand_right.share) == (8, 0.8)
    assert cell.hand_right.low == pytest.approx(0.490, abs=1e-3)  # Wilson's of 8 in 10
    assert cell.hand_right.high == pytest.approx(0.943, abs=1e-3)
    assert (cell.aligned.share, cell.accepted.share) == (0.9, 0.8)
    assert (cell.faultless, cell.as_asked) == (None, None)


def test_rows_take_specialists_together_in_two_ways() -> None:
    # Right hands: the base never; each specialist in its own category only.
    records = [
        drawn(a_prompt(n, category), ref, right=ref.adapter is not None and ref.label == category)
        for n, (category, ref) in enumerate(product(CATEGORIES, PROPOSERS))
    ]
    evaluation = evaluated(records)
    assert [(each.label, each.kind, each.own) for each in evaluation.rows] == [
        ("base", "base", ()),
        ("power", "specialist", ("power",)),
        ("pinch", "specialist", ("pinch",)),
        ("specialists", "specialists", ()),
        ("ensemble", "ensemble", ()),
    ]
    hits = {
        each.label: [
            (share.hits, share.n)
            for cell in (*each.cells.values(), each.all)
            if (share := cell.hand_right)
        ]
        for each in evaluation.rows
    }
    assert hits == {
        "base": [(0, 1), (0, 1), (0, 2)],
        "power": [(1, 1), (0, 1), (1, 2)],
        "pinch": [(0, 1), (1, 1), (1, 2)],
        "specialists": [(1, 1), (1, 1), (2, 2)],
        "ensemble": [(1, 3), (1, 3), (2, 6)],
    }


def test_ground_truth_counts_only_where_it_is_known() -> None:
    records = [drawn(a_prompt(n), ref) for n in range(4) for ref in PROPOSERS]
    truths = {
        record.id: Truth(faultless=n < 2, as_asked=n < 1)
        for n, record in enumerate(r for r in records if r.proposal.proposer == POWER)
        if n < 3
    }
    evaluation = evaluated(records, truths=truths)
    cell = row(evaluation, "power").all
    assert evaluation.judged_by_truth
    assert cell.n == 4 and cell.faultless and cell.as_asked
    assert (cell.faultless.hits, cell.faultless.n, cell.as_asked.hits) == (2, 3, 1)
    assert cell.paired and cell.paired.pairs == 4
    assert cell.paired_truth is None  # nothing is known of the base's pictures
    assert row(evaluation, "base").all.faultless is None


def test_a_category_without_a_specialist_is_the_bases() -> None:
    records = [
        drawn(a_prompt(1, "pinch"), ref, right=ref == ALONE) for ref in (ALONE, POWER)
    ]  # fmt: skip
    together = row(evaluated(records, proposers=(ALONE, POWER)), "specialists").cells["pinch"]
    assert together.n == 1 and together.hand_right and together.hand_right.hits == 1
    assert together.paired and together.paired.difference == 0


def test_a_category_that_the_taxonomy_lacks_has_a_column() -> None:
    evaluation = evaluated([drawn(a_prompt(1, "hook"), ref) for ref in PROPOSERS])
    assert evaluation.categories == ("power", "pinch", "hook")
    assert row(evaluation, "ensemble").cells["hook"].n == 3


def test_an_adapter_may_be_the_specialist_of_several_categories() -> None:
    both = a_specialist("power", "hands", "b")
    refs, version = (ALONE, both), "b" * 12
    assert own_specialists(refs, CATEGORIES, {}) == {"power": 1}
    assert own_specialists(refs, CATEGORIES, {"pinch": f"hands@{version[:4]}"}) == {
        "power": 1, "pinch": 1
    }  # fmt: skip
    assert own_specialists(refs, CATEGORIES, {"power": "base", "pinch": "hands@c"}) == {}


def test_versions_tell_adapters_of_one_name_apart() -> None:
    refs = (ALONE, a_specialist("power", "hands", "b"), a_specialist("pinch", "hands", "c"))
    evaluation = evaluated([drawn(a_prompt(1), ref) for ref in refs], proposers=refs)
    labels = [each.label for each in evaluation.rows]
    assert labels[1:3] == ["hands@" + "b" * 12, "hands@" + "c" * 12]


def test_a_proposer_that_is_none_of_the_runs_is_refused() -> None:
    with pytest.raises(InputError, match="none of the run's"):
        evaluated([drawn(a_prompt(1), PINCH)], proposers=(ALONE, POWER))


# Pairs


def test_the_bootstrap_of_five_prompts_worked_by_hand() -> None:
    # One of five prompts is worse. A resample holds it k times, k binomial of 5 and 1/5: none in
    # 33 of 100, at most twice in 94, at most three times in 99. So the middle 95% is 0 to 3 in 5.
    faulty = np.array([[1.0], [0.0], [0.0], [0.0], [0.0]])
    (found,) = paired_bootstrap(faulty, np.zeros(5), np.array([7, 9, 11, 13, 15]))
    assert (found.pairs, found.prompts) == (5, 5)
    assert (found.base, found.faulty, found.difference) == (0, 0.2, 0.2)
    assert (found.low, found.high) == (0, 0.6)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, None, None)


def test_the_same_difference_everywhere_has_no_spread() -> None:
    base, faulty = np.array([1.0, 1.0] * 5), np.array([[1.0], [0.0]] * 5)
    (found,) = paired_bootstrap(faulty, base, np.repeat(np.arange(5), 2))
    assert (found.difference, found.low, found.high) == (-0.5, -0.5, -0.5)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (0.5, 0.5, 0.5)


def test_no_fault_at_all_has_a_ratio_without_an_interval() -> None:
    # resamples of nothing are nothing: that is no proof that there never is a fault
    (found,) = paired_bootstrap(np.zeros((9, 1)), np.ones(9), np.arange(9))
    assert (found.ratio, found.ratio_low, found.ratio_high) == (0, None, None)


def test_prompts_are_resampled_and_not_pictures() -> None:
    # 40 pictures of each of 10 prompts, alike within a prompt: as good as 10 pictures.
    prompts = np.repeat(np.arange(10), 40)
    faulty = (prompts < 5).astype(float)[:, None]
    (found,) = paired_bootstrap(faulty, np.zeros(400), prompts)
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(0.6, abs=0.1)  # binomial of 10: 0.2 to 0.8


def test_the_bootstrap_agrees_with_one_in_plain_python() -> None:
    rng = random.Random(3)
    prompts = [number // 3 for number in range(60)]
    base = [float(rng.random() < 0.5) for _ in prompts]
    faulty = [float(rng.random() < 0.3) for _ in prompts]
    (found,) = paired_bootstrap(
        np.array(faulty)[:, None], np.array(base), np.array(prompts), resamples=4000
    )
    differences, ratios = [], []
    for _ in range(4000):
        some = [n for p in rng.choices(range(20), k=20) for n in range(3 * p, 3 * p + 3)]
        ours, its = sum(faulty[n] for n in some), sum(base[n] for n in some)
        differences.append((ours - its) / 60)
        ratios.append(ours / its)
    assert [found.low, found.high] == pytest.approx(
        np.quantile(differences, (0.025, 0.975)), abs=0.02
    )
    assert [found.ratio_low, found.ratio_high] == pytest.approx(
        np.quantile(ratios, (0.025, 0.975)), abs=0.04
    )
    assert found.ratio == sum(faulty) / sum(base)


def test_few_prompts_have_a_difference_and_no_interval() -> None:
    prompts = np.array([1, 1, 2, 3, 4])
    (found,) = paired_bootstrap(np.zeros((5, 1)), np.ones(5), prompts)
    assert (found.difference, found.low, found.high, found.ratio) == (-1, None, None, 0)


def test_differences_are_taken_on_the_same_prompts_and_seeds() -> None:
    # The base fails on seeds 0 and 1 of both prompts, the specialist on seed 0 of the first.
    records = [
        drawn(a_prompt(n), ref, seed=seed, right=seed == 2 or (ref == POWER and (n or seed) > 0))
        for n in range(2)
        for seed in range(3)
        for ref in (ALONE, POWER)
    ]
    cell = row(evaluated(records, proposers=(ALONE, POWER)), "power").cells["power"]
    assert cell.paired
    assert (cell.paired.pairs, cell.paired.prompts) == (6, 2)
    assert cell.paired.base == pytest.approx(4 / 6)
    assert cell.paired.faulty == pytest.approx(1 / 6)
    assert cell.paired.difference == pytest.approx(-0.5)
    assert cell.paired.ratio == pytest.approx(0.25)


def test_what_one_proposer_lacks_is_no_part_of_the_differences() -> None:
    records = [drawn(a_prompt(n), ref, right=ref != ALONE) for n in range(4) for ref in PROPOSERS]
    evaluation = evaluated(records[:-1])  # the last prompt's picture by PINCH failed
    assert (evaluation.pairs, evaluation.incomplete) == (3, 1)
    cell = row(evaluation, "power").cells["power"]
    assert cell.n == 4 and cell.paired and cell.paired.pairs == 3


def test_without_any_complete_pair_there_are_no_differences() -> None:
    # as routed by category: every prompt has one proposer
    records = [drawn(a_prompt(n), PROPOSERS[n % 3]) for n in range(6)]
    evaluation = evaluated(records)
    assert (evaluation.pairs, evaluation.incomplete) == (0, 6)
    assert row(evaluation, "power").all.paired is None
    assert against_base(evaluation, "paired") == []
    assert headline(evaluation) is None


def test_the_order_of_the_records_does_not_matter() -> None:
    rng = random.Random(5)
    records = [
        drawn(a_prompt(n, CATEGORIES[n % 2]), ref, right=rng.random() < 0.6, seed=seed)
        for n in range(20)
        for seed in range(2)
        for ref in PROPOSERS
    ]
    one = evaluated(records, resamples=200)
    rng.shuffle(records)
    assert evaluated(records, resamples=200) == one
    assert evaluated(records, resamples=200, seed=1) != one


def test_nothing_is_evaluated_to_nothing() -> None:
    evaluation = evaluated([])
    assert (evaluation.pictures, evaluation.prompts, evaluation.pairs) == (0, 0, 0)
    assert row(evaluation, "specialists").all.hand_right is None


# Prompts that were trained on


def test_prompts_that_were_trained_on_are_left_out_and_counted() -> None:
    records = [
        drawn(a_prompt(n, text=text), ref)
        for n, text in enumerate(("a hand", "A  Red hand", "another"))
        for ref in PROPOSERS
    ]
    evaluation = evaluated(records, seen={"sks a hand", "a red hand"})
    assert (evaluation.seen_prompts, evaluation.seen_pictures) == (2, 6)
    assert (evaluation.prompts, evaluation.pictures, evaluation.pairs) == (1, 3, 1)
    assert row(evaluation, "ensemble").all.n == 3


def test_a_token_does_not_hide_a_text() -> None:
    seen = SeenTexts(["sks a hand", "word"])
    assert "a hand" in seen and "sks A hand" in seen
    assert "hand" not in seen and "" not in seen


# Ground truth


@pytest.fixture(scope="module")
def judge() -> Any:
    return load_judge(JUDGE)


def asked(example: Any, **changed: str) -> DetailedPrompt:
    scene = example.asked
    return a_prompt(1, scene.category, **{**scene.attributes, **changed})


def test_truth_is_what_the_scene_shows(judge: Any) -> None:
    examples = list(sample(11, 40, 0.0, 0.0))
    clean = truth(judge, [render(e.scene) for e in examples], [asked(e) for e in examples])
    assert sum(each.faultless and each.as_asked for each in clean) >= 38
    faulty = [with_fault(e.scene, HAND_FAULTS[0], 1) for e in examples]
    found = truth(judge, [render(e.scene) for e in faulty], [asked(e) for e in faulty])
    assert sum(not each.faultless for each in found) >= 36


class Says:
    """A judge that gives one reading of every picture."""

    def __init__(self, *faults: str) -> None:
        chances = {name: float(name in faults) for name in (*HAND_FAULTS, "out_of_reach")}
        self._reading = Reading(
            "power", "mug", "red", "tan", "left", "gray", chances, dict.fromkeys(chances, 0.5)
        )

    def read(self, images: list[Image.Image]) -> list[Reading]:
        return [self._reading] * len(images)


@pytest.mark.parametrize(
    ("judge", "prompt", "expected"),
    [
        (Says(), a_prompt(1), Truth(True, True)),
        (Says(), a_prompt(1, object="Mug", color="red", mood="calm"), Truth(True, True)),
        (Says(), a_prompt(1, color="blue"), Truth(True, False)),
        (Says(), a_prompt(1, object="teapot"), Truth(True, False)),
        (Says(), a_prompt(1, "pinch"), Truth(True, False)),
        (Says("out_of_reach"), a_prompt(1), Truth(True, False)),
        (Says("extra_finger"), a_prompt(1), Truth(False, True)),
    ],
)
def test_only_what_a_prompt_names_is_compared(
    judge: Any, prompt: DetailedPrompt, expected: Truth
) -> None:
    assert truth(judge, [Image.new("RGB", (64, 64))], [prompt]) == [expected]


# A run in a store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderStore]:
    """An empty store, the one that commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPV_STORE_URL", (tmp_path / "store").as_uri())
    settings.settings.cache_clear()
    yield FolderStore(tmp_path / "store")
    settings.settings.cache_clear()


OTHER_WORLD = Taxonomy.model_validate(
    load_taxonomy("miniature").model_dump() | {"name": "other", "version": 7}
)


def a_run(
    proposers: tuple[ProposerRef, ...] = PROPOSERS,
    taxonomy: Taxonomy | None = None,
    base_prompts: int = 4,
) -> Run:
    config = ProposerConfig(route="all", images_per_prompt=1)
    run = tiny.a_run(proposer=config, taxonomy=taxonomy, base_prompts=base_prompts)
    return run.model_copy(update={"name": "compared", "proposers": proposers})


def a_picture(side_px: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px), (200, 120, 40)).save(file, "PNG")
    return file.getvalue()


def kept(
    store: FolderStore, run: Run, records: Sequence[Record], picture: bytes = b""
) -> RunFolder:
    """The run with these records and their pictures."""
    folder = RunFolder(store, run.name)
    folder.write(run)
    for record in records:
        proposal = record.proposal
        batch = ProposalBatch.of(
            run.name, proposal.proposer, SAMPLER, [(proposal.prompt, proposal.seed)]
        )
        folder.write_records(batch, [record])
        folder.write_image(record.id, picture or a_picture())
    return folder


def some_records(count: int = 8) -> list[Record]:
    return [
        drawn(a_prompt(n, CATEGORIES[n % 2]), ref, right=(n + len(ref.label)) % 3 > 0,
              run="compared")
        for n in range(count)
        for ref in PROPOSERS
    ]  # fmt: skip


def invoke(*arguments: str) -> tuple[int, str]:
    """The exit code of `main`, and what was printed or complained about."""
    result = CliRunner().invoke(cli, arguments, env={"COLUMNS": "140"})
    if isinstance(result.exception, InputError):
        return 2, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_run_that_is_there_is_measured(store: FolderStore, tmp_path: Path) -> None:
    kept(store, a_run(), some_records())
    code, out = invoke("evaluate", "proposers", "--of", "compared", "--out", "new")
    assert code == 0
    for said in (
        "Hand faultless, by ground truth",
        "All as asked, by ground truth",
        "Hand right, by the verifier",
        "Faulty hands on the same prompts and seeds, by ground truth",
        "Scores by the verifier, means of fidelity and alignment",
        "no specialist of tripod, lateral, hook, platform",
        f"html  {Path('new') / 'proposers.html'}",
    ):
        assert said in out
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "proposers.html", "proposers.json", "proposers.png"
    ]  # fmt: skip
    with Image.open(tmp_path / "new" / "proposers.png") as image:
        assert image.width > 1000
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 20
    said = json.loads((tmp_path / "new" / "proposers.json").read_text())
    assert (said["run"], said["pictures"], said["pairs"]) == ("compared", 24, 8)
    assert said["rows"][0]["cells"]["power"]["paired"] is None
    assert said["rows"][1]["cells"]["power"]["hand_right"]["n"] == 4


def test_json_is_one_object_of_the_same_figures(store: FolderStore, tmp_path: Path) -> None:
    kept(store, a_run(), some_records())
    code, out = invoke("evaluate", "proposers", "--of", "compared", "--json")
    assert code == 0
    said = json.loads(out[out.index("{") :])
    written = tmp_path / "ppv-out" / "compared" / "proposers.json"
    assert said == json.loads(written.read_text())


def test_truth_is_asked_only_of_the_drawn_world(store: FolderStore) -> None:
    folder = kept(store, a_run(taxonomy=OTHER_WORLD), some_records())
    assert not evaluate_run(folder, 100, 0).evaluation.judged_by_truth
    folder = kept(store, a_run(), some_records(), a_picture(96))  # not as large as its pictures
    assert not evaluate_run(folder, 100, 0).evaluation.judged_by_truth


def test_a_picture_that_is_gone_has_no_truth(store: FolderStore) -> None:
    records = some_records(2)
    folder = kept(store, a_run(), records)
    store.delete(f"runs/compared/images/{records[1].id}.png")
    judged: Any = Says()
    found = [its_truth for _, its_truth in with_truth(records, folder, judged)]
    assert [its_truth is None for its_truth in found] == [n == 1 for n in range(6)]


def test_pictures_are_judged_a_batch_at_a_time(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.cli.ground_truth.JUDGED_AT_ONCE", 4)
    records = some_records()
    folder = kept(store, a_run(), records)
    sizes: list[int] = []

    class Counts(Says):
        def read(self, images: list[Image.Image]) -> list[Reading]:
            sizes.append(len(images))
            return super().read(images)

    judge: Any = Counts()
    assert [record for record, _ in with_truth(iter(records), folder, judge)] == records
    assert sizes == [4] * 6


def test_training_prompts_are_read_from_the_cards(store: FolderStore) -> None:
    card = {"prompts": ["a zxq hand holding a mug", "prompt 1"], "config": {"token": "zxq"}}
    store.put(f"models/power/{'a' * 12}/card.json", json.dumps(card).encode())
    store.put(f"models/pinch/{'a' * 12}/card.json", b"no card")
    texts, unknown = seen_texts(store, a_run())
    assert texts == {"a zxq hand holding a mug", "a hand holding a mug", "prompt 1"}
    assert unknown == ["pinch"]
    notes = evaluate_run(kept(store, a_run(), some_records()), 100, 0).notes
    assert notes[0].endswith("a specialist was trained on them: 1 prompt, 3 pictures")
    assert "which prompts pinch had in training" in notes[1]


def test_shipped_specialists_have_cards(store: FolderStore) -> None:
    from pipeline.specialists import shipped

    ours = [each for each, _ in shipped()]
    if not ours:
        pytest.skip("no specialists are shipped")
    refs = tuple(ProposerRef.of(MODEL, each.adapter(each.category)) for each in ours)
    texts, unknown = seen_texts(store, a_run((ALONE, *refs)))
    assert len(texts) > len(ours) and unknown == []


def test_notes_say_what_is_missing(store: FolderStore) -> None:
    folder = kept(store, a_run(base_prompts=3), some_records()[:-1])
    lost = Failure(id="f" * 32, stage="propose", subject="x", error="no", tries=3)
    folder.write_failure(lost)
    notes = " ".join(evaluate_run(folder, 100, 0).notes)
    assert "for want of a picture by some proposer: 1 of 8 prompts and seeds" in notes
    assert "1 proposal failed: see `ppv report compared`" in notes
    assert "missing: 12 proposals; `ppv resume compared` goes on" in notes


def test_what_cannot_be_measured_is_said_in_one_line(store: FolderStore) -> None:
    kept(store, a_run((ALONE,)), [])
    code, line = invoke("evaluate", "proposers", "--of", "compared")
    assert code == 2 and "has one proposer, 'tiny', and nothing to compare it with" in line
    assert "ppv train proposer" in line and "\n" not in line
    RunFolder(store, "empty").write(a_run().model_copy(update={"name": "empty"}))
    assert "no judged pictures yet" in invoke("evaluate", "proposers", "--of", "empty")[1]
    assert "no run 'absent'" in invoke("evaluate", "proposers", "--of", "absent")[1]
    for wrong in ([], ["a.txt", "--of", "compared"], ["--of", "compared", "--run", "x"]):
        code, line = invoke("evaluate", "proposers", *wrong)
        assert code == 2 and "give a FILE of base prompts to draw, or --of RUN" in line


def test_a_comparison_is_another_run_than_the_files_own() -> None:
    assert run_name_for("My Bases.txt") == "my-bases-proposers"
    assert len(run_name_for("x" * 300)) == 64


def test_the_commands_defaults_are_the_librarys() -> None:
    defaults = commands.proposers.__defaults__ or ()
    assert RESAMPLES in defaults and SEED in defaults


def test_one_proposer_is_refused_before_anything_is_kept(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = dict.fromkeys(load_taxonomy("miniature").categories, "base")
    monkeypatch.setenv("PPV_PROPOSER__ROUTE", "all")
    monkeypatch.setenv("PPV_PROPOSER__SPECIALISTS", json.dumps(none))
    (tmp_path / "bases.txt").write_text("a mug\n")
    nobody: Any = None  # it never gets as far as a broker
    here = Session(settings.load_settings(), store, nobody, [])
    with pytest.raises(InputError, match="has one proposer, 'miniature', and nothing to compare"):
        draw(here, "bases.txt", "alone", None)
    assert run_names(store) == []


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("workers.cli.evaluate, workers.pages.charts", {"torch", "matplotlib", "numpy", "PIL"}),
        ("workers.cli.evaluate_proposers", {"torch", "matplotlib", "diffusers"}),
    ],
)
def test_importing_loads_nothing_heavy(modules: str, heavy: set[str]) -> None:
    code = f"import sys, {modules}; print(*({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


# The heat map


def a_map(values: list[list[float | None]]) -> HeatMap:
    return HeatMap(
        "Hand $right$",
        "by the verifier",
        [f"proposer {n}" for n in range(len(values))],
        [f"a long category {n}" for n in range(len(values[0]))],
        values,
        frozenset({(0, 0)}),
    )


def test_colors_span_whole_tenths_and_no_small_gulf() -> None:
    wide = a_map([[0.31, 0.89, None]])
    assert wide.scale == (0.3, 0.9)
    assert (wide.heat(0.3), wide.heat(0.6), wide.heat(0.9)) == (0, 5, 10)
    assert a_map([[0.91, 0.92]]).scale == pytest.approx((0.8, 1.0))
    assert a_map([[0.0, 0.0]]).scale == (0, 0.2)
    assert a_map([[None]]).scale == (0, 1)


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_heat_is_told_by_lightness_and_its_words_can_be_read() -> None:
    light = [luminance(color) for color in HEAT]
    assert all(one > other for one, other in pairwise(light))
    for place, value in enumerate(light):
        ink = 1.0 if place >= DARK_HEAT else luminance("#1f1e1b")
        assert (max(ink, value) + 0.05) / (min(ink, value) + 0.05) >= 4.5, place


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_heat_is_the_same_bytes(tmp_path: Path, ending: str) -> None:
    files = [tmp_path / f"{number}{ending}" for number in range(2)]
    for file in files:
        draw_heat_maps("compared", "of nothing", [a_map([[0.4, None], [0.9, 1.0]])] * 3, file)
    one, other = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert one == other


# The page


def test_samples_are_bounded_and_the_same_in_any_order() -> None:
    rng = random.Random(2)
    records = [
        drawn(a_prompt(n, CATEGORIES[n % 2]), ref, seed=seed)
        for n in range(60)
        for seed in (4, 1, 3)
        for ref in PROPOSERS
    ]
    chosen = []
    for _ in range(2):
        rng.shuffle(records)
        samples = Samples(prompts=5)
        for record in records:
            samples.add(record)
        by_category = samples.by_category()
        assert {len(prompts) for prompts in by_category.values()} == {5}
        every = [each.record for some in by_category.values() for one in some for each in one]
        assert len(every) == 2 * 5 * 3
        assert {record.proposal.seed for record in every} == {1}
        chosen.append({record.id for record in every})
    assert chosen[0] == chosen[1]


def test_points_have_signs() -> None:
    assert [points(value) for value in (-0.1234, 0.05, 0.0, -0.0001)] == [
        "\N{MINUS SIGN}12.3", "+5.0", "0.0", "0.0"
    ]  # fmt: skip


HOSTILE = (
    '<script>window.hacked = 1</script> </style> "><img src=x> {{ 7 * 7 }} \u202e ' + "x" * 700
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two categories with a truth for each picture, one text hostile."""
    rng = random.Random(4)
    records = [
        drawn(
            a_prompt(n, CATEGORIES[n % 2], text=HOSTILE if n == 0 else ""),
            ref,
            right=rng.random() < 0.7,
            aligned=rng.random() < 0.8,
        )
        for n in range(10)
        for ref in PROPOSERS
    ][:-1]
    truths = {r.id: Truth(rng.random() < 0.7, rng.random() < 0.7) for r in records}
    samples = Samples()
    for record in records:
        samples.add(record, truths[record.id])
    to = tmp_path_factory.mktemp("page") / "proposers.html"
    evaluation = evaluated(records, truths=truths, resamples=200)
    notes = [f"note {HOSTILE}"]
    picture = a_picture()
    write_proposers_page(a_run(), evaluation, samples, lambda record: picture, notes, to)
    return to


@pytest.fixture
def page(browser: Browser, written: Path) -> Iterator[Page]:
    """The page, opened; the test fails if it complains or asks for anything but itself."""
    with quiet(browser, written) as page:
        yield page


def test_the_page_shows_maps_differences_and_pictures(page: Page) -> None:
    assert page.locator("table.heat").count() == 4
    cells = page.locator("table.heat").first.locator("tbody td")
    assert cells.count() == 5 * 3
    assert page.locator("table.heat").first.locator("td.own").count() == 2
    colors = cells.evaluate_all("cells => cells.map((c) => getComputedStyle(c).backgroundColor)")
    assert len(set(colors)) > 2 and "rgba(0, 0, 0, 0)" not in colors
    assert page.locator("table.pairs").count() == 2
    assert page.locator(".strip").count() == 10
    assert page.locator(".tile img").count() == 29
    assert page.get_by_text("not drawn").count() == 1
    first = page.locator(".strip").first.locator(".tile b")
    assert first.all_text_contents() == ["base", "power", "pinch"]
    assert page.get_by_text("for each one of the base").count() == 1


def test_texts_from_elsewhere_are_text(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator("script, .prompt *, .notes li *").count() == 0
    assert any(HOSTILE[:80] in text for text in page.locator(".prompt").all_text_contents())


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways(page: Page, width: int, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 740})
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_assistive_technology_finds_its_way(page: Page) -> None:
    assert page.locator("h1").count() == 1
    assert page.title() == "compared · proposers compared"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("svg:not([aria-hidden]):not([role=img])").count() == 0
    labels = page.locator("[aria-labelledby]").evaluate_all(
        "es => es.flatMap((e) => e.getAttribute('aria-labelledby').split(' '))"
    )
    assert [label for label in labels if page.locator(f"#{label}").count() != 1] == []
    levels = page.locator("h1, h2, h3, h4").evaluate_all("hs => hs.map((h) => +h.tagName[1])")
    assert all(below <= above + 1 for above, below in pairwise(levels))


def test_many_proposers_leave_the_page_bounded(tmp_path: Path) -> None:
    many = (ALONE, *(a_specialist(f"c{n}", letter="abcdef"[n % 6]) for n in range(20)))
    samples = Samples()
    records = [drawn(a_prompt(n, f"c{n % 20}"), ref) for n in range(100) for ref in many]
    for record in records:
        samples.add(record)
    evaluation = evaluated(records, proposers=many, resamples=100)
    run = a_run(many)
    write_proposers_page(run, evaluation, samples, lambda r: a_picture(), [], tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text("utf-8")
    assert page.count("<img ") <= 600
    assert 'alt="By c19' in page  # a category's own specialist is among those shown
