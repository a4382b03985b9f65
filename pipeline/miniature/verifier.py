"""An untrained verifier for the miniature, which `ppv train verifier` can begin from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from pipeline.miniature.captions import ATTRIBUTES, FILLERS, HOLDING, OPENINGS, values_of
from pipeline.miniature.scenes import taxonomy
from pipeline.verifier.network import ViltVerifier, ViltVerifierConfig

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_untrained(out: Path, seed: int) -> None:
    """Writes a verifier's folder with random weights."""
    torch.manual_seed(seed)
    new_network().save_pretrained(out)
    new_processor().save_pretrained(out)


def vocabulary() -> list[str]:
    """The tokens: every word of the taxonomy and the captions whole, then letters and marks."""
    names = taxonomy()
    texts = [*names.templates, *(c.action for c in names.categories.values())]
    texts += [value for name in ATTRIBUTES for value in values_of(name)]
    texts += [*OPENINGS, *HOLDING, *FILLERS]
    texts += ["the of an is are with and or her his their person people one two fingers thumb"]
    texts += ["white black photo photograph render sharp focus light soft studio from while"]
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})
    single = [c for c in CHARACTERS if c not in words]
    return [*SPECIAL, *words, *single, *MARKS, *(f"##{c}" for c in CHARACTERS)]


def new_processor() -> ViltProcessor:
    """Tokenizer and image settings as a public ViLT's processor has them, for 64x64 pictures."""
    vocab = {token: i for i, token in enumerate(vocabulary())}
    images: dict[str, Any] = {
        "size": {"shortest_edge": 64},
        "size_divisor": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return ViltProcessor(  # type: ignore[no-untyped-call]
        ViltImageProcessorPil(**images), BertTokenizer(vocab=vocab, model_max_length=40)
    )


def new_network() -> ViltVerifier:
    """The miniature's verifier with random weights: 1.0M parameters, 3 stem stages, 4x4 patches."""
    return ViltVerifier(
        ViltVerifierConfig(
            vocab_size=len(vocabulary()),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=64,
            patch_size=16,
            stem_channels=[32, 64, 128],
            pad_token_id=0,
        )
    )
