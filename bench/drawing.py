"""What draws for bench.gpu: stock diffusers and ours, one of them in a process.

Its functions are called in that process, where the model is loaded once and kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import ProposerConfig
from pipeline.models import fingerprint, folder_of
from pipeline.proposer.batches import free_memory, is_out_of_memory

if TYPE_CHECKING:
    from pipeline.proposer.diffusion import DiffusionProposer

THINGS = ("mug", "bottle", "hammer", "key", "flower", "card", "pen", "brush", "bag", "ball")

Side = Literal["stock", "ours", "float32"]
Draw = Callable[[Sequence[str], Sequence[int], int], list[Any]]
"""Pictures of texts and seeds, in so many steps."""


@dataclass(frozen=True)
class Work:
    """What is measured: a model on a device, stock's dtype, and how ours draws."""

    device: str
    stock_dtype: str
    ours: str  # its configuration as JSON, by which what is loaded for it can be kept

    @property
    def config(self) -> ProposerConfig:
        return ProposerConfig.model_validate_json(self.ours)


@dataclass(frozen=True)
class Drawn:
    """What a measurement took. peak_bytes: of the GPU, else of the process so far."""

    seconds_per_image: float
    peak_bytes: int


def timed(side: Side, work: Work, batch: int, images: int, first: int) -> Drawn | None:
    """So many images in passes of one size, after a short one to warm up; None: it cannot be done.

    first: the number of the first text and seed, such that no text was read before.
    """
    import torch

    from pipeline.training.devices import peak_memory_bytes

    draw = drawer(side, work)
    steps = work.config.sampler.num_inference_steps
    try:
        if work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        draw(texts(batch, first), range(batch), 2)
        synchronize()
        passes = max(1, images // batch)
        first += batch
        started = time.monotonic()
        for start in range(first, first + passes * batch, batch):
            draw(texts(batch, start), range(start, start + batch), steps)
        synchronize()
        seconds = time.monotonic() - started
    except RuntimeError as error:
        # stock decodes a batch at once: what does not run out of memory may be too long to index
        if side == "ours" and not is_out_of_memory(error):
            raise
        print(f"{side} cannot draw {batch} at once: {str(error).splitlines()[0][:200]}", flush=True)
        return None
    finally:
        free_memory()
    return Drawn(seconds / (passes * batch), peak_memory_bytes())


def effort(work: Work) -> dict[str, Any]:
    """What drawing took of ours beside its time: there should be none of it."""
    taken = proposer(work).effort
    return {"recompiles": taken.recompiles, "upcasts": taken.upcasts, "halvings": taken.halvings}


def pictures(side: Side, work: Work, count: int) -> Any:
    """(count, H, W, 3) uint8."""
    import numpy as np

    steps = work.config.sampler.num_inference_steps
    drawn = drawer(side, work)(texts(count), range(count), steps)
    free_memory()
    return np.stack([np.asarray(image) for image in drawn])


@lru_cache(maxsize=1)
def drawer(side: Side, work: Work) -> Draw:
    """What draws in this process."""
    if side != "ours":
        return stock(work, work.stock_dtype if side == "stock" else "float32")
    sampler = work.config.sampler

    def draw(texts: Sequence[str], seeds: Sequence[int], steps: int) -> list[Any]:
        some = sampler.model_copy(update={"num_inference_steps": steps})
        return [each.image for each in proposer(work).draw(texts, seeds, some)]

    return draw


@lru_cache(maxsize=1)
def proposer(work: Work) -> "DiffusionProposer":
    """Ours, as a worker loads it."""
    quiet()
    from pipeline.proposer.diffusion import DiffusionProposer

    return DiffusionProposer.load(work.config, fingerprint(work.config.model, "base"))


def stock(work: Work, dtype: str) -> Draw:
    """As diffusers' own documentation loads it."""
    quiet()
    import torch
    from diffusers import AutoPipelineForText2Image

    sampler = work.config.sampler
    pipe: Any = AutoPipelineForText2Image.from_pretrained(
        folder_of(work.config.model, "base"), use_safetensors=True, dtype=getattr(torch, dtype)
    ).to(work.device)
    pipe.set_progress_bar_config(disable=True)

    def draw(texts: Sequence[str], seeds: Sequence[int], steps: int) -> list[Any]:
        images: list[Any] = pipe(
            list(texts),
            # as ours has it: without one, SDXL would not encode it but take zeros
            negative_prompt=[sampler.negative_prompt] * len(texts),
            num_inference_steps=steps,
            guidance_scale=sampler.guidance_scale,
            height=sampler.height,
            width=sampler.width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return images

    return draw


def texts(count: int, first: int = 0) -> list[str]:
    """Short ones, each different from the others."""
    numbers = range(first, first + count)
    return [f"a hand with a {THINGS[n % len(THINGS)]}, number {n}" for n in numbers]


def synchronize() -> None:
    """Wait until the GPU has done what it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quiet() -> None:
    """Keep the libraries' bars and advice out of the tables; before anything heavy is imported."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
