"""DreamBooth (Ruiz et al. 2023): a specialist of one hand-pose category from a few good pictures.

The denoiser learns the instance pictures under a prompt with a rare token, and beside them, so that
it forgets nothing else, what the base itself draws for the class prompts.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict
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
from pipeline.training.class_images import Note, class_images, reader
from pipeline.training.denoising import Batch, Denoising, cut_off
from pipeline.training.devices import Accelerator, new_accelerator, peak_memory_bytes
from pipeline.training.examples import Examples, dealt, join
from pipeline.training.loop import Loop, Watch, check_owner
from pipeline.training.lora import add_adapters, save_adapters
from pipeline.training.plans import DreamBoothConfig, Plan
from pipeline.training.validation import draw_grid, save_samples
from pipeline.types import digest

CHECKPOINTS = "checkpoints"
PIPELINE = "pipeline"  # the folder of the whole pipeline, where all weights are trained


def train(plan: Plan, to: Path, cache: Path, watch: Watch, *, cpu: bool = False) -> Trained:
    """Trains a specialist into the folder `to`, or goes on where an earlier call was cut off.

    cache: where class images are kept. Raises InputError if the folder holds another training,
    TrainingDiverged if the loss is no number; the last good checkpoint stays.
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
    for prompt in cut_off(pipe, (*plan.prompts, *plan.class_prompts)):
        note(f"the text encoder does not read the end of: {prompt}")
    instances, prior = _examples(plan, pipe, cache, accelerator, note)
    torch.manual_seed(config.loop.seed)
    text_encoders = _prepare(pipe, config)
    module = Denoising(pipe, text_encoders, config.prior_loss_weight)
    loop = Loop(accelerator, module, config.loop, to / CHECKPOINTS, identity)
    if loop.step:
        note(f"going on from step {loop.step}")

    def batch_of(place: int, generator: torch.Generator) -> Batch:
        size, seed = config.loop.batch_size, config.loop.seed
        rows = dealt(seed, len(instances), place * size, size)
        batch = instances.batch(rows, generator)
        if prior is None:
            return batch
        others = prior.batch(dealt(seed + 1, len(prior), place * size, size), generator)
        return join(batch, others) | {"prior": torch.arange(2 * size) >= size}

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
        loop.run(batch_of, watch, validate)
    finally:
        if accelerator.is_main_process and to.is_dir():
            write_curve()

    card = _card(plan, loop, accelerator, len(prior) if prior else 0, digest(identity))
    if accelerator.is_main_process:
        with loop.averaged():
            _save(pipe, config, to, text_encoders)
        save_samples(to)
        write_card(card, to)
    accelerator.wait_for_everyone()
    return Trained(to, card, new=True)


def _card(
    plan: Plan, loop: Loop, accelerator: Accelerator, class_count: int, identity: str
) -> Card:
    return Card(
        category=plan.category,
        base=plan.base,
        method=plan.config.method,
        prompts=tuple(dict.fromkeys(plan.prompts)),
        class_prompts=plan.class_prompts if class_count else (),
        instances={item.path.name: item.sha256 for item in plan.instances.items},
        class_images=class_count,
        resolution=plan.resolution,
        config=plan.config.model_dump(mode="json"),
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
        identity=identity,
    )


def _dtype(accelerator: Accelerator, config: DreamBoothConfig) -> torch.dtype:
    """Of the weights that are not trained. What is trained is float32."""
    if config.method == "full":
        return torch.float32
    halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return halves.get(str(accelerator.mixed_precision), torch.float32)


def _examples(
    plan: Plan, pipe: Any, cache: Path, accelerator: Accelerator, note: Note
) -> tuple[Examples, Examples | None]:
    """Instances and class images, encoded; then only the denoiser stays on the device."""
    config = plan.config
    pipe.to(accelerator.device)
    keep_text = not config.text_encoder
    pictures = [reader(item.path) for item in plan.instances.items]
    instances = Examples(pipe, pictures, plan.prompts, plan.resolution, keep_text=keep_text)
    prior = None
    if config.prior_loss_weight > 0:
        with accelerator.main_process_first():
            paths = class_images(
                lambda: DiffusionProposer(pipe),
                plan.base,
                plan.class_prompts,
                config.class_images,
                config.loop.seed,
                plan.sampler,
                cache,
                batch_size=config.draw_batch_size,
                note=note,
            )
        drawn = [plan.class_prompts[n % len(plan.class_prompts)] for n in range(len(paths))]
        pictures = [reader(path) for path in paths]
        prior = Examples(pipe, pictures, drawn, plan.resolution, keep_text=keep_text)
    _only_trained_on_device(pipe, config)
    return instances, prior


def _only_trained_on_device(pipe: Any, config: DreamBoothConfig) -> None:
    trained = {denoiser_name(pipe), *(text_encoders_of(pipe) if config.text_encoder else ())}
    for name, part in parts_of(pipe).items():
        # a T5 is never trained, but read together with the encoders that are
        if name not in trained and not (config.text_encoder and name.startswith("text_encoder")):
            part.to("cpu")


def _prepare(pipe: Any, config: DreamBoothConfig) -> dict[str, torch.nn.Module]:
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


def _save(
    pipe: Any, config: DreamBoothConfig, to: Path, encoders: dict[str, torch.nn.Module]
) -> None:
    dtype = getattr(torch, config.save_dtype)
    if config.method == "lora":
        save_adapters(pipe, to, dtype, encoders)
    else:
        pipe.to(dtype).save_pretrained(to / PIPELINE, safe_serialization=True)
