"""Stock diffusers, ours and the whole pipeline on one GPU, at SDXL's full size.

    python -m bench.gpu [--json FILE] [--parts stock,ours,drift,pipeline,switch,training]

The model is SDXL's architecture with random weights (bench/sdxl.py): speed does not depend on the
values. Without a GPU it is the miniature, in float32 on the CPU, and the output says so.

stock, ours   images/s and peak memory of each batch size: diffusers as its documentation loads it,
              in float16, and the product's proposer with the switches that are best here
drift         how far apart the pictures of the same seeds are, in levels of 255, and how far each
              is from float32's
pipeline      one propose worker on Redis and S3 at the largest batch, between two turns of ours;
              utilisation is what nvidia-smi says meanwhile, twice a second
switch        putting another adapter into the weights
training      a step of DreamBooth LoRA, in turns with a step of a plain loop on the same work

Whatever holds a model is a process of its own, which keeps nothing but weights on the GPU while
another one works. What is compared runs in turns, loaded and warm before a clock starts. Parts can
run one at a time, into the same JSON file: it is written after each, and figures that were measured
on another machine or with other settings are dropped.
"""

import itertools
import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.drawing import (
    Drawn,
    Side,
    Work,
    effort,
    pictures,
    quiet,
    synchronize,
    texts,
    timed,
)
from bench.sdxl import save_sdxl
from pipeline.config import MINIATURE, Dtype, ProposerConfig
from pipeline.devices import device_of
from pipeline.models import fingerprint
from pipeline.proposer.batches import name_of
from pipeline.specialists import describe, shipped
from pipeline.types import Adapter, DetailedPrompt, Sampler
from storage.runs import RunFolder
from workers import canvas, dispatch
from workers.embedded import broker_of, services, store_of
from workers.fleet import celery_worker
from workers.processes import Child
from workers.settings import Settings, load_settings

PARTS = ("stock", "ours", "drift", "pipeline", "switch", "training")
IMAGES_PER_TURN = 8  # of stock and ours at least; a batch at least
ADAPTERS = 6
MB = 2**20

fresh = itertools.count(0, 10_000)
"""Where the texts of each measurement begin, so that none finds another's encodings."""

out = Console()


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here, or add to them.")
    ] = None,
    parts: Annotated[str, typer.Option(help="What to measure.")] = ",".join(PARTS),
    steps: Annotated[int | None, typer.Option(help="30; of the miniature 16.")] = None,
    size: Annotated[int | None, typer.Option(help="1024; of the miniature its own.")] = None,
    batches: Annotated[str, typer.Option(help="Images in one pass.")] = "1,4,8,16",
    images: Annotated[int, typer.Option(help="That the pipeline draws.")] = 128,
    turns: Annotated[int, typer.Option(help="Of stock and of ours.")] = 2,
    dtype: Annotated[Dtype, typer.Option(help="Of ours, on a GPU.")] = "bfloat16",
) -> None:
    """Measure, print tables, and write the figures."""
    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(unknown)}: known parts are {', '.join(PARTS)}")
    sizes = [int(each) for each in batches.split(",")]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ["PPV_STATE_DIR"] = folder
        work = prepare(Path(folder), dtype, steps, size, max(sizes))
        figures = Figures(json_file, work)
        stack.callback(figures.show)  # also of what came before a failure
        held: dict[Side, Executor] = {
            side: stack.enter_context(process()) for side in ("stock", "ours", "float32")
        }
        if sides := [side for side in ("stock", "ours") if side in wanted]:
            for batch in sizes:
                figures.add(alone(held, work, sides, batch, turns))
        if "drift" in wanted:
            figures.add(drift(held, work))
        if "pipeline" in wanted:
            figures.add(pipeline(held["ours"], work, images))
        for part, work_of in (("switch", switching), ("training", training)):
            if part in wanted:
                with process() as own:
                    figures.add(own.submit(work_of, work, Path(folder)).result())


def prepare(folder: Path, dtype: Dtype, steps: int | None, size: int | None, batch: int) -> Work:
    """The model and the switches that are best here."""
    device = device_of("auto")
    if device.type == "cuda":
        with process() as builder:
            model = builder.submit(save_sdxl, folder / "sdxl", device.type).result()
        sampler = Sampler(num_inference_steps=steps or 30, guidance_scale=5.0)
        side = size or 1024
        config = ProposerConfig(
            model=str(model),
            dtype=dtype,
            compile=True,
            sampler=sampler.model_copy(update={"height": side, "width": side}),
        )
    else:
        out.print("[bold]no GPU here: this is the miniature on the CPU, fp32[/bold]")
        sampler = Sampler(num_inference_steps=steps or 16, height=size, width=size)
        config = ProposerConfig(device="cpu", sampler=sampler)
    config = config.model_copy(update={"batch_size": batch, "images_per_prompt": 1})
    stock_dtype = "float16" if device.type == "cuda" else "float32"
    return Work(device.type, stock_dtype, config.model_dump_json())


@contextmanager
def process() -> Iterator[Executor]:
    """One of its own, started when it is first given work; its memory goes when it ends."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


class Figures:
    """What was measured so far, and its file."""

    def __init__(self, file: Path | None, work: Work) -> None:
        self._file = file
        setting = {
            "machine": f"{_processor()}, {name_of(device_of('auto'))}, {os.cpu_count()} cores",
            "model": "miniature" if work.config.model == MINIATURE else "SDXL, random weights",
            "stock": work.stock_dtype,
            "ours": work.config.model_dump(mode="json", exclude={"model", "batch_size"}),
        }
        there = json.loads(file.read_text()) if file and file.exists() else {}
        same = there.get("setting") == setting
        self._all: dict[str, Any] = there if same else {"setting": setting}

    def add(self, found: dict[str, Any]) -> None:
        """Figures by name; those that are by side or batch join what is there."""
        self._all = _joined(self._all, found)
        self._all |= self._speedup()
        if self._file:
            self._file.write_text(json.dumps(self._all, indent=1) + "\n")

    def _speedup(self) -> dict[str, Any]:
        """Ours against stock by batch, and the least of these."""
        rates = self._all.get("images_per_s", {})
        stock, ours = rates.get("stock", {}), rates.get("ours", {})
        by_batch = {
            batch: ours[batch] / stock[batch] for batch in stock if stock[batch] and ours.get(batch)
        }
        if not by_batch:
            return {}
        return {"ours_vs_stock": min(by_batch.values()), "ours_vs_stock_by_batch": by_batch}

    def show(self) -> None:
        setting = self._all["setting"]
        if "images_per_s" in self._all:
            out.print(_rates_table(self._all, f"{setting['model']}, {setting['machine']}"))
        table = Table("", "")
        for name, value in self._all.items():
            if name not in ("setting", "images_per_s", "peak_bytes", "ours_vs_stock_by_batch"):
                table.add_row(name, _shown(value))
        out.print(table)


def _joined(there: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Both, level by level; what was found now wins."""
    joined = dict(there)
    for name, value in found.items():
        old = there.get(name)
        both = isinstance(value, dict) and isinstance(old, dict)
        joined[name] = _joined(old, value) if both else value
    return joined


def _rates_table(figures: dict[str, Any], title: str) -> Table:
    """A row for each batch size of each side."""
    table = Table("", "batch", "images/s", "peak memory, MB", title=title)
    for side, by_batch in figures["images_per_s"].items():
        for batch, rate in sorted(by_batch.items(), key=lambda each: int(each[0])):
            peak = figures["peak_bytes"].get(side, {}).get(batch)
            table.add_row(
                side,
                batch,
                f"{rate:.3f}" if rate else "cannot",
                f"{peak / MB:,.0f}" if peak else "",
            )
    return table


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


# Stock and ours, each in its process


def alone(
    held: dict[Side, Executor], work: Work, sides: Sequence[Side], batch: int, turns: int
) -> dict[str, Any]:
    """Images a second and peak memory of each side, all turns taken together."""
    drawn: dict[Side, list[Drawn]] = {side: [] for side in sides}
    for _ in range(turns):
        for side in sides:
            took = measure(held[side], side, work, batch, IMAGES_PER_TURN)
            drawn[side] += [took] if took else []
    rates, peaks = {}, {}
    for side, each in drawn.items():
        seconds = [took.seconds_per_image for took in each]
        rates[side] = {str(batch): 1 / statistics.mean(seconds) if seconds else None}
        peaks[side] = {str(batch): max((took.peak_bytes for took in each), default=None)}
    found = {"images_per_s": rates, "peak_bytes": peaks}
    return found | (held["ours"].submit(effort, work).result() if "ours" in sides else {})


def measure(pool: Executor, side: Side, work: Work, batch: int, images: int) -> Drawn | None:
    """So many images in the side's process, or one batch; None: they cannot be drawn."""
    return pool.submit(timed, side, work, batch, max(images, batch), next(fresh)).result()


def drift(held: dict[Side, Executor], work: Work, count: int = 2) -> dict[str, Any]:
    """The mean absolute difference of the same pictures, in levels of 255."""
    import numpy as np

    drawn = {
        side: one.submit(pictures, side, work, count).result().astype(np.float32)
        for side, one in held.items()
    }

    def apart(one: Side, other: Side) -> float:
        return float(np.abs(drawn[one] - drawn[other]).mean())

    return {
        "drift_of_255": {
            "ours from stock": apart("ours", "stock"),
            "stock from float32": apart("stock", "float32"),
            "ours from float32": apart("ours", "float32"),
            "two seeds apart": float(np.abs(drawn["float32"][0] - drawn["float32"][1]).mean()),
        }
    }


# The whole pipeline


def pipeline(ours: Executor, work: Work, images: int) -> dict[str, Any]:
    """The worker, and before and after it ours alone at the same batch."""
    batch = work.config.batch_size
    settings = load_settings().model_copy(update={"proposer": work.config})

    def ours_alone() -> Drawn:
        drawn = measure(ours, "ours", work, batch, images // 4)
        if drawn is None:
            raise RuntimeError(f"{batch} images do not fit: take smaller --batches")
        return drawn

    with services(settings), celery_worker(settings, "propose") as worker:
        through(worker, settings, "warm-up", batch)
        before = ours_alone()
        with utilisation() as samples:
            seconds = through(worker, settings, "measured", images)
        after = ours_alone()
    alone_per_s = 2 / (before.seconds_per_image + after.seconds_per_image)
    return {
        "images_per_s": {
            "pipeline": {str(batch): images / seconds},
            "ours beside it": {str(batch): alone_per_s},
        },
        "peak_bytes": {"ours beside it": {str(batch): before.peak_bytes}},
        "pipeline_vs_ours": images / seconds / alone_per_s,
        "gpu_utilisation_percent": statistics.mean(samples) if samples else None,
    }


def through(worker: Child, settings: Settings, name: str, images: int) -> float:
    """Sends so many proposals; seconds until every picture is stored.

    Raises RuntimeError where the worker dies or gives up.
    """
    folder = dispatch.open_run(store_of(settings), broker_of(settings), settings, name)
    run, prompts = folder.read(), []
    for n, text in enumerate(texts(images, next(fresh))):
        base = f"a hand, number {n}"
        id = DetailedPrompt.id_of(run.prompter_digest, base, 0)  # workers refuse others
        prompts.append(DetailedPrompt(id=id, base=base, index=0, text=text, category="power"))
    batches = list(canvas.batches(run, prompts))
    started = time.monotonic()
    canvas.send_proposals(batches)
    while sum(1 for _ in folder.image_ids()) < images:
        check(worker, folder)
        time.sleep(0.1)
    return time.monotonic() - started


def check(worker: Child, folder: RunFolder) -> None:
    """Raises RuntimeError if there is nothing to wait for."""
    if not worker.alive:
        raise RuntimeError(f"the worker died: {worker.log_tail()}")
    for failed in folder.failed_ids():
        raise RuntimeError(f"the worker gave up: {folder.read_failure(failed).error}")


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """Percent of the time that the GPU computed, sampled meanwhile; empty without nvidia-smi."""
    samples: list[float] = []
    done = threading.Event()
    command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader"]

    def sample() -> None:
        while not done.wait(0.5):
            try:
                said = subprocess.check_output(command, text=True)
                samples.append(float(said.split()[0]))
            except (OSError, ValueError, subprocess.CalledProcessError):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


# Adapters and training, each in a process that then ends


def switching(work: Work, folder: Path) -> dict[str, Any]:
    """The median time of putting another adapter into the weights, and of the first time."""
    quiet()
    from pipeline.proposer.diffusion import DiffusionProposer

    adapters = specialists(work, folder)
    folders = {adapter.weights: path for adapter, path in adapters}
    base = fingerprint(work.config.model, "base")
    loaded = DiffusionProposer.load(work.config, base, lambda each: folders[each.weights])
    taken = []
    for number in range(6 * len(adapters)):
        synchronize()
        started = time.monotonic()
        loaded.adapters.use(adapters[number % len(adapters)][0])
        synchronize()
        taken.append(1000 * (time.monotonic() - started))
    first, later = taken[: len(adapters)], taken[len(adapters) :]
    return {
        "adapter_switch_ms": statistics.median(later),
        "adapter_first_use_ms": statistics.median(first),
        "adapters": f"{len(adapters)}, {'shipped' if work.config.model == MINIATURE else 'random'}",
    }


def specialists(work: Work, folder: Path) -> list[tuple[Adapter, Path]]:
    """The miniature's own; for any other base random ones of rank 16 on attention."""
    if work.config.model == MINIATURE:
        return [(each.adapter(each.category), path) for each, path in shipped()]
    import torch

    from pipeline.training.bases import load_pipeline
    from pipeline.training.lora import LoraSettings, add_adapters, save_adapters

    pipe = load_pipeline(fingerprint(work.config.model, "base"), torch.float16)
    add_adapters(pipe, LoraSettings(rank=16), text_encoders=False)
    found = []
    for number in range(ADAPTERS):
        torch.manual_seed(number)
        for name, weight in pipe.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=1e-3)
        path = folder / f"adapter-{number}"
        save_adapters(pipe, path, torch.float16, {})
        found.append((describe(path, path.name, "").adapter(""), path))
    return found


def training(work: Work, folder: Path) -> dict[str, Any]:
    """The median time of a step of ours and of a plain loop's, and how much faster ours is."""
    quiet()
    from bench.training_step import in_turns

    took = in_turns(work.config.model, work.device, folder)
    return {"training_step_ms": took, "training_vs_plain": took["plain loop"] / took["ours"]}


def _processor() -> str:
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    typer.run(main)
