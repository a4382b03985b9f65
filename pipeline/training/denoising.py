"""The denoising loss of a pipeline: predicted noise, velocity or flow, against the true one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from pipeline.training.bases import denoiser_name

Conditioning = dict[str, Tensor]
""""text" (B, tokens, width); SDXL and SD3 add "pooled" (B, width)."""

Batch = dict[str, Any]
"""What a module reads, by name: tensors, and lists of texts."""


class Denoising(nn.Module):
    """A pipeline's denoiser, and the text encoders that are trained with it, as one module.

    A batch has "latents" (B, C, H, W), "noise" likewise, "level" (B,) uniform in [0, 1), its
    conditioning, or "prompts" where text encoders are trained; for SDXL "time_ids" (B, 6); with
    prior preservation "prior" (B,) bool: which are class images.
    """

    def __init__(
        self, pipe: Any, text_encoders: dict[str, nn.Module], prior_loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.denoiser: Any = getattr(pipe, denoiser_name(pipe))
        self.text_encoders = nn.ModuleDict(text_encoders)
        self._prior_loss_weight = prior_loss_weight
        self._pipe = pipe
        self._flow = denoiser_name(pipe) == "transformer"
        if not self._flow:
            self._noise: Any = DDPMScheduler.from_config(pipe.scheduler.config)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses: "loss", and with prior preservation "instance" and "prior"."""
        text = encode(self._pipe, batch["prompts"]) if "prompts" in batch else batch
        drawn, wanted = self._flows(batch, text) if self._flow else self._predicts(batch, text)
        each = F.mse_loss(drawn.float(), wanted.float(), reduction="none").mean(dim=(1, 2, 3))
        if "prior" not in batch:
            return {"loss": each.mean()}
        instance, prior = each[~batch["prior"]].mean(), each[batch["prior"]].mean()
        return {
            "loss": instance + self._prior_loss_weight * prior,
            "instance": instance,
            "prior": prior,
        }

    def _predicts(self, batch: Batch, text: Conditioning) -> tuple[Tensor, Tensor]:
        """A UNet's prediction and its target."""
        clean, noise = batch["latents"], batch["noise"]
        t = (batch["level"] * self._noise.config.num_train_timesteps).long()
        noisy = self._noise.add_noise(clean, noise, t)
        added = {}
        if "pooled" in text:
            added = {"text_embeds": text["pooled"], "time_ids": batch["time_ids"]}
        drawn = self.denoiser(
            noisy.to(self.denoiser.dtype),
            t,
            text["text"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        kind = self._noise.config.prediction_type
        if kind == "v_prediction":
            return drawn, self._noise.get_velocity(clean, noise, t)
        return drawn, clean if kind == "sample" else noise

    def _flows(self, batch: Batch, text: Conditioning) -> tuple[Tensor, Tensor]:
        """A transformer's flow and the straight one, at logit-normal levels (Esser et al. 2024)."""
        clean, noise = batch["latents"], batch["noise"]
        uniform = batch["level"].clamp(1e-4, 1 - 1e-4)
        sigma = torch.sigmoid(torch.special.ndtri(uniform.double())).to(clean.dtype)
        shift = self._pipe.scheduler.config.shift
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        across = sigma[:, None, None, None]
        drawn = self.denoiser(
            hidden_states=((1 - across) * clean + across * noise).to(self.denoiser.dtype),
            timestep=sigma * self._pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=text["text"],
            pooled_projections=text["pooled"],
            return_dict=False,
        )[0]
        return drawn, noise - clean


def encode(pipe: Any, prompts: Sequence[str]) -> Conditioning:
    """What the denoiser reads of each prompt, (B, ...). Each different prompt is encoded once."""
    different = list(dict.fromkeys(prompts))
    named: dict[str, Any] = {"prompt": different}
    if "text_encoder_3" in pipe.components:
        named |= {"prompt_2": None, "prompt_3": None}
    device = next(getattr(pipe, denoiser_name(pipe)).parameters()).device
    given = pipe.encode_prompt(
        **named, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    rows = torch.tensor([different.index(each) for each in prompts], device=device)
    text = {"text": given[0][rows]}
    if len(given) == 4:
        text["pooled"] = given[2][rows]
    return text


def cut_off(pipe: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts whose end even the most patient text encoder leaves out."""
    tokenizers = [v for k, v in pipe.components.items() if k.startswith("tokenizer") and v]
    return [
        prompt
        for prompt in dict.fromkeys(prompts)
        if all(
            len(each(prompt, verbose=False).input_ids) > each.model_max_length
            for each in tokenizers
        )
    ]


@torch.no_grad()
def encode_pictures(pipe: Any, pictures: Sequence[Image.Image]) -> list[Tensor]:
    """Mean and standard deviation of each picture's latents, (2, C, H, W) float32 on the CPU.

    In the denoiser's scale. The autoencoder computes in float32: SDXL's overflows in half.
    """
    import numpy as np

    vae: Any = pipe.vae
    dtype = vae.dtype
    if dtype != torch.float32:
        vae.to(torch.float32)
    latents = []
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    for picture in pictures:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(vae.device)
        spread = vae.encode(pixels.float() / 127.5 - 1).latent_dist
        mean = (spread.mean - shift).cpu() * vae.config.scaling_factor
        latents.append(torch.cat([mean, spread.std.cpu() * vae.config.scaling_factor]))
    if dtype != torch.float32:
        vae.to(dtype)
    return latents
