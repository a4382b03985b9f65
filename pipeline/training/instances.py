"""The pictures that a specialist learns from, checked before any model is loaded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipeline.errors import InputError
from pipeline.training.buckets import Size

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LEAST, MOST = 2, 1000  # pictures
MAX_PIXELS = 64_000_000  # of one picture, by its header
MAX_ASPECT, DOUBTFUL_ASPECT = 3.0, 2.0  # longer side to shorter; the middle square is trained on
SMALLEST = 0.5  # of the resolution: what is smaller still would be mostly invented by scaling
SAME = 0.1  # distance of thumbnails: below are copies saved anew or scaled, above other scenes
CAPTION_BYTES = 8192
SHOWN = 20  # problems, or warnings, of one folder
THUMBNAIL_PX = 16

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Instance:
    """One picture. sha256: of its pixels as trained on, whatever the file's format says.

    width and height: in pixels, after the rotation that its EXIF asks for.
    caption: of the text file beside it, "" if there is none.
    """

    path: Path
    sha256: str
    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Instances:
    """The pictures of one folder in the order of their names, and what is doubtful of them."""

    items: tuple[Instance, ...]
    warnings: tuple[str, ...]


def check_instances(folder: Path, resolution: int) -> Instances:
    """The pictures of a folder, every one read once. A picture's caption is NAME.txt beside it.

    resolution: pixels a side that the base is trained at.
    Raises InputError with a line for each problem: its file, and what would have been right.
    """
    paths, doubts = _pictures(folder)
    items: list[Instance] = []
    problems: list[str] = []
    thumbnails: list[Pixels] = []
    for path in paths:
        try:
            picture = read_picture(path)
            caption = _caption(path)
        except InputError as problem:
            problems.append(str(problem))
            continue
        found, doubtful = _measure(path.name, picture, resolution)
        problems += found
        doubts += doubtful
        content = f"{picture.size}".encode() + picture.tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        items.append(Instance(path, sha256, picture.width, picture.height, caption))
        thumbnails.append(_thumbnail(picture))
    first: dict[str, str] = {}
    for item in items:
        if item.sha256 in first:
            problems.append(
                f"{item.path.name}: the same picture as {first[item.sha256]}: remove one of them"
            )
        first.setdefault(item.sha256, item.path.name)
    if problems:
        raise InputError(_listed(f"{str(folder)!r} cannot be trained on", problems))
    for one, other in _near(thumbnails):
        doubts.append(
            f"{items[other].path.name}: nearly the same picture as {items[one].path.name}"
        )
    captioned = sum(bool(item.caption) for item in items)
    if 0 < captioned < len(items):
        doubts.append(f"{len(items) - captioned} of {len(items)} pictures have no caption")
    return Instances(tuple(items), tuple(doubts))


def read_picture(path: Path, content: bytes | None = None) -> Image.Image:
    """RGB, turned as its EXIF asks, on white where it is transparent.

    content: the file's, where it is no file of its own.
    Raises InputError if it is too large, which its header tells, or no whole picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bound below is the stricter one
            with Image.open(path if content is None else BytesIO(content)) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if file.mode.startswith(("I", "F")):
                    raise InputError(
                        f"{path.name}: pixels of mode {file.mode}; save it as 8-bit RGB"
                    )
                turned = ImageOps.exif_transpose(file)
                if not turned.has_transparency_data:
                    return turned.convert("RGB")
                rgba = turned.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
    except Image.DecompressionBombError:
        most = f"{MAX_PIXELS // 1_000_000} megapixels"
        raise InputError(f"{path.name}: more than {most}; scale it down") from None
    # SyntaxError and the like: what Pillow raises of broken chunks and broken EXIF
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, EOFError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        where = reason.replace(str(path), path.name)
        raise InputError(f"{path.name}: no readable picture ({where}); save it anew") from None


def cut_to(picture: Image.Image, size: Size) -> tuple[Image.Image, tuple[int, int]]:
    """The middle of a picture at a width and height, and how much was cut off: top, left."""
    width, height = size
    scale = max(width / picture.width, height / picture.height)
    wide, high = (
        max(width, round(picture.width * scale)),
        max(height, round(picture.height * scale)),
    )
    left, top = (wide - width) // 2, (high - height) // 2
    scaled = picture.resize((wide, high), Image.Resampling.LANCZOS)
    return scaled.crop((left, top, left + width, top + height)), (top, left)


def _pictures(folder: Path) -> tuple[list[Path], list[str]]:
    """The picture files of a folder by name, and doubts about the others."""
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}: give one that holds {LEAST} pictures or more")
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    paths = [path for path in files if path.suffix.lower() in FORMATS]
    if not LEAST <= len(paths) <= MOST:
        hint = ""
        if not paths and any(path.is_dir() for path in folder.iterdir()):
            hint = "; for a folder of folders, one for each category, say --all"
        raise InputError(
            f"{str(folder)!r} holds {len(paths):,} picture{'' if len(paths) == 1 else 's'}: give "
            f"{LEAST} to {MOST:,} of {', '.join(end[1:] for end in FORMATS)}{hint}"
        )
    captions = {path.with_suffix(".txt") for path in paths}
    others = [path for path in files if path not in captions and path not in paths]
    return paths, [f"{path.name}: left out, for it is none of {FORMATS}" for path in others]


def _caption(picture: Path) -> str:
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return ""
    if path.stat().st_size > CAPTION_BYTES:
        raise InputError(f"{path.name}: a caption of more than {CAPTION_BYTES:,} bytes")
    try:
        return " ".join(path.read_text("utf-8-sig").split())
    except UnicodeDecodeError:
        raise InputError(f"{path.name}: a caption that is no UTF-8; save it as such") from None


def _measure(name: str, picture: Image.Image, resolution: int) -> tuple[list[str], list[str]]:
    """Problems and doubts of one picture's shape and content."""
    short, long = sorted(picture.size)
    size = f"{picture.width}x{picture.height} px"
    problems, doubts = [], []
    if short < resolution * SMALLEST:
        problems.append(
            f"{name}: {size} is too small for a base of {resolution} px; give {resolution} or more"
        )
    elif short < resolution:
        doubts.append(f"{name}: {size} is scaled up to {resolution} px and will be blurred")
    if long > short * MAX_ASPECT:
        problems.append(f"{name}: {size} is too narrow; crop it to 1:{MAX_ASPECT:g} or squarer")
    elif long > short * DOUBTFUL_ASPECT:
        doubts.append(f"{name}: {size}: only the square in its middle is trained on")
    if max(high - low for low, high in picture.getextrema()) < 4:  # type: ignore[misc]
        doubts.append(f"{name}: the whole picture is one colour")
    return problems, doubts


def _thumbnail(picture: Image.Image) -> Pixels:
    """(3 * THUMBNAIL_PX ** 2,) float32, of mean 0."""
    small = picture.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    row: Pixels = np.array(small, np.float32).reshape(-1)
    row -= row.mean()
    return row


def _near(thumbnails: Sequence[Pixels]) -> Iterator[tuple[int, int]]:
    """Pairs that differ by less than SAME of their own contrast; each picture but once."""
    rows = np.stack(thumbnails)
    contrast = np.abs(rows).mean(axis=1)
    for later in range(1, len(rows)):
        apart = np.abs(rows[:later] - rows[later]).mean(axis=1)
        near = np.flatnonzero(apart < SAME * np.minimum(contrast[:later], contrast[later]))
        if near.size:
            yield int(near[0]), later


def _listed(title: str, lines: Sequence[str]) -> str:
    """One line, or as many as there are problems."""
    if len(lines) == 1:
        return f"{title}: {lines[0]}"
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n  ".join([f"{title}, for {len(lines)} reasons:", *lines[:SHOWN], *more])
