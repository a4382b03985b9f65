"""The picture strip of one base prompt: its detailed prompts, their proposals, and the verdicts.

One PNG, twice as dense as it is meant to be shown, on a light card with transparent corners, so
that it reads on a light page and on a dark one. The font comes with Pillow: the same strip
everywhere, at the price of a Latin alphabet only.
"""

import heapq
import io
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from pipeline.config import Run
from pipeline.types import BasePrompt, DetailedPrompt, Record
from storage.objects import ObjectNotFound
from workers.pages.atomic import replacing
from workers.pages.wording import count, score, visible

WIDTH_PX = 1600
ROWS = 6  # detailed prompts at most
TILES = 4  # proposals of each at most
CANDIDATES = 4096  # base prompts that are compared for the most telling one

SMOOTHING = 2  # drawn this much larger, then reduced: Pillow's shapes have hard edges

MARGIN_PX = 56
GAP_PX = 64  # between columns
TILE_GAP_PX = 36
ROW_GAP_PX = 40
FRAME_PX = 6  # of an accepted picture, outside of it
CORNER_PX = 14
MARK_PX = 20  # the radius of a check or a cross
TILE_PX = {1: 192, 2: 184, 3: 200, 4: 164}  # a picture's side, by how many stand in a row
BESIDE = 2  # so many in a row leave room for the verdicts beside them; else they stand below
VERDICT_PX = 168  # the width of a verdict beside its picture
TITLE_PX, TEXT_PX, SMALL_PX = 42, 28, 23  # of letters
LEADING = 1.36  # the height of a line, as a share of its letters'
BASE_SHARE = 0.36  # of the two columns of text
TITLE_LINES, TEXT_LINES = 12, 6

CARD = (255, 255, 255)
EDGE = (222, 218, 209)
INK = (31, 30, 27)
QUIET = (102, 98, 90)
GREY = (176, 171, 160)
GREEN = (44, 122, 82)
ALARM = (168, 67, 47)

ImageOf = Callable[[Record], bytes]
"""A record's picture as stored. Raises ObjectNotFound."""
Color = tuple[int, int, int]


def telling_base_prompt(records: Iterable[Record]) -> str | None:
    """The base prompt that shows best what a verifier does; None if there are no records.

    The one with the most of both accepted and rejected proposals, then the most balanced, then by
    id. Of a large run a fixed sample of CANDIDATES base prompts is compared, those with the
    smallest ids, so that the answer depends neither on memory nor on the records' order.
    """
    ids: dict[str, int] = {}  # by text
    largest: list[tuple[int, str]] = []  # a heap of (-id, text)
    verdicts: dict[str, list[int]] = {}  # rejected, accepted
    dropped_from = 1 << 128
    for record in records:
        base = record.proposal.prompt.base
        if base not in ids:
            number = int(BasePrompt(text=base).id, 16)
            if number >= dropped_from:
                continue
            ids[base], verdicts[base] = number, [0, 0]
            heapq.heappush(largest, (-number, base))
            if len(largest) > CANDIDATES:
                dropped_from, dropped = -largest[0][0], heapq.heappop(largest)[1]
                del ids[dropped], verdicts[dropped]
        if base in verdicts:
            verdicts[base][record.verdict.accepted] += 1

    def telling(base: str) -> tuple[int, int, int]:
        rejected, accepted = verdicts[base]
        return -min(rejected, accepted), abs(rejected - accepted), ids[base]

    return min(verdicts, key=telling, default=None)


def draw_strip(
    run: Run,
    base_prompt: str,
    prompts: Sequence[DetailedPrompt],
    records: Sequence[Record],
    image_of: ImageOf,
    to: Path,
) -> None:
    """Write the strip of one base prompt as a PNG to the file `to`, whole or not at all.

    prompts: the base prompt's; the first ROWS of them are drawn. records: those of these prompts,
    in any order; of each prompt at most TILES are drawn, accepted and rejected ones in turns.
    """
    rows = [
        _row(prompt, [r for r in records if r.proposal.prompt.id == prompt.id], image_of)
        for prompt in sorted(prompts, key=lambda prompt: prompt.index)[:ROWS]
    ]
    strip = _Strip(run, base_prompt, rows, prompts=len(prompts)).draw()
    with replacing(to) as file:
        strip.save(file, "PNG", optimize=True)


@dataclass(frozen=True)
class _Tile:
    record: Record
    picture: Image.Image | None


@dataclass(frozen=True)
class _Row:
    prompt: DetailedPrompt
    tiles: list[_Tile]
    more: int  # proposals that are not drawn


def _row(prompt: DetailedPrompt, records: list[Record], image_of: ImageOf) -> _Row:
    records = sorted(records, key=lambda record: record.id)
    accepted = [record for record in records if record.verdict.accepted]
    rejected = [record for record in records if not record.verdict.accepted]
    in_turns = (r for pair in zip_longest(accepted, rejected) for r in pair if r is not None)
    kept = sorted(islice(in_turns, TILES), key=lambda record: not record.verdict.accepted)
    tiles = [_Tile(record, _open(record, image_of)) for record in kept]
    return _Row(prompt, tiles, more=len(records) - len(tiles))


def _open(record: Record, image_of: ImageOf) -> Image.Image | None:
    """None if the store has no such picture any more, or a broken one."""
    try:
        with Image.open(io.BytesIO(image_of(record))) as image:
            return image.convert("RGB")
    except (ObjectNotFound, OSError, SyntaxError, ValueError):
        return None


class _Strip:
    """Where everything stands, in pixels of the finished strip; `draw` makes it so."""

    def __init__(self, run: Run, base: str, rows: list[_Row], prompts: int) -> None:
        self.rows = rows
        across = max((len(row.tiles) for row in rows), default=0) or 1
        self.tile = TILE_PX[across]
        self.beside = across <= BESIDE
        self.pitch = self.tile + TILE_GAP_PX + (VERDICT_PX + 20 if self.beside else 0)
        tiles_width = across * self.pitch - TILE_GAP_PX
        text_width = WIDTH_PX - 2 * MARGIN_PX - 2 * GAP_PX - tiles_width
        self.base_width = round(text_width * BASE_SHARE)
        self.prompt_width = text_width - self.base_width
        self.prompt_x = MARGIN_PX + self.base_width + GAP_PX
        self.tiles_x = WIDTH_PX - MARGIN_PX - tiles_width

        self.title = wrap(base, self.base_width, TITLE_PX, TITLE_LINES)
        self.texts = [wrap(r.prompt.text, self.prompt_width, TEXT_PX, TEXT_LINES) for r in rows]
        self.notes = [self._note(row) for row in rows]
        thresholds = run.thresholds
        foot = (
            f"Accepted: fidelity at least {thresholds.fidelity:g} "
            f"and alignment at least {thresholds.alignment:g}."
        )
        for name, least in sorted(run.verifier.accept_if.items()):
            foot = f"{foot[:-1]}, {name} at least {least:g}."
        if prompts > len(rows):
            foot += f" {len(rows)} of {count(prompts)} detailed prompts are shown."
        self.foot = wrap(foot, WIDTH_PX - 2 * MARGIN_PX, SMALL_PX, 2)

        self.top = MARGIN_PX + _line_px(SMALL_PX) + 24
        heights = [self._row_height(i) for i in range(len(rows))]
        self.tops = [self.top + sum(heights[:i]) + i * ROW_GAP_PX for i in range(len(rows))]
        rows_end = self.tops[-1] + heights[-1] if rows else self.top + _line_px(TEXT_PX)
        title_end = self.top + len(self.title) * _line_px(TITLE_PX)
        self.foot_y = max(rows_end, title_end) + 36
        self.height = self.foot_y + len(self.foot) * _line_px(SMALL_PX) + MARGIN_PX - 12

    @staticmethod
    def _note(row: _Row) -> str:
        if not row.tiles:
            return f"{row.prompt.category} \N{MIDDLE DOT} no proposal has been judged"
        more = f" \N{MIDDLE DOT} {count(row.more)} more" if row.more else ""
        return f"{row.prompt.category}{more}"

    def _row_height(self, row: int) -> int:
        text = len(self.texts[row]) * _line_px(TEXT_PX) + 10 + 2 * _line_px(SMALL_PX)
        below = 0 if self.beside else 18 + 3 * _line_px(SMALL_PX)
        return max(text, self.tile + below if self.rows[row].tiles else 0)

    def draw(self) -> Image.Image:
        """The strip, RGBA."""
        pen = _Pen(WIDTH_PX, self.height)
        pen.text((MARGIN_PX, MARGIN_PX), "base prompt", SMALL_PX, QUIET)
        pen.text((self.prompt_x, MARGIN_PX), "detailed prompts", SMALL_PX, QUIET)
        pen.text((self.tiles_x, MARGIN_PX), "proposals and their verdicts", SMALL_PX, QUIET)
        self._branches(pen)
        pen.lines((MARGIN_PX, self.top), self.title, TITLE_PX, INK)
        for row, top, text, note in zip(self.rows, self.tops, self.texts, self.notes, strict=True):
            end = pen.lines((self.prompt_x, top), text, TEXT_PX, INK)
            below = wrap(note, self.prompt_width, SMALL_PX, 2)
            pen.lines((self.prompt_x, end + 10), below, SMALL_PX, QUIET)
            for i, tile in enumerate(row.tiles):
                self._draw_tile(pen, tile, (self.tiles_x + i * self.pitch, top))
        if not self.rows:
            pen.text((self.prompt_x, self.top), "none yet", TEXT_PX, QUIET)
        pen.lines((MARGIN_PX, self.foot_y), self.foot, SMALL_PX, QUIET)
        return pen.finish()

    def _branches(self, pen: "_Pen") -> None:
        """From the base prompt to each of its detailed prompts."""
        joints = [top + _line_px(TEXT_PX) // 2 for top in self.tops]
        if not joints:
            return
        right = self.prompt_x - 18
        spine = self.prompt_x - GAP_PX // 2
        title_end = MARGIN_PX + max(_length(line, TITLE_PX) for line in self.title)
        pen.line((title_end + 18, joints[0]), (right, joints[0]))
        pen.line((spine, joints[0]), (spine, joints[-1]))
        for y in joints[1:]:
            pen.line((spine, y), (right, y))

    def _draw_tile(self, pen: "_Pen", tile: _Tile, at: tuple[int, int]) -> None:
        verdict, (x, y) = tile.record.verdict, at
        pen.picture(at, self.tile, tile.picture, accepted=verdict.accepted)
        if tile.picture is None:
            pen.text((x + 14, y + self.tile - 44), "no picture", SMALL_PX, QUIET)
        line = _line_px(SMALL_PX)
        if self.beside:
            x, y, width = x + self.tile + 20, y + (self.tile - 3 * line) // 2, VERDICT_PX
        else:
            y, width = y + self.tile + 18, self.tile
        if verdict.accepted:
            pen.text((x, y), "accepted", SMALL_PX, GREEN)
        else:
            pen.text((x, y), "rejected", SMALL_PX, QUIET)
        for name, value, threshold in (
            ("fidelity", verdict.fidelity, verdict.thresholds.fidelity),
            ("alignment", verdict.alignment, verdict.thresholds.alignment),
        ):
            y += line
            number, low = score(value), value < threshold
            pen.text((x, y), name, SMALL_PX, ALARM if low else QUIET)
            right = x + width - _length(number, SMALL_PX)
            pen.text((right, y), number, SMALL_PX, ALARM if low else INK)


class _Pen:
    """Draws in the finished strip's pixels onto a larger canvas."""

    def __init__(self, width_px: int, height_px: int) -> None:
        self._size = (width_px, height_px)
        self._canvas = Image.new("RGB", (width_px * SMOOTHING, height_px * SMOOTHING), CARD)
        self._draw = ImageDraw.Draw(self._canvas)

    def text(self, at: tuple[float, float], text: str, size_px: int, color: Color) -> None:
        place = (at[0] * SMOOTHING, at[1] * SMOOTHING)
        self._draw.text(place, text, color, font=_font(size_px * SMOOTHING))

    def lines(self, at: tuple[int, int], lines: list[str], size_px: int, color: Color) -> int:
        """Where the lines end, downwards."""
        x, y = at
        for line in lines:
            self.text((x, y), line, size_px, color)
            y += _line_px(size_px)
        return y

    def line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        points = [(x * SMOOTHING, y * SMOOTHING) for x, y in (start, end)]
        self._draw.line(points, GREY, width=2 * SMOOTHING)

    def picture(
        self, at: tuple[int, int], side_px: int, picture: Image.Image | None, *, accepted: bool
    ) -> None:
        """A picture in its frame: green with a check, or faded with a cross."""
        x, y, side = at[0] * SMOOTHING, at[1] * SMOOTHING, side_px * SMOOTHING
        if accepted:
            gap = 3  # of the card's colour, so that the frame stands off the picture
            self._rounded((x, y), side, grow_px=gap + FRAME_PX, fill=GREEN)
            self._rounded((x, y), side, grow_px=gap, fill=CARD)
        if picture is None:
            self._rounded((x, y), side, grow_px=0, fill=EDGE)
        else:
            fitted = ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color=EDGE)
            if not accepted:
                pale = ImageEnhance.Color(fitted).enhance(0.35)
                fitted = Image.blend(pale, Image.new("RGB", fitted.size, CARD), 0.38)
            mask = Image.new("L", fitted.size, 0)
            corners = CORNER_PX * SMOOTHING
            ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), corners, 255)
            self._canvas.paste(fitted, (x, y), mask)
        self._mark((x + side, y), accepted)

    def _rounded(self, at: tuple[int, int], side: int, grow_px: int, fill: Color) -> None:
        grow = grow_px * SMOOTHING
        (x, y), corners = at, CORNER_PX * SMOOTHING + grow
        box = (x - grow, y - grow, x + side + grow - 1, y + side + grow - 1)
        self._draw.rounded_rectangle(box, corners, fill)

    def _mark(self, corner: tuple[int, int], accepted: bool) -> None:
        """A check or a cross on a disc, within the upper right corner of a picture."""
        r = MARK_PX * SMOOTHING
        x, y = corner[0] - r - 8 * SMOOTHING, corner[1] + r + 8 * SMOOTHING
        ring = 3 * SMOOTHING
        self._draw.circle((x, y), r + ring, CARD)
        self._draw.circle((x, y), r, GREEN if accepted else QUIET)
        if accepted:
            strokes = [[(-0.42, 0.02), (-0.12, 0.34), (0.44, -0.32)]]
        else:
            strokes = [[(-0.34, -0.34), (0.34, 0.34)], [(-0.34, 0.34), (0.34, -0.34)]]
        for stroke in strokes:
            points = [(x + r * dx, y + r * dy) for dx, dy in stroke]
            self._draw.line(points, CARD, width=4 * SMOOTHING, joint="curve")

    def finish(self) -> Image.Image:
        """The canvas reduced, as a card with a fine edge and transparent corners."""
        width, height = self._canvas.size
        box, corners = (0, 0, width - 1, height - 1), 24 * SMOOTHING
        self._draw.rounded_rectangle(box, corners, outline=EDGE, width=2 * SMOOTHING)
        mask = Image.new("L", self._canvas.size, 0)
        ImageDraw.Draw(mask).rounded_rectangle(box, corners, 255)
        self._canvas.putalpha(mask)
        return self._canvas.resize(self._size, Image.Resampling.BOX)


def wrap(text: str, width_px: int, size_px: int, most_lines: int) -> list[str]:
    """The text in lines of at most this width; a word that is wider is broken.

    What does not fit into `most_lines` is left out, and an ellipsis says so. At least one line.
    """
    lines: list[str] = []
    rest = _drawable(text).split()
    while rest and len(lines) < most_lines:
        line = rest.pop(0)
        while rest and _length(f"{line} {rest[0]}", size_px) <= width_px:
            line = f"{line} {rest.pop(0)}"
        fits = _fitting(line, width_px, size_px)
        if fits < len(line):
            rest.insert(0, line[fits:])
            line = line[:fits]
        lines.append(line)
    if rest:
        last = lines[-1]
        while last and _length(f"{last}…", size_px) > width_px:
            last = last[:-1]
        lines[-1] = f"{last.rstrip()}…"
    return lines or [""]


def _fitting(line: str, width_px: int, size_px: int) -> int:
    """How many of the line's first characters are no wider than this; at least one."""
    fits = 1
    while fits < len(line) and _length(line[: fits + 1], size_px) <= width_px:
        fits += 1
    return fits


def _drawable(text: str) -> str:
    """The text in letters that the font has: accents are dropped, other scripts become boxes."""
    parts = unicodedata.normalize("NFKD", visible(text))
    return "".join(c for c in parts if not unicodedata.combining(c))


def _length(text: str, size_px: int) -> float:
    return _font(size_px * SMOOTHING).getlength(text) / SMOOTHING


def _line_px(size_px: int) -> int:
    return round(size_px * LEADING)


@lru_cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = cast(ImageFont.FreeTypeFont, ImageFont.load_default(size_px))
    # The basic layout is in every build of Pillow, so that text is as wide on each machine.
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)
