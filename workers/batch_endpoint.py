"""A provider's batches endpoint: files of requests go in, files of answers come out.

Every call waits while the provider is away or busy, as long as the run is patient. Each raises
InputError if there is no such endpoint or it refuses what it was given, ServiceError if it stays
away. A file on its way is never held in memory.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import IO, TypeVar

import httpx2
import openai
from openai.pagination import SyncCursorPage
from openai.types import Batch

from pipeline.config import EndpointConfig
from pipeline.errors import InputError, PromptFailed, PromptFiltered, PromptRejected, ServiceError
from pipeline.prompter.dialogue import Request
from pipeline.prompter.endpoint import Busy, Endpoint, answer_of
from pipeline.prompter.prices import Price
from pipeline.types import Answer

LISTED = 1000  # how far back the provider's list is searched
UPLOAD_TIMEOUT_S = 600.0

_FIRST_PAUSE_S = 0.5

T = TypeVar("T")


@dataclass
class BatchEndpoint:
    """Creates batches, looks after them, and fetches what came of them."""

    endpoint: Endpoint
    limits: EndpointConfig
    progress: Callable[[], None] = lambda: None  # called before each pause

    @property
    def address(self) -> str:
        return self.endpoint.address

    def batches_of(self, run: str) -> dict[str, Batch]:
        """A run's recent batches, by chunk."""
        return self._patiently(lambda: self._recent(run))

    def create(self, run: str, chunk: str, lines: IO[bytes]) -> Batch:
        """Have a batch made of a file's lines, found again by run and chunk."""
        client, tries = self.endpoint.client, count()

        def upload() -> str:
            lines.seek(0)
            file = (f"{chunk}.jsonl", lines)
            return client.files.create(file=file, purpose="batch", timeout=UPLOAD_TIMEOUT_S).id

        def create() -> Batch:
            # What came of a try that broke off is unknown: it may have been heard.
            if next(tries) and (there := self._recent(run).get(chunk)):
                return there
            return client.batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"ppv_run": run, "ppv_chunk": chunk},
            )

        file_id = self._patiently(upload)
        return self._patiently(create)

    def look(self, batch_id: str) -> Batch | None:
        """None if the provider has forgotten it."""

        def retrieve() -> Batch | None:
            with suppress(openai.NotFoundError):
                return self.endpoint.client.batches.retrieve(batch_id)
            return None

        return self._patiently(retrieve)

    def read(self, file_id: str) -> Iterator[bytes]:
        """The lines of an output or error file; none if the provider no longer has it."""
        content = self.endpoint.client.files.with_streaming_response.content

        def download() -> None:
            file.seek(0)
            file.truncate()
            with suppress(openai.NotFoundError), content(file_id) as response:
                file.writelines(response.iter_bytes())

        with tempfile.TemporaryFile() as file:
            self._patiently(download)
            file.seek(0)
            yield from file

    def delete(self, file_id: str) -> None:
        """As a courtesy: it is in nobody's way."""
        with suppress(openai.OpenAIError):
            self.endpoint.client.files.delete(file_id)

    def _recent(self, run: str) -> dict[str, Batch]:
        batches = self.endpoint.client.batches.list(limit=100)
        if not isinstance(batches, SyncCursorPage):  # but a web page
            raise self._has_no_batches("no list of them came")
        found = {}
        for batch in islice(batches, LISTED):
            if batch.metadata and batch.metadata.get("ppv_run") == run:
                found[batch.metadata["ppv_chunk"]] = batch
        return found

    def _patiently(self, work: Callable[[], T]) -> T:
        """What `work` returns, tried again while the endpoint is away or busy."""
        end, pause = None, _FIRST_PAUSE_S
        while True:
            try:
                return work()
            except (openai.OpenAIError, httpx2.HTTPError, json.JSONDecodeError) as error:
                cause = self._explained(error)
            if not isinstance(cause, Busy):
                raise cause
            now = time.monotonic()
            end = end or now + self.limits.patience_s
            if now >= end:
                raise ServiceError(f"{cause} (for {self.limits.patience_s:.0f} s)")
            self.progress()
            time.sleep(min(end - now, cause.retry_after_s or pause))
            pause = min(2 * pause, self.limits.batch_poll_s)

    def _explained(self, error: Exception) -> Exception:
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status in (404, 405, 501):
            return self._has_no_batches(f"it answered {status}")
        cause = self.endpoint.explained(error)
        if isinstance(cause, Busy | InputError):
            return cause
        advice = "lower endpoint.batch_bytes" if status == 413 else "leave out --batch"
        return InputError(f"{cause}: {advice}")

    def _has_no_batches(self, reason: str) -> InputError:
        return InputError(f"{self.address} has no batches endpoint ({reason}): leave out --batch")


def line_of(request: Request) -> bytes:
    """The request as a line of an input file; in ASCII, since not every server splits lines so."""
    line = {
        "custom_id": request.key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": request.body,
    }
    return json.dumps(line).encode() + b"\n"


def outcome_of(
    line: bytes, price: Price | None, run: str
) -> tuple[str, Answer | PromptFailed | str]:
    """A request's key, and its answer, or why there will be none, or what went wrong this time."""
    read = json.loads(line)
    key, response = read["custom_id"], read.get("response") or {}
    status, body = response.get("status_code"), response.get("body") or {}
    if status == 200:
        return key, answer_of(body, price, run, batch=True)
    why = read.get("error") or body.get("error") or {}
    code = why.get("code")
    said = f"the batch answered {status or code}: {why.get('message')}"[:300]
    if code in ("content_filter", "content_policy_violation"):
        return key, PromptFiltered(said)
    if status in (400, 413, 422):
        return key, PromptRejected(said)
    return key, said
