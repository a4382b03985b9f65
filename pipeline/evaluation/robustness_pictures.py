"""What is done to a picture to try a verifier: transformations in growing strength.

Each says what is held to be true of the picture afterwards. A transformation never changes the
picture that it is given, and its strength is relative to the picture's size.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from pipeline.training.verifier_negatives import mirrored_text

Held = Literal["kept", "lost", "open"]
"""Of an answer: it is still what the label says; it is no, whatever it was; nobody can say."""

Apply = Callable[[Image.Image, float, np.random.Generator], Image.Image]

COVER = (127, 127, 127)


@dataclass(frozen=True)
class Transformation:
    """One way to change a picture. apply: of an RGB picture, a strength, and a source of noise.

    words: a strength as people say it. lost_from: the strength from which on an answer that gets
    lost is held to be lost; below, it is open.
    """

    name: str
    about: str
    assumed: str
    strengths: tuple[float, ...]
    words: Callable[[float], str]
    apply: Apply
    fidelity: Held = "kept"
    alignment: Held = "kept"
    lost_from: float = 0.0
    text: Callable[[str], str] = str  # of the prompt that goes with it

    @property
    def title(self) -> str:
        return self.name

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(self.words, self.strengths))

    @property
    def holds(self) -> tuple[dict[str, Held], ...]:
        """What becomes of both answers, by strength."""
        both = {"fidelity": self.fidelity, "alignment": self.alignment}
        return tuple(
            {head: "open" if each == "lost" and soft else each for head, each in both.items()}
            for soft in (strength < self.lost_from for strength in self.strengths)
        )


def crop(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """The middle. share: of each side that is cut off."""
    width, height = (max(1, round(side * (1 - share))) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def blur(image: Image.Image, radius: float, rng: np.random.Generator) -> Image.Image:
    """radius: of the Gauss curve, as a share of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(radius * min(image.size)))


def jpeg(image: Image.Image, quality: float, rng: np.random.Generator) -> Image.Image:
    """Saved and read again. quality: of Pillow's encoder, with its halved colours."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=round(quality))
    with Image.open(file) as again:
        return again.convert("RGB")


def scale(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    """Made smaller by the factor, and as large as before again."""
    small = tuple(max(1, round(side * factor)) for side in image.size)
    reduced = image.resize((small[0], small[1]), Image.Resampling.LANCZOS)
    return reduced.resize(image.size, Image.Resampling.BICUBIC)


def flip(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def contrast(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """share: of the contrast that is taken away."""
    return ImageEnhance.Contrast(image).enhance(1 - share)


def noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    """deviation: of Gaussian noise on each channel, as a share of its range."""
    pixels = np.asarray(image, np.float32)
    noisy = pixels + rng.standard_normal(pixels.shape, np.float32) * (255 * deviation)
    return Image.fromarray(np.clip(noisy.round(), 0, 255).astype(np.uint8))


def grey(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """share: of the colour that is taken away."""
    return ImageEnhance.Color(image).enhance(1 - share)


def hue(image: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    """Every colour turned on round the colour circle."""
    angle, saturation, value = image.convert("HSV").split()
    turned = angle.point([(each + round(degrees / 360 * 256)) % 256 for each in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def occlude(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """share: of the area that a grey rectangle in the middle covers, of the picture's shape."""
    sides = [round(side * share**0.5) for side in image.size]
    left, top = ((whole - part) // 2 for whole, part in zip(image.size, sides, strict=True))
    covered = image.copy()
    box = (left, top, left + sides[0] - 1, top + sides[1] - 1)
    ImageDraw.Draw(covered).rectangle(box, fill=COVER)
    return covered


def beside_itself(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """The picture and its mirror image, side by side; one below the other if it is a wide one."""
    wide = image.width > image.height
    size = (image.width, 2 * image.height) if wide else (2 * image.width, image.height)
    both = Image.new("RGB", size)
    both.paste(image, (0, 0))
    both.paste(
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        (0, image.height) if wide else (image.width, 0),
    )
    return both


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


TRANSFORMATIONS: tuple[Transformation, ...] = (
    Transformation(
        "crop",
        "The middle of the picture; what is given is the share of each side that is cut off.",
        "Hand and object are held to be left: where they are not in the middle, the stronger "
        "crops cut them, and some of what is lost is the picture's fault.",
        (0.05, 0.1, 0.2, 0.3),
        _percent,
        crop,
    ),
    Transformation(
        "blur",
        "A Gaussian blur; what is given is its radius as a share of the shorter side.",
        "Both answers are held to stay, though nobody may see fingers under the strongest.",
        (0.005, 0.01, 0.02, 0.04),
        _percent,
        blur,
    ),
    Transformation(
        "JPEG",
        "Saved as JPEG and read again; what is given is the quality.",
        "Both answers are held to stay.",
        (75, 50, 25, 10),
        lambda quality: f"quality {quality:g}",
        jpeg,
    ),
    Transformation(
        "scale",
        "Made smaller, and as large as before again; what is given is how small.",
        "Both answers are held to stay, though nobody may see fingers in the smallest.",
        (1 / 2, 1 / 3, 1 / 4, 1 / 6),
        lambda factor: str(Fraction(factor).limit_denominator(99)),
        scale,
    ),
    Transformation(
        "flip",
        "Mirrored, with left and right exchanged in the prompt.",
        "Both answers are held to stay. Writing in the picture would not.",
        (1,),
        lambda _: "mirrored",
        flip,
        text=mirrored_text,
    ),
    Transformation(
        "contrast",
        "Less contrast; what is given is the share of it that is taken away.",
        "Both answers are held to stay.",
        (0.25, 0.5, 0.75, 0.9),
        _percent,
        contrast,
    ),
    Transformation(
        "noise",
        "Gaussian noise on each channel; what is given is its deviation as a share of the range.",
        "Both answers are held to stay.",
        (0.02, 0.05, 0.1, 0.2),
        _percent,
        noise,
    ),
    Transformation(
        "grey",
        "Colour taken away; what is given is the share of it.",
        "The hand is held to be as right as before. Alignment is open: a prompt that names a "
        "colour is no more shown.",
        (0.25, 0.5, 0.75, 1),
        _percent,
        grey,
        alignment="open",
    ),
    Transformation(
        "hue",
        "Every colour turned on round the colour circle; what is given is the angle.",
        "The hand is held to be as right as before, whatever colour its skin. Alignment is open: "
        "a prompt that names a colour is no more shown.",
        (15, 45, 90, 180),
        lambda degrees: f"{degrees:g}\N{DEGREE SIGN}",
        hue,
        alignment="open",
    ),
    Transformation(
        "occlusion",
        "A grey rectangle over the middle; what is given is the share of the area that it covers.",
        "From 20% on both answers are held to be no, for what cannot be seen cannot be confirmed; "
        "below, the rectangle may hide nothing that counts. Hands are held to be in the middle.",
        (0.05, 0.1, 0.2, 0.35, 0.5),
        _percent,
        occlude,
        fidelity="lost",
        alignment="lost",
        lost_from=0.2,
    ),
    Transformation(
        "two hands",
        "The picture beside its mirror image, or above it if it is wide.",
        "Each hand is held to be as right as before. Alignment is held to be no: prompts are of "
        "one scene, and here it is there twice. The picture is also twice as wide or high as its "
        "kind, which may be what is noticed.",
        (1,),
        lambda _: "doubled",
        beside_itself,
        alignment="lost",
    ),
)
