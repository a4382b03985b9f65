"""The ViLT verifier: pictures and prompts in, verdicts out.

Loads what the project trained (a folder with heads) for judging, from a folder or the hub.
Torch and transformers are imported when a verifier is loaded, not before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL.Image import Image

from pipeline.config import VerifierConfig
from pipeline.devices import device_of, dtype_of
from pipeline.errors import ModelError, PpvError, ServiceError
from pipeline.models import check_folder, folder_of, location
from pipeline.types import ClauseScore, ModelRef, Thresholds, Verdict
from pipeline.verifier.clauses import aggregate, split_clauses

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    from pipeline.verifier.network import ViltVerifier

PAIRS_PER_PASS = 64
"""Pairs of picture and clause in one forward pass, which bounds memory whatever the batch."""


class BatchMismatch(PpvError, ValueError):
    """Pictures and prompts that are not pairs: their numbers differ."""


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
        if ref is None:
            found = folder_of(config.model, "verifier")
            name, revision = str(found or config.model), None
        else:
            name, revision = location(ref, "verifier")
        folder = Path(name) if Path(name).is_dir() else _fetch(name, revision)
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
        return cls(config.model, network, tokenizer, processor)

    @property
    def text_budget(self) -> int:
        """Tokens of text in one reading, [CLS] and [SEP] aside."""
        return int(self.network.config.max_position_embeddings) - 2

    def clauses(self, prompt: str) -> list[str]:
        """The prompt as the clauses that it is judged by."""
        return split_clauses(prompt, self.text_budget, self._count_tokens)

    def judge(
        self, images: list[Image], prompts: list[str], thresholds: Thresholds
    ) -> list[Verdict]:
        """One verdict for each pair, whatever the batch that it comes in.

        images: RGB of any size, as many as prompts. A prompt over `text_budget` tokens is scored
        clause by clause (see clauses.aggregate).
        Raises BatchMismatch if the lengths differ, ModelError if a score is not finite.
        """
        if len(images) != len(prompts):
            raise BatchMismatch(f"{len(images)} images for {len(prompts)} prompts: give pairs")
        clauses = [self.clauses(prompt) for prompt in prompts]
        pairs = [(i, text) for i, texts in enumerate(clauses) for text in texts]
        readings = iter(self._read(images, pairs))
        verdicts = []
        for texts in clauses:
            scores = [
                ClauseScore(text=text, fidelity=fidelity, alignment=alignment)
                for text, (fidelity, alignment) in zip(texts, readings, strict=False)
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

    def _read(self, images: list[Image], pairs: list[tuple[int, str]]) -> list[list[float]]:
        """Fidelity and alignment, in [0, 1], of each pair of an image's index and a clause."""
        import torch

        encoded = {text: self.tokenizer.encode(text) for text in dict.fromkeys(t for _, t in pairs)}
        scores: list[list[float]] = []
        with torch.inference_mode():
            embeds = self._embed(images)
            for first in range(0, len(pairs), PAIRS_PER_PASS):
                chunk = pairs[first : first + PAIRS_PER_PASS]
                tokens = [torch.tensor(encoded[text]) for _, text in chunk]
                input_ids, attention_mask = self._pad(tokens)
                image_embeds, image_mask = self._pad([embeds[i] for i, _ in chunk])
                features = self.network.features(
                    input_ids, attention_mask, image_embeds, image_mask
                )
                scores += self.network.heads(features).float().sigmoid().cpu().tolist()
        for (_, text), pair in zip(pairs, scores, strict=True):
            if any(map(isnan, pair)):
                raise ModelError(
                    f"verifier {self.name!r} gives no finite score for {text[:80]!r} in "
                    f"{self.network.dtype}: its weights are broken or need dtype float32"
                )
        return scores

    def _embed(self, images: list[Image]) -> list[torch.Tensor]:
        """Each image's tokens, (1 + N, D): preprocessed once, embedded with those of its size."""
        import torch

        pixels = [
            self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            for image in images
        ]
        by_size: dict[torch.Size, list[int]] = {}
        for i, values in enumerate(pixels):
            by_size.setdefault(values.shape, []).append(i)
        embeds: dict[int, torch.Tensor] = {}
        for members in by_size.values():
            for first in range(0, len(members), PAIRS_PER_PASS):
                chunk = members[first : first + PAIRS_PER_PASS]
                batch = torch.stack([pixels[i] for i in chunk]).to(self.network.device)
                embeds.update(zip(chunk, self.network.embed_images(batch), strict=True))
        return [embeds[i] for i in range(len(images))]

    def _pad(self, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of different lengths as one batch, and the mask that is 1 where a row is."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [row.to(self.network.device) for row in rows]
        mask = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
        return pad_sequence(rows, batch_first=True), pad_sequence(mask, batch_first=True)

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


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


def _fetch(hub_id: str, revision: str | None) -> Path:
    """The folder with a hub model's files, from the local cache where it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    files = ["*.json", "*.txt", "*.safetensors"]
    try:
        try:
            folder = Path(
                snapshot_download(
                    hub_id, revision=revision, allow_patterns=files, local_files_only=True
                )
            )
            check_folder(folder)
        except (OSError, ModelError):
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
            check_folder(folder)
    except RepositoryNotFoundError as error:
        raise ModelError(f"no model {hub_id!r} on the hub, nor a folder of that name") from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise ServiceError(
            f"the hub cannot be asked for {hub_id!r}: {_first_line(error)}; "
            "give a folder instead to work offline"
        ) from error
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
