"""A million base prompts, and two hosts: where the dispatcher, Redis and the looking give way.

    python -m bench.scale [--bases 1000000] [--json FILE]

1. Two hosts (bench/hosts.py): stages that sleep, on one network namespace and on two.
2. The million: the product's dispatcher, messages, queues and tasks on a real Redis and real
   Celery workers, with stages that do nothing and a store that counts (bench/rows.py). One
   proposal a base prompt, 64 of them a message. Then the run is resumed when all of it is done,
   and when the half that was written last is gone; what is sent again then is thrown away.
"""

import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import redis
import typer
from rich.console import Console
from rich.table import Table

from bench import rows
from bench.hosts import Hosts, measure_hosts, why_not
from bench.pipeline import peak_rss_mb
from pipeline.types import BasePrompt, Batch
from workers import canvas, dispatch
from workers.broker import QUEUES, Broker
from workers.embedded import broker_url, services
from workers.fleet import Watch, celery_worker
from workers.mending import Resending
from workers.processes import stop_together
from workers.settings import load_settings, override

RUN = "million"
IMAGES_PER_MESSAGE = 64
SETTINGS = (
    "prompter.prompts_per_base=1",
    "proposer.images_per_prompt=1",
    f"proposer.images_per_message={IMAGES_PER_MESSAGE}",
    f"dispatch.bases_per_message={IMAGES_PER_MESSAGE}",
)
_EVERY_S = 1.0

out = Console()


@dataclass(frozen=True)
class Sample:
    """A moment of a run."""

    s: float  # since it began
    done: int  # base prompts whose record is there
    cpu_s: float  # that dispatcher, workers and Redis have used


@dataclass
class Million:
    """What a run of empty stages took."""

    bases: int
    seconds: float = 0.0
    dispatcher_mb: float = 0.0
    redis_mb: float = 0.0
    last_vs_first: float = 0.0  # base prompts a second, of the last tenth and of the first
    last_vs_first_cpu: float = 0.0  # base prompts a CPU second, which other work hardly changes
    tenths_per_s: list[float] = field(default_factory=list)
    resume_s: float = 0.0
    resume_cpu_s: float = 0.0
    resume_mb: float = 0.0
    resume_half_s: float = 0.0
    resume_half_cpu_s: float = 0.0
    resume_half_mb: float = 0.0
    cpu_us: dict[str, float] = field(default_factory=dict)  # a base prompt, by process
    requests: dict[str, int] = field(default_factory=dict)  # to the store, until all was done

    @property
    def per_s(self) -> float:
        return self.bases / self.seconds


def main(
    bases: Annotated[int, typer.Option(help="Base prompts.")] = 1_000_000,
    log: Annotated[Path | None, typer.Option(help="Append a line now and then.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measure, print two tables, and write the figures."""
    hosts, refused = [], why_not()
    if refused:
        out.print(f"two hosts are not measured: {refused}")
    else:
        hosts = [_in_a_process(measure_hosts, count)["result"] for count in (1, 2)]
        show_hosts(hosts)
    million = measure_million(bases, log)
    show(million)
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        **asdict(million),
        "two_hosts_vs_one": hosts[1].images_per_s / hosts[0].images_per_s if hosts else None,
        "hosts": [asdict(each) for each in hosts],
    }
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


def measure_million(bases: int, log: Path | None) -> Million:
    """Enqueue and work, then resume; each in a process of its own, as a user would."""
    measured = Million(bases)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store_folder = Path(folder) / "objects"
        store_folder.mkdir()
        os.environ[rows.FOLDER] = str(store_folder)
        os.environ["PPV_STATE_DIR"] = folder
        os.environ["PPV_STORE_URL"] = store_folder.as_uri()  # so that no S3 server is started
        for each in SETTINGS:
            override(each)
        settings = load_settings()
        children = stack.enter_context(services(settings))
        client = redis.Redis.from_url(broker_url(settings))
        store = rows.CountingStore(store_folder)

        workers = [celery_worker(settings, queue, "bench.rows") for queue in QUEUES]
        stack.callback(stop_together, workers)
        for worker in workers:
            worker.__enter__()
        pids = {child.name: child.pid for child in (*children, *workers)}
        _in_a_process(_work, 1024, "warm-up")
        warm = store.written("records")

        client.config_resetstat()  # and with it the peak
        samples: list[Sample] = []
        before = {name: _cpu_s([pid]) for name, pid in pids.items()}
        with _sampling(store, warm, [*pids.values()], samples, log) as sampled:
            ended = _in_a_process(_work, bases, RUN, pids=sampled)
        used = {name: _cpu_s([pid]) - before[name] for name, pid in pids.items()}
        used["dispatcher"] = ended["cpu_s"]
        measured.cpu_us = {name: seconds / bases * 1e6 for name, seconds in used.items()}
        measured.seconds, measured.dispatcher_mb = ended["seconds"], ended["mb"]
        measured.redis_mb = client.info("memory")["used_memory_peak"] / 2**20
        measured.requests = store.requests()
        _rate(measured, samples)
        stop_together(workers)

        ended = _in_a_process(_resume, RUN)
        assert ended["result"] == 0, ended
        measured.resume_s, measured.resume_cpu_s = ended["seconds"], ended["cpu_s"]
        measured.resume_mb = ended["mb"]
        for kind in ("prompts", "records"):
            store.forget_half(kind)
        with _throwing_away(client):
            ended = _in_a_process(_resume, RUN)
        assert ended["result"] > 0, ended
        measured.resume_half_s, measured.resume_half_cpu_s = ended["seconds"], ended["cpu_s"]
        measured.resume_half_mb = ended["mb"]
    return measured


def _in_a_process(
    work: Callable[..., Any], *arguments: object, pids: list[int] | None = None
) -> dict[str, Any]:
    """The result of `work`, done in a fresh process, with that one's seconds and peak memory."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(there, work, arguments))
    process.start()
    there.close()
    if pids is not None:
        pids.append(process.pid or 0)
    ended: dict[str, Any] = here.recv()  # EOFError if it died
    process.join()
    return ended


def _report(pipe: Any, work: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    started = time.monotonic()
    result = work(*arguments)
    seconds = time.monotonic() - started
    pipe.send(
        {
            "result": result,
            "seconds": seconds,
            "cpu_s": time.process_time(),
            "mb": peak_rss_mb(os.getpid()),
        }
    )


def _work(count: int, run: str) -> int:
    """As `ppv run` does: enqueue, look, wait until all is done."""
    settings = load_settings()
    broker = Broker(broker_url(settings))
    folder = dispatch.open_run(_store(), broker, settings, run)
    watch = Watch(folder, settings, broker)
    bases = (BasePrompt(text=f"a hand with a mug, number {number}") for number in range(count))
    dispatch.enqueue(folder, bases, broker, settings.dispatch, watch.glance)
    return watch.until_done().judged


def _resume(run: str) -> int:
    """As `ppv resume` does, until all that is missing has been sent: in so many messages."""
    settings = load_settings()
    broker = Broker(broker_url(settings))
    folder = dispatch.RunFolder(_store(), run)
    dispatch.close_input(folder, broker)
    watch = Watch(folder, settings, broker)
    if watch.progress.update().finished:
        return 0
    anyhow = settings.dispatch.model_copy(update={"in_flight": 2**40})  # since nobody works on it
    resending = Resending(folder, watch.progress, broker, anyhow)
    sent, send = 0, canvas.send

    def count(batch: Batch) -> None:
        nonlocal sent
        send(batch)
        sent += 1

    with patch("workers.canvas.send", count):
        while not resending.push():
            watch.look()
    return sent


def _store() -> rows.CountingStore:
    return rows.CountingStore(Path(os.environ[rows.FOLDER]))


@contextmanager
def _sampling(
    store: rows.CountingStore,
    before: int,
    pids: list[int],
    samples: list[Sample],
    log: Path | None,
) -> Iterator[list[int]]:
    """before: records of earlier runs. pids: of whoever works; it gives them, to be added to."""
    over, started, cpu = threading.Event(), time.monotonic(), _cpu_s(pids)

    def sample() -> None:
        while not over.wait(_EVERY_S):
            done = (store.written("records") - before) * IMAGES_PER_MESSAGE
            samples.append(Sample(time.monotonic() - started, done, _cpu_s(pids) - cpu))
            if log and len(samples) % 30 == 0:
                with log.open("a") as file:
                    file.write(f"{time.strftime('%H:%M:%S')} {samples[-1]}\n")

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield pids
    finally:
        over.set()
        thread.join()


def _cpu_s(pids: list[int]) -> float:
    """What processes and their children have used of the cores."""
    ticks = 0
    for pid in pids:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:  # it has ended
            continue
        for each in (pid, *children):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


def _rate(measured: Million, samples: list[Sample]) -> None:
    """Rates of each tenth, by the samples next to where it ends; from the first record on."""
    samples = samples[sum(each.done == 0 for each in samples) :]
    ends = [measured.bases * n / 10 for n in range(11)]
    marks = [min(samples, key=lambda each: abs(each.done - end)) for end in ends]
    tenths = [(a, b) for a, b in pairwise(marks) if b.s > a.s]
    measured.tenths_per_s = [(b.done - a.done) / (b.s - a.s) for a, b in tenths]
    per_cpu_s = [(b.done - a.done) / (b.cpu_s - a.cpu_s) for a, b in tenths]
    measured.last_vs_first = measured.tenths_per_s[-1] / measured.tenths_per_s[0]
    measured.last_vs_first_cpu = per_cpu_s[-1] / per_cpu_s[0]


@contextmanager
def _throwing_away(client: redis.Redis) -> Iterator[None]:
    """What is sent meanwhile is taken at once, and nothing is made of it."""
    over = threading.Event()

    def take() -> None:
        while not over.wait(0.01):
            client.delete(*QUEUES)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def show(million: Million) -> None:
    table = Table(title=f"{million.bases:,} base prompts, stages that do nothing")
    for column in ("", ""):
        table.add_column(column, justify="right")
    lines = {
        "base prompts/s": f"{million.per_s:,.0f}",
        "of each tenth": " ".join(f"{rate:,.0f}" for rate in million.tenths_per_s),
        "last tenth / first": f"{million.last_vs_first:.2f}",
        "the same, by CPU seconds": f"{million.last_vs_first_cpu:.2f}",
        "CPU of a base prompt": ", ".join(
            f"{name.removeprefix('worker-')} {us:.0f} us" for name, us in million.cpu_us.items()
        ),
        "dispatcher at most": f"{million.dispatcher_mb:.0f} MB",
        "Redis at most": f"{million.redis_mb:.1f} MB",
        "resumed when all was done": f"{million.resume_s:.0f} s, {million.resume_cpu_s:.0f} s of "
        f"CPU, {million.resume_mb:.0f} MB",
        "resumed at half": f"{million.resume_half_s:.0f} s, {million.resume_half_cpu_s:.0f} s of "
        f"CPU, {million.resume_half_mb:.0f} MB",
    }
    for name, value in lines.items():
        table.add_row(name, value)
    out.print(table)


def show_hosts(hosts: list[Hosts]) -> None:
    table = Table(title="hosts with a worker a queue, stages that sleep")
    for column in ("hosts", "images/s", "of one", "MB over each cable", "connections to Redis"):
        table.add_column(column, justify="right")
    for each in hosts:
        table.add_row(
            f"{each.hosts}",
            f"{each.images_per_s:.2f}",
            f"{each.images_per_s / hosts[0].images_per_s:.2f}",
            " ".join(f"{mb:.0f}" for mb in each.veth_mb),
            " ".join(map(str, each.redis_connections)),
        )
    out.print(table)


if __name__ == "__main__":
    typer.run(main)
