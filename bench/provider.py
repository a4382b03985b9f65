"""A stand-in for a language model's provider: OpenAI's wire format over real HTTP.

    python -m bench.provider --port 8100 --latency-s 0.3 --fail 0.1

It writes answers that fit the schema they are asked for, and knows nothing else. The same request
always gets the same answer, live or in a batch, so that both ways can be compared. It counts
which answers it sent completely, so that a test can prove that nothing was paid for twice, and it
fails on demand: at random by a seed, or by a script of what befalls the next requests.

    GET  /control   what was counted
    POST /control   change options (by their names below), or say what comes next:
                    {"next": ["429", "ok", "drop"], "next_batches": ["expired"], "away_s": 2}

What may befall a request: any status ("429", "500", ...), or "drop" (the connection breaks in the
middle of the answer), "hang", "html" (a web page), "malformed" (content that is no JSON),
"refusal", "truncated" (cut by the length limit), "content_filter" (in the answer),
"filtered_prompt" (a 400), "quota" (a 429 that waiting does not heal).
A batch: "expired" or "cancelled" with half its requests done, "failed" and "full" at validation
(for good; for want of room), "errors" and "rejected" (half its lines end with a 500; with a 400).

Only the standard library, and start-up in a fraction of a second: it is also the bench's server.
"""

import argparse
import asyncio
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

OUTCOMES = (
    "drop",
    "hang",
    "html",
    "malformed",
    "refusal",
    "truncated",
    "content_filter",
    "filtered_prompt",
    "quota",
)
BATCH_OUTCOMES = ("ok", "expired", "cancelled", "failed", "full", "errors", "rejected")
ENDED = ("completed", "failed", "expired", "cancelled")
CREATED = 1_700_000_000  # of every answer: the same request gets the same bytes


@dataclass
class Options:
    """How the stand-in behaves; a flag each, and changeable by POST /control."""

    port: int = 0  # 0: any that is free
    key: str = ""  # the only one that is taken; "": any
    models: str = ""  # the only ones that are known, separated by commas; "": any
    latency_s: float = 0.0  # of a live answer
    jitter: float = 0.0  # share of the latency by which an answer may be later or earlier
    fail: float = 0.0  # share of answers that fail
    faults: str = "429,500,drop"  # in which ways, separated by commas
    seed: int = 0  # of what fails
    retry_after_s: float = 1.0  # what a 429 says
    long: float = 0.0  # share of descriptions that are four times as long as the others
    repeat: float = 0.0  # share of descriptions that all read the same
    batches: bool = True  # False: a server without files and batches
    batch_s: float = 0.2  # how long a batch takes
    batch_requests: int = 50_000  # of one file
    batch_bytes: int = 200_000_000
    page: int = 20  # batches in one page of the list, unless asked for fewer or more


# Answers


class Writer:
    """Writes a value that fits a JSON schema; what it writes depends on its key alone."""

    def __init__(self, key: str, options: Options) -> None:
        self._dice = random.Random(key)
        self._options = options

    def value(self, schema: dict[str, Any], root: dict[str, Any]) -> Any:
        if "$ref" in schema:
            return self.value(_resolve(schema["$ref"], root), root)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._dice.choice(schema["enum"])
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.value(self._dice.choice(schema[several]), root)
        kind = schema.get("type", "string")
        if isinstance(kind, list):
            kind = self._dice.choice(kind)
        if kind == "object":
            properties = schema.get("properties", {})
            return {name: self.value(each, root) for name, each in properties.items()}
        if kind == "array":
            items = schema.get("minItems", min(2, schema.get("maxItems", 2)))
            return [self.value(schema.get("items", {}), root) for _ in range(items)]
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            low = schema.get("minimum", 0)
            return self._dice.randint(int(low), int(schema.get("maximum", low + 9)))
        return self._dice.random() < 0.5 if kind == "boolean" else None

    def _string(self, schema: dict[str, Any]) -> str:
        """The first candidate that fits; a request whose pattern is too odd is refused."""
        pattern, most = schema.get("pattern", ""), schema.get("maxLength", 10_000)
        for text in self._candidates():
            fits = schema.get("minLength", 0) <= len(text) <= most
            if fits and (not pattern or _compiled(pattern).search(text)):
                return text
        raise ValueError(f"no text at hand for {schema!r}")

    def _candidates(self) -> Sequence[str]:
        pick, chance = self._dice.choice, self._dice.random()
        sentence = self._sentence()
        if chance < self._options.long:
            sentence = " ".join([sentence, *(self._sentence() for _ in range(3))])
        elif chance < self._options.long + self._options.repeat:
            sentence = "a right hand holding a plain grey cup on a wooden table in even light"
        number = self._dice.randrange(10**6)
        return (
            sentence,
            f"a {pick(_SIDES)} hand, {pick(_COLOURS)} {pick(_THINGS)}",
            f"{pick(_COLOURS)} {pick(_THINGS)}",
            f"{pick(_THINGS)}-{number}",
            f"{pick(_THINGS)}",
            f"{number}",
            pick("abcdefgh"),
            "",
        )

    def _sentence(self) -> str:
        pick = self._dice.choice
        return (
            f"a {pick(_SIDES)} hand {pick(_VERBS)} a {pick(_SIZES)} {pick(_COLOURS)} "
            f"{pick(_THINGS)} {pick(_PLACES)} in {pick(_LIGHTS)} light, {pick(_VIEWS)}"
        )


_SIDES = ("left", "right", "bare", "gloved", "wet", "young", "wrinkled", "slender", "broad")
_VERBS = ("holding", "gripping", "lifting", "pinching", "turning", "carrying", "tilting", "raising")
_SIZES = ("small", "large", "heavy", "worn", "polished", "narrow", "round", "dented", "slim")
_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "purple", "orange", "brown", "grey")
_THINGS = ("mug", "bottle", "hammer", "key", "flower", "card", "pen", "brush", "bag", "ball", "jar")
_PLACES = (
    "near a window",
    "over a sink",
    "above a desk",
    "on a balcony",
    "beside a stove",
    "against a brick wall",
    "in a garden",
    "at a market stall",
    "inside a workshop",
)
_LIGHTS = ("soft", "harsh", "warm", "cold", "dim", "golden", "flickering", "overcast", "neon")
_VIEWS = (
    "seen from above",
    "in close-up",
    "from the side",
    "slightly out of focus",
    "with a thumb on top",
    "with the palm half open",
    "as a studio photograph",
    "on grainy film",
)

WORDS = sorted(
    {"a", "hand", "in", "light", ","}.union(
        *(text.split() for texts in (_SIDES, _VERBS, _SIZES, _COLOURS, _THINGS, _PLACES, _LIGHTS,
                                     _VIEWS) for text in texts)
    )
)  # fmt: skip
"""Every word that an ordinary sentence of its has."""

_compiled = lru_cache(maxsize=256)(re.compile)


def _resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def key_of(body: dict[str, Any]) -> str:
    """What a request is counted under: a hash of its canonical body."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def completion(body: dict[str, Any], outcome: str, options: Options) -> dict[str, Any]:
    """The chat.completion that answers a request. Raises ValueError for one it cannot answer."""
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ValueError("you must provide messages")
    if body.get("stream"):
        raise ValueError("this server does not stream")
    key = key_of(body)
    form = body.get("response_format") or {}
    schema = form.get("json_schema", {}).get("schema")
    if schema is None:
        content = "{}" if form.get("type") == "json_object" else Writer(key, options)._sentence()
    else:
        content = json.dumps(Writer(key, options).value(schema, schema), ensure_ascii=False)
    asked = len(json.dumps([body["messages"], form])) // 4
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    finish = "stop"
    if outcome == "malformed":
        message["content"] = content[: len(content) * 2 // 3]
    elif outcome == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that hand."}
    elif outcome == "truncated":
        message["content"], finish = content[: len(content) // 2], "length"
    elif outcome == "content_filter":
        message["content"], finish = "", "content_filter"
    said = len(message["content"] or message["refusal"] or "") // 4 + 1
    return {
        "id": f"chatcmpl-{key[:24]}",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": said,
            "total_tokens": asked + said,
        },
        "system_fingerprint": "fp_stand_in",
    }


# What goes over the wire


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    file: Path | None = None  # sent instead of a body
    outcome: str = ""  # "drop": break the connection after half of it; "away": before any of it
    after: Callable[[], None] = lambda: None  # called once all of it was sent

    @classmethod
    def of(cls, content: Any, status: int = 200, **more: Any) -> "Reply":
        return cls(status, json.dumps(content).encode(), **more)

    @classmethod
    def error(cls, status: int, message: str, code: str | None = None, **more: Any) -> "Reply":
        return cls.of({"error": _error(status, message, code)}, status, **more)


def _error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    kinds = {401: "invalid_request_error", 429: "requests"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"message": message, "type": kind, "param": None, "code": code}


def fault(outcome: str, options: Options) -> Reply | None:
    """The error that is answered instead of a completion; None if this outcome is not one."""
    if outcome == "html":
        return Reply(200, b"<html>welcome</html>", kind="text/html")
    if outcome == "filtered_prompt":
        return Reply.error(400, "the prompt triggered the content filter", "content_filter")
    if outcome == "quota":
        return Reply.error(429, "you exceeded your current quota", "insufficient_quota")
    if outcome.isdigit():
        wait = {"retry-after": f"{options.retry_after_s:g}"} if outcome == "429" else {}
        return Reply.error(int(outcome), f"scripted {outcome}", headers=wait)
    return None


@dataclass
class Call:
    """An HTTP request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader

    def gone(self) -> bool:
        """Whether the client has hung up."""
        return self.reader.at_eof() or self.reader.exception() is not None


async def read_call(reader: asyncio.StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        parts = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        body = b"".join(parts)
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    return Call(method, url.path.rstrip("/"), query, headers, body, reader)


async def send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    """All of it, or half of it and a broken connection."""
    if reply.outcome == "away":
        writer.transport.abort()
        raise ConnectionResetError
    size = reply.file.stat().st_size if reply.file else len(reply.body)
    headers = {"content-type": reply.kind, "content-length": size, **reply.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {reply.status} {'OK' if reply.status < 300 else 'No'}\r\n".encode())
    writer.write(f"{head}\r\n".encode())
    if reply.outcome == "drop":
        writer.write(reply.body[: size // 2])
        await writer.drain()
        writer.transport.close()
        raise ConnectionResetError
    if reply.file:
        async for part in _parts(reply.file):
            writer.write(part)
            await writer.drain()
    else:
        writer.write(reply.body)
    await writer.drain()
    reply.after()


async def _parts(path: Path, size: int = 1 << 16) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(size):
            yield part


# The server


class Server:
    """Everything that the stand-in remembers."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self.folder = folder  # of the files that are uploaded, and of the batches' outputs
        self.next: deque[str] = deque()
        self.next_batches: deque[str] = deque()
        self.away_until = 0.0
        self.tasks: set[asyncio.Task[None]] = set()
        self.files: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.ids = count(1)
        self.forget()

    def forget(self) -> None:
        """Count from zero."""
        self.requests = 0  # live ones that came, whatever became of them
        self.under_way = 0
        self.most_under_way = 0
        self.abandoned = 0  # by clients that hung up before the answer was complete
        self.answers: Counter[str] = Counter()  # sent completely, live or in a batch, by request
        self.attempts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.batch_sizes: list[int] = []  # requests of each batch that passed validation
        self.answered: dict[str, bytes] = {}  # by idempotency key
        self.repeated = 0  # answers given again for an idempotency key

    def counts(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "answered": self.answers.total(),
            "answers": dict(self.answers),
            "answered_twice": sum(times > 1 for times in self.answers.values()),
            "abandoned": self.abandoned,
            "outcomes": dict(self.outcomes),
            "under_way": self.under_way,
            "most_under_way": self.most_under_way,
            "idempotency_keys": len(self.answered),
            "repeated": self.repeated,
            "files": len(self.files),
            "batches": len(self.batches),
            "batch_sizes": self.batch_sizes,
        }

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever hangs up, in whichever way, and the end of the server are the end of it.
        hung_up = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        with suppress(*hung_up, asyncio.CancelledError):
            writer.transport.set_write_buffer_limits(0)  # drained is handed to the kernel
            while True:
                call = await read_call(reader)
                await self.serve(call, writer)
                if call.headers.get("connection", "").lower() == "close":
                    break
        writer.close()

    async def serve(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if call.path == "/v1/chat/completions" and call.method == "POST":
            self.requests += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                reply = await self.chat(call)
                if call.gone():
                    self.abandoned += 1
                    raise ConnectionResetError
                await send(writer, reply)
            finally:
                self.under_way -= 1
        else:
            try:
                reply = await self.route(call)
            except (ValueError, KeyError, TypeError) as error:
                reply = Reply.error(400, f"invalid request: {error}")
            await send(writer, reply)

    async def route(self, call: Call) -> Reply:
        if call.path == "/control":
            return self.control(call)
        if (refused := self.refusal(call)) is not None:
            return refused
        parts = call.path.removeprefix("/v1/").split("/")
        if parts == ["models"]:
            known = self.options.models.split(",") if self.options.models else ["tiny"]
            data = [
                {"id": name, "object": "model", "created": CREATED, "owned_by": "nobody"}
                for name in known
            ]
            return Reply.of({"object": "list", "data": data})
        if parts[0] in ("files", "batches") and self.options.batches:
            name = "_".join((call.method.lower(), parts[0], *parts[2:]))
            handler: Callable[..., Reply] | None = getattr(self, name, None)
            if handler is not None and len(parts) <= 3:
                return handler(call, *parts[1:2])
        return Reply.error(404, f"unknown request URL: {call.method} {call.path}", "unknown_url")

    def refusal(self, call: Call) -> Reply | None:
        if time.monotonic() < self.away_until:
            return Reply(503, outcome="away")
        given = call.headers.get("authorization", "").removeprefix("Bearer ")
        if self.options.key and given != self.options.key:
            return Reply.error(401, "incorrect API key provided", "invalid_api_key")
        return None

    def control(self, call: Call) -> Reply:
        if call.method == "GET":
            return Reply.of(self.counts())
        wishes = json.loads(call.body)
        types = {each.name: type(each.default) for each in fields(Options)}
        for name, value in wishes.items():
            if name == "next":
                self.next = deque(_known(value, OUTCOMES))
            elif name == "next_batches":
                self.next_batches = deque(_known(value, BATCH_OUTCOMES))
            elif name == "away_s":
                self.away_until = time.monotonic() + value
            elif name == "forget":
                self.forget()
            elif name in types:
                setattr(self.options, name, types[name](value))
            else:
                raise ValueError(f"no option {name!r}")
        return Reply.of({})

    # Live

    async def chat(self, call: Call) -> Reply:
        if (refused := self.refusal(call)) is not None:
            return refused
        try:
            body = json.loads(call.body)
            key = key_of(body)
        except ValueError as error:
            return Reply.error(400, f"we could not parse the JSON body of your request: {error}")
        outcome = self.next.popleft() if self.next else self.draw(key)
        self.outcomes[outcome] += 1
        await self.wait(call, key, outcome)
        if (failed := fault(outcome, self.options)) is not None:
            return failed
        again = call.headers.get("idempotency-key", "")
        if again in self.answered:
            self.repeated += 1
            return Reply(200, self.answered[again])
        reply = self.answer(body, outcome)
        if reply.status == 200:

            def sent() -> None:
                self.answers[key] += 1
                if again:
                    self.answered[again] = reply.body

            reply.after = sent
        return reply

    def draw(self, key: str) -> str:
        """What befalls this attempt at a request: by seed, request and attempt alone."""
        self.attempts[key] += 1
        if not self.options.fail:
            return "ok"
        dice = random.Random(f"{self.options.seed} {key} {self.attempts[key]}")
        fails = dice.random() < self.options.fail
        return dice.choice(self.options.faults.split(",")) if fails else "ok"

    async def wait(self, call: Call, key: str, outcome: str) -> None:
        if outcome == "hang":
            await call.reader.read(1)  # until the client hangs up
        elif self.options.latency_s and not outcome.isdigit():
            share = 1 + self.options.jitter * (2 * random.Random(key).random() - 1)
            await asyncio.sleep(self.options.latency_s * share)

    def answer(self, body: dict[str, Any], outcome: str) -> Reply:
        model = body.get("model")
        if not model or (self.options.models and model not in self.options.models.split(",")):
            return Reply.error(404, f"the model {model!r} does not exist", "model_not_found")
        try:
            return Reply.of(completion(body, outcome, self.options), outcome=outcome)
        except (ValueError, KeyError, TypeError) as error:
            return Reply.error(400, f"invalid request: {error}", "invalid_request")

    # Files

    def post_files(self, call: Call) -> Reply:
        form = _form(call)
        if form.get("purpose", b"").decode() != "batch":
            return Reply.error(400, "purpose: this server keeps files for batches only")
        if "file" not in form:
            return Reply.error(400, "you must provide a file")
        if len(form["file"]) > self.options.batch_bytes:
            return Reply.error(413, f"a file has at most {self.options.batch_bytes} bytes")
        return Reply.of(self.keep(form["file"], "batch"))

    def keep(self, content: bytes | Path, purpose: str) -> dict[str, Any]:
        name = f"file-{next(self.ids):08d}"
        path = self.folder / name
        if isinstance(content, Path):
            content.rename(path)
        else:
            path.write_bytes(content)
        self.files[name] = {
            "id": name,
            "object": "file",
            "bytes": path.stat().st_size,
            "created_at": int(time.time()),
            "filename": f"{name}.jsonl",
            "purpose": purpose,
            "status": "processed",
        }
        return self.files[name]

    def get_files(self, call: Call, name: str = "") -> Reply:
        if not name:
            data = list(self.files.values())
            return Reply.of({"object": "list", "data": data, "has_more": False})
        return self._file(name) or Reply.of(self.files[name])

    def get_files_content(self, call: Call, name: str) -> Reply:
        kind = "application/octet-stream"
        return self._file(name) or Reply(200, kind=kind, file=self.folder / name)

    def delete_files(self, call: Call, name: str) -> Reply:
        if missing := self._file(name):
            return missing
        del self.files[name]
        (self.folder / name).unlink()
        return Reply.of({"id": name, "object": "file", "deleted": True})

    def _file(self, name: str) -> Reply | None:
        return None if name in self.files else Reply.error(404, f"no such File object: {name}")

    # Batches

    def post_batches(self, call: Call) -> Reply:
        wish = json.loads(call.body)
        if missing := self._file(wish.get("input_file_id", "")):
            return missing
        if wish.get("endpoint") != "/v1/chat/completions":
            return Reply.error(400, f"invalid endpoint: {wish.get('endpoint')!r}")
        if wish.get("completion_window") != "24h":
            return Reply.error(400, "completion_window: only 24h")
        now = int(time.time())
        batch = {
            "id": f"batch_{next(self.ids):08d}",
            "object": "batch",
            "endpoint": wish["endpoint"],
            "errors": None,
            "input_file_id": wish["input_file_id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + 86_400,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": wish.get("metadata"),
        }
        self.batches[batch["id"]] = batch
        task = asyncio.create_task(self.work(batch))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return Reply.of(batch)

    def get_batches(self, call: Call, name: str = "") -> Reply:
        if name:
            return self._batch(name) or Reply.of(self.batches[name])
        newest = list(reversed(self.batches.values()))
        if after := call.query.get("after"):
            newest = newest[[batch["id"] for batch in newest].index(after) + 1 :]
        limit = int(call.query.get("limit", self.options.page))
        data = newest[:limit]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return Reply.of({"object": "list", "data": data, "has_more": len(newest) > limit, **ends})

    def post_batches_cancel(self, call: Call, name: str) -> Reply:
        if missing := self._batch(name):
            return missing
        if self.batches[name]["status"] not in ENDED:
            self.batches[name]["status"] = "cancelling"
        return Reply.of(self.batches[name])

    def _batch(self, name: str) -> Reply | None:
        return None if name in self.batches else Reply.error(404, f"no batch {name!r}")

    async def work(self, batch: dict[str, Any]) -> None:
        """What becomes of a batch, from its validation to its end."""
        outcome = self.next_batches.popleft() if self.next_batches else "ok"
        lines, errors = self.validate(batch["input_file_id"])
        if outcome == "full":
            errors = [_batch_error("token_limit_exceeded", "enqueued token limit reached")]
        elif outcome == "failed":
            errors = [_batch_error("model_not_found", "the model is not available for batches")]
        await asyncio.sleep(self.options.batch_s / 4)
        if errors:
            batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
            return
        if batch["status"] != "cancelling":
            batch["status"] = "in_progress"
        self.batch_sizes.append(len(lines))
        await self.process(batch, lines, outcome)

    def validate(self, name: str) -> tuple[list[int], list[dict[str, Any]]]:
        """Where each request of a file begins, and what is wrong with the file."""
        offsets: list[int] = []
        errors: list[dict[str, Any]] = []
        ids: set[str] = set()
        with (self.folder / name).open("rb") as file:
            for number, line in enumerate(iter(file.readline, b""), 1):
                offsets.append(file.tell() - len(line))
                if problem := _problem(line, ids):
                    errors.append(_batch_error(*problem, number))
        if not offsets:
            errors.append(_batch_error("empty_file", "the input file is empty"))
        if len(offsets) > self.options.batch_requests:
            most = self.options.batch_requests
            errors.append(_batch_error("too_many_tasks", f"a batch has at most {most} requests"))
        return offsets, errors[:100]

    async def process(self, batch: dict[str, Any], lines: list[int], outcome: str) -> None:
        """Answer a batch's lines, in an order of its own, and write its files."""
        counts = batch["request_counts"]
        counts["total"] = len(lines)
        random.Random(batch["id"]).shuffle(lines)
        done_share = 0.5 if outcome in ("expired", "cancelled") else 1.0
        outputs = {kind: self.folder / f"{batch['id']}.{kind}" for kind in ("output", "error")}
        ending = {"expired": "expired", "cancelled": "cancelled"}.get(outcome, "completed")
        with (
            (self.folder / batch["input_file_id"]).open("rb") as source,
            outputs["output"].open("wb") as good,
            outputs["error"].open("wb") as bad,
        ):
            await asyncio.sleep(self.options.batch_s / 2)
            for number, offset in enumerate(lines):
                source.seek(offset)
                asked = json.loads(source.readline())
                if batch["status"] == "cancelling":
                    ending = "cancelled"
                left = batch["status"] == "cancelling" or number >= len(lines) * done_share
                reply = None if left else self.line(asked["body"], number, outcome)
                ok = reply is not None and reply.status == 200
                (good if ok else bad).write(_output(asked["custom_id"], reply, ending))
                counts["completed" if ok else "failed"] += 1
                if number % 50 == 0:
                    await asyncio.sleep(0)  # live requests wait no longer than that
        batch["status"] = "finalizing"
        await asyncio.sleep(self.options.batch_s / 4)
        for kind, path in outputs.items():
            if path.stat().st_size:
                batch[f"{kind}_file_id"] = self.keep(path, "batch_output")["id"]
        batch["status"] = ending

    def line(self, body: dict[str, Any], number: int, outcome: str) -> Reply:
        """The answer to one line of a batch."""
        if outcome in ("errors", "rejected") and number % 2:
            return Reply.error(500 if outcome == "errors" else 400, f"scripted {outcome}")
        key = key_of(body)
        befalls = self.draw(key)
        befalls = "500" if befalls in ("drop", "hang", "html") else befalls
        self.outcomes[befalls] += 1
        reply = fault(befalls, self.options) or self.answer(body, befalls)
        if reply.status == 200:
            self.answers[key] += 1
        return reply


def _form(call: Call) -> dict[str, bytes]:
    """The parts of a multipart body, by name."""
    found = re.search(r'boundary="?([^";]+)', call.headers.get("content-type", ""))
    parts: dict[str, bytes] = {}
    if found:
        for part in call.body.split(b"--" + found[1].encode()):
            head, separator, content = part.partition(b"\r\n\r\n")
            name = re.search(rb'[; ]name="([^"]+)"', head)
            if separator and name:
                parts[name[1].decode()] = content.removesuffix(b"\r\n")
    return parts


def _problem(line: bytes, ids: set[str]) -> tuple[str, str] | None:
    try:
        asked = json.loads(line)
        name, body = asked["custom_id"], asked["body"]
        fits = asked["method"] == "POST" and asked["url"] == "/v1/chat/completions"
    except (ValueError, KeyError, TypeError):
        return "invalid_json_line", "this line is not a JSON request"
    if name in ids:
        return "duplicate_custom_id", f"the custom_id {name!r} is there already"
    ids.add(name)
    return None if fits and isinstance(body, dict) else ("invalid_url", "not the batch's endpoint")


def _batch_error(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": line}


def _output(custom_id: str, reply: Reply | None, ending: str) -> bytes:
    """A line of a batch's output or error file; without a reply the request was not done."""
    response, error = None, None
    if reply is None:
        error = {"code": f"batch_{ending}", "message": "this request was not executed in time"}
    else:
        body = json.loads(reply.body)
        response = {"status_code": reply.status, "request_id": custom_id[:8], "body": body}
    line = {"id": f"batch_req_{custom_id}", "custom_id": custom_id}
    line |= {"response": response, "error": error}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _known(outcomes: list[str], names: tuple[str, ...]) -> list[str]:
    for outcome in outcomes:
        if outcome not in (*names, "ok") and not re.fullmatch(r"[345]\d\d", outcome):
            raise ValueError(f"no outcome {outcome!r}: use {', '.join(names)} or a status")
    return outcomes


# The process


async def serve(options: Options, until: Callable[[], Awaitable[object]]) -> None:
    """Serve until `until` returns; the address goes to standard output."""
    _known(options.faults.split(","), OUTCOMES)
    with tempfile.TemporaryDirectory(prefix="ppv-provider-") as folder:
        server = Server(options, Path(folder))
        listening = await asyncio.start_server(
            server.connection, "127.0.0.1", options.port, backlog=1024
        )
        port = listening.sockets[0].getsockname()[1]
        me = asyncio.current_task()
        assert me is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
        print(f"http://127.0.0.1:{port}/v1", flush=True)
        await until()


async def _stdin_closed() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for each in fields(Options):
        flag = f"--{each.name.replace('_', '-')}"
        if isinstance(each.default, bool):
            parser.add_argument(flag, default=each.default, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(flag, default=each.default, type=type(each.default))
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the parent")
    given = vars(parser.parse_args())
    until = _stdin_closed if given.pop("until_stdin_closes") else asyncio.Event().wait
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(serve(Options(**given), until))


class Provider:
    """The stand-in as a child process on a free port, which ends with its parent.

    with Provider(latency_s=0.01, fail=0.1) as provider:
        client = OpenAI(base_url=provider.url, api_key="any")
    """

    def __init__(self, **options: Any) -> None:
        self._options = Options(**options)

    def __enter__(self) -> "Provider":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """On the same port as before, if it was started before; what it knew is forgotten."""
        flags = []
        for name, value in asdict(self._options).items():
            flag = name.replace("_", "-")
            flags.append(
                f"--{'' if value else 'no-'}{flag}"
                if isinstance(value, bool)
                else f"--{flag}={value}"
            )
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, "--until-stdin-closes", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            self.stop()
            raise RuntimeError("the provider did not start: its message is above")
        self.pid = self._process.pid
        self._options.port = urlsplit(self.url).port or 0

    def stop(self) -> None:
        """At once, whatever is under way."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # it ends, and its folder with it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def counts(self) -> dict[str, Any]:
        """What it counted; "answers" says how often each request was answered completely."""
        return self._ask()

    def control(self, **wishes: Any) -> None:
        """Change options, or say what comes next: next=[...], next_batches=[...], away_s=..."""
        self._ask(json.dumps(wishes).encode())

    def _ask(self, data: bytes | None = None) -> dict[str, Any]:
        address = self.url.replace("/v1", "/control")
        try:
            with urllib.request.urlopen(address, data=data, timeout=10) as response:  # noqa: S310
                found: dict[str, Any] = json.load(response)
                return found
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]["message"]) from None


if __name__ == "__main__":
    main()
