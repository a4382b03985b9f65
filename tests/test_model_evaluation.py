"""Models compared: figures worked by hand, suites, metrics, the command, the page in a browser."""

import io
import itertools
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page

from pipeline.config import OpinionsConfig, PrompterConfig, VerifierConfig
from pipeline.errors import InputError
from pipeline.evaluation.distances import Distance, JudgeEyes, reference_files
from pipeline.evaluation.models import (
    BY_NAME,
    Against,
    Comparison,
    SuiteFigures,
    clearly,
    figures_of,
)
from pipeline.evaluation.suites import SHIPPED, load_suite
from pipeline.miniature.scenes import Scene, is_held_out
from pipeline.miniature.truth import Truth
from pipeline.prompter.plan import named_in
from pipeline.taxonomy import load_taxonomy
from pipeline.types import (
    DetailedPrompt,
    ModelRef,
    Proposal,
    ProposalBatch,
    ProposerRef,
    Record,
    Sampler,
    digest,
)
from storage.folder import FolderStore
from storage.progress import records
from storage.runs import RunFolder
from storage.s3 import S3Store
from tests import tiny
from tests.conftest import _free_port
from tests.pages import quiet
from tests.place import Place, until
from workers import settings
from workers.cli import evaluate as commands
from workers.cli.evaluate_models import Options, arms_of
from workers.cli.model_metrics import Metrics
from workers.cli.model_tables import tables
from workers.embedded import BUCKET, Embedded
from workers.pages.models import between, difference, figure, gap

MODEL = ProposerRef.of(ModelRef(name="tiny", weights="sha256:" + "0" * 64))
MINIATURE = load_taxonomy("miniature")
CPU = VerifierConfig(device="cpu")


def a_record(number: int, seed: int = 0, fidelity: float = 0.75) -> Record:
    prompt = DetailedPrompt(
        id=digest(number), base=f"prompt {number}", index=0, text=f"prompt {number}", category=""
    )
    proposal = Proposal(prompt=prompt, proposer=MODEL, seed=seed, sampler=Sampler())
    return tiny.a_record(proposal, fidelity, 0.75)


def compared(
    *arms: Sequence[Sequence[float]], metric: str = "fidelity", **options: int
) -> SuiteFigures:
    """A suite from each arm's figures, by prompt and picture."""
    comparison = Comparison([f"arm {at}" for at in range(len(arms))])
    for at, prompts in enumerate(arms):
        for number, pictures in enumerate(prompts):
            for seed, value in enumerate(pictures):
                record = a_record(number, seed)
                category = "even" if number % 2 == 0 else "odd"
                comparison.add(at, record.proposal.prompt.base, record, category, {metric: value})
    return comparison.figures(**options)


# Figures


def test_a_mean_has_the_interval_of_all_resamples_of_its_prompts() -> None:
    # Five prompts of unlike numbers of pictures; all 5^5 resamples can be counted out.
    prompts = [[0.1, 0.3], [0.9], [0.5, 0.5, 0.2], [0.7], [0.4, 0.6]]
    found = compared(prompts, prompts, resamples=20_000).arms["arm 0"].metrics["fidelity"]
    means = [
        np.mean([value for place in drawn for value in prompts[place]])
        for drawn in itertools.product(range(5), repeat=5)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.n, found.value) == (9, pytest.approx(4.2 / 9))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_differences_are_of_the_same_prompts() -> None:
    # The prompts differ wildly; on each, the second arm is better by exactly a tenth.
    first = [[n / 10] for n in range(9)]
    suite = compared(first, [[value + 0.1 for value in values] for values in first])
    arm = suite.arms["arm 1"]
    mean = arm.metrics["fidelity"]
    assert mean.low is not None and mean.high is not None and mean.high - mean.low > 0.2
    beside = arm.against["arm 0"]["fidelity"]
    assert (beside.difference, beside.low, beside.high) == pytest.approx((0.1, 0.1, 0.1))
    back = suite.arms["arm 0"].against["arm 1"]["fidelity"]
    assert (back.difference, back.low, back.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert beside.ratio is None  # of shares only
    assert suite.arms["arm 0"].wins == {}


def test_shares_have_ratios_and_the_direction_that_is_better() -> None:
    base = [[1.0, 1.0], [1.0, 0.0]] * 4  # 3 in 4 faulty
    tuned = [[1.0, 0.0], [0.0, 0.0]] * 4  # 1 in 4
    arm = compared(base, tuned, metric="faulty").arms["arm 1"]
    beside = arm.against["arm 0"]["faulty"]
    assert (beside.difference, beside.ratio) == (-0.5, pytest.approx(1 / 3))
    assert (beside.low, beside.high) == (-0.5, -0.5)
    assert beside.ratio_low is not None and 0 < beside.ratio_low < 1 / 3
    faulty, accepted = BY_NAME["faulty"], BY_NAME["accepted"]
    assert (clearly(faulty, beside), clearly(accepted, beside)) == ("better", "worse")
    assert clearly(faulty, Against(-0.5, -1.0, 0.0)) == ""
    assert clearly(faulty, Against(-0.5, None, None)) == ""


def test_wins_are_counted_picture_by_picture_and_a_tie_is_a_half() -> None:
    base = [[1.0, 1.0, 0.0, 0.0]] * 6
    tuned = [[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]] * 3
    wins = compared(base, tuned, metric="faulty").arms["arm 1"].wins["faulty"]
    # Of the first prompts: won, tied, tied, lost = 2 of 4. Of the others: won, won, tied, tied.
    assert (wins.share, wins.pairs) == (0.625, 24)
    assert wins.low is not None and wins.high is not None and 0.5 <= wins.low < wins.high <= 0.75
    higher = compared(base, tuned, metric="accepted").arms["arm 1"].wins["accepted"]
    assert higher.share == 0.375


def test_categories_are_figures_of_their_own() -> None:
    arm = compared([[n / 10] for n in range(10)], [[0.0]] * 10).arms["arm 0"]
    assert {name: found["fidelity"].value for name, found in arm.categories.items()} == {
        "even": pytest.approx(0.4), "odd": pytest.approx(0.5)
    }  # fmt: skip
    assert arm.categories["odd"]["fidelity"].n == 5


def test_too_few_prompts_have_no_interval_and_none_at_all_no_figure() -> None:
    arm = compared([[0.2, 0.4]] * 4, []).arms["arm 0"]
    assert (arm.metrics["fidelity"].value, arm.metrics["fidelity"].low) == (
        pytest.approx(0.3),
        None,
    )
    suite = compared([], [[0.5]] * 9)
    assert (suite.arms["arm 0"].metrics, suite.arms["arm 0"].pictures) == ({}, 0)
    assert suite.arms["arm 1"].against == {"arm 0": {}}
    assert [table.row_count for table in tables({"suite": suite})] == [1]


def test_a_share_of_none_is_not_certain() -> None:
    arm = compared([[0.0, 0.0]] * 10, [[0.0, 0.0]] * 9 + [[0.0, 1.0]], metric="faulty")
    none = arm.arms["arm 0"].metrics["faulty"]
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.278, abs=1e-3)  # Wilson's of 0 in 10


def test_the_same_seed_gives_the_same_intervals() -> None:
    arms = [[[0.1], [0.9], [0.4], [0.3], [0.8]]] * 2
    one, same, other = (compared(*arms, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_figures_of_a_picture() -> None:
    found = figures_of(a_record(1, fidelity=0.25), Truth(True, False), {"clip_score": 0.25})
    assert found == {
        "faulty": 0, "as_asked": 0, "rejected_hand": 1, "accepted": 0, "fidelity": 0.25,
        "alignment": 0.75, "clip_score": 25,
    }  # fmt: skip
    assert "faulty" not in figures_of(a_record(1), None)


def test_words_of_figures() -> None:
    faulty, fidelity = BY_NAME["faulty"], BY_NAME["fidelity"]
    minus = "\N{MINUS SIGN}"
    assert [figure(faulty, 0.042), figure(fidelity, 0.5), figure(fidelity, -12.34)] == [
        "4.2%", "0.500", f"{minus}12.3"
    ]  # fmt: skip
    assert between(faulty, 0.01, 0.12) == "1.0 to 12%" and between(faulty, None, None) == ""
    drop = Against(-0.0834, -0.2, 0.0004)
    assert (difference(faulty, drop), gap(faulty, drop)) == (f"{minus}8.3", f"{minus}20.0 to 0.0")
    assert gap(fidelity, drop) == f"{minus}0.200 to 0.000"
    assert difference(fidelity, Against(-0.0001, None, None)) == "0.000"


# Suites


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.iterdir()))
def test_suites_that_ship_hold_prompts(name: str) -> None:
    suite = load_suite(name)
    assert len(suite.lines) >= 24
    assert suite.has_bases == (name == "miniature-hands")


def test_the_miniatures_suites_are_what_they_say() -> None:
    for line in load_suite("miniature-hands").lines:
        category, found = named_in(line.prompt, MINIATURE)
        names = ("object", "color", "skin", "hand", "background")
        assert is_held_out(Scene(category, *(found[name] for name in names))), line
    for line in load_suite("miniature-unseen").lines:
        category, found = named_in(line.prompt, MINIATURE)
        assert found["object"] not in MINIATURE.categories[category].objects, line
    for name in ("general", "miniature-general"):
        assert not [line for line in load_suite(name).lines if "hand" in line.prompt.split()]


def write_suite(folder: Path, text: str, name: str = "mine.txt") -> str:
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, "a  hand\r\nan \u2028 owl\r\n"))
    assert (suite.name, [line.prompt for line in suite.lines]) == ("mine", ["a hand", "an owl"])
    line = '{"prompt": "a red\u2028mug", "base": "a mug"}'
    (only,) = load_suite(write_suite(tmp_path, line, "mine.jsonl")).lines
    assert (only.prompt, only.base) == ("a red mug", "a mug")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a hand\n\nan owl\n", "line 2 is empty: take it out"),
        ("a hand\nan owl\nA  Hand\n", "line 3 repeats line 1, 'A Hand': a prompt counts once"),
        ("", "holds no prompt: write one a line"),
        ("\n", "line 1 is empty"),
        ("a\x00hand\n", "line 1 holds a control character"),
        ("x" * 2001, "a prompt has 1 to 2,000 characters"),
    ],
)
def test_a_wrong_line_of_a_suite_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_suite(write_suite(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a hand", 'is no JSON: write {"prompt": "..."}'),
        ('{"text": "a hand"}', 'needs an object with "prompt" as text'),
        ('{"prompt": "a", "bse": "b"}', "the unknown field 'bse': known are prompt and base"),
        ('{"prompt": "a", "base": 3}', '"base" has to be text'),
        ('{"prompt": "a", "base": "c"}\n{"prompt": "b", "base": "c"}', "base prompt 'c' twice"),
    ],
)
def test_a_wrong_object_of_a_suite_is_named(tmp_path: Path, lines: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_suite(write_suite(tmp_path, lines, "mine.jsonl"))
    assert said in str(caught.value)


def test_an_unknown_suite_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no suite 'hnads'.*did you mean 'hands'"):
        load_suite("hnads")
    with pytest.raises(InputError, match=r"a suite is a \.txt or a \.jsonl file"):
        load_suite(write_suite(tmp_path, "prompt\na hand\n", "mine.csv"))


def test_the_verbatim_prompter_makes_one_prompt_of_each() -> None:
    with pytest.raises(ValueError, match=r"set prompter\.prompts_per_base=1"):
        PrompterConfig(kind="verbatim")
    assert PrompterConfig(kind="verbatim", prompts_per_base=1)


# Arms


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.chdir(tmp_path)
    return FolderStore(tmp_path / "store")


def test_arms_are_models_under_labels(store: FolderStore) -> None:
    tiny.save_weights(Path("mine"))
    tiny.save_weights(Path("pinch"))  # the store's model of that name is meant
    given = ["base", "ensemble", "pinch", "base:short", "x=./mine", "mine", "my/model:short"]
    arms = arms_of(given, settings.load_settings(), store)
    assert [arm.label for arm in arms] == [
        "base", "ensemble", "pinch", "base-short", "x", "mine", "model-short"
    ]  # fmt: skip
    drawn = [(a.proposer.model, a.proposer.route, a.proposer.adapter, a.short) for a in arms]
    assert drawn == [
        ("miniature", "base", "", False),
        ("miniature", "specialist", "", False),
        ("miniature", "base", "pinch", False),
        ("miniature", "base", "", True),
        ("./mine", "base", "", False),
        ("mine", "base", "", False),
        ("my/model", "base", "", True),
    ]


def test_an_arm_may_have_several_models(store: FolderStore) -> None:
    tiny.save_weights(Path("a+b"))
    given = ["base", "both=pinch+hook:short", "pinch+hook", "a+b"]
    arms = arms_of(given, settings.load_settings(), store)
    assert [(arm.label, arm.proposer.adapter, arm.proposer.model, arm.short) for arm in arms] == [
        ("base", "", "miniature", False),
        ("both", "pinch", "miniature", False),
        ("both", "hook", "miniature", True),
        ("pinch+hook", "pinch", "miniature", False),
        ("pinch+hook", "hook", "miniature", False),
        ("a+b", "", "a+b", False),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["base"], "needs two arms or more, such as: ppv evaluate models base ensemble"),
        (["base", "ensembel"], "no arm 'ensembel'.*did you mean 'ensemble'"),
        (["base", "base"], "two arms are called 'base': call one of them LABEL=base"),
        (["base", "a=pinch@000"], "no version '000' of the model 'pinch'"),
        (["base", "both=pinch+pinhc"], "no arm 'pinhc'.*did you mean 'pinch'"),
        (["base", "both=pinch+pinch"], "'both=pinch.pinch' has the model 'pinch' twice"),
        (["both=pinch+hook", "base"], "arm 'both' has 2 models.*put an arm of one model first"),
    ],
)
def test_a_wrong_arm_is_named(store: FolderStore, given: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        arms_of(given, settings.load_settings(), store)


def test_the_commands_defaults_are_the_librarys() -> None:
    options, defaults = Options(), commands.models.__defaults__ or ()
    assert {options.resamples, options.seed, options.images_per_prompt} <= set(defaults)


# Metrics of pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_clip(tmp_path_factory.mktemp("clip"))


def a_picture(seed: int, size: int = 64) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return Image.fromarray(noise)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(store: FolderStore) -> RunFolder:
    """A run of six pictures in two batches."""
    folder = RunFolder(store, "arm")
    folder.write(tiny.a_run())
    for batch in ([0, 1, 2], [3, 4, 5]):
        some = [a_record(number) for number in batch]
        images = [(record.proposal.prompt, record.proposal.seed) for record in some]
        folder.write_records(ProposalBatch.of("arm", MODEL, Sampler(), images), some)
        for record in some:
            folder.write_image(record.id, png(a_picture(record.proposal.seed)))
    return folder


def metrics(
    reference: Path | None = None, features: str = "", world: str = "grasp", **models: str
) -> Metrics:
    found = Metrics(OpinionsConfig(**models), reference, features, load_taxonomy(world), CPU)
    found.load()
    return found


BASES = {f"prompt {number}" for number in range(6)}


def measured(metrics: Metrics, folder: RunFolder) -> dict[str, Any]:
    found = [item for part in metrics.measure(folder, BASES) for item in part]
    return {item.record.proposal.prompt.base: item for item in found}


def test_scores_are_kept_so_that_nothing_is_scored_twice(
    folder: RunFolder, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    from pipeline.verifier.opinions import ClipOpinion

    hear = ClipOpinion.hear

    def counted(self: ClipOpinion, images: Any, prompts: Any) -> Any:
        heard.append(len(images))
        if len(heard) == 2:
            raise KeyboardInterrupt
        return hear(self, images, prompts)

    monkeypatch.setattr(ClipOpinion, "hear", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(metrics(clip_score=str(clip)), folder)
    first = measured(metrics(clip_score=str(clip)), folder)
    assert heard == [3, 3, 3]  # the second batch was cut off, and the first is kept
    again = measured(metrics(clip_score=str(clip)), folder)
    assert heard == [3, 3, 3]
    assert {base: item.scores for base, item in again.items()} == {
        base: item.scores for base, item in first.items()
    }
    measured(metrics(preference=str(clip)), folder)
    assert heard == [3, 3, 3, 3, 3]


def test_what_cannot_be_read_is_counted_as_lacking(folder: RunFolder, clip: Path) -> None:
    gone, broken, small = (a_record(number) for number in range(3))
    folder.store.delete(f"runs/arm/images/{gone.id}.png")
    folder.write_image(broken.id, b"no picture")
    folder.write_image(small.id, png(a_picture(0, 32)))
    found = measured(metrics(clip_score=str(clip)), folder)
    assert [base for base, item in found.items() if item.lacks] == ["prompt 0", "prompt 1"]
    judged = measured(metrics(world="miniature"), folder)
    lacking = {base for base, item in judged.items() if item.lacks}
    assert (
        lacking
        == {"prompt 0", "prompt 1", "prompt 2"}
        == {base for base, item in judged.items() if item.truth is None}
    )


def test_pictures_are_in_memory_some_at_a_time(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.cli.model_metrics.AT_ONCE", 2)
    sizes = [len(part) for part in metrics(world="miniature").measure(folder, BASES)]
    assert sizes == [2, 1, 2, 1]
    only = metrics(world="miniature").measure(folder, {"prompt 4"})
    assert [item.record.proposal.prompt.base for part in only for item in part] == ["prompt 4"]


def test_weights_that_are_absent_are_skipped_and_named(tmp_path: Path, clip: Path) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    for number in range(2):
        a_picture(number).save(reference / f"{number}.png")
    found = metrics(reference, "nowhere", clip_score="absent", image_reward=str(clip))
    assert sorted(found.skipped) == ["clip_score", "fid", "image_reward", "kid"]
    assert "no model at 'absent'" in found.skipped["clip_score"]
    assert "pipeline.verifier.image_reward" in found.skipped["image_reward"]
    assert found.skipped["fid"] == found.skipped["kid"] and "'nowhere'" in found.skipped["fid"]
    assert found.reference is None


# Distances


def a_cloud(count: int, shift: float, width: int = 8) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(int(1000 * shift) + count)
    return torch.randn(count, width, generator=drawn) + shift


def test_fid_is_frechets_distance_of_two_gaussians() -> None:
    real, others = a_cloud(400, 0.5), a_cloud(300, 1.0)
    distance = Distance(8)
    distance.add(real, real=True)
    ours = distance.fresh()
    for part in others.split(70):
        ours.add(part)
    units = [8**0.5 * x / x.norm(dim=1, keepdim=True) for x in (real, others)]
    (m, n), (s, t) = [x.mean(0).numpy() for x in units], [np.cov(x.T.numpy()) for x in units]
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(values) @ vectors.T
    crossed = np.sqrt(np.linalg.eigvalsh(root @ t @ root)).sum()
    expected = ((m - n) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * crossed
    assert ours.figures(0)["fid"] == pytest.approx(expected, rel=1e-3)
    nearer = distance.fresh()
    nearer.add(a_cloud(300, 0.5))
    assert nearer.figures(0)["fid"] < expected / 5


def test_kid_is_the_unbiased_kernel_distance() -> None:
    real, others = torch.eye(4)[:3], torch.eye(4)[[0, 3, 3]]
    distance = Distance(4)
    distance.add(real, real=True)
    distance.add(others * 7)  # their length does not count
    # By hand: k is 1 apart and (4/4 + 1)^3 = 8 on the same axis. Within the reference all pairs are
    # apart: 1. Within the others 1 of 3 pairs is the same: (8 + 1 + 1) / 3. Across, 1 of 9: 16 / 9.
    assert distance.figures(0)["kid"] == pytest.approx(1000 * (1 + 10 / 3 - 2 * 16 / 9), rel=1e-4)
    far = Distance(8)
    far.add(a_cloud(300, 0.5), real=True)
    far.add(a_cloud(200, 0.5))
    state = torch.get_rng_state()
    assert far.figures(3) == far.figures(3) and abs(far.figures(3)["kid"]) < 20
    assert torch.equal(torch.get_rng_state(), state)


def test_one_picture_has_no_distance() -> None:
    distance = Distance(4)
    distance.add(torch.eye(4), real=True)
    distance.add(torch.eye(4)[:1])
    assert distance.figures(0) == {}


def test_the_judge_tells_a_world_of_its_own_from_noise(tmp_path: Path) -> None:
    from pipeline.miniature.render import render
    from pipeline.miniature.scenes import sample

    drawn = [render(each.scene) for each in sample(1, 60)]
    for number, picture in enumerate(drawn[:30]):
        picture.save(tmp_path / f"{number}.png")
    eyes = JudgeEyes()
    reference = Distance.to(reference_files(tmp_path), eyes)
    same, noise = reference.fresh(), reference.fresh()
    same.add(eyes.see(drawn[30:]))
    noise.add(eyes.see([a_picture(number) for number in range(30)]))
    assert reference.reference == 30
    for name in ("fid", "kid"):
        assert 3 * same.figures(0)[name] < noise.figures(0)[name]


def test_a_reference_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*absent"):
        reference_files(tmp_path / "absent")
    a_picture(1).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="holds 1 pictures"):
        reference_files(tmp_path)
    with pytest.raises(InputError, match="--reference needs --features MODEL"):
        a_picture(2).save(tmp_path / "two.png")
        metrics(tmp_path)
    (tmp_path / "three.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"three\.jpg'.*take it out"):
        reference_files(tmp_path)
    cut = png(a_picture(3))[:-2000]
    (tmp_path / "three.jpg").write_bytes(cut)
    with pytest.raises(InputError, match=r"three\.jpg'.*take it out"):
        Distance.to(reference_files(tmp_path), JudgeEyes())


# The command


PROMPTS = [
    ("a hand in a power grasp around a red mug", "a red mug"),
    ("a hand in a pinch grasp on a blue key <b>", "a blue key"),
    *((f"a hand with thing {n}", f"thing {n}") for n in range(4)),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save_tiny_pipeline(folder / "base", text_length=200)
    tiny.save_tiny_pipeline(folder / "large", seed=1, text_length=200)
    unet = folder / "large" / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"sample_size": 16}))
    tiny.save_tiny_verifier(folder / "verifier")
    shutil.copytree(clip, folder / "clip")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"), models, [])
    toml = (place.folder / "ppv.toml").read_text()
    toml = toml.replace("[prompter]", '[prompter]\ntaxonomy = "grasp"\ntemperature = 0.3')
    (place.folder / "ppv.toml").write_text(toml)
    lines = (json.dumps({"prompt": prompt, "base": base}) for prompt, base in PROMPTS)
    (place.folder / "mine.jsonl").write_text("\n".join(lines))
    (place.folder / "reference").mkdir()
    for number in range(4):
        a_picture(number).save(place.folder / "reference" / f"{number}.png")
    up = place.start("up", "--flower-port", str(_free_port()))  # the workers of both calls
    try:
        until((place.folder / ".ppv" / "embedded.json").exists, "broker and store")
        yield place
    finally:
        up.send_signal(signal.SIGINT)
        place.end(up)
        place.clear()


def evaluate(place: Place, models: Path, *more: str) -> tuple[int, Any, str]:
    arms = ("base", f"large={models / 'large'}", "base:short")
    ended = place.ppv(
        "evaluate", "models", *arms, "--prompts", "mine.jsonl", "--images", "1", "--resamples",
        "200", "--clip-score", str(models / "clip"), "--json", *more,
    )  # fmt: skip
    return ended.code, json.loads(ended.out or "null"), ended.err


@pytest.fixture(scope="module")
def first(place: Place, models: Path) -> tuple[int, Any, str]:
    """The first call, which draws; one metric has no weights."""
    return evaluate(place, models, "--preference", "absent", "--out", "first")


def test_arms_draw_a_suite_as_runs_and_are_measured(
    place: Place, first: tuple[int, Any, str]
) -> None:
    code, found, err = first
    assert code == 1, err
    assert "Preference will be skipped: no model at 'absent'" in err
    assert list(found["skipped"]) == ["preference"]
    assert json.loads((place.folder / "first" / "models.json").read_text()) == found
    arms = found["suites"]["mine"]["arms"]
    assert {label: arm["pictures"] for label, arm in arms.items()} == {
        "base": 6, "large": 6, "base-short": 6
    }  # fmt: skip
    for arm in arms.values():
        assert arm["metrics"]["clip_score"]["n"] == 6 and "preference" not in arm["metrics"]
    assert arms["large"]["wins"]["clip_score"]["pairs"] == 6
    assert arms["base-short"]["wins"] == {}  # it has seeds of its own
    assert set(arms["base"]["categories"]) == set()  # of the grasps nothing is named by these words
    assert "large draws 64x64 and base 32x32" in " ".join(found["notes"])
    runs = {label: arm["models"][0]["run"] for label, arm in found["arms"].items()}
    assert runs["base"] == runs["base-short"] != runs["large"]
    seeds = [
        {r.proposal.prompt.text: r.proposal.seed for r in records(place.run_folder(runs[label]))}
        for label in ("base", "large")
    ]
    assert len(seeds[0]) == 12 and seeds[1].items() <= seeds[0].items()
    assert set(seeds[1]) == {prompt for prompt, _ in PROMPTS}


def test_the_same_call_draws_what_is_missing_and_a_later_metric_draws_nothing(
    place: Place, models: Path, first: tuple[int, Any, str]
) -> None:
    # By the server that is up, which remembers what lay in its folder.
    embedded = Embedded.model_validate_json((place.folder / ".ppv/embedded.json").read_text())
    store = S3Store(embedded.s3, BUCKET)
    folder = RunFolder(store, first[1]["arms"]["large"]["models"][0]["run"])
    batch = next(iter(folder.record_batches()))
    lost = folder.records_of(batch)[0]
    drawn = folder.read_image(lost.id)
    folder.store.delete(f"runs/{folder.name}/images/{lost.id}.png")
    folder.store.delete(f"runs/{folder.name}/records/{batch}.jsonl")
    images = place.folder / ".ppv/s3" / BUCKET / "runs" / folder.name / "images"
    before = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    code, found, err = evaluate(
        place, models, "--reference", "reference", "--features", str(models / "clip")
    )
    assert code == 0, err
    assert found["arms"] == first[1]["arms"]
    after = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    assert set(after) - set(before) == {f"{lost.id}.png"} and before.items() <= after.items()
    again = folder.read_image(lost.id)
    one, other = (np.asarray(Image.open(io.BytesIO(each)), np.int16) for each in (drawn, again))
    assert np.abs(one - other).max() <= 1  # as far as floating point drifts with the batch
    suite, old = found["suites"]["mine"]["arms"], first[1]["suites"]["mine"]["arms"]
    for label, arm in suite.items():
        distance = arm["metrics"]["fid"]
        assert distance["value"] > 0 and distance["low"] is None and distance["n"] == 6
        for name, was in old[label]["metrics"].items():
            assert arm["metrics"][name]["value"] == pytest.approx(was["value"], abs=1e-3)
    assert suite["large"]["against"]["base"]["kid"]["low"] is None
    assert "to 4 pictures of 'reference'" in " ".join(found["notes"])
    assert "not asked for: a preference score" in " ".join(found["notes"])


def test_two_models_of_one_arm_are_measured_together(
    place: Place, models: Path, first: tuple[int, Any, str]
) -> None:
    both = f"both=base+{models / 'large'}"
    arms = ("base", f"large={models / 'large'}", both)
    ended = place.ppv(
        "evaluate", "models", *arms, "--prompts", "mine.jsonl", "--images", "1", "--resamples",
        "200", "--json", "--out", "both",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    runs = {label: [m["run"] for m in arm["models"]] for label, arm in found["arms"].items()}
    assert runs["both"] == runs["base"] + runs["large"]
    figures = found["suites"]["mine"]["arms"]
    assert figures["both"]["pictures"] == 12
    means = [figures[label]["metrics"]["fidelity"]["value"] for label in ("base", "large", "both")]
    assert means[2] == pytest.approx((means[0] + means[1]) / 2) != pytest.approx(means[0])
    page = (place.folder / "both" / "models.html").read_text()
    assert "large draws 64x64 and base 32x32" in page
    assert "both: 2 models measured together" in page
    with Image.open(place.folder / "both" / "models.png") as grid:
        assert np.asarray(grid.convert("L"))[216:, 180:].std() > 1  # a third row of pictures


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["base", "unheard-of"], "no arm 'unheard-of'"),
        (["base", "./unheard/of"], "no model at './unheard/of'"),
        (
            ["base", "base:short", "--prompts", "hard"],
            "'base-short' draws short prompts, and suite",
        ),
        (
            ["base", "ensemble", "--prompts", "mine.txt", "--prompts", "mine.jsonl"],
            "two suites are",
        ),
        (["base", "ensemble", "--prompts", "hards"], "no suite 'hards'"),
        (["base", "ensemble", "--reference", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_wrong_input_ends_the_command_before_anything_is_drawn(
    given: list[str], said: str, store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from contextlib import contextmanager

    from workers import cli
    from workers.cli.session import Session

    nobody: Any = None  # it never gets as far as a broker

    @contextmanager
    def no_services() -> Iterator[Session]:
        yield Session(settings.load_settings(), store, nobody, [])

    monkeypatch.setattr("workers.cli.session.session", no_services)
    for name in ("mine.txt", "mine.jsonl"):
        Path(name).write_text('{"prompt": "a hand"}\n')
    monkeypatch.setattr(sys, "argv", ["ppv", "evaluate", "models", *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    line = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and said in line and "\n" not in line
    assert not list(store.list("runs/"))


# The page


@pytest.fixture
def page(browser: Browser, place: Place, first: tuple[int, Any, str]) -> Iterator[Page]:
    """The page of the first call, opened; the test fails if it complains or asks for anything."""
    file = place.folder / "first" / "models.html"
    with quiet(browser, file) as page:
        yield page


def test_the_page_shows_figures_and_pictures_side_by_side(page: Page) -> None:
    heads = page.locator("table.pairs").first.locator("thead th").all_text_contents()
    assert heads == ["", "base", "large", "base-short"]
    rows = page.locator("table.pairs").first.locator("tbody th").all_text_contents()
    assert rows[0] == "Pictures" and rows[-1] == "CLIPScore"
    assert page.locator(".strip").count() == 6
    first = page.locator(".strip").first.locator(".tile b")
    assert first.all_text_contents() == ["base", "large", "base-short"]
    assert page.locator(".tile img").count() == 18
    widths = (
        page.locator(".strip")
        .first.locator("img")
        .evaluate_all(
            "images => Promise.all(images.map(async (image) => {"
            "image.loading = 'eager'; await image.decode(); return image.naturalWidth; }))"
        )
    )
    assert widths == [32, 64, 32]
    notes = " ".join(page.locator(".notes li").all_text_contents())
    assert "Preference: skipped, no model at 'absent'" in notes


def test_texts_are_text(page: Page) -> None:
    assert page.locator("script, .prompt *").count() == 0
    assert any("key <b>" in text for text in page.locator(".prompt").all_text_contents())


@pytest.mark.parametrize(("width", "scheme"), [*product((320, 1280), ("light", "dark"))])
def test_no_width_scrolls_sideways(page: Page, width: int, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_assistive_technology_finds_its_way(page: Page) -> None:
    assert page.locator("h1").count() == 1
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    levels = page.locator("h1, h2, h3, h4").evaluate_all("hs => hs.map((h) => +h.tagName[1])")
    assert all(below <= above + 1 for above, below in pairwise(levels))
