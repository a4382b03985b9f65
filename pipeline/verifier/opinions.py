"""Second opinions: what other models say of the pictures that the verifier judges.

clip_score     the cosine of picture and prompt in a CLIP, 0 where it is negative; CLIPScore is 2.5
               times that (Hessel et al. 2021), torchmetrics gives 100 times
preference     the same product times the model's own scale, by a CLIP that was tuned on which of
               two pictures people preferred for a prompt: PickScore (Kirstain et al. 2023)
image_reward   ImageReward (pipeline/verifier/image_reward.py)
vision_*       a language model that sees (pipeline/verifier/vision.py)

The first three are loaded by transformers, from safetensors. A prompt that is longer than one of
them reads is read clause by clause, and the mean counts.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.config import OpinionsConfig, VerifierConfig
from pipeline.devices import device_of, dtype_of
from pipeline.errors import ModelError, PpvError
from pipeline.models import fingerprint, folder_of, local
from pipeline.types import ModelRef, Usage, Verdict
from pipeline.verifier.clauses import split_clauses

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PICTURES_PER_PASS = 32
TEXTS = 1024  # whose features are kept


@dataclass(frozen=True)
class Heard:
    """What was said of one pair of picture and prompt.

    unheard: the opinions that gave no score, and why; trying again would not help. error: what
    stopped asking, so that the proposal has no verdict yet.
    """

    scores: dict[str, float] = field(default_factory=dict)
    unheard: dict[str, str] = field(default_factory=dict)
    usage: Usage = Usage()
    error: PpvError | None = None

    def __add__(self, other: Heard) -> Heard:
        return Heard(
            self.scores | other.scores,
            self.unheard | other.unheard,
            self.usage + other.usage,
            self.error or other.error,
        )


class Opinion(Protocol):
    """Whatever has one."""

    def hear(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Heard]:
        """What it says of each pair. images: RGB, as many as prompts."""


def hear_all(
    opinions: Sequence[Opinion], images: Sequence[Image], prompts: Sequence[str]
) -> list[Heard]:
    """What all of them say of each pair."""
    heard = [Heard() for _ in images]
    for opinion in opinions:
        said = opinion.hear(images, prompts)
        heard = [before + new for before, new in zip(heard, said, strict=True)]
    return heard


def with_opinions(verdict: Verdict, heard: Heard, accept_if: Mapping[str, float]) -> Verdict:
    """The verdict with what others say, and what they must say."""
    said = {"opinions": heard.scores, "unheard": heard.unheard, "accept_if": dict(accept_if)}
    return verdict.model_copy(update=said)


def freeze(config: OpinionsConfig) -> dict[str, ModelRef]:
    """The weights that the configured names stand for, by opinion.

    Raises ModelError for a folder that is missing or of another kind, and as fingerprint does.
    """
    return {name: freeze_model(name, model) for name, model in config.models.items()}


def freeze_model(name: str, model: str) -> ModelRef:
    """The same of one model. name: what it is for."""
    folder = folder_of(model, name)
    if folder is not None:
        _check_kind(folder, name, model)
    return fingerprint(model, name)


def load_models(config: VerifierConfig, refs: Mapping[str, ModelRef]) -> list[Opinion]:
    """The configured opinions whose weights are loaded, on the verifier's device.

    refs: the weights that a run was made for, by opinion; those that it lacks are whatever the
    name stands for. Raises ModelError, and ServiceError where a hub id cannot be fetched.
    """
    return [
        (RewardOpinion if name == "image_reward" else ClipOpinion)(
            name, *load_model(name, model, refs.get(name), config)
        )
        for name, model in config.opinions.models.items()
    ]


def load_model(
    name: str, model: str, ref: ModelRef | None, config: VerifierConfig
) -> tuple[Any, Any, Any]:
    """A network on the verifier's device, its tokenizer, and what prepares its pictures.

    name: what it is for, which says its kind. Raises as load_models does.
    """
    folder = local(model, ref, name)
    _check_kind(folder, name, model)
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        classes: Any = (*_classes_of(name), CLIPImageProcessorPil)  # their types are lost on mypy
        network, loading = classes[0].from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        tokenizer = classes[1].from_pretrained(folder, local_files_only=True)
        processor = classes[2].from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers, safetensors and torch each raise their own
        raise ModelError(f"{name}: {model!r} cannot be loaded: {_first_line(error)}") from error
    if loading["missing_keys"] or loading["mismatched_keys"]:
        wrong = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        raise ModelError(f"{name}: {model!r} lacks {len(wrong)} weights ({wrong[0]}, ...)")
    device = device_of(config.device)
    network.to(device=device, dtype=dtype_of(config.dtype, device)).train(False)
    return network, tokenizer, processor


class ClipOpinion:
    """How near picture and prompt are to each other in a CLIP."""

    def __init__(self, name: str, model: Any, tokenizer: Any, processor: Any) -> None:
        """name: of the opinion, for messages and for its scale."""
        self._name = name
        self._model, self._tokenizer, self._processor = model, tokenizer, processor
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()

    def hear(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Heard]:
        """Raises ModelError if a score is not finite."""
        import torch

        with torch.inference_mode():
            texts = self._read(list(dict.fromkeys(prompts)))
            seen = self._look(images)
            scores = []
            for picture, prompt in zip(seen, prompts, strict=True):
                cosines = texts[prompt] @ picture  # a clause each
                if self._name == "preference":
                    cosines = cosines * self._model.logit_scale.exp().float().cpu()
                else:
                    cosines = cosines.clamp(min=0)
                scores.append(float(cosines.mean()))
        return _heard(self._name, scores, prompts, self._model.dtype)

    def _read(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Each prompt's clauses as directions, (C, D) float32 on the CPU."""
        found = {text: self._texts[text] for text in prompts if text in self._texts}
        fresh = [text for text in prompts if text not in found]
        budget = int(self._model.config.text_config.max_position_embeddings) - 2
        clauses = {text: split_clauses(text, budget, self._count_tokens) for text in fresh}
        every = [clause for several in clauses.values() for clause in several]
        if every:
            tokens = self._tokenizer(every, padding=True, return_tensors="pt")
            given = {name: tokens[name].to(self._model.device) for name in _TEXT_INPUTS}
            features = iter(_directions(self._model.get_text_features(**given).pooler_output))
            for text, several in clauses.items():
                found[text] = _stacked([next(features) for _ in several])
        for text in prompts:
            self._texts[text] = found[text]
            self._texts.move_to_end(text)
        while len(self._texts) > TEXTS:
            self._texts.popitem(last=False)
        return found

    def _look(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """Each picture's direction, (D,) float32 on the CPU."""
        seen: list[torch.Tensor] = []
        for first in range(0, len(images), PICTURES_PER_PASS):
            pixels = pixels_of(images[first : first + PICTURES_PER_PASS], self._processor)
            pixels = pixels.to(self._model.device, self._model.dtype)
            seen += _directions(self._model.get_image_features(pixel_values=pixels).pooler_output)
        return seen

    def _count_tokens(self, text: str) -> int:
        return _tokens_in(text, self._tokenizer)


class RewardOpinion:
    """What ImageReward makes of a picture for a prompt."""

    def __init__(self, name: str, model: Any, tokenizer: Any, processor: Any) -> None:
        self._name, self._model = name, model
        self._tokenizer, self._processor = tokenizer, processor

    def hear(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Heard]:
        """Raises ModelError if a score is not finite."""
        from pipeline.verifier.image_reward import MAX_TOKENS

        def count(text: str) -> int:
            return _tokens_in(text, self._tokenizer)

        clauses = {text: split_clauses(text, MAX_TOKENS - 2, count) for text in set(prompts)}
        pairs = [(at, clause) for at, text in enumerate(prompts) for clause in clauses[text]]
        rewards: list[list[float]] = [[] for _ in prompts]
        for first in range(0, len(pairs), PICTURES_PER_PASS):
            some = pairs[first : first + PICTURES_PER_PASS]
            scored = self._rewards([images[at] for at, _ in some], [clause for _, clause in some])
            for (at, _), reward in zip(some, scored, strict=True):
                rewards[at].append(reward)
        scores = [sum(each) / len(each) for each in rewards]
        return _heard(self._name, scores, prompts, self._model.dtype)

    def _rewards(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        import torch

        tokens = self._tokenizer(list(texts), padding=True, return_tensors="pt")
        given = {name: tokens[name].to(self._model.device) for name in _TEXT_INPUTS}
        pixels = pixels_of(images, self._processor).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            rewards: list[float] = self._model(pixels, **given).tolist()
        return rewards


_TEXT_INPUTS = ("input_ids", "attention_mask")


def pixels_of(images: Sequence[Image], processor: Any) -> torch.Tensor:
    """(B, 3, H, W) as the processor's model wants them, on the CPU."""
    given = [image.convert("RGB") for image in images]
    pixels: torch.Tensor = processor(given, return_tensors="pt")["pixel_values"]
    return pixels


def _tokens_in(text: str, tokenizer: Any) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _heard(
    name: str, scores: Sequence[float], prompts: Sequence[str], dtype: torch.dtype
) -> list[Heard]:
    for score, prompt in zip(scores, prompts, strict=True):
        if not math.isfinite(score):
            raise ModelError(
                f"{name} gives no finite score for {prompt[:80]!r} in {dtype}: its weights are "
                "broken or need dtype float32"
            )
    return [Heard({name: score}) for score in scores]


def _directions(features: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import normalize

    return normalize(features.float().cpu(), dim=-1)


def _stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(rows))


def _classes_of(name: str) -> tuple[Any, Any]:
    """Network and tokenizer."""
    from transformers import BertTokenizer, CLIPModel, CLIPTokenizer

    if name != "image_reward":
        return CLIPModel, CLIPTokenizer
    from pipeline.verifier.image_reward import ImageReward

    return ImageReward, BertTokenizer


def _check_kind(folder: Path, name: str, model: str) -> None:
    """Raises ModelError unless the folder says that it holds what this opinion needs."""
    wanted, example = "clip", "a CLIP, such as openai/clip-vit-large-patch14"
    if name == "image_reward":
        wanted, example = "image_reward", "what python -m pipeline.verifier.image_reward writes"
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name}: {model!r} has no readable config.json ({_first_line(error)}): give {example}"
        ) from error
    if kind != wanted:
        raise ModelError(f"{name}: {model!r} is of type {kind!r}: give {example}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
