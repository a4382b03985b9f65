"""Which pictures look alike: perceptual hashes, compared within a bucket.

The hash is ImageHash's pHash, 12 x 12 of each colour channel: the signs of its lowest frequencies
against their median. Measured on the miniature's 64-pixel pictures, in bits that differ of 432:

    the same picture as a JPEG of quality 80      median 12, at most 22 (24 pictures)
    drawn again with guidance 2.2 for 2.0         median 5, at most 18 (24)
    drawn again in 18 steps for 16                median 1, at most 12 (24)
    another seed, the same prompt                 median 88, at least 42 (144 pairs)
    another colour of the object, all else alike  median 64, at least 28 (600)
    renders of one scene that only jitters        median 92; 1 pair in 1,000 below 26 (67,000)
    the same picture, moved by one pixel          median 39: not found

so NEAR is 24. A grey pHash of 256 bits tells seeds apart as well, but not a red mug from a blue
one (median 6); one of 64 bits has repeats and other seeds overlap (both at 4).
"""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Prints = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]

_SIDE = 12
BITS = 3 * _SIDE**2
NEAR = 24
_WORDS = -(-BITS // 64)


def fingerprint(image: bytes) -> "Prints":
    """BITS bits as (7,) uint64, the last ones padded. Raises OSError if it is no whole picture."""
    import imagehash
    import numpy as np
    from PIL import Image

    picture = Image.open(io.BytesIO(image)).convert("RGB")
    bits = [imagehash.phash(channel, _SIDE).hash.ravel() for channel in picture.split()]
    packed = np.packbits(np.concatenate(bits))
    return np.pad(packed, (0, 8 * _WORDS - len(packed))).view(np.uint64)


class Gallery:
    """The fingerprints that were taken, in buckets; 56 bytes each, and room for as many more."""

    def __init__(self, distance: int) -> None:
        """distance: how many bits of two pictures may differ if they are alike."""
        self._distance = distance
        self._prints: dict[tuple[str, ...], Prints] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def take(self, bucket: tuple[str, ...], print_: "Prints") -> bool:
        """False if the bucket has a picture like this one; else it has this one now."""
        import numpy as np

        count = self._counts.get(bucket, 0)
        prints = self._prints.setdefault(bucket, np.empty((16, _WORDS), np.uint64))
        differing = np.bitwise_count(prints[:count] ^ print_).sum(axis=1)
        if (differing <= self._distance).any():
            return False
        if count == len(prints):
            prints = self._prints[bucket] = np.concatenate([prints, np.empty_like(prints)])
        prints[count] = print_
        self._counts[bucket] = count + 1
        return True
