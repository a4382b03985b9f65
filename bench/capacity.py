"""What a proposal costs the store and the broker, counted, and where each part gives way.

    python -m bench.capacity [--bases 512] [--json FILE]

The product's prompt worker (grammar), and propose and verify workers without models but with
pictures of 20 kB, through real Redis and a real S3 server; each worker's requests pass a gate of
its own that counts them (bench/tollgate.py), and Redis counts its commands. Then what the index of
near-duplicates takes of Redis. docs/capacity.md says what follows for 10, 100 and 1,000 GPUs.
"""

import json
import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from unittest.mock import patch

import redis
import typer
from rich.console import Console
from rich.table import Table

from bench.tollgate import Tollgate
from pipeline.prompter.near import bands
from pipeline.types import BasePrompt
from storage.s3 import S3Store
from workers import dispatch
from workers.broker import QUEUES, Broker
from workers.embedded import Embedded, broker_url, services
from workers.fleet import Watch, celery_worker
from workers.neighbours import RedisNeighbours
from workers.processes import stop_together
from workers.settings import load_settings

IDLE_S = 10.0
THRESHOLD = 0.85  # the default of prompter.near_duplicate

out = Console()


@dataclass(frozen=True)
class Cost:
    """Of one proposal, in the default settings."""

    proposals: int
    requests: dict[str, dict[str, float]]  # to the store: by process, by verb and kind
    store_bytes: dict[str, dict[str, float]]  # but for the pictures, whose size is the model's
    redis_commands: dict[str, float]  # by name, those in scripts too
    redis_bytes: float  # both ways
    redis_cpu_us: float
    redis_connections: int  # of three workers and the dispatcher
    idle_commands_per_s: float  # of three workers that have nothing to do
    near_mb: dict[int, float]  # of Redis, the index of near-duplicates after so many prompts


def main(
    bases: Annotated[int, typer.Option(help="Base prompts; 8 proposals each.")] = 512,
    prompts: Annotated[int, typer.Option(help="In the index of near-duplicates.")] = 1_000_000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Count, print two tables, and write the figures."""
    cost = count(bases, prompts)
    show(cost)
    if json_file:
        json_file.write_text(json.dumps(asdict(cost), indent=1))


def count(bases: int, prompts: int) -> Cost:
    os.environ["BENCH_DRAW_S"] = os.environ["BENCH_JUDGE_S"] = "0"
    with TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ["PPV_STATE_DIR"] = folder
        settings = load_settings()
        stack.enter_context(services(settings))
        embedded = Embedded.model_validate_json((Path(folder) / "embedded.json").read_text())
        gates = {
            name: stack.enter_context(Tollgate(embedded.s3_port))
            for name in (*QUEUES, "dispatcher")
        }
        client = redis.Redis.from_url(broker_url(settings))
        workers = [
            celery_worker(
                settings,
                queue,
                "workers" if queue == "prompt" else "bench.sleeping",
                {
                    "PPV_STORE_URL": "s3://ppv",
                    "PPV_S3__ENDPOINT": f"http://127.0.0.1:{gates[queue].port}",
                    "PPV_S3__ACCESS_KEY": embedded.s3_access_key,
                    "PPV_S3__SECRET_KEY": embedded.s3_secret_key,
                },
            )
            for queue in QUEUES
        ]
        stack.callback(stop_together, workers)
        for worker in workers:
            worker.__enter__()
        s3 = embedded.s3.model_copy(
            update={"endpoint": f"http://127.0.0.1:{gates['dispatcher'].port}"}
        )
        store, broker = S3Store(s3, "ppv"), Broker(broker_url(settings))

        def work(name: str, numbers: range) -> int:
            run = dispatch.open_run(store, broker, settings, name)
            watch = Watch(run, settings, broker)
            prompts = (BasePrompt(text=f"a hand with a mug, number {n}") for n in numbers)
            dispatch.enqueue(run, prompts, broker, settings.dispatch, watch.glance)
            return watch.until_done().judged

        work("warm-up", range(64))
        before = _redis(client)
        time.sleep(IDLE_S)
        idle = _redis(client)
        idle.subtract(before)
        for gate in gates.values():
            gate.counts.clear()
            gate.bytes.clear()
        before, started = _redis(client), time.monotonic()
        proposals = work("counted", range(1000, 1000 + bases))
        idles, after = (time.monotonic() - started) / IDLE_S, _redis(client)
        connections = client.info("clients")["connected_clients"]
        spent = {
            name: (after[name] - before[name] - idle[name] * idles) / proposals for name in after
        }
        stop_together(workers)
        return Cost(
            proposals=proposals,
            requests=_per(proposals, {name: gate.counts for name, gate in gates.items()}),
            store_bytes=_per(proposals, {name: gate.bytes for name, gate in gates.items()}),
            redis_bytes=spent.pop("bytes"),
            redis_cpu_us=spent.pop("cpu_us"),
            redis_commands={name: n for name, n in sorted(spent.items()) if n > 0.005},
            redis_connections=connections,
            idle_commands_per_s=(idle.total() - idle["bytes"] - idle["cpu_us"]) / IDLE_S,
            near_mb=_near_mb(client, prompts),
        )


def _per(proposals: int, counted: dict[str, Counter[str]]) -> dict[str, dict[str, float]]:
    return {
        process: {what: count / proposals for what, count in sorted(counts.items())}
        for process, counts in counted.items()
    }


def _redis(client: redis.Redis) -> Counter[str]:
    """What it was told until now: commands by name, bytes both ways, and its CPU time."""
    stats = client.info("stats")
    used = client.info("cpu")
    found = Counter[str](
        bytes=stats["total_net_input_bytes"] + stats["total_net_output_bytes"],
        cpu_us=round(1e6 * (used["used_cpu_user"] + used["used_cpu_sys"])),
    )
    for name, each in client.info("commandstats").items():
        # The dispatcher looks at the queues by the clock, and `info` is ours.
        if (command := name.removeprefix("cmdstat_")) not in ("llen", "info"):
            found[command] = each["calls"]
    return found


def _near_mb(client: redis.Redis, prompts: int) -> dict[int, float]:
    """The product's index, given random bands in place of texts, at a twentieth and in whole."""
    count = len(bands("a hand with a mug", THRESHOLD))
    with patch("workers.neighbours.bands", lambda text, _: [os.urandom(6) for _ in range(count)]):
        index = RedisNeighbours(client, "near", THRESHOLD, "")
        before, found = client.info("memory")["used_memory"], {}
        for start in range(0, prompts, 250):
            index.claim([(f"{number:012x}", "") for number in range(start, start + 250)])
            if (there := start + 250) in (prompts // 20, prompts):
                found[there] = (client.info("memory")["used_memory"] - before) / 2**20
        client.flushdb()
    return found


def show(cost: Cost) -> None:
    table = Table(title=f"to the store, a proposal ({cost.proposals:,} counted)")
    for column in ("process", "what", "requests", "bytes"):
        table.add_column(column, justify="right" if column in ("requests", "bytes") else "left")
    for process, requests in cost.requests.items():
        for what, each in requests.items():
            table.add_row(process, what, f"{each:.4f}", f"{cost.store_bytes[process][what]:,.0f}")
        table.add_section()
    out.print(table)
    commands = ", ".join(f"{name} {n:.2f}" for name, n in cost.redis_commands.items())
    out.print(
        f"Redis: {cost.redis_bytes:,.0f} bytes, {cost.redis_cpu_us:.0f} us of CPU and "
        f"{sum(cost.redis_commands.values()):.1f} commands "
        f"a proposal ({commands}); {cost.idle_commands_per_s:.1f} commands/s of idle workers; "
        f"{cost.redis_connections} connections"
    )
    for prompts, mb in cost.near_mb.items():
        out.print(f"index of near-duplicates after {prompts:,} prompts: {mb:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
