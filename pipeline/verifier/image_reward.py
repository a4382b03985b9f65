"""ImageReward: how much people would like a picture for a prompt (Xu et al. 2023).

Its own package does not run beside today's transformers, which lacks what it imports, and scores
one picture at a time. The network is a BLIP, though, which transformers has, and a small perceptron
over its first text state; so the published weights are read into that, once:

    python -m pipeline.verifier.image_reward ImageReward.pt --to image-reward

The folder that this writes is what `verifier.opinions.image_reward` and `ppv evaluate models
--image-reward` name. The published file is a pickle: it is opened here alone, by that reader of
torch's which makes tensors and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from torch import Tensor, nn
from transformers import BlipConfig, BlipTextModel, BlipVisionModel
from transformers.models.blip.modeling_blip import BlipPreTrainedModel

from pipeline.errors import InputError

MAX_TOKENS = 35
"""What it was trained to read, special tokens included."""

HEAD_WIDTH = 64  # of attention, in both halves of every BLIP
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of its rewards; the package's constants
PERCEPTRON = (1024, 128, 64, 16, 1)  # no activation between them
PICTURE_MEAN, PICTURE_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)


class ImageRewardConfig(BlipConfig):  # type: ignore[no-untyped-call]
    """BLIP's, under a name of its own."""

    model_type = "image_reward"


class ImageReward(BlipPreTrainedModel):  # type: ignore[no-untyped-call]
    """BLIP's picture encoder, its text encoder that looks at the picture, and the perceptron."""

    config_class = ImageRewardConfig
    config: ImageRewardConfig

    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__(config)
        vision, text = cast(Any, config.vision_config), cast(Any, config.text_config)
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        widths = (text.hidden_size, *PERCEPTRON)
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The reward of each pair, about 0 in the mean and 1 in spread over people's prompts.

        pixel_values: (B, 3, H, W). input_ids, attention_mask: (B, T). Returns (B,) float32.
        """
        seen = self.vision_model(pixel_values).last_hidden_state
        read = self.text_encoder(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], device=seen.device),
        ).last_hidden_state
        reward: Tensor = read[:, 0]
        for layer in self.mlp:
            reward = layer(reward)
        return (reward[:, 0].float() - MEAN) / STD


def read_published(state: Mapping[str, Tensor]) -> ImageReward:
    """The network with the published weights, whatever its size.

    state: as the package's own `state_dict`. Raises InputError if it is none.
    """
    try:
        network = ImageReward(_config_of(state))
        network.load_state_dict({_renamed(name): state[name] for name in state if _is_used(name)})
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no weights of ImageReward ({reason}): give the ImageReward.pt that it is published as"
        ) from error
    network.train(False)
    return network


def _config_of(state: Mapping[str, Tensor]) -> ImageRewardConfig:
    """Every size is in the shapes."""
    picture, text = "blip.visual_encoder.", "blip.text_encoder."
    width, _, patch, _ = state[f"{picture}patch_embed.proj.weight"].shape
    places = state[f"{picture}pos_embed"].shape[1] - 1  # less the class's
    vocabulary, hidden = state[f"{text}embeddings.word_embeddings.weight"].shape
    vision_config = {
        "hidden_size": width,
        "intermediate_size": len(state[f"{picture}blocks.0.mlp.fc1.weight"]),
        "num_hidden_layers": _layers(state, f"{picture}blocks"),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": patch * round(places**0.5),
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }
    text_config = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": len(state[f"{text}encoder.layer.0.intermediate.dense.weight"]),
        "num_hidden_layers": _layers(state, f"{text}encoder.layer"),
        "num_attention_heads": hidden // HEAD_WIDTH,
        "max_position_embeddings": len(state[f"{text}embeddings.position_embeddings.weight"]),
        "is_decoder": True,  # only this makes it look at pictures; it reads both ways all the same
        "bos_token_id": None,  # it writes nothing
        "eos_token_id": None,
        "sep_token_id": None,
    }
    return ImageRewardConfig(vision_config=vision_config, text_config=text_config)


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
    return 1 + max(int(match[1]) for match in found if match)


_NAMES = (  # the package's, and transformers'
    (r"blip\.visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"blip\.visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"blip\.text_encoder\.", "text_encoder."),
)
_PERCEPTRON_NAMES = dict(zip("02467", "01234", strict=True))  # dropouts lie between
_USED = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")


def _is_used(name: str) -> bool:
    """Whether scoring needs it; BLIP's projections it does not."""
    return name.startswith(_USED) and not name.endswith(".position_ids")


def _renamed(name: str) -> str:
    if match := re.fullmatch(r"mlp\.layers\.(\d)\.(\w+)", name):
        return f"mlp.{_PERCEPTRON_NAMES[match[1]]}.{match[2]}"
    for old, new in _NAMES:
        if re.match(old, name):
            return re.sub(old, new, name, count=1)
    return name


def save(network: ImageReward, tokenizer: Any, folder: Path) -> None:
    """As `load` reads it: safetensors, the tokenizer's files, and how pictures are prepared."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = cast(Any, network.config.vision_config).image_size
    processor: Any = CLIPImageProcessorPil
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=PICTURE_MEAN,
        image_std=PICTURE_STD,
    ).save_pretrained(folder)


def main(
    weights: Annotated[Path, typer.Argument(help="ImageReward.pt, as it is published.")],
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="BERT's, as a folder or hub id.")
    ] = "google-bert/bert-base-uncased",
) -> None:
    """Turn the published weights of ImageReward into a folder with safetensors."""
    from transformers import BertTokenizer

    words: Any = BertTokenizer
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's reader stumbles over
        raise typer.BadParameter(
            f"{str(weights)!r} is not there, not whole, or holds more than tensors "
            f"({type(error).__name__}): give the ImageReward.pt that it is published as"
        ) from error
    try:
        network = read_published(state if isinstance(state, Mapping) else {})
        save(network, words.from_pretrained(tokenizer), to)
    except (InputError, OSError, ValueError) as error:
        raise typer.BadParameter((str(error).splitlines() or [""])[0]) from error


if __name__ == "__main__":
    typer.run(main)
