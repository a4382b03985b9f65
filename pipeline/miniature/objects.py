"""The miniature's twelve objects, drawn upright around their middle in pixels of the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.miniature.canvas import Canvas, Color, Point, shade

DARK: Color = (34, 32, 40)
METAL: Color = (150, 152, 160)


@dataclass(frozen=True)
class Thing:
    """How an object is drawn, and where a hand takes it by its end."""

    draw: Callable[[Canvas, Color], None]
    grip: Point  # the end that fingers hold, in the object's own coordinates
    away_deg: float  # the direction in which the object extends from its grip; 0 is +x, 90 is +y
    half_px: Point  # half its width and half its height


def _mug(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.stroke([(-10, -6), (-18, -6), (-18, 7), (-10, 7)], 5.5, line)
    c.stroke([(-10, -6), (-18, -6), (-18, 7), (-10, 7)], 3.2, color)
    c.shape([(-11, -14), (11, -14), (10, 15), (-10, 15)], color, line)
    c.disc((0, -14), 11, 3.6, shade(color, 0.45), line)


def _bottle(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.shape(
        [(-3.5, -20), (3.5, -20), (4, -12), (9, -5), (9, 28), (-9, 28), (-9, -5), (-4, -12)],
        color, line,
    )  # fmt: skip
    c.shape([(-4.5, -29), (4.5, -29), (4.5, -20), (-4.5, -20)], DARK, DARK)
    c.shape([(-8, 15), (8, 15), (8, 20), (-8, 20)], shade(color, 1.55), None)


def _hammer(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.outlined([(0, -16), (0, 27)], 6, shade(color, 0.72), line)
    c.shape([(-16, -29), (6, -29), (19, -23), (20, -17), (6, -16), (-16, -15)], color, line)
    c.shape([(-18, -30), (-13, -30), (-13, -14), (-18, -14)], shade(color, 0.72), line)


def _key(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.outlined([(3, 0), (-14, 0)], 3.6, color, line)
    c.outlined([(-8, 1), (-8, 6)], 2.6, color, line)
    c.outlined([(-13, 1), (-13, 7)], 2.6, color, line)
    c.stroke([(3, 0), (-14, 0)], 3.6, color)
    c.disc((7, 0), 7.5, 7.5, color, line)
    c.disc((7, 0), 2.8, 2.8, line, line)


def _flower(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.stroke([(14, 0), (-2, 0)], 2.8, (40, 92, 44))
    petals = [(-14.5, 0), (-9, -5.8), (-2.6, -3.4), (-2.6, 3.4), (-9, 5.8)]
    for petal in petals:
        c.disc(petal, 4.8, 4.8, line, line)
    for petal in petals:
        c.disc(petal, 4.3, 4.3, color, None)
    c.disc((-7.6, 0), 3.4, 3.4, DARK, None)


def _card(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.shape([(-12, -8), (12, -8), (12, 8), (-12, 8)], color, line)
    c.shape([(-11.5, -5), (11.5, -5), (11.5, -1.5), (-11.5, -1.5)], DARK, None)
    c.shape([(-9, 2), (-4, 2), (-4, 5.5), (-9, 5.5)], (245, 225, 150), None)


def _pen(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.shape([(-3.5, 17), (3.5, 17), (0, 27)], DARK, DARK)
    c.shape([(-3.5, -26), (3.5, -26), (3.5, 17), (-3.5, 17)], color, line)
    c.shape([(-3.5, -26), (3.5, -26), (3.5, -20), (-3.5, -20)], DARK, DARK)


def _brush(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.outlined([(0, -25), (0, 8)], 2.6, shade(color, 0.72), line)
    c.shape([(-4, 5), (4, 5), (5, 11), (-5, 11)], METAL, DARK)
    c.shape([(-5, 11), (5, 11), (8, 18), (5, 24), (0, 29), (-5, 24), (-8, 18)], color, line)


def _bag(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    loop = [(-9, -6), (-7, -17), (0, -20), (7, -17), (9, -6)]
    c.stroke(loop, 4.6, line)
    c.stroke(loop, 2.4, shade(color, 0.72))
    c.shape([(-13, -8), (13, -8), (17, 16), (-17, 16)], color, line)
    c.shape([(-13, -8), (13, -8), (9, 2), (-9, 2)], shade(color, 0.72), line)
    c.disc((0, 2), 2.2, 2.2, (245, 225, 150), None)


def _bucket(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    bail = [(-15, -6), (-10, -17), (0, -20), (10, -17), (15, -6)]
    c.stroke(bail, 2.4, DARK)
    c.shape([(-17, -7), (17, -7), (10, 17), (-10, 17)], color, line)
    c.disc((0, -7), 17, 4.2, shade(color, 0.45), line)
    c.stroke([(-12.5, 6), (12.5, 6)], 1.8, shade(color, 1.5))


def _ball(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.disc((0, 0), 12, 12, color, line)
    c.stroke([(-11, -3), (0, 2), (11, -3)], 2.0, line)
    c.stroke([(-2, -11.5), (3, 0), (-2, 11.5)], 2.0, line)


def _box(c: Canvas, color: Color) -> None:
    line = shade(color, 0.4)
    c.shape([(-11, -4), (5, -4), (5, 12), (-11, 12)], color, line)
    c.shape([(-11, -4), (-5, -11), (12, -11), (5, -4)], shade(color, 1.45), line)
    c.shape([(5, -4), (12, -11), (12, 5), (5, 12)], shade(color, 0.62), line)


THINGS: dict[str, Thing] = {
    "mug": Thing(_mug, (0, -16), 90, (14, 16)),
    "bottle": Thing(_bottle, (0, -28), 90, (9, 28)),
    "hammer": Thing(_hammer, (0, 26), -90, (18, 28)),
    "key": Thing(_key, (14, 0), 180, (14, 7)),
    "flower": Thing(_flower, (12, 0), 180, (16, 9)),
    "card": Thing(_card, (11, 0), 180, (12, 8)),
    "pen": Thing(_pen, (0, -22), 90, (3, 26)),
    "brush": Thing(_brush, (0, -20), 90, (7, 27)),
    "bag": Thing(_bag, (0, -20), 90, (16, 18)),
    "bucket": Thing(_bucket, (0, -20), 90, (16, 18)),
    "ball": Thing(_ball, (0, -11), 90, (12, 12)),
    "box": Thing(_box, (0, -11), 90, (12, 12)),
}
