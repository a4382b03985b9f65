"""Labels of the drawn world for `ppv train verifier`: renders by their exact truth, pictures that a
model drew by a judge's reading."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from pipeline.labels import Label
from pipeline.miniature.captions import ATTRIBUTES, Caption, any_caption, full, scene_of
from pipeline.miniature.drawn import DRAWN, picture_of
from pipeline.miniature.judge import Judge, Reading
from pipeline.miniature.render import render
from pipeline.miniature.scenes import HAND_FAULTS, Scene, is_held_out, sample, taxonomy
from pipeline.types import Record, digest

LABELS, PICTURES = "labels.jsonl", "pictures"
RENDERER, JUDGE, CAPTIONER = "renderer", "judge", "captioner"
"""Who says so: the exact truth, of a render; the judge, of a drawn picture and its prompt; the
judge's reading, of a drawn picture and another caption."""
HAND_FAULT_RATE, OTHER_FAULT_RATE = 0.5, 0.5
WRONG_RATE = 0.4  # of captions but a picture's first
NAMES = {"category": "pose", "object": "object", "color": "color"}
"""How a wrong attribute is called where the world has a name for it: wrong_pose."""
BY_EYE = {
    "hand": "other_fault",
    "pose": "wrong_pose",
    "object": "wrong_object",
    "color": "wrong_color",
    "held": "out_of_reach",
}
"""What no to each of the questions to the eye means."""


def save_labels(
    out: Path,
    seed: int,
    count: int,
    captions: int,
    drawn: Sequence[Path],
    judge: Judge | None,
    *,
    held_out: bool = False,
) -> dict[str, int]:
    """Writes LABELS and PICTURES: `count` renders and what was drawn, `captions` captions each.

    drawn: folders that `draw` wrote, or runs of a store, runs/NAME. held_out: of the combinations
    that are kept out of all training, else of all others. Returns the labels of each annotator.
    """
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    said: Counter[str] = Counter()

    def every() -> Iterator[Label]:
        yield from _of_renders(out, seed, count, captions, at, held_out)
        for folder in drawn:
            assert judge is not None
            yield from _of_drawn(out, folder, judge, seed, captions, at, held_out)

    with (out / LABELS).open("w", encoding="utf-8") as file:
        for label in every():
            file.write(label.model_dump_json() + "\n")
            said[label.annotator] += 1
    return dict(said)


def base_of(scene: Scene) -> str:
    """The base prompt that stands for a scene: one for each of the 2,880 combinations."""
    return taxonomy().describe(scene.category, scene.attributes, 0)


def _of_renders(
    out: Path, seed: int, count: int, captions: int, at: str, held_out: bool
) -> Iterator[Label]:
    """By the exact truth. The first caption is of what shows; others may claim something else."""
    rng = random.Random(seed)
    examples = sample(seed, count, HAND_FAULT_RATE, OTHER_FAULT_RATE, held_out)
    for number, example in enumerate(examples):
        scene = example.scene
        if is_held_out(scene) and not held_out:
            continue
        name = f"{PICTURES}/render-{number:05}.png"
        render(scene).save(out / name)
        for turn in range(captions):
            rate = WRONG_RATE if turn else 0.0
            caption = any_caption(scene_of(scene), rng, wrong_rate=rate)
            wrong = _wrong(caption, scene_of(scene), out_of_reach="out_of_reach" in scene.faults)
            yield Label(
                id=digest([name, seed, caption.text]),
                image=name,
                prompt=caption.text,
                base=base_of(example.asked),
                category=scene.category,
                fidelity=not set(scene.faults) & set(HAND_FAULTS),
                alignment=not wrong,
                reasons=tuple(dict.fromkeys([*scene.faults, *wrong])),
                annotator=RENDERER,
                at=at,
            )


def _of_drawn(
    out: Path, folder: Path, judge: Judge, seed: int, captions: int, at: str, held_out: bool
) -> Iterator[Label]:
    """By the judge's reading of each picture beside the caption that it was drawn for, and beside
    others: what it shows instead, or something else again."""
    rows = [row for row in _drawn(folder) if is_held_out(row[1]) == held_out]
    readings = judge.read([Image.open(picture) for picture, _, _ in rows])
    rng = random.Random(seed)
    for (picture, asked, own), reading in zip(rows, readings, strict=True):
        name = f"{PICTURES}/{folder.resolve().name}-{picture.name}"
        shutil.copyfile(picture, out / name)
        shown = _seen(reading)
        others = [any_caption(shown, rng, wrong_rate=WRONG_RATE) for _ in range(captions - 1)]
        for annotator, caption in [(JUDGE, own), *((CAPTIONER, other) for other in others)]:
            wrong = _wrong(caption, shown, out_of_reach="out_of_reach" in reading.found)
            yield Label(
                id=digest([name, annotator, caption.text]),
                image=name,
                prompt=caption.text,
                base=base_of(asked),
                category=asked.category,
                fidelity=reading.faultless_hand,
                alignment=not wrong,
                reasons=tuple(dict.fromkeys([*reading.found, *wrong])),
                annotator=annotator,
                at=at,
            )


def save_labels_by_eye(out: Path, labels: Path, pictures: Path) -> int:
    """Writes LABELS and PICTURES of what people said of the pictures that `sheet` drew.

    labels: a line for each, with its number, caption and answers. Returns how many there are.
    """
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [json.loads(line) for line in labels.read_text("utf-8").splitlines()]
    with (out / LABELS).open("w", encoding="utf-8") as file:
        for row in rows:
            name = f"{PICTURES}/eye-{row['number']:03}.png"
            shutil.copyfile(pictures / f"{row['number']:03}.png", out / name)
            label = Label(
                id=digest([name, row["caption"]]),
                image=name,
                prompt=row["caption"],
                base=base_of(_scene(row["asked"])),
                category=row["asked"]["category"],
                fidelity=row["hand"],
                alignment=all(row[name] for name in ("pose", "object", "color", "held")),
                reasons=tuple(reason for name, reason in BY_EYE.items() if not row[name]),
                annotator="eye",
                at=at,
            )
            file.write(label.model_dump_json() + "\n")
    return len(rows)


def _drawn(folder: Path) -> Iterator[tuple[Path, Scene, Caption]]:
    """Pictures with what was asked for: of `draw`, or of a run's records."""
    if (folder / DRAWN).exists():
        for line in (folder / DRAWN).read_text("utf-8").splitlines():
            row = json.loads(line)
            picture = picture_of(folder, row)
            if picture.exists():
                yield picture, _scene(row["asked"]), full(row["asked"], row["variant"])
        return
    for file in sorted((folder / "records").glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            record = Record.model_validate_json(line)
            prompt = record.proposal.prompt
            asked = {**prompt.attributes, "category": prompt.category}
            if set(ATTRIBUTES) <= set(asked):
                claims = {name: asked[name] for name in ATTRIBUTES}
                caption = Caption(prompt.text, claims, holds=True)
                yield folder / record.image, _scene(claims), caption


def _scene(asked: dict[str, str]) -> Scene:
    return Scene(**{name: asked[name] for name in ATTRIBUTES})  # type: ignore[arg-type]


def _seen(reading: Reading) -> dict[str, str]:
    return {name: getattr(reading, name) for name in ATTRIBUTES}


def _wrong(caption: Caption, shown: dict[str, str], *, out_of_reach: bool) -> list[str]:
    """What a caption claims that the picture does not show, in the words of the world's faults."""
    wrong = [
        f"wrong_{NAMES.get(name, name)}"
        for name, value in caption.claims.items()
        if shown[name] != value
    ]
    return [*wrong, *(["out_of_reach"] if out_of_reach and caption.holds else [])]
