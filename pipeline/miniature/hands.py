"""The six hand poses, as drawn for a right hand; a left one is their mirror image.

Coordinates are pixels of a 64x64 picture, x to the right, y down. A digit is three points (root,
joint, tip) drawn as a round stroke.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.miniature.canvas import Point


@dataclass(frozen=True)
class Digit:
    """One finger or thumb."""

    points: tuple[Point, Point, Point]
    width_px: float = 5.4


@dataclass(frozen=True)
class Pose:
    """Where a hand's parts and its object are, and where each fault shows."""

    forearm: tuple[Point, Point]
    palm: tuple[Point, ...]
    behind: tuple[Digit, ...]  # digits that the object covers
    front: tuple[Digit, ...]  # digits that cover the object
    may_miss: tuple[int, ...]  # digits, counted over behind + front, whose lack leaves a gap
    may_fuse: tuple[tuple[int, int], ...]
    extra: tuple[Digit, ...]  # places for a sixth finger
    hold: Literal["middle", "end"]  # is the object held around its middle or by its end?
    at: Point  # where that part of the object lies
    angle_deg: float  # the object's turn (middle) or the direction away from the hand (end)
    things: dict[str, float]  # objects that this pose can hold, and their scale
    away: tuple[Point, ...]  # where an object out of reach lies
    covered: bool = False  # the whole hand is drawn over the object, not only its front digits


POSES: dict[str, Pose] = {
    "power": Pose(
        forearm=((49, 42), (68, 58)),
        palm=((42, 21), (50, 24), (54, 34), (52, 46), (44, 46), (41, 34)),
        behind=(),
        front=(
            Digit(((46, 25.5), (34, 23.5), (23, 25.5))),
            Digit(((46, 31.5), (34, 30), (21, 31.5))),
            Digit(((46, 37.5), (34, 36.5), (21, 37.5))),
            Digit(((46, 43.3), (35, 43), (24, 43.3)), 5.0),
            Digit(((48, 27), (45, 16), (35, 11)), 5.8),
        ),
        may_miss=(1, 2),
        may_fuse=((0, 1), (1, 2), (2, 3)),
        extra=(
            Digit(((50, 27), (55, 18), (58, 8))),
            Digit(((52, 34), (58, 28), (63, 20))),
            Digit(((47, 46), (46, 54), (44, 62))),
        ),
        hold="middle",
        at=(27, 33),
        angle_deg=0,
        things={
            "mug": 1.35,
            "bottle": 1.08,
            "hammer": 1.05,
            "ball": 1.6,
            "box": 1.6,
            "bucket": 1.25,
        },
        away=((10, 15), (10, 18)),
    ),
    "pinch": Pose(
        forearm=((50, 50), (56, 70)),
        palm=((41, 37), (56, 36), (58, 46), (56, 55), (46, 56), (41, 48)),
        behind=(
            Digit(((44, 40), (41, 24), (39, 9))),
            Digit(((49, 39), (49, 23), (49, 7))),
            Digit(((54, 41), (57, 27), (59, 13)), 5.0),
        ),
        front=(
            Digit(((43, 41), (34, 25), (26, 35))),
            Digit(((45, 51), (35, 50), (26, 39)), 5.8),
        ),
        may_miss=(0, 1, 3),
        may_fuse=((0, 1), (1, 2)),
        extra=(
            Digit(((45, 54), (39, 58), (30, 60))),
            Digit(((47, 57), (40, 62), (33, 60))),
        ),
        hold="end",
        at=(28, 37),
        angle_deg=183,
        things={"key": 0.94, "flower": 0.94, "card": 1.0, "pen": 0.55, "brush": 0.6},
        away=((14, 12), (13, 56)),
    ),
    "tripod": Pose(
        forearm=((52, 48), (70, 58)),
        palm=((43, 33), (53, 35), (58, 45), (56, 57), (46, 58), (42, 46)),
        behind=(
            Digit(((49, 54.5), (42, 58.5), (35, 57.5)), 5.0),
            Digit(((48, 50), (39, 53), (31, 51)), 5.2),
            Digit(((47, 45), (36, 46.5), (27, 44)), 5.2),
        ),
        front=(
            Digit(((46, 37), (36, 19), (25, 35))),
            Digit(((48, 44), (38, 39), (27, 38.5)), 5.6),
        ),
        may_miss=(1, 3),
        may_fuse=((0, 1), (1, 2)),
        extra=(
            Digit(((49, 36), (51, 25), (52, 14))),
            Digit(((53, 38), (58, 29), (61, 20))),
        ),
        hold="middle",
        at=(23.5, 34),
        angle_deg=28,
        things={"pen": 1.1, "brush": 1.1, "hammer": 0.9},
        away=((13, 17), (14, 15)),
    ),
    "lateral": Pose(
        forearm=((52.5, 33), (74.5, 33)),
        palm=((31.5, 27), (50.5, 25), (56.5, 30), (55.5, 41), (46.5, 43), (30.5, 39)),
        behind=(
            Digit(((34.5, 34), (31.5, 42), (33.5, 49))),
            Digit(((40.5, 34), (38.5, 44), (40, 52))),
            Digit(((46.5, 34), (45.5, 44), (46, 51.5))),
            Digit(((52, 34), (52, 43), (51.5, 48)), 5.0),
        ),
        front=(Digit(((51.5, 28), (41.5, 23), (28.5, 26)), 6.0),),
        may_miss=(1, 2),
        may_fuse=((0, 1), (1, 2), (2, 3)),
        extra=(
            Digit(((44.5, 24), (42.5, 15), (38.5, 6))),
            Digit(((50.5, 26), (53.5, 16), (54.5, 7))),
            Digit(((55.5, 38), (60.5, 47), (62.5, 56))),
        ),
        hold="end",
        at=(31.5, 27),
        angle_deg=178,
        things={"key": 1.0, "card": 1.05, "flower": 0.96, "pen": 0.55, "brush": 0.6},
        away=((14, 9), (13, 55)),
        covered=True,
    ),
    "hook": Pose(
        forearm=((36, 12), (36, -8)),
        palm=((27, 10), (45, 10), (48, 20), (46, 25), (27, 25), (25, 18)),
        behind=(),
        front=(
            Digit(((29, 21), (28, 28), (29, 33.5))),
            Digit(((35, 21), (34.5, 29), (35, 35.5))),
            Digit(((41, 21), (41, 29), (41, 35))),
            Digit(((46.3, 20), (47, 27), (46.5, 31.5)), 5.0),
            Digit(((28, 14), (19, 18), (18, 28)), 5.8),
        ),
        may_miss=(1, 2),
        may_fuse=((0, 1), (1, 2), (2, 3)),
        extra=(
            Digit(((46, 15), (54, 13), (61, 9))),
            Digit(((47, 19), (55, 21), (62, 26))),
            Digit(((29, 10), (22, 6), (14, 6))),
        ),
        hold="end",
        at=(36, 27),
        angle_deg=90,
        things={"bag": 0.98, "bucket": 0.98, "mug": 1.0, "bottle": 0.6},
        away=((14, 51), (53, 51)),
        covered=True,
    ),
    "platform": Pose(
        forearm=((32, 54), (32, 72)),
        palm=((23, 38), (41, 38), (44, 47), (40, 57), (25, 57), (21, 47)),
        behind=(
            Digit(((40, 41), (44, 27), (48, 14))),
            Digit(((35, 40), (36, 23), (37.5, 7))),
            Digit(((29.5, 40), (28, 23), (26, 8))),
            Digit(((25, 43), (20, 30), (14, 18)), 5.0),
            Digit(((39, 53), (49, 46), (56, 36)), 5.8),
        ),
        front=(),
        may_miss=(0, 1, 2, 4),
        may_fuse=((0, 1), (1, 2), (2, 3)),
        extra=(
            Digit(((24, 49), (14, 46), (5, 42))),
            Digit(((26, 55), (16, 57), (6, 60))),
            Digit(((39, 57), (48, 59), (58, 59))),
        ),
        hold="middle",
        at=(32, 45),
        angle_deg=0,
        things={"ball": 0.88, "box": 0.9, "mug": 0.75, "card": 0.85, "bag": 0.55},
        away=((9, 56), (55, 56)),
    ),
}
