"""DreamBooth on each kind of base: what is particular to it, and what no kind trains."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import ModelError
from pipeline.models import fingerprint
from pipeline.training import dreambooth
from pipeline.training.bases import kind_of, load_pipeline, resolution_of
from pipeline.training.denoising import Denoising
from pipeline.types import ModelRef
from tests.training import Studio, draw, weights


def test_a_base_of_another_kind_is_refused(studio: Studio, base: ModelRef, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base.name, tmp_path / "copy"))
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "KolorsPipeline"}))
    with pytest.raises(ModelError, match="is a KolorsPipeline, which cannot be trained"):
        studio.plan(fingerprint(str(copy), "base"))


# SDXL: two text encoders, pooled embeddings, time ids


def test_sdxl_trains_and_its_adapter_loads(studio: Studio, base_xl: ModelRef) -> None:
    assert (kind_of(base_xl), resolution_of(base_xl)) == ("sdxl", 32)
    trained = studio.train(base_xl)
    pipe = load_pipeline(base_xl, torch.float32)
    before = draw(pipe)
    pipe.load_lora_weights(trained.folder)
    assert np.abs(draw(pipe) - before).max() > 1e-4


def test_both_text_encoders_of_sdxl_learn(studio: Studio, base_xl: ModelRef) -> None:
    trained = studio.train(base_xl, text_encoder=True)
    parts = {key.partition(".")[0] for key in weights(trained)}
    assert parts == {"unet", "text_encoder", "text_encoder_2"}
    load_pipeline(base_xl, torch.float32).load_lora_weights(trained.folder)


def test_sdxl_is_told_the_size_and_what_was_cut_off(studio: Studio, base_xl: ModelRef) -> None:
    (folder := studio.folder / "wide").mkdir()
    for number, path in enumerate(sorted(studio.instances.iterdir())):
        picture = Image.open(path).resize((128, 64 + number))
        picture.save(folder / path.name)
    studio.instances = folder
    seen: list[torch.Tensor] = []
    real = dreambooth.Examples.batch

    def spy(self: Any, *given: Any) -> Any:
        batch = real(self, *given)
        seen.append(batch["time_ids"])
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreambooth.Examples, "batch", spy)
        studio.train(base_xl, prior_loss_weight=0, **{"loop.steps": 1})
    height, width, top, left, *target = seen[0][0].tolist()
    assert height in (64, 65, 66)
    assert (width, top, target) == (128, 0, [32, 32])
    assert left > 10


# SD3: a transformer and straight flow


def test_sd3_trains_and_its_adapter_loads(studio: Studio, base_sd3: ModelRef) -> None:
    assert (kind_of(base_sd3), resolution_of(base_sd3)) == ("sd3", 32)
    targets = ("attention", "feed_forward")
    trained = studio.train(base_sd3, text_encoder=True, **{"lora.targets": targets})
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
