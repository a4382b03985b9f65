"""Suites: the prompts that models are compared on.

hands, unseen, hard, general      for models of the real world: hands and objects; unseen objects;
                                  occlusion and two hands; no hands at all
miniature-hands                   of combinations that nothing of the miniature was trained on, each
                                  with a short base prompt
miniature-unseen                  objects in grasps that the drawn world has not
miniature-hard                    occlusion and two hands, which the drawn world has neither of
miniature-general                 objects without a word of a hand

A file of one's own is .txt with a prompt a line, or .jsonl with {"prompt": ...} and, if prompts are
to be drawn short as well, {"base": ...}.
"""

import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.errors import InputError
from pipeline.shipped import nearest
from pipeline.types import digest

SHIPPED = Path(__file__).parent / "suites"
MAX_BYTES = 8 * 1024 * 1024
MAX_CHARACTERS = 2000  # of a prompt


@dataclass(frozen=True)
class Line:
    """One prompt of a suite. base: how somebody would ask for it in short; "": nobody says."""

    prompt: str
    base: str = ""


@dataclass(frozen=True)
class Suite:
    """Prompts under a name, each once."""

    name: str
    lines: tuple[Line, ...]

    @cached_property
    def digest(self) -> str:
        """Of what is asked, in whatever order."""
        return digest(sorted([line.prompt, line.base] for line in self.lines))

    @property
    def has_bases(self) -> bool:
        """Whether every prompt can be drawn short, from a base prompt of its own."""
        return all(line.base for line in self.lines)


def load_suite(source: str) -> Suite:
    """A suite that ships, by name, or a file of one's own.

    Raises InputError, with the line, for an empty line, one that repeats another, or one that is
    no prompt; and for a file that is missing, empty or too large.
    """
    path = _path_of(source)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"suite {source!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"suite {source!r} is not UTF-8: save it as UTF-8") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"suite {source!r} is larger than {MAX_BYTES:,} bytes: split it")
    lines = []
    first: dict[str, int] = {}
    for number, written in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        where = f"suite {source!r}, line {number}"
        line = _line(written, path.suffix, where)
        earlier = first.setdefault(line.prompt.casefold(), number)
        if earlier != number:
            raise InputError(
                f"{where} repeats line {earlier}, {line.prompt[:60]!r}: a prompt counts once"
            )
        lines.append(line)
    if not lines:
        raise InputError(f"suite {source!r} holds no prompt: write one a line")
    suite = Suite(path.stem, tuple(lines))
    repeated = [base for base, count in Counter(line.base for line in lines).items() if count > 1]
    if suite.has_bases and repeated:
        raise InputError(
            f"suite {source!r} has the base prompt {repeated[0][:60]!r} twice: each prompt needs "
            "one of its own"
        )
    return suite


def _path_of(source: str) -> Path:
    shipped = {file.stem: file for file in sorted(SHIPPED.iterdir())}
    if source in shipped:
        return shipped[source]
    path = Path(source)
    if path.is_file() and path.suffix in (".txt", ".jsonl"):
        return path
    if path.is_file():
        raise InputError(f"suite {source!r}: a suite is a .txt or a .jsonl file")
    raise InputError(f"no suite {source!r}, neither a file nor one that ships; {_known(source)}")


def _known(source: str) -> str:
    return nearest(source, sorted(file.stem for file in SHIPPED.iterdir()))


def _line(written: str, ending: str, where: str) -> Line:
    if not written.strip():
        raise InputError(f"{where} is empty: take it out, or write a prompt there")
    if ending == ".txt":
        return Line(_plain(written, where))
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        raise InputError(f'{where} is no JSON: write {{"prompt": "..."}}') from None
    known = ("prompt", "base")
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise InputError(f'{where} needs an object with "prompt" as text')
    if unknown := [name for name in value if name not in known]:
        raise InputError(f"{where} has the unknown field {unknown[0]!r}: known are prompt and base")
    base = value.get("base", "")
    if not isinstance(base, str):
        raise InputError(f'{where}: "base" has to be text')
    return Line(_plain(value["prompt"], where), _plain(base, where) if base else "")


def _plain(text: str, where: str) -> str:
    """As base prompts are read: one line, single blanks."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    if not text or len(text) > MAX_CHARACTERS:
        raise InputError(f"{where}: a prompt has 1 to {MAX_CHARACTERS:,} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise InputError(f"{where} holds a control character: take it out")
    return text
