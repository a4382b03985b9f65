"""The product's app with a proposer that kills its process when it meets a key.

A worker on it stands for what a segmentation fault or the kernel's memory killer does.
"""

import os
from collections.abc import Sequence

from pipeline.config import ProposerConfig
from pipeline.proposer.diffusion import DiffusionProposer, Drawing
from pipeline.types import ModelRef, Sampler
from workers import resources
from workers.celery import app

__all__ = ["app"]


class DeadlyProposer:
    """Draws like any other, but for keys."""

    def __init__(self, config: ProposerConfig, ref: ModelRef) -> None:
        self._config, self._ref = config, ref

    def draw(self, texts: Sequence[str], seeds: Sequence[int], sampler: Sampler) -> list[Drawing]:
        if any(" key" in text for text in texts):
            os._exit(9)
        return DiffusionProposer.load(self._config, self._ref).draw(texts, seeds, sampler)


resources.proposer = DeadlyProposer  # type: ignore[assignment]
