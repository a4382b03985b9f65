"""What a pipeline reads of a prompt: encoded once, and kept for the images to come."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

KNOWN = {"StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"}
"""The pipelines whose encodings and latents we know how to hand in and take out. They pad every
prompt to their encoders' full length, so prompts of different length share a batch for nothing."""


def is_known(pipe: Any) -> bool:
    return type(pipe).__name__ in KNOWN


@dataclass(frozen=True)
class Encoded:
    """A text as the denoiser reads it: text (tokens, width) and pooled (width,), on the CPU.

    unread_tokens: those at its end that not even the most patient text encoder took.
    text is None for a pipeline that is not KNOWN, pooled for one that has no such thing.
    """

    unread_tokens: int
    text: Tensor | None = None
    pooled: Tensor | None = None


class Texts:
    """Encodes texts, and keeps the last `capacity` of them.

    capacity: 0 for text encoders that somebody trains. An SDXL prompt takes 0.3 MB in half
    precision, one of SD3 2.7 MB; they are kept off the GPU, where images need the room.
    """

    def __init__(self, pipe: Any, capacity: int) -> None:
        self._pipe = pipe
        self._capacity = capacity
        self._kept: OrderedDict[tuple[str, str], Encoded] = OrderedDict()

    def read(self, texts: Sequence[str], key: str = "") -> list[Encoded]:
        """Each text's encoding. texts: each different from the others.

        key: names the text encoders' weights as they are now.
        """
        found = {text: self._kept[key, text] for text in texts if (key, text) in self._kept}
        fresh = [text for text in texts if text not in found]
        found |= zip(fresh, self._encode(fresh), strict=True)
        for text in texts:
            self._kept[key, text] = found[text]
            self._kept.move_to_end((key, text))
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return [found[text] for text in texts]

    def _encode(self, texts: list[str]) -> list[Encoded]:
        if not texts:
            return []
        unread = [self._unread_tokens(text) for text in texts]
        if not is_known(self._pipe):
            return [Encoded(tokens) for tokens in unread]
        several = {"prompt_2": None, "prompt_3": None}
        given = self._pipe.encode_prompt(
            prompt=texts,
            **(several if "text_encoder_3" in self._pipe.components else {}),
            device=self._pipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        text, pooled = given[0].cpu(), given[2].cpu() if len(given) == 4 else None
        # Cloned, since a row alone would keep the whole batch in memory.
        return [
            Encoded(tokens, text[i].clone(), None if pooled is None else pooled[i].clone())
            for i, tokens in enumerate(unread)
        ]

    def _unread_tokens(self, text: str) -> int:
        """How many tokens at the end even the most patient text encoder leaves out."""
        names = [name for name in self._pipe.components if name.startswith("tokenizer")]
        tokenizers = [getattr(self._pipe, name) for name in names]
        return min(
            (
                max(0, len(tokenizer(text, verbose=False).input_ids) - tokenizer.model_max_length)
                for tokenizer in tokenizers
                if tokenizer is not None
            ),
            default=0,
        )


def conditioning(
    prompts: Sequence[Encoded], negative: Encoded | None, device: Any
) -> dict[str, Tensor]:
    """What a KNOWN pipeline is called with in place of strings; negative is None unguided.

    An empty negative prompt is encoded like any other: SDXL puts zeros in its place only where
    it is called with none at all.
    """
    import torch

    sides = {"": list(prompts)}
    if negative is not None:
        sides["negative_"] = [negative] * len(prompts)
    given = {}
    for side, encoded in sides.items():
        texts = [each.text for each in encoded if each.text is not None]
        pooled = [each.pooled for each in encoded if each.pooled is not None]
        given[f"{side}prompt_embeds"] = torch.stack(texts).to(device)
        if pooled:
            name = f"{side}pooled_prompt_embeds"
            given[name] = torch.stack(pooled).to(device)
    return given
