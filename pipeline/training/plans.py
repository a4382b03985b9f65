"""What all trainings of a pipeline share: their settings, and what determines one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from pipeline.errors import InputError
from pipeline.shipped import read_yaml
from pipeline.training.loop import LoopConfig
from pipeline.training.lora import LoraSettings
from pipeline.types import Frozen, ModelRef, Sampler

RECIPES = Path(__file__).parent / "recipes"


class TuningConfig(Frozen):
    """How a pipeline is trained, whatever it is trained on."""

    method: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    loop: LoopConfig = LoopConfig()
    text_encoder: bool = False  # trained, too
    gradient_checkpointing: bool = False  # less memory, a fifth more time
    resolution: Annotated[int, Field(ge=8, le=4096)] | None = None  # px a side; None: the base's

    sampler: Sampler = Sampler()  # of class images and validation
    validation_prompts: tuple[str, ...] = ()  # (): those of the pictures
    validation_images: Annotated[int, Field(ge=1, le=64)] = 4
    draw_batch_size: Annotated[int, Field(ge=1)] = 8
    save_dtype: Literal["float16", "bfloat16", "float32"] = "float16"


@dataclass(frozen=True)
class Plan:
    """One training: everything that determines it, checked."""

    base: ModelRef
    config: TuningConfig
    resolution: int
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
        return {"config": config, "base": self.base.weights, "resolution": self.resolution}


C = TypeVar("C", bound=TuningConfig)


def configured(kind: type[C], recipe: str | None, overrides: dict[str, Any], sampler: Sampler) -> C:
    """A recipe, by the name of one that ships or by its YAML file, under some values of its own.

    overrides: by dotted key; None leaves the recipe's. sampler: taken if the recipe names none.
    Raises InputError in one line.
    """
    base = kind() if recipe is None else read_yaml(kind, recipe, RECIPES, "recipe")
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
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"training setting {where!r}: {reason}") from None
