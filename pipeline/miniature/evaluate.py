"""How good the miniature's judge and base model are: by ground truth, by the judge, by eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.miniature.drawing import draw, held_out_captions, read_captions, seeds_for
from pipeline.miniature.figures import kappa, share
from pipeline.miniature.judge import Judge, Reading
from pipeline.miniature.render import render
from pipeline.miniature.scenes import CAPTION_FAULTS, FAULTS, HAND_FAULTS, Scene, with_fault

Table = dict[str, dict[str, float]]
ATTRIBUTES = ("category", "object", "color", "skin", "hand", "background")
# what a labeller says of a picture, and what the judge says of the same
LABELS = ("pose", "object", "color", "hand", "held")


def judge_on_renders(judge: Judge, seed: int, each: int) -> Table:
    """Recall of each fault, false alarms and attributes, on renders of held-out combinations.

    each: pictures of each fault; as many without any fault, times four.
    """
    table: Table = {}
    clean = held_out_captions(seed, 4 * each)
    read = judge.read([render(e.scene) for e in clean])
    scenes = [e.scene for e in clean]
    for name in ATTRIBUTES:
        table[f"accuracy {name}"] = share(
            [r.agrees(s)[name] for r, s in zip(read, scenes, strict=True)]
        )
    for name in FAULTS:
        table[f"false alarm {name}"] = share(
            [_finds(r, s, name) for r, s in zip(read, scenes, strict=True)]
        )
    table["false alarm any hand fault"] = share([not r.faultless_hand for r in read])
    for i, name in enumerate(FAULTS):
        bases = held_out_captions(seed + 1 + i, each)
        faulty = [with_fault(e.scene, name, seed + n) for n, e in enumerate(bases)]
        read = judge.read([render(e.scene) for e in faulty])
        table[f"recall {name}"] = share(
            [_finds(r, e.asked, name) for r, e in zip(read, faulty, strict=True)]
        )
        if name in HAND_FAULTS:
            table[f"recall {name} as any hand fault"] = share([not r.faultless_hand for r in read])
    return table


def base_by_judge(
    judge: Judge, folder: Path, seed: int, count: int, steps: int, guidance: float
) -> Table:
    """What the judge sees in pictures that the model draws of held-out captions."""
    asked = held_out_captions(seed, count)
    images = draw(folder, [e.caption for e in asked], seeds_for(seed, count), steps, guidance)
    read = judge.read(images)
    pairs = list(zip(read, asked, strict=True))
    table: Table = {}
    for name in ATTRIBUTES:
        table[f"{name} as asked"] = share([r.agrees(e.asked)[name] for r, e in pairs])
    table["faultless hand"] = share([r.faultless_hand for r in read])
    table["object held"] = share(["out_of_reach" not in r.found for r in read])
    everything = [r.faultless_hand and _as_asked(r, e.asked) for r, e in pairs]
    table["faultless and all as asked"] = share(everything)
    for category in sorted({e.asked.category for e in asked}):
        some = [r.faultless_hand for r, e in pairs if e.asked.category == category]
        table[f"faultless hand, {category}"] = share(some)
    for name in HAND_FAULTS:
        table[f"drawn {name}"] = share([name in r.found for r in read])
    return table


def agreement(judge: Judge, labels: Path, pictures: Path) -> Table:
    """The judge against labels made by eye: accuracy and Cohen's kappa of each question."""
    lines = [json.loads(line) for line in labels.read_text("utf-8").splitlines()]
    asked = [scene for _, _, scene in read_captions(labels)]
    images = [Image.open(pictures / f"{line['number']:03}.png") for line in lines]
    read = judge.read(list(images))
    table: Table = {}
    for name in LABELS:
        eye = [bool(line[name]) for line in lines]
        said = [_says(r, s, name) for r, s in zip(read, asked, strict=True)]
        table[name] = {
            "accuracy": round(sum(a == b for a, b in zip(eye, said, strict=True)) / len(eye), 4),
            "yes by eye": round(sum(eye) / len(eye), 4),
            "yes by judge": round(sum(said) / len(said), 4),
            "n": len(eye),
        }
        beyond_chance = kappa(eye, said)
        if beyond_chance is not None:
            table[name]["kappa"] = round(beyond_chance, 4)
    return table


def _as_asked(reading: Reading, asked: Scene) -> bool:
    return all(reading.agrees(asked).values()) and "out_of_reach" not in reading.found


def _finds(reading: Reading, asked: Scene, fault: str) -> bool:
    """Does the reading of a picture, beside its caption, show this fault?"""
    if fault not in CAPTION_FAULTS:
        return fault in reading.found
    names = {"wrong_object": "object", "wrong_pose": "category", "wrong_color": "color"}
    return not reading.agrees(asked)[names[fault]]


def _says(reading: Reading, asked: Scene, label: str) -> bool:
    """The judge's answer to a labeller's question."""
    if label == "hand":
        return reading.faultless_hand
    if label == "held":
        return "out_of_reach" not in reading.found
    return reading.agrees(asked)["category" if label == "pose" else label]


def as_lines(title: str, table: Table) -> list[str]:
    """The table for people."""
    lines = [title]
    for name, row in table.items():
        values: list[Any] = [f"{key} {value:g}" for key, value in row.items()]
        lines.append(f"  {name:<38} {', '.join(values)}")
    return lines
