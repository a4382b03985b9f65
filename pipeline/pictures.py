"""Pictures as bytes: lossless PNG that says which prompt it was drawn from."""

import hashlib
import io

from PIL import Image, PngImagePlugin

from pipeline.proposer.diffusion import Drawing
from pipeline.types import Proposal

_UNREAD = "unread_tokens"
_UPCAST = "upcast"  # present where it happened


def encode(drawing: Drawing, proposal: Proposal) -> bytes:
    """The same drawing always gives the same bytes."""
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("proposal", proposal.id)
    notes.add_itxt("prompt", proposal.prompt.text)
    notes.add_text(_UNREAD, str(drawing.unread_tokens))
    if drawing.upcast:
        notes.add_text(_UPCAST, "float32")
    buffer = io.BytesIO()
    # Level 1 is several times as fast as the default at 1024 px, for a tenth more bytes.
    drawing.image.save(buffer, "PNG", pnginfo=notes, compress_level=1)
    return buffer.getvalue()


def decode(png: bytes) -> Drawing:
    """Raises OSError if the bytes are no whole picture."""
    image = Image.open(io.BytesIO(png))
    image.load()
    notes = image.info
    return Drawing(image.convert("RGB"), int(notes.get(_UNREAD, 0)), upcast=_UPCAST in notes)


def sha256(png: bytes) -> str:
    return hashlib.sha256(png).hexdigest()
