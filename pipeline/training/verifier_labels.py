"""What a verifier learns from: labels of files or sets, agreed upon and parted by base prompt."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.labels import Label, last_said
from pipeline.shipped import nearest
from pipeline.training.instances import read_picture
from pipeline.types import digest

LEAST = 20  # labelled pictures
SMALLEST_PX = 8  # of a picture's shorter side
MAX_ASPECT = 4.0  # longer side to shorter
SHOWN = 20  # problems of one set
TRIES = 200  # ways to part the base prompts, until each part has both answers

Part = Literal["train", "validation", "calibration", "test"]
Parts = dict[Part, list["Judged"]]


@dataclass(frozen=True)
class Source:
    """A set of labels, and where its pictures lie on this machine. name: for messages."""

    name: str
    labels: Sequence[Label]
    picture: Callable[[Label], Path]

    @property
    def short(self) -> str:
        """For cards, which go to others: of a file only its own name and its folder's."""
        return "/".join(Path(self.name).parts[-2:])

    @property
    def hash(self) -> str:
        """Of what it says."""
        return digest([label.model_dump(mode="json") for label in self.labels])


@dataclass(frozen=True)
class Judged:
    """A picture with what was agreed of it; None: nothing was said, or as many yes as no.

    sha256: of its pixels. measured: may it be measured on, or only learned from?
    """

    picture: Path
    sha256: str
    prompt: str
    base: str
    category: str
    fidelity: bool | None
    alignment: bool | None
    reasons: tuple[str, ...]
    measured: bool = True


@dataclass(frozen=True)
class Agreed:
    """What the annotators agree on. disagreements: of pictures that several judged otherwise, by
    head; ties: those of them that had as many yes as no."""

    items: tuple[Judged, ...]
    disagreements: dict[str, int]
    ties: dict[str, int]
    annotators: dict[str, int]  # labels of each
    chosen: dict[str, int]  # labels by why their pictures came to be labelled, "" if not known


def read_file(path: Path) -> Source:
    """The labels of a JSONL file; `image` is a path beside it.

    Raises InputError, in one line, for a file or a line that is broken.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"no labels {str(path)!r}: neither a file nor a set of labels") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels {str(path)!r} cannot be read: {error}") from None
    labels = [_label(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return Source(str(path), labels, lambda label: path.parent / label.image)


def _label(path: Path, number: int, line: str) -> Label:
    where = f"{str(path)!r}, line {number:,}"
    try:
        return Label.model_validate(json.loads(line))
    except ValidationError as error:
        flaws = error.errors(include_input=False)
        first = next((flaw for flaw in flaws if flaw["type"] == "extra_forbidden"), flaws[0])
        field = ".".join(map(str, first["loc"]))
        said = first["msg"]
        if first["type"] == "extra_forbidden":
            said = f"unknown; {nearest(field, Label.model_fields)}"
        raise InputError(f"{where}: {field or 'a label'}: {said}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON ({error}): each line is a label") from None


def agree(sources: Sequence[Source], only_training: Sequence[str] = ()) -> Agreed:
    """One answer for each picture and head: that of most annotators who said something.

    only_training: annotators whose pictures are learned from and never measured on, unless another
    annotator judged them, too. Every picture is read once.
    Raises InputError for pictures that are gone or broken, for fewer than LEAST, and where all
    answers to a question are the same.
    """
    last = {
        key: (label, source.picture(label))
        for source in sources  # where two hold one annotator's word on a picture, the later's
        for key, label in last_said(source.labels).items()
    }
    said: dict[str, list[tuple[Label, Path]]] = {}
    for label, picture in last.values():
        said.setdefault(label.id, []).append((label, picture))
    annotators = Counter(label.annotator for label, _ in last.values())
    chosen = Counter[str](label.chosen for label, _ in last.values())
    hashes = _hashes([each[0][1] for each in said.values()])
    disagreements, ties = {"fidelity": 0, "alignment": 0}, {"fidelity": 0, "alignment": 0}
    items = []
    for each in said.values():
        answers: dict[str, bool | None] = {}
        for head in disagreements:
            votes = [v for label, _ in each if (v := getattr(label, head)) is not None]
            answers[head] = _majority(votes)
            disagreements[head] += len(set(votes)) == 2
            ties[head] += bool(votes) and answers[head] is None
        if set(answers.values()) == {None}:
            continue
        label, picture = each[0]
        reasons = dict.fromkeys(reason for other, _ in each for reason in other.reasons)
        items.append(
            Judged(
                picture=picture,
                sha256=hashes[picture],
                prompt=" ".join(label.prompt.split()),
                base=_base(label),
                category=label.category,
                fidelity=answers["fidelity"],
                alignment=answers["alignment"],
                reasons=tuple(reasons),
                measured=any(other.annotator not in only_training for other, _ in each),
            )
        )
    _check(items, [source.name for source in sources])
    return Agreed(tuple(items), disagreements, ties, dict(sorted(annotators.items())), dict(chosen))


def part(
    items: Sequence[Judged], shares: dict[Part, float], seed: int
) -> tuple[Parts, dict[Part, int]]:
    """The pictures by part, and how many base prompts each part has.

    A base prompt goes whole into one part, by its hash under the seed; of the ways to do so, the
    first under which every part has both answers to both questions. So a base prompt mostly lands
    in the same part whatever other labels there are. Pictures that must not be measured on are
    learned from, or left out where their base prompt is measured on.
    Raises InputError if there is no such way.
    """
    bases = sorted({item.base for item in items})
    measured = [item for item in items if item.measured]
    for attempt in range(TRIES):
        where = {base: _part_of(base, shares, f"{seed}/{attempt}") for base in bases}
        parts: Parts = {name: [] for name in shares}
        for item in items:
            if item.measured or where[item.base] == "train":
                parts[where[item.base]].append(item)
        if all(_both(some, head) for some in parts.values() for head in ("fidelity", "alignment")):
            counts = {name: len({item.base for item in some}) for name, some in parts.items()}
            return parts, counts
    several = len({item.base for item in measured})
    raise InputError(
        f"{several:,} base prompt{'' if several == 1 else 's'} cannot be parted into "
        f"{', '.join(shares)} so that each part has accepted and rejected pictures of both "
        f"questions: label pictures of at least {4 * len(shares)} base prompts, some accepted and "
        "some rejected of each"
    )


def _part_of(base: str, shares: dict[Part, float], seed: str) -> Part:
    place = int(hashlib.sha256(f"{seed}/{base}".encode()).hexdigest()[:13], 16) / 16**13
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return next(iter(shares))


def _both(items: Iterable[Judged], head: str) -> bool:
    return {True, False} <= {getattr(item, head) for item in items}


def _majority(votes: Sequence[bool]) -> bool | None:
    """None: nobody voted, or as many for as against."""
    yes = sum(votes)
    return None if 2 * yes == len(votes) else 2 * yes > len(votes)


def _base(label: Label) -> str:
    """As one prompt, however it is spaced and capitalised."""
    return " ".join((label.base or label.prompt).casefold().split())


def _hashes(pictures: Sequence[Path]) -> dict[Path, str]:
    """Of each picture's pixels. Raises InputError with a line for each that will not do."""
    different = list(dict.fromkeys(pictures))
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(_hash, different))
    problems = [problem for problem in found if isinstance(problem, InputError)]
    if problems:
        lines = [str(problem) for problem in problems[:SHOWN]]
        if len(problems) == 1:
            raise InputError(f"a label's picture cannot be used: {lines[0]}")
        more = [f"... and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
        title = f"the pictures of {len(problems):,} labels cannot be used:"
        raise InputError("\n  ".join([title, *lines, *more]))
    return dict(zip(different, map(str, found), strict=True))


def _hash(path: Path) -> str | InputError:
    try:
        picture = open_picture(path)
    except InputError as problem:
        return problem
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def open_picture(path: Path) -> Image.Image:
    """RGB, on white where it is transparent. Raises InputError if it is gone or will not do."""
    if not path.is_file():
        raise InputError(f"{path.name}: it is gone; take its label out, or bring it back")
    picture = read_picture(path)
    short, long = sorted(picture.size)
    if short < SMALLEST_PX or long > MAX_ASPECT * short:
        raise InputError(
            f"{path.name}: {picture.width}x{picture.height} px is no picture to judge; give at "
            f"least {SMALLEST_PX} px a side, and 1:{MAX_ASPECT:g} or squarer"
        )
    return picture


def _check(items: Sequence[Judged], names: Sequence[str]) -> None:
    where = ", ".join(names)
    if len(items) < LEAST:
        raise InputError(
            f"{where}: {len(items)} labelled pictures are too few: give at least {LEAST}, accepted "
            "and rejected"
        )
    if any(not item.prompt for item in items):
        raise InputError(f"{where}: a label has an empty prompt: say what its picture should show")
    for head in ("fidelity", "alignment"):
        answers = {getattr(item, head) for item in items} - {None}
        if len(answers) < 2:
            only = "nothing" if not answers else "yes" if answers == {True} else "no"
            raise InputError(
                f"{where}: every label says {only} of {head}: a verifier learns from accepted and "
                "rejected pictures"
            )
