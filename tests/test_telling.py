"""What a worker tells while it works: lines of JSON, and traces."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from storage.folder import FolderStore
from storage.progress import Progress
from storage.runs import RunFolder
from tests.conftest import REDIS_PASSWORD
from tests.place import Place, until
from tests.tiny import save_tiny_pipeline, save_tiny_verifier
from workers import logs

BASES = ["a hand with a red mug", "a violin"]  # which the grammar knows nothing of
Span = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """By one worker of all three queues, from its start to its end, with one run between them."""

    lines: list[dict[str, Any]]
    text: str
    banner: str
    spans: list[Span]


def spans_of(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {each.key: each.value.string_value for each in span.attributes}
                yield {
                    "name": span.name,
                    "trace": span.trace_id,
                    "id": span.span_id,
                    "parent": span.parent_span_id,
                    **attributes,
                }


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("telling")
    save_tiny_pipeline(folder / "base", text_length=200)
    save_tiny_verifier(folder / "verifier")
    spans: list[Span] = []

    def receive(request: Request) -> Response:
        assert request.headers["Content-Type"] == "application/x-protobuf"
        spans.extend(spans_of(request.get_data()))
        return Response(b"", content_type="application/x-protobuf")

    with HTTPServer() as collector, pytest.MonkeyPatch.context() as environment:
        collector.expect_request("/v1/traces", method="POST").respond_with_handler(receive)
        environment.setenv("PPV_BROKER_URL", redis_url.replace("/0", "/7"))
        environment.setenv("PPV_STORE_URL", f"file://{folder}/store")
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url_for("").rstrip("/"))
        place = Place(folder, folder, BASES)
        command = [sys.executable, "-m", "celery", "--app=workers", "worker", "--loglevel=INFO"]
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            worker = subprocess.Popen(
                [*command, "--queues=prompt,propose,verify", "--hostname=telling@%h"],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
                stdout=out,
                stderr=err,
            )
        assert place.ppv("enqueue", "bases.txt", "--run", "telling").code == 0
        progress = Progress(RunFolder(FolderStore(folder / "store"), "telling"))
        until(lambda: progress.update().finished, "the run")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        collector.check_assertions()
    text = (folder / "err").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    yield Told(lines, text, (folder / "out").read_text(), spans)


def test_a_worker_says_that_it_is_ready(told: Told) -> None:
    assert any(line["message"].endswith(" ready.") for line in told.lines)
    assert "concurrency" in told.banner


def test_each_line_is_json_with_what_it_is_about(told: Told) -> None:
    assert all({"time", "level", "message", "logger"} <= line.keys() for line in told.lines)
    done = [line for line in told.lines if line["logger"] == "workers.verify"]
    assert done
    for line in done:
        assert line["run"] == "telling" and line["task"] == "verify" and line["id"]
        assert len(line["batch"]) == 32
    drawn = {line["batch"] for line in told.lines if line["logger"] == "workers.propose"}
    assert {line["batch"] for line in done} == drawn
    (given_up,) = [line for line in told.lines if line["level"] == "WARNING" and "run" in line]
    assert given_up["message"] == "given up: PromptFailed"
    assert (given_up["stage"], len(given_up["base"])) == ("prompt", 32)


def test_no_line_quotes_a_prompt_a_result_or_a_password(told: Told) -> None:
    succeeded = [line["message"] for line in told.lines if " succeeded in " in line["message"]]
    assert succeeded and all(message.endswith("s") for message in succeeded)
    for word in ("violin", "mug", "hand", REDIS_PASSWORD):
        assert word not in told.text


def test_a_prompt_its_drawing_and_its_verdict_are_one_trace(told: Told) -> None:
    by_id = {span["id"]: span for span in told.spans}
    judged = [span for span in told.spans if span["name"] == "run/verify"]
    assert judged
    for span in judged:
        assert span["ppv.run"] == "telling"
        way = [span["name"]]
        at = span
        while at := by_id.get(at["parent"]):
            assert at["trace"] == span["trace"]
            way.append(at["name"])
        assert [name for name in way if name.startswith("run/")] == [
            "run/verify",
            "run/propose",
            "run/prompt",
        ]


def test_no_span_quotes_a_prompt(told: Told) -> None:
    assert not any(word in str(told.spans) for word in ("violin", "mug", "hand "))


def a_record(**extra: object) -> logging.LogRecord:
    record = logging.LogRecord("workers.x", logging.INFO, "x.py", 1, "%d of %s", (3, "é\n"), None)
    record.__dict__.update(extra)
    return record


def test_a_line_is_one_line_whatever_it_says() -> None:
    line = logs.Lines().format(a_record(run="hands", proposal="0a"))
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "3 of é\n"
    assert (found["run"], found["proposal"], found["level"]) == ("hands", "0a", "INFO")


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = a_record()
        record.exc_info = sys.exc_info()
    found = json.loads(logs.Lines().format(record))
    assert "ValueError: broken" in found["exception"]


def test_people_read_text_with_the_run_at_its_end() -> None:
    line = logs.Text().format(a_record(run="hands"))
    assert line.endswith("INFO 3 of é\n  [run=hands]")
