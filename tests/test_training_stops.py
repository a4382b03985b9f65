"""A training that is cut off, goes on or must not begin."""

import json
import math
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.errors import InputError
from pipeline.training import tuning
from pipeline.training.card import read_card
from pipeline.training.categories import check_category
from pipeline.training.dreambooth_plan import DreamBoothConfig
from pipeline.training.loop import TrainingDiverged
from pipeline.training.lora import WEIGHTS
from pipeline.training.plans import configured
from pipeline.types import ModelRef
from tests.training import SAMPLER, TAXONOMY, Stopped, Studio
from workers.pages.training import write_training_page

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
    studio: Studio, base: ModelRef, settings: dict[str, Any]
) -> None:
    settings = settings | {"loop.steps": 5, "loop.checkpoint_every": 2}
    whole = studio.train(base, "whole", **settings)
    with pytest.raises(Stopped):
        studio.train(base, "broken", stop_after=3, **settings)
    assert read_card(studio.folder / "broken") is None
    broken = studio.train(base, "broken", **settings)

    assert broken.card.losses == whole.card.losses
    for path in sorted(whole.folder.rglob("*.safetensors")):
        twin = broken.folder / path.relative_to(whole.folder)
        assert twin.read_bytes() == path.read_bytes(), path.name
    curves = [(each.folder / "curve.json").read_text() for each in (whole, broken)]
    assert curves[0] == curves[1]


def test_a_training_that_is_done_is_not_done_again(studio: Studio, base: ModelRef) -> None:
    assert studio.train(base).new
    stamp = (studio.folder / "out" / WEIGHTS).stat().st_mtime_ns
    assert not studio.train(base).new
    assert (studio.folder / "out" / WEIGHTS).stat().st_mtime_ns == stamp


def test_a_folder_of_another_training_is_refused(studio: Studio, base: ModelRef) -> None:
    with pytest.raises(Stopped):
        studio.train(base, stop_after=2, **{"loop.checkpoint_every": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "load_pipeline", None)  # it is seen before anything is loaded
        with pytest.raises(InputError, match="other settings, pictures or weights"):
            studio.train(base, **{"loop.checkpoint_every": 1, "loop.learning_rate": 1e-3})
    studio.train(base, "done")
    with pytest.raises(InputError, match="holds another training"):
        studio.train(base, "done", **{"loop.seed": 7})


def test_checkpoints_hold_no_pickle_and_the_oldest_go(studio: Studio, base: ModelRef) -> None:
    settings = {"loop.steps": 4, "loop.checkpoint_every": 1, "loop.ema_decay": 0.9}
    trained = studio.train(base, **settings)
    checkpoints = trained.folder / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["000003", "000004"]
    files = [path for path in trained.folder.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds == {".safetensors", ".json", ".png", ".md"}
    assert not any(path.read_bytes()[:2] in (b"\x80\x04", b"PK") for path in files)


def test_a_broken_checkpoint_is_named(studio: Studio, base: ModelRef) -> None:
    with pytest.raises(Stopped):
        studio.train(base, stop_after=2, **{"loop.checkpoint_every": 1})
    newest = studio.folder / "out" / "checkpoints" / "000001"
    (newest / "weights.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match=r"000001.*cannot be read.*remove that folder"):
        studio.train(base, **{"loop.checkpoint_every": 1})


def test_grids_of_other_settings_are_drawn_anew(studio: Studio, base: ModelRef) -> None:
    with pytest.raises(Stopped):
        studio.train(base, stop_after=1)  # before the first checkpoint
    first = studio.folder / "out" / "validation" / "000000" / "00.png"
    before = first.read_bytes()
    studio.train(base, **{"loop.seed": 3})
    assert first.read_bytes() != before


# What stops it


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    studio: Studio, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tuning.Denoising.forward
    calls: list[int] = []

    def spoilt(self: Any, batch: Any) -> Any:
        calls.append(1)
        losses = real(self, batch)
        return losses if len(calls) < 4 else losses | {"loss": losses["loss"] * math.nan}

    monkeypatch.setattr(tuning.Denoising, "forward", spoilt)
    with pytest.raises(TrainingDiverged, match=r"step 4 .*nan.*checkpoint of step 000002 is kept"):
        studio.train(base, **{"loop.steps": 6, "loop.checkpoint_every": 2})
    out = studio.folder / "out"
    kept = load_file(out / "checkpoints" / "000002" / "weights.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert not (out / WEIGHTS).exists()
    assert len(json.loads((out / "curve.json").read_text())) == 3
    write_training_page(out, out / "training.html", "the training diverged at step 4")
    assert "diverged at step 4" in (out / "training.html").read_text()


def test_a_rate_that_is_far_too_high_ends_in_one_line(studio: Studio, base: ModelRef) -> None:
    settings = {"loop.learning_rate": 1e30, "loop.steps": 20, "loop.checkpoint_every": 1}
    with pytest.raises(TrainingDiverged, match="lower rate to another folder"):
        studio.train(base, **settings)


def test_an_unknown_category_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no category 'pinhc': did you mean 'pinch'\?"):
        check_category("pinhc", TAXONOMY)


def test_bad_pictures_are_found_before_a_model_is_loaded(
    studio: Studio, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.AutoPipelineForText2Image.from_pretrained", None)
    (studio.instances / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png: no readable picture"):
        studio.train(base)


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
        configured(DreamBoothConfig, None, {key: value}, SAMPLER)
    assert "\n" not in str(refused.value)
