"""The training of a pipeline, whatever it is trained on: what DreamBooth and fine-tuning share.

<to>/pytorch_lora_weights.safetensors    an adapter in diffusers' layout, or
<to>/pipeline/                           the whole pipeline, where all weights are trained
<to>/validation/000200/, samples.png     what it drew along the way
<to>/curve.json, checkpoints/
<to>/card.json, README.md                written last
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.proposer.diffusion import DiffusionProposer
from pipeline.training.bases import (
    denoiser_name,
    load_pipeline,
    parts_of,
    text_encoders_of,
)
from pipeline.training.card import CURVE, Card, Trained, read_card, write_card
from pipeline.training.denoising import Denoising, cut_off
from pipeline.training.devices import Accelerator, new_accelerator, peak_memory_bytes
from pipeline.training.examples import Note
from pipeline.training.loop import BatchOf, Loop, Watch, check_owner
from pipeline.training.lora import add_adapters, save_adapters
from pipeline.training.plans import Plan, TuningConfig
from pipeline.training.validation import draw_grid, save_samples
from pipeline.types import digest

CHECKPOINTS = "checkpoints"
PIPELINE = "pipeline"
PROMPTS_NAMED = 5  # of those that are too long


@dataclass(frozen=True)
class Material:
    """What is trained on. facts: what the card says of it."""

    batch_of: BatchOf
    prompts: tuple[str, ...]
    facts: dict[str, Any]
    prior_loss_weight: float = 0.0


Prepare = Callable[[Any, Accelerator, Note], Material]
"""Encodes the material with a pipeline, all of which is on the device."""


def tune(plan: Plan, prepare: Prepare, to: Path, watch: Watch, *, cpu: bool = False) -> Trained:
    """Trains into the folder `to`, or goes on where an earlier call was cut off.

    Raises InputError if the folder holds another training, TrainingDiverged if the loss is no
    number; the last good checkpoint stays.
    """
    config = plan.config
    accelerator = new_accelerator(
        config.loop.mixed_precision,
        cpu=cpu,
        some_unused=config.text_encoder,  # SDXL leaves out its first text encoder's last layer
    )
    identity = plan.identity | {
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
    }

    def note(line: str) -> None:
        if accelerator.is_main_process:
            watch.noted(line)

    done = read_card(to)
    if done is not None:
        if done.identity != digest(identity):
            raise InputError(f"{str(to)!r} holds another training: give another folder")
        note(f"{to} is trained already")
        return Trained(to, done, new=False)

    check_owner(to / CHECKPOINTS, identity)
    pipe = load_pipeline(plan.base, _dtype(accelerator, config))
    pipe.to(accelerator.device)
    material = prepare(pipe, accelerator, note)
    _only_trained_on_device(pipe, config)
    too_long = cut_off(pipe, material.prompts)
    for prompt in too_long[:PROMPTS_NAMED]:
        note(f"the text encoder does not read the end of: {prompt}")
    if len(too_long) > PROMPTS_NAMED:
        note(f"nor of {len(too_long) - PROMPTS_NAMED:,} more prompts")
    torch.manual_seed(config.loop.seed)
    text_encoders = _prepare(pipe, config)
    module = Denoising(pipe, text_encoders, material.prior_loss_weight)
    loop = Loop(accelerator, module, config.loop, to / CHECKPOINTS, identity)
    if loop.step:
        note(f"going on from step {loop.step}")

    def validate(step: int) -> None:
        pipe.to(accelerator.device)
        with accelerator.autocast():
            draw_grid(plan, DiffusionProposer(pipe), to, step)
        _only_trained_on_device(pipe, config)
        write_curve()

    def write_curve() -> None:
        lines = json.dumps([asdict(point) for point in loop.points])
        (to / CURVE).write_text(lines + "\n")

    try:
        loop.run(material.batch_of, watch, validate)
    finally:
        if accelerator.is_main_process and to.is_dir():
            write_curve()

    card = Card(
        base=plan.base,
        method=config.method,
        resolution=plan.resolution,
        config=config.model_dump(mode="json"),
        steps=loop.step,
        losses=_last_losses(loop),
        images_per_s=round(loop.examples_per_s, 3),
        peak_memory_bytes=peak_memory_bytes(),
        device=str(accelerator.device),
        mixed_precision=str(accelerator.mixed_precision),
        processes=accelerator.num_processes,
        versions={
            name: importlib.metadata.version(name)
            for name in ("torch", "diffusers", "transformers", "peft", "accelerate")
        },
        identity=digest(identity),
        **material.facts,
    )
    if accelerator.is_main_process:
        with loop.averaged():
            _save(pipe, config, to, text_encoders)
        save_samples(to)
        write_card(card, to)
    accelerator.wait_for_everyone()
    return Trained(to, card, new=True)


def _dtype(accelerator: Accelerator, config: TuningConfig) -> torch.dtype:
    """Of the weights that are not trained. What is trained is float32."""
    if config.method == "full":
        return torch.float32
    halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return halves.get(str(accelerator.mixed_precision), torch.float32)


def _only_trained_on_device(pipe: Any, config: TuningConfig) -> None:
    trained = {denoiser_name(pipe), *(text_encoders_of(pipe) if config.text_encoder else ())}
    for name, part in parts_of(pipe).items():
        # a T5 is never trained, but read together with the encoders that are
        if name not in trained and not (config.text_encoder and name.startswith("text_encoder")):
            part.to("cpu")


def _prepare(pipe: Any, config: TuningConfig) -> dict[str, torch.nn.Module]:
    """Lets gradients into what is trained; returns the text encoders among it."""
    denoiser = getattr(pipe, denoiser_name(pipe))
    if config.method == "lora":
        encoders = add_adapters(pipe, config.lora, text_encoders=config.text_encoder)
    else:
        encoders = text_encoders_of(pipe) if config.text_encoder else {}
        for part in (denoiser, *encoders.values()):
            part.requires_grad_(True)
    if config.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
        for encoder in encoders.values():
            encoder.activation_checkpointing_enable()  # type: ignore[operator]
    return encoders


def _last_losses(loop: Loop) -> dict[str, float]:
    """The mean over the last tenth of the steps."""
    last = loop.points[-max(1, len(loop.points) // 10) :]
    return {n: round(sum(p.losses[n] for p in last) / len(last), 6) for n in last[-1].losses}


def _save(pipe: Any, config: TuningConfig, to: Path, encoders: dict[str, torch.nn.Module]) -> None:
    dtype = getattr(torch, config.save_dtype)
    if config.method == "lora":
        save_adapters(pipe, to, dtype, encoders)
    else:
        pipe.to(dtype).save_pretrained(to / PIPELINE, safe_serialization=True)
