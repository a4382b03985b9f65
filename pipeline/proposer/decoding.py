"""From latents to pictures, again in float32 where half precision gave none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image
    from torch import Tensor

MANY_PIXELS = 1024 * 1024
"""From this size on, decoding a batch at once is the peak of a pass's memory."""


class Decoder:
    """A known pipeline's last step, apart from it. To the bit what the pipeline does itself.

    slices: picture by picture, or "auto": those of MANY_PIXELS or more.
    """

    def __init__(self, pipe: Any, slices: bool | Literal["auto"] = "auto") -> None:
        self._pipe = pipe
        self._slices = slices

    def pictures(self, latents: Tensor, seeds: Sequence[int]) -> list[tuple[Image, bool]]:
        """Each picture, and whether it had to be decoded again in float32.

        latents: (B, C, H, W) in the denoiser's scale.
        Raises ItemError, which names the seeds, for pictures that hold no numbers even so; their
        batch is not returned.
        """
        refuse(~finite(latents), seeds, "drawn")
        values, half = self._decode_as_trained(latents)
        lost = (gone(values) if half else ~finite(values)).nonzero().flatten().tolist()
        if not half:
            refuse(~finite(values), seeds, "decoded")
        kept = [index for index in range(len(seeds)) if index not in lost]
        drawn = dict(zip(kept, self._images(values[kept]), strict=True))
        if lost:
            with in_float32(self._pipe.vae):
                values = self._decode(latents[lost], at_once=1)
            refuse(~finite(values), [seeds[index] for index in lost], "decoded in float32")
            drawn |= dict(zip(lost, self._images(values), strict=True))
        return [(drawn[index], index in lost) for index in range(len(seeds))]

    def _decode_as_trained(self, latents: Tensor) -> tuple[Tensor, bool]:
        """As the pipeline would, and whether that was in half precision."""
        import torch

        vae = self._pipe.vae
        height, width = (side * self._pipe.vae_scale_factor for side in latents.shape[-2:])
        slices = height * width >= MANY_PIXELS if self._slices == "auto" else self._slices
        at_once = 1 if slices else len(latents)
        # Only SDXL's pipeline heeds this; others have it set to true by default.
        sure_to_overflow = "XL" in type(self._pipe).__name__ and vae.config.force_upcast
        if vae.dtype == torch.float16 and sure_to_overflow:
            with in_float32(vae):
                return self._decode(latents, at_once), False
        return self._decode(latents, at_once), vae.dtype != torch.float32

    def _decode(self, latents: Tensor, at_once: int) -> Tensor:
        """(B, 3, H, W) in about [-1, 1]."""
        import torch

        vae = self._pipe.vae
        latents = unscaled(latents.to(vae.dtype), vae.config)
        parts = [vae.decode(part, return_dict=False)[0] for part in torch.split(latents, at_once)]
        return torch.cat(parts)

    def _images(self, values: Tensor) -> list[Image]:
        if not len(values):
            return []
        pipe, withheld = self._pipe, [False] * len(values)
        if getattr(pipe, "safety_checker", None) is not None:
            values, withheld = pipe.run_safety_checker(values, pipe.device, values.dtype)
        if getattr(pipe, "watermark", None) is not None:
            values = pipe.watermark.apply_watermark(values)
        shown = [not each for each in withheld]
        images: list[Image] = pipe.image_processor.postprocess(
            values, output_type="pil", do_denormalize=shown
        )
        return images


def unscaled(latents: Tensor, config: Any) -> Tensor:
    """Latents as the autoencoder takes them, from those that the denoiser was trained on."""
    scale: float = config.scaling_factor
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        shift: float = config.get("shift_factor") or 0.0
        return latents / scale + shift
    means, stds = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
    return latents * stds / scale + means


def finite(values: Tensor) -> Tensor:
    """(B,) bool: whether each holds nothing but finite numbers."""
    return values.isfinite().flatten(1).all(dim=1)


def gone(values: Tensor) -> Tensor:
    """(B,) bool: whether each, in [-1, 1], is no picture: not finite, or 0 of 255 throughout."""
    brightest = values.flatten(1).amax(dim=1).float() * 0.5 + 0.5
    return ~finite(values) | (brightest * 255 < 0.5)


@contextmanager
def in_float32(vae: Any) -> Iterator[None]:
    """The autoencoder in float32 for a while; half precision comes back as it was, to the bit."""
    import torch

    before = vae.dtype
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(before)


def refuse(bad: Tensor, seeds: Sequence[int], what: str) -> None:
    """Raises ItemError if any is bad. bad: (B,) bool."""
    named = [str(seed) for seed, each in zip(seeds, bad.tolist(), strict=True) if each]
    if named:
        raise ItemError(
            f"no finite numbers came of seed {', '.join(named)} when it was {what}: take float32 "
            "or bfloat16, or a lower guidance_scale"
        )
