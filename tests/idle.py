"""The product's app with stages that do nothing (bench/nothing.py), some of them slowly or never.

IDLE_PROPOSE_S, IDLE_VERIFY_S   how long a message takes in a stage
IDLE_LOSES, IDLE_LOSES_IN       a word, and a stage in which a message that has it vanishes
IDLE_KILLS                      a word: the process that describes a base prompt with it dies
"""

import os
import time
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from bench.nothing import EmptyDescriber, EmptyProposer, EmptyVerifier, app
from pipeline.config import ProposerConfig, VerifierConfig
from pipeline.proposer.diffusion import Drawing
from pipeline.types import (
    Adapter,
    BasePrompt,
    DetailedPrompt,
    ModelRef,
    ProposalBatch,
    Sampler,
    Thresholds,
    Verdict,
)
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


class FrailDescriber(EmptyDescriber):
    def describe(self, base: BasePrompt) -> tuple[DetailedPrompt, ...]:
        _lose("prompt", base.text)
        if os.environ.get("IDLE_KILLS", "") in base.text.split():
            os._exit(9)
        return super().describe(base)


def _verify(task: object, batch: ProposalBatch) -> None:
    for draw in batch.draws:
        _lose("verify", draw.prompt.text)
    _work(task, batch)


def _lose(stage: str, text: str) -> None:
    if os.environ.get("IDLE_LOSES_IN") == stage and os.environ["IDLE_LOSES"] in text.split():
        raise RuntimeError("gone, and nobody noticed")


resources.describer = lru_cache(maxsize=16)(FrailDescriber)  # type: ignore[assignment]
resources.proposer = _proposer  # type: ignore[assignment]
resources.verifier = _verifier  # type: ignore[assignment]
_work, verify._verify = verify._verify, _verify
