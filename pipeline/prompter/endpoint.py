"""An OpenAI-compatible endpoint: one request, one answer, and what each failure means.

Key and address come from the client's own OPENAI_API_KEY and OPENAI_BASE_URL, the address also
from prompter.base_url. Nothing is tried again here: when to is for whoever asks.
"""

import email.utils
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from pipeline.config import PrompterConfig
from pipeline.errors import InputError, PromptFiltered, PromptRejected, ServiceError
from pipeline.prompter.dialogue import BYTES_PER_TOKEN, Request
from pipeline.prompter.prices import Price, usage_of
from pipeline.types import Answer

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # of a response; what is longer is not read to its end
MAX_CONTENT = 128 * 1024  # characters of an answer that are kept: a hundred times what is asked for
TOO_LARGE = "too large"  # the finish reason that we give an answer beyond that


class Busy(ServiceError):
    """No answer this time: the endpoint is away, busy or broken. It may be asked again."""

    def __init__(
        self, message: str, retry_after_s: float | None = None, *, overloaded: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s  # as the endpoint says, if it does
        self.overloaded = overloaded  # it says that it is asked too much, and is not just broken


class Endpoint:
    """An OpenAI-compatible endpoint, by the openai client."""

    def __init__(self, config: PrompterConfig, timeout_s: float) -> None:
        """Raises InputError if there is no key."""
        self.model, self._timeout_s = config.model, timeout_s
        try:
            self.client = openai.OpenAI(
                base_url=config.base_url or None, timeout=timeout_s, max_retries=0
            )
        except openai.OpenAIError:
            raise InputError("the openai prompter needs a key: set OPENAI_API_KEY") from None
        self.address = address_of(str(self.client.base_url))

    def check(self) -> None:
        """Raises InputError if the key is refused, ServiceError if nobody answers.

        Costs nothing. An endpoint that does not list its models is taken to be well.
        """
        try:
            self.client.models.list(timeout=20)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self.explained(error) from None
        except openai.APIStatusError as error:
            if error.status_code >= 500:
                raise self.explained(error) from None
        except (openai.OpenAIError, ValueError) as error:
            raise self.explained(error) from None

    def models(self) -> list[str]:
        """The models that it lists. Raises as `check` does."""
        self.check()
        try:
            return [each.id for each in self.client.models.list(timeout=20)]
        except (openai.OpenAIError, AttributeError, TypeError, ValueError):
            return []

    def ask(
        self, request: Request, price: Price | None = None, run: str = "", once: str = ""
    ) -> Answer:
        """One attempt. price, run: for the answer's account.

        once: a gateway that knows Idempotency-Key answers a second attempt of this name with the
        first one's answer, and does not charge again.

        Raises Busy, PromptFiltered, PromptRejected, or InputError for a wrong key or model.
        """
        try:
            with self.client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=[],
                # The body as it is: the client's own walk through the schema, to rename what needs
                # no renaming, costs as much time as all the rest of a request.
                extra_body=request.body,
                extra_headers={"Idempotency-Key": once or request.key},
            ) as response:
                content_type = response.headers.get("content-type", "")
                data = self._read(response.iter_bytes())
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, ValueError) as error:
            raise self.explained(error) from None
        if "html" in content_type:
            raise InputError(f"{self.address} is no OpenAI-compatible endpoint: check the base URL")
        if len(data) > MAX_ANSWER_BYTES:  # what it costs is a guess, and not nothing
            written = len(data) // BYTES_PER_TOKEN
            usage = usage_of(price, request.expected_tokens[0], written)
            return Answer(content=None, finish_reason=TOO_LARGE, usage=usage, run=run)
        try:
            return answer_of(json.loads(data), price, run)
        except ValueError as error:
            raise Busy(f"{self.address} sent what is no chat completion: {error}") from None

    def _read(self, chunks: Iterator[bytes]) -> bytes:
        """The body, up to a bit beyond the limit.

        Raises Busy where it drips in for too long: the client's own timeout is for each piece.
        """
        data, end = bytearray(), time.monotonic() + self._timeout_s
        for chunk in chunks:
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                break
            if time.monotonic() > end:
                raise Busy(f"no whole answer from {self.address} within {self._timeout_s:g} s")
        return bytes(data)

    def explained(self, error: Exception) -> Exception:
        """What an exception of the client means here."""
        if not isinstance(error, openai.APIStatusError):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return Busy(f"no answer from {self.address}: {reason}")
        status, code = error.status_code, getattr(error, "code", None)
        said = f"{self.address} answered {status}: {' '.join(error.message.split())[:200]}"
        if status in (401, 403):
            return InputError(f"{self.address} refused the key: check OPENAI_API_KEY")
        if status == 404:
            return InputError(
                f"{self.address} has no model {self.model!r}, or is no such endpoint: check "
                "prompter.model, and the base URL, which usually ends with /v1"
            )
        if code == "insufficient_quota":
            return InputError(f"{self.address} gives no more credit: {said}")
        if code in ("content_filter", "content_policy_violation"):
            return PromptFiltered(said)
        if status in (408, 409, 425, 429) or status >= 500:
            retry_after_s = _retry_after_s(error.response.headers)
            return Busy(said, retry_after_s, overloaded=status in (429, 503))
        return PromptRejected(said)


def endpoint_address(config: PrompterConfig) -> str:
    """Where a prompter would ask; needs no key."""
    client = openai.OpenAI(api_key="none is needed", base_url=config.base_url or None)
    return address_of(str(client.base_url))


def answer_of(body: Any, price: Price | None, run: str, *, batch: bool = False) -> Answer:
    """The answer in a chat completion's body. Raises ValueError if it is none."""
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
        raise ValueError(f"it holds no choices: {str(body)[:80]!r}")
    choice = _object(body["choices"][0]) if body["choices"] else {}
    usage, message = _object(body.get("usage")), _object(choice.get("message"))
    content = _text(message.get("content"))
    finish_reason = _text(choice.get("finish_reason"))
    if content is not None and len(content) > MAX_CONTENT:
        content, finish_reason = content[:MAX_CONTENT], TOO_LARGE
    return Answer(
        content=content,
        refusal=_text(message.get("refusal")),
        finish_reason=finish_reason if choice else None,
        model=(_text(body.get("model")) or "")[:200],
        usage=usage_of(
            price,
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            batch=batch,
        ),
        run=run,
    )


def address_of(url: str) -> str:
    """An endpoint's address for messages and keys: without user, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    """None for what is no text; a lone surrogate, which no store takes, is replaced."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    """Seconds, from Retry-After as a number or a date, or from OpenAI's retry-after-ms."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_to_datetime(headers["retry-after"]) if _dated(headers) else None
    return max(0.0, date.timestamp() - time.time()) if date else None


def _dated(headers: httpx2.Headers) -> bool:
    return email.utils.parsedate(headers.get("retry-after", "")) is not None
