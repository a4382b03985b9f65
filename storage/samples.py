"""A few pictures of each category, or of each model, in rows, as one PNG."""

import io
from collections.abc import Iterable, Sequence

EACH = 8
CATEGORIES = 12

_TILE_PX = 96
_GAP_PX = 8
_TEXT_PX = 16
_LABEL_PX = 180


def draw_samples(rows: Iterable[tuple[str, Sequence[bytes | None]]]) -> bytes:
    """A row for each name with at most EACH pictures. The same rows, the same bytes.

    rows: at least one. None leaves its place empty.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    def opened(image: bytes | None) -> Image.Image | None:
        return None if image is None else Image.open(io.BytesIO(image)).convert("RGB")

    pictures = [(label, [opened(each) for each in images[:EACH]]) for label, images in rows]
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
            if image is None:
                continue
            fitted = ImageOps.pad(image, (_TILE_PX, _TILE_PX), color="white")
            strip.paste(fitted, (_LABEL_PX + column * pitch, y))
    file = io.BytesIO()
    strip.save(file, "PNG", optimize=True)
    return file.getvalue()
