"""The openai prompter: on a real server that decodes by the schema, and on ones that fail."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline.config import PrompterConfig
from pipeline.errors import InputError, PromptFailed, ServiceError
from pipeline.prompter import load_prompter
from pipeline.types import BasePrompt, DetailedPrompt
from tests.tiny import a_run

BASE = BasePrompt(text="a hand holding a mug")
SOON = {"retry-after-ms": "1"}

Expand = Callable[..., tuple[DetailedPrompt, ...]]


@pytest.fixture
def expand(monkeypatch: pytest.MonkeyPatch, httpserver: HTTPServer) -> Expand:
    """Expands the base prompt on the failing server, or on another."""

    def expand(
        count: int = 2, url: str = httpserver.url_for("/v1"), **config: Any
    ) -> tuple[DetailedPrompt, ...]:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        run = a_run(PrompterConfig(kind="openai", model="tiny", prompts_per_base=count, **config))
        return load_prompter(run).expand(BASE)

    return expand


def completion(content: str | None, finish: str = "stop", **message: Any) -> Response:
    """The body of an answer."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": content, **message},
    }
    return _json({"choices": [choice]})


def good(count: int = 2) -> Response:
    texts = [{"text": f"a left hand with mug {n}", "category": "power"} for n in range(count)]
    return completion(json.dumps({"prompts": texts}))


def error(status: int) -> Response:
    return _json({"error": {"message": "not now"}}, status)


def answer(httpserver: HTTPServer, *responses: Response) -> list[dict[str, Any]]:
    """Have the server give these answers, the last one for ever; gives what it was asked."""
    left, asked = list(responses), []

    def handle(request: Request) -> Response:
        asked.append(request.get_json())
        return left.pop(0) if len(left) > 1 else left[0]

    httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(handle)
    return asked


def _json(content: dict[str, Any], status: int = 200) -> Response:
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", **content}
    return Response(json.dumps(whole), status, SOON, content_type="application/json")


# A real server


@pytest.mark.timeout(120)
def test_a_real_server_gives_as_many_as_asked_with_known_categories(
    expand: Expand, language_model_url: str
) -> None:
    prompts = expand(3, url=language_model_url)
    assert [prompt.index for prompt in prompts] == [0, 1, 2]
    assert {prompt.category for prompt in prompts} <= set(a_run().taxonomy.categories)
    assert all(1 <= len(prompt.text) <= 400 and prompt.base == BASE.text for prompt in prompts)


# Answers


def test_the_request_holds_schema_base_prompt_and_settings(
    expand: Expand, httpserver: HTTPServer
) -> None:
    asked = answer(httpserver, good())
    prompts = expand(temperature=0.3)
    assert [prompt.text for prompt in prompts] == [
        "a left hand with mug 0",
        "a left hand with mug 1",
    ]
    assert len(asked) == 1
    assert (asked[0]["model"], asked[0]["temperature"]) == ("tiny", 0.3)
    assert BASE.text in asked[0]["messages"][1]["content"]
    schema = json.dumps(asked[0]["response_format"]["json_schema"]["schema"])
    assert '"minItems": 2' in schema and all(each in schema for each in a_run().taxonomy.categories)


def test_many_are_asked_for_in_parts(expand: Expand, httpserver: HTTPServer) -> None:
    asked = answer(httpserver, good(8), good(3))
    assert [prompt.index for prompt in expand(11)] == list(range(11))
    assert len(asked) == 2


def test_more_than_were_asked_for_are_left_out(expand: Expand, httpserver: HTTPServer) -> None:
    answer(httpserver, good(5))
    assert len(expand(2)) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (completion('{"prompts": [{"te'), "JSON"),
        (completion('{"prompts": [{"text": "a", "category": "no such"}]}'), "category"),
        (completion('{"prompts": [{"text": "", "category": "power"}]}'), "match pattern"),
        (completion(None), "no JSON of the schema"),
        (good(1), "1 descriptions came, 2 were asked for"),
        (completion('{"prompts": [', finish="length"), "length limit"),
        (_json({"choices": []}), "no choices"),
    ],
)
def test_a_bad_answer_is_asked_for_again_with_the_reason(
    expand: Expand, httpserver: HTTPServer, bad: Response, reason: str
) -> None:
    asked = answer(httpserver, bad, bad, good())
    assert len(expand()) == 2
    assert reason in asked[-1]["messages"][-1]["content"]
    assert len(asked) == 3


def test_three_bad_answers_are_enough(expand: Expand, httpserver: HTTPServer) -> None:
    asked = answer(httpserver, completion("I am no JSON"))
    with pytest.raises(PromptFailed, match="no usable answer in 3 tries"):
        expand()
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (completion(None, refusal="I cannot draw hands"), "refused: I cannot draw hands"),
        (completion(None, finish="content_filter"), "content filter"),
        (error(400), "answered 400: .*not now"),
    ],
)
def test_a_refusal_is_final(
    expand: Expand, httpserver: HTTPServer, refusal: Response, reason: str
) -> None:
    asked = answer(httpserver, refusal)
    with pytest.raises(PromptFailed, match=reason):
        expand()
    assert len(asked) == 1


# Servers that fail


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(expand: Expand, httpserver: HTTPServer, status: int) -> None:
    asked = answer(httpserver, error(status), error(status), good())
    assert len(expand()) == 2
    assert len(asked) == 3


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_stays_busy_is_a_service_that_is_away(
    expand: Expand, httpserver: HTTPServer, status: int
) -> None:
    answer(httpserver, error(status))
    with pytest.raises(ServiceError, match=rf"{httpserver.url_for('/v1')}.* answered {status}"):
        expand()


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "check OPENAI_API_KEY"), (403, "check OPENAI_API_KEY"), (404, "no model 'tiny'")],
)
def test_a_wrong_key_or_model_is_said_to_be_wrong(
    expand: Expand, httpserver: HTTPServer, status: int, words: str
) -> None:
    answer(httpserver, error(status))
    with pytest.raises(InputError, match=words) as refused:
        expand()
    assert "hunter2" not in str(refused.value)


def test_without_a_key_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        load_prompter(a_run(PrompterConfig(kind="openai")))


def test_a_server_that_hangs_is_given_up(expand: Expand, httpserver: HTTPServer) -> None:
    done = threading.Event()

    def hang(_: Request) -> Response:
        done.wait(20)
        return good()

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(hang)
    try:
        with pytest.raises(ServiceError, match=httpserver.url_for("/v1")):
            expand(timeout_s=0.2)
    finally:
        done.set()


def test_nobody_listening_is_a_service_that_is_away(expand: Expand) -> None:
    with pytest.raises(ServiceError, match=r"no answer from http://127\.0\.0\.1:1/v1"):
        expand(url="http://127.0.0.1:1/v1")


def test_a_web_page_is_no_endpoint(expand: Expand, httpserver: HTTPServer) -> None:
    answer(httpserver, Response("<html>welcome", content_type="text/html"))
    with pytest.raises(InputError, match=f"{httpserver.url_for('/v1')}.* no OpenAI-compatible"):
        expand()
