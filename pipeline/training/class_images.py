"""Class images for prior preservation: what the base itself draws, kept for the next training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from pipeline.proposer.diffusion import Proposer
from pipeline.training.examples import Note
from pipeline.training.instances import read_picture
from pipeline.types import ModelRef, Sampler, digest


def class_images(
    proposer: Callable[[], Proposer],
    base: ModelRef,
    prompts: Sequence[str],
    count: int,
    seed: int,
    sampler: Sampler,
    cache: Path,
    *,
    batch_size: int = 8,
    note: Note = lambda line: None,
) -> list[Path]:
    """`count` pictures of the prompts in turn; those that lie in the cache are not drawn again.

    Which pictures they are is the hash of the base's weights, prompts, seed and sampler; each has
    a seed of its own, so that more of them later are the same ones and more.
    proposer: called only if a picture is missing.
    """
    key = digest([base.weights, list(prompts), seed, sampler.model_dump()])
    folder = cache / key
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05}.png" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if not missing:
        return paths
    artist = proposer()
    for start in range(0, len(missing), batch_size):
        numbers = missing[start : start + batch_size]
        texts = [prompts[number % len(prompts)] for number in numbers]
        seeds = [int(digest([key, number])[:15], 16) for number in numbers]
        for number, drawing in zip(numbers, artist.draw(texts, seeds, sampler), strict=True):
            _save(drawing.image, paths[number])
        note(f"class images: {count - len(missing) + start + len(numbers)} of {count}")
    return paths


def reader(path: Path) -> Callable[[], Image.Image]:
    """Reads a picture when it is called."""
    return lambda: read_picture(path)


def _save(image: Image.Image, to: Path) -> None:
    partial = to.with_suffix(".partial")
    image.save(partial, "PNG")
    partial.replace(to)
