"""What the miniature's trainings share: a budget, a learning rate that fits it, and resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Step = Callable[[int], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Budget:
    """How long to train: by the clock, or by steps where the same result must come out again."""

    minutes: float | None = None
    steps: int | None = None

    def progress(self, step: int, elapsed_s: float) -> float:
        """The share that is used up, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        if self.minutes is None:
            raise ValueError("a budget needs minutes or steps")
        return min(1.0, elapsed_s / (60 * self.minutes))


def learning_rate_share(progress: float, warmup: float = 0.02, floor: float = 0.01) -> float:
    """Linear warm-up, then a cosine down to `floor`, as a share of the peak."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    along = (progress - warmup) / (1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along))


class Trainer:
    """Steps an optimizer through a budget; everything in `parts` is saved and resumed."""

    def __init__(
        self,
        parts: dict[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer,
        budget: Budget,
        checkpoint: Path,
        resume: bool,
    ) -> None:
        self.parts, self.optimizer, self.budget = parts, optimizer, budget
        self.checkpoint = checkpoint
        self.step, self.elapsed_s = 0, 0.0
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        if resume and checkpoint.exists():
            self._load()

    def run(self, step: Step, log_every: int = 50, save_every: int = 250) -> Iterator[int]:
        """Takes the steps that are left; yields after each save, and once at the end."""
        sums: dict[str, float] = {}
        last, logged = time.monotonic(), self.step
        while (progress := self.budget.progress(self.step, self.elapsed_s)) < 1:
            share = learning_rate_share(progress)
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * share
            losses = step(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(
                [p for group in self.optimizer.param_groups for p in group["params"]], 1.0
            )
            self.optimizer.step()
            self.step += 1
            now = time.monotonic()
            self.elapsed_s, last = self.elapsed_s + now - last, now
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if self.step % log_every == 0:
                means = {k: round(v / (self.step - logged), 4) for k, v in sums.items()}
                minutes = self.elapsed_s / 60
                print(f"step {self.step} {minutes:.1f} min {share:.3f} {means}", flush=True)
                sums, logged = {}, self.step
            if self.step % save_every == 0:
                self.save()
                yield self.step
        self.save()
        yield self.step

    def save(self) -> None:
        """Writes the checkpoint beside its place, then moves it there."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_suffix(".part")
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save(
            {
                "parts": state,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
            },
            beside,
        )
        beside.replace(self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 to (B, 3, 64, 64) float32 in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
