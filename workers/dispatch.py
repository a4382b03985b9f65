"""Starting a run, feeding it as fast as it is worked on, and stopping it.

What is sent needs a place in the window of workers/flight.py: that keeps Redis small and runs fair.
"""

import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TypeVar

import tenacity

from pipeline.config import Priority, Run
from pipeline.errors import InputError, ServiceError
from pipeline.models import fingerprint
from pipeline.prompter.instructions import load_instructions
from pipeline.prompter.prices import Price, load_price
from pipeline.taxonomy import load_taxonomy
from pipeline.types import BasePrompt, PromptBatch
from pipeline.verifier.operating_point import operating_point
from pipeline.verifier.opinions import freeze
from storage.answers import Answers
from storage.objects import ObjectStore
from storage.runs import RunFolder, check_run_name
from storage.seen import Counts
from workers import canvas
from workers.broker import Broker
from workers.flight import Entry, Flight
from workers.lease import Lease
from workers.registry import proposers_of
from workers.settings import DispatchConfig, Settings

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "celery", "pillow")
PATIENCE_S = 120.0  # with a store or a broker that is away
WRITTEN_OFF = 256  # failures whose answers are forgotten together: run.json names these

_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.05, 0.5
_HAD = 1 << 24  # counts for a base prompt that the run has; below it, how often an input named it

T = TypeVar("T")


@dataclass
class Enqueued:
    """What came of an input, in base prompts."""

    sent: int = 0
    duplicates: int = 0  # lines that repeat an earlier one of the same input
    known: int = 0  # that the run had already
    cancelled: bool = False  # the run was, before the end of the input


def new_run(settings: Settings, name: str, store: ObjectStore) -> Run:
    """A run as the settings have it now; its specialists are those that the store has now.

    Raises InputError for files and models that cannot be used, ModelError among them.
    """
    taxonomy = load_taxonomy(settings.prompter.taxonomy)
    verifier, verifier_ref = settings.verifier, fingerprint(settings.verifier.model, "verifier")
    thresholds = operating_point(verifier, verifier_ref)
    run = Run(
        name=check_run_name(name),
        prompter=settings.prompter,
        taxonomy=taxonomy,
        instructions=load_instructions(settings.prompter.instructions),
        endpoint=settings.endpoint,
        price=_price(settings),
        vision_price=_vision_price(settings),
        proposer=settings.proposer,
        proposers=proposers_of(settings.proposer, taxonomy, store),
        verifier=verifier.model_copy(update={"thresholds": thresholds}),
        verifier_ref=verifier_ref,
        opinion_refs=freeze(verifier.opinions),
        versions=_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    for model, price in _paid(run):
        if run.endpoint.spend_limit_usd and price is None:
            raise InputError(
                f"endpoint.spend_limit_usd needs a price, and prices {run.endpoint.prices!r} have "
                f"none for {model!r}: name a file of your own in endpoint.prices"
            )
    return run


def open_run(
    store: ObjectStore,
    broker: Broker,
    settings: Settings,
    name: str,
    priority: Priority | None = None,
) -> RunFolder:
    """The run of this name, made now if there is none; its endpoint may be used as set now.

    Of two that make one of the same name at once, the other finds it there.

    priority: None leaves it as it is.
    Raises InputError if there is one with another configuration, or with other weights, and if the
    prompter's endpoint refuses the key; ServiceError if that endpoint does not answer.
    """
    folder, run = RunFolder(store, name), new_run(settings, name, store)
    if run.prompter.kind == "openai":
        from pipeline.prompter.endpoint import Endpoint

        Endpoint(run.prompter, run.endpoint.timeout_s).check()
    if run.verifier.opinions.vision:
        from workers.seeing import endpoint_of

        endpoint_of(run.verifier, run.endpoint.timeout_s).check()
    with Lease(broker, f"ppv:opening:{name}") as lease:
        _wait_until(lease.take, lambda: None)
        _open(folder, run, priority)
    return folder


def _open(folder: RunFolder, run: Run, priority: Priority | None) -> None:
    if folder.exists():
        there = folder.read()
        key, old, new = _first_difference(there.identity, run.identity)
        if key:
            raise InputError(
                f"run {run.name!r} exists with another configuration: {key} is {old!r} there and "
                f"{new!r} now; take another --run name"
            )
        now = {name: getattr(run, name) for name in ("endpoint", "price", "vision_price")}
        now |= {"priority": priority} if priority else {}
        changed = there.model_copy(update=now)
        if changed != there:
            folder.write(changed)
    else:
        folder.write(run.model_copy(update={"priority": priority or run.priority}))


def enqueue(
    folder: RunFolder,
    bases: Iterable[BasePrompt],
    broker: Broker,
    dispatch: DispatchConfig,
    while_waiting: Callable[[], None] = lambda: None,
    *,
    entrust: bool = False,
) -> Enqueued:
    """Send base prompts as fast as they are worked on; those that the run has already, not again.

    Memory and Redis stay the same for any number of them. Each batch is written to the store
    before it is sent. One process at a time feeds a run; another waits for its turn. Ends early
    if the run is cancelled. entrust: the fleet is to see the run through, from the first message.
    """
    counts, run = Enqueued(), folder.read()
    broker.revive(folder.name)
    flight = Flight(broker, folder.name)
    with _feeding(folder, broker) as lease, Counts() as known:

        def have_turn() -> bool:
            """Whoever fed the run meanwhile, `known` is whole afterwards; True if anybody may."""
            if _patiently(lease.is_ours, while_waiting):
                return False
            _wait_until(lease.take, while_waiting)
            _patiently(partial(_learn, folder, known), while_waiting)
            return True

        def set_total(base_prompts: int | None) -> None:
            """And entrust the run after that, since the fleet lets go of one that is done."""
            _patiently(partial(_set_total, folder, base_prompts), while_waiting)
            if entrust:
                _patiently(folder.entrust, while_waiting)

        def has_place(batch: PromptBatch) -> bool:
            entry = flight.enter(run, batch, dispatch.in_flight)
            counts.cancelled = entry is Entry.CANCELLED
            return entry is not Entry.FULL

        have_turn()
        opened = lost_it = False
        fresh = _fresh(bases, dispatch.bases_per_message, known, counts)
        while new := _take(fresh, dispatch.bases_per_message):
            if have_turn():
                opened, lost_it = False, True
            if lost_it:  # what was looked up before may be known now
                named, new = len(new), tuple(base for base in new if known[base.id] < _HAD)
                counts.known += named - len(new)
            if not new:
                continue
            if not opened:
                set_total(None)  # more is to come than an earlier input held
                opened = True
            batch = PromptBatch(run=folder.name, bases=new)
            _patiently(partial(folder.write_input, batch), while_waiting)
            _wait_until(partial(has_place, batch), while_waiting)
            if counts.cancelled:
                return counts
            canvas.send_prompts(batch)
            counts.sent += len(new)
        have_turn()
        set_total(len(known))
    return counts


def cancel(folder: RunFolder, broker: Broker) -> None:
    """Stop what is queued and what would be; `enqueue` and `ppv resume` go on."""
    broker.cancel(folder.name)
    Flight(broker, folder.name).clear()
    folder.withdraw()


def close_input(folder: RunFolder, broker: Broker) -> bool:
    """Take what was enqueued for all there is, if reading the input was cut off; say if it was."""
    with _feeding(folder, broker) as lease:
        if folder.read().base_prompts is not None or not lease.take():
            return False
        with Counts() as known:
            _learn(folder, known)
            if not (total := len(known)):
                raise InputError(
                    f"run {folder.name!r} has no base prompts enqueued: ppv run FILE --run "
                    f"{folder.name}"
                )
            _set_total(folder, total)
    return True


def _feeding(folder: RunFolder, broker: Broker) -> Lease:
    """Who holds it may add to the run's input."""
    return Lease(broker, f"ppv:feeding:{folder.name}")


def forget_failures(folder: RunFolder) -> int:
    """So that they are tried again; returns how many there were.

    Answers that could not be used are asked for anew; what they cost stays on the run's account,
    and once only: a call that was cut off anywhere is made good by the next.
    """
    answers, ids = Answers(folder.store), list(folder.failed_ids())
    _forget_written_off(folder, answers)
    run = folder.read()
    folder.write(run.model_copy(update={"retried": run.retried + 1}))
    for start in range(0, len(ids), WRITTEN_OFF):
        there = [folder.read_failure(id) for id in ids[start : start + WRITTEN_OFF]]
        useless = {key for failure in there for key in failure.answers}
        _write_off(folder, answers, sorted(useless))
        _forget_written_off(folder, answers)
        # Last: while they are on record as failed, nobody pays for their answers again.
        for failure in there:
            folder.forget_failure(failure)
    return len(ids)


def _write_off(folder: RunFolder, answers: Answers, keys: list[str]) -> None:
    """Put what answers cost on the run's account, and on the same page that it is there."""
    run = folder.read()
    spent = run.spent_before
    for key in keys:
        answer = answers.get(key)
        if answer is not None and answer.run == run.name:
            spent += answer.usage
    if keys:
        folder.write(run.model_copy(update={"spent_before": spent, "written_off": tuple(keys)}))


def _forget_written_off(folder: RunFolder, answers: Answers) -> None:
    run = folder.read()
    for key in run.written_off:
        answers.forget(key)
    if run.written_off:
        folder.write(run.model_copy(update={"written_off": ()}))


def _versions() -> dict[str, str]:
    """Of this installation; one that only enqueues has no torch."""
    versions = {}
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _price(settings: Settings) -> Price | None:
    if settings.prompter.kind != "openai":
        return None
    return load_price(settings.endpoint.prices, settings.prompter.model)


def _vision_price(settings: Settings) -> Price | None:
    vision = settings.verifier.opinions.vision
    return load_price(settings.endpoint.prices, vision) if vision else None


def _paid(run: Run) -> Iterator[tuple[str, Price | None]]:
    """The language models that it asks, and their prices."""
    if run.prompter.kind == "openai":
        yield run.prompter.model, run.price
    if run.verifier.opinions.vision:
        yield run.verifier.opinions.vision, run.vision_price


def _set_total(folder: RunFolder, base_prompts: int | None) -> None:
    """Say how many base prompts the run has; None while they are being enqueued."""
    folder.write(folder.read().model_copy(update={"base_prompts": base_prompts}))


def _fresh(
    bases: Iterable[BasePrompt], at_once: int, known: Counts, counts: Enqueued
) -> Iterator[BasePrompt]:
    """Those that are new; the others are counted. at_once: how many are looked up together."""
    rest = iter(bases)
    while some := _take(rest, at_once):
        named = Counter(base.id for base in some)
        now = known.add(named)
        for base in {base.id: base for base in some}.values():
            before = now[base.id] - named[base.id]
            counts.duplicates += named[base.id] - 1
            if before == 0:
                yield base
            elif before % _HAD == 0:
                counts.known += 1
            else:
                counts.duplicates += 1


def _take(bases: Iterator[BasePrompt], count: int) -> tuple[BasePrompt, ...]:
    return tuple(islice(bases, count))


def _learn(folder: RunFolder, known: Counts) -> None:
    """What base prompts the run has."""
    for batch in folder.inputs():
        known.add(dict.fromkeys((base.id for base in batch.bases), _HAD))


def _wait_until(holds: Callable[[], bool], while_waiting: Callable[[], None]) -> None:
    pause_s = _SHORTEST_POLL_S
    while not _patiently(holds, while_waiting):
        while_waiting()
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LONGEST_POLL_S)


def _patiently(work: Callable[[], T], while_waiting: Callable[[], None]) -> T:
    """What `work` returns, tried again while store or broker is away."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ServiceError),
        wait=tenacity.wait_fixed(1),
        stop=tenacity.stop_after_delay(PATIENCE_S),
        before_sleep=lambda state: while_waiting(),
        reraise=True,
    )(work)


def _first_difference(
    there: dict[str, object], here: dict[str, object], prefix: str = ""
) -> tuple[str, object, object]:
    """The first key, with dots, whose values differ, and both values; ("", None, None) if none."""
    for key in sorted(there.keys() | here.keys()):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if (found := _first_difference(a, b, f"{prefix}{key}."))[0]:
                return found
        elif a != b:
            return prefix + key, a, b
    return "", None, None
