"""The detailed prompts of a file, made in this process: live, or through the batches endpoint."""

import json as json_module
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.errors import InputError, PromptFailed
from pipeline.types import BasePrompt, Expansion
from storage.runs import RunFolder
from storage.seen import Seen
from storage.spending import spending
from workers import attempts, dispatch
from workers.admission import Admission
from workers.batches import BatchProgress, by_batches
from workers.broker import Broker
from workers.cli.session import session
from workers.cli.show import console
from workers.cli.work import list_failures
from workers.describing import Describer
from workers.pages.wording import dollars

_PLAIN_EVERY_S = 5.0

Say = Callable[[int, str], None]


def describe(
    bases: Iterable[BasePrompt], name: str, *, batch: bool, failed: bool, json: bool
) -> None:
    """Make them and say what came of it. Exits with 1 if something failed, now or before."""
    with session() as here:
        folder = dispatch.open_run(here.store, here.broker, here.settings, name)
        if failed:
            dispatch.forget_failures(folder)
        describer = Describer(folder, folder.read(), here.broker)
        here.broker.revive(name)
        counts = _Counts()
        bases = _not_failed(folder, bases, counts)
        with _saying() as say:
            if batch:
                _in_batches(describer, here.broker, bases, counts, say)
            else:
                _live(describer, bases, counts, say)
        usage = spending(folder)
        if json:
            print(json_module.dumps(counts.as_json() | {"usage": usage.model_dump()}, indent=1))
        else:
            print(
                f"run {name}: {counts.prompts} detailed prompts of {counts.done} base prompts, "
                f"{counts.failed} failed; paid so far: {usage.requests} requests, "
                f"{usage.input_tokens + usage.output_tokens:,} tokens, {dollars(usage.usd)}\n"
                f"what they are like: ppv prompts stats {name}"
            )
        if any(folder.failed_ids()):
            list_failures(folder, f"the same command with --run {name} --failed")
            raise typer.Exit(1)


class _Counts:
    """What was done, counted by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done = self.prompts = self.failed = 0

    def add(self, prompts: int) -> None:
        """prompts: how many a base prompt has; none is a failure."""
        with self._lock:
            self.done += 1
            self.prompts += prompts
            self.failed += prompts == 0

    def as_json(self) -> dict[str, int]:
        return {"base_prompts": self.done, "prompts": self.prompts, "failed": self.failed}


def _live(describer: Describer, bases: Iterable[BasePrompt], counts: _Counts, say: Say) -> None:
    """As many at a time as the endpoint may have requests under way."""
    at_once = describer.run.endpoint.concurrency if describer.endpoint else 1
    room, broken = threading.Semaphore(at_once), list[BaseException]()

    def ended(future: Future[int]) -> None:
        try:
            counts.add(future.result())
            say(counts.done, f"{counts.prompts} prompts, {counts.failed} failed")
        except BaseException as error:  # of the store, say, or of a closed pipe: raised below
            broken.append(error)
        finally:
            room.release()

    with ThreadPoolExecutor(at_once) as pool:
        for base in bases:
            room.acquire()
            if broken:
                break
            pool.submit(_described, describer, base).add_done_callback(ended)
    if broken:
        raise broken[0]


def _described(describer: Describer, base: BasePrompt) -> int:
    """How many detailed prompts a base prompt has now."""
    return len(describer.describe(base))


def _in_batches(
    describer: Describer, broker: Broker, bases: Iterable[BasePrompt], counts: _Counts, say: Say
) -> None:
    run = describer.run
    if describer.endpoint is None:
        raise InputError(f"--batch needs an endpoint: prompter.kind is {run.prompter.kind!r}")

    def keep(base: BasePrompt, expansion: Expansion) -> None:
        describer.keep(base, expansion)
        counts.add(len(expansion.prompts))

    def fail(base: BasePrompt, error: PromptFailed) -> None:
        given_up = attempts.GivenUp(error, run.prompter.tries)
        given_up.__cause__ = error
        describer.fail(base, given_up)
        counts.add(0)

    def show(progress: BatchProgress) -> None:
        say(counts.done, str(progress))

    # The batches have an account of their own; a live call afterwards asks the store.
    Admission(broker.client, run.name, broker.address).forget()
    by_batches(
        describer.folder,
        describer.answers,
        _not_done(describer, bases, counts),
        describer.prompter,
        describer.endpoint,
        run.endpoint,
        run.price,
        keep,
        fail,
        show,
        spent_usd=spending(describer.folder).usd or 0.0,
    )


def _not_failed(
    folder: RunFolder, bases: Iterable[BasePrompt], counts: _Counts
) -> Iterator[BasePrompt]:
    with Seen() as failed, Seen() as read:
        failed.update(folder.failed_ids())
        for base in bases:
            if not read.add([base.id]):
                continue
            if base.id not in failed:
                yield base
            elif stored := folder.read_expansion(base):
                counts.add(len(stored.prompts))
            else:
                counts.add(0)


def _not_done(
    describer: Describer, bases: Iterable[BasePrompt], counts: _Counts
) -> Iterator[BasePrompt]:
    for base in bases:
        stored = describer.folder.read_expansion(base)
        if stored is None:
            yield base
        else:
            counts.add(len(stored.prompts))


@contextmanager
def _saying() -> Iterator[Say]:
    """Shows how many base prompts are done: a line that changes, or lines in a pipe."""
    if not console.is_terminal:
        last = [float("-inf")]

        def line(done: int, note: str) -> None:
            if time.monotonic() - last[0] > _PLAIN_EVERY_S:
                last[0] = time.monotonic()
                print(f"{done} base prompts: {note}", file=sys.stderr, flush=True)

        yield line
        return
    columns = TextColumn("base prompts"), BarColumn(bar_width=24), MofNCompleteColumn()
    with Progress(
        *columns, TextColumn("{task.fields[note]}"), TimeElapsedColumn(), console=console
    ) as bars:
        task, started = bars.add_task("", total=None, note=""), time.monotonic()

        def bar(done: int, note: str) -> None:
            rate = done / max(1e-3, time.monotonic() - started)
            bars.update(task, completed=done, note=f"[dim]{rate:.1f}/s[/] {note}")

        yield bar
