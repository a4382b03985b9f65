"""Pictures and prompts as a denoiser reads them, encoded once and kept in files.

<folder>/rows.jsonl            a line for each picture: its prompt, its bucket, its sizes
         latents-64x64.bin     mean and deviation of the latents of a bucket's pictures
         text.bin, pooled.bin  of each different prompt, the empty one first
         done                  how many pictures there are, once all of them are encoded

What is encoded stays, for a training that goes on and for others on the same pictures.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.training.buckets import Size, nearest_size
from pipeline.training.captioned import Captioned
from pipeline.training.denoising import Batch, encode, encode_pictures
from pipeline.training.instances import cut_to
from pipeline.training.tables import Table

AT_ONCE = 32  # pictures, or prompts, in memory while they are encoded
NOTED = 32 * AT_ONCE  # pictures from one word about them to the next
ROWS, DONE = "rows.jsonl", "done"

Note = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """What is known of an encoded picture. place: among those of its bucket.

    time_ids: SDXL's size conditioning: original size, what was cut off, target size; height first.
    """

    prompt: str
    bucket: Size
    place: int
    time_ids: tuple[int, ...]


def encode_examples(
    pipe: Any,
    pictures: Callable[[], Iterable[Captioned]],
    sizes: Sequence[Size],
    folder: Path,
    *,
    keep_text: bool,
    note: Note = lambda line: None,
) -> Examples:
    """Encodes what does not lie in the folder yet. sizes: each picture gets the nearest.

    pictures: asked for once at most, the same ones in the same order whenever they are.
    keep_text: encode prompts, too; otherwise batches carry them as they are, for a text encoder
    that is trained. Raises InputError for a picture that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        if not (folder / DONE).exists():
            _encode_pictures(pipe, pictures(), sizes, folder, note)
        if keep_text:
            _encode_prompts(pipe, folder)
    return Examples(folder, keep_text=keep_text)


class Examples:
    """Latents, conditioning and sizes of encoded pictures; in memory are prompts and sizes only."""

    def __init__(self, folder: Path, *, keep_text: bool) -> None:
        self.rows = list(_rows(folder))
        buckets = sorted({row.bucket for row in self.rows})
        self._latents = {bucket: _latents(folder, bucket) for bucket in buckets}
        self._numbers = torch.tensor([buckets.index(row.bucket) for row in self.rows])
        self._members = [(self._numbers == n).nonzero().flatten() for n in range(len(buckets))]
        self._text = _tables(folder) if keep_text else {}
        self._prompts = {prompt: n for n, prompt in enumerate(_different(self.rows))}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> list[str]:
        """Each different one once."""
        return [prompt for prompt in self._prompts if prompt]

    @property
    def buckets(self) -> dict[Size, int]:
        """How many pictures each bucket has."""
        return {bucket: len(table) for bucket, table in self._latents.items()}

    @property
    def scaled_up(self) -> int:
        """How many pictures are smaller than their bucket."""
        sides = (
            (row.time_ids[0] - row.bucket[1], row.time_ids[1] - row.bucket[0]) for row in self.rows
        )
        return sum(min(apart) < 0 for apart in sides)

    def dealt(self, seed: int, number: int, size: int) -> list[int]:
        """The rows of the n-th batch, all of one bucket.

        A bucket's turn comes as often as a picture of it is dealt, so every picture is seen as
        often as any other. With one bucket it is the pictures in turn, shuffled anew each time.
        """
        epoch, within = divmod(number, len(self))
        order = _order(seed, len(self), epoch)
        bucket = int(self._numbers[order[within]])
        members = self._members[bucket]
        turns = epoch * len(members) + int((self._numbers[order[:within]] == bucket).sum())
        return [int(members[n]) for n in dealt(seed, len(members), turns * size, size)]

    def batch(
        self, rows: Sequence[int], generator: torch.Generator, caption_dropout: float = 0.0
    ) -> Batch:
        """Examples of one bucket with fresh noise and noise levels, these spread over the range.

        caption_dropout: the share of them that lose their caption by lot.
        """
        picked = [self.rows[row] for row in rows]
        (bucket,) = {row.bucket for row in picked}
        means, deviations = self._latents[bucket].read([row.place for row in picked]).unbind(1)
        latents = means + deviations * torch.randn(means.shape, generator=generator)
        # stratified over the batch, so that each sees all noise levels
        strata = torch.randperm(len(rows), generator=generator)
        level = (strata + torch.rand(len(rows), generator=generator)) / len(rows)
        batch: Batch = {
            "latents": latents,
            "noise": torch.randn(means.shape, generator=generator),
            "level": level.clamp(max=1 - 1e-6),
            "time_ids": torch.tensor([row.time_ids for row in picked], dtype=torch.float32),
        }
        prompts = [row.prompt for row in picked]
        if caption_dropout:
            dropped = torch.rand(len(rows), generator=generator) < caption_dropout
            prompts = ["" if gone else p for gone, p in zip(dropped, prompts, strict=True)]
        if not self._text:
            return batch | {"prompts": prompts}
        places = [self._prompts[prompt] for prompt in prompts]
        return batch | {name: table.read(places) for name, table in self._text.items()}


def join(one: Batch, other: Batch) -> Batch:
    """Two batches as one: tensors along their first axis, lists end to end."""
    return {
        key: torch.cat([value, other[key]]) if isinstance(value, Tensor) else value + other[key]
        for key, value in one.items()
    }


def dealt(seed: int, count: int, start: int, size: int) -> list[int]:
    """Rows number `start` onwards of an endless deal: all of `count` in turn, shuffled anew."""
    places = (divmod(place, count) for place in range(start, start + size))
    return [int(_order(seed, count, epoch)[within]) for epoch, within in places]


@lru_cache(maxsize=16)
def _order(seed: int, count: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


def _encode_pictures(
    pipe: Any, pictures: Iterable[Captioned], sizes: Sequence[Size], folder: Path, note: Note
) -> None:
    """Appends what an earlier call did not come to; a line is written after its latents are."""
    encoded = Counter(row.bucket for row in _rows(folder))
    for size in sizes:
        _latents(folder, size).cut(encoded[size])
    _cut_half_line(folder / ROWS)
    done = encoded.total()
    left = itertools.islice(pictures, done, None)
    while some := list(itertools.islice(left, AT_ONCE)):
        cuts, lines = [], []
        for each in some:
            picture = each.read()
            bucket = nearest_size(picture.size, sizes)
            cut, cut_off = cut_to(picture, bucket)
            time_ids = [picture.height, picture.width, *cut_off, bucket[1], bucket[0]]
            lines.append({"prompt": each.prompt, "bucket": bucket, "time_ids": time_ids})
            cuts.append(cut)
        latents = encode_pictures(pipe, cuts)
        for size in {cut.size for cut in cuts}:
            own = [each for each, cut in zip(latents, cuts, strict=True) if cut.size == size]
            _latents(folder, size).append(torch.stack(own))
        with (folder / ROWS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        done += len(some)
        if done % NOTED == 0:
            note(f"{done:,} pictures encoded")
    (folder / DONE).write_text(f"{done}\n")


def _encode_prompts(pipe: Any, folder: Path) -> None:
    prompts = _different(_rows(folder))
    tables = _tables(folder)
    done = min((len(table) for table in tables.values()), default=0)
    for table in tables.values():
        table.cut(done)
    for start in range(done, len(prompts), AT_ONCE):
        with torch.no_grad():
            encoded = encode(pipe, prompts[start : start + AT_ONCE])
        for name, rows in encoded.items():
            Table(folder, name).append(rows)


def _rows(folder: Path) -> Iterator[Row]:
    """Those that were written in full."""
    if not (folder / ROWS).exists():
        return
    places: dict[Size, int] = {}
    with (folder / ROWS).open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            said = json.loads(line)
            bucket = (said["bucket"][0], said["bucket"][1])
            place = places[bucket] = places.get(bucket, -1) + 1
            yield Row(said["prompt"], bucket, place, tuple(said["time_ids"]))


def _cut_half_line(file: Path) -> None:
    if file.exists():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


def _different(rows: Iterable[Row]) -> list[str]:
    """The empty prompt, which those who lose theirs have, and each other one once."""
    return list(dict.fromkeys(itertools.chain([""], (row.prompt for row in rows))))


def _latents(folder: Path, size: Size) -> Table:
    return Table(folder, f"latents-{size[0]}x{size[1]}")


def _tables(folder: Path) -> dict[str, Table]:
    """Those of the prompts' encodings that were begun."""
    names = ("text", "pooled")
    return {name: Table(folder, name) for name in names if (folder / f"{name}.bin").exists()}


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Others who would encode the same wait until it is done."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
