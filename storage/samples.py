"""The strip on a dataset's card: a few pictures of each category, as one PNG."""

import io
from collections.abc import Iterable, Sequence

EACH = 8
CATEGORIES = 12

_TILE_PX = 96
_GAP_PX = 8
_TEXT_PX = 16
_LABEL_PX = 180


def draw_samples(rows: Iterable[tuple[str, Sequence[bytes]]]) -> bytes:
    """A row for each category: its name, and at most EACH pictures. The same rows, the same bytes.

    rows: at least one.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    pictures = [
        (label, [Image.open(io.BytesIO(image)).convert("RGB") for image in images[:EACH]])
        for label, images in rows
    ]
    pitch = _TILE_PX + _GAP_PX
    across = max(len(images) for _, images in pictures)
    size = (_LABEL_PX + across * pitch + _GAP_PX, len(pictures) * pitch + _GAP_PX)
    strip = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(_TEXT_PX)
    for row, (label, images) in enumerate(pictures):
        y = _GAP_PX + row * pitch
        shown = label if len(label) <= 20 else f"{label[:19]}…"
        draw.text((_GAP_PX, y + (_TILE_PX - _TEXT_PX) / 2), shown, "black", font=font)
        for column, image in enumerate(images):
            fitted = ImageOps.pad(image, (_TILE_PX, _TILE_PX), color="white")
            strip.paste(fitted, (_LABEL_PX + column * pitch, y))
    file = io.BytesIO()
    strip.save(file, "PNG", optimize=True)
    return file.getvalue()
