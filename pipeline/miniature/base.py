"""The miniature's base model: a Stable Diffusion pipeline of 64x64 pictures, trained from scratch.

Text encoder and UNet learn together on renders of which some have faulty hands that their captions
do not mention, so the model draws such hands now and then. v-prediction with zero terminal SNR.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pipeline.miniature.data import renders
from pipeline.miniature.loop import Budget, Trainer
from pipeline.miniature.text import (
    WIDTH,
    caption_tokens,
    new_text_encoder,
    new_tokenizer,
    tokens,
)
from pipeline.miniature.vae import encode, load_vae

BATCH = 32
CAPTION_DROPOUT = 0.1
BRIEF_CAPTIONS = 0.06
EMA_DECAY = 0.999
NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}


def new_unet(latent_channels: int) -> Any:
    """An untrained UNet; the finest of its three levels has no attention, for speed."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=(64, 96, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def sampler() -> Any:
    """The scheduler that the pipeline is saved with; good from about 15 steps."""
    return DPMSolverMultistepScheduler(
        **NOISE, steps_offset=1, timestep_spacing="trailing", solver_order=2
    )


class Learning(nn.Module):
    """What is learned together: text encoder and UNet."""

    def __init__(self, tokenizer: CLIPTokenizer, latent_channels: int) -> None:
        super().__init__()
        self.text_encoder: Any = new_text_encoder(tokenizer)
        self.unet: Any = new_unet(latent_channels)
        self.unet.set_attn_processor(AttnProcessor())  # here faster than the fused kernel


def train_base(
    seed: int,
    out: Path,
    budget: Budget,
    resume: bool,
    cache: Path,
    count: int,
    hand_fault_rate: float,
    export: Path,
    start: Path | None = None,
    learning_rate: float = 1e-3,
) -> None:
    """Trains text encoder and UNet on `out`/vae's latents; exports the pipeline as it improves.

    start: the checkpoint of an earlier training, whose averaged weights are gone on from.
    """
    torch.manual_seed(seed)
    vae = load_vae(out / "vae")
    data = renders(seed, count, hand_fault_rate=hand_fault_rate, cache=cache)
    latents = encode(vae, torch.from_numpy(data.pictures)) * vae.config.scaling_factor
    tokenizer = new_tokenizer()
    captions = torch.from_numpy(caption_tokens(tokenizer, data.examples))
    empty = tokens(tokenizer, [""])[0]
    print(f"{count} latents, std {latents.std():.3f}; {len(tokenizer)} tokens", flush=True)

    model = Learning(tokenizer, latents.shape[1])
    if start is not None:
        model.load_state_dict(torch.load(start, weights_only=True)["parts"]["averaged"])
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    trainer = Trainer(
        {"model": model, "averaged": averaged}, optimizer, budget, out / "base.pt", resume
    )
    noise_schedule: Any = DDPMScheduler(**NOISE)

    def step(number: int) -> dict[str, Tensor]:
        average(averaged, model, min(EMA_DECAY, (1 + number) / (10 + number)))
        rng = np.random.default_rng((seed, number))
        torch.manual_seed(int(rng.integers(2**31)))
        picked = torch.from_numpy(rng.integers(0, count, BATCH))
        wording = rng.integers(0, captions.shape[1] - 1, BATCH)
        wording[rng.random(BATCH) < BRIEF_CAPTIONS] = captions.shape[1] - 1
        ids = captions[picked, torch.from_numpy(wording)].long()
        ids[torch.from_numpy(rng.random(BATCH) < CAPTION_DROPOUT)] = empty
        clean = latents[picked]
        noise = torch.randn_like(clean)
        # stratified over the batch, so that every step sees all noise levels
        t = torch.from_numpy((np.arange(BATCH) + rng.random(BATCH)) / BATCH * 1000).long()
        noisy = noise_schedule.add_noise(clean, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            text = model.text_encoder(ids)[0]
            drawn = model.unet(noisy, t, text, return_dict=False)[0]
        velocity = noise_schedule.get_velocity(clean, noise, t)
        return {"loss": F.mse_loss(drawn.float(), velocity)}

    for _ in trainer.run(step, save_every=500):
        save_pipeline(export, vae, tokenizer, averaged)
        print(f"exported after {trainer.step} steps to {export}", flush=True)


@torch.no_grad()
def average(into: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the averaged weights towards the model's."""
    torch._foreach_lerp_(list(into.parameters()), list(model.parameters()), 1 - decay)


def save_pipeline(folder: Path, vae: Any, tokenizer: CLIPTokenizer, model: Learning) -> None:
    """Writes a StableDiffusionPipeline in fp16 beside its place, then moves it there."""
    pipe: Any = StableDiffusionPipeline(
        vae=copy.deepcopy(vae),
        text_encoder=copy.deepcopy(model.text_encoder),
        tokenizer=tokenizer,
        unet=copy.deepcopy(model.unet),
        scheduler=sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16)
    beside, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)
    pipe.save_pretrained(beside, safe_serialization=True)
    if folder.exists():
        folder.replace(old)
    beside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
