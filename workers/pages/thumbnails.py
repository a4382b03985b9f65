"""Pictures from a store as a page shows them."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

AS_STORED_PX, AS_STORED_BYTES = 128, 64 * 1024  # a PNG no larger than this is shown as it is
THUMBNAIL_PX = 256  # the longer side of what is not


def decoded(picture: bytes) -> "ImageFile | None":
    """None if this is no whole picture."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(picture))
        image.load()
    # Pillow says SyntaxError of a PNG whose chunks are broken.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return image


def thumbnail(picture: bytes) -> tuple[bytes, str] | None:
    """A small PNG as it is, else a smaller picture, and its type; None if it cannot be read."""
    image = decoded(picture)
    if image is None:
        return None
    small = max(image.size) <= AS_STORED_PX and len(picture) <= AS_STORED_BYTES
    if small and image.format == "PNG":
        return picture, "image/png"
    rgb = image.convert("RGB")
    rgb.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    webp = io.BytesIO()
    rgb.save(webp, "WEBP", quality=82)
    return webp.getvalue(), "image/webp"
