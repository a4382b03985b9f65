"""DreamBooth (Ruiz et al. 2023): a specialist of one hand-pose category from a few good pictures.

The denoiser learns the instance pictures under a prompt with a rare token, and beside them, so that
it forgets nothing else, what the base itself draws for the class prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.proposer.diffusion import DiffusionProposer
from pipeline.training.captioned import Captioned
from pipeline.training.card import Trained
from pipeline.training.class_images import class_images, reader
from pipeline.training.denoising import Batch
from pipeline.training.devices import Accelerator
from pipeline.training.dreambooth_plan import DreamBoothPlan
from pipeline.training.examples import Examples, Note, encode_examples, join
from pipeline.training.loop import Watch
from pipeline.training.tuning import Material, tune
from pipeline.types import digest


def train(
    plan: DreamBoothPlan, to: Path, cache: Path, watch: Watch, *, cpu: bool = False
) -> Trained:
    """Trains a specialist into the folder `to`, or goes on where an earlier call was cut off.

    cache: where class images, and pictures as the denoiser reads them, are kept. Raises as `tune`.
    """
    config = plan.config
    seed, size = config.loop.seed, config.loop.batch_size

    def prepare(pipe: Any, accelerator: Accelerator, note: Note) -> Material:
        paths = [item.path for item in plan.instances.items]
        hashes = [item.sha256 for item in plan.instances.items]
        with accelerator.main_process_first():
            own = _encoded(plan, pipe, paths, plan.prompts, hashes, cache)
            prior = _prior(plan, pipe, cache, note) if config.prior_loss_weight > 0 else None

        def batch_of(place: int, generator: torch.Generator) -> Batch:
            batch = own.batch(own.dealt(seed, place, size), generator)
            if prior is None:
                return batch
            others = prior.batch(prior.dealt(seed + 1, place, size), generator)
            return join(batch, others) | {"prior": torch.arange(2 * size) >= size}

        facts = {
            "category": plan.category,
            "prompts": tuple(dict.fromkeys(plan.prompts)),
            "class_prompts": plan.class_prompts if prior else (),
            "instances": {item.path.name: item.sha256 for item in plan.instances.items},
            "class_images": len(prior) if prior else 0,
        }
        prompts = (*plan.prompts, *plan.class_prompts)
        return Material(batch_of, prompts, facts, config.prior_loss_weight)

    return tune(plan, prepare, to, watch, cpu=cpu)


def _prior(plan: DreamBoothPlan, pipe: Any, cache: Path, note: Note) -> Examples:
    """What the base draws for the class prompts."""
    config = plan.config
    paths = class_images(
        lambda: DiffusionProposer(pipe),
        plan.base,
        plan.class_prompts,
        config.class_images,
        config.loop.seed,
        plan.sampler,
        cache / "class-images",
        batch_size=config.draw_batch_size,
        note=note,
    )
    prompts = [plan.class_prompts[n % len(plan.class_prompts)] for n in range(len(paths))]
    names = [f"{path.parent.name}/{path.name}" for path in paths]  # of what determines them
    return _encoded(plan, pipe, paths, prompts, names, cache)


def _encoded(
    plan: DreamBoothPlan,
    pipe: Any,
    paths: Sequence[Path],
    prompts: Sequence[str],
    ids: Sequence[str],
    cache: Path,
) -> Examples:
    """ids: what tells these pictures from all others."""
    sizes, keep_text = [(plan.resolution, plan.resolution)], not plan.config.text_encoder
    what = [plan.base.weights, sizes, list(prompts), list(ids), str(pipe.dtype)]
    pairs = [Captioned(reader(path), prompt) for path, prompt in zip(paths, prompts, strict=True)]
    folder = cache / "examples" / digest(what)
    return encode_examples(pipe, lambda: pairs, sizes, folder, keep_text=keep_text)
