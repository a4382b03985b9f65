"""The product's app for bench.chaos: every picture drawn or judged is counted when it is begun.

Tasks, messages, prompts, pictures and records are the product's own. The models are stand-ins
unless CHAOS_MODELS says "miniature": they take as long as a small model would, draw noise of 32x32
pixels from text and seed, and judge by the pixels, so that the same work gives the same bytes.
"""

import hashlib
import os
import time
from collections.abc import Sequence

from PIL import Image

from pipeline.config import ProposerConfig, VerifierConfig
from pipeline.proposer.diffusion import Drawing, Effort, Proposer
from pipeline.types import Adapter, ClauseScore, ModelRef, Sampler, Thresholds, Verdict
from workers import resources
from workers.celery import app

__all__ = ["app"]

DRAWING_S, JUDGING_S = 0.1, 0.03  # a picture, by the stand-ins
SIDE = 32


def count(what: str, images: int) -> None:
    """One line, whole however many processes write: the file is opened to append."""
    file = os.open(os.environ["CHAOS_COUNTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {images}\n".encode())
    os.close(file)


class StandInProposer:
    """Noise."""

    effort = Effort()

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]:
        time.sleep(DRAWING_S * len(texts))
        return [
            Drawing(_noise(f"{seed} {text}"), 0) for text, seed in zip(texts, seeds, strict=True)
        ]

    def batch_size(self, sampler: Sampler) -> int:
        return 1024

    def warm_up(self, sampler: Sampler) -> None:
        pass


def _noise(of: str) -> Image.Image:
    return Image.frombytes("RGB", (SIDE, SIDE), hashlib.shake_128(of.encode()).digest(3 * SIDE**2))


class StandInVerifier:
    """Scores that are the first pixel's red and green."""

    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        time.sleep(JUDGING_S * len(images))
        return [
            _verdict(image.tobytes(), prompt, thresholds)
            for image, prompt in zip(images, prompts, strict=True)
        ]


def _verdict(pixels: bytes, prompt: str, thresholds: Thresholds) -> Verdict:
    scores = {"fidelity": pixels[0] / 255, "alignment": pixels[1] / 255}
    clause = ClauseScore(text=prompt, **scores)
    return Verdict(clauses=(clause,), thresholds=thresholds, **scores)


class CountingProposer:
    """Draws as another does."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer, self.effort = proposer, proposer.effort

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]:
        count("drawn", len(texts))
        return self._proposer.draw(texts, seeds, sampler, adapter)

    def batch_size(self, sampler: Sampler) -> int:
        return self._proposer.batch_size(sampler)

    def warm_up(self, sampler: Sampler) -> None:
        self._proposer.warm_up(sampler)


class CountingVerifier:
    """Judges as another does."""

    def __init__(self, verifier) -> None:
        self._verifier = verifier

    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        count("judged", len(images))
        return self._verifier.judge(images, prompts, thresholds)


_load_proposer, _load_verifier = resources.proposer, resources.verifier
_stands_in = os.environ.get("CHAOS_MODELS") != "miniature"


def _proposer(config: ProposerConfig, base: ModelRef) -> CountingProposer:
    return CountingProposer(StandInProposer() if _stands_in else _load_proposer(config, base))


def _verifier(config: VerifierConfig, ref: ModelRef) -> CountingVerifier:
    return CountingVerifier(StandInVerifier() if _stands_in else _load_verifier(config, ref))


resources.proposer = _proposer
resources.verifier = _verifier
