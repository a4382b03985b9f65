"""Checkpoints of a training: tensors as safetensors, all else as JSON; nothing that can run code.

checkpoints/000200/weights.safetensors    what is trained, by name
                   optimizer.safetensors  AdamW's state, by name and kind
                   averaged.safetensors   the moving average, if there is one
                   state.json             the step, the curve so far, whose training it is
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import InputError

STATE = "state.json"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from. parts: tensors on the CPU, by file."""

    step: int
    parts: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any], keep: int
) -> Path:
    """Writes a checkpoint, whole or not at all, then removes all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    to = folder / f"{step:06}"
    partial = folder / f".{to.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, tensors in parts.items():
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
            partial / f"{name}.safetensors",
        )
    (partial / STATE).write_text(json.dumps({"step": step, **state}) + "\n")
    for file in partial.iterdir():
        _to_disk(file)
    if to.exists():
        shutil.rmtree(to)
    partial.replace(to)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return to


def newest_state(folder: Path) -> dict[str, Any] | None:
    """What the last checkpoint says of itself. Raises InputError if it cannot be read."""
    steps = _steps(folder)
    if not steps:
        return None
    with _naming(steps[-1]):
        state: dict[str, Any] = json.loads((steps[-1] / STATE).read_text("utf-8"))
        return state


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint of a folder. Raises InputError if it cannot be read."""
    state = newest_state(folder)
    if state is None:
        return None
    newest = _steps(folder)[-1]
    with _naming(newest):
        parts = {file.stem: load_file(file) for file in newest.glob("*.safetensors")}
        return Checkpoint(state.pop("step"), parts, state)


@contextmanager
def _naming(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"checkpoint {str(checkpoint)!r} cannot be read ({reason}): remove that folder to go "
            "on from the one before"
        ) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: Tensors) -> dict[str, Tensor]:
    """The optimizer's state by parameter name and kind: "unet.conv.weight:exp_avg"."""
    return {
        f"{name}:{kind}": value
        for name, parameter in named.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, named: Tensors, tensors: Tensors) -> None:
    """Puts back what `optimizer_tensors` gave."""
    for key, value in tensors.items():
        name, _, kind = key.rpartition(":")
        parameter = named[name]
        device = torch.device("cpu") if kind == "step" else parameter.device
        optimizer.state[parameter][kind] = value.to(device)


def _steps(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, the newest last."""
    return sorted(path for path in folder.glob("[0-9]*") if (path / STATE).is_file())


def _to_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
