"""What a pipeline is fine-tuned on: settings and a dataset, checked before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from pipeline.training.bases import resolution_of
from pipeline.training.buckets import BucketSettings
from pipeline.training.captioned import Dataset
from pipeline.training.plans import Plan, TuningConfig
from pipeline.types import ModelRef

DEFAULT_RECIPE = "finetune"


class FinetuneConfig(TuningConfig):
    """How a pipeline is fine-tuned."""

    caption_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """The share of captions that are left out, so that guidance keeps something to guide from."""
    replay_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """Of the batches, where there is a dataset to replay: one on the model's own output alone
    forgets what it was."""
    buckets: BucketSettings = BucketSettings()


@dataclass(frozen=True)
class FinetunePlan(Plan):
    """One fine-tuning."""

    config: FinetuneConfig
    dataset: Dataset
    replay: Dataset | None

    @property
    def identity(self) -> dict[str, Any]:
        replayed = self.replay.sha256 if self.replay else None
        return super().identity | {"dataset": self.dataset.sha256, "replay": replayed}


def plan_finetuning(
    dataset: Dataset, base: ModelRef, config: FinetuneConfig, replay: Dataset | None = None
) -> FinetunePlan:
    """Chooses what is drawn along the way; loads no weights.

    Raises ModelError for a base that cannot be trained.
    """
    known, count = config.validation_prompts or dataset.prompts, config.validation_images
    apart = max(1, len(known) // count)
    return FinetunePlan(
        base=base,
        config=config,
        resolution=config.resolution or resolution_of(base),
        validation_prompts=tuple(known[n * apart % len(known)] for n in range(count)),
        dataset=dataset,
        replay=replay,
    )
