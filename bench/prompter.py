"""What a prompt worker adds to its endpoint: beside the plain client, from the cache, under faults.

    python -m bench.prompter [--json FILE]

1. Beside the client: one prompt worker, as `ppv run` starts it, and the plain openai client in a
   bare pool of 64 threads ask the same questions of a local server that answers in 300 ms. The
   client goes before and after, so that a drift of the machine's speed shows. The worker may have
   80 claims: one lasts until its answer is kept, so that fewer than 64 are at the server, as with
   the client; both means are printed.
2. From the cache: a run whose questions are all answered, by the same worker.
3. Under faults: a tenth of the answers fail, and the worker is killed with -9 half way.

The store is a folder, as the cost of a store is no prompter's; --s3 takes the embedded S3 server.
"""

import itertools
import json
import os
import platform
import signal
import string
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import openai
import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from bench.pipeline import peak_rss_mb
from bench.provider import WORDS, Provider
from pipeline.prompter.budget import budget_of
from pipeline.prompter.dialogue import Request
from pipeline.prompter.near import MemoryNeighbours
from pipeline.prompter.openai import OpenAIPrompter
from pipeline.types import BasePrompt
from storage.progress import Progress
from storage.runs import RunFolder
from workers import dispatch
from workers.embedded import broker_of, services, store_of
from workers.fleet import celery_worker
from workers.mending import Resending
from workers.processes import Child
from workers.settings import Settings, load_settings

POOL = 64
LATENCY_S = 0.3
CLAIMS = 80  # one lasts from before a request until its answer is kept: longer than the request

out = Console()


@dataclass(frozen=True)
class Cached:
    """A run whose answers are all known."""

    bases: int
    seconds: float
    requests: int  # that were sent all the same
    rss_mb_half: float  # of all the worker's processes, half way and at the end
    rss_mb: float


@dataclass(frozen=True)
class Faults:
    """A run in which a tenth of the answers fail and the worker is killed."""

    bases: int
    lost: int
    answered_twice: int
    repeated: int  # answers on their way when the worker died, which a gateway gave again for free
    seconds: float


def main(
    bases: Annotated[int, typer.Option(help="Base prompts beside the client.")] = 2000,
    cached: Annotated[int, typer.Option(help="Base prompts from the cache.")] = 10_000,
    faulty: Annotated[int, typer.Option(help="Base prompts under faults.")] = 1000,
    s3: Annotated[
        bool, typer.Option("--s3", help="Keep things in the embedded S3 server.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measure, print a table, and write the figures."""
    with tempfile.TemporaryDirectory() as place, Provider(latency_s=LATENCY_S) as provider:
        settings = _settings(Path(place), provider, s3)
        with services(settings):
            client, prompter, most = beside_the_client(settings, provider, bases)
            warm = from_the_cache(settings, provider, cached)
            faults = under_faults(settings, provider, faulty)
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "store": "embedded S3" if s3 else "folder",
        "prompter_vs_client": prompter / client,
        "client_per_s": client,
        "client_under_way": client * LATENCY_S,  # at the server, on average
        "prompter_per_s": prompter,
        "prompter_under_way": prompter * LATENCY_S,
        "most_under_way": most,
        "cached_10k_s": warm.seconds * 10_000 / warm.bases,
        "cached": warm.__dict__,
        "faults": faults.__dict__,
    }
    show(figures, warm, faults)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


def _settings(place: Path, provider: Provider, s3: bool) -> Settings:
    os.environ |= {
        "OPENAI_API_KEY": "sk-bench",
        "PPV_STATE_DIR": str(place),
        "PPV_PROMPTER__KIND": "openai",
        "PPV_PROMPTER__MODEL": "bench",
        "PPV_PROMPTER__BASE_URL": provider.url,
        "PPV_PROPOSER__MODEL": str(place / "base"),
        "PPV_VERIFIER__MODEL": str(place / "verifier"),
        "PPV_DISPATCH__IN_FLIGHT": "100000000",  # nobody draws
        "PPV_ENDPOINT__CONCURRENCY": str(CLAIMS),
    }
    _save_tokenizers(place / "base" / "tokenizer", 77)
    _save_tokenizers(place / "verifier", 40)
    (place / "base" / "model_index.json").write_text('{"tokenizer": ["", "BertTokenizer"]}')
    (place / "verifier" / "config.json").write_text('{"max_position_embeddings": 40}')
    for model in ("base", "verifier"):
        save_file({"none": np.zeros(1, np.float32)}, place / model / "model.safetensors")
    if not s3:
        os.environ["PPV_STORE_URL"] = (place / "store").as_uri()
    return load_settings()


def _save_tokenizers(folder: Path, limit: int) -> None:
    """One that knows the provider's words, as the public ones do, so that texts fit as usual."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *WORDS]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    BertTokenizer(vocab=vocabulary, model_max_length=limit).save_pretrained(folder)


def beside_the_client(
    settings: Settings, provider: Provider, count: int
) -> tuple[float, float, int]:
    """Base prompts a second by the client and by the worker, and its most requests at once."""
    with worker(settings) as _:
        _work(settings, "warm-up", _bases("warm-up", 200))
        before = plain_client(settings, provider, "before", count)
        provider.control(forget=True)
        seconds = _work(settings, "live", _bases("live", count))
        most = provider.counts()["most_under_way"]
        after = plain_client(settings, provider, "after", count)
    return 2 * count / (before + after), count / seconds, most


def plain_client(settings: Settings, provider: Provider, name: str, count: int) -> float:
    """Seconds that the openai client takes, from a bare pool of threads."""
    run = dispatch.new_run(settings, name, store_of(settings))
    prompter = OpenAIPrompter(run, provider.url, budget_of(run), MemoryNeighbours(1.0))
    requests: list[Request] = []
    for base in _bases(name, count):
        requests += next(prompter.expand(base))
    client = openai.OpenAI(base_url=provider.url, max_retries=0, timeout=60)
    entries: TypeAdapter[Any] = TypeAdapter(dict[str, list[prompter.description]])  # type: ignore[name-defined]

    def ask(request: Request) -> object:
        completion = client.chat.completions.create(**request.body)
        return entries.validate_json(completion.choices[0].message.content or "")

    with ThreadPoolExecutor(POOL) as pool:
        list(pool.map(ask, requests[:POOL]))  # opens the connections
        started = time.monotonic()
        list(pool.map(ask, requests))
        return time.monotonic() - started


def from_the_cache(settings: Settings, provider: Provider, count: int) -> Cached:
    """The same base prompts twice, in two runs; the second finds every answer."""
    provider.control(latency_s=0)
    with worker(settings) as child:
        _work(settings, "first", _bases("cached", count))
        asked = provider.counts()["requests"]
        memory: list[float] = []
        seconds = _work(settings, "second", _bases("cached", count), memory, child)
        requests = provider.counts()["requests"] - asked
    provider.control(latency_s=LATENCY_S)
    return Cached(count, seconds, requests, memory[len(memory) // 2], memory[-1])


def under_faults(settings: Settings, provider: Provider, count: int) -> Faults:
    """Kill -9 of the worker and all its processes, once half is done; then another goes on."""
    provider.control(forget=True, fail=0.1, faults="429,500,drop", retry_after_s=0.2)
    broker, started = broker_of(settings), time.monotonic()
    folder = dispatch.open_run(store_of(settings), broker, settings, "faulty")
    with worker(settings) as child:
        dispatch.enqueue(folder, _bases("faulty", count), broker, settings.dispatch)
        while _done(folder) < count / 2:
            time.sleep(0.05)
        for process in _processes(child):
            os.kill(process, signal.SIGKILL)
    with worker(settings):
        last, silent_since = -1, time.monotonic()
        while (done := _done(folder)) < count and time.monotonic() - started < 300:
            if done != last:
                last, silent_since = done, time.monotonic()
            elif time.monotonic() - silent_since > 20:  # what a Watch does, with its own patience
                progress = Progress(folder)
                progress.update()
                resending = Resending(folder, progress, broker, settings.dispatch)
                while not resending.push():
                    time.sleep(0.05)
                silent_since = time.monotonic()
            time.sleep(0.2)
    counts = provider.counts()
    provider.control(fail=0.0)
    return Faults(
        bases=count,
        lost=count - _done(folder),
        answered_twice=counts["answered_twice"],
        repeated=counts["repeated"],
        seconds=time.monotonic() - started,
    )


@contextmanager
def worker(settings: Settings) -> Iterator[Child]:
    """One prompt worker, as `ppv run` starts it."""
    with ExitStack() as stack:
        child = celery_worker(settings, "prompt")
        yield stack.enter_context(child)


def _work(
    settings: Settings,
    name: str,
    bases: Iterator[BasePrompt],
    memory: list[float] | None = None,
    child: Child | None = None,
) -> float:
    """Seconds from the first message until every base prompt has its prompts in the store."""
    broker = broker_of(settings)
    folder = dispatch.open_run(store_of(settings), broker, settings, name)
    started = time.monotonic()

    def look() -> None:
        if memory is not None and child is not None:
            memory.append(sum(peak_rss_mb(process) for process in _processes(child)))

    total = dispatch.enqueue(folder, bases, broker, settings.dispatch, look).sent
    while _done(folder) < total:
        look()
        time.sleep(0.1)
    seconds = time.monotonic() - started
    broker.client.delete("propose")  # nobody draws
    return seconds


def _done(folder: RunFolder) -> int:
    return sum(1 for _ in folder.prompted_ids()) + sum(1 for _ in folder.failed_ids())


def _bases(name: str, count: int) -> Iterator[BasePrompt]:
    for number in itertools.islice(itertools.count(), count):
        yield BasePrompt(text=f"a hand holding a mug, {name} {number}")


def _processes(child: Child) -> list[int]:
    """The worker and its children."""
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    return [child.pid, *map(int, children)]


def show(figures: dict[str, Any], warm: Cached, faults: Faults) -> None:
    table = Table(title=f"one prompt worker, store: {figures['store']}")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        (f"plain client, pool of {POOL}, base prompts/s", f"{figures['client_per_s']:.1f}"),
        ("prompt worker, base prompts/s", f"{figures['prompter_per_s']:.1f}"),
        ("ratio", f"{figures['prompter_vs_client']:.2f}"),
        ("requests at the server, client's mean", f"{figures['client_under_way']:.0f}"),
        ("the worker's mean", f"{figures['prompter_under_way']:.0f}"),
        ("the worker's most", f"{figures['most_under_way']}"),
        (f"{warm.bases:,} base prompts from the cache", f"{warm.seconds:.1f} s"),
        ("requests sent meanwhile", f"{warm.requests}"),
        ("memory of its processes, half way and at the end",
         f"{warm.rss_mb_half:.0f} and {warm.rss_mb:.0f} MB"),
        (f"of {faults.bases:,} under faults and kill -9, lost", f"{faults.lost}"),
        ("answered twice", f"{faults.answered_twice}"),
        ("given again by the provider, free of charge", f"{faults.repeated}"),
    ):  # fmt: skip
        table.add_row(name, value)
    out.print(table)


if __name__ == "__main__":
    typer.run(main)
