"""What the models downstream can read of a prompt, measured with their own tokenizers.

CLIP's text encoders take 77 tokens, ViLT 40; what is beyond is cut off without a word by their
libraries. Here it is measured before anything is drawn. Needs transformers, never torch.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.config import Run
from pipeline.errors import ModelError, ServiceError
from pipeline.models import installed
from pipeline.types import ModelRef, Reading
from pipeline.verifier.clauses import BOUNDARIES

WORDS_PER_TOKEN = 0.75  # of plain English, by CLIP's and BERT's vocabularies
_PATIENT = 100_000  # tokenizers without a limit of their own say some 10^30


@dataclass(frozen=True)
class Reader:
    """One tokenizer. count: tokens of a text, special ones included; limit: what is read."""

    count: Callable[[str], int]
    limit: int

    def read(self, text: str) -> Reading:
        return Reading(tokens=self.count(text), limit=self.limit)


@dataclass(frozen=True)
class Budget:
    """The readers of a run by stage, and which stages must read a prompt whole.

    A stage with several text encoders reads as the most patient of them does.
    """

    readers: dict[str, tuple[Reader, ...]]
    fit: tuple[str, ...]

    def measure(self, text: str) -> dict[str, Reading]:
        """By stage."""
        return {
            stage: min((reader.read(text) for reader in readers), key=lambda each: each.unread)
            for stage, readers in self.readers.items()
        }

    def fits(self, text: str) -> bool:
        return self.excess(self.measure(text)) is None

    def excess(self, readings: dict[str, Reading]) -> Reading | None:
        """The reading that leaves out most, of those that must not; None if there is none."""
        over = [readings[stage] for stage in self.fit if readings[stage].unread]
        return max(over, key=lambda reading: reading.unread, default=None)

    @property
    def words(self) -> int:
        """How many words a text may roughly have."""
        limits = [max(reader.limit for reader in self.readers[stage]) for stage in self.fit]
        return max(5, min(400, int((min(limits, default=_PATIENT) - 2) * WORDS_PER_TOKEN)))

    def cut(self, text: str) -> tuple[str, str]:
        """The beginning that fits and ends with a clause, and what was cut off.

        The clause ends with a punctuation mark where that keeps at least half of what could be
        kept, else before a conjunction or preposition, else anywhere.
        """
        *marks, joints, words = BOUNDARIES
        longest = self._longest(text, (words,)) or self._longest_letters(text)
        for patterns in (tuple(marks), (joints,)):
            kept = self._longest(text, patterns)
            if len(kept) >= len(longest) / 2:
                return kept, text[len(kept) :]
        return longest, text[len(longest) :]

    def _longest(self, text: str, patterns: tuple[re.Pattern[str], ...]) -> str:
        """The longest beginning that fits and ends where a pattern does; "" if there is none."""
        ends = {match.end() for pattern in patterns for match in pattern.finditer(text)}
        return self._last_that_fits([text[:end].rstrip().rstrip(",;:") for end in sorted(ends)])

    def _longest_letters(self, text: str) -> str:
        """For a first word that is too long by itself."""
        return self._last_that_fits([text[:n] for n in range(1, len(text))]) or text[0]

    def _last_that_fits(self, beginnings: list[str]) -> str:
        """beginnings: each longer than the one before, so that bisection finds the last."""
        fitting = bisect_left(beginnings, True, key=lambda text: not self.fits(text))
        return beginnings[fitting - 1] if fitting else ""


def still_said(attributes: dict[str, str], cut: str) -> dict[str, str]:
    """The attributes of a text without those whose words went with what was cut off."""
    gone = cut.lower()
    return {name: value for name, value in attributes.items() if value.lower() not in gone}


def budget_of(run: Run) -> Budget:
    """The readers that a run's models have.

    Raises ModelError if a model's tokenizer is not on this machine and no hub has it.
    """
    readers = _proposer_readers(run.proposers[0].base)  # all draw on it
    tokens = {ref.adapter.token for ref in run.proposers if ref.adapter and ref.adapter.token}
    fit = ("proposer", "verifier") if run.prompter.fit == "both" else ("proposer",)
    proposer = tuple(_after(reader, tokens) for reader in readers)
    return Budget({"proposer": proposer, "verifier": (_verifier_reader(run.verifier_ref),)}, fit)


def _after(reader: Reader, words: set[str]) -> Reader:
    """A reader of what a specialist is given: its rare word, the longest there is, and the text."""
    if not words:
        return reader
    longest = max(sorted(words), key=reader.count)
    return Reader(lambda text: reader.count(f"{longest} {text}"), reader.limit)


@lru_cache(maxsize=16)
def _proposer_readers(ref: ModelRef) -> tuple[Reader, ...]:
    folder = _tokenizers_of(ref, "base", ["model_index.json", "tokenizer*/*"])
    try:
        parts = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{ref.name!r} is no diffusers pipeline: {error}") from None
    classes = {
        name: str(kind[1])
        for name, kind in parts.items()
        if re.fullmatch(r"tokenizer(_\d)?", name) and isinstance(kind, list) and kind[1]
    }
    if not classes:
        raise ModelError(f"{ref.name!r} has no tokenizer to measure prompts with")
    return tuple(_reader(ref, folder / name, kind) for name, kind in classes.items())


@lru_cache(maxsize=16)
def _verifier_reader(ref: ModelRef) -> Reader:
    folder = _tokenizers_of(ref, "verifier", ["config.json", "tokenizer*", "vocab.txt"])
    reader = _reader(ref, folder, "BertTokenizer")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return Reader(reader.count, int(config["max_position_embeddings"]))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"verifier {ref.name!r} says no text length: {error}") from None


def _reader(ref: ModelRef, folder: Path, kind: str) -> Reader:
    import transformers

    if not re.fullmatch(r"\w+Tokenizer(Fast)?", kind) or not hasattr(transformers, kind):
        raise ModelError(f"{ref.name!r} names the tokenizer {kind!r}, which transformers lacks")
    try:
        tokenizer: Any = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"the tokenizer of {ref.name!r} cannot be loaded: {reason}") from None

    return Reader(_counter(tokenizer), min(int(tokenizer.model_max_length), _PATIENT))


def _counter(tokenizer: Any) -> Callable[[str], int]:
    """Counts tokens, special ones included. The Rust tokenizer inside does it three times as fast
    as its wrapper; a few tokenizers have none."""
    inside = getattr(tokenizer, "backend_tokenizer", None)
    if inside is None:
        return lambda text: len(tokenizer(text, verbose=False).input_ids)
    inside.no_truncation()
    inside.no_padding()
    return lambda text: len(inside.encode(text))


def _tokenizers_of(ref: ModelRef, part: str, patterns: list[str]) -> Path:
    """The folder that holds a model's tokenizer; of a hub id, only these files are fetched."""
    folder = installed(ref, part)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        revision = ref.weights.removeprefix("hub:")
        return Path(snapshot_download(ref.name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # whatever the hub's HTTP library of the day raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ServiceError(f"the hub cannot be asked for {ref.name!r}: {reason}") from None
