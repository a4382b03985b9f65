"""Aspect buckets: sizes of nearly equal area, so that pictures of one shape share a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from pipeline.types import Frozen

Size = tuple[int, int]
"""Width and height in pixels."""


class BucketSettings(Frozen):
    """Which shapes there are besides the square. Sides are multiples of `step_px`."""

    step_px: Annotated[int, Field(ge=8)] = 64
    shortest_px: Annotated[int, Field(ge=8)] | None = None  # None: half the resolution
    longest_px: Annotated[int, Field(ge=8)] | None = None  # None: twice the resolution

    def sizes(self, resolution: int) -> tuple[Size, ...]:
        """The square of the resolution, and others of its area or a little less."""
        shortest = self.shortest_px or resolution // 2
        longest = self.longest_px or resolution * 2
        found = {(resolution, resolution)}
        for short in range(self.step_px, resolution, self.step_px):
            long = resolution**2 // short // self.step_px * self.step_px
            if shortest <= short < long <= longest:
                found |= {(short, long), (long, short)}
        return tuple(sorted(found))


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` whose aspect ratio is nearest to that of a picture."""

    def apart(other: Size) -> float:
        return abs(math.log(size[0] * other[1] / (size[1] * other[0])))

    return min(sizes, key=apart)
