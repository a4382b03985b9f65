"""Schedulers by the names that people know them by, made from the one that a model came with."""

from __future__ import annotations

from typing import Any

from pipeline.errors import ModelError
from pipeline.types import Scheduler

CLASSES: dict[Scheduler, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""diffusers' class of each, and what makes it that one whatever the model's own was set to."""


def scheduler_of(own: Any, name: Scheduler) -> Any:
    """A new scheduler with the noise levels and the kind of prediction that `own` has.

    Raises ModelError if the model was trained for another kind of diffusion than the name's.
    """
    import diffusers

    if name == "own":
        return own
    class_name, settings = CLASSES[name]
    kind: Any = getattr(diffusers, class_name)
    flows = own.config.get("use_flow_sigmas") or own.config.get("prediction_type") == (
        "flow_prediction"
    )
    if flows or (kind is not type(own) and kind not in own.compatibles):
        raise ModelError(
            f"scheduler {name!r} does not fit this model, which draws with its "
            f"{type(own).__name__}: set proposer.sampler.scheduler to 'own'"
        )
    if name == "ddim":
        # By default it clips to [-1, 1], which suits pixels; latents go well beyond.
        settings = {"clip_sample": own.config.get("clip_sample", False)}
    return kind.from_config(own.config, **settings)
