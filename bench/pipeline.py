"""What the queues cost: the whole pipeline beside a plain loop, and orchestration alone.

    python -m bench.pipeline [--json FILE]

1. Whole: the miniature's base prompts through Redis, S3 and three Celery workers, beside one plain
   Python loop that does the same work with the same models and batches (prompt, draw, judge, save
   to the same store). The loop runs before and after, so that a drift of the machine's speed
   shows. Workers are warm and the loop's models are loaded before the clock starts.
2. Alone: the product's tasks, messages and batch sizes with models that do nothing and no
   pictures, at 100, 1,000 and 10,000 base prompts; records go to a folder store.
"""

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import redis
import typer
from rich.console import Console
from rich.table import Table

from pipeline.pictures import decode, encode, sha256
from pipeline.prompter import load_prompter
from pipeline.prompter.budget import budget_of
from pipeline.prompter.dialogue import Request, converse
from pipeline.prompter.near import MemoryNeighbours
from pipeline.types import Answer, BasePrompt, Record
from storage.folder import FolderStore
from storage.runs import RunFolder
from workers import canvas, dispatch
from workers.broker import QUEUES, Broker
from workers.embedded import broker_of, broker_url, services, store_of
from workers.fleet import Crew, Watch, celery_worker
from workers.processes import Child, stop_together
from workers.settings import Settings, load_settings

WARM_UP = ("a red mug", "a key", "a pen", "a bag")
THINGS = ("mug", "bottle", "hammer", "key", "flower", "card", "pen", "brush", "bag", "ball")

out = Console()


@dataclass(frozen=True)
class Rate:
    """Images a second, and how many of them were accepted."""

    images: int
    accepted: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def accepted_per_s(self) -> float:
        return self.accepted / self.seconds


@dataclass(frozen=True)
class Orchestration:
    """What a run of empty stages took."""

    bases: int
    proposals: int
    seconds: float
    redis_peak_bytes: int  # above what Redis held before
    in_flight_bases: int  # at that peak
    redis_left_bytes: int
    redis_left_keys: int
    rss_mb: dict[str, float]  # the largest of each process

    @property
    def proposals_per_s(self) -> float:
        return self.proposals / self.seconds


def main(
    bases: Annotated[int, typer.Option(help="Base prompts of the whole pipeline.")] = 48,
    sizes: Annotated[str, typer.Option(help="Base prompts of orchestration.")] = "100,1000,10000",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measure, print two tables, and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PPV_STATE_DIR"] = folder
        settings = load_settings()
        with services(settings):
            runs = [measure_alone(settings, int(size)) for size in sizes.split(",")]
            loop, whole = measure_whole(settings, bases)
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "pipeline_vs_loop": whole.images_per_s / loop.images_per_s,
        "pipeline_images_per_s": whole.images_per_s,
        "pipeline_accepted_per_s": whole.accepted_per_s,
        "loop_images_per_s": loop.images_per_s,
        "loop_accepted_per_s": loop.accepted_per_s,
        "orchestration_per_s": runs[-1].proposals_per_s,
        "rate_10k_vs_1k": runs[-1].proposals_per_s / runs[max(0, len(runs) - 2)].proposals_per_s,
        "redis_left_bytes": runs[-1].redis_left_bytes,
        "redis_bytes_per_prompt": runs[-1].redis_peak_bytes / max(1, runs[-1].in_flight_bases),
        "orchestration": [asdict(run) for run in runs],
    }
    show(loop, whole, runs)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


def measure_whole(settings: Settings, count: int) -> tuple[Rate, Rate]:
    """The plain loop (twice, taken together) and the pipeline between, on the same work."""
    texts = [f"a hand with a {THINGS[n % len(THINGS)]}, number {n}" for n in range(count)]
    bases = [BasePrompt(text=text) for text in texts]
    loop = PlainLoop(settings)
    loop.work("loop-warm-up", [BasePrompt(text=text) for text in WARM_UP])
    first = loop.work("loop-1", bases)
    whole = pipeline(settings, bases)
    second = loop.work("loop-2", bases)
    both = Rate(
        first.images + second.images,
        first.accepted + second.accepted,
        first.seconds + second.seconds,
    )
    return both, whole


class PlainLoop:
    """What one would write without queues: prompt, draw, judge, save, batch after batch."""

    def __init__(self, settings: Settings) -> None:
        from pipeline.proposer.diffusion import DiffusionProposer
        from pipeline.verifier.vilt import Verifier

        self._settings, self._store = settings, store_of(settings)
        run = dispatch.open_run(self._store, broker_of(settings), settings, "loop-models").read()
        self._proposer = DiffusionProposer.load(run.proposer, run.proposers[0])
        self._verifier = Verifier.load(run.verifier, run.verifier_ref)

    def work(self, name: str, bases: list[BasePrompt]) -> Rate:
        folder = dispatch.open_run(self._store, broker_of(self._settings), self._settings, name)
        run = folder.read()
        started = time.monotonic()
        neighbours = MemoryNeighbours(run.prompter.near_duplicate)
        prompter = load_prompter(run, budget_of(run), neighbours)
        prompts = []
        for base in bases:
            expansion = converse(prompter.expand(base), _nobody)
            folder.write_expansion(base, expansion)
            prompts += expansion.prompts
        images = accepted = 0
        for batch in canvas.batches(run, prompts):
            texts = [proposal.prompt.text for proposal in batch.proposals]
            seeds = [proposal.seed for proposal in batch.proposals]
            drawings = self._proposer.draw(texts, seeds, batch.sampler)
            pairs = list(zip(batch.proposals, drawings, strict=True))
            pngs = [encode(drawing, proposal) for proposal, drawing in pairs]
            for proposal, png in zip(batch.proposals, pngs, strict=True):
                folder.write_image(proposal.id, png)
            pictures = [decode(png).image for png in pngs]
            verdicts = self._verifier.judge(pictures, texts, run.thresholds)
            records = [
                Record(
                    id=proposal.id,
                    run=run.name,
                    proposal=proposal,
                    image=folder.image_key(proposal.id),
                    image_sha256=sha256(png),
                    prompter=run.prompter_ref,
                    verifier=run.verifier_ref,
                    verdict=verdict,
                )
                for proposal, png, verdict in zip(batch.proposals, pngs, verdicts, strict=True)
            ]
            folder.write_records(batch, records)
            images += len(records)
            accepted += sum(verdict.accepted for verdict in verdicts)
        return Rate(images, accepted, time.monotonic() - started)


def _nobody(request: Request) -> Answer:
    raise NotImplementedError("the grammar asks nobody")


def pipeline(settings: Settings, bases: list[BasePrompt]) -> Rate:
    """The product: enqueue, three workers, until the store has every record."""
    store, broker = store_of(settings), Broker(broker_url(settings))
    with Crew(settings) as crew:
        for name, work in (
            ("warm-up", [BasePrompt(text=text) for text in WARM_UP]),
            ("whole", bases),
        ):
            folder = dispatch.open_run(store, broker, settings, name)
            started = time.monotonic()
            watch = Watch(folder, settings, broker, crew, lambda tally: None)
            crew.tend()
            dispatch.enqueue(folder, work, broker, settings.dispatch, watch.glance)
            tally = watch.until_done()
            seconds = time.monotonic() - started
    return Rate(tally.judged, tally.accepted, seconds)


def measure_alone(settings: Settings, count: int) -> Orchestration:
    """The product's tasks and messages with stages that do nothing."""
    url = broker_url(settings)
    client, broker = redis.Redis.from_url(url), Broker(url)
    with tempfile.TemporaryDirectory() as store_folder, ExitStack() as stack:
        store = FolderStore(Path(store_folder))
        workers = [
            celery_worker(settings, queue, "bench.nothing", {"PPV_STORE_URL": store.address})
            for queue in QUEUES
        ]
        stack.callback(stop_together, workers)
        for worker in workers:
            worker.__enter__()
        folder = dispatch.open_run(store, broker, settings, f"alone-{count}")
        warm = dispatch.open_run(store, broker, settings, "alone-warm-up")
        _enqueue_and_wait(warm, 64, broker, settings)

        before = client.info("memory")["used_memory"]
        with _sampling(client, folder) as peak:
            started = time.monotonic()
            _enqueue_and_wait(folder, count, broker, settings)
            seconds = time.monotonic() - started
        time.sleep(1)
        run = folder.read()
        return Orchestration(
            bases=count,
            proposals=count * run.proposals_per_base,
            seconds=seconds,
            redis_peak_bytes=peak.bytes - before,
            in_flight_bases=peak.bases,
            redis_left_bytes=client.info("memory")["used_memory"] - before,
            redis_left_keys=client.dbsize(),
            rss_mb={"bench": peak_rss_mb(os.getpid())} | _rss_of(workers),
        )


def _enqueue_and_wait(folder: RunFolder, count: int, broker: Broker, settings: Settings) -> None:
    bases = (BasePrompt(text=f"a hand with a mug, number {n}") for n in range(count))
    dispatch.enqueue(folder, bases, broker, settings.dispatch)
    run = folder.read()
    each = settings.dispatch.bases_per_message
    messages = [min(each, count - start) for start in range(0, count, each)]
    batches = sum(
        -(-n * run.proposals_per_base // run.proposer.images_per_message) for n in messages
    )
    while sum(1 for _ in folder.record_batches()) < batches:
        time.sleep(0.1)


class _Peak:
    bytes = 0
    bases = 0


@contextmanager
def _sampling(client: redis.Redis, folder: RunFolder) -> Iterator[_Peak]:
    """The most memory that Redis used meanwhile, and the base prompts under way at that time."""
    peak, done = _Peak(), threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            used = client.info("memory")["used_memory"]
            if used > peak.bytes:
                waiting = [client.llen(queue) for queue in QUEUES]
                unacked = client.hlen("unacked")
                # 16 base prompts a prompt message, 4 a batch of 32 proposals.
                peak.bytes, peak.bases = used, 16 * waiting[0] + 4 * (sum(waiting[1:]) + unacked)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _rss_of(workers: list[Child]) -> dict[str, float]:
    """The largest resident memory of each worker's child, which does the work."""
    found = {}
    for worker in workers:
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        found[worker.name] = max(peak_rss_mb(int(pid)) for pid in children)
    return found


def peak_rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def show(loop: Rate, whole: Rate, runs: list[Orchestration]) -> None:
    table = Table(title="the whole pipeline beside a plain loop")
    for column in ("", "images", "s", "images/s", "accepted/s", "ratio"):
        table.add_column(column, justify="right")
    for name, rate in (("plain loop", loop), ("pipeline", whole)):
        table.add_row(
            name,
            f"{rate.images}",
            f"{rate.seconds:.1f}",
            f"{rate.images_per_s:.2f}",
            f"{rate.accepted_per_s:.2f}",
            f"{rate.images_per_s / loop.images_per_s:.2f}",
        )
    out.print(table)
    table = Table(title="orchestration alone")
    for column in (
        "base prompts",
        "proposals/s",
        "Redis at most",
        "a base prompt",
        "left",
        "keys left",
        "largest RSS, MB (bench, then workers)",
    ):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            f"{run.bases:,}",
            f"{run.proposals_per_s:,.0f}",
            f"{run.redis_peak_bytes:,} B",
            f"{run.redis_peak_bytes / max(1, run.in_flight_bases):,.0f} B",
            f"{run.redis_left_bytes:,} B",
            f"{run.redis_left_keys}",
            " ".join(f"{mb:.0f}" for mb in run.rss_mb.values()),
        )
    out.print(table)


if __name__ == "__main__":
    typer.run(main)
