"""Base pipelines to train: which kinds there are, their resolution, and how they are loaded.

UNets of Stable Diffusion 1 and 2 and of SDXL. Of the transformers Stable Diffusion 3: its two
streams and straight flow are what most later ones build on, and its weights are in wide use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from pipeline.errors import ModelError
from pipeline.models import location
from pipeline.types import ModelRef

Kind = Literal["sd", "sdxl", "sd3"]

KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
}
"""Pipeline classes by what their denoiser reads."""


def kind_of(ref: ModelRef) -> Kind:
    """What kind of pipeline a base is, before its weights are loaded.

    Raises ModelError for a kind that cannot be trained.
    """
    index = _config(DiffusionPipeline, ref, "")
    name = str(index.get("_class_name"))
    if name not in KINDS:
        raise ModelError(
            f"{ref.name!r} is a {name}, which cannot be trained: give one of {', '.join(KINDS)}"
        )
    return KINDS[name]


def resolution_of(ref: ModelRef) -> int:
    """Pixels a side that a base is made for."""
    if kind_of(ref) == "sd3":
        size = _config(SD3Transformer2DModel, ref, "transformer")["sample_size"]
    else:
        size = _config(UNet2DConditionModel, ref, "unet")["sample_size"]
    stages = len(_config(AutoencoderKL, ref, "vae")["block_out_channels"])
    try:
        return int(size) * int(2 ** (stages - 1))
    except TypeError:
        raise ModelError(f"{ref.name!r} does not say its resolution: set `resolution`") from None


def load_pipeline(ref: ModelRef, dtype: torch.dtype) -> Any:
    """The pipeline on the CPU, nothing of it to be trained. Raises ModelError."""
    where, revision = location(ref, "base")
    try:
        pipe: Any = AutoPipelineForText2Image.from_pretrained(
            where, revision=revision, use_safetensors=True, dtype=dtype
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{ref.name!r} cannot be loaded: {_reason(error)}") from error
    for part in parts_of(pipe).values():
        part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parts_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by name."""
    return {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}


def text_encoders_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """CLIP's only: a T5, where there is one, is never trained."""
    names = ("text_encoder", "text_encoder_2")
    return {name: part for name, part in parts_of(pipe).items() if name in names}


def denoiser_name(pipe: Any) -> str:
    return "transformer" if "transformer" in pipe.components else "unet"


def _config(model: Any, ref: ModelRef, part: str) -> dict[str, Any]:
    where, revision = location(ref, "base")
    if not revision and not (Path(where) / part).is_dir():
        raise ModelError(f"{ref.name!r} is no text-to-image pipeline: it has no {part!r}")
    try:
        config: dict[str, Any] = model.load_config(
            where, revision=revision, **({"subfolder": part} if part else {})
        )
    except (OSError, ValueError) as error:
        reason = _reason(error)
        raise ModelError(f"{ref.name!r} is no text-to-image pipeline: {reason}") from error
    return config


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
