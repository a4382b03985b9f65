"""Where a model runs, and in which numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelNotHere

if TYPE_CHECKING:
    import torch


def device_of(wanted: str) -> torch.device:
    """ "auto" is the first GPU if there is one, else the CPU.

    Raises ModelNotHere for a GPU on a machine without one.
    """
    import torch

    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelNotHere(
            f"the device is {wanted!r}, but torch {torch.__version__} sees no GPU here: install a "
            "CUDA build of torch, or set the device to cpu"
        )
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def dtype_of(wanted: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU that computes in it, else float32."""
    import torch

    if wanted != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[
            wanted
        ]
    good = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if good else torch.float32
