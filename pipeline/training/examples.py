"""Pictures and prompts as a denoiser reads them, encoded once before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.training.denoising import Batch, encode, encode_pictures
from pipeline.training.instances import square

PROMPTS_AT_ONCE = 32


class Examples:
    """Latents, conditioning and sizes of pictures with their prompts; all on the CPU."""

    def __init__(
        self,
        pipe: Any,
        pictures: Sequence[Callable[[], Image.Image]],
        prompts: Sequence[str],
        resolution: int,
        *,
        keep_text: bool,
    ) -> None:
        """pictures: each is read when it is encoded, and not kept. keep_text: encode prompts, too;
        otherwise batches carry them as they are, for a text encoder that is trained."""
        self._prompts = list(prompts)
        squares: list[Image.Image] = []
        sizes: list[list[int]] = []
        means: list[Tensor] = []
        deviations: list[Tensor] = []
        for read in pictures:
            picture = read()
            cut, (top, left) = square(picture, resolution)
            # SDXL's size conditioning: original size, what was cut off, target size; height first
            sizes.append([picture.height, picture.width, top, left, resolution, resolution])
            squares.append(cut)
            if len(squares) == PROMPTS_AT_ONCE:
                _encode(pipe, squares, means, deviations)
        _encode(pipe, squares, means, deviations)
        self._means, self._deviations = torch.cat(means), torch.cat(deviations)
        self._sizes = torch.tensor(sizes, dtype=torch.float32)
        self._text = _texts(pipe, self._prompts) if keep_text else None

    def __len__(self) -> int:
        return len(self._prompts)

    def batch(self, rows: Sequence[int], generator: torch.Generator) -> Batch:
        """Some examples with fresh noise and noise levels, these spread over the whole range."""
        picked = torch.tensor(rows)
        means = self._means[picked]
        latents = means + self._deviations[picked] * torch.randn(means.shape, generator=generator)
        # stratified over the batch, so that each sees all noise levels
        strata = torch.randperm(len(rows), generator=generator)
        level = (strata + torch.rand(len(rows), generator=generator)) / len(rows)
        batch: Batch = {
            "latents": latents,
            "noise": torch.randn(means.shape, generator=generator),
            "level": level.clamp(max=1 - 1e-6),
            "time_ids": self._sizes[picked],
        }
        if self._text is None:
            return batch | {"prompts": [self._prompts[row] for row in rows]}
        places, table = self._text
        return batch | {name: each[places[picked]] for name, each in table.items()}


def join(one: Batch, other: Batch) -> Batch:
    """Two batches as one: tensors along their first axis, lists end to end."""
    return {
        key: torch.cat([value, other[key]]) if isinstance(value, Tensor) else value + other[key]
        for key, value in one.items()
    }


def dealt(seed: int, count: int, start: int, size: int) -> list[int]:
    """Rows number `start` onwards of an endless deal: all of `count` in turn, shuffled anew."""
    rows = []
    for place in range(start, start + size):
        epoch, within = divmod(place, count)
        order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        rows.append(int(torch.randperm(count, generator=order)[within]))
    return rows


def _encode(
    pipe: Any, squares: list[Image.Image], means: list[Tensor], deviations: list[Tensor]
) -> None:
    """Moves what `squares` holds into the latents' lists."""
    if squares:
        mean, deviation = encode_pictures(pipe, squares)
        means.append(mean)
        deviations.append(deviation)
        squares.clear()


@torch.no_grad()
def _texts(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Which row of the tables each prompt has, and the tables: each different prompt once."""
    different = list(dict.fromkeys(prompts))
    parts = [
        encode(pipe, different[start : start + PROMPTS_AT_ONCE])
        for start in range(0, len(different), PROMPTS_AT_ONCE)
    ]
    table = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    at = {prompt: row for row, prompt in enumerate(different)}
    return torch.tensor([at[prompt] for prompt in prompts]), table
