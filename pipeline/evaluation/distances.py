"""How far pictures are, all together, from those of a reference folder: FID and KID.

Both compare features. Those of Inception, by which published figures are made, come as a pickle
from a place of their own; here they are a CLIP's, which tell hands and objects apart better than
classes of ImageNet do (Kynkäänniemi et al. 2023), or, in the drawn world, those of its judge. Of
these the directions count, since KID's kernel, (x y / D + 1)^3, wants |x|^2 near D. So figures are
for comparing within one comparison, never with published ones.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.config import VerifierConfig
from pipeline.errors import InputError, ItemError
from pipeline.miniature.judge import load_judge
from pipeline.miniature.truth import JUDGE
from pipeline.pictures import as_seen
from pipeline.verifier.opinions import load_model, pixels_of

FEWEST = 2  # pictures of which there is a covariance
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as Bińkowski et al. 2018 have them
KID_PICTURES: Final = 10_000  # of each side, the first ones: their features stay in memory
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
AT_ONCE = 32

# Features


class Eyes(Protocol):
    """Whatever turns pictures into features."""

    name: str

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU. images: RGB, of any size, at least one."""


class ClipEyes:
    """A CLIP's picture features, as they are projected."""

    def __init__(self, model: str, config: VerifierConfig) -> None:
        """config: says on which device. Raises ModelError, and ServiceError for a hub away."""
        self.name = model
        self._network, _, self._processor = load_model("features", model, None, config)

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        network, parts = self._network, []
        with torch.inference_mode():
            for first in range(0, len(images), AT_ONCE):
                pixels = pixels_of(images[first : first + AT_ONCE], self._processor)
                pixels = pixels.to(network.device, network.dtype)
                seen = network.get_image_features(pixel_values=pixels).pooler_output
                parts.append(seen.float().cpu())
        return torch.cat(parts)


class JudgeEyes:
    """What the drawn world's judge sees before it decides."""

    name = "the judge"

    def __init__(self) -> None:
        self._judge = load_judge(JUDGE)

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        return self._judge.features(images)


# The reference


def reference_files(folder: Path) -> list[Path]:
    """The pictures of a folder and those below it, sorted.

    Raises InputError for a folder that is missing or holds too few, and for a file that is none.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}: --reference needs one with pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if len(found) < FEWEST:
        raise InputError(
            f"{str(folder)!r} holds {len(found)} pictures ({', '.join(ENDINGS)}): a reference "
            f"needs {FEWEST} or more, and means little below some hundreds"
        )
    for path in found:
        with _opened(path):
            pass  # its header says whether it is a picture
    return found


def open_reference(path: Path) -> Image.Image:
    """In RGB and upright. Raises InputError, naming the file, if it cannot be read."""
    with _opened(path) as image:
        image.load()
        return as_seen(ImageOps.exif_transpose(image))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, ItemError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"reference picture {str(path)!r}: {reason}; take it out") from None


class Distance:
    """FID and KID between a reference and others, whose features come part by part."""

    def __init__(self, width: int) -> None:
        """width: of the features."""
        as_they_are: Any = nn.Identity()
        as_they_are.num_features = width
        self._fid = FrechetInceptionDistance(as_they_are)
        with warnings.catch_warnings():  # of its memory, which is bounded here
            warnings.simplefilter("ignore")
            self._kid = KernelInceptionDistance(as_they_are, subsets=SUBSETS)
        self.reference = self.others = 0

    @classmethod
    def to(cls, files: Sequence[Path], eyes: Eyes) -> "Distance":
        """With all of a reference. Raises InputError for a file that is no picture."""
        parts = (files[first : first + AT_ONCE] for first in range(0, len(files), AT_ONCE))
        seen = (eyes.see([open_reference(path) for path in part]) for part in parts)
        first = next(seen)
        distance = cls(first.shape[1])
        for features in chain([first], seen):
            distance.add(features, real=True)
        return distance

    def fresh(self) -> "Distance":
        """Another one from the same reference, without others yet."""
        assert not self.others
        return deepcopy(self)

    def add(self, features: Tensor, *, real: bool = False) -> None:
        """Some of the others, or of the reference. features: (B, D), of any length."""
        features = normalize(features, dim=1) * features.shape[1] ** 0.5
        self._fid.update(features, real=real)
        if (self.reference if real else self.others) < KID_PICTURES:
            self._kid.update(features, real=real)
        if real:
            self.reference += len(features)
        else:
            self.others += len(features)

    def figures(self, seed: int) -> dict[str, float]:
        """fid, and kid times 1,000; neither where there are too few of either.

        seed: of KID's subsets. KID is without bias; FID grows as pictures get fewer.
        """
        least = min(self.reference, self.others)
        if least < FEWEST:
            return {}
        self._kid.subset_size = min(SUBSET_SIZE, least)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kid, _ = self._kid.compute()
        return {"fid": float(self._fid.compute()), "kid": 1000 * float(kid)}
