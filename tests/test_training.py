"""DreamBooth on tiny random pipelines: what changes, what does not, and what stops it."""

import json
import math
import shutil
import string
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

from pipeline.errors import InputError, ModelError
from pipeline.models import fingerprint
from pipeline.taxonomy import load_taxonomy
from pipeline.training import dreambooth
from pipeline.training.bases import kind_of, load_pipeline, resolution_of
from pipeline.training.card import Trained, read_card
from pipeline.training.categories import category_folders, check_category
from pipeline.training.denoising import Denoising
from pipeline.training.dreambooth import train
from pipeline.training.loop import LoopConfig, Point, TrainingDiverged
from pipeline.training.lora import WEIGHTS
from pipeline.training.plans import Plan, configured, plan_training
from pipeline.types import ModelRef, Sampler
from tests.test_instances import pictures
from tests.tiny import save_tiny_pipeline
from workers.cli.train import train as train_group
from workers.pages.training import write_training_page
from workers.settings import settings

SAMPLER = Sampler(num_inference_steps=1, guidance_scale=1.0)
TAXONOMY = load_taxonomy("miniature")
FAST: dict[str, Any] = {
    "class_images": 2,
    "validation_images": 1,
    "lora.rank": 2,
    "loop.steps": 2,
    "loop.learning_rate": 1e-2,
    "loop.validate_every": 100,
}


class Stopped(Exception):
    """As a power cut would."""


class Onlooker:
    """Keeps what it is told; stops the training after a step, if asked."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.points: list[Point] = []
        self.notes: list[str] = []
        self._stop_after = stop_after

    def stepped(self, point: Point, steps: int, examples_per_s: float) -> None:
        self.points.append(point)
        if point.step == self._stop_after:
            raise Stopped

    def noted(self, line: str) -> None:
        self.notes.append(line)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("base")
    return fingerprint(str(save_tiny_pipeline(folder / "sd", text_length=48)), "base")


@pytest.fixture(scope="module")
def base_xl(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("base-xl")
    return fingerprint(str(save_tiny_xl(folder / "xl")), "base")


@pytest.fixture(scope="module")
def base_sd3(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("base-sd3")
    return fingerprint(str(save_tiny_sd3(folder / "sd3")), "base")


@pytest.fixture
def place(tmp_path: Path) -> "Place":
    return Place(tmp_path)


class Place:
    """A folder with three instance pictures, in which specialists are trained."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.instances = pictures(folder / "pinch", 3)

    def plan(self, base: ModelRef, **settings: Any) -> Plan:
        config = configured(None, FAST | settings, SAMPLER)
        return plan_training("pinch", self.instances, TAXONOMY, base, config)

    def train(
        self,
        base: ModelRef,
        to: str = "out",
        stop_after: int | None = None,
        **settings: Any,
    ) -> Trained:
        onlooker = Onlooker(stop_after)
        plan = self.plan(base, **settings)
        return train(plan, self.folder / to, self.cache, onlooker, cpu=True)


def draw(pipe: Any) -> np.ndarray:
    images = pipe(
        "a hand",
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(1),
        height=32,
        width=32,
        output_type="np",
    ).images
    return np.asarray(images[0])


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return load_file(trained.folder / WEIGHTS)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# What a training changes


def test_one_step_changes_weights_and_the_base_stays(place: Place, base: ModelRef) -> None:
    before = draw(load_pipeline(base, torch.float32))
    # B starts at zero, so that nothing changes before the first step
    trained = place.train(base, **{"loop.steps": 1})
    raised = [value for key, value in weights(trained).items() if "lora_B" in key or "up" in key]
    assert raised
    assert any(value.abs().max() > 0 for value in raised)
    assert fingerprint(base.name, "base") == base

    pipe = load_pipeline(base, torch.float32)
    pipe.load_lora_weights(trained.folder)
    assert np.abs(draw(pipe) - before).max() > 1e-4
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), before)


@pytest.mark.parametrize(
    "targets", [("attention",), ("convolutions",), ("attention", "feed_forward", "convolutions")]
)
def test_adapters_lie_on_the_layers_that_were_asked_for(
    place: Place, base: ModelRef, targets: tuple[str, ...]
) -> None:
    trained = place.train(base, **{"loop.steps": 1, "lora.targets": targets})
    names = " ".join(weights(trained))
    assert ("to_q" in names) == ("attention" in targets)
    assert ("conv1" in names) == ("convolutions" in targets)
    assert ("ff.net" in names) == ("feed_forward" in targets)
    pipe = load_pipeline(base, torch.float32)
    before = draw(pipe)
    pipe.load_lora_weights(trained.folder)
    assert np.abs(draw(pipe) - before).max() > 1e-4


def test_a_scale_other_than_one_survives_the_file(place: Place, base: ModelRef) -> None:
    trained = place.train(base, **{"lora.rank": 4, "lora.lora_alpha": 8})
    pipe = load_pipeline(base, torch.float32)
    pipe.load_lora_weights(trained.folder)
    (settings,) = pipe.unet.peft_config.values()
    assert (settings.r, settings.lora_alpha) == (4, 8)


def test_a_text_encoder_learns_if_asked(place: Place, base: ModelRef) -> None:
    without = weights(place.train(base, "without"))
    with_it = weights(place.train(base, "with", text_encoder=True))
    assert not any(key.startswith("text_encoder") for key in without)
    learned = [v for k, v in with_it.items() if k.startswith("text_encoder") and "lora_B" in k]
    assert learned
    assert any(value.abs().max() > 0 for value in learned)
    pipe = load_pipeline(base, torch.float32)
    pipe.load_lora_weights(place.folder / "with")
    loaded = [v for k, v in pipe.text_encoder.state_dict().items() if "lora_B" in k]
    assert {round(v.norm().item(), 4) for v in loaded} == {
        round(v.float().norm().item(), 4) for v in learned
    }


def test_whole_weights_become_a_pipeline_of_their_own(place: Place, base: ModelRef) -> None:
    trained = place.train(base, method="full", save_dtype="float32")
    ref = fingerprint(str(trained.folder / "pipeline"), "base")
    assert ref.weights != base.weights
    one, other = load_pipeline(ref, torch.float32), load_pipeline(base, torch.float32)
    assert not equal(one.unet.state_dict(), other.unet.state_dict())
    assert equal(one.vae.state_dict(), other.vae.state_dict())


def test_the_loss_falls_on_what_is_learned_by_heart(place: Place, base: ModelRef) -> None:
    for path in sorted(place.instances.iterdir()):
        Image.new("RGB", (32, 32), (200, 30 + int(path.stem), 30)).save(path)
    onlooker = Onlooker()
    settings = {
        "loop.steps": 60, "loop.batch_size": 4, "loop.learning_rate": 1e-2, "prior_loss_weight": 0,
        "lora.rank": 8, "lora.targets": ("attention", "feed_forward", "convolutions"),
    }  # fmt: skip
    train(place.plan(base, **settings), place.folder / "out", place.cache, onlooker, cpu=True)
    losses = [point.losses["loss"] for point in onlooker.points]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_gradient_checkpointing_changes_nothing_but_memory(place: Place, base: ModelRef) -> None:
    plain = weights(place.train(base, "plain", text_encoder=True))
    thrifty = weights(place.train(base, "thrifty", text_encoder=True, gradient_checkpointing=True))
    assert all(torch.allclose(plain[key], thrifty[key], atol=1e-3) for key in plain)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_half_precision_trains_weights_of_full_precision(
    place: Place, base: ModelRef, method: str
) -> None:
    settings = {"loop.mixed_precision": "bf16", "save_dtype": "float32", "method": method}
    trained = place.train(base, **settings)
    assert trained.card.mixed_precision == "bf16"
    kept = load_file(trained.folder / "checkpoints" / "000002" / "weights.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in kept.values())


# SDXL: two text encoders, pooled embeddings, time ids


def test_sdxl_trains_and_its_adapter_loads(place: Place, base_xl: ModelRef) -> None:
    assert (kind_of(base_xl), resolution_of(base_xl)) == ("sdxl", 32)
    trained = place.train(base_xl)
    pipe = load_pipeline(base_xl, torch.float32)
    before = draw(pipe)
    pipe.load_lora_weights(trained.folder)
    assert np.abs(draw(pipe) - before).max() > 1e-4


def test_both_text_encoders_of_sdxl_learn(place: Place, base_xl: ModelRef) -> None:
    trained = place.train(base_xl, text_encoder=True)
    parts = {key.partition(".")[0] for key in weights(trained)}
    assert parts == {"unet", "text_encoder", "text_encoder_2"}
    load_pipeline(base_xl, torch.float32).load_lora_weights(trained.folder)


def test_sdxl_is_told_the_size_and_what_was_cut_off(place: Place, base_xl: ModelRef) -> None:
    (folder := place.folder / "wide").mkdir()
    for number, path in enumerate(sorted(place.instances.iterdir())):
        picture = Image.open(path).resize((128, 64 + number))
        picture.save(folder / path.name)
    place.instances = folder
    seen: list[torch.Tensor] = []
    real = dreambooth.Examples.batch

    def spy(self: Any, rows: Any, generator: Any) -> Any:
        batch = real(self, rows, generator)
        seen.append(batch["time_ids"])
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreambooth.Examples, "batch", spy)
        place.train(base_xl, prior_loss_weight=0, **{"loop.steps": 1})
    height, width, top, left, *target = seen[0][0].tolist()
    assert height in (64, 65, 66)
    assert (width, top, target) == (128, 0, [32, 32])
    assert left > 10


# SD3: a transformer and straight flow


def test_sd3_trains_and_its_adapter_loads(place: Place, base_sd3: ModelRef) -> None:
    assert (kind_of(base_sd3), resolution_of(base_sd3)) == ("sd3", 32)
    targets = ("attention", "feed_forward")
    trained = place.train(base_sd3, text_encoder=True, **{"lora.targets": targets})
    parts = {key.partition(".")[0] for key in weights(trained)}
    assert parts == {"transformer", "text_encoder", "text_encoder_2"}
    pipe = load_pipeline(base_sd3, torch.float32)
    before = draw(pipe)
    pipe.load_lora_weights(trained.folder)
    assert np.abs(draw(pipe) - before).max() > 1e-4


def test_flow_is_the_straight_way_to_noise(base_sd3: ModelRef) -> None:
    pipe = load_pipeline(base_sd3, torch.float32)
    latents, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    text = {"text": torch.randn(1, 7, 32), "pooled": torch.randn(1, 32)}
    level = torch.tensor([0.5])  # the median of logit-normal is 0.5; shifted by 3, that is 0.75
    batch = {"latents": latents, "noise": noise, "level": level, **text}
    drawn = pipe.transformer(
        hidden_states=0.25 * latents + 0.75 * noise,
        timestep=torch.tensor([750.0]),
        encoder_hidden_states=text["text"],
        pooled_projections=text["pooled"],
        return_dict=False,
    )[0]
    expected = ((drawn - (noise - latents)) ** 2).mean()
    loss = Denoising(pipe, {})(batch)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_is_what_the_scheduler_says(tmp_path: Path, base: ModelRef, kind: str) -> None:
    copy = Path(shutil.copytree(base.name, tmp_path / "copy"))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": kind}))
    pipe = load_pipeline(fingerprint(str(copy), "base"), torch.float32)
    module = Denoising(pipe, {})
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    text = torch.zeros(2, 48, 16)
    batch = {"latents": latents, "noise": noise, "level": torch.tensor([0.2, 0.7]), "text": text}
    t = torch.tensor([200, 700])
    kept = pipe.scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
    lost = (1 - kept**2).sqrt()
    drawn = pipe.unet(kept * latents + lost * noise, t, text, return_dict=False)[0]
    wanted = noise if kind == "epsilon" else kept * noise - lost * latents
    expected = ((drawn - wanted) ** 2).mean()
    assert module(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


# Prior preservation


def test_class_images_are_drawn_once_and_learned_beside(place: Place, base: ModelRef) -> None:
    trained = place.train(base)
    (drawn,) = place.cache.iterdir()
    assert len(list(drawn.glob("*.png"))) == trained.card.class_images == 2
    assert set(trained.card.losses) == {"loss", "instance", "prior"}
    before = {path: path.stat().st_mtime_ns for path in drawn.iterdir()}

    more = place.train(base, "more", class_images=3)
    assert len(list(drawn.iterdir())) == 3
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert not equal(weights(trained), weights(more))
    place.train(base, "other", class_prompts=["a foot"])
    assert len(list(place.cache.iterdir())) == 2


def test_the_weight_of_the_prior_counts(place: Place, base: ModelRef) -> None:
    none = place.train(base, "none", prior_loss_weight=0)
    assert set(none.card.losses) == {"loss"}
    assert none.card.class_images == 0
    assert not place.cache.exists()
    one = place.train(base, "one", prior_loss_weight=1.0)
    losses = one.card.losses
    assert losses["loss"] == pytest.approx(losses["instance"] + losses["prior"], abs=1e-5)
    assert not equal(weights(one), weights(place.train(base, "half", prior_loss_weight=0.5)))


# Going on


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"text_encoder": True, "loop.batch_size": 2, "loop.gradient_accumulation_steps": 2},
        {"loop.ema_decay": 0.9, "loop.lr_schedule": "cosine", "loop.warmup_steps": 2},
        {"method": "full", "save_dtype": "float32"},
    ],
)
def test_a_training_that_was_cut_off_ends_as_an_unbroken_one(
    place: Place, base: ModelRef, settings: dict[str, Any]
) -> None:
    settings = settings | {"loop.steps": 5, "loop.checkpoint_every": 2}
    whole = place.train(base, "whole", **settings)
    with pytest.raises(Stopped):
        place.train(base, "broken", stop_after=3, **settings)
    assert read_card(place.folder / "broken") is None
    broken = place.train(base, "broken", **settings)

    assert broken.card.losses == whole.card.losses
    for path in sorted(whole.folder.rglob("*.safetensors")):
        twin = broken.folder / path.relative_to(whole.folder)
        assert twin.read_bytes() == path.read_bytes(), path.name
    curves = [(each.folder / "curve.json").read_text() for each in (whole, broken)]
    assert curves[0] == curves[1]


def test_a_training_that_is_done_is_not_done_again(place: Place, base: ModelRef) -> None:
    assert place.train(base).new
    stamp = (place.folder / "out" / WEIGHTS).stat().st_mtime_ns
    assert not place.train(base).new
    assert (place.folder / "out" / WEIGHTS).stat().st_mtime_ns == stamp


def test_a_folder_of_another_training_is_refused(place: Place, base: ModelRef) -> None:
    with pytest.raises(Stopped):
        place.train(base, stop_after=2, **{"loop.checkpoint_every": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreambooth, "load_pipeline", None)  # it is seen before anything is loaded
        with pytest.raises(InputError, match="other settings, pictures or weights"):
            place.train(base, **{"loop.checkpoint_every": 1, "loop.learning_rate": 1e-3})
    place.train(base, "done")
    with pytest.raises(InputError, match="holds another training"):
        place.train(base, "done", **{"loop.seed": 7})


def test_checkpoints_hold_no_pickle_and_the_oldest_go(place: Place, base: ModelRef) -> None:
    settings = {"loop.steps": 4, "loop.checkpoint_every": 1, "loop.ema_decay": 0.9}
    trained = place.train(base, **settings)
    checkpoints = trained.folder / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["000003", "000004"]
    files = [path for path in trained.folder.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds == {".safetensors", ".json", ".png", ".md"}
    assert not any(path.read_bytes()[:2] in (b"\x80\x04", b"PK") for path in files)


def test_a_broken_checkpoint_is_named(place: Place, base: ModelRef) -> None:
    with pytest.raises(Stopped):
        place.train(base, stop_after=2, **{"loop.checkpoint_every": 1})
    newest = place.folder / "out" / "checkpoints" / "000001"
    (newest / "weights.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match=r"000001.*cannot be read.*remove that folder"):
        place.train(base, **{"loop.checkpoint_every": 1})


# What stops it


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    place: Place, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dreambooth.Denoising.forward
    calls: list[int] = []

    def spoilt(self: Any, batch: Any) -> Any:
        calls.append(1)
        losses = real(self, batch)
        return losses if len(calls) < 4 else losses | {"loss": losses["loss"] * math.nan}

    monkeypatch.setattr(dreambooth.Denoising, "forward", spoilt)
    with pytest.raises(TrainingDiverged, match=r"step 4 .*nan.*checkpoint of step 000002 is kept"):
        place.train(base, **{"loop.steps": 6, "loop.checkpoint_every": 2})
    out = place.folder / "out"
    kept = load_file(out / "checkpoints" / "000002" / "weights.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert not (out / WEIGHTS).exists()
    assert len(json.loads((out / "curve.json").read_text())) == 3
    write_training_page(out, out / "training.html", "the training diverged at step 4")
    assert "diverged at step 4" in (out / "training.html").read_text()


def test_a_rate_that_is_far_too_high_ends_in_one_line(place: Place, base: ModelRef) -> None:
    settings = {"loop.learning_rate": 1e30, "loop.steps": 20, "loop.checkpoint_every": 1}
    with pytest.raises(TrainingDiverged, match="lower rate to another folder"):
        place.train(base, **settings)


def test_an_unknown_category_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no category 'pinhc': did you mean 'pinch'\?"):
        check_category("pinhc", TAXONOMY)


def test_bad_pictures_are_found_before_a_model_is_loaded(
    place: Place, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.AutoPipelineForText2Image.from_pretrained", None)
    (place.instances / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png: no readable picture"):
        place.train(base)


def test_a_base_of_another_kind_is_refused(place: Place, base: ModelRef, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base.name, tmp_path / "copy"))
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "KolorsPipeline"}))
    with pytest.raises(ModelError, match="is a KolorsPipeline, which cannot be trained"):
        place.plan(fingerprint(str(copy), "base"))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("instance_prompt", "a {tokn} hand", "did you mean 'token'"),
        ("instance_prompt", "a {token hand", "'instance_prompt'"),
        ("loop.steps", 0, "'loop.steps': Input should be greater"),
        ("lora.targets", ("attntion",), "'lora.targets.0'"),
    ],
)
def test_a_wrong_setting_is_one_line(key: str, value: object, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        configured(None, {key: value}, SAMPLER)
    assert "\n" not in str(refused.value)


# Prompts, cards and pages


def test_prompts_come_from_the_taxonomy_or_the_captions(place: Place, base: ModelRef) -> None:
    plan = place.plan(base)
    assert set(plan.prompts) == {"a sks hand in a pinch grasp holding an object"}
    assert plan.class_prompts == ("a hand in a pinch grasp holding an object",)
    (place.instances / "1.txt").write_text("a hand with a key")
    assert place.plan(base).prompts[1] == "sks a hand with a key"
    bare = place.plan(base, token="", prior_loss_weight=0)
    assert bare.prompts[1] == "a hand with a key"
    own = place.plan(base, instance_prompt="{token} {category} in {action}, {caption}")
    assert own.prompts[1] == "sks pinch in in a pinch grasp holding, a hand with a key"


def test_without_a_token_the_class_is_of_other_categories(place: Place, base: ModelRef) -> None:
    prompts = ["a hand {action} an object", "a hand in a hook grasp"]
    assert place.plan(base, token="", class_prompts=prompts).class_prompts == (prompts[1],)
    assert len(place.plan(base, class_prompts=prompts).class_prompts) == 2
    with pytest.raises(InputError, match="without a token the class prompts cannot be of 'pinch'"):
        place.plan(base, token="")


def test_the_recipe_of_the_miniature_suits_every_category() -> None:
    config = configured("miniature", {"loop.steps": 7}, SAMPLER)
    assert config.loop.steps == 7
    assert config.loop.batch_size > 1
    for category in TAXONOMY.categories.values():
        assert any(category.action in prompt for prompt in config.class_prompts)


def test_a_prompt_that_is_too_long_is_noted(place: Place, base: ModelRef) -> None:
    (place.instances / "1.txt").write_text("a" * 60)  # one token a letter, of 48
    onlooker = Onlooker()
    train(place.plan(base), place.folder / "out", place.cache, onlooker, cpu=True)
    (note,) = (line for line in onlooker.notes if "does not read the end of" in line)
    assert note.endswith("sks " + "a" * 60)


def test_grids_of_other_settings_are_drawn_anew(place: Place, base: ModelRef) -> None:
    with pytest.raises(Stopped):
        place.train(base, stop_after=1)  # before the first checkpoint
    first = place.folder / "out" / "validation" / "000000" / "00.png"
    before = first.read_bytes()
    place.train(base, **{"loop.seed": 3})
    assert first.read_bytes() != before


def test_the_card_says_what_it_was_made_of(place: Place, base: ModelRef) -> None:
    trained = place.train(base)
    card = read_card(trained.folder)
    assert card == trained.card
    assert card.base == base
    assert card.steps == 2
    assert [len(sha256) for sha256 in card.instances.values()] == [64] * 3
    assert card.images_per_s > 0
    assert card.peak_memory_bytes > 2**20
    readme = (trained.folder / "README.md").read_text()
    assert base.weights in readme
    assert readme.startswith('---\nlibrary_name: "diffusers"')


def test_the_page_holds_curve_and_grids_and_asks_no_network(place: Place, base: ModelRef) -> None:
    trained = place.train(base, validation_images=2, **{"loop.validate_every": 1})
    grids = sorted((trained.folder / "validation").iterdir())
    assert [grid.name for grid in grids] == ["000000", "000001", "000002"]
    assert len(list(grids[0].glob("*.png"))) == 2
    write_training_page(trained.folder, to := place.folder / "page.html")
    page = to.read_text()
    assert page.count("data:image/png;base64,") == 6
    assert page.count("<polyline") == 3
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page


def test_a_folder_of_folders_holds_categories(place: Place) -> None:
    pictures(place.folder / "all" / "pinch", 2)
    pictures(place.folder / "all" / "hook", 2)
    assert list(category_folders(place.folder / "all", TAXONOMY)) == ["hook", "pinch"]
    pictures(place.folder / "all" / "hooks", 2)
    with pytest.raises(InputError, match="did you mean 'hook'"):
        category_folders(place.folder / "all", TAXONOMY)
    with pytest.raises(InputError, match="holds no folders"):
        category_folders(place.instances, TAXONOMY)
    with pytest.raises(InputError, match="no folder"):
        category_folders(place.folder / "nowhere", TAXONOMY)


# The command


@pytest.fixture
def ppv_train(
    place: Place, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """`ppv train proposer` on the tiny pipeline, in this process."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("PPV_PROPOSER__MODEL", base.name)
    monkeypatch.setenv("PPV_PROPOSER__DEVICE", "cpu")
    settings.cache_clear()
    small = ("--steps", "2", "--class-images", "2", "--rank", "2")

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(train_group, ["proposer", *small, *map(str, arguments)])

    yield run
    settings.cache_clear()


def test_the_command_trains_all_and_writes_pages(place: Place, ppv_train: Any) -> None:
    for name in ("pinch", "hook"):
        pictures(place.folder / "all" / name, 2)
    result = ppv_train("--all", place.folder / "all", "--to", "out")
    assert result.exit_code == 0, result.output
    for name in ("pinch", "hook"):
        assert (place.folder / "out" / name / WEIGHTS).exists()
        assert "<polyline" in (place.folder / "out" / name / "training.html").read_text()
    assert "images/s, peak memory" in result.stdout
    assert "pinch: step 2 of 2: loss" in result.stderr


def test_the_command_answers_programs(place: Place, ppv_train: Any) -> None:
    given = ("--category", "pinch", "--instances", place.instances, "--to", "out", "--json")
    answer = json.loads(ppv_train(*given).stdout)
    assert answer["new"]
    assert answer["card"]["category"] == "pinch"
    assert not json.loads(ppv_train(*given).stdout)["new"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give --category and --instances, or --all"),
        (("--category", "pinch", "--instances", "pinch", "--all", "x"), "give one or other"),
        (("--category", "pich", "--instances", "pinch"), "did you mean 'pinch'"),
        (("--category", "pinch", "--instances", "nowhere"), "no folder 'nowhere'"),
        (("--category", "pinch", "--instances", "pinch", "--base", "nowhere"), "no model at"),
        (("--category", "pinch", "--instances", "pinch", "--recipe", "non"), "no recipe 'non'"),
        (
            ("--category", "pinch", "--instances", "pinch", "--mixed-precision", "fp16"),
            "'fp16' needs a GPU",
        ),
    ],
)
def test_wrong_input_is_one_line(
    ppv_train: Any, arguments: tuple[str, ...], complaint: str
) -> None:
    result = ppv_train(*arguments, "--to", "out")
    assert isinstance(result.exception, InputError)
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, workers.cli.train; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


# The schedule, against numbers worked by hand


def test_the_learning_rate_follows_its_schedule() -> None:
    def rates(schedule: Any) -> list[float]:
        config = LoopConfig(steps=6, learning_rate=8.0, warmup_steps=2, lr_schedule=schedule)
        return [round(config.learning_rate_at(step), 3) for step in range(6)]

    assert rates("constant") == [2.667, 5.333, 8.0, 8.0, 8.0, 8.0]
    assert rates("linear") == [2.667, 5.333, 8.0, 6.0, 4.0, 2.0]
    assert rates("cosine") == [2.667, 5.333, 8.0, 6.828, 4.0, 1.172]


def save_tiny_xl(folder: Path, *, seed: int = 0) -> Path:
    """A StableDiffusionXLPipeline that draws 32x32 noise, on the tiny pipeline's parts."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    small: Any = StableDiffusionPipeline.from_pretrained(
        save_tiny_pipeline(folder.with_name("parts"), seed=seed, text_length=48)
    )
    settings = small.text_encoder.config.to_dict() | {"projection_dim": 16}
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,  # both text encoders side by side
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    pipe = StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=small.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**settings)),
        tokenizer=small.tokenizer,
        tokenizer_2=small.tokenizer,
        unet=unet,
        scheduler=small.scheduler,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_sd3(folder: Path, *, seed: int = 0) -> Path:
    """A StableDiffusion3Pipeline that draws 32x32 noise, with a T5 that reads letters."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
        StableDiffusionPipeline,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
        T5Tokenizer,
    )

    small: Any = StableDiffusionPipeline.from_pretrained(
        save_tiny_pipeline(folder.with_name("parts"), seed=seed, text_length=48)
    )
    settings = small.text_encoder.config.to_dict() | {"projection_dim": 16}
    letters = [(letter, -2.0) for letter in string.ascii_lowercase]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,  # both CLIPs side by side
        pos_embed_max_size=16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**settings)),
        tokenizer=small.tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**settings)),
        tokenizer_2=small.tokenizer,
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_3=T5Tokenizer(vocab=special + letters, extra_ids=0),
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
