"""Renders in bulk: pictures with their examples, made once from a seed and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.miniature.render import render
from pipeline.miniature.scenes import Example, sample


@dataclass(frozen=True)
class Renders:
    """pictures: (N, 64, 64, 3) uint8, RGB; examples: what each shows and what its caption asks."""

    pictures: npt.NDArray[np.uint8]
    examples: list[Example]

    def __len__(self) -> int:
        return len(self.examples)


def renders(
    seed: int,
    count: int,
    hand_fault_rate: float = 0.3,
    other_fault_rate: float = 0.05,
    held_out: bool = False,
    cache: Path | None = None,
) -> Renders:
    """The pictures of `scenes.sample` with the same arguments; kept in `cache` if it is given."""
    examples = list(sample(seed, count, hand_fault_rate, other_fault_rate, held_out))
    name = f"{seed}-{count}-{hand_fault_rate}-{other_fault_rate}-{int(held_out)}.npy"
    if cache is not None and (cache / name).exists():
        return Renders(np.load(cache / name), examples)
    pictures = np.stack([np.asarray(render(example.scene)) for example in examples])
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        np.save(cache / name, pictures)
    return Renders(pictures, examples)
