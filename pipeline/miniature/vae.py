"""The miniature's autoencoder: 64x64 pictures to 16x16 latents and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.miniature.data import renders
from pipeline.miniature.loop import Budget, Trainer, to_unit

LATENT_CHANNELS = 6
BATCH = 12
KL_WEIGHT = 1e-4


def new_vae() -> Any:
    """An untrained autoencoder, 1.5M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def load_vae(folder: Path) -> Any:
    """The autoencoder saved in the folder, for use."""
    return AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval()


def train_vae(seed: int, out: Path, budget: Budget, resume: bool, cache: Path, count: int) -> None:
    """Trains on `count` renders and saves the autoencoder, its scaling factor set, to `out`/vae."""
    torch.manual_seed(seed)
    pictures = torch.from_numpy(renders(seed, count, cache=cache).pictures)
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    trainer = Trainer({"vae": vae}, optimizer, budget, out / "vae.pt", resume)

    def step(number: int) -> dict[str, Tensor]:
        picked = torch.from_numpy(np.random.default_rng((seed, number)).integers(0, count, BATCH))
        target = to_unit(pictures[picked]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            drawn = vae.decode(posterior.sample()).sample
        return losses(drawn.float(), target, posterior.kl().float())

    for _ in trainer.run(step):
        vae.register_to_config(scaling_factor=round(float(1 / latents_std(vae, pictures)), 4))
        vae.save_pretrained(out / "vae")
        print(f"psnr {psnr(vae, pictures[:64]):.2f} dB", flush=True)


def refine_decoder(
    seed: int, out: Path, budget: Budget, resume: bool, cache: Path, count: int, export: Path
) -> None:
    """Trains only the decoder of `out`/vae further, so that its latents stay what they are.

    The latents get a little noise, as a UNet's have. Saves to `export`, in fp16.
    """
    torch.manual_seed(seed)
    pictures = torch.from_numpy(renders(seed, count, cache=cache).pictures)
    vae = load_vae(out / "vae")
    latents = encode(vae, pictures)
    vae = vae.to(memory_format=torch.channels_last)
    learning = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    trainer = Trainer({"vae": vae}, optimizer, budget, out / "decoder.pt", resume)

    def step(number: int) -> dict[str, Tensor]:
        picked = torch.from_numpy(np.random.default_rng((seed, number)).integers(0, count, BATCH))
        target = to_unit(pictures[picked]).contiguous(memory_format=torch.channels_last)
        strength = 0.15 * torch.rand(BATCH, 1, 1, 1) / vae.config.scaling_factor
        with torch.autocast("cpu", torch.bfloat16):
            drawn = vae.decode(latents[picked] + strength * torch.randn(latents[:BATCH].shape))
        return losses(drawn.sample.float(), target, torch.zeros(BATCH))

    for _ in trainer.run(step):
        copy.deepcopy(vae).to(torch.float16).save_pretrained(export)
        print(f"psnr {psnr(vae, pictures[:64]):.2f} dB", flush=True)


def losses(drawn: Tensor, target: Tensor, kl: Tensor) -> dict[str, Tensor]:
    """Pixels, edges, colour differences and the divergence from a unit Gaussian.

    drawn, target: (B, 3, H, W) in [-1, 1]. kl: (B,), summed over the latent's values.
    """
    pixel = (drawn - target).abs().mean() + (drawn - target).square().mean()
    edge = sum(
        ((drawn.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3)),
        start=torch.zeros(()),
    )
    chroma = (_chroma(drawn) - _chroma(target)).abs().mean()
    divergence = kl.mean() / target[0].numel()
    loss = pixel + 0.5 * edge + 0.5 * chroma + KL_WEIGHT * divergence
    return {"loss": loss, "pixel": pixel, "edge": edge, "chroma": chroma, "kl": divergence}


def _chroma(x: Tensor) -> Tensor:
    """Red minus green, and blue minus their mean: (B, 2, H, W)."""
    r, g, b = x.unbind(1)
    return torch.stack((r - g, b - (r + g) / 2), 1)


@torch.no_grad()
def encode(vae: Any, pictures: Tensor, batch: int = 64) -> Tensor:
    """The latents' means, unscaled: (N, 64, 64, 3) uint8 to (N, C, 16, 16) float32."""
    parts = []
    for chunk in torch.split(pictures, batch):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(to_unit(chunk)).latent_dist.mode().float())
    return torch.cat(parts)


def latents_std(vae: Any, pictures: Tensor) -> Tensor:
    """The standard deviation of the latents of 256 pictures."""
    return encode(vae, pictures[:256]).std()


@torch.no_grad()
def psnr(vae: Any, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio of a round trip, in dB. pictures: (N, 64, 64, 3) uint8."""
    target = to_unit(pictures)
    drawn = vae.decode(vae.encode(target).latent_dist.mode()).sample.clamp(-1, 1)
    return float(-10 * torch.log10(((drawn - target) / 2).square().mean()))
