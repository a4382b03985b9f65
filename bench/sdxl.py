"""SDXL at its full size with random weights: as fast as the trained one, and there without a hub.

The configurations are those of stabilityai/stable-diffusion-xl-base-1.0 but for the tokenizers,
which read letter by letter: a vocabulary cannot be made up, and what it holds costs no time.
"""

import string
from pathlib import Path
from typing import Any

UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],  # the number of heads, whatever its name says
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SCHEDULER: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
VOCABULARY = 49_408
TOKENS = 77


def save_sdxl(folder: Path, device: str) -> Path:
    """Writes it in float16, in shards; made on `device`, where random numbers come fast."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = letters()
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            parts: dict[str, Any] = {
                "unet": UNet2DConditionModel(**UNET),
                "vae": AutoencoderKL(**VAE),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L, **_reads(tokenizer))),
                "text_encoder_2": CLIPTextModelWithProjection(
                    CLIPTextConfig(**CLIP_BIG_G, **_reads(tokenizer))
                ),
            }
    finally:
        torch.set_default_dtype(usual)
    _make_heard(parts["unet"], parts["vae"])
    pipe = StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True, max_shard_size="2GB")
    return folder


def letters() -> Any:
    """A tokenizer of single letters."""
    from transformers import CLIPTokenizer

    characters = string.ascii_lowercase + string.digits + ".,-'"
    words = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def _reads(tokenizer: Any) -> dict[str, int]:
    """What a text encoder has to know of a tokenizer."""
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _make_heard(unet: Any, vae: Any) -> None:
    """Scales the last layers: noise as strong as noise is, pixels that fill half of their range.

    As they are initialised both whisper, and then pictures are gray whatever was drawn.
    """
    import torch

    side, width = unet.config.sample_size // 2, unet.config.cross_attention_dim
    pooled = unet.config.projection_class_embeddings_input_dim
    pooled -= 6 * unet.config.addition_time_embed_dim

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=unet.device, dtype=unet.dtype)

    with torch.no_grad():
        noise_pred = unet(
            random(1, unet.config.in_channels, side, side),
            500,
            random(1, TOKENS, width),
            added_cond_kwargs={"text_embeds": random(1, pooled), "time_ids": random(1, 6)},
        ).sample
        unet.conv_out.weight /= noise_pred.float().std().to(unet.dtype)
        pixels = vae.decode(random(1, vae.config.latent_channels, side, side)).sample
        vae.decoder.conv_out.weight *= (0.5 / pixels.float().std()).to(vae.dtype)
