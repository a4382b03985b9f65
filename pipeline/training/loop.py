"""The loop that trainings share: one module that returns its losses, AdamW, checkpoints, resuming.

All that is random in a step is drawn from the seed and the step's number, so that a training which
was cut off and goes on ends where an unbroken one does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import InputError, PpvError
from pipeline.training.checkpoints import (
    newest_checkpoint,
    newest_state,
    optimizer_tensors,
    restore_optimizer,
    write_checkpoint,
)
from pipeline.training.denoising import Batch
from pipeline.training.devices import Accelerator, Precision
from pipeline.types import Frozen, digest

BatchOf = Callable[[int, torch.Generator], Batch]
"""The n-th batch of all processes together; what is random in it comes from the generator."""


class TrainingDiverged(PpvError):
    """The loss is no number any more; the last good checkpoint is kept."""


class LoopConfig(Frozen):
    """How a module is trained, whatever it is."""

    steps: Annotated[int, Field(ge=1)] = 800
    batch_size: Annotated[int, Field(ge=1)] = 1  # on each device
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None  # None: no moving average
    mixed_precision: Precision = "auto"  # auto: bf16 where a GPU has it
    seed: int = 0
    checkpoint_every: Annotated[int, Field(ge=1)] = 200  # steps
    checkpoints_kept: Annotated[int, Field(ge=1)] = 2
    validate_every: Annotated[int, Field(ge=1)] = 200  # steps

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then constant, or down to nothing at the end."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        along = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        shares = {
            "constant": 1.0,
            "linear": 1 - along,
            "cosine": 0.5 * (1 + math.cos(math.pi * along)),
        }
        return self.learning_rate * shares[self.lr_schedule]


@dataclass(frozen=True)
class Point:
    """One step of the curve. losses: by name, the mean over all processes' batches."""

    step: int
    losses: dict[str, float]
    learning_rate: float


class Watch(Protocol):
    """Whoever looks on. `stepped` is called after every step, `noted` with a line for people."""

    def stepped(self, point: Point, steps: int, examples_per_s: float) -> None: ...
    def noted(self, line: str) -> None: ...


def check_owner(folder: Path, identity: object) -> None:
    """Raises InputError if a folder has checkpoints of another training."""
    state = newest_state(folder)
    if state is not None and state["identity"] != digest(identity):
        raise InputError(
            f"{str(folder)!r} has checkpoints of other settings, pictures or weights: "
            "train to another folder, or remove this one"
        )


class Loop:
    """Takes a module through its steps.

    module: its forward takes a batch and returns losses by name, "loss" to be minimised; what
    requires gradients is trained. identity: whose training it is; a folder's checkpoints are gone
    on from only by the same. Raises InputError if they are another's.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        config: LoopConfig,
        folder: Path,
        identity: object,
    ) -> None:
        self._accelerator, self._config, self._folder = accelerator, config, folder
        self._identity = identity
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            self.trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._module, self._optimizer = accelerator.prepare(module, optimizer)
        self._averaged = {
            name: parameter.detach().clone()
            for name, parameter in self.trained.items()
            if config.ema_decay is not None
        }
        self.step = 0
        self.points: list[Point] = []
        self._saved: Path | None = None
        self._examples, self._busy_s = 0, 0.0
        self._go_on()

    @property
    def examples_per_s(self) -> float:
        """Of all processes, in this session, without the time for checkpoints and validation."""
        return self._examples / self._busy_s if self._busy_s else 0.0

    def run(
        self,
        batch_of: BatchOf,
        watch: Watch,
        validate: Callable[[int], bool | None] = lambda step: None,
    ) -> None:
        """Takes the steps that are left, or fewer where a validation says that it is enough.

        Raises TrainingDiverged if the loss is no number.
        """
        config = self._config
        due = self.step % config.validate_every == 0 or self.step == config.steps
        if due and self._validate(validate):
            return
        while self.step < config.steps:
            started = time.monotonic()
            point = self._take_step(batch_of)
            self._busy_s += time.monotonic() - started
            self.points.append(point)
            if self._accelerator.is_main_process:
                watch.stepped(point, config.steps, self.examples_per_s)
            last = self.step == config.steps
            if last or self.step % config.checkpoint_every == 0:
                self._save()
            due = last or self.step % config.validate_every == 0
            if due and self._validate(validate):
                return

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the weights are their moving average, if there is one."""
        own = {name: self.trained[name].detach().clone() for name in self._averaged}
        self._put(self._averaged)
        try:
            yield
        finally:
            self._put(own)

    def _take_step(self, batch_of: BatchOf) -> Point:
        config, accelerator = self._config, self._accelerator
        parts = config.gradient_accumulation_steps
        rate = config.learning_rate_at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._module.train()
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            wait = part < parts - 1
            with accelerator.no_sync(self._module) if wait else nullcontext():
                losses = self._losses(batch_of, self.step * parts + part)
                accelerator.backward(losses["loss"] / parts)
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / parts
        names = sorted(sums)
        means: Any = accelerator.reduce(torch.stack([sums[name] for name in names]).float(), "mean")
        point = Point(self.step + 1, dict(zip(names, means.tolist(), strict=True)), rate)
        norm: Any = accelerator.clip_grad_norm_(self._module.parameters(), config.max_grad_norm)
        scaled = accelerator.mixed_precision == "fp16"  # the scaler passes over infinite gradients
        if not math.isfinite(point.losses["loss"]) or not (scaled or math.isfinite(float(norm))):
            self._diverged(point)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if config.ema_decay is not None:
            decay = min(config.ema_decay, self.step / (10 + self.step))
            for name, mean in self._averaged.items():
                mean.lerp_(self.trained[name].detach(), 1 - decay)
        return point

    def _losses(self, batch_of: BatchOf, number: int) -> dict[str, Tensor]:
        """Of this process's part of the n-th batch."""
        accelerator = self._accelerator
        place = number * accelerator.num_processes + accelerator.process_index
        seed = int(digest([self._config.seed, place])[:12], 16)
        torch.manual_seed(seed)  # for dropout; all else draws from the generator
        batch = batch_of(place, torch.Generator().manual_seed(seed))
        moved = {
            key: value.to(accelerator.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        size = max(len(value) for value in moved.values() if isinstance(value, Tensor))
        self._examples += size * accelerator.num_processes
        losses: dict[str, Tensor] = self._module(moved)
        return losses

    def _validate(self, validate: Callable[[int], bool | None]) -> bool:
        """True, in every process, if it was enough."""
        accelerator, enough = self._accelerator, False
        if accelerator.is_main_process:
            self._module.eval()
            with torch.no_grad(), self.averaged():
                enough = bool(validate(self.step))
        accelerator.wait_for_everyone()
        said: Any = accelerator.reduce(torch.tensor(float(enough), device=accelerator.device))
        return bool(said > 0)

    def _save(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.trained.values()):
            self._diverged(self.points[-1])
        if self._accelerator.is_main_process:
            scaler = getattr(self._accelerator, "scaler", None)
            parts: dict[str, Any] = {
                "weights": self.trained,
                "optimizer": optimizer_tensors(self._optimizer.optimizer, self.trained),
                **({"averaged": self._averaged} if self._averaged else {}),
            }
            state = {
                "identity": digest(self._identity),
                "points": [asdict(point) for point in self.points],
                "scaler": scaler.state_dict() if scaler else None,
            }
            kept = self._config.checkpoints_kept
            self._saved = write_checkpoint(self._folder, self.step, parts, state, kept)
        self._accelerator.wait_for_everyone()

    def _go_on(self) -> None:
        """From the newest checkpoint, if there is one."""
        check_owner(self._folder, self._identity)
        found = newest_checkpoint(self._folder)
        if found is None:
            return
        self._put(found.parts["weights"])
        for name, mean in self._averaged.items():
            mean.copy_(found.parts["averaged"][name])
        restore_optimizer(self._optimizer.optimizer, self.trained, found.parts["optimizer"])
        scaler = getattr(self._accelerator, "scaler", None)
        if scaler and found.state["scaler"]:
            scaler.load_state_dict(found.state["scaler"])
        self.step = found.step
        self.points = [Point(**point) for point in found.state["points"]]
        self._saved = self._folder / f"{found.step:06}"

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.trained[name].copy_(value)

    def _diverged(self, point: Point) -> None:
        kept = f"the checkpoint of step {self._saved.name} is kept" if self._saved else "none kept"
        raise TrainingDiverged(
            f"the training diverged at step {point.step} (loss {point.losses['loss']:g}, learning "
            f"rate {point.learning_rate:g}); {kept}: train with a lower rate to another folder"
        )
