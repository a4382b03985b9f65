"""The product's app with stages that do nothing, to time what carries the work: orchestration.

Messages, canvas, tasks, prompts and records are the product's own; only the models are empty, and
no picture is made, stored or read.
"""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from pipeline.config import ProposerConfig, VerifierConfig
from pipeline.proposer.diffusion import Drawing, Effort
from pipeline.types import (
    Adapter,
    BasePrompt,
    ClauseScore,
    DetailedPrompt,
    Expansion,
    ModelRef,
    Proposal,
    Sampler,
    Thresholds,
    Verdict,
)
from storage.runs import RunFolder
from workers import propose, resources, verify
from workers.celery import app
from workers.embedded import store_of
from workers.settings import settings

__all__ = ["app"]

_BLANK = Drawing(Image.new("RGB", (1, 1)), 0)


class EmptyDescriber:
    """As many detailed prompts as the run wants, all saying what the base prompt says."""

    def __init__(self, name: str) -> None:
        run = resources.run(name)
        self._folder = resources.folder(name)
        self._digest, self._count = run.prompter_digest, run.prompter.prompts_per_base

    def describe(self, base: BasePrompt) -> tuple[DetailedPrompt, ...]:
        prompts = tuple(
            DetailedPrompt(
                id=DetailedPrompt.id_of(self._digest, base.text, index),
                base=base.text,
                index=index,
                text=base.text,
                category="power",
            )
            for index in range(self._count)
        )
        self._folder.write_expansion(base, Expansion(prompts=prompts))
        return prompts


class EmptyProposer:
    """Draws nothing."""

    effort = Effort()

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]:
        return [_BLANK] * len(texts)

    def batch_size(self, sampler: Sampler) -> int:
        return 1024

    def warm_up(self, sampler: Sampler) -> None:
        pass


class EmptyVerifier:
    """Accepts everything."""

    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        return [
            Verdict(
                fidelity=1.0,
                alignment=1.0,
                clauses=(ClauseScore(text=prompt, fidelity=1.0, alignment=1.0),),
                thresholds=thresholds,
            )
            for prompt in prompts
        ]


class FolderWithoutPictures(RunFolder):
    """A run that keeps no pictures."""

    def has_image(self, proposal_id: str) -> bool:
        return False

    def write_image(self, proposal_id: str, png: bytes) -> None:
        pass

    def read_image(self, proposal_id: str) -> bytes:
        return b""


def _encode(drawing: Drawing, proposal: Proposal) -> bytes:
    return b""


def _decode(png: bytes) -> Drawing:
    return _BLANK


def _proposer(config: ProposerConfig, ref: ModelRef) -> EmptyProposer:
    return EmptyProposer()


def _verifier(config: VerifierConfig, ref: ModelRef) -> EmptyVerifier:
    return EmptyVerifier()


@lru_cache(maxsize=64)
def _folder(run: str) -> FolderWithoutPictures:
    return FolderWithoutPictures(store_of(settings()), run)


resources.describer = lru_cache(maxsize=16)(EmptyDescriber)  # type: ignore[assignment]
resources.proposer = _proposer  # type: ignore[assignment]
resources.verifier = _verifier  # type: ignore[assignment]
resources.folder = _folder
propose.encode = _encode
verify.decode = _decode
