"""How many images a pass takes: as many as fit, found by trying and remembered."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from typing import TYPE_CHECKING, TypeVar

from pipeline.config import ProposerConfig
from pipeline.errors import ItemError
from pipeline.types import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches:
    """The batch size of each picture size, halved whenever memory runs out.

    model: what else the size depends on: device, weights and numbers. remember: a JSON file of
    the sizes that did not fit before, shared by all models and processes; only "auto" reads it.
    """

    def __init__(
        self,
        config: ProposerConfig,
        model: str = "",
        remember: Path | None = None,
        most: int | None = None,
    ) -> None:
        """most: what "auto" begins with; a message's images by default."""
        self.halvings = 0
        self._asked = config.batch_size
        self._most = min(config.images_per_message, most or config.images_per_message)
        self._model = model
        self._remember = remember if config.batch_size == "auto" else None
        self._found: dict[str, int] = {}

    def size(self, sampler: Sampler) -> int:
        """Images of one pass, now."""
        key = self._key(sampler)
        if key not in self._found:
            asked = self._most if self._asked == "auto" else self._asked
            self._found[key] = min(asked, self._remembered().get(key, asked))
        return self._found[key]

    def run(
        self,
        items: Sequence[Item],
        sampler: Sampler,
        work: Callable[[Sequence[Item]], list[Result]],
    ) -> list[Result]:
        """What `work` makes of the items, in their order, a batch at a time.

        Out of memory, a batch is tried again in halves, and later ones stay as small.
        Raises ItemError if not even one item fits.
        """
        done: list[Result] = []
        while len(done) < len(items):
            part = items[len(done) : len(done) + self.size(sampler)]
            try:
                done += work(part)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error).splitlines() or ["out of memory"])[0]
            # Only here is the exception gone, whose traceback holds every tensor of the pass.
            free_memory()
            if len(part) == 1:
                raise ItemError(
                    f"not even one picture of {_size_of(sampler)} fits into memory ({reason}): "
                    "take a smaller height and width, or half precision"
                )
            self._shrink(sampler, len(part) // 2)
        return done

    def _shrink(self, sampler: Sampler, size: int) -> None:
        self.halvings += 1
        self._found[self._key(sampler)] = size
        if self._remember is None:
            return
        text = json.dumps(self._remembered() | {self._key(sampler): size}, indent=1)
        partial = self._remember.with_name(f"{self._remember.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # the next process finds the size out again
            self._remember.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text)
            partial.replace(self._remember)

    def _remembered(self) -> dict[str, int]:
        """Nothing where there is no such file, or one that somebody broke."""
        try:
            found = json.loads(self._remember.read_text()) if self._remember else {}
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: size for key, size in found.items() if isinstance(size, int) and size > 0}

    def _key(self, sampler: Sampler) -> str:
        return f"{self._model} {_size_of(sampler)}".strip()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or its matrix library, had no memory left; each says so in its way."""
    phrases = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in phrases)


def free_memory() -> None:
    """Give back what is held for nobody, so that a smaller batch finds room in one piece."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def name_of(device: torch.device) -> str:
    """The device as people call it: "NVIDIA H200", or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _size_of(sampler: Sampler) -> str:
    if sampler.height is None and sampler.width is None:
        return "the model's own size"
    return f"{sampler.width or 'own'}x{sampler.height or 'own'} px"
