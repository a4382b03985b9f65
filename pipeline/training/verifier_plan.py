"""What a verifier is trained from: settings, labels and a base, checked before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import InputError, ModelError, ServiceError
from pipeline.models import location
from pipeline.shipped import read_yaml
from pipeline.taxonomy import Taxonomy
from pipeline.training.loop import LoopConfig
from pipeline.training.plans import RECIPES
from pipeline.training.verifier_labels import Agreed, Judged, Part, Parts, Source, agree, part
from pipeline.training.verifier_negatives import Wordings, wordings
from pipeline.types import Frozen, ModelRef

DEFAULT_RECIPE = "verifier"
KINDS = ("vilt_verifier", "vilt")

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Held = Annotated[float, Field(gt=0.0, lt=0.5)]


class VerifierTraining(Frozen):
    """How a verifier is trained, calibrated and measured."""

    loop: LoopConfig = LoopConfig(
        steps=2000,
        batch_size=16,
        learning_rate=3e-5,
        lr_schedule="cosine",
        warmup_steps=100,
        checkpoint_every=100,
        validate_every=100,
    )
    patience: Annotated[int, Field(ge=1)] | None = 6
    """Validations without a better one until the training ends; None: it goes on to its end."""

    negatives: Share = 0.5  # of the aligned pictures of a step, those that get a false text as well
    changed_share: Share = 0.7  # of false texts, those with one attribute changed; others: swapped
    changed_more: dict[str, Annotated[float, Field(ge=0.0)]] = {}
    """How often an attribute is the one that is changed, relative to the others, which count as 1:
    more of what goes wrong more often, such as {object: 3}."""
    corrupted: Share = 0.1  # of faultless hands, those that are spoilt
    mirrored: Share = 0.5  # with left and right exchanged in the text
    augment: bool = True

    fidelity_weight: Annotated[float, Field(ge=0.0)] = 1.0
    alignment_weight: Annotated[float, Field(ge=0.0)] = 1.0
    guide_weight: Annotated[float, Field(ge=0.0)] = 0.5  # of the questions asked in training only
    class_balance: bool = True
    most_weight: Annotated[float, Field(ge=1.0)] = 10.0  # of one answer, to even out both
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0

    validation: Held = 0.1  # of the base prompts; what no part holds is learned from
    calibration: Held = 0.1
    test: Held = 0.1
    only_training: tuple[str, ...] = ()  # annotators who are learned from and never measured on
    validation_pictures: Annotated[int, Field(ge=1)] = 512  # at most, each time

    calibrate: Literal["temperature", "platt"] = "platt"
    """platt: a shift beside the temperature, for class weights and made negatives move it."""
    target_precision: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    target_acceptance: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    precision_by: Literal["estimate", "lower"] = "estimate"
    """lower: the lower end of the precision's 95% interval has to reach the target."""

    memory_bytes: Annotated[int, Field(ge=0)] = 2 * 2**30  # for pictures that are kept decoded
    save_dtype: Literal["float16", "float32"] = "float32"

    @model_validator(mode="after")
    def _one_target(self) -> VerifierTraining:
        if self.target_precision is not None and self.target_acceptance is not None:
            raise ValueError("give a target precision or a target acceptance, not both")
        return self

    @model_validator(mode="after")
    def _validations_can_be_gone_on_from(self) -> VerifierTraining:
        if self.loop.validate_every % self.loop.checkpoint_every:
            raise ValueError(
                f"loop.validate_every ({self.loop.validate_every}) must be a multiple of "
                f"loop.checkpoint_every ({self.loop.checkpoint_every})"
            )
        return self

    @property
    def shares(self) -> dict[Part, float]:
        """Of the base prompts, by part."""
        held: dict[Part, float] = {
            "validation": self.validation,
            "calibration": self.calibration,
            "test": self.test,
        }
        return {"train": 1 - sum(held.values()), **held}


@dataclass(frozen=True)
class VerifierPlan:
    """One verifier to be trained: everything that determines it, checked."""

    base: ModelRef
    kind: str  # of KINDS
    config: VerifierTraining
    sources: tuple[Source, ...]
    agreed: Agreed
    parts: Parts
    bases: dict[Part, int]  # base prompts of each part
    known: Wordings

    @property
    def identity(self) -> dict[str, Any]:
        """What two trainings must agree on for one to go on from the other: all but the test."""
        config = self.config.model_dump(mode="json")
        for name in ("checkpoint_every", "checkpoints_kept"):
            del config["loop"][name]
        del config["memory_bytes"]
        return {
            "config": config,
            "base": self.base.weights,
            "labels": {name: _rows(some) for name, some in self.parts.items() if name != "test"},
            "wordings": {name: list(values) for name, values in self.known.values.items()},
            "together": {name: sorted(values) for name, values in self.known.together.items()},
        }

    @property
    def card_identity(self) -> dict[str, Any]:
        """What determines the card as well."""
        return self.identity | {"test": _rows(self.parts["test"])}


def _rows(items: Sequence[Judged]) -> list[list[Any]]:
    return [[i.sha256, i.prompt, i.base, i.fidelity, i.alignment, *i.reasons] for i in items]


def configured_verifier(recipe: str | None, overrides: dict[str, Any]) -> VerifierTraining:
    """A recipe, by the name of one that ships or by its YAML file, under some values of its own.

    overrides: by dotted key; None leaves the recipe's. Without any target a precision of 0.95 is
    aimed at. Raises InputError in one line.
    """
    base = read_yaml(VerifierTraining, recipe or DEFAULT_RECIPE, RECIPES, "recipe")
    values: dict[str, Any] = base.model_dump()
    given = {key: value for key, value in overrides.items() if value is not None}
    if given.keys() & {"target_precision", "target_acceptance"}:
        values |= {"target_precision": None, "target_acceptance": None}
    for key, value in given.items():
        *above, name = key.split(".")
        place = values
        for each in above:
            place = place.setdefault(each, {})
        place[name] = value
    if values["target_precision"] is None and values["target_acceptance"] is None:
        values["target_precision"] = 0.95
    try:
        return VerifierTraining.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"training setting {where!r}: {reason}" if where else reason) from None


def plan_verifier(
    sources: Sequence[Source],
    taxonomy: Taxonomy,
    base: ModelRef,
    config: VerifierTraining,
    tested: Sequence[Source] = (),
) -> VerifierPlan:
    """Checks labels, pictures and base; loads no weights.

    tested: labels to measure on, instead of config.test of the others; nothing is learned of their
    base prompts.
    Raises InputError for labels and pictures that won't do, ModelError for a base that is no ViLT.
    """
    kind = kind_of(base)
    agreed = agree(sources, config.only_training)
    items, shares = agreed.items, config.shares
    if tested:
        apart = agree(tested).items
        unseen = {item.base for item in apart}
        items = tuple(item for item in items if item.base not in unseen)
        shares["train"] += shares.pop("test")
    parts, bases = part(items, shares, config.loop.seed)
    if tested:
        parts["test"], bases["test"] = list(apart), len(unseen)
    return VerifierPlan(
        base, kind, config, (*sources, *tested), agreed, parts, bases, wordings(taxonomy)
    )


def kind_of(ref: ModelRef) -> str:
    """Whether a base is a verifier, "vilt_verifier", or a public ViLT, "vilt".

    Raises ModelError for anything else, ServiceError where a hub id cannot be looked up.
    """
    where, revision = location(ref, "verifier")
    if Path(where).is_dir():
        try:
            kind = json.loads((Path(where) / "config.json").read_text("utf-8"))["model_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ModelError(f"base {ref.name!r} has no readable config.json: {reason}") from None
    else:
        kind = _hub_kind(where, revision)
    if kind not in KINDS:
        raise ModelError(
            f"base {ref.name!r} is of type {kind!r}: give a ViLT backbone such as "
            "'dandelin/vilt-b32-mlm', or a folder that a verifier was trained to"
        )
    return str(kind)


def _hub_kind(name: str, revision: str | None) -> object:
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ServiceError(f"the hub cannot be asked for {name!r}: {reason}") from None
    return values.get("model_type")
