"""A step of the product's DreamBooth LoRA, in turns with one of a plain loop, for bench.gpu.

Both train adapters of rank 16 on attention with prior preservation, on two pictures a step, whose
latents and texts are encoded already; here they are random.
"""

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from peft import LoraConfig

from bench.drawing import synchronize
from pipeline.models import fingerprint
from pipeline.training.bases import load_pipeline
from pipeline.training.denoising import Batch, Denoising
from pipeline.training.devices import new_accelerator
from pipeline.training.loop import Loop, LoopConfig, Point
from pipeline.training.lora import LoraSettings, add_adapters

RANK = 16
STEPS = 20
COLD = 3  # of these, before their time counts
TOKENS = 77
NEVER = 10**6


def in_turns(model: str, device: str, folder: Path) -> dict[str, float]:
    """Median milliseconds of a step of ours and of the plain loop."""
    config = LoopConfig(steps=STEPS, checkpoint_every=NEVER, validate_every=NEVER)
    accelerator = new_accelerator("auto", cpu=device == "cpu")
    half = accelerator.mixed_precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    base = fingerprint(model, "base")
    pipe = load_pipeline(base, dtype)
    add_adapters(pipe, LoraSettings(rank=RANK), text_encoders=False)
    turns = Turns(Plain(load_pipeline(base, dtype), device, half=half))
    loop = Loop(accelerator, Denoising(pipe, {}), config, folder / "checkpoints", "bench")
    turns.begin()
    loop.run(partial(batch_of, pipe.unet.config), turns)
    return {
        "ours": statistics.median(turns.ours[COLD:]),
        "plain loop": statistics.median(turns.plain[COLD:]),
    }


class Turns:
    """Watches ours, and takes a plain step after each of its steps. Times in milliseconds."""

    def __init__(self, plain: "Plain") -> None:
        self.ours: list[float] = []
        self.plain: list[float] = []
        self._plain = plain
        self._since = 0.0

    def begin(self) -> None:
        synchronize()
        self._since = time.monotonic()

    def stepped(self, point: Point, steps: int, examples_per_s: float) -> None:
        self.ours.append(self._lap())
        self._plain.step()
        self.plain.append(self._lap())

    def noted(self, line: str) -> None:
        pass

    def _lap(self) -> float:
        before = self._since
        self.begin()
        return 1000 * (self._since - before)


class Plain:
    """As diffusers' own DreamBooth LoRA script does it, without accelerate."""

    def __init__(self, pipe: Any, device: str, *, half: bool) -> None:
        self._unet = pipe.unet
        self._unet.add_adapter(
            LoraConfig(
                r=RANK,
                lora_alpha=RANK,
                init_lora_weights="gaussian",
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            )
        )
        self._trained = [each for each in self._unet.parameters() if each.requires_grad]
        for each in self._trained:
            each.data = each.data.float()
        self._unet.to(device).train()
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4)
        self._noise: Any = DDPMScheduler.from_config(pipe.scheduler.config)
        self._device, self._half = device, half
        batch = batch_of(self._unet.config, 0, torch.Generator().manual_seed(0))
        self._batch = {name: value.to(device) for name, value in batch.items()}

    def step(self) -> float:
        """The loss."""
        batch = self._batch
        clean, noise = batch["latents"], torch.randn_like(batch["latents"])
        t = torch.randint(1000, (len(clean),), device=self._device)
        noisy = self._noise.add_noise(clean, noise, t)
        added = None
        if "pooled" in batch:
            added = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            drawn = self._unet(noisy, t, batch["text"], added_cond_kwargs=added).sample
        wanted = noise
        if self._noise.config.prediction_type == "v_prediction":
            wanted = self._noise.get_velocity(clean, noise, t)
        instance, prior = (
            F.mse_loss(one.float(), other.float())
            for one, other in zip(drawn.chunk(2), wanted.chunk(2), strict=True)
        )
        loss = instance + prior
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()


def batch_of(unet: Any, place: int, generator: torch.Generator) -> Batch:
    """One instance and one class image, encoded; random. unet: its configuration."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator)

    latent = (unet.in_channels, unet.sample_size, unet.sample_size)
    batch: Batch = {
        "latents": random(*latent),
        "noise": random(*latent),
        "level": torch.rand(2, generator=generator),
        "text": random(TOKENS, unet.cross_attention_dim),
        "prior": torch.tensor([False, True]),
    }
    if unet.addition_embed_type == "text_time":
        numbers = 6 * unet.addition_time_embed_dim
        side = 8.0 * unet.sample_size
        batch["pooled"] = random(unet.projection_class_embeddings_input_dim - numbers)
        batch["time_ids"] = torch.tensor([[side, side, 0.0, 0.0, side, side]] * 2)
    return batch
