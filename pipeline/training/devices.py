"""Where a training runs, in which precision, and what it takes."""

from __future__ import annotations

import resource
import sys
from typing import Literal

import torch
from accelerate import Accelerator as Accelerator  # type: ignore[import-untyped]
from accelerate import DistributedDataParallelKwargs
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

from pipeline.errors import InputError

Precision = Literal["auto", "no", "fp16", "bf16"]


def new_accelerator(
    precision: Precision, *, cpu: bool = False, some_unused: bool = False
) -> Accelerator:
    """accelerate's view of the devices: all that `accelerate launch` gave, else the first one."""
    if precision == "auto":
        good = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if good else "no"
    if precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise InputError("mixed precision 'fp16' needs a GPU: take 'bf16' or 'no'")
    AcceleratorState._reset_state()  # an earlier training's precision would forbid another
    several = DistributedDataParallelKwargs(find_unused_parameters=some_unused)
    return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[several])


def peak_memory_bytes() -> int:
    """Of the GPU since the process began, if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
