"""What a specialist is trained from: settings, pictures and prompts, checked and worded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from pipeline.errors import InputError
from pipeline.shipped import nearest, read_yaml
from pipeline.taxonomy import Taxonomy
from pipeline.training.bases import resolution_of
from pipeline.training.categories import check_category
from pipeline.training.instances import Instances, check_instances
from pipeline.training.loop import LoopConfig
from pipeline.training.lora import LoraSettings
from pipeline.types import Frozen, ModelRef, Sampler

FIELDS = ("token", "action", "category", "caption")
RECIPES = Path(__file__).parent / "recipes"


class DreamBoothConfig(Frozen):
    """How a specialist is trained. Prompts may name {token}, {action} and {category}."""

    method: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    loop: LoopConfig = LoopConfig()
    text_encoder: bool = False  # trained, too
    gradient_checkpointing: bool = False  # less memory, a fifth more time
    resolution: Annotated[int, Field(ge=8, le=4096)] | None = None  # px a side; None: the base's

    token: str = "sks"  # rare; "": none  # noqa: S105
    instance_prompt: str = ""
    """"": "{token} {caption}" for a picture with a caption, else "a {token} hand {action} an
    object"."""
    class_prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("a hand {action} an object",)
    class_images: Annotated[int, Field(ge=1, le=100_000)] = 200
    prior_loss_weight: Annotated[float, Field(ge=0.0)] = 1.0  # 0: no class images, no prior loss

    sampler: Sampler = Sampler()  # of class images and validation
    validation_prompts: tuple[str, ...] = ()  # (): the first instance prompts
    validation_images: Annotated[int, Field(ge=1, le=64)] = 4
    draw_batch_size: Annotated[int, Field(ge=1)] = 8
    save_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

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
class Plan:
    """One specialist to be trained: everything that determines it, checked."""

    category: str
    base: ModelRef
    config: DreamBoothConfig
    resolution: int
    instances: Instances
    prompts: tuple[str, ...]  # one for each instance
    class_prompts: tuple[str, ...]
    validation_prompts: tuple[str, ...]

    @property
    def sampler(self) -> Sampler:
        """As configured, at the size that is trained at unless another is asked for."""
        own, side = self.config.sampler, self.resolution
        return own.model_copy(update={"height": own.height or side, "width": own.width or side})

    @property
    def identity(self) -> dict[str, Any]:
        """What two trainings must agree on for one to go on from the other."""
        config = self.config.model_dump(mode="json")
        for name in ("checkpoint_every", "checkpoints_kept"):
            del config["loop"][name]
        return {
            "config": config,
            "base": self.base.weights,
            "resolution": self.resolution,
            "instances": [item.sha256 for item in self.instances.items],
            "prompts": [self.prompts, self.class_prompts],
        }


def configured(recipe: str | None, overrides: dict[str, Any], sampler: Sampler) -> DreamBoothConfig:
    """A recipe, by the name of one that ships or by its YAML file, under some values of its own.

    overrides: by dotted key; None leaves the recipe's. sampler: taken if the recipe names none.
    Raises InputError in one line.
    """
    base = DreamBoothConfig()
    if recipe is not None:
        base = read_yaml(DreamBoothConfig, recipe, RECIPES, "recipe")
    values: dict[str, Any] = base.model_dump(exclude_unset=True)
    values.setdefault("sampler", sampler.model_dump())
    for key, value in overrides.items():
        if value is not None:
            *above, name = key.split(".")
            place = values
            for each in above:
                place = place.setdefault(each, {})
            place[name] = value
    try:
        return DreamBoothConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"training setting {where!r}: {reason}") from None


def plan_training(
    category: str, folder: Path, taxonomy: Taxonomy, base: ModelRef, config: DreamBoothConfig
) -> Plan:
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
    return Plan(
        category=category,
        base=base,
        config=config,
        resolution=resolution,
        instances=instances,
        prompts=prompts,
        class_prompts=class_prompts,
        validation_prompts=tuple(
            worded(shown[n % len(shown)]) for n in range(config.validation_images)
        ),
    )
