"""The product's app with stages that sleep and pictures of noise, to see what hosts add up to."""

import os
import time
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from bench import nothing
from bench.nothing import app
from pipeline.config import ProposerConfig, VerifierConfig
from pipeline.proposer.diffusion import Drawing
from pipeline.types import Adapter, ModelRef, Proposal, Sampler, Thresholds, Verdict
from storage.runs import RunFolder
from workers import propose, resources
from workers.embedded import store_of
from workers.settings import settings

__all__ = ["app"]

DRAW_S = float(os.environ.get("BENCH_DRAW_S", "0.5"))  # an image
JUDGE_S = float(os.environ.get("BENCH_JUDGE_S", "0.02"))
PICTURE = os.urandom(20_000)


class SleepyProposer(nothing.EmptyProposer):
    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]:
        time.sleep(DRAW_S * len(texts))
        return super().draw(texts, seeds, sampler, adapter)


class SleepyVerifier(nothing.EmptyVerifier):
    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        time.sleep(JUDGE_S * len(images))
        return super().judge(images, prompts, thresholds)


def _encode(drawing: Drawing, proposal: Proposal) -> bytes:
    return PICTURE


def _proposer(config: ProposerConfig, ref: ModelRef) -> SleepyProposer:
    return SleepyProposer()


def _verifier(config: VerifierConfig, ref: ModelRef) -> SleepyVerifier:
    return SleepyVerifier()


@lru_cache(maxsize=64)
def _folder(run: str) -> RunFolder:
    return RunFolder(store_of(settings()), run)


resources.proposer = _proposer  # type: ignore[assignment]
resources.verifier = _verifier  # type: ignore[assignment]
resources.folder = _folder
propose.encode = _encode
