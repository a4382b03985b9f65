"""What a specialist is trained from: settings, pictures and prompts, checked and worded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

from pydantic import Field, field_validator

from pipeline.errors import InputError
from pipeline.shipped import nearest
from pipeline.taxonomy import Taxonomy
from pipeline.training.bases import resolution_of
from pipeline.training.categories import check_category
from pipeline.training.instances import Instances, check_instances
from pipeline.training.plans import Plan, TuningConfig
from pipeline.types import ModelRef

FIELDS = ("token", "action", "category", "caption")


class DreamBoothConfig(TuningConfig):
    """How a specialist is trained. Prompts may name {token}, {action} and {category}."""

    token: str = "sks"  # rare; "": none  # noqa: S105
    instance_prompt: str = ""
    """"": "{token} {caption}" for a picture with a caption, else "a {token} hand {action} an
    object"."""
    class_prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("a hand {action} an object",)
    class_images: Annotated[int, Field(ge=1, le=100_000)] = 200
    prior_loss_weight: Annotated[float, Field(ge=0.0)] = 1.0  # 0: no class images, no prior loss

    @field_validator("instance_prompt", "class_prompts", "validation_prompts")
    @classmethod
    def _prompts_can_be_filled(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for prompt in (value,) if isinstance(value, str) else value:
            for _, name, spec, conversion in Formatter().parse(prompt):
                if name is not None and (name not in FIELDS or spec or conversion):
                    known = nearest(name, FIELDS)
                    raise ValueError(f"prompt {prompt!r} names the unknown field {name!r}: {known}")
        return value


@dataclass(frozen=True)
class DreamBoothPlan(Plan):
    """One specialist to be trained."""

    config: DreamBoothConfig
    category: str
    instances: Instances
    prompts: tuple[str, ...]  # one for each instance
    class_prompts: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        return super().identity | {
            "instances": [item.sha256 for item in self.instances.items],
            "prompts": [self.prompts, self.class_prompts],
        }


def plan_training(
    category: str, folder: Path, taxonomy: Taxonomy, base: ModelRef, config: DreamBoothConfig
) -> DreamBoothPlan:
    """Checks a category's pictures and words its prompts; loads no weights.

    Raises InputError for a category that the taxonomy lacks and for pictures that won't do.
    """
    check_category(category, taxonomy)
    resolution = config.resolution or resolution_of(base)
    instances = check_instances(folder, resolution)
    action = taxonomy.categories[category].action

    def worded(prompt: str, caption: str = "") -> str:
        text = prompt.format(token=config.token, action=action, category=category, caption=caption)
        return " ".join(text.split())

    captioned, bare = "{token} {caption}", "a {token} hand {action} an object"
    prompts = tuple(
        worded(config.instance_prompt or (captioned if item.caption else bare), item.caption)
        for item in instances.items
    )
    # Without a token, class images of the category itself would teach the base's own faults.
    worded_class = tuple(worded(prompt) for prompt in config.class_prompts)
    class_prompts = tuple(text for text in worded_class if config.token or action not in text)
    if config.prior_loss_weight and not class_prompts:
        raise InputError(
            f"without a token the class prompts cannot be of {category!r} itself: give a token, "
            "class prompts of other categories, or a prior loss weight of 0"
        )
    shown = config.validation_prompts or tuple(dict.fromkeys(prompts))
    return DreamBoothPlan(
        base=base,
        config=config,
        resolution=resolution,
        validation_prompts=tuple(
            worded(shown[n % len(shown)]) for n in range(config.validation_images)
        ),
        category=category,
        instances=instances,
        prompts=prompts,
        class_prompts=class_prompts,
    )
