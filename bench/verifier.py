"""What the verify worker adds to a plain transformers loop, and which aggregation reads clauses.

    python -m bench.verifier [--json FILE]
    python -m bench.verifier --aggregation [--model FOLDER]

1. One verify worker on Redis and S3, as `ppv run` starts it, with pictures that are stored already,
   until their records are written; beside loops that read the same pictures from the same store
   and call processor and network as transformers' documentation does, one pair at a time and in
   batches of a message's size. One of them has its pictures in memory.
2. With --aggregation, how well a long prompt's scores are made of its clauses': see
   pipeline/miniature/long_prompts.py.

The loops have as many threads as torch takes by itself, which is all cores; the worker's processes
have the cores between them. Sides take turns, and each figure is of all turns together. Models are
loaded and warm before a clock starts.
"""

import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.config import MINIATURE, Run, VerifierConfig
from pipeline.models import folder_of
from pipeline.pictures import encode
from pipeline.proposer.diffusion import Drawing
from pipeline.types import DetailedPrompt, ProposalBatch, seed_of
from storage.objects import ObjectStore
from storage.runs import RunFolder
from workers import dispatch
from workers.celery import app
from workers.embedded import broker_of, services, store_of
from workers.fleet import VERIFY_PROCESSES, celery_worker
from workers.settings import Settings, load_settings

MESSAGE = 64  # pictures of one
PICTURES_PER_PROMPT = 2
SINGLE_SHARE = 4  # the loop of single pairs judges this part of the pictures only: it is slow

out = Console()


def main(
    pictures: Annotated[
        int, typer.Option(min=2 * MESSAGE, help="Of each turn, a multiple of 64.")
    ] = 1024,
    turns: Annotated[int, typer.Option(help="Of each side.")] = 3,
    aggregation: Annotated[bool, typer.Option(help="Compare aggregations instead.")] = False,
    model: Annotated[str, typer.Option(help="The verifier of --aggregation.")] = MINIATURE,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measure, print a table, and write the figures."""
    figures = aggregations(model) if aggregation else speed(pictures, turns)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


# Speed


def speed(pictures: int, turns: int) -> dict[str, Any]:
    """Pairs a second of worker and loops, and how they compare."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PPV_STATE_DIR"] = folder
        settings = load_settings()
        with services(settings), celery_worker(settings, "verify"):
            rates = _compare(settings, pictures, turns)
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "queue_vs_batched": rates["worker"] / rates["loop in batches"],
        "queue_vs_single": rates["worker"] / rates["loop, one pair at a time"],
        "queue_vs_batched_in_memory": rates["worker"] / rates["loop in batches, from memory"],
        "pairs_per_s": rates,
    }
    table = Table("", "pairs/s", title=f"the verify worker, {figures['machine']}")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}")
    out.print(table)
    for name in ("queue_vs_batched", "queue_vs_single", "queue_vs_batched_in_memory"):
        out.print(f"{name} {figures[name]:.3f}")
    return figures


@dataclass(frozen=True)
class Stored:
    """A run whose pictures lie in the store and are not judged yet."""

    folder: RunFolder
    batches: Sequence[ProposalBatch]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each picture."""
        for batch in self.batches:
            for proposal in batch.proposals:
                yield proposal.id, proposal.prompt.text


def _compare(settings: Settings, pictures: int, turns: int) -> dict[str, float]:
    store, loop = store_of(settings), Loop(settings.verifier.model)
    run = dispatch.open_run(store, broker_of(settings), settings, "kept").read()
    some = list(_scenes(run, pictures))
    first = _store(settings, store, "warm-up", some[: MESSAGE * VERIFY_PROCESSES])
    _judge_by_the_worker(first)
    loop.judge(first, MESSAGE)
    loop.judge(first, 1)
    kept = _store(settings, store, "kept", some)
    in_memory = [(kept.folder.read_image(id), text) for id, text in kept.pairs()]
    fresh = [_store(settings, store, f"turn-{turn}", some) for turn in range(turns)]
    few = pictures // SINGLE_SHARE
    sides: dict[str, tuple[int, Callable[[int], object]]] = {
        "loop in batches": (pictures, lambda turn: loop.judge(kept, MESSAGE)),
        "worker": (pictures, lambda turn: _judge_by_the_worker(fresh[turn])),
        "loop in batches, from memory": (pictures, lambda turn: loop.call(in_memory, MESSAGE)),
        "loop, one pair at a time": (few, lambda turn: loop.judge(kept, 1, few)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name, (_, work) in sides.items():
            started = time.monotonic()
            work(turn)
            seconds[name].append(time.monotonic() - started)
    for name, taken in seconds.items():
        out.print(f"{name}: turns of {[round(s, 2) for s in taken]} s")
    return {name: count * turns / sum(seconds[name]) for name, (count, _) in sides.items()}


def _scenes(run: Run, count: int) -> Iterator[tuple[DetailedPrompt, int, Image.Image]]:
    """Prompts in the taxonomy's words, and renders of them as the pictures."""
    from pipeline.miniature.render import render
    from pipeline.miniature.scenes import sample

    for number, example in enumerate(sample(1, count // PICTURES_PER_PROMPT)):
        base = f"a hand, number {number}"
        prompt = DetailedPrompt(
            id=DetailedPrompt.id_of(run.prompter_digest, base, 0),  # workers refuse others
            base=base,
            index=0,
            text=example.caption,
            category=example.asked.category,
        )
        for image in range(PICTURES_PER_PROMPT):
            yield prompt, seed_of(prompt, image), render(example.scene)


def _store(
    settings: Settings,
    store: ObjectStore,
    name: str,
    scenes: Sequence[tuple[DetailedPrompt, int, Image.Image]],
) -> Stored:
    folder = dispatch.open_run(store, broker_of(settings), settings, name)
    run, batches = folder.read(), []
    for first in range(0, len(scenes), MESSAGE):
        some = scenes[first : first + MESSAGE]
        batch = ProposalBatch.of(
            name, run.proposers[0], run.proposer.sampler, [(p, seed) for p, seed, _ in some]
        )
        for proposal, (_, _, image) in zip(batch.proposals, some, strict=True):
            folder.write_image(proposal.id, encode(Drawing(image, 0), proposal))
        batches.append(batch)
    return Stored(folder, batches)


def _judge_by_the_worker(stored: Stored) -> None:
    """Until the records of every picture are written."""
    for batch in stored.batches:
        app.signature("verify", args=[batch.model_dump(mode="json")], queue="verify").apply_async()
    for batch in stored.batches:
        while not stored.folder.has_records(batch):
            time.sleep(0.02)
        found = len(stored.folder.records_of(batch.id))
        if found != len(batch.proposals):
            raise SystemExit(f"{found} records of {len(batch.proposals)}: see the worker's log")


class Loop:
    """Processor and network as they are published."""

    def __init__(self, model: str) -> None:
        import torch
        import transformers.utils.logging
        from transformers import ViltProcessor

        from pipeline.verifier.network import ViltVerifier

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        processors: Any = ViltProcessor
        self._processor = processors.from_pretrained(folder_of(model, "verifier"))
        networks: Any = ViltVerifier
        folder = folder_of(model, "verifier")
        self._network = networks.from_pretrained(folder, dtype=torch.float32).eval()

    def judge(self, stored: Stored, batch: int, count: int | None = None) -> None:
        """Picture by picture from the store, `batch` of them in a forward pass."""
        left = islice(stored.pairs(), count)
        while some := list(islice(left, batch)):
            self.call([(stored.folder.read_image(id), text) for id, text in some], batch)

    def call(self, pairs: Sequence[tuple[bytes, str]], batch: int) -> None:
        import torch

        for first in range(0, len(pairs), batch):
            some = pairs[first : first + batch]
            inputs = self._processor(
                [Image.open(io.BytesIO(png)).convert("RGB") for png, _ in some],
                [text for _, text in some],
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = self._network(
                    inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
                )
            logits.sigmoid().tolist()


# Aggregation


def aggregations(model: str) -> dict[str, Any]:
    """The table of pipeline/miniature/long_prompts.py."""
    from pipeline.miniature.long_prompts import compare
    from pipeline.verifier import Verifier

    figures = compare(Verifier.load(VerifierConfig(model=model, device="cpu", dtype="float32")))
    for name, rows in figures["auc"].items():
        table = Table("aggregation", "AUC", "95% interval", title=f"{name}, {figures['prompts']}")
        for aggregation, (value, low, high) in rows.items():
            table.add_row(aggregation, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
        out.print(table)
    return figures


if __name__ == "__main__":
    typer.run(main)
