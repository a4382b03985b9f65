"""Prompters ask, others answer: a prompter is written without input or output of its own.

`Prompter.expand` is a generator that yields requests to a language model, is sent their answers,
and returns an Expansion. Whoever drives it decides how answers come: one by one over HTTP, from a
cache, or a day later through a provider's batches endpoint. The grammar prompter asks nothing.
"""

import json
import re
from collections.abc import Callable, Generator
from functools import cached_property
from typing import Any, Protocol

from pipeline.errors import PromptFailed
from pipeline.types import Answer, BasePrompt, Expansion, Frozen, digest

BYTES_PER_TOKEN = 4
PICTURE = "data:image/png;base64,"  # what a picture begins with in a body
PICTURE_TOKENS = 800  # what a picture of 512 px costs at most, by providers' tables
OUTPUT = 110  # tokens of one description: a sentence of 30 words and its attributes


class Request(Frozen):
    """One question: the body that goes to /v1/chat/completions, and nothing else."""

    address: str  # of the endpoint, since another server's model of the same name is another model
    body: dict[str, Any]
    descriptions: int = 1  # how many it asks for

    @cached_property
    def key(self) -> str:
        """What an answer is kept under: a hash of the whole request."""
        return digest({"address": self.address, "body": self.body})

    @cached_property
    def expected_tokens(self) -> tuple[int, int]:
        """What it will roughly take: input and output tokens, before anybody counted them.

        A token is about 4 bytes of English, and the schema counts as input; so does a picture,
        whatever its bytes.
        """
        asked = [self.body["messages"], self.body.get("response_format")]
        text = json.dumps(asked, ensure_ascii=False)
        pictures = text.count(PICTURE)
        if pictures:
            text = re.sub(rf"{PICTURE}[^\"]*", "", text)
        tokens = -(-len(text.encode()) // BYTES_PER_TOKEN) + pictures * PICTURE_TOKENS
        return tokens, self.descriptions * OUTPUT


Reply = Answer | PromptFailed
"""What became of a request: an answer, or why there will be none."""

Dialogue = Generator[tuple[Request, ...], tuple[Reply, ...], Expansion]
"""Yields requests that do not depend on each other, is sent their replies in order, returns what
became of the base prompt. Raises PromptFailed."""


class Prompter(Protocol):
    """Whatever makes detailed prompts."""

    def expand(self, base: BasePrompt) -> Dialogue:
        """As many detailed prompts as the configuration says, in order of their index."""


def converse(dialogue: Dialogue, ask: Callable[[Request], Answer]) -> Expansion:
    """The dialogue's end, each request answered by `ask`.

    A PromptFailed of `ask` is told to the dialogue; anything else ends it.
    """

    def reply(request: Request) -> Reply:
        try:
            return ask(request)
        except PromptFailed as error:
            return error

    try:
        requests = next(dialogue)
        while True:
            requests = dialogue.send(tuple(map(reply, requests)))
    except StopIteration as end:
        expansion: Expansion = end.value
        return expansion
    finally:
        dialogue.close()
