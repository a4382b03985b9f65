"""What a language model is told, read from a file that a user edits."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.shipped import read_yaml
from pipeline.types import Frozen

SHIPPED = Path(__file__).parent / "prompts"

Text = Annotated[str, Field(min_length=1)]


class Instructions(Frozen):
    """The system prompt, and the reasons given when something is asked for again.

    In each, a word in braces that is named below is replaced; other braces are left as they are.
    """

    name: str
    version: int
    system: Text  # {categories}: the taxonomy's, with their notes
    shorter: Text  # a description over budget. {tokens}, {limit}
    different: Text  # one that repeats another
    invalid: Text  # one, or a whole answer, that cannot be used. {reason}


def load_instructions(source: str) -> Instructions:
    """Instructions that ship, by name, or the user's own, by their file. Raises InputError."""
    return read_yaml(Instructions, source, SHIPPED, "instructions")


def fill(text: str, **words: object) -> str:
    """The text with each {name} replaced by its word, and nothing else touched, words included."""
    if not words:
        return text
    names = "|".join(map(re.escape, words))
    return re.sub(rf"{{({names})}}", lambda match: str(words[match[1]]), text)
