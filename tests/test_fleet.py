"""Workers on this machine, and the watch over a run."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.types import DetailedPrompt, Outcome, ProposalBatch
from storage.folder import FolderStore
from storage.progress import Tally
from tests.tiny import a_record
from workers import fleet
from workers.broker import Broker
from workers.celery import share_cores
from workers.dispatch import open_run
from workers.settings import load_settings


def test_a_watch_that_was_suspended_for_an_hour_looks_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: Broker, run: str
) -> None:
    monkeypatch.setenv("PPV_STATE_DIR", str(tmp_path))
    now = [0.0]
    monkeypatch.setattr("workers.fleet.time", SimpleNamespace(monotonic=lambda: now[0]))
    settings = load_settings()
    folder = open_run(FolderStore(tmp_path / "store"), broker, settings, run)
    shown: list[float] = []

    def show(tally: Any) -> None:
        shown.append(now[0])
        now[0] += 3600.0  # while this look is under way

    broker.cancel(run)
    watch = fleet.Watch(folder, settings, broker, fleet.Crew(settings), show)
    watch.look()
    watch.look()
    assert shown == [0.0]  # not at once again: the store may be slow
    now[0] += 60.0
    watch.look()
    assert shown == [0.0, 3660.0]


def test_a_glance_reads_a_part_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: Broker, run: str
) -> None:
    """Else a run is not fed for as long as its records are read."""
    now = [0.0]
    monkeypatch.setattr("workers.fleet.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setenv("PPV_STATE_DIR", str(tmp_path))
    settings = load_settings()
    folder = open_run(FolderStore(tmp_path / "store"), broker, settings, run)
    prompt = DetailedPrompt(id="0" * 32, base="a mug", index=0, text="a mug", category="power")
    for seed in range(5):
        sent = (run, folder.read().proposers[0], settings.proposer.sampler, [(prompt, seed)])
        batch = ProposalBatch.of(*sent)
        folder.write_records(batch, [a_record(each, 1, 1, run=run) for each in batch.proposals])
    judged: list[int] = []

    def show(tally: Tally) -> None:
        judged.append(tally.judged)

    watch = fleet.Watch(folder, settings, broker, show=show)
    read = watch.progress._new_outcomes

    def slowly(*arguments: Any) -> Iterator[list[Outcome]]:
        for outcomes in read(*arguments):
            now[0] += 0.15
            yield outcomes

    monkeypatch.setattr(watch.progress, "_new_outcomes", slowly)
    for _ in range(4):
        watch.glance()
    assert judged == [2, 4, 5]  # the fourth is too soon after the third


@pytest.mark.parametrize(
    ("cores", "processes", "threads"), [(8, 2, "4"), (2, 2, "1"), (2, 5, "1"), (2, 1, None)]
)
def test_a_workers_processes_have_the_cores_between_them(
    cores: int, processes: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    share_cores(SimpleNamespace(concurrency=processes))
    assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_threads_that_somebody_chose_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    share_cores(SimpleNamespace(concurrency=2))
    assert os.environ["OMP_NUM_THREADS"] == "3"
