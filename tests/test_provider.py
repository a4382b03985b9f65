"""The stand-in provider, by the real openai client: what it says, and how it fails."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Any, Literal

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from pydantic import BaseModel, Field

from bench.provider import Provider


class Description(BaseModel):
    text: Annotated[str, Field(pattern=r'^[^"\\\x00-\x1f]{1,400}$')]
    category: Literal["power", "pinch"]
    object: str | None


class Descriptions(BaseModel):
    prompts: Annotated[list[Description], Field(json_schema_extra={"minItems": 3, "maxItems": 3})]


SCHEMA = {"name": "descriptions", "strict": True, "schema": Descriptions.model_json_schema()}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(batch_s=0.02) as provider:
        yield provider


@pytest.fixture
def client(provider: Provider) -> Iterator[OpenAI]:
    with OpenAI(base_url=provider.url, api_key="sk-any", max_retries=0, timeout=10) as client:
        yield client


def body(text: str) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "response_format": {"type": "json_schema", "json_schema": SCHEMA},
    }


def ask(client: OpenAI, text: str = "a mug") -> str:
    content = client.chat.completions.create(**body(text)).choices[0].message.content
    assert content is not None
    return content


def send_batch(client: OpenAI, texts: list[str], **metadata: str) -> Batch:
    lines = [
        {"custom_id": text, "method": "POST", "url": "/v1/chat/completions", "body": body(text)}
        for text in texts
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata=metadata,
    )


def ended(client: OpenAI, batch: Batch, deadline_s: float = 20) -> Batch:
    end = time.monotonic() + deadline_s
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < end, batch
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


# Answers


def test_an_answer_fits_the_schema_and_is_parsed(client: OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "a mug"}],
        response_format=Descriptions,
    )
    parsed = completion.choices[0].message.parsed
    assert parsed is not None and len({each.text for each in parsed.prompts}) == 3
    usage = completion.usage
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_same_request_has_the_same_answer_and_others_have_others(client: OpenAI) -> None:
    assert ask(client, "a mug") == ask(client, "a mug") != ask(client, "a key")


def test_every_complete_answer_is_counted_by_its_request(
    client: OpenAI, provider: Provider
) -> None:
    for text in ("a mug", "a mug", "a key"):
        ask(client, text)
    counts = provider.counts()
    assert sorted(counts["answers"].values()) == [1, 2]
    assert (counts["requests"], counts["answered"], counts["answered_twice"]) == (3, 3, 1)


def test_an_answer_is_paid_once_for_an_idempotency_key(client: OpenAI, provider: Provider) -> None:
    for _ in range(3):
        client.chat.completions.create(**body("a mug"), extra_headers={"Idempotency-Key": "1"})
    assert list(provider.counts()["answers"].values()) == [1]
    assert provider.counts()["repeated"] == 2


def test_the_largest_number_under_way_is_counted(client: OpenAI, provider: Provider) -> None:
    provider.control(latency_s=0.3)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: ask(client, str(n)), range(4)))
    assert provider.counts()["most_under_way"] == 4


def test_models_are_listed(provider: Provider, client: OpenAI) -> None:
    provider.control(models="small,large")
    assert [model.id for model in client.models.list()] == ["small", "large"]


def test_it_starts_again_on_the_same_port(provider: Provider, client: OpenAI) -> None:
    before = provider.url
    provider.stop()
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    provider.start()
    assert provider.url == before and ask(client)


# Faults


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("429", openai.RateLimitError),
        ("quota", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("503", openai.InternalServerError),
        ("400", openai.BadRequestError),
        ("403", openai.PermissionDeniedError),
        ("filtered_prompt", openai.BadRequestError),
        ("drop", (openai.APIConnectionError, httpx2.RemoteProtocolError)),
        ("truncated", openai.LengthFinishReasonError),
        ("content_filter", openai.ContentFilterFinishReasonError),
        ("malformed", ValueError),
    ],
)
def test_a_fault_surfaces_as_the_clients_exception(
    client: OpenAI, provider: Provider, outcome: str, error: type[Exception]
) -> None:
    provider.control(next=[outcome, "ok"])

    def parse() -> object:
        return client.chat.completions.parse(
            model="tiny",
            messages=[{"role": "user", "content": "a mug"}],
            response_format=Descriptions,
        )

    with pytest.raises(error):
        parse()
    assert parse()


def test_a_429_says_when_to_come_back(client: OpenAI, provider: Provider) -> None:
    provider.control(next=["429"], retry_after_s=7)
    with pytest.raises(openai.RateLimitError) as busy:
        ask(client)
    assert busy.value.response.headers["retry-after"] == "7"


def test_a_refusal_is_an_answer(client: OpenAI, provider: Provider) -> None:
    provider.control(next=["refusal"])
    message = client.chat.completions.create(**body("a mug")).choices[0].message
    assert message.content is None and message.refusal


def test_a_broken_connection_is_no_complete_answer(client: OpenAI, provider: Provider) -> None:
    provider.control(next=["drop"])
    with suppress(openai.APIConnectionError, httpx2.RemoteProtocolError):
        ask(client)
    assert provider.counts()["answered"] == 0


def test_a_client_that_hangs_up_has_abandoned_its_answer(
    client: OpenAI, provider: Provider
) -> None:
    provider.control(next=["hang"])
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**body("a mug"), timeout=0.2)
    end = time.monotonic() + 10
    while provider.counts()["abandoned"] == 0:
        assert time.monotonic() < end
    assert provider.counts()["answered"] == 0


def test_a_share_of_answers_fails_the_same_way_by_the_same_seed(client: OpenAI) -> None:
    def failures(seed: int) -> list[int]:
        failed = []
        with (
            Provider(fail=0.3, faults="500", seed=seed) as provider,
            OpenAI(base_url=provider.url, api_key="sk-any", max_retries=0) as client,
        ):
            for number in range(40):
                try:
                    ask(client, str(number))
                except openai.InternalServerError:
                    failed.append(number)
        return failed

    first = failures(1)
    assert 4 <= len(first) <= 20
    assert failures(1) == first != failures(2)


def test_a_wrong_key_and_an_unknown_model_are_refused(client: OpenAI, provider: Provider) -> None:
    provider.control(models="large")
    with pytest.raises(openai.NotFoundError, match="tiny"):
        ask(client)
    provider.control(key="sk-other")
    with pytest.raises(openai.AuthenticationError):
        ask(client)


def test_it_can_be_away_for_a_while(client: OpenAI, provider: Provider) -> None:
    provider.control(away_s=60)
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    provider.control(away_s=0)
    assert ask(client)


def test_a_misspelt_wish_is_refused(provider: Provider) -> None:
    with pytest.raises(ValueError, match="latency_ms"):
        provider.control(latency_ms=1)
    with pytest.raises(ValueError, match="explode"):
        provider.control(next=["explode"])


# Batches


def test_a_batch_has_the_answers_of_live_requests_in_another_order(client: OpenAI) -> None:
    texts = [str(number) for number in range(30)]
    batch = ended(client, send_batch(client, texts, who="me"))
    assert (batch.status, batch.metadata) == ("completed", {"who": "me"})
    lines = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in lines] != texts
    found = {line["custom_id"]: line["response"]["body"] for line in lines}
    assert sorted(found) == sorted(texts)
    assert found["7"]["choices"][0]["message"]["content"] == ask(client, "7")
    assert batch.request_counts is not None and batch.request_counts.completed == 30


@pytest.mark.parametrize(
    ("outcome", "code"), [("expired", "batch_expired"), ("cancelled", "batch_cancelled")]
)
def test_a_batch_may_end_half_done(
    client: OpenAI, provider: Provider, outcome: str, code: str
) -> None:
    provider.control(next_batches=[outcome])
    batch = ended(client, send_batch(client, ["a", "b", "c", "d"]))
    assert batch.status == outcome
    assert len(lines_of(client, batch.output_file_id)) == 2
    undone = lines_of(client, batch.error_file_id)
    assert [line["error"]["code"] for line in undone] == [code, code]
    assert provider.counts()["answered"] == 2


def test_lines_of_a_batch_may_fail(client: OpenAI, provider: Provider) -> None:
    provider.control(next_batches=["errors"])
    batch = ended(client, send_batch(client, ["a", "b", "c", "d"]))
    assert batch.status == "completed"
    failed = lines_of(client, batch.error_file_id)
    assert [line["response"]["status_code"] for line in failed] == [500, 500]


@pytest.mark.parametrize(("limit", "code"), [({"batch_requests": 3}, "too_many_tasks"), ({}, "")])
def test_a_file_beyond_the_limit_fails_at_validation(
    client: OpenAI, provider: Provider, limit: dict[str, int], code: str
) -> None:
    provider.control(**limit)
    batch = ended(client, send_batch(client, ["a", "b", "c", "d"]))
    errors = batch.errors.data if batch.errors else None
    assert (errors[0].code if errors else "") == code


def test_a_file_that_is_too_large_is_refused(client: OpenAI, provider: Provider) -> None:
    provider.control(batch_bytes=100)
    with pytest.raises(openai.APIStatusError, match="100 bytes"):
        send_batch(client, ["a"])


def test_what_is_no_jsonl_fails_with_its_line(client: OpenAI) -> None:
    file = client.files.create(file=("x.jsonl", b'{"a": \n'), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = ended(client, batch)
    assert batch.status == "failed" and batch.errors and batch.errors.data
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == ("invalid_json_line", 1)


def test_batches_are_listed_newest_first_in_pages(client: OpenAI) -> None:
    ids = [send_batch(client, [str(number)]).id for number in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == ids[::-1]


def test_a_batch_can_be_cancelled(client: OpenAI, provider: Provider) -> None:
    provider.control(batch_s=0.5)
    batch = send_batch(client, ["a", "b"])
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert ended(client, batch).status == "cancelled"
    assert provider.counts()["answered"] == 0


def test_files_can_be_deleted(client: OpenAI) -> None:
    file = client.files.create(file=("x.jsonl", b"{}\n"), purpose="batch")
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_a_server_may_have_no_batches(client: OpenAI, provider: Provider) -> None:
    provider.control(batches=False)
    with pytest.raises(openai.NotFoundError):
        client.batches.list()
