"""Base prompts from a file or standard input, as a stream: .txt, .jsonl or .csv.

.txt holds one base prompt a line; .jsonl an object with "prompt", or a string, a line; .csv a
column "prompt". What cannot be a base prompt stops the stream with its line number.
"""

import csv
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Literal

from pipeline.errors import InputError
from pipeline.types import BasePrompt

Format = Literal["txt", "jsonl", "csv"]

MAX_CHARACTERS = 2000
_MAX_LINE_BYTES = 64 * 1024  # a longer line is not read to its end
_FIELD = "prompt"
_NO_TEXT = {"Cc": "the control character", "Cs": "the lone surrogate"}


def read_bases(source: str, format: Format | None = None) -> Iterator[BasePrompt]:
    """The base prompts of a file, or of standard input for "-". Blank lines are passed over.

    The first is read at once, so that a file without any is known before anything is started for
    it; the rest is a stream. format: by default the file's ending, and txt for standard input.
    Raises InputError, with the line, for what is no base prompt, and for a file without any.
    """
    bases = _bases(source, format)
    return chain([next(bases)], bases)


def _bases(source: str, format: Format | None) -> Iterator[BasePrompt]:
    kind = format or _format_of(source)
    name = "standard input" if source == "-" else source
    found = False
    with _open(source) as file:
        lines = _lines(file, name)
        for number, text in _texts(lines, kind, name):
            if base := _base(text, f"{name}, line {number}"):
                found = True
                yield base
    if not found:
        raise InputError(f"{name} holds no base prompt: write one a line")


def _format_of(source: str) -> Format:
    if source == "-":
        return "txt"
    ending = Path(source).suffix.lower()
    for format in ("txt", "jsonl", "csv"):
        if ending == f".{format}":
            return format
    raise InputError(f"{source}: the ending says no format; use .txt, .jsonl or .csv, or --format")


def _open(source: str) -> IO[bytes]:
    if source == "-":
        return sys.stdin.buffer
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from None


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines as text. Raises InputError for one that is too long or not UTF-8."""
    number = 0
    while line := file.readline(_MAX_LINE_BYTES):
        number += 1
        if len(line) == _MAX_LINE_BYTES:
            raise InputError(
                f"{name}, line {number} is longer than {_MAX_LINE_BYTES:,} bytes; "
                f"a base prompt has at most {MAX_CHARACTERS:,} characters"
            )
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number} is not UTF-8 (byte {line[error.start]:#04x} at column "
                f"{error.start + 1}): save the file as UTF-8"
            ) from None
        yield number, text


def _texts(
    lines: Iterator[tuple[int, str]], format: Format, name: str
) -> Iterator[tuple[int, str]]:
    if format == "csv":
        yield from _csv_texts(lines, name)
    elif format == "jsonl":
        yield from ((number, _json_text(line, f"{name}, line {number}")) for number, line in lines)
    else:
        yield from lines


def _json_text(line: str, where: str) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):  # a number of 5,000 digits, 5,000 brackets
        raise InputError(f"{where} is JSON that nobody can read: too long or too deep") from None
    text = value.get(_FIELD) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f'{where} needs an object with "{_FIELD}" as text, or a string')
    return text


def _csv_texts(lines: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, str]]:
    numbers = [0]  # of the line that the reader took last

    def texts() -> Iterable[str]:
        for numbers[0], line in lines:
            if line.strip():  # a blank one is no header, and within quotes it adds nothing
                yield line

    reader = csv.DictReader(texts(), strict=True)
    try:
        if _FIELD not in (reader.fieldnames or [_FIELD]):
            columns = ", ".join(reader.fieldnames or ())
            raise InputError(f"{name} has no column {_FIELD!r} (columns: {columns})")
        for row in reader:
            yield numbers[0], row[_FIELD] or ""
    except csv.Error as error:
        raise InputError(f"{name}, line {numbers[0]} is broken CSV: {error}") from None


def _base(text: str, where: str) -> BasePrompt | None:
    """None for a blank line."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    if not text:
        return None
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"{where} has {len(text):,} characters; a base prompt has at most {MAX_CHARACTERS:,}"
        )
    for character in text:
        if kind := _NO_TEXT.get(unicodedata.category(character)):
            raise InputError(f"{where} holds {kind} U+{ord(character):04X}: take it out")
    return BasePrompt(text=text)


def run_name_of(source: str) -> str:
    """A run name for a file: its own, as far as that can be one."""
    stem = "stdin" if source == "-" else Path(source).stem.lower()
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:64] or "run"
