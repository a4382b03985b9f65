"""The product's app with stages that do nothing (bench/nothing.py), some of them slowly or never.

IDLE_PROPOSE_S, IDLE_VERIFY_S   how long a message takes in a stage
IDLE_LOSES                      a word: a message with it in a prompt vanishes in verify
"""

import os
import time
from collections.abc import Sequence

from PIL import Image

from bench.nothing import EmptyProposer, EmptyVerifier, app
from pipeline.config import ProposerConfig, VerifierConfig
from pipeline.proposer.diffusion import Drawing
from pipeline.types import Adapter, ModelRef, ProposalBatch, Sampler, Thresholds, Verdict
from workers import resources, verify

__all__ = ["app"]


class SlowProposer(EmptyProposer):
    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]:
        time.sleep(float(os.environ.get("IDLE_PROPOSE_S", "0")))
        return super().draw(texts, seeds, sampler, adapter)


class SlowVerifier(EmptyVerifier):
    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        time.sleep(float(os.environ.get("IDLE_VERIFY_S", "0")) * len(images) / 64)
        return super().judge(images, prompts, thresholds)


def _proposer(config: ProposerConfig, ref: ModelRef) -> SlowProposer:
    return SlowProposer()


def _verifier(config: VerifierConfig, ref: ModelRef) -> SlowVerifier:
    return SlowVerifier()


def _lose(task: object, batch: ProposalBatch) -> None:
    word = os.environ.get("IDLE_LOSES")
    if word and any(word in draw.prompt.text.split() for draw in batch.draws):
        raise RuntimeError("gone, and nobody noticed")
    _work(task, batch)


resources.proposer = _proposer  # type: ignore[assignment]
resources.verifier = _verifier  # type: ignore[assignment]
_work, verify._verify = verify._verify, _lose
