"""The paper's comparison on the miniature, arm by arm, by one command.

    python -m bench.paper [--seeds 3] [--out DIR] [--json FILE]

1. Pools: the base prompts of TactileTango drawn by the specialists, and by the base.
2. Datasets of one size from each pool: accepted pictures, and pictures by chance, accepted or not;
   and the specialists' whole pool, unverified.
3. Fine-tunings of the base on each, by one recipe, which differ in the data and in the seed alone.
4. Rounds: the fine-tuned model draws the next pool, what the verifier accepts of it trains it
   further; and again.
5. Every arm draws the same suites from the same seeds, and the judge says what is right.

Each step is a `ppv` command, which is printed before it runs and goes on where it was cut off; so
the whole may be stopped anywhere. An arm that was trained from several seeds is measured on all
their pictures together; intervals are by bootstrap over prompts. Prompts, steps and guidance were
fixed before anything was measured.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from storage.objects import ObjectStore
from workers.embedded import services, store_of
from workers.pages.atomic import replacing
from workers.settings import load_settings

SUITES = ("miniature-hands", "miniature-unseen", "miniature-hard", "miniature-general")
PROMPTS = Path(__file__).parent.parent / "examples" / "tactiletango.txt"
ACCEPTED = 'verifier.thresholds={"fidelity": 0.8, "alignment": 0.9}'  # as in `make tactiletango`
RECIPE = "miniature-finetune"

BASE, SHORT, ENSEMBLE = "base", "base, short prompts", "specialists"
VERIFIED, RANDOM, UNVERIFIED = "verified", "random, equal size", "all, unverified"
BASE_VERIFIED, BASE_RANDOM = "verified, by base", "random, by base"

out = Console()


@dataclass(frozen=True)
class Plan:
    """How large it all is."""

    seeds: int
    pictures: int  # of each dataset of equal size
    steps: int  # of a fine-tuning
    rounds: int
    images: int  # of each prompt of a suite
    at_once: int  # trainings, of one thread each


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Of each fine-tuning.")] = 3,
    pictures: Annotated[int, typer.Option(min=8, help="In each dataset of equal size.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Of each fine-tuning.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Of generate, verify, fine-tune.")] = 3,
    images: Annotated[int, typer.Option(min=1, help="Of each prompt of a suite.")] = 2,
    at_once: Annotated[int, typer.Option(min=1, help="Trainings.")] = os.cpu_count() or 1,
    to: Annotated[Path, typer.Option("--out", help="Models, page and figures.")] = Path(
        "ppv-out/paper"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here, too.")
    ] = None,
) -> None:
    """Make every arm, measure it, and write paper.json beside models.html and models.png."""
    to.mkdir(parents=True, exist_ok=True)
    settings = load_settings()
    with services(settings):
        work = Work(to, store_of(settings), Plan(seeds, pictures, steps, rounds, images, at_once))
        figures = work.all()
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


class Work:
    """The steps; what they took is kept beside what they made."""

    def __init__(self, to: Path, store: ObjectStore, plan: Plan) -> None:
        self._to, self._store, self._plan = to, store, plan
        self._times, self._lock = to / "minutes.json", threading.Lock()
        self._minutes: dict[str, float] = (
            json.loads(self._times.read_text()) if self._times.exists() else {}
        )

    def all(self) -> dict[str, Any]:
        plan = self._plan
        self._pool("tactiletango", 20, 3, "proposer.route=specialist")
        self._pool("pool-base", 10, 1)
        data = {
            VERIFIED: self._dataset("paper-verified", "tactiletango"),
            RANDOM: self._dataset("paper-random", "tactiletango", "--unverified"),
            UNVERIFIED: self._dataset("paper-unverified", "tactiletango", "--unverified", quota=0),
            BASE_VERIFIED: self._dataset("paper-base-verified", "pool-base"),
            BASE_RANDOM: self._dataset("paper-base-random", "pool-base", "--unverified"),
        }
        models = {
            arm: [(f"{data[arm].partition('@')[0]}-{seed}", data[arm], seed) for seed in seeds]
            for arm, seeds in ((arm, self._seeds(arm)) for arm in data)
        }
        trainings = [each for several in models.values() for each in several]
        trainings.sort(key=lambda each: each[2])  # a seed of every arm before the next one's
        with ThreadPoolExecutor(plan.at_once) as pool:
            list(pool.map(lambda each: self._train(*each), trainings))
        arms = {BASE: ["base"], SHORT: ["base:short"], ENSEMBLE: ["ensemble"]}
        arms |= {arm: [name for name, _, _ in several] for arm, several in models.items()}
        last = models[VERIFIED][0][0]
        for number in range(2, plan.rounds + 1):
            last = self._round(number, last)
            arms[f"verified, round {number}"] = [last]
        return self._measure(arms)

    def _seeds(self, arm: str) -> range:
        return range(1 if arm == UNVERIFIED else self._plan.seeds)

    # Steps

    def _pool(self, run: str, prompts: int, images: int, *options: str) -> None:
        chosen = [f"prompter.prompts_per_base={prompts}", f"proposer.images_per_prompt={images}"]
        chosen += [ACCEPTED, *options]
        self._ppv(run, "run", str(PROMPTS), "--run", run, *_set(chosen))

    def _dataset(self, name: str, run: str, *options: str, quota: int | None = None) -> str:
        quota = self._plan.pictures if quota is None else quota
        most = ["--quota", str(quota)] if quota else ["--keep-near-duplicates"]
        said = self._ppv(
            name, "dataset", "build", name, "--runs", run, *most, "--split", "0", *options, "--json"
        )
        return str(json.loads(said)["dataset"])

    def _train(self, name: str, dataset: str, seed: int, base: str = "") -> None:
        options = ["--dataset", dataset, "--to", str(self._to / name), "--name", name]
        options += ["--recipe", RECIPE, "--steps", str(self._plan.steps), "--seed", str(seed)]
        if base:
            options += ["--base", base]
        self._ppv(name, "train", "finetune", *options, "--json", one_thread=True)

    def _round(self, number: int, before: str) -> str:
        """The model of this round; `before` is the last one's."""
        model = str(self._to / before / "pipeline")
        pool, name = f"pool-round-{number}", f"paper-round-{number}"
        self._pool(pool, 5, 2, f"proposer.model={model}")
        self._train(name, self._dataset(name, pool), 0, model)
        return name

    def _ppv(self, step: str, *command: str, one_thread: bool = False) -> str:
        """What it prints; stops everything if it fails, though not for a few failed proposals."""
        out.print(f"ppv {' '.join(command)}", style="dim", markup=False, highlight=False)
        threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
        started = time.monotonic()
        done = subprocess.run(
            [Path(sys.executable).with_name("ppv"), *command],
            stdout=subprocess.PIPE,
            stderr=None if command[0] == "run" else subprocess.PIPE,
            text=True,
            env=os.environ | threads,
            check=False,
        )
        if done.returncode and not (command[0] == "run" and done.returncode == 1):
            raise SystemExit(f"{step} failed with {done.returncode}:\n{done.stderr or ''}")
        with self._lock:
            took = (time.monotonic() - started) / 60
            self._minutes[step] = round(self._minutes.get(step, 0.0) + took, 2)
            _write(self._times, self._minutes)
        return done.stdout

    # Measuring

    def _measure(self, arms: dict[str, list[str]]) -> dict[str, Any]:
        given = (f"{label}={'+'.join(map(self._arm, some))}" for label, some in arms.items())
        suites = [option for name in SUITES for option in ("--prompts", name)]
        said = self._ppv(
            "evaluation", "evaluate", "models", *given, *suites,
            "--images", str(self._plan.images), "--out", str(self._to), "--json",
        )  # fmt: skip
        made = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "plan": asdict(self._plan),
            "minutes": self._minutes,
        }
        figures: dict[str, Any] = made | json.loads(said)
        _write(self._to / "paper.json", figures)
        out.print(f"page {self._to / 'models.html'}\nfigures {self._to / 'paper.json'}")
        return figures

    def _arm(self, name: str) -> str:
        """A fine-tuned base is a model of its own; of the store's it would be held for another
        base's, where it learned from an earlier round's."""
        folder = self._to / name / "pipeline"
        return str(folder) if folder.is_dir() else name


def _write(path: Path, said: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(said).encode() + b"\n")


def _set(options: Sequence[str]) -> Iterator[str]:
    for option in options:
        yield from ("--set", option)


if __name__ == "__main__":
    typer.run(main)
