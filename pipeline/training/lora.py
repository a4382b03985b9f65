"""What of a pipeline is trained: low-rank adapters by peft, or its own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pydantic import Field

from pipeline.errors import ModelError
from pipeline.training.bases import denoiser_name, text_encoders_of
from pipeline.types import Frozen

WEIGHTS = "pytorch_lora_weights.safetensors"
Target = Literal["attention", "feed_forward", "convolutions"]

LAYERS: dict[str, tuple[str, ...]] = {
    "attention": (
        "to_k", "to_q", "to_v", "to_out.0",
        "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out",
    ),
    "feed_forward": ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    "convolutions": (
        "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in", "proj_out",
        "downsamplers.0.conv", "upsamplers.0.conv",
    ),
}  # fmt: skip
"""Names of the layers of each target, in UNets and in transformers of two streams."""
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoraSettings(Frozen):
    """The adapters' shape. Attention alone suits large models; a small one learns little by it."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_alpha: Annotated[float, Field(gt=0.0)] | None = None  # None: the rank, a scale of 1
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attention",)
    text_rank: Annotated[int, Field(ge=1, le=1024)] = 4  # of the text encoders, if trained

    def config(self, layers: tuple[str, ...], rank: int) -> LoraConfig:
        alpha = self.lora_alpha if self.lora_alpha is not None else self.rank
        return LoraConfig(
            r=rank,
            lora_alpha=alpha * rank / self.rank,  # type: ignore[arg-type]
            init_lora_weights="gaussian",
            target_modules=list(layers),
        )


def add_adapters(
    pipe: Any, settings: LoraSettings, *, text_encoders: bool
) -> dict[str, torch.nn.Module]:
    """Puts untrained adapters, which change nothing yet, on a pipeline; in float32.

    Returns the text encoders that got one. Raises ModelError if no layer is of the targets.
    """
    layers = tuple(name for target in settings.targets for name in LAYERS[target])
    denoiser: Any = getattr(pipe, denoiser_name(pipe))
    try:
        denoiser.add_adapter(settings.config(layers, settings.rank))
    except ValueError as error:
        raise ModelError(
            f"the denoiser has no layers for adapters on {', '.join(settings.targets)}: {error}"
        ) from error
    encoders = text_encoders_of(pipe) if text_encoders else {}
    for encoder in encoders.values():
        encoder.add_adapter(settings.config(TEXT_LAYERS, settings.text_rank))  # type: ignore[operator]
    for part in (denoiser, *encoders.values()):
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return encoders


def save_adapters(
    pipe: Any, folder: Path, dtype: torch.dtype, text_encoders: dict[str, torch.nn.Module]
) -> Path:
    """Writes the adapters in diffusers' layout, which `pipe.load_lora_weights(folder)` reads."""
    given: dict[str, Any] = {}
    for name, part in {denoiser_name(pipe): _denoiser(pipe), **text_encoders}.items():
        # peft's own names, which diffusers reads as they are: of its older names it converts all
        # or none, as the first one asks, and convolutions have none
        state = get_peft_model_state_dict(part)
        given[f"{name}_lora_layers"] = {
            key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()
        }
        settings = part.peft_config["default"].to_dict()
        settings["target_modules"] = sorted(settings["target_modules"])  # it was a set
        given[f"{name}_lora_adapter_metadata"] = settings
    folder.mkdir(parents=True, exist_ok=True)
    pipe.save_lora_weights(folder, safe_serialization=True, **given)
    _sort_header(folder / WEIGHTS)
    return folder / WEIGHTS


def _sort_header(file: Path) -> None:
    """Makes equal weights equal bytes: safetensors writes its metadata in a random order."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def _denoiser(pipe: Any) -> Any:
    return getattr(pipe, denoiser_name(pipe))
