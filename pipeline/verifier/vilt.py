"""The ViLT verifier: pictures and prompts in, verdicts out.

Loads what the project trained (a folder with heads) for judging, from a folder or the hub.
Torch and transformers are imported when a verifier is loaded, not before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from PIL import Image

from pipeline.config import VerifierConfig
from pipeline.devices import device_of, dtype_of
from pipeline.errors import ItemError, ModelError, PpvError
from pipeline.models import local
from pipeline.types import ClauseScore, ModelRef, Thresholds, Verdict
from pipeline.verifier.clauses import aggregate, split_clauses

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    from pipeline.verifier.network import ViltVerifier

PAIRS_PER_PASS = 64
"""Pairs of picture and clause in one forward pass, which bounds memory whatever the batch."""
TEXTS = 4096  # prompts whose tokens are kept


class BatchMismatch(PpvError, ValueError):
    """Pictures and prompts that are not pairs: their numbers differ."""


class Clause(NamedTuple):
    """A part of a prompt that is read at once, and its tokens."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Verifier:
    """A loaded verifier. Scores come from the model alone: no state changes while judging."""

    name: str
    network: ViltVerifier
    tokenizer: PreTrainedTokenizerBase
    processor: ViltImageProcessorPil

    @classmethod
    def load(cls, config: VerifierConfig, ref: ModelRef | None = None) -> Verifier:
        """The verifier that the configuration names, ready to judge on its device.

        ref: the weights that a run was made for; without it, whatever the name stands for.
        Raises ModelError for a folder that is missing, holds a pickle, is no ViLT, has no heads,
        or has other weights than `ref`; ServiceError where a hub id cannot be fetched.
        """
        folder = local(config.model, ref, "verifier")
        network = _load_network(folder, config.model)
        try:
            from transformers import BertTokenizer
            from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

            tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
            processors: Any = ViltImageProcessorPil  # its types are lost on mypy
            processor = processors.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"verifier {config.model!r} lacks its tokenizer or image processor "
                f"({_first_line(error)}): save a ViltProcessor into its folder"
            ) from error
        device = device_of(config.device)
        module: torch.nn.Module = network  # whose `to` has types
        module.to(device=device, dtype=dtype_of(config.dtype, device)).train(False)
        if config.compile:
            cast("torch.nn.Module", network.vilt).compile(dynamic=True)
        return cls(config.model, network, tokenizer, processor)

    @property
    def text_budget(self) -> int:
        """Tokens of text in one reading, [CLS] and [SEP] aside."""
        return int(self.network.config.max_position_embeddings) - 2

    def clauses(self, prompt: str) -> list[str]:
        """The prompt as the clauses that it is judged by."""
        return split_clauses(prompt, self.text_budget, self._count_tokens)

    def check(self, image: Image.Image) -> None:
        """Raises ItemError for a picture of which nothing would be left."""
        if not all(self._size_of(image)):
            across, down = image.size
            raise ItemError(
                f"a picture of {across} x {down} pixels is too narrow to be judged: its shorter "
                "side would be left with none"
            )

    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        """One verdict for each pair, whatever the batch that it comes in.

        images: of any size and mode, as many as prompts. A prompt over `text_budget` tokens is
        scored clause by clause (see clauses.aggregate).
        Raises BatchMismatch if the lengths differ, ItemError as `check` does, ModelError if a
        score is not finite.
        """
        if len(images) != len(prompts):
            raise BatchMismatch(f"{len(images)} images for {len(prompts)} prompts: give pairs")
        clauses = [self._read_text(prompt) for prompt in prompts]
        pairs = [(i, clause) for i, several in enumerate(clauses) for clause in several]
        readings = iter(self._read(images, pairs))
        verdicts = []
        for several in clauses:
            scores = [
                ClauseScore(text=clause.text, fidelity=fidelity, alignment=alignment)
                for clause, (fidelity, alignment) in zip(several, readings, strict=False)
            ]
            fidelity, alignment = aggregate(scores)
            verdicts.append(
                Verdict(
                    fidelity=fidelity,
                    alignment=alignment,
                    clauses=tuple(scores),
                    thresholds=thresholds,
                )
            )
        return verdicts

    @cached_property
    def _read_text(self) -> Any:
        """A prompt's clauses as tokens; the same prompt has several pictures, and is read once."""

        @lru_cache(maxsize=TEXTS)
        def read(prompt: str) -> list[Clause]:
            encode = self.tokenizer.encode
            return [Clause(text, tuple(encode(text))) for text in self.clauses(prompt)]

        return read

    def _read(
        self, images: Sequence[Image.Image], pairs: Sequence[tuple[int, Clause]]
    ) -> list[list[float]]:
        """Fidelity and alignment, in [0, 1], of each pair of an image's index and a clause.

        Texts of about one length are read together, since the shorter ones are padded.
        """
        import torch

        scores: dict[int, list[float]] = {}
        order = sorted(range(len(pairs)), key=lambda n: len(pairs[n][1].ids))
        with torch.inference_mode():
            embeds = self._embed(images)
            for places in _parts(order, PAIRS_PER_PASS):
                input_ids, attention_mask = self._pad(
                    [torch.tensor(pairs[n][1].ids) for n in places]
                )
                image_embeds, image_mask = self._pad([embeds[pairs[n][0]] for n in places])
                features = self.network.features(
                    input_ids, attention_mask, image_embeds, image_mask
                )
                found = self.network.heads(features).float().sigmoid().cpu().tolist()
                scores.update(zip(places, found, strict=True))
        for n, (_, clause) in enumerate(pairs):
            if any(map(isnan, scores[n])):
                raise ModelError(
                    f"verifier {self.name!r} gives no finite score for {clause.text[:80]!r} in "
                    f"{self.network.dtype}: its weights are broken or need dtype float32"
                )
        return [scores[n] for n in range(len(pairs))]

    def _embed(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """Each image's tokens, (1 + N, D): preprocessed once, embedded with those of its size."""
        import torch

        pixels = [self._pixels(image) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, values in enumerate(pixels):
            by_size.setdefault(values.shape, []).append(i)
        table = self._table.to(self.network.device)
        rows = 256 * torch.arange(3, device=table.device, dtype=torch.int32)
        embeds: dict[int, torch.Tensor] = {}
        for members in by_size.values():
            for chunk in _parts(members, PAIRS_PER_PASS):
                raw = torch.from_numpy(np.stack([pixels[i] for i in chunk]))  # B H W 3
                # Bytes travel, not floats; and channels stay last in memory, which convolves faster
                places = (raw.to(table.device).int() + rows).flatten()
                batch = table.index_select(0, places).view(raw.shape).permute(0, 3, 1, 2)
                embeds.update(zip(chunk, self.network.embed_images(batch), strict=True))
        return [embeds[i] for i in range(len(images))]

    def _pixels(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(H, W, 3) as the image processor sizes it."""
        self.check(image)
        height, width = self._size_of(image)
        image = image.convert("RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling(self._settings.resample))
        return np.asarray(image)

    def _size_of(self, image: Image.Image) -> tuple[int, int]:
        """Height and width that the image processor gives the picture."""
        from transformers.image_utils import ChannelDimension
        from transformers.models.vilt import image_processing_pil_vilt as vilt

        width, height = image.size
        settings = self._settings
        if not settings.do_resize:
            return height, width
        shorter = settings.size["shortest_edge"]
        longer = int(vilt.MAX_LONGER_EDGE / vilt.MAX_SHORTER_EDGE * shorter)
        shape = np.broadcast_to(np.uint8(0), (3, height, width))  # it asks for nothing else of it
        size: tuple[int, int] = vilt.get_resize_output_image_size(
            shape, shorter, longer, settings.size_divisor, ChannelDimension.FIRST
        )
        return size

    @cached_property
    def _table(self) -> torch.Tensor:
        """What the image processor makes of each value of a byte: 256 of red, of green, of blue."""
        ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
        plain: dict[str, Any] = {"do_resize": False, "do_pad": False, "return_tensors": "pt"}
        table: torch.Tensor = self._settings(ramp, **plain)["pixel_values"][0, :, 0]
        return table.float().flatten()

    @property
    def _settings(self) -> Any:
        return self.processor  # its types are lost on mypy

    def _pad(self, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of different lengths as one batch, and the mask that is 1 where a row is."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        device = self.network.device
        return pad_sequence(rows, batch_first=True).to(device), mask.long().to(device)

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _parts(items: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    return (items[first : first + most] for first in range(0, len(items), most))


def _load_network(folder: Path, name: str) -> ViltVerifier:
    """The network with trained heads, in float32 on the CPU. name: as the user said it."""
    from pipeline.verifier.network import ViltVerifier

    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"verifier {name!r} has no readable config.json ({_first_line(error)}): give a folder "
            "that a ViltVerifier was saved to"
        ) from error
    if kind == "vilt":
        raise ModelError(
            f"ViLT backbone {name!r} has no fidelity and alignment heads, and untrained ones judge "
            "nothing: give a folder with a ViltVerifier whose heads were trained"
        )
    if kind != "vilt_verifier":
        raise ModelError(
            f"model {name!r} is of type {kind!r}, no ViLT verifier: give a folder that "
            "a ViltVerifier was saved to"
        )
    try:
        loaded: Any = ViltVerifier.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and torch each raise their own
        raise ModelError(f"verifier {name!r} cannot be loaded: {_first_line(error)}") from error
    network, loading = loaded
    if loading["missing_keys"] or loading["mismatched_keys"]:
        wrong = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        raise ModelError(
            f"verifier {name!r} lacks {len(wrong)} weights ({wrong[0]}, ...): give a folder that "
            "a ViltVerifier was saved to"
        )
    return cast("ViltVerifier", network.float())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
