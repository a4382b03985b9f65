"""The product's app with a proposer that kills its process when it meets a key.

A worker on it stands for what a segmentation fault or the kernel's memory killer does.
"""

import os
from collections.abc import Sequence

from pipeline.config import ProposerConfig
from pipeline.proposer.diffusion import DiffusionProposer, Drawing
from pipeline.types import Adapter, ModelRef, Sampler
from workers import resources
from workers.celery import app

__all__ = ["app"]


class DeadlyProposer(DiffusionProposer):
    """Draws like any other, but for keys."""

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]:
        if any(" key" in text for text in texts):
            os._exit(9)
        return super().draw(texts, seeds, sampler, adapter)


def _proposer(config: ProposerConfig, base: ModelRef) -> DeadlyProposer:
    return DeadlyProposer.load(config, base)


resources.proposer = _proposer
