"""Drawing on a supersampled picture: frames, rounded strokes and outlined shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE_PX = 64
SUPERSAMPLING = 4

Point = tuple[float, float]
Color = tuple[int, int, int]


def shade(color: Color, factor: float) -> Color:
    """The colour darkened (factor < 1) or moved towards white (factor > 1, at most 2)."""
    if factor <= 1:
        return (int(color[0] * factor), int(color[1] * factor), int(color[2] * factor))
    up = factor - 1
    r, g, b = (int(c + (255 - c) * up) for c in color)
    return (r, g, b)


@dataclass(frozen=True)
class Frame:
    """A similarity: local point -> scale, rotate by angle_deg, move to origin."""

    origin: Point = (0.0, 0.0)
    angle_deg: float = 0.0
    scale: float = 1.0

    def apply(self, point: Point) -> Point:
        """The local point in the frame's outer coordinates."""
        a = math.radians(self.angle_deg)
        x, y = point[0] * self.scale, point[1] * self.scale
        return (
            self.origin[0] + x * math.cos(a) - y * math.sin(a),
            self.origin[1] + x * math.sin(a) + y * math.cos(a),
        )

    def then(self, outer: Frame) -> Frame:
        """The frame that applies this one first and `outer` after it."""
        return Frame(
            outer.apply(self.origin), self.angle_deg + outer.angle_deg, self.scale * outer.scale
        )


def bend(points: Sequence[Point], pieces: int = 8) -> list[Point]:
    """A smooth curve through the ends of three points, drawn towards the middle one."""
    if len(points) != 3:
        return list(points)
    (x0, y0), (xm, ym), (x2, y2) = points
    x1, y1 = 2 * xm - (x0 + x2) / 2, 2 * ym - (y0 + y2) / 2
    x1, y1 = (x1 + xm) / 2, (y1 + ym) / 2
    curve = []
    for i in range(pieces + 1):
        t = i / pieces
        a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
        curve.append((a * x0 + b * x1 + c * x2, a * y0 + b * y1 + c * y2))
    return curve


class Canvas:
    """A picture of SIZE_PX drawn SUPERSAMPLING times larger, through one frame at a time."""

    def __init__(self, ground: Image.Image, frame: Frame) -> None:
        self.image = ground.copy()
        self.draw = ImageDraw.Draw(self.image)
        self.frame = frame

    def within(self, frame: Frame) -> Canvas:
        """The same picture seen through a frame inside this one."""
        inner = object.__new__(Canvas)
        inner.image, inner.draw, inner.frame = self.image, self.draw, frame.then(self.frame)
        return inner

    def stroke(self, points: Sequence[Point], width_px: float, color: Color) -> None:
        """A line with round ends and joints."""
        placed = [self._place(p) for p in points]
        width = width_px * self.frame.scale * SUPERSAMPLING
        self.draw.line(placed, fill=color, width=round(width), joint="curve")
        for x, y in (placed[0], placed[-1]):
            r = width / 2
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def outlined(
        self,
        points: Sequence[Point],
        width_px: float,
        color: Color,
        line: Color,
        line_px: float = 1.0,
    ) -> None:
        """A round-ended stroke with an outline."""
        self.stroke(points, width_px + 2 * line_px / self.frame.scale, line)
        self.stroke(points, width_px, color)

    def shape(
        self, points: Sequence[Point], color: Color, line: Color | None, line_px: float = 1.0
    ) -> None:
        """A filled polygon, with an outline if `line` is given."""
        placed = [self._place(p) for p in points]
        self.draw.polygon(placed, fill=color)
        if line is not None:
            width = round(line_px * 1.5 * SUPERSAMPLING)
            closed = [*placed, placed[0], placed[1]]
            self.draw.line(closed, fill=line, width=width, joint="curve")

    def disc(self, center: Point, rx: float, ry: float, color: Color, line: Color | None) -> None:
        """An ellipse along the frame's own axes."""
        points = [
            (center[0] + rx * math.cos(a), center[1] + ry * math.sin(a))
            for a in (i * math.pi / 12 for i in range(24))
        ]
        self.shape(points, color, line)

    def finish(self, mirrored: bool) -> Image.Image:
        """The picture at its true size, RGB."""
        small = self.image.reduce(SUPERSAMPLING)
        return small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else small

    def _place(self, point: Point) -> Point:
        x, y = self.frame.apply(point)
        return (x * SUPERSAMPLING, y * SUPERSAMPLING)
