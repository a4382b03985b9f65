"""What one sees of a fleet: Prometheus, its rules and dashboard, and `ppv status --watch`."""

import json
import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bench.provider import Provider
from tests.fleets import PER_BASE, Fleet, a_fleet
from tests.place import PPV, until
from tests.prometheus import FOLDER, Prometheus, program
from workers.broker import QUEUES
from workers.cli.overview import Pace
from workers.fleet import celery_worker

ROOT = FOLDER.parents[1]
DASHBOARD = FOLDER.parent / "grafana" / "dashboards" / "ppv.json"
BASES = ["a hand with a red mug", "a hand with a blue bag"]
PROPOSALS = len(BASES) * PER_BASE
MESSAGES = 2 * 3  # of two runs: a message in each queue

Samples = dict[tuple[str, ...], float]


class Watched:
    """A fleet whose prompt worker is real, so that it pays, and `ppv metrics` beside it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.place = fleet, fleet.place
        fleet.stack.enter_context(celery_worker(fleet.settings, "prompt"))
        fleet.start("propose", "verify", propose_s=0.2, verify_s=0.2)
        self.exporter = self.place.start("metrics", "--port", "0")
        fleet.stack.callback(self._end)
        assert self.exporter.stderr
        line = self.exporter.stderr.readline()
        assert line.startswith("metrics  http://127.0.0.1:"), line
        self.address = line.split("//")[1].split("/")[0]

    def _end(self) -> None:
        self.exporter.send_signal(signal.SIGINT)
        assert self.place.end(self.exporter).code == 130

    def scrape(self) -> dict[str, Samples]:
        """Values by name, and by labels in the order of their names."""
        answer = httpx.get(f"http://{self.address}/metrics", timeout=20)
        found: dict[str, Samples] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                labels = tuple(sample.labels[name] for name in sorted(sample.labels))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    def total(self, name: str) -> float:
        return sum(self.scrape()[name].values())

    def enqueue(self, run: str, *settings: str) -> None:
        flags = [flag for setting in settings for flag in ("--set", setting)]
        self.fleet.enqueue(run, BASES, *flags)

    def work(self, run: str, *settings: str) -> None:
        self.enqueue(run, *settings)
        self.fleet.until_finished(run)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """That has done nothing yet."""
    folder = tmp_path_factory.mktemp("fleet")
    with (
        Provider() as provider,
        pytest.MonkeyPatch.context() as environment,
        a_fleet(folder) as fleet,
    ):
        environment.setenv("OPENAI_API_KEY", "sk-any")
        environment.setenv("OPENAI_BASE_URL", provider.url)
        (folder / "prices.yaml").write_text("models: {tiny: {input: 1000, output: 1000}}\n")
        fleet.broker.client.config_set("maxmemory", "1gb")  # as docker/redis.conf does
        yield Watched(fleet)


@pytest.fixture(scope="module")
def newborn(fleet: Watched) -> dict[str, Samples]:
    """What it said before its first message."""
    until(lambda: fleet.total("ppv_workers") == len(QUEUES), "every worker says that it lives")
    return fleet.scrape()


@pytest.fixture(scope="module")
def busy(fleet: Watched, newborn: dict[str, Samples]) -> dict[str, Samples]:
    """What it says after a run by the grammar and one that pays."""
    fleet.work("free")
    fleet.work(
        "paid",
        "prompter.kind=openai",
        "prompter.model=tiny",
        "endpoint.prices=prices.yaml",
        "endpoint.spend_limit_usd=1000",
    )
    until(lambda: fleet.total("ppv_messages_total") >= MESSAGES, "the last message is counted")
    return fleet.scrape()


def test_what_can_be_named_in_advance_is_there_at_zero(newborn: dict[str, Samples]) -> None:
    for queue in QUEUES:
        for outcome in ("done", "retried", "dropped", "failed"):
            assert newborn["ppv_messages_total"][outcome, queue] == 0
        assert newborn["ppv_redeliveries_total"][queue,] == 0
        assert newborn["ppv_failures_total"][queue,] == 0
        assert newborn["ppv_batch_size_count"][queue,] == 0
        assert newborn["ppv_queue_messages"][queue,] == 0
    assert newborn["ppv_judged_total"]["pinch", "base", "accepted"] == 0
    assert newborn["ppv_drawn_total"]["base",] == 0
    assert sum(newborn["ppv_busy_seconds_total"].values()) == 0
    assert newborn["ppv_broker_up"][()] == 1


def test_each_queue_has_its_living_worker(newborn: dict[str, Samples]) -> None:
    assert newborn["ppv_workers"] == {(queue,): 1 for queue in QUEUES} | {("mend",): 0}
    for queue, worker in newborn["ppv_worker_processes"]:
        assert worker.startswith(f"{queue}-")


def test_everything_that_a_run_did_is_counted(busy: dict[str, Samples]) -> None:
    def total(name: str, *labels: str) -> float:
        return sum(value for key, value in busy[name].items() if set(labels) <= set(key))

    assert total("ppv_base_prompts_total") == 2 * len(BASES)
    assert total("ppv_drawn_total", "base") == 2 * PROPOSALS
    assert total("ppv_judged_total", "accepted") == 2 * PROPOSALS
    assert total("ppv_judged_total", "rejected") == 0
    assert total("ppv_failures_total") == 0
    assert total("ppv_messages_total", "prompt", "done") == 2
    for queue in ("propose", "verify"):
        assert total("ppv_batch_size_sum", queue) == 2 * PROPOSALS
        assert total("ppv_wait_seconds_count", queue) == total("ppv_messages_total", queue) == 2
        assert 0 < total("ppv_busy_seconds_total", queue) < 240
    assert busy["ppv_redis_memory_bytes"][()] > 0


def test_what_a_run_paid_is_told_by_run_and_model(busy: dict[str, Samples]) -> None:
    paid = busy["ppv_dollars_total"]["tiny",]
    assert paid > 0
    assert busy["ppv_run_dollars"] == {("paid",): pytest.approx(paid)}
    assert busy["ppv_run_dollars_limit"] == {("paid",): 1000}


# `ppv status --watch`


def test_watching_a_run_in_a_pipe_ends_with_it(fleet: Watched, busy: dict[str, Samples]) -> None:
    fleet.enqueue("watched")
    ended = fleet.place.ppv("status", "watched", "--watch")
    assert ended.code == 0, ended.err
    *_, last = ended.err.splitlines()
    done = f"watched: {PROPOSALS}/{PROPOSALS} done: {PROPOSALS} accepted, 0 rejected, 0 failed"
    assert last.startswith(done)
    assert "run watched" in ended.out
    assert re.search(r"^prompt \d+ waiting, 1 worker, .*; verify \d+ waiting", ended.err, re.M)


def test_watching_a_fleet_ends_quietly_on_ctrl_c(fleet: Watched, busy: dict[str, Samples]) -> None:
    screen, terminal = pty.openpty()
    watching = subprocess.Popen(
        [PPV, "status", "--watch"],
        cwd=fleet.place.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "90"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = ""

    def read() -> str:
        nonlocal shown
        if select.select([screen], [], [], 0.1)[0]:
            with suppress(OSError):  # it has ended
                shown += os.read(screen, 65536).decode(errors="replace")
        return shown

    until(lambda: all(queue in read() for queue in ("queue", *QUEUES)), "a table")
    fleet.enqueue("seen")
    until(lambda: "seen" in read(), "a run that has come since")
    watching.send_signal(signal.SIGINT)
    until(lambda: read() and watching.poll() is not None, "its end")
    os.close(screen)
    assert watching.returncode == 0
    assert "Traceback" not in shown and "stopped" not in shown
    assert "free" not in shown  # done before anybody looked


def test_a_fleet_without_a_broker_in_reach_shows_its_runs(
    fleet: Watched, busy: dict[str, Samples]
) -> None:
    away = "--set=broker_url=redis://127.0.0.1:1/0"
    ended = fleet.place.ppv("status", "free", "--watch", away)
    assert ended.code == 0, ended.err
    assert "the broker at redis://127.0.0.1:1/0 is away" in ended.err
    assert f"free: {PROPOSALS}/{PROPOSALS} done" in ended.err


def test_rates_are_those_of_the_last_minute() -> None:
    pace = Pace()
    assert pace.per_s(1000, 0) == 0
    assert pace.per_s(1010, 10) == 1
    for second in range(20, 200, 10):
        pace.per_s(1010 + 5 * (second - 10), second)
    assert pace.per_s(1010 + 5 * 190, 200) == 5
    assert pace.per_s(3, 210) == 0  # Redis was wiped
    assert pace.per_s(13, 220) == 1


# What asks Prometheus.


def panels() -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def plain(expression: str) -> str:
    """As Grafana sends it."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1h")


def selectors(expression: str) -> list[str]:
    """The series that an expression reads: a name, with what it demands of labels."""
    return re.findall(r"(?:\bppv_\w+|\bup\b)(?:\{[^}]*\})?", expression)


def grouped(expression: str) -> set[str]:
    """The labels by which an expression groups or joins."""
    lists = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    return {label.strip() for each in lists for label in each.split(",")}


@pytest.fixture(scope="module")
def prometheus(
    fleet: Watched, busy: dict[str, Samples], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """That has scraped the fleet at work."""
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), fleet.address)
    fleet.work("scraped")
    yield server
    server.end()


def check(prometheus: Prometheus, expression: str) -> None:
    """That it can be read, and that what it reads is there with the labels it wants."""
    prometheus.series(plain(expression))
    found = selectors(expression)
    assert found, f"reads nothing of ours: {expression}"
    for selector in found:
        series = prometheus.series(selector)
        assert series, f"no series {selector}"
        for each in series:
            if len(found) == 1 or "by" in expression:
                assert grouped(expression) <= each.keys(), f"{selector} in {expression}"


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    for title, expression, legend in panels():
        until(
            lambda expression=expression: prometheus.series(plain(expression)),
            f"data for {title}: {expression}",
            deadline_s=60,
        )
        check(prometheus, expression)
        for series in prometheus.series(plain(expression)):
            assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= series.keys(), title


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is_and_is_silent_when_all_is_well(
    prometheus: Prometheus, rule: dict[str, Any]
) -> None:
    check(prometheus, rule["expr"])
    assert prometheus.series(rule["expr"]) == []


STARVED = 'ppv_queue_messages{queue="verify"} 5x60'
# Series, in promtool's notation, a minute each; with them the alert fires after an hour.
FIRES = {
    "MetricsAway": ('up{job="ppv"} 0x60',),
    "BrokerAway": ("ppv_broker_up 0x60",),
    "NoWorker": (STARVED, 'ppv_workers{queue="verify"} 0x60'),
    "NobodyMends": (STARVED, 'ppv_workers{queue="mend"} 0x60'),
    "QueueStuck": (
        STARVED,
        'ppv_workers{queue="verify"} 1x60',
        'ppv_messages_total{queue="verify",outcome="done"} 7x60',
    ),
    "NothingJudged": (STARVED, 'ppv_judged_total{verdict="accepted"} 7x60'),
    "ManyFailures": (
        'ppv_failures_total{stage="propose"} 0+2x60',
        'ppv_judged_total{verdict="accepted"} 0+10x60',
    ),
    "MessagesFail": ('ppv_messages_total{queue="verify",outcome="failed"} 0x40 1x20',),
    "MessagesDropped": ('ppv_messages_total{queue="verify",outcome="dropped"} 0x40 1x20',),
    "WorkersDie": ('ppv_redeliveries_total{queue="propose"} 0+1x60',),
    "AcceptanceFell": (
        'ppv_judged_total{verdict="accepted"} 0+900x10 9000+1x50',
        'ppv_judged_total{verdict="rejected"} 0+100x10 1000+99x50',
    ),
    "SpendingNearLimit": (
        'ppv_run_dollars{run="hands"} 95x60',
        'ppv_run_dollars_limit{run="hands"} 100x60',
    ),
    "RedisNearlyFull": ("ppv_redis_memory_bytes 900x60", "ppv_redis_memory_limit_bytes 1000x60"),
    "RedisEvicts": ("ppv_redis_evicted_keys_total 0x55 3x5",),
}
ONCE_FULL = "ppv_redis_memory_bytes 900x60", "ppv_redis_memory_limit_bytes 0x60"  # no limit


def firing(folder: Path, series: tuple[str, ...], alert: str, expected: int) -> str:
    """What promtool has against so many alerts of this name after an hour; nothing: it is right."""
    samples = [{"labels": "{}", "value": expected}] if expected else []
    fires = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    test = {
        "rule_files": [str(FOLDER / "rules.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    dict(zip(("series", "values"), each.split(maxsplit=1), strict=True))
                    for each in series
                ],
                "promql_expr_test": [{"expr": fires, "eval_time": "60m", "exp_samples": samples}],
            }
        ],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    command = [program("promtool"), "test", "rules", folder / "test.yml"]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_fires_when_it_should(rule: dict[str, Any], tmp_path: Path) -> None:
    assert firing(tmp_path, FIRES[rule["alert"]], rule["alert"], 1) == ""


def test_a_redis_without_a_limit_is_never_nearly_full(tmp_path: Path) -> None:
    assert firing(tmp_path, ONCE_FULL, "RedisNearlyFull", 0) == ""


def test_prometheus_has_loaded_every_rule(prometheus: Prometheus) -> None:
    groups = prometheus.ask("rules")["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in loaded] == [rule["alert"] for rule in rules()]
    until(
        lambda: (
            {
                rule["health"]
                for group in prometheus.ask("rules")["groups"]
                for rule in group["rules"]
            }
            == {"ok"}
        ),
        "every rule is evaluated",
    )


def test_promtool_is_content() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", FOLDER / "prometheus.yml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
