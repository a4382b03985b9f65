"""The label page at its full size: from a key to the next picture, and the memory of its server.

    python -m bench.labelling [--json FILE]

A run of 10,000 pictures is labelled in a real browser by keys that come as somebody quick presses
them. The time is that from the key, as the browser dates it, to the end of the frame in which the
next picture stands decoded.
"""

import io
import json
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from pipeline.types import (
    ClauseScore,
    DetailedPrompt,
    PrompterRef,
    Proposal,
    ProposalBatch,
    Record,
    Sampler,
    Thresholds,
    Verdict,
    digest,
)
from storage.folder import FolderStore
from storage.runs import RunFolder
from workers.dispatch import new_run
from workers.processes import Child
from workers.settings import load_settings

RUN = "bench"
BATCH = 500  # records of one object
PAUSE_S = 0.15  # between two keys
WAYS = (["Enter"], ["a", "k"], ["s", "l"])  # the last key of each brings the next picture

WATCH = """() => {
  window.took = [];
  let key = 0;
  addEventListener("keydown", (event) => { key = event.timeStamp; }, true);
  let shown = document.querySelector(".desk").dataset.picture;
  document.addEventListener("htmx:afterSwap", async () => {
    const desk = document.querySelector(".desk");
    if (desk.dataset.picture === shown) return;
    shown = desk.dataset.picture;
    await desk.querySelector(".frame img").decode();
    requestAnimationFrame(() => setTimeout(() => window.took.push(performance.now() - key)));
  });
}"""

out = Console()


def main(
    pictures: Annotated[int, typer.Option(help="To label.")] = 10_000,
    labelled: Annotated[int, typer.Option(help="Of these, by keys.")] = 300,
    side_px: Annotated[int, typer.Option(help="Of each picture.")] = 64,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measure, print a table, and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ |= {
            "PPV_STORE_URL": (place / "store").as_uri(),
            "PPV_STATE_DIR": str(place / "state"),
        }
        make_run(place / "store", pictures, side_px)
        started = time.monotonic()
        with label_command(place / "logs") as (command, url), browser_page(url) as page:
            opened_s = time.monotonic() - started
            start_mb = resident_mb(command.pid)
            took_ms = sorted(press_keys(page, labelled))
            end_mb = resident_mb(command.pid)
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "pictures": pictures,
        "side_px": side_px,
        "labelled": labelled,
        "opened_s": opened_s,
        "key_to_picture_ms_p50": took_ms[len(took_ms) // 2],
        "key_to_picture_ms_p95": took_ms[int(len(took_ms) * 0.95)],
        "key_to_picture_ms_max": took_ms[-1],
        "server_mb_start": start_mb,
        "server_mb_end": end_mb,
    }
    show(figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


def make_run(store: Path, count: int, side_px: int) -> None:
    """A run whose pictures are sixteen different ones under names of their own."""
    folder = RunFolder(FolderStore(store), RUN)
    run = new_run(load_settings(), RUN, folder.store)
    folder.write(run)
    noise = random.Random(0)
    for first in range(0, count, BATCH):
        images = [(_prompt(n), n) for n in range(first, min(first + BATCH, count))]
        batch = ProposalBatch.of(RUN, run.proposers[0], Sampler(), images)
        folder.write_records(batch, [_record(each, noise) for each in batch.proposals])
        for number, proposal in enumerate(batch.proposals):
            path = store / "runs" / RUN / folder.image_key(proposal.id)
            path.parent.mkdir(exist_ok=True)
            original = store.with_name(f"{number % 16}.png")
            if not original.exists():
                original.write_bytes(_picture(number, side_px))
            path.hardlink_to(original)


def _prompt(number: int) -> DetailedPrompt:
    base = f"a hand holding mug {number // 4}"
    return DetailedPrompt(
        id=digest([base, number % 4]),
        base=base,
        index=number % 4,
        text=f"a light right hand in a firm power grasp, {base}, on a teal background",
        category="power",
    )


def _record(proposal: Proposal, noise: random.Random) -> Record:
    fidelity, alignment = noise.random(), noise.random()
    clause = ClauseScore(text=proposal.prompt.text, fidelity=fidelity, alignment=alignment)
    return Record(
        id=proposal.id,
        run=RUN,
        proposal=proposal,
        image=f"images/{proposal.id}.png",
        image_sha256="0" * 64,
        prompter=PrompterRef(name="grammar", taxonomy="0" * 32, instructions="0" * 32),
        verifier=proposal.proposer.base,
        verdict=Verdict(
            fidelity=fidelity, alignment=alignment, clauses=(clause,), thresholds=Thresholds()
        ),
    )


def _picture(seed: int, side_px: int) -> bytes:
    """Soft noise, which weighs about as much as a photograph."""
    grain = np.random.default_rng(seed).normal(128, 24, (side_px, side_px, 3))
    soft = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1)) / 3
    file = io.BytesIO()
    Image.fromarray(soft.clip(0, 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


@contextmanager
def label_command(logs: Path) -> Iterator[tuple[Child, str]]:
    """`ppv label`, and the address that it prints once it listens."""
    ppv = [sys.executable, "-c", "from workers.cli import main; main()"]
    with Child("label", [*ppv, "label", RUN, "--annotator", "bench"], logs) as command:
        while not (found := re.findall(r"open (http://\S+)\n", (logs / "label.log").read_text())):
            if not command.alive:
                sys.exit(f"ppv label ended: {command.log_tail()}")
            time.sleep(0.02)
        yield command, found[0]


@contextmanager
def browser_page(url: str) -> Iterator[Page]:
    """The page with its first picture on the screen."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium here: on Debian, apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.wait_for_function("() => document.querySelector('.frame img').naturalWidth > 0")
        yield page
        browser.close()


def press_keys(page: Page, pictures: int) -> list[float]:
    """Milliseconds from the key that settles a picture until the next one is seen."""
    page.evaluate(WATCH)
    for number, keys in enumerate(islice(cycle(WAYS), pictures), 1):
        for key in keys:
            time.sleep(PAUSE_S)
            page.keyboard.press(key)
        page.wait_for_function("(number) => took.length === number", arg=number)
    return list(page.evaluate("took"))


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def show(figures: dict[str, Any]) -> None:
    side = figures["side_px"]
    table = Table(title=f"{figures['pictures']:,} pictures of {side}x{side} px to label")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("from the command to the first picture", f"{figures['opened_s']:.1f} s"),
        ("from a key to the next picture, median", f"{figures['key_to_picture_ms_p50']:.0f} ms"),
        ("95 of 100 within", f"{figures['key_to_picture_ms_p95']:.0f} ms"),
        (f"the slowest of {figures['labelled']}", f"{figures['key_to_picture_ms_max']:.0f} ms"),
        ("the server's memory at the first picture", f"{figures['server_mb_start']:.0f} MB"),
        ("and at the last", f"{figures['server_mb_end']:.0f} MB"),
    ):
        table.add_row(name, value)
    out.print(table)


if __name__ == "__main__":
    typer.run(main)
