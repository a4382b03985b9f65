"""The prompter on an OpenAI-compatible endpoint, with a JSON schema for its answer.

Key and address come from the client's own OPENAI_API_KEY and OPENAI_BASE_URL. A server that
ignores the schema is asked again with the reason; after that the base prompt is a failure.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import openai
from openai import OpenAI
from pydantic import BaseModel, Field, ValidationError, create_model

from pipeline.config import Run
from pipeline.errors import InputError, PromptFailed, ServiceError
from pipeline.types import BasePrompt, DetailedPrompt

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

ANSWERS_PER_REQUEST = 8  # longer lists run into the length limit and repeat themselves
MAX_CHARACTERS = 400  # of one description: twice what the 30 words asked for take
TRIES = 3

SYSTEM = (Path(__file__).parent / "system.txt").read_text("utf-8")


class OpenAIPrompter:
    """Detailed prompts from a language model."""

    def __init__(self, run: Run) -> None:
        self._run = run
        try:
            self._client = OpenAI(timeout=run.prompter.timeout_s, max_retries=3)
        except openai.OpenAIError as error:
            raise InputError("the openai prompter needs a key: set OPENAI_API_KEY") from error

    def expand(self, base: BasePrompt) -> tuple[DetailedPrompt, ...]:
        """Raises PromptFailed if no valid answer came, ServiceError if the endpoint is away."""
        count = self._run.prompter.prompts_per_base
        answers: list[BaseModel] = []
        while len(answers) < count:
            answers += self._ask(base, min(ANSWERS_PER_REQUEST, count - len(answers)))
        return tuple(
            DetailedPrompt(
                id=DetailedPrompt.id_of(self._run.prompter_digest, base.text, index),
                base=base.text,
                index=index,
                **answer.model_dump(),
            )
            for index, answer in enumerate(answers)
        )

    def _ask(self, base: BasePrompt, count: int) -> list[BaseModel]:
        messages: list[ChatCompletionMessageParam] = [
            {
                "role": "system",
                "content": SYSTEM.format(categories=", ".join(self._run.taxonomy.categories)),
            },
            {"role": "user", "content": f"Base prompt: {base.text}\nDescriptions: {count}"},
        ]
        reason = ""
        for _ in range(TRIES):
            again: list[ChatCompletionMessageParam] = (
                [{"role": "user", "content": f"That could not be used: {reason}. Again, please."}]
                if reason
                else []
            )
            try:
                return self._answers(messages + again, count)
            except (ValidationError, ValueError) as error:
                reason = " ".join(str(error).split())[:300]
            except openai.LengthFinishReasonError:
                reason = "the answer was cut off by the length limit"
            except openai.ContentFilterFinishReasonError:
                raise PromptFailed(f"the content filter stopped {base.text[:80]!r}") from None
        raise PromptFailed(f"no usable answer in {TRIES} tries: {reason}")

    def _answers(self, messages: "list[ChatCompletionMessageParam]", count: int) -> list[BaseModel]:
        config = self._run.prompter
        try:
            completion = self._client.chat.completions.parse(
                model=config.model,
                messages=messages,
                temperature=config.temperature,
                response_format=_schema(tuple(self._run.taxonomy.categories), count),
            )
        except openai.APIConnectionError as error:
            raise ServiceError(f"no answer from {self._client.base_url}: {error}") from error
        except openai.APIStatusError as error:
            raise _status_error(error, config.model, str(self._client.base_url)) from error
        except AttributeError as error:  # the client takes what is no JSON for a string
            raise InputError(
                f"{self._client.base_url} is no OpenAI-compatible endpoint: check OPENAI_BASE_URL"
            ) from error
        if not completion.choices:
            raise ValueError("the answer held no choices")
        message = completion.choices[0].message
        if message.refusal:
            raise PromptFailed(f"refused: {message.refusal[:200]}")
        if message.parsed is None:
            raise ValueError("the answer held no JSON of the schema")
        answers: list[BaseModel] = message.parsed.prompts  # type: ignore[attr-defined]
        if len(answers) < count:
            raise ValueError(f"{len(answers)} descriptions came, {count} were asked for")
        return answers[:count]


def _schema(categories: tuple[str, ...], count: int) -> type[BaseModel]:
    """The answer's schema: so many texts, each with one of the taxonomy's categories.

    A server that decodes by the schema ends by its bounds; what a server that ignores it sends
    beyond `count` is left out.
    """
    description = create_model(
        "Description",
        # A pattern, since strict schemas of OpenAI's own take no maxLength. Without quotes and
        # control characters, as llama.cpp writes what a pattern allows without escaping it.
        text=(str, Field(pattern=rf'^[^"\\\x00-\x1f]{{1,{MAX_CHARACTERS}}}$')),
        category=(Literal[categories], ...),  # type: ignore[arg-type]
    )
    exactly = Field(json_schema_extra={"minItems": count, "maxItems": count})
    return create_model("Descriptions", prompts=(list[description], exactly))  # type: ignore[valid-type]


def _status_error(error: openai.APIStatusError, model: str, address: str) -> Exception:
    """What to do about an answer that is no answer: wait, mend the configuration, or give up."""
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return InputError(f"{address} refused the key: check OPENAI_API_KEY")
    if isinstance(error, openai.NotFoundError):
        return InputError(f"{address} has no model {model!r}: set prompter.model")
    if isinstance(error, openai.RateLimitError) or error.status_code >= 500:
        return ServiceError(f"{address} answered {error.status_code}: {error.message[:200]}")
    return PromptFailed(f"{address} answered {error.status_code}: {error.message[:200]}")
