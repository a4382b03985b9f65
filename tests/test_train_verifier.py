"""`ppv train verifier`: labels, splits, made negatives, training, calibration and the card."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipeline.config import VerifierConfig
from pipeline.errors import InputError, ModelError
from pipeline.evaluation.verifier import Scored, measure, mistakes
from pipeline.labels import Label
from pipeline.models import WEIGHTS, fingerprint
from pipeline.taxonomy import load_taxonomy
from pipeline.training import verifier as trainer
from pipeline.training.loop import TrainingDiverged
from pipeline.training.verifier import load_base, train
from pipeline.training.verifier_card import TrainedVerifier, Validation, read_verifier_card
from pipeline.training.verifier_examples import UNKNOWN, Examples
from pipeline.training.verifier_guide import NOT_KNOWN, Guide, questions
from pipeline.training.verifier_labels import Judged, agree, part, read_file
from pipeline.training.verifier_loss import Judging, class_weights
from pipeline.training.verifier_measuring import choose, judged
from pipeline.training.verifier_negatives import (
    Wordings,
    changed,
    corrupted,
    mirrored_text,
    swapped,
    wordings,
)
from pipeline.training.verifier_plan import (
    VerifierPlan,
    VerifierTraining,
    configured_verifier,
    kind_of,
    plan_verifier,
)
from pipeline.types import DetailedPrompt, Proposal, ProposerRef, Sampler, Thresholds, digest
from pipeline.verifier import Verifier
from tests.tiny import a_record, save_tiny_verifier
from tests.training import Onlooker, Stopped
from workers.cli.train import train as train_group
from workers.settings import settings

TAXONOMY = load_taxonomy("miniature")
KNOWN = wordings(TAXONOMY)
PICTURES, BASES = 48, 16
FAST: dict[str, Any] = {
    "loop.steps": 4,
    "loop.batch_size": 4,
    "loop.checkpoint_every": 2,
    "loop.validate_every": 2,
    "loop.learning_rate": 1e-3,
    "validation": 0.2,
    "calibration": 0.2,
    "test": 0.2,
}


def label(number: int, **fields: Any) -> Label:
    """Of picture `number`: bright ones have right hands, and every other prompt fits."""
    color = ("red", "blue", "green", "white")[number % 4]
    values: dict[str, Any] = {
        "id": digest([number]),
        "image": f"pictures/{number}.png",
        "prompt": f"a left hand in a hook grasp carrying a {color} bag",
        "base": f"base {number % BASES}",
        "category": ("hook", "pinch")[number % 2],
        "fidelity": number // BASES % 2 == 0,
        "alignment": (number // BASES + number) % 3 != 0,
        "annotator": "ann",
        "at": "2026-11-23T12:00:00+00:00",
    }
    return Label(**(values | fields))


def labels_file(folder: Path, count: int = PICTURES, **fields: Any) -> Path:
    """A file of labels with its pictures beside it."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        said = label(number, **fields)
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 120, (32, 32, 3)) + (135 if said.fidelity else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / said.image)
        lines.append(said.model_dump_json() + "\n")
    file = folder / "labels.jsonl"
    file.write_text("".join(lines))
    return file


def item(number: int = 0, **fields: Any) -> Judged:
    said = label(number)
    values: dict[str, Any] = {
        "picture": Path(f"{number}.png"),
        "sha256": str(number),
        "prompt": said.prompt,
        "base": said.base,
        "category": said.category,
        "fidelity": True,
        "alignment": True,
        "reasons": (),
    }
    return Judged(**(values | fields))


class Workshop:
    """A folder with labels and a tiny verifier, in which verifiers are trained."""

    def __init__(self, folder: Path, base: Path, labels: Path) -> None:
        self.folder, self.base, self.labels = folder, base, labels

    def plan(self, **given: Any) -> VerifierPlan:
        config = configured_verifier(None, FAST | given)
        ref = fingerprint(str(self.base), "verifier")
        return plan_verifier([read_file(self.labels)], TAXONOMY, ref, config)

    def train(
        self, to: str = "out", stop_after: int | None = None, **given: Any
    ) -> TrainedVerifier:
        return train(self.plan(**given), self.folder / to, Onlooker(stop_after), cpu=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_verifier(tmp_path_factory.mktemp("base") / "vilt")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels_file(tmp_path_factory.mktemp("labels"))


@pytest.fixture
def workshop(tmp_path: Path, base: Path, labels: Path) -> Workshop:
    return Workshop(tmp_path, base, labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path, labels: Path) -> TrainedVerifier:
    """One that the tests only look at."""
    return Workshop(tmp_path_factory.mktemp("trained"), base, labels).train()


# Labels


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2"),
        ('{"id": "zz"}', "line 2: id:"),
        ('{"fidelty": true}', "line 2: fidelty: unknown; did you mean 'fidelity'?"),
    ],
)
def test_a_broken_line_is_named_in_one(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(label(0).model_dump_json() + f"\n{line}\n")
    with pytest.raises(InputError) as refused:
        read_file(file)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no labels .*nowhere"):
        read_file(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("count", "fields", "complaint"),
    [
        (19, {}, "19 labelled pictures are too few: give at least 20"),
        (24, {"fidelity": True}, "every label says yes of fidelity"),
        (24, {"alignment": False}, "every label says no of alignment"),
        (24, {"alignment": None}, "every label says nothing of alignment"),
        (24, {"prompt": "  "}, "empty prompt"),
    ],
)
def test_labels_that_teach_nothing_are_refused_in_one_line(
    tmp_path: Path, count: int, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        agree([read_file(labels_file(tmp_path, count, **fields))])
    assert "\n" not in str(refused.value)


def test_a_picture_that_is_gone_broken_or_a_line_is_named(tmp_path: Path) -> None:
    file = labels_file(tmp_path, 24)
    first = tmp_path / "pictures" / "0.png"
    whole = first.read_bytes()
    Image.new("RGB", (1, 64)).save(narrow := tmp_path / "narrow.png")
    for content, complaint in (
        (None, "0.png: it is gone"),
        (whole[: len(whole) // 2], "0.png: no readable picture"),
        (b"", "0.png: no readable picture"),
        (narrow.read_bytes(), "0.png: 1x64 px is no picture to judge"),
    ):
        first.unlink(missing_ok=True)
        if content is not None:
            first.write_bytes(content)
        with pytest.raises(InputError, match=complaint) as refused:
            agree([read_file(file)])
        assert "\n" not in str(refused.value)


def test_grey_and_transparent_pictures_are_read(tmp_path: Path) -> None:
    file = labels_file(tmp_path, 24)
    Image.new("L", (40, 32), 99).save(tmp_path / "pictures" / "0.png")
    Image.new("RGBA", (32, 40), (9, 9, 9, 0)).save(tmp_path / "pictures" / "1.png")
    assert len(agree([read_file(file)]).items) == 24


def test_most_annotators_are_believed_and_ties_are_left_out(tmp_path: Path) -> None:
    file = labels_file(tmp_path, 24)
    with file.open("a") as more:
        for number, annotator, fidelity, alignment in (
            (0, "bob", False, None),  # ann said yes: a tie
            (1, "bob", False, None),
            (1, "cat", False, None),  # two against one
            (2, "bob", True, None),
            (2, "bob", None, None),  # taken back
        ):
            said = label(number, annotator=annotator, fidelity=fidelity, alignment=alignment)
            more.write(said.model_dump_json() + "\n")
    agreed = agree([read_file(file)])
    assert [each.fidelity for each in agreed.items[:3]] == [None, False, True]
    assert agreed.items[0].alignment is label(0).alignment
    assert agreed.disagreements == {"fidelity": 2, "alignment": 0}
    assert agreed.ties == {"fidelity": 1, "alignment": 0}
    assert agreed.annotators == {"ann": 24, "bob": 2, "cat": 1}
    twice = agree([read_file(file), read_file(file)])  # nobody votes twice
    assert twice == agreed


# Splits


def test_a_base_prompt_is_never_parted(workshop: Workshop) -> None:
    plan = workshop.plan()
    where: dict[str, set[str]] = {}
    for name, some in plan.parts.items():
        for each in some:
            where.setdefault(each.base, set()).add(name)
    assert len(where) == BASES
    assert all(len(parts) == 1 for parts in where.values())
    assert sum(map(len, plan.parts.values())) == PICTURES
    assert sum(plan.bases.values()) == BASES


def test_spaces_and_capitals_make_no_other_base_prompt(tmp_path: Path) -> None:
    file = labels_file(tmp_path, 24)
    said = [label(n, base=f" {'BASE' if n % 2 else 'base'}   {n % 3}") for n in range(24)]
    file.write_text("".join(each.model_dump_json() + "\n" for each in said))
    assert {each.base for each in agree([read_file(file)]).items} == {"base 0", "base 1", "base 2"}


def test_every_part_has_both_answers(workshop: Workshop) -> None:
    for seed in range(5):
        parts, _ = part(workshop.plan().agreed.items, {"train": 0.7, "test": 0.3}, seed)
        for some in parts.values():
            assert {each.fidelity for each in some} == {each.alignment for each in some}


def test_what_is_tested_on_lies_apart_and_its_base_prompts_teach_nothing(
    tmp_path: Path, base: Path, labels: Path
) -> None:
    apart = labels_file(tmp_path, 24)
    lines = [label(n, base=f" Base  {n % 4}").model_dump_json() for n in range(24)]
    apart.write_text("\n".join(lines))
    config = configured_verifier(None, FAST)
    ref = fingerprint(str(base), "verifier")
    plan = plan_verifier([read_file(labels)], TAXONOMY, ref, config, [read_file(apart)])
    assert len(plan.parts["test"]) == 24
    assert plan.bases["test"] == 4
    seen = {each.base for name, some in plan.parts.items() if name != "test" for each in some}
    assert seen == {f"base {n}" for n in range(4, BASES)}
    other = plan_verifier([read_file(labels)], TAXONOMY, ref, config)
    assert digest(plan.card_identity) != digest(other.card_identity)


def test_too_few_base_prompts_are_counted(tmp_path: Path, base: Path) -> None:
    shop = Workshop(tmp_path, base, labels_file(tmp_path, 24, base="a hand with a mug"))
    with pytest.raises(InputError, match=r"1 base prompt cannot be parted.*at least 16"):
        shop.plan()


def test_who_only_teaches_is_never_measured_on(tmp_path: Path, base: Path) -> None:
    file = labels_file(tmp_path)
    said = [
        label(n, annotator="renderer" if n % 2 else "ann", base=f"base {n // 2 % 8}")
        for n in range(PICTURES)
    ]
    file.write_text("".join(each.model_dump_json() + "\n" for each in said))
    parts = Workshop(tmp_path, base, file).plan(only_training=("renderer",)).parts
    held = [each for name, some in parts.items() if name != "train" for each in some]
    assert held
    assert all(each.measured for each in held)
    assert {each.base for each in held}.isdisjoint({each.base for each in parts["train"]})
    assert not all(each.measured for each in parts["train"])


# Negatives


def test_one_attribute_is_changed_and_nothing_else() -> None:
    text = "a left hand in a hook grasp carrying a red bag on a teal background"
    found = {changed(text, KNOWN, random.Random(n)) for n in range(300)}
    assert None not in found
    assert text not in found
    for other in found:
        assert other is not None
        assert sum(a != b for a, b in zip(text.split(), other.split(), strict=False)) >= 1
        assert ("right hand" in other) + ("red bag" not in other) + ("teal" not in other) + (
            "hook grasp carrying" not in other
        ) == 1


def test_what_is_named_twice_or_not_at_all_is_not_changed() -> None:
    colors = Wordings({"color": ("red", "blue", "tan")}, {})
    for text in ("a red and a blue thing", "a red hand, a red bag", "a bored hand"):
        assert changed(text, colors, random.Random(0)) is None
    things = Wordings({"object": ("pen", "ink pen", "mug")}, {})
    assert changed("an ink pen", things, random.Random(0)) in {"a pen", "a mug"}


def test_articles_and_capitals_follow() -> None:
    known = Wordings({"object": ("mug", "orange")}, {})
    assert changed("A Mug on a table", known, random.Random(0)) == "An orange on a table"


def test_a_changed_object_mostly_still_goes_with_the_pose() -> None:
    text = "a hand in a power grasp around a mug"
    only = dict.fromkeys(KNOWN.values, 0.0) | {"object": 1.0}
    found = [changed(text, KNOWN, random.Random(n), only) for n in range(200)]
    fitting = [text.replace("mug", other) for other in ("bottle", "hammer")]
    assert 150 < sum(each in fitting for each in found) < 200
    assert changed("a red hand", KNOWN, random.Random(0), only) is None


def test_a_text_is_told_what_it_has_wrong() -> None:
    asked = questions(KNOWN, [item(reasons=("out_of_reach", "fused_fingers", "ugly"))])
    assert (asked.mismatches, asked.faults) == (("out_of_reach",), ("fused_fingers",))
    names = list(KNOWN.values)
    text = "a left hand in a hook grasp carrying a red bag"
    shown = asked.shown(text)
    assert [n for n, at in zip(names, shown, strict=True) if at != NOT_KNOWN] == [
        n for n in names if n not in ("skin", "background")
    ]
    unclaimed = {"skin": 0.0, "background": 0.0}

    def wrong(text: str, shown: list[int], reasons: tuple[str, ...] | None) -> dict[str, float]:
        return dict(zip([*names, "reach"], asked.wrong(text, shown, reasons), strict=True))

    assert set(wrong(text, shown, ()).values()) == {0.0}
    other = wrong(text.replace("bag", "mug"), shown, None)
    assert {name: value for name, value in other.items() if value} == {
        "object": 1.0,
        "reach": NOT_KNOWN,
    }
    # of a picture that somebody rejected, only what they said is known
    nothing = [NOT_KNOWN] * len(names)
    said = wrong(text, nothing, ("wrong_color",))
    assert said == dict.fromkeys(names, NOT_KNOWN) | unclaimed | {"color": 1.0, "reach": 0.0}
    assert asked.faulty(item(fidelity=True)) == [0.0]
    assert asked.faulty(item(fidelity=False)) == [NOT_KNOWN]
    assert asked.faulty(item(fidelity=False, reasons=("fused_fingers",))) == [1.0]


def test_what_the_guide_knows_nothing_of_costs_nothing(workshop: Workshop) -> None:
    made, plan = examples(workshop)
    asked = questions(plan.known, plan.agreed.items)
    guide = Guide(6, asked)
    batch = made.batch([0, 1, 2], torch.Generator().manual_seed(0))
    features = torch.randn(len(batch["pair"]), 6)
    assert guide(features, batch, batch["pair"], batch["picture"]) > 0
    for name in ("shown", "wrong", "faulty"):
        batch[name] = torch.full_like(batch[name], NOT_KNOWN)
    assert guide(features, batch, batch["pair"], batch["picture"]) == 0


def test_another_prompt_is_of_another_base_prompt_and_category() -> None:
    items = [item(n) for n in range(PICTURES)]
    for n in range(20):
        text = swapped(items[0], items, KNOWN, random.Random(n))
        assert text != items[0].prompt
        assert text in {each.prompt for each in items if each.category != items[0].category}
    assert swapped(items[0], [items[0], items[2]], KNOWN, random.Random(0)) is None
    # what may be just as true is no false text, unless nothing is known of its words
    vague = item(1, base="other", category="pinch", prompt="a left hand")
    assert swapped(items[0], [vague], KNOWN, random.Random(0)) is None
    free = item(1, base="other", category="pinch", prompt="somebody holds a lute")
    assert swapped(items[0], [free], KNOWN, random.Random(0)) == free.prompt


def test_the_mirror_exchanges_left_and_right() -> None:
    assert mirrored_text("Left hand right of a leftover, RIGHT") == (
        "Right hand left of a leftover, LEFT"
    )


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (9, 9)])
def test_a_spoilt_picture_differs_in_one_place_of_its_middle(size: tuple[int, int]) -> None:
    for seed in range(30):
        pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
        before = pixels.clone()
        spoilt = corrupted(pixels, random.Random(seed))
        assert torch.equal(pixels, before)
        assert 0 <= spoilt.min() <= spoilt.max() <= 1
        rows, columns = torch.nonzero((spoilt != pixels).any(0), as_tuple=True)
        assert len(rows)
        assert rows.max() - rows.min() <= 0.4 * min(size) + 1
        assert columns.max() - columns.min() <= 0.4 * min(size) + 1


# Examples and the loss


def examples(workshop: Workshop, **given: Any) -> tuple[Examples, VerifierPlan]:
    off = {"negatives": 0, "corrupted": 0, "mirrored": 0, "augment": False}
    plan = workshop.plan(**(off | given))
    verifier = load_base(plan.base, plan.kind)
    asked = questions(plan.known, plan.agreed.items)
    return Examples(plan.agreed.items, verifier, plan.config, asked), plan


def test_without_negatives_a_batch_is_what_the_labels_say(workshop: Workshop) -> None:
    made, plan = examples(workshop)
    batch = made.batch([3, 5, 20], torch.Generator().manual_seed(0))
    rows = [plan.agreed.items[n] for n in (3, 5, 20)]
    said = [[float(row.fidelity or 0), float(row.alignment or 0)] for row in rows]
    assert batch["targets"].tolist() == said
    assert not batch["made"].any()
    picture = Image.open(rows[0].picture)
    pixels = load_base(plan.base, plan.kind).processor(picture, return_tensors="pt")
    torch.testing.assert_close(batch["pixels"][0], pixels["pixel_values"][0], atol=0.005, rtol=0)


def test_a_false_text_keeps_the_hand_s_label(workshop: Workshop) -> None:
    made, plan = examples(workshop, negatives=1)
    rows = list(range(PICTURES))
    batch = made.batch(rows, torch.Generator().manual_seed(0))
    aligned = sum(each.alignment is True for each in plan.agreed.items)
    assert int(batch["made"].sum()) == aligned
    for n in torch.nonzero(batch["made"]).flatten().tolist():
        row = plan.agreed.items[batch["picture"][n]]
        assert row.alignment
        assert batch["targets"][n].tolist() == [float(row.fidelity or 0), 0.0]


def test_a_spoilt_hand_says_nothing_of_its_text(workshop: Workshop) -> None:
    made, plan = examples(workshop, corrupted=1)
    batch = made.batch(list(range(PICTURES)), torch.Generator().manual_seed(0))
    for row, target, spoilt in zip(
        plan.agreed.items, batch["targets"].tolist(), batch["made"].tolist(), strict=True
    ):
        assert spoilt == (row.fidelity is True)
        if spoilt:
            assert target == [0.0, UNKNOWN]


def test_a_step_is_the_same_again_from_the_same_generator(workshop: Workshop) -> None:
    made, _ = examples(workshop, negatives=0.5, corrupted=0.2, mirrored=0.5, augment=True)
    one, same, other = (
        made.batch([1, 2, 3, 4], torch.Generator().manual_seed(n)) for n in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one["pixels"], same["pixels"], strict=True))
    assert torch.equal(one["input_ids"], same["input_ids"])
    assert not torch.equal(one["pixels"][0], other["pixels"][0])


def test_pictures_beyond_the_memory_are_read_again(workshop: Workshop) -> None:
    kept, _ = examples(workshop)
    read, _ = examples(workshop, memory_bytes=0)
    for _ in range(2):
        one, other = (each.batch([0, 7], torch.Generator().manual_seed(0)) for each in (kept, read))
        assert all(torch.equal(a, b) for a, b in zip(one["pixels"], other["pixels"], strict=True))


def test_training_reads_a_long_prompt_as_judging_does(tmp_path: Path, base: Path) -> None:
    file = labels_file(tmp_path, 24)
    said = [label(n, prompt="a red hand, a blue mug. " * (1 + n % 4) + "a hand") for n in range(24)]
    file.write_text("".join(each.model_dump_json() + "\n" for each in said))
    shop = Workshop(tmp_path, base, file)
    made, plan = examples(shop, validation=0.1, calibration=0.1, test=0.1)
    verifier = load_base(plan.base, plan.kind)
    asked = questions(plan.known, plan.agreed.items)
    module = Judging(verifier.network, plan.config, torch.ones(2, 2), asked).eval()
    with torch.no_grad():
        logits = module.logits(made.batch(range(24), torch.Generator().manual_seed(0)))
    rows = judged(verifier, plan.agreed.items)
    wanted = torch.tensor([row.alignment_score for row in rows])
    torch.testing.assert_close(logits[:, 1].sigmoid(), wanted, atol=2e-3, rtol=0)


def test_what_nobody_said_costs_nothing(workshop: Workshop) -> None:
    made, plan = examples(workshop)
    asked = questions(plan.known, plan.agreed.items)
    network = load_base(plan.base, plan.kind).network
    module = Judging(network, plan.config, torch.ones(2, 2), asked).eval()
    batch = made.batch([0, 1, 2], torch.Generator().manual_seed(0))
    batch["targets"][:, 1] = UNKNOWN
    with torch.no_grad():
        losses = module(batch)
    assert losses["alignment"] == 0
    assert losses["loss"] == losses["fidelity"] + plan.config.guide_weight * losses["guide"] > 0


def test_both_answers_weigh_the_same() -> None:
    items = [item(n, fidelity=n == 0, alignment=n < 2) for n in range(8)]
    config = VerifierTraining(negatives=0.0, corrupted=0.0)
    assert class_weights(items, config).tolist() == pytest.approx(
        [pytest.approx([8 / 14, 8 / 2]), pytest.approx([8 / 12, 8 / 4])]
    )
    made = class_weights(items, VerifierTraining(negatives=1.0, corrupted=0.0))
    assert made[1].tolist() == pytest.approx([10 / 16, 10 / 4])
    bounded = class_weights(items, VerifierTraining(corrupted=0.0, most_weight=2.0))
    assert bounded[0].tolist() == pytest.approx([8 / 14, 2.0])


# Training


def test_a_training_that_was_cut_off_ends_as_an_unbroken_one(workshop: Workshop) -> None:
    given = {"loop.steps": 6, "loop.ema_decay": 0.9}
    whole = workshop.train("whole", **given)
    with pytest.raises(Stopped):
        workshop.train("broken", stop_after=5, **given)
    assert read_verifier_card(workshop.folder / "broken") is None
    broken = workshop.train("broken", **given)
    own = {"pairs_per_s", "peak_memory_bytes", "label_sets"}
    assert broken.card.model_dump(exclude=own) == whole.card.model_dump(exclude=own)
    for name in ("model.safetensors", "operating_point.json", "curve.json"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_what_was_cut_off_at_its_very_end_ends_the_same(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"patience": 1, "loop.learning_rate": 1e-9, "loop.steps": 10}  # it stops early
    whole = workshop.train("whole", **given)
    assert whole.card.steps < 10

    def power_cut(card: Any, folder: Path) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_verifier_card", power_cut)
        with pytest.raises(Stopped):
            workshop.train("broken", **given)
    broken = workshop.train("broken", **given)
    assert broken.card.validations == whole.card.validations
    assert broken.card.measured == whole.card.measured
    assert not (broken.folder / "checkpoints").exists()


def test_two_processes_train_one_verifier(workshop: Workshop) -> None:
    lines = [f"{key.split('.')[-1]}: {value}" for key, value in FAST.items() if "loop." in key]
    recipe = workshop.folder / "fast.yaml"
    recipe.write_text(
        "loop: {" + ", ".join(lines) + "}\nvalidation: 0.2\ncalibration: 0.2\ntest: 0.2\n"
    )
    ppv = "from workers.cli import main; main()"
    started = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("--no-python", sys.executable, "-c", ppv, "train", "verifier", "--json"),
            *("--labels", workshop.labels, "--base", workshop.base, "--recipe", recipe),
            *("--to", workshop.folder / "out"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {
            "ACCELERATE_USE_CPU": "true",
            "PPV_VERIFIER__DEVICE": "cpu",
            "PPV_STATE_DIR": str(workshop.folder / "state"),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert started.returncode == 0, started.stderr[-2000:]
    answer = json.loads(started.stdout)  # of one of them
    assert (answer["card"]["processes"], answer["card"]["steps"]) == (2, 4)
    assert Verifier.load(VerifierConfig(model=str(workshop.folder / "out"), device="cpu"))


def test_a_file_in_the_folder_s_place_is_named(workshop: Workshop) -> None:
    (workshop.folder / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file: give a folder"):
        workshop.train()


def test_what_can_be_seen_is_learned(tmp_path: Path, base: Path, labels: Path) -> None:
    given = {
        "loop.steps": 60, "loop.learning_rate": 3e-3, "loop.batch_size": 8, "augment": False,
        "loop.validate_every": 60, "loop.checkpoint_every": 60, "alignment_weight": 0.1,
    }  # fmt: skip
    card = Workshop(tmp_path, base, labels).train(**given).card
    before, after = card.validations[0], card.validations[-1]
    assert card.fidelity_auc is not None
    assert card.fidelity_auc > 0.95
    assert after.loss < before.loss
    assert card.base == fingerprint(str(base), "verifier")


def test_the_best_weights_are_kept_and_patience_ends_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    aucs = {0: 0.5, 2: 0.9, 4: 0.8, 6: 0.7}

    def told(plan: Any, verifier: Verifier, step: int) -> Validation:
        auc = aucs[step]
        return Validation(
            step=step, fidelity_auc=auc, alignment_auc=auc, made_auc=auc, texts_auc=auc, loss=1.0
        )

    monkeypatch.setattr(trainer, "validated", told)
    even = {"loop.lr_schedule": "constant"}
    stopped = workshop.train("stopped", patience=2, **even, **{"loop.steps": 20})
    assert (stopped.card.steps, stopped.card.best_step) == (6, 2)
    short = workshop.train("short", **even, **{"loop.steps": 2})
    assert short.card.best_step == 2
    kept, same = (load_file(each.folder / "model.safetensors") for each in (stopped, short))
    assert all(torch.equal(kept[name], same[name]) for name in kept)


def test_a_training_that_is_done_is_not_done_again(
    trained: TrainedVerifier, base: Path, labels: Path
) -> None:
    shop = Workshop(trained.folder.parent, base, labels)
    stamp = (trained.folder / "model.safetensors").stat().st_mtime_ns
    again = shop.train()
    assert not again.new
    assert again.card == trained.card
    assert (trained.folder / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="holds another training"):
        shop.train(**{"loop.seed": 5})


def test_a_rate_that_is_far_too_high_ends_in_one_line(workshop: Workshop) -> None:
    with pytest.raises(TrainingDiverged, match="lower rate to another folder"):
        workshop.train(**{"loop.learning_rate": 1e30, "loop.steps": 20, "loop.warmup_steps": 0})
    assert read_verifier_card(workshop.folder / "out") is None


# Bases


def test_a_public_vilt_gets_new_heads_and_any_other_model_is_refused(
    workshop: Workshop, base: Path
) -> None:
    from transformers import ViltConfig, ViltForQuestionAnswering

    own = json.loads((base / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    names += ("intermediate_size", "image_size", "patch_size")
    folder = workshop.folder / "vqa"
    ViltForQuestionAnswering(ViltConfig(**{name: own[name] for name in names})).save_pretrained(
        folder
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copyfile(base / name, folder / name)
    result = Workshop(workshop.folder, folder, workshop.labels).train()
    assert result.card.kind == "vilt"
    assert Verifier.load(VerifierConfig(model=str(result.folder), device="cpu")).text_budget == 38

    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="is of type 'bert': give a ViLT backbone"):
        kind_of(fingerprint(str(folder), "verifier"))
    (folder / "heads.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="holds a pickle"):
        Workshop(workshop.folder, folder, workshop.labels).plan()


# The end: calibration, operating point, card


def test_calibration_is_folded_into_what_is_saved(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = workshop.train("plain", **{"loop.learning_rate": 1e-9})
    items = workshop.plan().agreed.items
    before = judged(load_base(plain.card.base, "vilt_verifier"), items)
    after = judged(Verifier.load(VerifierConfig(model=str(plain.folder), device="cpu")), items)
    for head in ("fidelity", "alignment"):
        fit = plain.card.calibration[head]
        assert fit.after <= fit.before
        logits = torch.tensor([getattr(row, f"{head}_score") for row in before]).logit()
        wanted = torch.sigmoid(logits / fit.temperature + fit.shift)
        found = torch.tensor([getattr(row, f"{head}_score") for row in after])
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_the_card_is_what_judging_with_the_folder_gives(
    trained: TrainedVerifier, base: Path, labels: Path
) -> None:
    card = trained.card
    plan = Workshop(trained.folder.parent, base, labels).plan()
    verifier = Verifier.load(VerifierConfig(model=str(trained.folder), device="cpu"))
    rows = judged(verifier, plan.parts["test"])
    again = measure(rows, card.thresholds)
    assert again == card.measured
    point = choose(judged(verifier, plan.parts["calibration"]), plan.config)
    assert point.thresholds == card.thresholds


def test_the_card_says_everything_to_people_and_programs(trained: TrainedVerifier) -> None:
    said = json.loads((trained.folder / "card.json").read_text())
    for name in ("fidelity_auc", "alignment_auc", "ece", "precision", "recall", "acceptance"):
        assert said[name] is None or 0 <= said[name] <= 1
    assert sum(each["pictures"] for each in said["splits"].values()) == PICTURES
    assert set(said["splits"]) == {"train", "validation", "calibration", "test"}
    assert said["label_sets"][0]["labels"] == PICTURES
    assert str(trained.folder.parent) not in json.dumps(said["label_sets"])
    assert set(said["made"]) == {"swapped", "changed"}
    assert len(said["other_points"]) == 4
    assert said["chosen"] == {"": PICTURES}
    point = json.loads((trained.folder / "operating_point.json").read_text())
    assert point == said["thresholds"]
    assert "precision of at least 0.95" in point["chosen_by"]
    readme = (trained.folder / "README.md").read_text()
    for mistake in said["mistakes"]:
        assert (trained.folder / mistake["picture"]).is_file()
        assert f"]({mistake['picture']})" in readme
    assert not (trained.folder / "checkpoints").exists()


def scored(fidelity: float, alignment: float, right: str, **fields: Any) -> Scored:
    """right: two of "+", "-" and "?", for fidelity and alignment."""
    answers = {"+": True, "-": False, "?": None}
    values: dict[str, Any] = {
        "picture": Path("a.png"), "prompt": "a hand", "base": "a", "category": "", "reasons": (),
    }  # fmt: skip
    return Scored(
        **(values | fields),
        fidelity=answers[right[0]],
        alignment=answers[right[1]],
        fidelity_score=fidelity,
        alignment_score=alignment,
    )


def test_figures_worked_by_hand() -> None:
    fault = {"reasons": ("extra_finger",), "category": "hook"}
    rows = [
        scored(0.9, 0.9, "++"),
        scored(0.9, 0.2, "++"),  # rejected though right
        scored(0.8, 0.8, "-+", **fault),  # accepted though wrong
        *[scored(0.1, 0.9, "-?", **fault) for _ in range(4)],
        scored(0.9, 0.9, "+?"),  # right or not: nobody knows
    ]
    found = measure(rows, Thresholds())
    done = found.decisions
    assert (done.precision.hits, done.precision.n) == (1, 2)
    assert (done.recall.hits, done.recall.n) == (1, 2)
    assert (done.acceptance.hits, done.acceptance.n) == (2, 7)
    assert found.fidelity.auc == 1.0
    assert found.alignment.auc is None
    assert (found.by_fault["extra_finger"].hits, found.by_fault["extra_finger"].n) == (4, 5)
    assert found.by_category["hook"].n == 5
    assert mistakes(rows, Thresholds()) == [rows[2], rows[1]]


# The command


@pytest.fixture
def ppv_train(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`ppv train verifier` on the tiny verifier, in this process."""
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setenv("PPV_VERIFIER__MODEL", str(workshop.base))
    monkeypatch.setenv("PPV_VERIFIER__DEVICE", "cpu")
    monkeypatch.setenv("PPV_STORE_URL", f"file://{workshop.folder / 'store'}")
    settings.cache_clear()
    recipe = workshop.folder / "fast.yaml"
    recipe.write_text(
        "loop: {steps: 2, batch_size: 4, checkpoint_every: 2, validate_every: 2}\n"
        "validation: 0.2\ncalibration: 0.2\ntest: 0.2\n"
    )

    def run(*arguments: object) -> Any:
        given = ["verifier", "--recipe", recipe, *arguments]
        return CliRunner().invoke(train_group, list(map(str, given)))

    yield run
    settings.cache_clear()


def test_the_command_says_figures_and_what_to_configure(workshop: Workshop, ppv_train: Any) -> None:
    result = ppv_train("--labels", workshop.labels, "--to", "out")
    assert result.exit_code == 0, result.output
    assert "fidelity, AUC" in result.stdout
    assert '[verifier]\nmodel = "out"\n' in result.stdout
    assert "verifier: step 2 of 2: loss" in result.stderr
    assert (workshop.folder / "out" / "reliability.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_reads_a_set_of_the_store(workshop: Workshop, ppv_train: Any) -> None:
    for line in workshop.labels.read_text().splitlines():
        said = Label.model_validate_json(line)
        to = workshop.folder / "store" / "runs" / "r" / "images" / Path(said.image).name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(workshop.labels.parent / said.image, to)
    images = workshop.folder / "store" / "labels"
    images.mkdir()
    (images / "set.ann.jsonl").write_text(
        workshop.labels.read_text().replace('"pictures/', '"runs/r/images/')
    )
    result = ppv_train("--labels", "set", "--to", "out", "--json", "--target-acceptance", 0.5)
    assert result.exit_code == 0, (result.output, result.exception)
    answer = json.loads(result.stdout)
    assert answer["new"]
    assert answer["card"]["thresholds"]["chosen_by"] == "acceptance of at least 0.5"
    assert answer["card"]["label_sets"][0]["name"] == "set"
    again = ppv_train("--labels", "set", "--to", "out", "--json", "--target-acceptance", 0.5)
    assert not json.loads(again.stdout)["new"]

    shutil.rmtree(workshop.folder / "store" / "runs")
    shutil.rmtree(settings().state_dir / "label-pictures")
    gone = ppv_train("--labels", "set", "--to", "other")
    assert isinstance(gone.exception, InputError)
    assert "it is gone" in str(gone.exception)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--labels", "none.jsonl"), "no labels 'none.jsonl'"),
        (("--labels", "none"), "no labels 'none'"),
        (("--labels", "LABELS", "--base", "nowhere"), "no model at"),
        (("--labels", "LABELS", "--recipe", "non"), "no recipe 'non'"),
        (
            ("--labels", "LABELS", "--target-precision", 0.9, "--target-acceptance", 0.5),
            "not both",
        ),
        (("--labels", "LABELS", "--target-precision", 2), "'target_precision'"),
    ],
)
def test_wrong_input_is_one_line(
    workshop: Workshop, ppv_train: Any, arguments: tuple[str, ...], complaint: str
) -> None:
    given = [workshop.labels if each == "LABELS" else each for each in arguments]
    result = ppv_train(*given, "--to", "out")
    assert isinstance(result.exception, InputError), result.output
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)


# The miniature's labels


def test_the_miniature_labels_its_renders_by_exact_truth(tmp_path: Path) -> None:
    from pipeline.miniature.labels import save_labels
    from pipeline.miniature.scenes import is_held_out, sample

    said = save_labels(tmp_path, 3, 60, 2, [], None)
    source = read_file(tmp_path / "labels.jsonl")
    kept = [each for each in sample(3, 60, 0.5, 0.5) if not is_held_out(each.scene)]
    assert said == {"renderer": 2 * len(kept)}
    assert len({label.image for label in source.labels}) == len(kept)
    for label, example in zip(source.labels[::2], kept, strict=True):
        hand = [fault for fault in example.scene.faults if fault != "out_of_reach"]
        assert label.fidelity == (not hand)
        assert set(hand) <= set(label.reasons)
        assert source.picture(label).is_file()
    wrong = [label for label in source.labels if label.alignment is False]
    assert all(
        any(reason.startswith("wrong_") or reason == "out_of_reach" for reason in label.reasons)
        for label in wrong
    )


def test_drawn_pictures_are_labelled_by_the_judge_whether_drawn_apart_or_in_a_run(
    tmp_path: Path,
) -> None:
    from pipeline.miniature.captions import scene_of
    from pipeline.miniature.judge import load_judge
    from pipeline.miniature.labels import save_labels
    from pipeline.miniature.render import render
    from pipeline.miniature.scenes import sample

    # a render stands for a picture that a model drew: its truth is known
    cases = [each for each in sample(5, 20, 0.5, 0.5) if "out_of_reach" not in each.faults]
    apart, run = tmp_path / "apart", tmp_path / "runs" / "r"
    for folder in (apart, run / "records", run / "images"):
        folder.mkdir(parents=True)
    for number, case in enumerate(cases):
        picture = render(case.scene)
        picture.save(apart / f"{number:05}.png")
        asked = scene_of(case.asked)
        line = {"number": number, "asked": asked, "variant": case.variant}
        with (apart / "drawn.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        record = a_record(_proposal(case.caption, asked, number), 0.5, 0.5)
        picture.save(run / record.image)
        with (run / "records" / "batch.jsonl").open("a") as file:
            file.write(record.model_dump_json() + "\n")

    judge = load_judge(WEIGHTS / "judge")
    answers = []
    for folder in (apart, run):
        out = tmp_path / f"labels-{folder.name}"
        assert save_labels(out, 0, 0, 1, [folder], judge)["judge"] > 10
        source = read_file(out / "labels.jsonl")
        assert all(source.picture(label).is_file() for label in source.labels)
        answers.append([(x.prompt, x.fidelity, x.alignment, x.base) for x in source.labels])
    assert answers[0] == answers[1]
    truth = {case.caption: (case.faithful, case.aligned) for case in cases}
    assert all(truth[prompt] == (hand, shows) for prompt, hand, shows, _ in answers[0])


def test_drawing_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    from pipeline.miniature.drawn import draw_prompts
    from pipeline.miniature.judge import load_judge
    from pipeline.miniature.labels import save_labels

    def drawn() -> dict[str, bytes]:
        draw_prompts(tmp_path / "d", 7, 4, held_out=True, model="miniature")
        return {each.name: each.read_bytes() for each in (tmp_path / "d").glob("*.png")}

    first = drawn()
    (tmp_path / "d" / "00002.png").unlink()
    (tmp_path / "d" / "00001.png").write_bytes(first["00000.png"])
    again = drawn()
    one, other = (
        np.asarray(Image.open(io.BytesIO(each["00002.png"])), np.int16) for each in (first, again)
    )
    assert np.abs(one - other).max() <= 1  # as far as floating point drifts with the batch
    expected = first | {"00001.png": first["00000.png"], "00002.png": again["00002.png"]}
    assert again == expected
    rows = [json.loads(line) for line in (tmp_path / "d" / "drawn.jsonl").read_text().splitlines()]
    assert [row["proposer"] for row in rows[::2]] == ["base", "base"]
    assert [row["proposer"] for row in rows[1::2]] == [
        row["asked"]["category"] for row in rows[1::2]
    ]
    # what nothing was trained on is only labelled where it is asked for
    judge = load_judge(WEIGHTS / "judge")
    out = tmp_path / "labels"
    assert save_labels(out, 0, 0, 2, [tmp_path / "d"], judge) == {}
    held = save_labels(out, 0, 0, 2, [tmp_path / "d"], judge, held_out=True)
    assert held == {"judge": 4, "captioner": 4}


def test_answers_made_by_eye_become_labels(tmp_path: Path) -> None:
    from pipeline.miniature.labels import save_labels_by_eye

    lines = (WEIGHTS / "eye_labels.jsonl").read_text().splitlines()[:2]
    rows = [json.loads(line) for line in lines]
    rows[1] |= {"hand": True, "object": False, "held": True}
    (tmp_path / "eye.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number:03}.png")
    assert save_labels_by_eye(tmp_path / "out", tmp_path / "eye.jsonl", tmp_path) == 2
    source = read_file(tmp_path / "out" / "labels.jsonl")
    said = [(each.fidelity, each.alignment, each.reasons) for each in source.labels]
    assert said == [(False, True, ("other_fault",)), (True, False, ("wrong_object",))]
    assert [Image.open(source.picture(each)).getpixel((0, 0)) for each in source.labels] == [
        (0, 0, 0),
        (1, 0, 0),
    ]


def test_an_untrained_verifier_can_be_begun_from(tmp_path: Path) -> None:
    from pipeline.miniature.verifier import save_untrained

    save_untrained(tmp_path / "new", 3)
    ref = fingerprint(str(tmp_path / "new"), "verifier")
    verifier = load_base(ref, kind_of(ref))
    shipped = fingerprint("miniature", "verifier")
    trained = load_base(shipped, kind_of(shipped))
    text = "a left hand in a hook grasp carrying a red bag, 3 fingers!"
    assert verifier.tokenizer.encode(text) == trained.tokenizer.encode(text)
    shapes = [
        {name: value.shape for name, value in each.network.state_dict().items()}
        for each in (verifier, trained)
    ]
    assert shapes[0] == shapes[1]


def _proposal(text: str, asked: dict[str, str], seed: int) -> Proposal:
    details = {name: value for name, value in asked.items() if name != "category"}
    prompt = DetailedPrompt(
        id=digest(text), base="a hand", index=0, text=text, category=asked["category"],
        attributes=details,
    )  # fmt: skip
    model = ProposerRef(name="tiny", weights="sha256:" + "0" * 64)
    return Proposal(prompt=prompt, proposer=model, seed=seed, sampler=Sampler())
