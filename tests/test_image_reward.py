"""ImageReward on today's transformers: the package's own figures, in batches."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from pipeline.config import OpinionsConfig, VerifierConfig
from pipeline.errors import InputError, ModelError
from pipeline.verifier.image_reward import main, read_published
from pipeline.verifier.opinions import freeze, load_models
from tests.tiny import image_reward_state, save_tiny_bert_tokenizer, save_tiny_clip

IDS = ([2, 5, 6, 3], [2, 7, 3], [2, 9, 10, 11, 12, 3])
REWARDS = (-0.19675596058368683, 0.3418251872062683, 0.8653782606124878)
"""What image-reward 1.5's VisionTransformer, BertModel and MLP give under transformers 4.27.4, one
pair at a time and padded to 35 tokens, for image_reward_state() and the pictures drawn after it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of a published file; the words are letters."""
    here = tmp_path_factory.mktemp("reward")
    torch.save(image_reward_state()[0], here / "ImageReward.pt")
    main(here / "ImageReward.pt", here / "out", str(save_tiny_bert_tokenizer(here / "words")))
    return here / "out"


def noise(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    return Image.frombytes(
        "RGB", (width, height), random.Random(seed).randbytes(width * height * 3)
    )


def rewards(folder: Path, images: list[Image.Image], prompts: list[str]) -> list[float]:
    named = VerifierConfig(device="cpu", opinions=OpinionsConfig(image_reward=str(folder)))
    (opinion,) = load_models(named, freeze(named.opinions))
    return [heard.scores["image_reward"] for heard in opinion.hear(images, prompts)]


def test_rewards_are_the_packages_in_one_pass() -> None:
    state, drawn = image_reward_state()
    pixels = torch.randn(3, 3, 32, 32, generator=drawn)
    longest = max(map(len, IDS))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in IDS])
    with torch.inference_mode():
        found = read_published(state)(pixels, ids, (ids != 0).long())
    assert found.tolist() == pytest.approx(REWARDS, abs=1e-5)


def test_a_batch_gives_what_each_pair_gives_alone(folder: Path) -> None:
    images = [noise(n, *size) for n, size in enumerate([(40, 32), (32, 64), (33, 32)])]
    prompts = ["a hand", "a red mug, held", "a hand"]
    alone = [rewards(folder, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert rewards(folder, images, prompts) == pytest.approx(alone, abs=1e-5)
    assert len({round(each, 4) for each in alone}) == 3


def test_a_long_prompt_is_read_to_its_end(folder: Path) -> None:
    long = "a red hand, " * 10
    one, other = rewards(folder, [noise(1)] * 2, [f"{long}a mug", f"{long}a key"])
    assert one != pytest.approx(other, abs=1e-4)


def test_the_folder_holds_no_pickle_and_loads_nowhere_else(folder: Path, tmp_path: Path) -> None:
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".txt"}
    with pytest.raises(ModelError, match=r"clip_score.*of type 'image_reward': give a CLIP"):
        freeze(OpinionsConfig(clip_score=str(folder)))
    with pytest.raises(
        ModelError, match=r"'clip': give what python -m pipeline\.verifier\.image_r"
    ):
        freeze(OpinionsConfig(image_reward=str(save_tiny_clip(tmp_path / "clip"))))


def without(state: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize("lacks", ["crossattention", "pos_embed", "mlp.layers.7"])
def test_other_weights_are_refused_in_one_line(lacks: str) -> None:
    with pytest.raises(InputError, match=r"no weights of ImageReward.*ImageReward\.pt") as caught:
        read_published(without(image_reward_state()[0], lacks))
    assert "\n" not in str(caught.value)


class Runs:
    """A pickle of it would make a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._folder),)


def test_a_published_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"mlp": Runs(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "broken.pt").write_text("hello\n")
    for name in ("evil", "broken", "absent"):
        with pytest.raises(typer.BadParameter, match=r"holds more than tensors.*ImageReward\.pt"):
            main(tmp_path / f"{name}.pt", tmp_path / "out", "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.pt", "evil.pt"]
