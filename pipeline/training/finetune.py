"""Fine-tuning: a pipeline learns from a dataset of pictures with prompts, by an adapter or whole.

The same training as DreamBooth's, on captioned pictures in place of instances and class images.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pipeline.training.captioned import Dataset
from pipeline.training.card import Trained
from pipeline.training.denoising import Batch
from pipeline.training.devices import Accelerator
from pipeline.training.examples import Examples, Note, encode_examples
from pipeline.training.finetune_plan import FinetunePlan
from pipeline.training.loop import Watch
from pipeline.training.tuning import Material, tune
from pipeline.types import digest


def train(plan: FinetunePlan, to: Path, cache: Path, watch: Watch, *, cpu: bool = False) -> Trained:
    """Fine-tunes into the folder `to`, or goes on where an earlier call was cut off.

    cache: where pictures as the denoiser reads them are kept. Raises as `tune`, and InputError for
    a picture that cannot be read.
    """
    config = plan.config
    seed, size = config.loop.seed, config.loop.batch_size

    def prepare(pipe: Any, accelerator: Accelerator, note: Note) -> Material:
        with accelerator.main_process_first():
            new = _encoded(plan, plan.dataset, pipe, cache, note)
            old = _encoded(plan, plan.replay, pipe, cache, note) if plan.replay else None
        share = config.replay_share if old else 0.0

        def batch_of(place: int, generator: torch.Generator) -> Batch:
            replayed = math.floor(place * share)
            if old and math.floor((place + 1) * share) > replayed:
                rows = old.dealt(seed + 1, replayed, size)
                return old.batch(rows, generator, config.caption_dropout)
            rows = new.dealt(seed, place - replayed, size)
            return new.batch(rows, generator, config.caption_dropout)

        facts = {
            "dataset": plan.dataset.learned,
            "replay": plan.replay.learned if plan.replay else None,
            "buckets": {f"{width}x{height}": n for (width, height), n in new.buckets.items()},
        }
        return Material(batch_of, (*new.prompts, *(old.prompts if old else ())), facts)

    return tune(plan, prepare, to, watch, cpu=cpu)


def _encoded(plan: FinetunePlan, dataset: Dataset, pipe: Any, cache: Path, note: Note) -> Examples:
    sizes = plan.config.buckets.sizes(plan.resolution)
    what = [plan.base.weights, dataset.sha256, sizes, str(pipe.dtype)]
    examples = encode_examples(
        pipe,
        dataset.captioned,
        sizes,
        cache / "examples" / digest(what),
        keep_text=not plan.config.text_encoder,
        note=lambda line: note(f"{dataset.name}: {line}"),
    )
    if small := examples.scaled_up:
        note(f"{dataset.name}: {small:,} of {len(examples):,} pictures were scaled up, and are "
             "blurred")  # fmt: skip
    return examples
