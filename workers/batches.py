"""Having a run's prompts written through the provider's batches endpoint, at its lower price.

Answers end up in the same cache, under the same keys, as those of the live path, and the same
dialogue reads them: what comes of a base prompt does not depend on the way its answers took.

In rounds: every unfinished base prompt's dialogue is replayed against the cache, until it asks
what the cache does not hold; those requests go out in chunks, are waited for, and come home into
the cache; and again, until nothing is missing. Memory holds a wave of base prompts, never a file.

Nothing is paid for twice. A batch is on record in the store as soon as it exists, and a later call
waits for it first. One that was created just before a crash, and so is on no record, is found in
the provider's list by run and chunk in its metadata. A chunk's id is a hash of its keys and of how
often these very keys were sent before, so that a batch that was read is never taken for a new one.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
from openai.pagination import SyncCursorPage
from openai.types import Batch, FileObject

from pipeline.config import EndpointConfig
from pipeline.errors import (
    EndpointAway,
    InputError,
    PromptFailed,
    PromptFiltered,
    PromptRejected,
    ServiceError,
    SpendingLimit,
)
from pipeline.prompter.dialogue import Prompter, Reply, Request
from pipeline.prompter.endpoint import Busy, Endpoint, answer_of
from pipeline.prompter.prices import Price
from pipeline.types import Answer, BasePrompt, Expansion, digest
from storage.answers import Answers
from storage.runs import RunFolder, SentBatch

WAVE = 50_000  # base prompts whose dialogues are under way at once; about 130 MB
TIMES_SENT = 3  # a request that comes back undone or with an error is sent no more than this
LIST_PAGES, LIST_PAGE = 10, 100  # how far back the provider's list is searched
UPLOAD_TIMEOUT_S = 600.0

_ENDED = ("completed", "failed", "expired", "cancelled")
_NO_ROOM = "token_limit_exceeded"  # a file that was refused since too much is queued already
_SLICE = 64  # objects of the store that are fetched or put side by side
_THREADS = 16
_SHOW_SLICES = 16  # about a second's work
_FIRST_PAUSE_S = 0.5
_KEY = re.compile(r"[0-9a-f]{32}")

T = TypeVar("T")


@dataclass(frozen=True)
class BatchProgress:
    """How far a call of `by_batches` is."""

    described: int  # base prompts
    failed: int
    waiting: int  # of this wave
    batches: int  # at the provider
    requests: int  # in them
    answered: int  # of these, as the provider says

    def __str__(self) -> str:
        under_way = (
            f"{self.batches} batches at the provider, {self.answered:,} of {self.requests:,} "
            "requests done"
            if self.batches
            else "no batch at the provider"
        )
        return f"{under_way}; {self.described:,} base prompts described, {self.failed:,} failed"


def by_batches(
    folder: RunFolder,
    answers: Answers,
    bases: Iterable[BasePrompt],
    prompter: Prompter,
    endpoint: Endpoint,
    limits: EndpointConfig,
    price: Price | None,
    describe: Callable[[BasePrompt, Expansion], None],
    fail: Callable[[BasePrompt, PromptFailed], None],
    show: Callable[[BatchProgress], None],
    *,
    spent_usd: float = 0.0,
    wave: int = WAVE,
) -> None:
    """Describe base prompts, or have them fail, by answers from the batches endpoint.

    bases: a stream; those that are described already are not to be among them. spent_usd: what
    the run paid until now. May be stopped anywhere, by an error of `show` too: a later call goes
    on. Raises InputError if the endpoint has no batches, or refuses key or file; ServiceError if
    store or endpoint stay away.
    """
    if limits.spend_limit_usd is not None and price is None:
        raise InputError("endpoint.spend_limit_usd: no price is known for the model to count by")
    with (
        tempfile.TemporaryDirectory(prefix="ppv-batches-") as temporary,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        purse = Purse(folder.name, limits, price, spent_usd)
        courier = Courier(folder, answers, endpoint, limits, price, purse, pool)
        work = Work(
            courier, purse, answers, prompter, limits, Path(temporary), describe, fail, show, pool
        )
        courier.progress = work.show
        courier.resume()
        purse.turn_page(keep=True)
        for some in _slices(bases, wave):
            work.finish(some)


class Purse:
    """What the run spent, and what is under way may cost."""

    def __init__(
        self, run: str, limits: EndpointConfig, price: Price | None, spent_usd: float
    ) -> None:
        self._run, self._limit, self._price = run, limits.spend_limit_usd, price
        self._spent, self._reserved = spent_usd, 0.0
        # Keys of the answers that are part of what was spent.
        self._counted: set[str] = set()
        self._kept: frozenset[str] = frozenset()

    def reserve(self, request: Request) -> SpendingLimit | None:
        """Set aside what a request may cost, or say why it must not be sent."""
        if self._limit is None or self._price is None:
            return None
        usd = self._price.of(*request.expected_tokens, batch=True)
        if self._spent + self._reserved + usd > self._limit:
            return SpendingLimit(
                f"the run may spend ${self._limit:.2f}, and the next answer would go beyond that: "
                "raise endpoint.spend_limit_usd, then resume with --failed"
            )
        self._reserved += usd
        return None

    def settle(self) -> None:
        """Nothing is under way any more: what came was counted, what did not come costs nothing."""
        self._reserved = 0.0

    def turn_page(self, *, keep: bool = False) -> None:
        """Forget which answers were counted, once their base prompts are done; or keep these."""
        self._kept = frozenset(self._counted) if keep else self._kept
        self._counted = set(self._kept)

    def count(self, key: str, answer: Answer) -> None:
        """Count an answer that this run paid, once."""
        if self._limit is not None and answer.run == self._run and key not in self._counted:
            self._counted.add(key)
            self._spent += answer.usage.usd or 0.0


class Chunk:
    """Requests on their way into one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str] = []
        self.size = 0  # bytes
        self._file = path.open("wb")

    def add(self, key: str, line: bytes) -> None:
        self.keys.append(key)
        self.size += len(line)
        self._file.write(line)

    def close(self) -> None:
        self._file.close()


@dataclass
class UnderWay:
    """A batch at the provider."""

    sent: SentBatch
    keys: set[str] | None  # what may come home; None: anything, it is from an earlier call
    answered: int = 0  # as the provider says


@dataclass
class Courier:
    """Takes chunks to the provider, and brings the answers into the cache."""

    folder: RunFolder
    answers: Answers
    endpoint: Endpoint
    limits: EndpointConfig
    price: Price | None
    purse: Purse
    pool: ThreadPoolExecutor
    progress: Callable[[], None] = lambda: None
    under_way: list[UnderWay] = field(default_factory=list)
    troubles: dict[str, PromptFailed] = field(default_factory=dict)  # of requests, for good
    errors: dict[str, str] = field(default_factory=dict)  # of requests, that may pass
    no_room: set[str] = field(default_factory=set)  # requests of files that were refused for room

    def resume(self) -> None:
        """Wait for what an earlier call sent, on record or not."""
        for chunk_id, batch in self._patiently(self._list).items():
            if self.folder.read_batch(chunk_id) is None and _is_worth_reading(batch):
                self._record(chunk_id, batch)
        for sent in self.folder.batches():
            # Another address has another key and other answers: what it did stays as it is.
            if not sent.done and sent.address == self.endpoint.address:
                self.under_way.append(UnderWay(sent, None))
        self.wait()

    def send(self, chunk: Chunk) -> None:
        """Have a batch of the chunk at the provider, and on record."""
        chunk.close()
        chunk_id = self._id(chunk.keys)
        batch = self._create(chunk_id, chunk.path)
        chunk.path.unlink()
        sent = self._record(chunk_id, batch, len(chunk.keys))
        self.under_way.append(UnderWay(sent, set(chunk.keys)))
        self.progress()

    def wait(self) -> None:
        """Until every batch has ended and its answers are in the cache."""
        while self.under_way:
            for each in list(self.under_way):
                batch = self._look(each.sent.batch)
                if batch is None or batch.status in _ENDED:
                    self._bring_home(each, batch)
                    self.under_way.remove(each)
                elif batch.request_counts is not None:
                    counts = batch.request_counts
                    each.answered = counts.completed + counts.failed
            self.progress()
            if self.under_way:
                time.sleep(self.limits.batch_poll_s)
        self.purse.settle()

    def _record(self, chunk_id: str, batch: Batch, requests: int | None = None) -> SentBatch:
        """Put it on record that a batch is at the provider."""
        counts = batch.request_counts
        sent = SentBatch(
            chunk=chunk_id,
            address=self.endpoint.address,
            batch=batch.id,
            input_file=batch.input_file_id,
            requests=requests or (counts.total if counts else 0),
        )
        self.folder.write_batch(sent)
        return sent

    def _id(self, keys: list[str]) -> str:
        """The chunk's, other than those of all that were sent of the same keys and are done."""
        for before in count():
            chunk_id = digest({"keys": sorted(keys), "before": before})
            if self.folder.read_batch(chunk_id) is None:
                return chunk_id
        raise AssertionError

    # At the provider

    def _list(self) -> dict[str, Batch]:
        """This run's recent batches, by chunk."""
        found: dict[str, Batch] = {}
        page = self.endpoint.client.batches.list(limit=LIST_PAGE)
        for _ in range(LIST_PAGES):
            if not isinstance(page, SyncCursorPage):
                raise self._has_no_batches("no list of them came")
            for batch in page.data:
                metadata = batch.metadata or {}
                chunk_id = metadata.get("ppv_chunk", "")
                if metadata.get("ppv_run") == self.folder.name and _KEY.fullmatch(chunk_id):
                    found.setdefault(chunk_id, batch)
            if not page.has_next_page():
                break
            page = page.get_next_page()
        return found

    def _create(self, chunk_id: str, path: Path) -> Batch:
        client = self.endpoint.client
        # What comes of a request that broke off is unknown: it may have been heard.
        unsure = False

        def upload() -> str:
            with path.open("rb") as file:
                return self._checked(
                    FileObject,
                    client.files.create(
                        file=(f"{chunk_id}.jsonl", file), purpose="batch", timeout=UPLOAD_TIMEOUT_S
                    ),
                ).id

        def create() -> Batch:
            nonlocal unsure
            if unsure and chunk_id in (there := self._list()):
                return there[chunk_id]
            unsure = True
            return self._checked(
                Batch,
                client.batches.create(
                    input_file_id=file_id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata={"ppv_run": self.folder.name, "ppv_chunk": chunk_id},
                ),
            )

        file_id = self._patiently(upload)
        return self._patiently(create)

    def _look(self, batch_id: str) -> Batch | None:
        """None if the provider has forgotten it."""

        def retrieve() -> Batch | None:
            try:
                return self._checked(Batch, self.endpoint.client.batches.retrieve(batch_id))
            except openai.NotFoundError:
                return None

        return self._patiently(retrieve)

    def _bring_home(self, each: UnderWay, batch: Batch | None) -> None:
        """Everything that came of a batch, into the cache and into what is known of troubles."""
        refused = None
        if batch is not None:
            for file_id in (batch.output_file_id, batch.error_file_id):
                if file_id:
                    self._read(file_id, each.keys)
            if batch.status == "failed":
                refused = self._refusal(each, batch)
            elif batch.status == "cancelled":
                said = f"{self.endpoint.address} cancelled the batch {batch.id}"
                self.troubles.update((key, EndpointAway(said)) for key in each.keys or ())
        self.folder.write_batch(each.sent.model_copy(update={"done": True}))
        with suppress(openai.OpenAIError, httpx2.HTTPError):
            self.endpoint.client.files.delete(each.sent.input_file)
        if refused is not None:
            raise refused

    def _refusal(self, each: UnderWay, batch: Batch) -> InputError | None:
        """Why a file was refused, unless that may pass."""
        errors = (batch.errors.data if batch.errors else None) or []
        if any(error.code == _NO_ROOM for error in errors):
            self.no_room |= each.keys or set()
            return None
        said = "; ".join(error.message or error.code or "?" for error in errors[:3])
        if not said:
            self.errors.update((key, "the batch failed") for key in each.keys or ())
            return None
        return InputError(
            f"{self.endpoint.address} refused a batch of {each.sent.requests} requests: "
            f"{' '.join(said.split())[:300]}; leave out --batch"
        )

    def _read(self, file_id: str, keys: set[str] | None) -> None:
        """Take the lines of an output or error file, from where the connection last broke off."""
        taken = 0

        def read() -> None:
            nonlocal taken
            for some in _slices(islice(self._lines(file_id), taken, None), _SLICE):
                self._take(some, keys)
                taken += len(some)

        # Its provider keeps a file for a while only: what is gone is asked again.
        with suppress(_Gone):
            self._patiently(read)

    def _lines(self, file_id: str) -> Iterator[bytes]:
        """As they come, split at line feeds only: JSON may hold what else ends a line."""
        rest = b""
        content = self.endpoint.client.files.with_streaming_response.content
        try:
            with content(file_id) as response:
                for part in response.iter_bytes():
                    *lines, rest = (rest + part).split(b"\n")
                    yield from lines
        except openai.NotFoundError:
            raise _Gone from None
        if rest:
            yield rest

    def _take(self, lines: list[bytes], keys: set[str] | None) -> None:
        good: list[tuple[str, Answer]] = []
        for line in lines:
            key, outcome = _outcome(line, self.price, self.folder.name)
            if not _KEY.fullmatch(key) or (keys is not None and key not in keys):
                continue
            if isinstance(outcome, Answer):
                good.append((key, outcome))
                self.purse.count(key, outcome)
            elif keys is not None and isinstance(outcome, PromptFailed):
                self.troubles[key] = outcome
            elif keys is not None:
                self.errors[key] = str(outcome)
        list(self.pool.map(lambda pair: self.answers.put(*pair), good))

    # Trouble

    def _patiently(self, work: Callable[[], T]) -> T:
        """What `work` returns, tried again while the endpoint is away or busy."""
        end, pause = None, _FIRST_PAUSE_S
        while True:
            try:
                return work()
            except Busy as error:
                cause: Exception = error
            except (
                openai.OpenAIError,
                httpx2.HTTPError,
                httpx2.StreamError,
                json.JSONDecodeError,
            ) as error:
                cause = self._explained(error)
            if not isinstance(cause, Busy):
                raise cause
            now = time.monotonic()
            end = now + self.limits.patience_s if end is None else end
            if now >= end:
                raise ServiceError(f"{cause} (for {self.limits.patience_s:.0f} s)")
            self.progress()
            time.sleep(min(end - now, cause.retry_after_s or pause))
            pause = min(2 * pause, self.limits.batch_poll_s)

    def _checked(self, kind: type[T], value: object) -> T:
        """The value, unless the client took a gateway's web page for an answer."""
        if not isinstance(value, kind):
            raise Busy(f"{self.endpoint.address} sent what is no {kind.__name__.lower()}")
        return value

    def _explained(self, error: Exception) -> Exception:
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status in (404, 405, 501):
            return self._has_no_batches(f"it answered {status}")
        cause = self.endpoint.explained(error)
        if status == 413:
            return InputError(f"{cause}: lower endpoint.batch_bytes")
        known = isinstance(cause, Busy | InputError)
        return cause if known else InputError(f"{cause}: leave out --batch")

    def _has_no_batches(self, reason: str) -> InputError:
        return InputError(
            f"{self.endpoint.address} has no batches endpoint ({reason}): leave out --batch"
        )


def _is_worth_reading(batch: Batch) -> bool:
    """Whether a batch that is on no record may hold answers: it was paid for."""
    counts = batch.request_counts
    return batch.status not in _ENDED or counts is None or counts.completed > 0


class _Gone(Exception):
    """A file that the provider no longer has."""


@dataclass
class Work:
    """The base prompts, a wave at a time."""

    courier: Courier
    purse: Purse
    answers: Answers
    prompter: Prompter
    limits: EndpointConfig
    folder: Path  # of the files on their way out
    describe: Callable[[BasePrompt, Expansion], None]
    fail: Callable[[BasePrompt, PromptFailed], None]
    report: Callable[[BatchProgress], None]
    pool: ThreadPoolExecutor
    described: int = 0
    failed: int = 0
    waiting: int = 0

    def finish(self, bases: list[BasePrompt]) -> None:
        """Have every base prompt of a wave described or failed."""
        # With each: what its dialogue asked until now, to fetch that side by side.
        pending: dict[BasePrompt, tuple[str, ...]] = dict.fromkeys(bases, ())
        self._times: dict[str, int] = {}  # that a request was sent
        self._most = self.limits.batch_requests
        while pending:
            pending = self._round(pending)
            self.show()
            self.courier.wait()
            self._make_room(pending)
        self.courier.troubles.clear()
        self.courier.errors.clear()
        self.purse.turn_page()

    def show(self) -> None:
        under_way = self.courier.under_way
        self.report(
            BatchProgress(
                described=self.described,
                failed=self.failed,
                waiting=self.waiting,
                batches=len(under_way),
                requests=sum(each.sent.requests for each in under_way),
                answered=sum(each.answered for each in under_way),
            )
        )

    def _round(
        self, pending: dict[BasePrompt, tuple[str, ...]]
    ) -> dict[BasePrompt, tuple[str, ...]]:
        """Go on with every base prompt as far as the cache reaches, and send what is missing."""
        left: dict[BasePrompt, tuple[str, ...]] = {}
        self._sent: set[str] = set()  # in this round
        self._chunk: Chunk | None = None
        self.waiting = len(pending)
        for number, some in enumerate(_slices(pending.items(), _SLICE)):
            if number % _SHOW_SLICES == _SHOW_SLICES - 1:
                self.show()
            keys = [key for _, asked in some for key in asked]
            cached = dict(zip(keys, self.pool.map(self.answers.get, keys), strict=True))
            for base, _ in some:
                if asked := self._advance(base, cached):
                    left[base] = asked
                else:
                    self.waiting -= 1
        self._send()
        return left

    def _advance(self, base: BasePrompt, cached: dict[str, Answer | None]) -> tuple[str, ...]:
        """Finish a base prompt, or see to it that what it waits for is sent.

        Returns the keys of what its dialogue asked until now; none once it is finished.
        """
        while True:
            try:
                outcome = self._replay(base, cached)
            except PromptFailed as error:
                self.fail(base, error)
                self.failed += 1
                return ()
            if isinstance(outcome, Expansion):
                self.describe(base, outcome)
                self.described += 1
                return ()
            asked, missing = outcome
            # A request that will not be sent is told to the dialogue, which may go on without.
            sent = [self._ask(request) for request in missing]
            if all(sent):
                return asked

    def _replay(
        self, base: BasePrompt, cached: dict[str, Answer | None]
    ) -> Expansion | tuple[tuple[str, ...], list[Request]]:
        """What came of a base prompt, or what it asked until now and what of that is missing."""
        asked: list[str] = []
        dialogue = self.prompter.expand(base)
        try:
            requests = next(dialogue)
            while True:
                asked += [request.key for request in requests]
                replies = [self._reply(request.key, cached) for request in requests]
                found = tuple(reply for reply in replies if reply is not None)
                if len(found) < len(requests):
                    pairs = zip(requests, replies, strict=True)
                    return tuple(asked), [each for each, reply in pairs if reply is None]
                requests = dialogue.send(found)
        except StopIteration as end:
            expansion: Expansion = end.value
            return expansion
        finally:
            dialogue.close()

    def _reply(self, key: str, cached: dict[str, Answer | None]) -> Reply | None:
        if key in self._sent:
            return None
        answer = cached[key] if key in cached else self.answers.get(key)
        if answer is None:
            return self.courier.troubles.get(key)
        self.purse.count(key, answer)
        return answer

    def _ask(self, request: Request) -> bool:
        """See to it that a request is sent, once in a round; False if it will not be."""
        if request.key in self._sent:
            return True
        line = _line(request)
        trouble = self._trouble(request, len(line))
        if trouble is not None:
            self.courier.troubles[request.key] = trouble
            return False
        chunk = self._chunk
        if chunk and (
            len(chunk.keys) >= self._most or chunk.size + len(line) > self.limits.batch_bytes
        ):
            self._send()
        if self._chunk is None:
            self._chunk = Chunk(self.folder / "requests.jsonl")
        self._chunk.add(request.key, line)
        self._sent.add(request.key)
        self._times[request.key] = self._times.get(request.key, 0) + 1
        return True

    def _trouble(self, request: Request, size: int) -> PromptFailed | None:
        """Why a request must not be sent."""
        if size > self.limits.batch_bytes:
            return PromptRejected(
                f"a request of {size} bytes is more than endpoint.batch_bytes allow"
            )
        times = self._times.get(request.key, 0)
        if times >= TIMES_SENT:
            said = self.courier.errors.get(request.key, "it was not done")
            return EndpointAway(f"sent in {times} batches: {said}")
        return self.purse.reserve(request)

    def _send(self) -> None:
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            self.courier.send(chunk)

    def _make_room(self, pending: dict[BasePrompt, tuple[str, ...]]) -> None:
        """If files were refused since too much is queued, send smaller ones; that is no attempt."""
        refused = self.courier.no_room
        if not refused:
            return
        self.courier.errors.update(dict.fromkeys(refused, "the provider's queue has no room"))
        if self._most > 1:
            for key in refused:
                self._times[key] -= 1
        if refused >= self._sent:
            self._most = max(1, min(self._most, len(refused)) // 2)
        refused.clear()


def _slices(items: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(items)
    while some := list(islice(stream, size)):
        yield some


def _line(request: Request) -> bytes:
    """The request as a line of an input file; in ASCII, since not every server splits lines so."""
    line = {
        "custom_id": request.key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": request.body,
    }
    return json.dumps(line).encode() + b"\n"


def _outcome(line: bytes, price: Price | None, run: str) -> tuple[str, Answer | Exception]:
    """A request's key ("" if the line cannot be read), and its answer; PromptFailed if there will
    be none, another error if there may be one another time."""
    try:
        read = json.loads(line)
        key = str(read["custom_id"])
    except (ValueError, TypeError, KeyError):
        return "", ValueError("a line that is no JSON")
    response = _object(read.get("response"))
    status, body = response.get("status_code"), response.get("body")
    if status == 200:
        try:
            return key, answer_of(body, price, run, batch=True)
        except ValueError as error:
            return key, error
    why = _object(read.get("error")) or _object(_object(body).get("error"))
    said = f"the batch answered {status or why.get('code')}: {why.get('message')}"[:300]
    if why.get("code") in ("content_filter", "content_policy_violation"):
        return key, PromptFiltered(said)
    final = isinstance(status, int) and 400 <= status < 500
    if final and status not in (401, 403, 408, 409, 425, 429):
        return key, PromptRejected(said)
    return key, ServiceError(said)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
