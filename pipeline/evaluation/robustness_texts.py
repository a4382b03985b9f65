"""What is done to a prompt to try a verifier: edits after which its picture shows it no more."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.evaluation.robustness_pictures import Held
from pipeline.training.verifier_negatives import Wordings, changed, mirrored_text

HAND, NUMBER, SEVERAL = "hand", "number", "several"
MOST = 3  # values that are changed at once

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_BETWEEN = r"((?:\s+(?!(?:an?|one|of|the|with|and)\b)[\w-]+){0,3}?)\s+"
_ONE = re.compile(rf"\b(an?|one){_BETWEEN}hand(?![\w'-])", re.IGNORECASE)
_OWN = re.compile(
    r"\b(\w+'s|the|his|her|their|my|your)(?:\s+(?:left|right))?\s+hand(?![\w'-])", re.IGNORECASE
)
_TWO = re.compile(rf"\b(two|both){_BETWEEN}hands(?![\w'-])", re.IGNORECASE)


@dataclass(frozen=True)
class Edit:
    """One kind of edit. texts: of a prompt, edited in growing strength; None where it cannot be."""

    name: str
    title: str
    about: str
    labels: tuple[str, ...]
    texts: Callable[[str, random.Random], tuple[str, ...] | None]
    assumed: str = (
        "Of pictures that show their prompt. The new one is held to be false of them, and the hand "
        "to be as right as before."
    )

    @property
    def holds(self) -> tuple[dict[str, Held], ...]:
        """What becomes of both answers, by strength."""
        held: dict[str, Held] = {"fidelity": "kept", "alignment": "lost"}
        return (held,) * len(self.labels)


def edits(known: Wordings) -> tuple[Edit, ...]:
    """Of every attribute that the taxonomy knows, of the hand's side, of the number of hands, and
    of several attributes at once."""
    return (
        *(
            Edit(
                name,
                f"another {spaced}",
                f"The {spaced} that the prompt names becomes another one of the taxonomy's.",
                ("changed",),
                _one(name, known),
            )
            for name, spaced in ((each, each.replace("_", " ")) for each in known.values)
            if name != HAND
        ),
        Edit(HAND, "the other hand", "Left becomes right, and right left.", ("changed",), _sides),
        Edit(
            NUMBER,
            "another number of hands",
            "One hand becomes two, and two become one.",
            ("changed",),
            _numbers,
        ),
        Edit(
            SEVERAL,
            "a number of attributes",
            "One, two and three attributes of the same prompt get other values.",
            tuple(f"{count} changed" for count in range(1, MOST + 1)),
            lambda text, rng: _several(text, known, rng),
        ),
    )


def other_value(text: str, name: str, known: Wordings, rng: random.Random) -> str | None:
    """The text with another value of one attribute, or None where it names none or several."""
    never = {each: 0.0 for each in known.values if each != name}
    return changed(text, known, rng, never)


def other_side(text: str) -> str | None:
    """Left and right exchanged; None unless the text names exactly one of them."""
    named = {match[0].lower() for match in _SIDE.finditer(text)}
    return mirrored_text(text) if len(named) == 1 else None


def other_number(text: str) -> str | None:
    """Two hands for one and the other way round; None unless the text counts its hands once."""
    found = [(kind, match) for kind in (_ONE, _OWN, _TWO) for match in kind.finditer(text)]
    if len(found) != 1:
        return None
    kind, match = found[0]
    if kind is _OWN:
        new = f"{match[1]} two hands"
    else:
        new = f"one{match[2]} hand" if kind is _TWO else f"two{match[2]} hands"
    if match[1][0].isupper():
        new = new[0].upper() + new[1:]
    return text[: match.start()] + new + text[match.end() :]


def _one(name: str, known: Wordings) -> Callable[[str, random.Random], tuple[str, ...] | None]:
    def texts(text: str, rng: random.Random) -> tuple[str, ...] | None:
        edited = other_value(text, name, known, rng)
        return None if edited is None else (edited,)

    return texts


def _sides(text: str, rng: random.Random) -> tuple[str, ...] | None:
    edited = other_side(text)
    return None if edited is None else (edited,)


def _numbers(text: str, rng: random.Random) -> tuple[str, ...] | None:
    edited = other_number(text)
    return None if edited is None else (edited,)


def _several(text: str, known: Wordings, rng: random.Random) -> tuple[str, ...] | None:
    """The first so many changes of a random order; None where fewer than MOST are possible."""
    names = list(known.said(text))
    rng.shuffle(names)
    found = list(_growing(text, names, known, rng))
    return tuple(found) if len(found) == MOST else None


def _growing(text: str, names: list[str], known: Wordings, rng: random.Random) -> Iterator[str]:
    changes = 0
    for name in names:
        edited = other_value(text, name, known, rng)
        if edited is not None and changes < MOST:
            text, changes = edited, changes + 1
            yield text
