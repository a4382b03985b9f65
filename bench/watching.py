"""What watching costs: CPU of a worker and of Redis for what is counted of a message, in all.

    python -m bench.watching [--json FILE]

Each round is what the tasks and signals of one verified batch of 64 pictures count, said in one
call to a Redis of our own. CPU time, not the clock's, so that other work beside it matters little.
"""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from rich.table import Table

from workers.broker import Broker
from workers.embedded import broker_of, services
from workers.exporter import Fleet
from workers.metrics import COUNTERS, VERDICTS, Ledger, Line
from workers.settings import Settings

IMAGES = 64
CATEGORIES = ("power", "pinch", "tripod", "lateral", "hook", "platform")

out = Console()


def main(
    messages: Annotated[int, typer.Option(help="Rounds.")] = 5000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Count, scrape, and say what both took."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(state_dir=Path(folder), store_url=f"file://{folder}/store")
        with services(settings), closing(broker_of(settings)) as broker:
            figures = measure(broker, messages)
    table = Table(title="What watching costs")
    table.add_column("")
    table.add_column("", justify="right")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,.1f}")
    out.print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


def measure(broker: Broker, messages: int) -> dict[str, float]:
    ledger = Ledger(Line(lambda: broker.client))
    registry = CollectorRegistry()
    registry.register(Fleet(broker, CATEGORIES))

    def message() -> None:
        ledger.count("wait_seconds_count", queue="verify")
        ledger.count("wait_seconds_sum", 1.5, queue="verify")
        for _ in range(2):  # the model is given 32 at once
            ledger.count("busy_seconds", 0.2, queue="verify", worker="verify@host")
            ledger.count("batch_size_count", queue="verify")
            ledger.count("batch_size_sum", 32, queue="verify")
        for category in CATEGORIES:
            for verdict in VERDICTS:
                ledger.count("judged", 5, category=category, proposer="base", verdict=verdict)
        ledger.count("messages", queue="verify", outcome="done")
        ledger.say("run")

    def scrape() -> None:
        generate_latest(registry)

    ours, redis = cpu_us(broker, message, messages)
    page, redis_page = cpu_us(broker, scrape, 100)
    return {
        "a message: worker's CPU, us": ours,
        "a message: Redis' CPU, us": redis,
        "an image: both, us": (ours + redis) / IMAGES,
        "a scrape: ppv metrics' CPU, us": page,
        "a scrape: Redis' CPU, us": redis_page,
        "counters in Redis, bytes": float(broker.client.memory_usage(COUNTERS) or 0),
    }


def cpu_us(broker: Broker, work: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Our CPU time and Redis', a round."""

    def redis_s() -> float:
        used = broker.client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    work()
    before, ours = redis_s(), time.process_time()
    for _ in range(rounds):
        work()
    ours = time.process_time() - ours
    return ours / rounds * 1e6, (redis_s() - before) / rounds * 1e6


if __name__ == "__main__":
    typer.run(main)
