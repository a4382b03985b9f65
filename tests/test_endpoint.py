"""An endpoint over real HTTP: each failure means what it should, and nobody's key is shown."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request as Asked
from werkzeug import Response

from pipeline.config import PrompterConfig
from pipeline.errors import InputError, PromptFiltered, PromptRejected, ServiceError
from pipeline.prompter.dialogue import Request
from pipeline.prompter.endpoint import MAX_CONTENT, TOO_LARGE, Busy, Endpoint, endpoint_address
from pipeline.prompter.prices import Price
from pipeline.types import Usage

REQUEST = Request(address="here", body={"model": "tiny", "messages": [], "temperature": 1.0})

Make = Callable[..., Endpoint]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, httpserver: HTTPServer) -> Make:
    def make(url: str = httpserver.url_for("/v1"), timeout_s: float = 10) -> Endpoint:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        return Endpoint(PrompterConfig(kind="openai", model="tiny"), timeout_s)

    return make


def respond(httpserver: HTTPServer, body: Any, status: int = 200, **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    content_type = headers.pop("content_type", "application/json")
    httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_response(
        Response(data, status, headers, content_type=content_type)
    )


def completion(content: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    usage = {"prompt_tokens": 1000, "completion_tokens": 500}
    return {"choices": [choice], "usage": usage, "model": "tiny-1"}


def test_an_answer_holds_what_was_said_and_what_it_cost(
    endpoint: Make, httpserver: HTTPServer
) -> None:
    respond(httpserver, completion("hello", refusal=None))
    answer = endpoint().ask(REQUEST, Price(input=2.0, output=4.0), "mine")
    assert (answer.content, answer.finish_reason, answer.model) == ("hello", "stop", "tiny-1")
    assert answer.usage == Usage(requests=1, input_tokens=1000, output_tokens=500, usd=0.004)
    assert answer.run == "mine"
    (asked, _) = httpserver.log[0]
    assert asked.get_json() == REQUEST.body
    assert asked.headers["Idempotency-Key"] == REQUEST.key


@pytest.mark.parametrize(
    "body",
    [
        {"choices": []},
        {"choices": [None], "usage": 3},
        {"choices": [{"message": "none"}], "usage": {"prompt_tokens": "many"}},
        completion(["no", "text"]),
        completion("half a letter \ud800"),
    ],
)
def test_an_odd_answer_is_still_an_answer(
    endpoint: Make, httpserver: HTTPServer, body: dict[str, Any]
) -> None:
    respond(httpserver, body)
    answer = endpoint().ask(REQUEST)
    assert answer.model_dump_json().encode()
    assert answer.usage.usd is None


def test_an_answer_of_a_megabyte_is_kept_in_part(endpoint: Make, httpserver: HTTPServer) -> None:
    respond(httpserver, completion("x" * 1_000_000))
    answer = endpoint().ask(REQUEST)
    assert answer.content == "x" * MAX_CONTENT and answer.finish_reason == TOO_LARGE


def test_an_answer_without_end_is_not_read_to_its_end(
    endpoint: Make, httpserver: HTTPServer
) -> None:
    respond(httpserver, completion("x" * 10_000_000))
    answer = endpoint().ask(REQUEST, Price(input=2.0, output=4.0))
    assert answer.content is None and answer.finish_reason == TOO_LARGE
    assert answer.usage.output_tokens > 1_000_000 and (answer.usage.usd or 0) > 4.0


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "7"}, 7.0),
        (429, {"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        (429, {"retry-after": "soon"}, None),
        (429, {}, None),
        (500, {}, None),
        (503, {"retry-after": "30"}, 30.0),
        (408, {}, None),
    ],
)
def test_a_busy_endpoint_says_for_how_long(
    endpoint: Make,
    httpserver: HTTPServer,
    status: int,
    headers: dict[str, str],
    seconds: float | None,
) -> None:
    respond(httpserver, {"error": {"message": "not now"}}, status, **headers)
    with pytest.raises(Busy, match=f"{httpserver.url_for('/v1')} answered {status}") as busy:
        endpoint().ask(REQUEST)
    assert busy.value.retry_after_s == seconds
    assert busy.value.overloaded == (status in (429, 503))


def test_a_date_to_come_back_at_is_understood(endpoint: Make, httpserver: HTTPServer) -> None:
    date = "Fri, 01 Jan 2100 00:00:00 GMT"
    respond(httpserver, {"error": {"message": "later"}}, 429, **{"retry-after": date})
    with pytest.raises(Busy) as busy:
        endpoint().ask(REQUEST)
    assert (busy.value.retry_after_s or 0) > 3600


@pytest.mark.parametrize(
    ("status", "error", "kind", "words"),
    [
        (401, {"message": "wrong"}, InputError, "check OPENAI_API_KEY"),
        (403, {"message": "wrong"}, InputError, "check OPENAI_API_KEY"),
        (404, {"message": "none"}, InputError, "no model 'tiny'"),
        (429, {"message": "pay", "code": "insufficient_quota"}, InputError, "no more credit"),
        (400, {"message": "too long"}, PromptRejected, "answered 400: .*too long"),
        (400, {"message": "no", "code": "content_filter"}, PromptFiltered, "answered 400"),
    ],
)
def test_what_asking_again_will_not_heal_is_said_as_it_is(
    endpoint: Make,
    httpserver: HTTPServer,
    status: int,
    error: dict[str, str],
    kind: type[Exception],
    words: str,
) -> None:
    respond(httpserver, {"error": error}, status)
    with pytest.raises(kind, match=words) as failed:
        endpoint().ask(REQUEST)
    assert "hunter2" not in str(failed.value)


@pytest.mark.parametrize("body", [b'{"choices": [{"mess', b"", b"[]", b'{"error": "x"}', b"\xff"])
def test_a_broken_answer_is_no_answer(endpoint: Make, httpserver: HTTPServer, body: bytes) -> None:
    respond(httpserver, body)
    with pytest.raises(Busy, match="no chat completion"):
        endpoint().ask(REQUEST)


def test_a_web_page_is_no_endpoint(endpoint: Make, httpserver: HTTPServer) -> None:
    respond(httpserver, b"<html>welcome", content_type="text/html")
    with pytest.raises(InputError, match="no OpenAI-compatible endpoint"):
        endpoint().ask(REQUEST)


def test_a_server_that_hangs_is_busy(endpoint: Make, httpserver: HTTPServer) -> None:
    done = threading.Event()

    def hang(_: Asked) -> Response:
        done.wait(20)
        return Response("{}")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(hang)
    try:
        with pytest.raises(Busy, match=httpserver.url_for("/v1")):
            endpoint(timeout_s=0.2).ask(REQUEST)
    finally:
        done.set()


def test_an_answer_that_drips_in_is_given_up(endpoint: Make, httpserver: HTTPServer) -> None:
    def drip(_: Asked) -> Response:
        def pieces() -> Iterator[bytes]:
            for _ in range(100):
                time.sleep(0.05)
                yield b" "

        return Response(pieces(), content_type="application/json")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(drip)
    started = time.monotonic()
    with pytest.raises(Busy, match="no whole answer"):
        endpoint(timeout_s=0.3).ask(REQUEST)
    assert time.monotonic() - started < 3


def test_nobody_listening_is_busy(endpoint: Make) -> None:
    with pytest.raises(Busy, match=r"no answer from http://127\.0\.0\.1:1/v1"):
        endpoint("http://127.0.0.1:1/v1").ask(REQUEST)


# Before anything is asked


def test_without_a_key_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        Endpoint(PrompterConfig(kind="openai"), 1)


@pytest.mark.parametrize(
    ("status", "kind"), [(200, None), (404, None), (401, InputError), (500, ServiceError)]
)
def test_a_check_finds_a_wrong_key(
    endpoint: Make, httpserver: HTTPServer, status: int, kind: type[Exception] | None
) -> None:
    body = {"object": "list", "data": []} if status == 200 else {"error": {"message": "x"}}
    httpserver.expect_request("/v1/models").respond_with_json(body, status)
    if kind is None:
        endpoint().check()
    else:
        with pytest.raises(kind):
            endpoint().check()


def test_an_address_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:hunter2@127.0.0.1:9/v1/?key=hunter2")
    assert endpoint_address(PrompterConfig(kind="openai")) == "http://127.0.0.1:9/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    own = PrompterConfig(kind="openai", base_url="http://127.0.0.1:9/v1")
    assert endpoint_address(own) == "http://127.0.0.1:9/v1"
    assert endpoint_address(PrompterConfig(kind="openai")).startswith("https://api.openai.com")
