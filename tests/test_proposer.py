"""The proposer on a tiny random pipeline: a picture is its text, its seed and the sampler."""

import io
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import MINIATURE, ProposerConfig
from pipeline.errors import ItemError, ModelError
from pipeline.models import fingerprint
from pipeline.pictures import decode, encode, sha256
from pipeline.proposer.diffusion import DiffusionProposer, Drawing
from pipeline.types import DetailedPrompt, Proposal, ProposerRef, Sampler
from tests.tiny import save_tiny_pipeline

SAMPLER = Sampler(num_inference_steps=2)
TEXTS = [f"a hand with {count} mugs" for count in range(8)]
SEEDS = list(range(100, 108))
DRIFT = 1  # of 255: what another batch size may change in a pixel, by rounding alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipeline"), text_length=24)


@pytest.fixture(scope="module")
def proposer(folder: Path) -> DiffusionProposer:
    return _load(folder)


def test_a_picture_does_not_depend_on_its_batch(proposer: DiffusionProposer) -> None:
    whole = _pixels(proposer.draw(TEXTS, SEEDS, SAMPLER))
    for size in (1, 3):
        apart: list[np.ndarray] = []
        for start in range(0, 8, size):
            part = slice(start, start + size)
            apart += _pixels(proposer.draw(TEXTS[part], SEEDS[part], SAMPLER))
        assert max(map(_difference, whole, apart)) <= DRIFT
    again = _pixels(proposer.draw(TEXTS[::-1], SEEDS[::-1], SAMPLER))[::-1]
    assert max(map(_difference, whole, again)) <= DRIFT


def test_the_miniatures_pictures_hardly_depend_on_their_batch() -> None:
    """Measured over batches of 1, 3 and 8: at most 1 of 255 in a pixel, 0.0001 on average."""
    sampler = Sampler(num_inference_steps=4)
    texts = [f"a hand holding a {thing}" for thing in ("mug", "key", "ball", "pen")] * 2
    drawn = []
    for size in (1, 3, 8):
        config = ProposerConfig(device="cpu", batch_size=size)
        miniature = DiffusionProposer.load(config, fingerprint(MINIATURE, "base"))
        drawn.append(np.stack(_pixels(miniature.draw(texts, SEEDS, sampler))))
        assert miniature.effort.passes == math.ceil(8 / size)
    for others in drawn[1:]:
        drift = np.abs(drawn[0] - others)
        assert drift.max() <= 2
        assert drift.mean() < 0.001


def test_seed_and_text_and_sampler_each_change_the_picture(proposer: DiffusionProposer) -> None:
    first, seed, text = _pixels(proposer.draw(["a mug", "a mug", "a key"], [1, 2, 1], SAMPLER))
    assert _difference(first, seed) > 10 * DRIFT
    assert _difference(first, text) > 0
    (steps,) = _pixels(proposer.draw(["a mug"], [1], Sampler(num_inference_steps=3)))
    assert _difference(first, steps) > 0


def test_the_sampler_sets_the_size(proposer: DiffusionProposer) -> None:
    drawing = proposer.draw(["a mug"], [1], Sampler(num_inference_steps=1, height=16, width=48))[0]
    assert drawing.image.size == (48, 16)
    assert drawing.image.mode == "RGB"


def test_tokens_that_no_encoder_reads_are_counted(proposer: DiffusionProposer) -> None:
    room = 24 - 2  # between the start and the end token; one token a letter
    drawings = proposer.draw(["a" * room, "a" * (room + 5)], [1, 1], SAMPLER)
    assert [drawing.unread_tokens for drawing in drawings] == [0, 5]


def test_drawing_leaves_gradients_on_for_those_who_train(proposer: DiffusionProposer) -> None:
    import torch

    proposer.draw(["a mug"], [1], SAMPLER)
    assert torch.is_grad_enabled()


def test_a_folder_that_is_no_pipeline_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no text-to-image pipeline"):
        _load(folder / "unet")
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="is no text-to-image pipeline"):
        _load(broken)


def test_pickled_weights_are_refused_before_anything_loads_them(
    folder: Path, tmp_path: Path
) -> None:
    ref = fingerprint(str(folder), "base")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="holds a pickle"):
        DiffusionProposer.load(_config(copy), ref.model_copy(update={"name": str(copy)}))


# Pictures as bytes


def test_a_picture_keeps_its_pixels_and_notes_through_png() -> None:
    drawing, proposal = _drawing(), _proposal("يد 👋🏽 with a mug")
    png = encode(drawing, proposal)
    back = decode(png)
    assert np.array_equal(np.asarray(back.image), np.asarray(drawing.image))
    assert (back.unread_tokens, back.upcast) == (7, False)
    assert Image.open(io.BytesIO(png)).info["prompt"] == proposal.prompt.text


def test_that_a_picture_was_decoded_again_is_noted_only_where_it_was() -> None:
    plain, again = _drawing(), replace(_drawing(), upcast=True)
    assert decode(encode(again, _proposal("a mug"))).upcast
    notes = Image.open(io.BytesIO(encode(plain, _proposal("a mug")))).info
    assert sorted(notes) == ["prompt", "proposal", "unread_tokens"]


def test_the_same_drawing_gives_the_same_bytes() -> None:
    first = encode(_drawing(), _proposal("a mug"))
    assert sha256(first) == sha256(encode(_drawing(), _proposal("a mug")))
    assert first != encode(_drawing(), _proposal("a key"))


def test_half_a_picture_is_an_error() -> None:
    png = encode(_drawing(), _proposal("a mug"))
    for part in (b"", png[:20], png[: len(png) // 2]):
        with pytest.raises(ItemError):
            decode(part)


def _config(folder: Path) -> ProposerConfig:
    return ProposerConfig(model=str(folder), device="cpu")


def _load(folder: Path) -> DiffusionProposer:
    return DiffusionProposer.load(_config(folder), fingerprint(str(folder), "base"))


def _pixels(drawings: list[Drawing]) -> list[np.ndarray]:
    return [np.asarray(drawing.image, dtype=np.int16) for drawing in drawings]


def _difference(first: np.ndarray, second: np.ndarray) -> int:
    """The largest of any pixel."""
    return int(np.abs(first - second).max())


def _drawing() -> Drawing:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Drawing(Image.fromarray(noise), unread_tokens=7)


def _proposal(text: str) -> Proposal:
    prompt = DetailedPrompt(id="0" * 32, base="a mug", index=0, text=text, category="power")
    return Proposal(
        prompt=prompt,
        proposer=ProposerRef(name="tiny", weights="sha256:0"),
        seed=1,
        sampler=SAMPLER,
    )
