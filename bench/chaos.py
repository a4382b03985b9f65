"""A real run while everything under it breaks: what is lost, and how long until it goes on.

    python -m bench.chaos --seed N [--faults 100] [--json FILE]

Celery workers, Redis with an append-only file and an S3 server run as processes of this script's
own (bench/faults.py), and base prompts are fed to them, as `ppv run` would, until the last fault
is over. One fault after the other, drawn from the seed. Then nothing more is enqueued, the run is
seen to its end, and all that the store holds is read and held against what was asked for
(bench/audit.py).

- recovery: from the end of a fault to the next new record.
- held: from the end of a fault until all that workers held when it began has its records. After a
  worker's or a child's death the next fault waits for that, otherwise only for the next record.
- redone: pictures whose drawing or judging was begun more than once, of all that was begun.

Pictures are drawn and judged by stand-ins that take as long as small models would; `--models
miniature` takes the real ones. Root is needed to cut a network and to fill a disk.
"""

import json
import logging
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.audit import Found, audit
from bench.faults import Fleet, Strike
from pipeline.errors import ServiceError
from pipeline.types import BasePrompt, Record
from storage.runs import RunFolder
from workers import dispatch
from workers.broker import Broker
from workers.embedded import BUCKET, broker_of, store_of
from workers.fleet import Watch
from workers.settings import Settings, load_settings

RUN = "chaos"
IMAGES_PER_MESSAGE = 4
THINGS = ("mug", "bottle", "hammer", "key", "flower", "card", "pen", "brush", "bag", "ball")

DECK: dict[str, tuple[int, Callable[[Fleet], Strike]]] = {
    "kill worker": (6, Fleet.kill_worker),
    "kill child": (7, Fleet.kill_child),
    "kill redis": (5, Fleet.kill_redis),
    "kill s3": (5, Fleet.kill_s3),
    "stop worker": (1, Fleet.stop_worker),
    "stop child": (1, Fleet.stop_child),
    "stop redis": (1, Fleet.stop_redis),
    "stop s3": (1, Fleet.stop_s3),
    "cut": (5, Fleet.cut),
    "disk full": (4, Fleet.disk_full),
    "slow s3": (3, Fleet.slow_s3),
    "twice": (4, Fleet.twice),
    "out of order": (3, Fleet.out_of_order),
    "clock": (4, Fleet.skew),
}
"""How often each kind comes in fifty, and what it does."""

_DEATHS = ("kill worker", "kill child")
_GAP_S = (0.2, 2.0)
_LONGEST_WAIT_S = 90.0  # for a sign of life, before the next fault strikes all the same
_TO_THE_END_S = 900.0

out = Console()


@dataclass
class Struck:
    """A fault, and what was under way when it struck."""

    kind: str
    strike: Strike
    ended_at: float
    held: set[str]

    def is_over(self, seen: "Records") -> bool:
        """Whether the next one may strike."""
        later = seen.latest > self.ended_at
        return later and (self.kind not in _DEATHS or self.held <= seen.at.keys())

    def recovery_s(self, seen: "Records") -> float | None:
        """None if no record ever came after it."""
        later = next((at for at in seen.times if at > self.ended_at), None)
        return None if later is None else later - self.ended_at

    def held_s(self, seen: "Records") -> float | None:
        """None if some of it never got a record."""
        if not self.held <= seen.at.keys():
            return None
        return max((max(0.0, seen.at[id] - self.ended_at) for id in self.held), default=0.0)


@dataclass
class Records:
    """When each record came, as seen on the S3 server's disk: whatever breaks, it can be read."""

    folder: Path
    at: dict[str, float] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fresh: dict[str, float] = {}  # files that may be half-written, since when
        self._known: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Records":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def latest(self) -> float:
        return self.times[-1] if self.times else 0.0

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            with suppress(OSError):
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        for path in self.folder.glob("*.jsonl"):  # what is half-written has another name, and goes
            if path.name not in self._known:
                self._known.add(path.name)
                self._fresh[path.name] = now
        for name, since in list(self._fresh.items()):
            for line in (self.folder / name).read_bytes().splitlines():
                with suppress(ValueError):
                    record = Record.model_validate_json(line)
                    if record.id not in self.at:
                        self.at[record.id] = now
                        self.times.append(now)
            if now - since > 5:
                del self._fresh[name]


class Dispatcher:
    """What `ppv run` does, and `ppv run` again where it gave up, until there is no more input."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self.folder = RunFolder(store_of(settings), RUN)
        self.given: list[BasePrompt] = []  # every base prompt that was enqueued
        self.gave_up: list[str] = []
        self.finished = False
        self._settings, self._broker = settings, broker
        self._no_more = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Dispatcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._no_more.set()

    def end_input(self, deadline_s: float) -> None:
        """And wait until the run is done."""
        self._no_more.set()
        self._thread.join(deadline_s)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self.finished:
            try:
                self._work()
                self.finished = True
            except ServiceError as error:
                self.gave_up.append(str(error))
                print(f"the dispatcher gave up: {self.gave_up[-1]}", file=sys.stderr, flush=True)
                time.sleep(5)

    def _work(self) -> None:
        dispatch.open_run(self.folder.store, self._broker, self._settings, RUN)
        watch = Watch(self.folder, self._settings, self._broker)  # nobody tells it of deaths
        again = bool(self.given)
        dispatch.enqueue(
            self.folder, self._bases(), self._broker, self._settings.dispatch, watch.glance
        )
        if again:
            watch.doubt()
        watch.until_done()

    def _bases(self) -> Iterator[BasePrompt]:
        yield from list(self.given)
        while not self._no_more.is_set():
            number = len(self.given)
            thing = THINGS[number % len(THINGS)]
            self.given.append(BasePrompt(text=f"a hand with a {thing}, number {number}"))
            yield self.given[-1]


def main(
    seed: Annotated[int, typer.Option(help="Which faults strike, when, and whom.")] = 1,
    faults: Annotated[int, typer.Option(help="How many.", min=1)] = 100,
    kinds: Annotated[str, typer.Option(help=f"Of {', '.join(DECK)}; all if empty.")] = "",
    pause: Annotated[float, typer.Option(help="Seconds that something is stopped for.")] = 30.0,
    visibility: Annotated[
        int, typer.Option(help="Seconds after which a dead worker's message comes back.", min=10)
    ] = 20,
    models: Annotated[str, typer.Option(help="standin, or miniature.")] = "standin",
    logs: Annotated[Path | None, typer.Option(help="Keep the children's logs here.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Break things, measure, print two tables, write the figures. Exit code 1: work was lost."""
    logging.getLogger("celery").setLevel(logging.ERROR)
    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()] or list(DECK)
    if unknown := [kind for kind in wanted if kind not in DECK]:
        raise SystemExit(
            f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(DECK)}"
        )
    with tempfile.TemporaryDirectory(prefix="ppv-chaos-") as folder:
        try:
            figures = measure(Path(folder), seed, faults, wanted, pause, visibility, models)
        finally:
            if logs:
                shutil.copytree(Path(folder) / "logs", logs, dirs_exist_ok=True)
    show(figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))
    lost = ("missing", "failed", "duplicated", "unreadable")
    raise typer.Exit(1 if any(figures[name] for name in lost) else 0)


def measure(
    folder: Path,
    seed: int,
    faults: int,
    kinds: list[str],
    pause: float,
    visibility: int,
    models: str,
) -> dict[str, Any]:
    chance = random.Random(seed)
    counts = folder / "counts"
    environment = configuration(folder, visibility) | {
        "CHAOS_COUNTS": str(counts),
        "CHAOS_MODELS": models,
    }
    with Fleet(folder, environment, pause, chance) as fleet:
        os.environ.update(environment | fleet.addresses())
        settings = load_settings()
        for kind, reason in fleet.skipped.items():
            print(f"skipped: {kind}: {reason}", file=sys.stderr)
        deck = list(dealt([kind for kind in kinds if kind not in fleet.skipped], faults, chance))
        started = time.monotonic()
        records = folder / "s3" / BUCKET / "runs" / RUN / "records"
        with closing(broker_of(settings)) as broker, Records(records) as seen:
            with Dispatcher(settings, broker) as dispatcher:
                struck = storm(fleet, seen, dispatcher, deck, chance, counts)
                over = time.monotonic()
                dispatcher.end_input(_TO_THE_END_S)
            ended = time.monotonic()
            found = audit(dispatcher.folder, dispatcher.given)
            time.sleep(0.3)
        deaths = sum(worker.deaths for worker in fleet.workers.values())
    caused = sum(one.kind == "kill worker" for one in struck)
    return figures_of(seed, models, visibility, fleet, struck, seen, found, counts) | {
        "seconds": round(ended - started, 1),
        "after_last_fault_s": round(ended - over, 1),
        "last_record_s": round(seen.latest - over, 1),
        "dispatcher_gave_up": dispatcher.gave_up,
        "finished": dispatcher.finished,
        "unasked_worker_deaths": deaths - caused,
    }


def configuration(folder: Path, visibility: int) -> dict[str, str]:
    """Small messages and short times: a batch takes about half a second."""
    return {
        "PPV_STATE_DIR": str(folder / "state"),
        "PPV_PROPOSER__IMAGES_PER_MESSAGE": str(IMAGES_PER_MESSAGE),
        "PPV_DISPATCH__BASES_PER_MESSAGE": "4",
        "PPV_DISPATCH__IN_FLIGHT": "160",
        "PPV_DISPATCH__VISIBILITY_TIMEOUT_S": str(visibility),
        "PPV_DISPATCH__STALL_S": "10",
        "OMP_NUM_THREADS": "1",
    }


def dealt(kinds: list[str], faults: int, chance: random.Random) -> Iterator[str]:
    """So many kinds of faults, one deck after another: one of each kind, then the rest of it."""
    if not kinds:
        raise SystemExit("nothing that was asked for can be done here")
    left = faults
    while left > 0:
        rest = [kind for kind in kinds for _ in range(DECK[kind][0] - 1)]
        cards = [*chance.sample(kinds, len(kinds)), *chance.sample(rest, len(rest))]
        yield from cards[:left]
        left -= len(cards)


def storm(
    fleet: Fleet,
    seen: Records,
    dispatcher: Dispatcher,
    deck: list[str],
    chance: random.Random,
    counts: Path,
) -> list[Struck]:
    until(lambda: len(seen.at) >= 20, dispatcher)
    struck: list[Struck] = []
    for number, kind in enumerate(deck, 1):
        time.sleep(chance.uniform(*_GAP_S))
        held = fleet.held() - seen.at.keys()
        strike = DECK[kind][1](fleet)
        one = Struck(kind, strike, time.monotonic(), held)
        struck.append(one)
        until(partial(one.is_over, seen), dispatcher)
        recovery, caught = one.recovery_s(seen), one.held_s(seen)
        print(
            f"{number}/{len(deck)} {kind} ({strike.what}): next record after {_s(recovery)}, "
            f"{len(held)} held, on record after {_s(caught)}; {len(seen.at)} records, "
            f"{begun(counts)} begun",
            file=sys.stderr,
            flush=True,
        )
    return struck


def until(condition: Callable[[], bool], dispatcher: Dispatcher) -> None:
    end = time.monotonic() + _LONGEST_WAIT_S
    while not condition() and time.monotonic() < end and dispatcher.alive:
        time.sleep(0.05)


def figures_of(
    seed: int,
    models: str,
    visibility: int,
    fleet: Fleet,
    struck: list[Struck],
    seen: Records,
    found: Found,
    counts: Path,
) -> dict[str, Any]:
    drawn = judged = 0
    for line in counts.read_text().splitlines():
        what, images = line.split()
        drawn, judged = (
            drawn + int(images) * (what == "drawn"),
            judged + int(images) * (what == "judged"),
        )
    redone = drawn + judged - 2 * found.recorded
    rightly = sum(one.strike.touched for one in struck) * IMAGES_PER_MESSAGE
    kinds = {kind: [one for one in struck if one.kind == kind] for kind in DECK}
    return {
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}",
        "seed": seed,
        "models": models,
        "visibility_timeout_s": visibility,
        "faults": len(struck),
        "expected": found.expected,
        "recorded": found.recorded,
        "missing": len(found.missing),
        "failed": len(found.failed),
        "duplicated": len(found.duplicated),
        "unreadable": len(found.unreadable),
        "judged_twice": found.judged_twice,
        **recovery(struck, seen),
        "drawn": drawn,
        "judged": judged,
        "redone_share": round(redone / max(1, drawn + judged), 4),
        "redone_batches_a_worker_a_fault": round(redone / max(1, rightly), 3),
        "by_kind": {
            kind: {"count": len(some)} | recovery(some, seen)
            for kind, some in kinds.items()
            if some
        },
        "skipped": fleet.skipped,
    }


def begun(counts: Path) -> tuple[int, int]:
    """Pictures whose drawing was begun, and whose judging."""
    lines = [line.split() for line in counts.read_text().splitlines()]
    drawn, judged = (
        sum(int(images) for what, images in lines if what == name) for name in ("drawn", "judged")
    )
    return drawn, judged


def recovery(struck: list[Struck], seen: Records) -> dict[str, Any]:
    """inf, in JSON null, for a fault after which nothing came."""
    times = [one.recovery_s(seen) for one in struck]
    held = [one.held_s(seen) for one in struck if one.held]
    return {
        "recovery_p50_s": _median(times),
        "recovery_max_s": _worst(times),
        "held_p50_s": _median(held),
        "held_max_s": _worst(held),
    }


def _median(times: list[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return round(statistics.median(known), 2) if known else None


def _worst(times: list[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return round(max(known), 2) if known and len(known) == len(times) else None


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['faults']} faults, seed {figures['seed']}")
    for column in ("fault", "times", "next record, s", "worst", "held, s", "worst "):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for kind, some in [
        *figures["by_kind"].items(),
        ("all", figures | {"count": figures["faults"]}),
    ]:
        names = ("recovery_p50_s", "recovery_max_s", "held_p50_s", "held_max_s")
        table.add_row(kind, str(some["count"]), *(_shown(some[name]) for name in names))
    out.print(table)
    names = ("expected", "recorded", "missing", "failed", "duplicated", "unreadable")
    for name in names:
        print(f"{name:12}{figures[name]:8,}")
    print(
        f"redone      {figures['redone_share']:8.1%}, "
        f"{figures['redone_batches_a_worker_a_fault']:.2f} batches a worker a fault"
    )
    print(
        f"{figures['seconds']:.0f} s, of which {figures['after_last_fault_s']:.0f} s after the "
        f"last fault (the last record after {figures['last_record_s']:.0f} s); {figures['machine']}"
    )
    print(
        f"the dispatcher gave up {len(figures['dispatcher_gave_up'])} times; workers died by "
        f"themselves {figures['unasked_worker_deaths']} times"
    )


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


if __name__ == "__main__":
    typer.run(main)
