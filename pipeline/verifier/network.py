"""The verifier's network: a ViLT backbone and two heads, fidelity and alignment.

One class for every size. A public ViLT has 32-pixel patches straight on the picture; at 64 pixels
that is blind to fingers, so the miniature puts a small convolutional stem in front of the patch
embedding. Nothing else differs.
"""

from dataclasses import field
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel
from transformers.models.vilt.modeling_vilt import ViltPreTrainedModel

FIDELITY, ALIGNMENT = 0, 1


class ViltVerifierConfig(ViltConfig):  # type: ignore[no-untyped-call]
    """ViLT's configuration and the stem's.

    image_size, patch_size and num_channels are the picture's own; stem_channels: what each
    stride-2 stage of the stem puts out, empty for a public ViLT's layout.
    """

    model_type = "vilt_verifier"

    stem_channels: list[int] = field(default_factory=list)

    def backbone(self) -> ViltConfig:
        """The configuration of the ViltModel behind the stem.

        Raises ValueError unless the stem's stages divide image and patch size.
        """
        values = _plain(self)
        del values["stem_channels"]
        if self.stem_channels:
            stride = 2 ** len(self.stem_channels)
            for name in ("image_size", "patch_size"):
                if values[name] % stride:
                    raise ValueError(
                        f"a stem of {len(self.stem_channels)} stages needs an {name} that "
                        f"{stride} divides, not {values[name]}"
                    )
                values[name] //= stride
            values["num_channels"] = self.stem_channels[-1]
        return ViltConfig(**values)


def _plain(config: ViltConfig) -> dict[str, Any]:
    """The configuration's values without what names its own class."""
    named = ("model_type", "architectures", "transformers_version")
    return {key: value for key, value in config.to_dict().items() if key not in named}


class StemStage(nn.Module):
    """Half the resolution, then one residual look around: (B, C, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        groups = 8 if out_channels % 8 == 0 else 1
        self.down = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups, out_channels)
        self.look = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.look_norm = nn.GroupNorm(groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.norm(self.down(x)))
        return x + nn.functional.silu(self.look_norm(self.look(x)))


def head(features: int, hidden: int, outputs: int) -> nn.Sequential:
    """A small perceptron: (B, features) -> (B, outputs) logits."""
    return nn.Sequential(
        nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )


class ViltVerifier(ViltPreTrainedModel):  # type: ignore[no-untyped-call]
    """ViLT with a fidelity and an alignment head over its two class tokens.

    Saved and loaded by save_pretrained and from_pretrained; a public ViLT's `vilt.*` weights load
    as they are, and leave the heads new.
    """

    config_class = ViltVerifierConfig
    config: ViltVerifierConfig

    def __init__(self, config: ViltVerifierConfig) -> None:
        super().__init__(config)
        widths = [config.num_channels, *config.stem_channels]
        self.stem = nn.Sequential(*(StemStage(a, b) for a, b in pairwise(widths)))
        self.vilt = ViltModel(config.backbone())
        self.fidelity_head = head(2 * config.hidden_size, config.hidden_size, 1)
        self.alignment_head = head(2 * config.hidden_size, config.hidden_size, 1)
        self.post_init()  # type: ignore[no-untyped-call]

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """The pictures as ViLT's image tokens, the class token first.

        pixel_values: (B, 3, H, W), all of one size, normalised as the model was trained.
        Returns (B, 1 + N, D). ViltModel's own way shuffles the patches at random and samples
        among them; this one keeps all, in order, so that a score can be had again. Source: Kim et
        al. 2021; position embeddings are interpolated as transformers' visual_embed does.
        """
        embeddings = self.vilt.embeddings
        patches = embeddings.patch_embeddings(self.stem(pixel_values.to(self.dtype)))  # B D h w
        places = embeddings.position_embeddings  # 1, 1 + N, D: the class token's, then a square's
        class_position, positions = places[:, :1], places[:, 1:]
        side = isqrt(positions.shape[1])
        grid = positions.transpose(1, 2).reshape(1, -1, side, side)
        if patches.shape[2:] != grid.shape[2:]:
            grid = nn.functional.interpolate(
                grid, size=patches.shape[2:], mode="bilinear", align_corners=True
            )
        tokens = (patches + grid).flatten(2).transpose(1, 2)
        class_token = (embeddings.cls_token + class_position).expand(len(tokens), -1, -1)
        return cast(Tensor, embeddings.dropout(torch.cat([class_token, tokens], dim=1)))

    def features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_embeds: Tensor,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """What the heads read of each pair: the pooled text class token beside the image's.

        input_ids, attention_mask: (B, T), T at most max_position_embeddings. image_embeds:
        (B, 1 + N, D) from embed_images; image_mask: (B, 1 + N), 0 where padded. Returns (B, 2D).
        """
        if image_mask is None:
            image_mask = image_embeds.new_ones(image_embeds.shape[:2], dtype=torch.long)
        out = self.vilt(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_embeds=image_embeds,
            pixel_mask=image_mask,
        )
        image_class = out.last_hidden_state[:, input_ids.shape[1]]
        return torch.cat([out.pooler_output, image_class], dim=1)

    def heads(self, features: Tensor) -> Tensor:
        """Logits of fidelity and alignment, (B, 2), from (B, 2D) features."""
        return torch.cat([self.fidelity_head(features), self.alignment_head(features)], dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Logits of fidelity and alignment, (B, 2), of B pictures of one size with their texts."""
        image_embeds = self.embed_images(pixel_values)
        return self.heads(self.features(input_ids, attention_mask, image_embeds))

    @classmethod
    def from_backbone(cls, name: str | Path, **options: Any) -> "ViltVerifier":
        """A public ViLT's weights under new heads: a model to train, not to judge with.

        name: a folder or hub id in ViLT's layout, such as dandelin/vilt-b32-mlm.
        """
        config = ViltVerifierConfig(**_plain(ViltConfig.from_pretrained(name, **options)))
        return cls.from_pretrained(name, config=config, use_safetensors=True, **options)
