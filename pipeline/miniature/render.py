"""The renderer: a scene becomes a 64x64 RGB picture, the same one every time."""

from __future__ import annotations

import math
import random
from functools import cache

from PIL import Image

from pipeline.miniature.canvas import (
    SIZE_PX,
    SUPERSAMPLING,
    Canvas,
    Color,
    Frame,
    Point,
    bend,
    shade,
)
from pipeline.miniature.hands import POSES, Digit, Pose
from pipeline.miniature.objects import THINGS
from pipeline.miniature.scenes import Scene

SKINS: dict[str, Color] = {
    "pale": (255, 222, 202),
    "tan": (226, 168, 112),
    "brown": (158, 98, 58),
    "dark": (102, 62, 46),
}
COLORS: dict[str, Color] = {
    "red": (222, 40, 44),
    "blue": (38, 86, 220),
    "green": (34, 158, 62),
    "yellow": (250, 206, 36),
    "purple": (142, 54, 188),
    "white": (246, 246, 248),
}
BACKGROUNDS: dict[str, Color] = {
    "gray": (168, 170, 178),
    "beige": (236, 222, 190),
    "teal": (112, 196, 192),
    "pink": (246, 178, 204),
}
OUTLINE = 0.38  # the darkness of a hand's lines, as a share of its skin
MIDDLE: Point = (SIZE_PX / 2, SIZE_PX / 2)
CLEARANCE_PX = 9.5  # between the middle of a floating segment and the hand or its object


def render(scene: Scene) -> Image.Image:
    """The scene's picture, 64x64 RGB."""
    rng = random.Random(scene.seed)
    pose = POSES[scene.category]
    skin = _vary(SKINS[scene.skin], rng, 6)
    color = _vary(COLORS[scene.color], rng, 8)
    canvas = Canvas(_ground(scene.background), _view(rng))
    behind, front = _digits(pose, scene, rng)
    away = "out_of_reach" in scene.faults
    place = _away(pose, scene.object, rng) if away else _held(pose, scene.object, rng)
    thing = canvas.within(place)
    draw_thing = THINGS[scene.object].draw

    if away or pose.covered:
        draw_thing(thing, color)
    _palm(canvas, pose, skin)
    for digit in behind:
        _digit(canvas, digit, skin)
    if not (away or pose.covered):
        draw_thing(thing, color)
    for digit in front:
        _digit(canvas, digit, skin)
    if "floating_finger" in scene.faults:
        _digit(canvas, _floating(pose, scene.object, place, rng), skin)
    return canvas.finish(mirrored=scene.hand == "left")


def _vary(color: Color, rng: random.Random, by: int) -> Color:
    """The colour, each channel at most `by` away."""
    r, g, b = (max(0, min(255, c + rng.randint(-by, by))) for c in color)
    return (r, g, b)


@cache
def _ground(background: str) -> Image.Image:
    """A smooth ground, a little lighter at the top."""
    side = SIZE_PX * SUPERSAMPLING
    column = Image.new("RGB", (1, side))
    for y in range(side):
        column.putpixel((0, y), shade(BACKGROUNDS[background], 1.16 - 0.28 * y / side))
    return column.resize((side, side))


def _view(rng: random.Random) -> Frame:
    """A slightly moved, turned and scaled look at the whole scene."""
    angle, scale = rng.uniform(-5, 5), rng.uniform(0.95, 1.02)
    turned = Frame(angle_deg=angle, scale=scale).apply(MIDDLE)
    x = MIDDLE[0] - turned[0] + rng.uniform(-1.5, 1.5)
    y = MIDDLE[1] - turned[1] + rng.uniform(-1.5, 1.5)
    return Frame((x, y), angle, scale)


def _digits(pose: Pose, scene: Scene, rng: random.Random) -> tuple[list[Digit], list[Digit]]:
    """The digits behind and in front of the object, with the scene's faults."""
    digits: list[Digit | None] = [_wiggle(d, rng) for d in (*pose.behind, *pose.front)]
    extra = _wiggle(rng.choice(pose.extra), rng)
    missing, (one, other) = rng.choice(pose.may_miss), rng.choice(pose.may_fuse)
    if "missing_finger" in scene.faults:
        digits[missing] = None
    if "fused_fingers" in scene.faults:
        first, second = digits[one], digits[other]
        assert first is not None and second is not None
        digits[one], digits[other] = None, _fuse(first, second)
    cut = len(pose.behind)
    behind = [d for d in digits[:cut] if d is not None]
    front = [d for d in digits[cut:] if d is not None]
    if "extra_finger" in scene.faults:
        front.append(extra)
    return behind, front


def _wiggle(digit: Digit, rng: random.Random) -> Digit:
    """The digit with its joint and tip moved by up to a pixel."""
    root, joint, tip = digit.points
    joint = (joint[0] + rng.uniform(-0.6, 0.6), joint[1] + rng.uniform(-0.6, 0.6))
    tip = (tip[0] + rng.uniform(-0.8, 0.8), tip[1] + rng.uniform(-0.8, 0.8))
    return Digit((root, joint, tip), digit.width_px)


def _fuse(one: Digit, other: Digit) -> Digit:
    """Two digits as one thick slab between them."""
    root, joint, tip = (
        ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
        for a, b in zip(one.points, other.points, strict=True)
    )
    length = math.dist(joint, tip)
    reach = 1 + 2.5 / length  # longer by 2.5 px than either
    tip = (joint[0] + (tip[0] - joint[0]) * reach, joint[1] + (tip[1] - joint[1]) * reach)
    return Digit((root, joint, tip), one.width_px + other.width_px + 1.0)


def _floating(pose: Pose, thing: str, place: Frame, rng: random.Random) -> Digit:
    """A short piece of finger where neither hand nor object is, as far as there is room."""
    taken = [p for d in (*pose.behind, *pose.front) for p in bend(d.points, pieces=4)]
    (ax, ay), (bx, by) = pose.forearm
    taken += [*pose.palm, ((ax + bx) / 2, (ay + by) / 2), (ax, ay), (bx, by)]
    half_w, half_h = THINGS[thing].half_px
    taken += [place.apply((half_w * i / 2, half_h * j / 2)) for i in (-2, -1, 0, 1, 2)
              for j in (-2, -1, 0, 1, 2)]  # fmt: skip
    best, best_room = MIDDLE, -1.0
    for _ in range(60):
        at = (rng.uniform(7, SIZE_PX - 7), rng.uniform(8, SIZE_PX - 8))
        room = min(math.dist(at, p) for p in taken)
        if room > best_room:
            best, best_room = at, room
        if room >= CLEARANCE_PX + 3:
            break
    turn = rng.uniform(0, math.tau)
    dx, dy = 3.8 * math.cos(turn), 3.8 * math.sin(turn)
    return Digit(((best[0] - dx, best[1] - dy), best, (best[0] + dx, best[1] + dy)), 5.0)


def _held(pose: Pose, thing: str, rng: random.Random) -> Frame:
    """Where the object is when the hand holds it."""
    scale = pose.things[thing] * rng.uniform(0.96, 1.03)
    at = (pose.at[0] + rng.uniform(-0.7, 0.7), pose.at[1] + rng.uniform(-0.7, 0.7))
    if pose.hold == "middle":
        return Frame(at, pose.angle_deg + rng.uniform(-4, 4), scale)
    what = THINGS[thing]
    turn = Frame((0, 0), pose.angle_deg - what.away_deg + rng.uniform(-5, 5), scale)
    grip = turn.apply(what.grip)
    return Frame((at[0] - grip[0], at[1] - grip[1]), turn.angle_deg, scale)


def _away(pose: Pose, thing: str, rng: random.Random) -> Frame:
    """Where the object is when it is out of the hand's reach."""
    at = rng.choice(pose.away)
    scale = min(pose.things[thing] * 0.72, 13.0 / max(THINGS[thing].half_px))
    at = (at[0] + rng.uniform(-1, 1), at[1] + rng.uniform(-1, 1))
    return Frame(at, rng.uniform(-25, 25), scale)


def _palm(canvas: Canvas, pose: Pose, skin: Color) -> None:
    """Forearm and palm."""
    line = shade(skin, OUTLINE)
    canvas.outlined(pose.forearm, 12.5, skin, line)
    canvas.shape(pose.palm, skin, line)
    canvas.stroke(pose.forearm, 12.0, skin)


def _digit(canvas: Canvas, digit: Digit, skin: Color) -> None:
    """One digit: outline, skin and a lighter line along it."""
    curve = bend(digit.points)
    canvas.outlined(curve, digit.width_px, skin, shade(skin, OUTLINE), line_px=1.1)
    canvas.stroke(curve[2:], digit.width_px * 0.36, shade(skin, 1.22))
