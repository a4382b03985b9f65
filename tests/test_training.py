"""DreamBooth on tiny random pipelines: what changes and what does not."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.models import fingerprint
from pipeline.training.bases import load_pipeline
from pipeline.training.dreambooth import train
from pipeline.training.loop import LoopConfig
from pipeline.types import ModelRef
from tests.training import Onlooker, Studio, draw, equal, weights

# What a training changes


def test_one_step_changes_weights_and_the_base_stays(studio: Studio, base: ModelRef) -> None:
    before = draw(load_pipeline(base, torch.float32))
    # B starts at zero, so that nothing changes before the first step
    trained = studio.train(base, **{"loop.steps": 1})
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
    studio: Studio, base: ModelRef, targets: tuple[str, ...]
) -> None:
    trained = studio.train(base, **{"loop.steps": 1, "lora.targets": targets})
    names = " ".join(weights(trained))
    assert ("to_q" in names) == ("attention" in targets)
    assert ("conv1" in names) == ("convolutions" in targets)
    assert ("ff.net" in names) == ("feed_forward" in targets)
    pipe = load_pipeline(base, torch.float32)
    before = draw(pipe)
    pipe.load_lora_weights(trained.folder)
    assert np.abs(draw(pipe) - before).max() > 1e-4


def test_a_scale_other_than_one_survives_the_file(studio: Studio, base: ModelRef) -> None:
    trained = studio.train(base, **{"lora.rank": 4, "lora.lora_alpha": 8})
    pipe = load_pipeline(base, torch.float32)
    pipe.load_lora_weights(trained.folder)
    (settings,) = pipe.unet.peft_config.values()
    assert (settings.r, settings.lora_alpha) == (4, 8)


def test_a_text_encoder_learns_if_asked(studio: Studio, base: ModelRef) -> None:
    without = weights(studio.train(base, "without"))
    with_it = weights(studio.train(base, "with", text_encoder=True))
    assert not any(key.startswith("text_encoder") for key in without)
    learned = [v for k, v in with_it.items() if k.startswith("text_encoder") and "lora_B" in k]
    assert learned
    assert any(value.abs().max() > 0 for value in learned)
    pipe = load_pipeline(base, torch.float32)
    pipe.load_lora_weights(studio.folder / "with")
    loaded = [v for k, v in pipe.text_encoder.state_dict().items() if "lora_B" in k]
    assert {round(v.norm().item(), 4) for v in loaded} == {
        round(v.float().norm().item(), 4) for v in learned
    }


def test_whole_weights_become_a_pipeline_of_their_own(studio: Studio, base: ModelRef) -> None:
    trained = studio.train(base, method="full", save_dtype="float32")
    ref = fingerprint(str(trained.folder / "pipeline"), "base")
    assert ref.weights != base.weights
    one, other = load_pipeline(ref, torch.float32), load_pipeline(base, torch.float32)
    assert not equal(one.unet.state_dict(), other.unet.state_dict())
    assert equal(one.vae.state_dict(), other.vae.state_dict())


def test_the_loss_falls_on_what_is_learned_by_heart(studio: Studio, base: ModelRef) -> None:
    for path in sorted(studio.instances.iterdir()):
        Image.new("RGB", (32, 32), (200, 30 + int(path.stem), 30)).save(path)
    onlooker = Onlooker()
    settings = {
        "loop.steps": 60, "loop.batch_size": 4, "loop.learning_rate": 1e-2, "prior_loss_weight": 0,
        "lora.rank": 8, "lora.targets": ("attention", "feed_forward", "convolutions"),
    }  # fmt: skip
    train(studio.plan(base, **settings), studio.folder / "out", studio.cache, onlooker, cpu=True)
    losses = [point.losses["loss"] for point in onlooker.points]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_gradient_checkpointing_changes_nothing_but_memory(studio: Studio, base: ModelRef) -> None:
    plain = weights(studio.train(base, "plain", text_encoder=True))
    thrifty = weights(studio.train(base, "thrifty", text_encoder=True, gradient_checkpointing=True))
    assert all(torch.allclose(plain[key], thrifty[key], atol=1e-3) for key in plain)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_half_precision_trains_weights_of_full_precision(
    studio: Studio, base: ModelRef, method: str
) -> None:
    settings = {"loop.mixed_precision": "bf16", "save_dtype": "float32", "method": method}
    trained = studio.train(base, **settings)
    assert trained.card.mixed_precision == "bf16"
    kept = load_file(trained.folder / "checkpoints" / "000002" / "weights.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in kept.values())


# Prior preservation


def test_class_images_are_drawn_once_and_learned_beside(studio: Studio, base: ModelRef) -> None:
    trained = studio.train(base)
    (drawn,) = (studio.cache / "class-images").iterdir()
    assert len(list(drawn.glob("*.png"))) == trained.card.class_images == 2
    assert set(trained.card.losses) == {"loss", "instance", "prior"}
    before = {path: path.stat().st_mtime_ns for path in drawn.iterdir()}

    more = studio.train(base, "more", class_images=3)
    assert len(list(drawn.iterdir())) == 3
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert not equal(weights(trained), weights(more))
    studio.train(base, "other", class_prompts=["a foot"])
    assert len(list((studio.cache / "class-images").iterdir())) == 2


def test_the_weight_of_the_prior_counts(studio: Studio, base: ModelRef) -> None:
    none = studio.train(base, "none", prior_loss_weight=0)
    assert set(none.card.losses) == {"loss"}
    assert none.card.class_images == 0
    assert not (studio.cache / "class-images").exists()
    one = studio.train(base, "one", prior_loss_weight=1.0)
    losses = one.card.losses
    assert losses["loss"] == pytest.approx(losses["instance"] + losses["prior"], abs=1e-5)
    assert not equal(weights(one), weights(studio.train(base, "half", prior_loss_weight=0.5)))


# The schedule, against numbers worked by hand


def test_the_learning_rate_follows_its_schedule() -> None:
    def rates(schedule: Any) -> list[float]:
        config = LoopConfig(steps=6, learning_rate=8.0, warmup_steps=2, lr_schedule=schedule)
        return [round(config.learning_rate_at(step), 3) for step in range(6)]

    assert rates("constant") == [2.667, 5.333, 8.0, 8.0, 8.0, 8.0]
    assert rates("linear") == [2.667, 5.333, 8.0, 6.0, 4.0, 2.0]
    assert rates("cosine") == [2.667, 5.333, 8.0, 6.828, 4.0, 1.172]
