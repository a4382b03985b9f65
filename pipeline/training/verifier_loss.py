"""The loss of a verifier: cross-entropy of both heads, where labels say something."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

from pipeline.training.denoising import Batch
from pipeline.training.verifier_guide import Guide, Questions
from pipeline.training.verifier_labels import Judged
from pipeline.training.verifier_plan import VerifierTraining
from pipeline.verifier.network import ALIGNMENT, FIDELITY, ViltVerifier


class Judging(nn.Module):
    """A verifier's network under its loss. A batch is what Examples.batch gives.

    weights: (2, 2), of a no and of a yes for fidelity, then for alignment.
    """

    weights: Tensor

    def __init__(
        self, network: ViltVerifier, config: VerifierTraining, weights: Tensor, asked: Questions
    ) -> None:
        super().__init__()
        self.network = network
        self.guide = Guide(2 * network.config.hidden_size, asked)
        self._config = config
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses: "loss", "fidelity", "alignment" and "guide"."""
        features = self._features(batch)
        logits = self._joined(features, batch)
        fidelity = self._loss(logits, batch["targets"], FIDELITY)
        alignment = self._loss(logits, batch["targets"], ALIGNMENT)
        config = self._config
        loss = config.fidelity_weight * fidelity + config.alignment_weight * alignment
        found = {"fidelity": fidelity, "alignment": alignment}
        if config.guide_weight:
            found["guide"] = self.guide(features, batch, batch["pair"], batch["picture"])
            loss = loss + config.guide_weight * found["guide"]
        return {"loss": loss, **found}

    def logits(self, batch: Batch) -> Tensor:
        """(P, 2) of pairs of picture and text, their clauses joined as the verifier joins scores:
        fidelity's mean, alignment's least."""
        return self._joined(self._features(batch), batch)

    def _features(self, batch: Batch) -> Tensor:
        """(C, 2D) of clauses with their pictures."""
        pair = batch["pair"]
        embeds, mask = self._embed(batch["pixels"], pair.device)
        whose = batch["picture"][pair]
        return self.network.features(
            batch["input_ids"], batch["attention_mask"], embeds[whose], mask[whose]
        )

    def _joined(self, features: Tensor, batch: Batch) -> Tensor:
        pair, picture = batch["pair"], batch["picture"]
        clauses = self.network.heads(features).float()  # C, 2
        if len(clauses) == len(picture):
            return clauses
        count = len(picture)
        joined = clauses.new_zeros(count, 2)
        mean = joined[:, FIDELITY].scatter_reduce(
            0, pair, clauses[:, FIDELITY], "mean", include_self=False
        )
        least = joined[:, ALIGNMENT].scatter_reduce(
            0, pair, clauses[:, ALIGNMENT], "amin", include_self=False
        )
        return torch.stack([mean, least], dim=1)

    def _embed(self, pixels: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """The pictures' tokens, (B, 1 + N, D), and the mask that is 0 where they are padded."""
        by_size: dict[torch.Size, list[int]] = {}
        for row, each in enumerate(pixels):
            by_size.setdefault(each.shape, []).append(row)
        embeds: dict[int, Tensor] = {}
        for rows in by_size.values():
            batch = torch.stack([pixels[row] for row in rows]).to(device)
            embeds.update(zip(rows, self.network.embed_images(batch), strict=True))
        ordered = [embeds[row] for row in range(len(pixels))]
        mask = [torch.ones(len(each), dtype=torch.long, device=device) for each in ordered]
        return pad_sequence(ordered, batch_first=True), pad_sequence(mask, batch_first=True)

    def _loss(self, logits: Tensor, targets: Tensor, head: int) -> Tensor:
        """The weighted mean over the pairs of which something is said; 0 if there are none."""
        wanted = targets[:, head]
        said = wanted >= 0
        weights = self.weights[head][(wanted > 0.5).long()] * said
        smooth = self._config.label_smoothing
        each = binary_cross_entropy_with_logits(
            logits[:, head], wanted.clamp(min=0) * (1 - smooth) + smooth / 2, reduction="none"
        )
        return (each * weights).sum() / weights.sum().clamp(min=1e-6)


def class_weights(items: Sequence[Judged], config: VerifierTraining) -> Tensor:
    """(2, 2): of a no and of a yes for fidelity, then for alignment.

    As seen in training, with the negatives that are made. Each answer weighs as much as the other
    in total, but none more than config.most_weight, nor less than its inverse.
    """
    yes = sum(item.fidelity is True for item in items)
    no = sum(item.fidelity is False for item in items)
    spoilt = config.corrupted * yes
    counts = [[no + spoilt, yes - spoilt]]
    yes = sum(item.alignment is True for item in items)
    no = sum(item.alignment is False for item in items)
    counts.append([no + config.negatives * yes, yes])
    if not config.class_balance:
        return torch.ones(2, 2)
    seen = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    even = seen.sum(dim=1, keepdim=True) / (2 * seen)
    return even.clamp(1 / config.most_weight, config.most_weight)
