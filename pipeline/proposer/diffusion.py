"""A proposer on any text-to-image pipeline of diffusers, from SDXL to the miniature.

Attention is PyTorch's scaled_dot_product_attention: diffusers' own default for every pipeline, so
nothing is set for it here, and a test holds it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.config import ProposerConfig
from pipeline.devices import device_of, dtype_of
from pipeline.errors import ModelError, ModelNotHere
from pipeline.models import location
from pipeline.proposer.batches import Batches, name_of
from pipeline.proposer.decoding import Decoder, finite, refuse
from pipeline.proposer.schedulers import scheduler_of
from pipeline.proposer.texts import Encoded, Texts, conditioning, is_known
from pipeline.types import Adapter, ModelRef, Sampler, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from pipeline.proposer.adapters import Adapters


ON_CPU = 32
"""Images of a pass: the miniature drew 3.5, 3.6, 3.8 and 3.2 images/s at 8, 16, 32 and 64."""

_DEFAULTS = ProposerConfig()


@dataclass(frozen=True)
class Drawing:
    """A drawn picture. unread_tokens: those at the prompt's end that no text encoder took."""

    image: Image
    unread_tokens: int
    upcast: bool = False  # decoded again in float32, since half precision gave no picture


@dataclass
class Effort:
    """What the drawing took since the model was loaded."""

    images: int = 0
    passes: int = 0  # through the denoiser, all steps together
    switches: int = 0  # of adapters
    recompiles: int = 0  # of a compiled denoiser after its warm-up; there should be none
    upcasts: int = 0
    halvings: int = 0  # of the batch size, out of memory

    def summary(self) -> str:
        """For a log; switches and recompiles also per 1,000 images."""
        thousands = max(1, self.images) / 1000
        return (
            f"{self.images:,} images in {self.passes:,} passes since the start; "
            f"{self.switches:,} switches ({self.switches / thousands:.0f} per 1,000), "
            f"{self.recompiles:,} recompiles ({self.recompiles / thousands:.0f}), "
            f"{self.upcasts:,} decoded again in float32, {self.halvings:,} halvings of the batch"
        )


class Proposer(Protocol):
    """Whatever draws."""

    effort: Effort

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]: ...

    def batch_size(self, sampler: Sampler) -> int:
        """Images of one pass, now."""
        ...

    def warm_up(self, sampler: Sampler) -> None:
        """Have everything compiled that pictures of this sampler need."""


@dataclass(frozen=True)
class _Wish:
    """One picture to be drawn."""

    text: str
    seed: int
    encoded: Encoded


def _no_store(adapter: Adapter) -> Path:
    raise ModelError(f"adapter {adapter.name!r} cannot be drawn with here: no store holds it")


class DiffusionProposer:
    """Draws batches, each picture from its own seed alone.

    batches: by default, sizes that are not remembered. adapters: by default, none can be used.
    owned: nobody else changes the pipeline's weights. Only then is it compiled and laid out anew,
    and are texts kept encoded. A trainer that looks at what it has so far leaves it False.
    """

    def __init__(
        self,
        pipe: Any,
        config: ProposerConfig = _DEFAULTS,
        adapters: Adapters | None = None,
        batches: Batches | None = None,
        *,
        owned: bool = False,
    ) -> None:
        self.effort = Effort()
        self._pipe = pipe
        self.adapters = adapters
        self._batches = batches or Batches(config)
        self._texts = Texts(pipe, config.text_cache if owned else 0)
        self._decoder = Decoder(pipe, config.vae_slices)
        self._schedulers: dict[Scheduler, Any] = {}
        self._compiled = owned and config.compile
        self._warm = False
        pipe.set_progress_bar_config(disable=True)
        if owned:
            lay_out(pipe, config)
        if self._compiled:
            # In place: the pipeline keeps its classes, and adapters find the weights they know.
            denoiser_of(pipe).compile()

    @classmethod
    def load(
        cls,
        config: ProposerConfig,
        ref: ModelRef,
        folder_of: Callable[[Adapter], Path] = _no_store,
        remember: Path | None = None,
    ) -> Self:
        """The pipeline on its device.

        folder_of: where an adapter's files are. remember: a file for the batch sizes that fit.
        Raises ModelError if the pipeline cannot be loaded.
        """
        from diffusers import AutoPipelineForText2Image

        from pipeline.proposer.adapters import Adapters

        where, revision = location(ref, "base")
        device = device_of(config.device)
        dtype = dtype_of(config.dtype, device)
        try:
            pipe = AutoPipelineForText2Image.from_pretrained(
                where, revision=revision, use_safetensors=True, dtype=dtype
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            if revision and isinstance(error, OSError):
                raise ModelNotHere(f"{ref.name!r} cannot be had from the hub: {reason}") from error
            raise ModelError(f"{ref.name!r} is no text-to-image pipeline: {reason}") from error
        pipe = pipe.to(device)
        model = f"{name_of(device)} {ref.weights} {str(dtype).removeprefix('torch.')}"
        most = ON_CPU if device.type == "cpu" else None
        batches = Batches(config, model, remember, most)
        return cls(pipe, config, Adapters(pipe, ref, folder_of), batches, owned=True)

    def batch_size(self, sampler: Sampler) -> int:
        """Images of one pass, now: fewer than at first where memory ran out."""
        return self._batches.size(sampler)

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        adapter: Adapter | None = None,
    ) -> list[Drawing]:
        """One picture for each text and seed, in as many passes as memory asks for.

        A picture depends on its text, its seed, the sampler and the adapter. Its batch leaves only
        a floating-point drift: each has its own generator, on the CPU so that the noise is the
        same on every device.
        Raises ItemError, naming the seeds, where no picture came out, and ModelError if sampler
        or adapter do not fit the model.
        """
        import torch

        if adapter is not None and adapter.token:
            texts = [f"{adapter.token} {text}" for text in texts]
        with torch.no_grad(), self._scheduled(sampler.scheduler):
            self._use(adapter)
            try:
                if not self._warm:
                    self.warm_up(sampler)
                return self._draw_all(texts, seeds, sampler)
            finally:
                self.effort.halvings = self._batches.halvings

    def warm_up(self, sampler: Sampler) -> None:
        """Compile the denoiser for pictures of this size, once for every batch size.

        Three passes: the first takes shapes for constants, the second finds that the batch varies,
        the largest that it varies this far: on a CPU, convolutions choose their method by it.
        Does nothing unless the configuration asks for it. Raises ModelError without a compiler.
        """
        if not self._compiled:
            return
        import torch
        from torch._dynamo.exc import BackendCompilerFailed

        few = sampler.model_copy(update={"num_inference_steps": 2})
        try:
            with torch.no_grad(), self._scheduled(sampler.scheduler):
                (blank,) = self._read([""], sampler)
                negative = blank if _guiding(sampler) else None
                for count in sorted({1, 2, self.batch_size(sampler)}):
                    wishes = [_Wish("", seed, blank) for seed in range(count)]
                    self._batches.run(
                        wishes, sampler, lambda some: list(self._run(some, negative, few))
                    )
        except BackendCompilerFailed as error:
            reason = str(error).splitlines()[0][:300]
            raise ModelError(
                f"the denoiser cannot be compiled here ({reason}): install a C++ compiler such as "
                "g++, or set proposer.compile to false"
            ) from error
        self._warm = True

    def _draw_all(
        self, texts: Sequence[str], seeds: Sequence[int], sampler: Sampler
    ) -> list[Drawing]:
        different = list(dict.fromkeys([*texts, *_guiding(sampler)]))
        encoded = self._read(different, sampler)
        read = dict(zip(different, encoded, strict=True))
        negative = read[sampler.negative_prompt] if _guiding(sampler) else None
        wishes = [_Wish(text, seed, read[text]) for text, seed in zip(texts, seeds, strict=True)]
        return self._batches.run(wishes, sampler, lambda some: self._draw(some, negative, sampler))

    def _read(self, texts: list[str], sampler: Sampler) -> list[Encoded]:
        key = self.adapters.text_key if self.adapters else ""
        return self._batches.run(texts, sampler, lambda some: self._texts.read(some, key))

    def _draw(
        self, some: Sequence[_Wish], negative: Encoded | None, sampler: Sampler
    ) -> list[Drawing]:
        """One pass."""
        before = compilations() if self._compiled else 0
        made = self._run(some, negative, sampler)
        seeds = [wish.seed for wish in some]
        if is_known(self._pipe):
            drawn = self._decoder.pictures(made, seeds)
        else:
            drawn = [(image, False) for image in as_pictures(made, seeds)]
        self.effort.passes += 1
        self.effort.images += len(drawn)
        self.effort.upcasts += sum(upcast for _, upcast in drawn)
        if self._compiled:
            self.effort.recompiles += compilations() - before
        return [
            Drawing(image.convert("RGB"), wish.encoded.unread_tokens, upcast)
            for wish, (image, upcast) in zip(some, drawn, strict=True)
        ]

    def _run(self, some: Sequence[_Wish], negative: Encoded | None, sampler: Sampler) -> Tensor:
        """Latents (B, C, H, W) of a known pipeline; of others, pixels (B, 3, H, W) in [0, 1]."""
        import torch

        if is_known(self._pipe):
            given: dict[str, Any] = {"output_type": "latent"}
            given |= conditioning([wish.encoded for wish in some], negative, self._pipe.device)
        else:
            given = {"output_type": "pt", "prompt": [wish.text for wish in some]}
            given["negative_prompt"] = [sampler.negative_prompt] * len(some)
        made: Tensor = self._pipe(
            **given,
            generator=[torch.Generator("cpu").manual_seed(wish.seed) for wish in some],
            num_inference_steps=sampler.num_inference_steps,
            guidance_scale=sampler.guidance_scale,
            height=sampler.height,
            width=sampler.width,
        ).images
        return made

    def _use(self, adapter: Adapter | None) -> None:
        """Draw with this adapter, or with none, from now on."""
        if self.adapters is not None:
            self.adapters.use(adapter)
            self.effort.switches = self.adapters.switches
        elif adapter is not None:
            _no_store(adapter)

    @contextmanager
    def _scheduled(self, name: Scheduler) -> Iterator[None]:
        """The pipeline with the scheduler of this name, and its own again afterwards.

        One is made for each name. What it remembers of its last steps, each pass sets anew.
        """
        own = self._pipe.scheduler
        if name not in self._schedulers:
            self._schedulers[name] = scheduler_of(own, name)
        self._pipe.scheduler = self._schedulers[name]
        try:
            yield
        finally:
            self._pipe.scheduler = own


def _guiding(sampler: Sampler) -> list[str]:
    """The negative prompt, if the guidance is such that pipelines look at it."""
    return [sampler.negative_prompt] if sampler.guidance_scale > 1 else []


def denoiser_of(pipe: Any) -> Any:
    """Raises ModelError if the pipeline has neither a UNet nor a transformer."""
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ModelError(f"a {type(pipe).__name__} has no denoiser to compile: set compile to false")


def lay_out(pipe: Any, config: ProposerConfig) -> None:
    """UNet and autoencoder with the channels last in memory, where that is faster.

    Measured on a CPU with the miniature, it made drawing 4% slower, so "auto" is for GPUs.
    """
    import torch

    wanted = config.channels_last
    if wanted == "auto":
        wanted = pipe.device.type == "cuda"
    for name in ("unet", "vae"):
        if wanted and getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(memory_format=torch.channels_last)


def compilations() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def as_pictures(pixels: Tensor, seeds: Sequence[int]) -> list[Image]:
    """pixels: (B, 3, H, W) in [0, 1]. Raises ItemError if some are no numbers."""
    from diffusers.image_processor import VaeImageProcessor

    refuse(~finite(pixels), seeds, "drawn")
    images: list[Image] = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))
    return images
