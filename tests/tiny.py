"""Models with random weights, as small as their classes allow, in the layout of the real ones."""

import hashlib
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import PrompterConfig, ProposerConfig, Run, VerifierConfig
from pipeline.prompter.instructions import load_instructions
from pipeline.taxonomy import Taxonomy, load_taxonomy
from pipeline.types import (
    ClauseScore,
    ModelRef,
    PrompterRef,
    Proposal,
    ProposerRef,
    Record,
    Thresholds,
    Verdict,
)

if TYPE_CHECKING:
    import torch


def save_tiny_pipeline(folder: Path, *, seed: int = 0, text_length: int = 77) -> Path:
    """A StableDiffusionPipeline that draws 32x32 noise in milliseconds."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    letters = string.ascii_lowercase + string.digits + ".,-'"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    tokenizer = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=[],
        model_max_length=text_length,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=text_length,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_xl(folder: Path, *, seed: int = 0) -> Path:
    """A StableDiffusionXLPipeline that draws 32x32 noise, on the tiny pipeline's parts."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    small: Any = StableDiffusionPipeline.from_pretrained(
        save_tiny_pipeline(folder.with_name("parts"), seed=seed, text_length=48)
    )
    settings = small.text_encoder.config.to_dict() | {"projection_dim": 16}
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,  # both text encoders side by side
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    pipe = StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=small.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**settings)),
        tokenizer=small.tokenizer,
        tokenizer_2=small.tokenizer,
        unet=unet,
        scheduler=small.scheduler,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_sd3(folder: Path, *, seed: int = 0) -> Path:
    """A StableDiffusion3Pipeline that draws 32x32 noise, with a T5 that reads letters."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
        StableDiffusionPipeline,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
        T5Tokenizer,
    )

    small: Any = StableDiffusionPipeline.from_pretrained(
        save_tiny_pipeline(folder.with_name("parts"), seed=seed, text_length=48)
    )
    settings = small.text_encoder.config.to_dict() | {"projection_dim": 16}
    letters = [(letter, -2.0) for letter in string.ascii_lowercase]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,  # both CLIPs side by side
        pos_embed_max_size=16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**settings)),
        tokenizer=small.tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**settings)),
        tokenizer_2=small.tokenizer,
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_3=T5Tokenizer(vocab=special + letters, extra_ids=0),
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_clip(folder: Path, *, seed: int = 0, text_length: int = 16) -> Path:
    """A CLIPModel with tokenizer and image processor, that reads letters and 32x32 pictures."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    letters = string.ascii_lowercase + string.digits + ".,-'"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = small | {
        "vocab_size": len(words),
        "max_position_embeddings": text_length,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    classes: Any = (CLIPModel, CLIPConfig, CLIPTokenizer, CLIPImageProcessorPil)  # types are lost
    model, settings, tokenizer, processor = classes
    vision = small | {"image_size": 32, "patch_size": 16}
    model(settings(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(
        folder
    )
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer(vocab=vocab, merges=[], model_max_length=text_length).save_pretrained(folder)
    processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


def image_reward_state(seed: int = 0) -> "tuple[dict[str, torch.Tensor], torch.Generator]":
    """Weights of a small ImageReward, named as its package names them, and what drew them."""
    import torch

    width, hidden, words = 128, 96, 64
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    shapes |= {f"{eye}.cls_token": (1, 1, width), f"{eye}.pos_embed": (1, 5, width)}
    shapes |= {f"{eye}.patch_embed.proj.weight": (width, 3, 16, 16)}
    shapes |= {f"{eye}.patch_embed.proj.bias": (width,)}
    shapes |= {f"{text}.embeddings.word_embeddings.weight": (words, width)}
    shapes |= {f"{text}.embeddings.position_embeddings.weight": (64, width)}
    norm(f"{eye}.norm")
    norm(f"{text}.embeddings.LayerNorm")
    for layer in range(2):
        block = f"{eye}.blocks.{layer}"
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.mlp.fc1", width, 4 * width)
        linear(f"{block}.mlp.fc2", 4 * width, width)
        block = f"{text}.encoder.layer.{layer}"
        for attention in ("attention", "crossattention"):
            for each in ("self.query", "self.key", "self.value", "output.dense"):
                linear(f"{block}.{attention}.{each}", width, width)
            norm(f"{block}.{attention}.output.LayerNorm")
        linear(f"{block}.intermediate.dense", width, hidden)
        linear(f"{block}.output.dense", hidden, width)
        norm(f"{block}.output.LayerNorm")
    linear("blip.vision_proj", width, 256)
    linear("blip.text_proj", width, 256)
    for place, inputs, outputs in (
        (0, width, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)
    ):  # fmt: skip
        linear(f"mlp.layers.{place}", inputs, outputs)

    drawn = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shapes[name], generator=drawn) * 0.1
        + ("norm" in name.lower() and name.endswith("weight"))
        for name in sorted(shapes)
    }
    return state, drawn


def save_tiny_bert_tokenizer(folder: Path) -> Path:
    """It reads letters."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, ",", "."]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def save_lora(base: Path, folder: Path, *, seed: int = 0) -> Path:
    """A low-rank adapter with random weights, which change what the base draws."""
    import torch

    from pipeline.models import fingerprint
    from pipeline.training.bases import denoiser_name, load_pipeline
    from pipeline.training.lora import LoraSettings, add_adapters, save_adapters

    torch.manual_seed(seed)
    pipe = load_pipeline(fingerprint(str(base), "base"), torch.float32)
    encoders = add_adapters(pipe, LoraSettings(rank=2), text_encoders=False)
    for name, parameter in getattr(pipe, denoiser_name(pipe)).named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return save_adapters(pipe, folder, torch.float32, encoders).parent


def save_tiny_verifier(folder: Path, *, seed: int = 0) -> Path:
    """A ViLT verifier without a stem, in a public ViLT's layout; it reads 40 tokens."""
    import torch
    from transformers import BertTokenizer, ViltProcessor
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    from pipeline.verifier.network import ViltVerifier, ViltVerifierConfig

    torch.manual_seed(seed)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, ",", "."]
    words += ["hand", "mug", "red", "blue", *(f"##{letter}" for letter in string.ascii_lowercase)]
    config = ViltVerifierConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=64,
        patch_size=16,
    )
    ViltVerifier(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=40)
    pictures = ViltImageProcessorPil(size={"shortest_edge": 64}, size_divisor=16)
    ViltProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def save_tiny_language_model(path: Path, *, seed: int = 0) -> Path:
    """A Llama in GGUF that writes random letters; 100,000 parameters and a vocabulary of ASCII.

    The first coordinate of its states is the same for every token, so its output weights say which
    tokens it may write: no bytes and no backslash, hence no broken escapes, and often a quote.
    """
    import gguf
    import numpy as np

    width, heads = 64, 2
    letters = [chr(code) for code in range(ord("!"), 127) if chr(code) != "\\"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*special, "\u2581", *letters]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))

    rng = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    embeddings, output = random(len(tokens), width), random(len(tokens), width) * 20
    embeddings[:, 0] = 4
    output[:, 0] = 0
    output[: len(special), 0] = -20
    output[tokens.index("</s>"), 0] = 0
    output[tokens.index('"'), 0] = 0.4

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_chat_template("{% for each in messages %}{{ each['content'] }}\n{% endfor %}")
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output.weight", output)
    for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{norm}.weight", np.ones(width, np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{part}.weight", random(width, width))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_weights(folder: Path, value: float = 0.0) -> Path:
    """A folder that names as a model as long as nobody loads it."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full(4, value, np.float32)}, folder / "model.safetensors")
    return folder


def a_run(
    prompter: PrompterConfig | None = None,
    taxonomy: Taxonomy | None = None,
    proposer: ProposerConfig | None = None,
    base_prompts: int | None = None,
) -> Run:
    """A run's configuration with models that are only names."""
    model = ModelRef(name="tiny", weights="sha256:" + "0" * 64)
    return Run(
        name="tiny",
        prompter=prompter or PrompterConfig(),
        taxonomy=taxonomy or load_taxonomy("miniature"),
        instructions=load_instructions("default"),
        proposer=proposer or ProposerConfig(),
        proposers=(ProposerRef.of(model),),
        verifier=VerifierConfig(),
        verifier_ref=model,
        versions={"torch": "2.13.0"},
        created_at="2026-11-23T12:00:00+00:00",
        base_prompts=base_prompts,
    )


def a_record(
    proposal: Proposal,
    fidelity: float,
    alignment: float,
    *,
    thresholds: Thresholds = Thresholds(),
    clauses: int = 1,
    image: bytes = b"",
    run: str = "tiny",
) -> Record:
    """The record of a proposal with these scores."""
    clause = ClauseScore(text=proposal.prompt.text, fidelity=fidelity, alignment=alignment)
    return Record(
        id=proposal.id,
        run=run,
        proposal=proposal,
        image=f"images/{proposal.id}.png",
        image_sha256=hashlib.sha256(image).hexdigest(),
        prompter=PrompterRef(name="grammar", taxonomy="0" * 32, instructions="1" * 32),
        verifier=ModelRef(name="vilt", weights="sha256:" + "b" * 64),
        verdict=Verdict(
            fidelity=fidelity,
            alignment=alignment,
            clauses=(clause,) * clauses,
            thresholds=thresholds,
        ),
    )
