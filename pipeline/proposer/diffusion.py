"""A proposer on any text-to-image pipeline of diffusers, from SDXL to the miniature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.config import ProposerConfig
from pipeline.errors import ModelError
from pipeline.models import location
from pipeline.types import ModelRef, Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from PIL.Image import Image


@dataclass(frozen=True)
class Drawing:
    """A drawn picture. unread_tokens: those at the prompt's end that no text encoder took."""

    image: Image
    unread_tokens: int


class Proposer(Protocol):
    """Whatever draws."""

    def draw(
        self, texts: Sequence[str], seeds: Sequence[int], sampler: Sampler
    ) -> list[Drawing]: ...


class DiffusionProposer:
    """Draws batches, each picture from its own seed alone."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, config: ProposerConfig, ref: ModelRef) -> Self:
        """The pipeline on its device. Raises ModelError if it cannot be loaded."""
        from diffusers import AutoPipelineForText2Image

        where, revision = location(ref, "base")
        device = device_of(config.device)
        try:
            pipe = AutoPipelineForText2Image.from_pretrained(
                where,
                revision=revision,
                use_safetensors=True,
                dtype=dtype_of(config.dtype, device),
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{ref.name!r} is no text-to-image pipeline: {reason}") from error
        return cls(pipe.to(device))

    def draw(self, texts: Sequence[str], seeds: Sequence[int], sampler: Sampler) -> list[Drawing]:
        """One picture for each text and seed.

        A picture depends on its text, its seed and the sampler. Its batch leaves only a
        floating-point drift: each has its own generator, on the CPU so that the noise is the same
        on every device.
        """
        import torch

        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        images = self._pipe(
            prompt=list(texts),
            negative_prompt=[sampler.negative_prompt] * len(texts),
            generator=generators,
            num_inference_steps=sampler.num_inference_steps,
            guidance_scale=sampler.guidance_scale,
            height=sampler.height,
            width=sampler.width,
            output_type="pil",
        ).images
        return [
            Drawing(image.convert("RGB"), self._unread_tokens(text))
            for image, text in zip(images, texts, strict=True)
        ]

    def _unread_tokens(self, text: str) -> int:
        """How many tokens at the end even the most patient text encoder leaves out."""
        names = [name for name in self._pipe.components if name.startswith("tokenizer")]
        tokenizers = [getattr(self._pipe, name) for name in names]
        return min(
            (
                max(0, len(tokenizer(text, verbose=False).input_ids) - tokenizer.model_max_length)
                for tokenizer in tokenizers
                if tokenizer is not None
            ),
            default=0,
        )


def device_of(wanted: str) -> torch.device:
    """ "auto" is the first GPU if there is one, else the CPU."""
    import torch

    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def dtype_of(wanted: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU that computes in it, else float32."""
    import torch

    if wanted != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[
            wanted
        ]
    good = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if good else torch.float32
