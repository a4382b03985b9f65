"""The miniature's captions as tokens: its own small byte-level BPE in a CLIPTokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.miniature.scenes import Example, Scene, combinations, taxonomy

LENGTH = 32  # tokens, with both ends
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def wordings(scene: Scene) -> list[str]:
    """Every caption that may go with the scene: each template, and a brief one at the end."""
    names = taxonomy()
    full = [
        names.describe(scene.category, scene.attributes, variant)
        for variant in range(len(names.templates))
    ]
    action = names.categories[scene.category].action
    return [*full, f"a hand {action} a {scene.color} {scene.object}"]


def new_tokenizer() -> CLIPTokenizer:
    """A tokenizer that knows every word of the captions, and spells all others in bytes."""
    texts = sorted({text for scene in combinations() for text in wordings(scene)})
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [(a, b) for a, b in _merges(learner)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{a}</w>" for a in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    pairs: Any = merges  # its annotation asks for strings, its backend for pairs
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=LENGTH)


def _merges(learner: Tokenizer) -> Iterable[list[str]]:
    merges = json.loads(learner.to_str())["model"]["merges"]
    return (m.split(" ") if isinstance(m, str) else m for m in merges)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder, 0.7M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """(B, LENGTH) int64, padded and cut as the pipeline does it."""
    batch = tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = batch["input_ids"]
    return ids


def caption_tokens(tokenizer: CLIPTokenizer, examples: list[Example]) -> npt.NDArray[np.int16]:
    """(N, wordings, LENGTH): every wording of every example's caption."""
    by_text: dict[str, npt.NDArray[np.int16]] = {}
    every = [wordings(example.asked) for example in examples]
    texts = sorted({text for some in every for text in some})
    for start in range(0, len(texts), 4096):
        chunk = texts[start : start + 4096]
        ids = tokens(tokenizer, chunk).numpy().astype(np.int16)
        by_text.update(zip(chunk, ids, strict=True))
    return np.stack([np.stack([by_text[text] for text in some]) for some in every])
