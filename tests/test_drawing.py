"""How the proposer draws fast and safely, on tiny pipelines of every class that it knows."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import ProposerConfig
from pipeline.errors import ItemError, ModelError
from pipeline.models import fingerprint
from pipeline.proposer.diffusion import DiffusionProposer, Drawing
from pipeline.types import Adapter, Sampler, Scheduler
from tests.tiny import save_tiny_pipeline, save_tiny_sd3, save_tiny_xl

SAMPLER = Sampler(num_inference_steps=2)
TEXTS = ["a mug", "a hand with a long red pencil", "a key", "a ball and a cup"]
SEEDS = [11, 12, 13, 14]
ONE = Adapter(name="one", weights="sha256:" + "1" * 64, token="sks")

Save = Callable[..., Path]
Saved = Callable[[Save], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a tiny pipeline, written once."""
    folder = tmp_path_factory.mktemp("pipelines")

    def of(save: Save) -> Path:
        to = folder / save.__name__ / "whole"
        return to if to.exists() else save(to)

    return of


# Texts


@pytest.mark.parametrize("save", [save_tiny_pipeline, save_tiny_xl, save_tiny_sd3])
def test_pixels_are_those_of_the_pipeline_called_with_strings(saved: Saved, save: Save) -> None:
    """To the bit: texts encoded apart, latents decoded apart."""
    proposer = _load(saved(save))
    for sampler in (SAMPLER, SAMPLER.model_copy(update={"negative_prompt": "six fingers"})):
        ours = _pixels(proposer.draw(TEXTS, SEEDS, sampler))
        assert np.array_equal(ours, _called_with_strings(proposer, sampler))
    unguided = SAMPLER.model_copy(update={"guidance_scale": 1.0})
    ours = _pixels(proposer.draw(TEXTS, SEEDS, unguided))
    assert np.array_equal(ours, _called_with_strings(proposer, unguided))


@pytest.mark.parametrize("save", [save_tiny_pipeline, save_tiny_xl])
def test_a_pipeline_that_we_do_not_know_is_called_with_strings(saved: Saved, save: Save) -> None:
    proposer = _load(saved(save))
    known = _pixels(proposer.draw(TEXTS, SEEDS, SAMPLER))
    proposer._pipe.__class__ = type("Strange", (type(proposer._pipe),), {})
    strange = proposer.draw(TEXTS, SEEDS, SAMPLER)
    assert np.array_equal(_pixels(strange), known)
    assert [drawing.unread_tokens for drawing in strange] == [0] * 4


def test_each_different_text_is_encoded_once_and_then_kept(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline), text_cache=8)
    with _rows_through(proposer._pipe.text_encoder) as rows:
        proposer.draw(["a mug", "a key"] * 4, range(8), SAMPLER)
        assert rows == [3]  # and the negative prompt
        proposer.draw(["a key", "a pen"], [1, 2], SAMPLER)
        assert rows == [3, 1]


def test_unguided_drawing_encodes_no_negative_prompt(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline))
    with _rows_through(proposer._pipe.text_encoder) as rows:
        proposer.draw(["a mug"], [1], SAMPLER.model_copy(update={"guidance_scale": 1.0}))
    assert rows == [1]


def test_the_encodings_kept_do_not_grow_with_the_run(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline), text_cache=3)
    for number in range(5):
        proposer.draw([f"mug {number}", f"key {number}"], [1, 2], SAMPLER)
    kept = proposer._texts._kept
    assert [text for _, text in kept] == ["mug 4", "key 4", ""]
    stored = [
        each.text.untyped_storage().nbytes() for each in kept.values() if each.text is not None
    ]
    assert stored == [77 * 16 * 4] * 3  # a row each, not the batch that it came from


def test_texts_are_encoded_afresh_where_somebody_trains(saved: Saved) -> None:
    import torch

    trained = _load(saved(save_tiny_pipeline))._pipe
    proposer = DiffusionProposer(trained)
    with _rows_through(trained.text_encoder) as rows:
        before = _pixels(proposer.draw(["a mug"], [1], SAMPLER))
        with torch.no_grad():
            for weight in trained.text_encoder.parameters():
                weight.mul_(1.5)
        after = _pixels(proposer.draw(["a mug"], [1], SAMPLER))
    assert rows == [2, 2]
    assert not np.array_equal(before, after)
    assert trained.unet._compiled_call_impl is None


def test_a_specialist_reads_its_token_and_its_own_encodings(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline))
    proposer.adapters = louder = _Louder(proposer._pipe.text_encoder)  # type: ignore[assignment]
    room = 77 - 2
    alone, named = ("a" * room, "a" * (room - 3))
    (base,) = proposer.draw([alone], [1], SAMPLER)
    (specialist,) = proposer.draw([named], [1], SAMPLER, ONE)
    assert (base.unread_tokens, specialist.unread_tokens) == (0, 0)
    assert proposer.draw([alone], [1], SAMPLER, ONE)[0].unread_tokens == 3
    louder.use(None)
    (again,) = proposer.draw([alone], [1], SAMPLER)
    (spelled_out,) = proposer.draw([f"sks {named}"], [1], SAMPLER)
    assert np.array_equal(_pixels([again]), _pixels([base]))
    assert not np.array_equal(_pixels([spelled_out]), _pixels([specialist]))
    assert proposer.effort.switches == 2


def test_an_adapter_without_a_store_is_refused(saved: Saved) -> None:
    with pytest.raises(ModelError, match="adapter 'one' cannot be drawn with here"):
        _load(saved(save_tiny_pipeline)).draw(["a mug"], [1], SAMPLER, ONE)


# Schedulers


def test_each_scheduler_draws_its_own_pictures_whatever_was_drawn_before(saved: Saved) -> None:
    """The tiny model's own is DDIM."""
    proposer = _load(saved(save_tiny_pipeline))
    own = proposer._pipe.scheduler
    names: list[Scheduler] = ["own", "ddim", "dpmpp_2m", "euler", "euler_ancestral", "unipc"]
    samplers = [Sampler(num_inference_steps=4, scheduler=name) for name in names]
    first = [_pixels(proposer.draw(TEXTS, SEEDS, sampler)) for sampler in samplers]
    again = [_pixels(proposer.draw(TEXTS, SEEDS, sampler)) for sampler in samplers[::-1]][::-1]
    assert all(map(np.array_equal, first, again))
    assert len({pixels.tobytes() for pixels in first}) == 4
    assert np.array_equal(first[0], first[1])
    assert np.abs(first[1] - first[3]).max() <= 1  # DDIM is Euler's method in other variables
    assert proposer._pipe.scheduler is own


def test_noise_of_each_step_comes_from_the_pictures_own_seed(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline))
    sampler = Sampler(num_inference_steps=4, scheduler="euler_ancestral")
    whole = _pixels(proposer.draw(TEXTS, SEEDS, sampler))
    alone = _pixels(proposer.draw(TEXTS[2:3], SEEDS[2:3], sampler))
    assert np.abs(whole[2] - alone[0]).max() <= 1


def test_ddim_does_not_clip_the_latents_of_a_model_that_came_with_another(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline))
    proposer.draw(["a mug"], [1], Sampler(num_inference_steps=1, scheduler="unipc"))
    proposer._pipe.scheduler = proposer._schedulers.pop("unipc")
    proposer.draw(["a mug"], [1], Sampler(num_inference_steps=1, scheduler="ddim"))
    assert proposer._schedulers["ddim"].config.clip_sample is False


def test_a_scheduler_for_another_kind_of_diffusion_is_refused(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_sd3))
    with pytest.raises(ModelError, match=r"FlowMatchEulerDiscreteScheduler: set .* to 'own'"):
        proposer.draw(["a mug"], [1], Sampler(num_inference_steps=2, scheduler="ddim"))


# Decoding


def test_pictures_decoded_one_by_one_are_the_same(saved: Saved) -> None:
    whole, sliced = (_load(saved(save_tiny_pipeline), vae_slices=each) for each in (False, True))
    with _rows_through(sliced._pipe.vae.decoder) as rows:
        ours = _pixels(sliced.draw(TEXTS, SEEDS, SAMPLER))
    assert rows == [1] * 4
    assert np.abs(ours - _pixels(whole.draw(TEXTS, SEEDS, SAMPLER))).max() <= 1


def test_large_pictures_are_decoded_one_by_one_by_default(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.proposer.decoding.MANY_PIXELS", 32 * 48)
    proposer = _load(saved(save_tiny_pipeline))
    with _rows_through(proposer._pipe.vae.decoder) as rows:
        for width in (32, 48):
            sized = SAMPLER.model_copy(update={"height": 32, "width": width})
            proposer.draw(TEXTS[:2], SEEDS[:2], sized)
    assert rows == [2, 1, 1]


def test_what_overflows_in_half_precision_is_decoded_again(saved: Saved) -> None:
    """Its pictures are then those of an autoencoder in float32."""
    import torch

    half = _load(saved(save_tiny_pipeline), dtype="float16")
    whole = _load(saved(save_tiny_pipeline), dtype="float16")
    for proposer in (half, whole):
        _overflow(proposer._pipe.vae)
    whole._pipe.vae.to(torch.float32)
    drawings = half.draw(TEXTS, SEEDS, SAMPLER)
    assert [drawing.upcast for drawing in drawings] == [True] * 4
    assert half.effort.upcasts == 4
    assert half._pipe.vae.dtype == torch.float16
    expected = whole.draw(TEXTS, SEEDS, SAMPLER)
    assert np.abs(_pixels(drawings) - _pixels(expected)).max() <= 1
    assert not any(drawing.upcast for drawing in expected)


def test_only_the_picture_that_overflows_is_decoded_again(saved: Saved) -> None:
    import torch

    decoder = _load(saved(save_tiny_pipeline), dtype="float16")._decoder
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half() * 0.1
    with torch.no_grad():
        plain = decoder.pictures(latents[[0, 2]], [1, 3])
        latents[1] *= 100_000
        mixed = decoder.pictures(latents, [1, 2, 3])
    assert [upcast for _, upcast in plain] == [False, False]
    assert [upcast for _, upcast in mixed] == [False, True, False]
    drift = np.abs(_array(mixed[0][0]) - _array(plain[0][0]))
    assert drift.max() <= 1


def test_a_black_picture_is_believed_in_float32_only(saved: Saved) -> None:
    import torch

    for dtype, upcast in (("float32", False), ("bfloat16", True)):
        proposer = _load(saved(save_tiny_pipeline), dtype=dtype)
        with torch.no_grad():
            proposer._pipe.vae.decoder.conv_out.weight.zero_()
            proposer._pipe.vae.decoder.conv_out.bias.fill_(-3)
        (drawing,) = proposer.draw(["a mug"], [1], SAMPLER)
        assert drawing.upcast is upcast
        assert drawing.image.getbbox() is None  # black


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers' own
def test_an_autoencoder_known_to_overflow_computes_in_float32_at_once(saved: Saved) -> None:
    import torch

    proposer = _load(saved(save_tiny_xl), dtype="float16")
    assert proposer._pipe.vae.config.force_upcast
    _overflow(proposer._pipe.vae)
    drawings = proposer.draw(TEXTS, SEEDS, SAMPLER)
    assert not any(drawing.upcast for drawing in drawings)
    assert np.array_equal(_pixels(drawings), _called_with_strings(proposer, SAMPLER))
    assert proposer._pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("save", [save_tiny_pipeline, save_tiny_xl, save_tiny_sd3])
def test_half_precision_decodes_as_the_pipeline_does(saved: Saved, save: Save) -> None:
    proposer = _load(saved(save), dtype="bfloat16")
    ours = _pixels(proposer.draw(TEXTS, SEEDS, SAMPLER))
    assert np.array_equal(ours, _called_with_strings(proposer, SAMPLER))


def test_means_and_deviations_of_latents_are_put_back(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_xl))
    proposer._pipe.vae.register_to_config(
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0]
    )
    ours = _pixels(proposer.draw(TEXTS, SEEDS, SAMPLER))
    assert np.array_equal(ours, _called_with_strings(proposer, SAMPLER))


def test_latents_that_are_no_numbers_fail_by_the_name_of_their_seed(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline))

    def spoil(module: Any, given: Any, made: Any) -> None:
        made[0][-1] = float("nan")  # of the batch's last picture

    hook = proposer._pipe.unet.register_forward_hook(spoil)
    with pytest.raises(ItemError, match=r"seed 14 when it was drawn: take float32"):
        proposer.draw(TEXTS, SEEDS, SAMPLER)
    hook.remove()
    assert len(proposer.draw(TEXTS, SEEDS, SAMPLER)) == 4


def test_an_autoencoder_that_gives_no_numbers_in_float32_fails_by_seed(saved: Saved) -> None:
    import torch

    proposer = _load(saved(save_tiny_pipeline))
    with torch.no_grad():
        proposer._pipe.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ItemError, match="seed 11, 12, 13, 14 when it was decoded"):
        proposer.draw(TEXTS, SEEDS, SAMPLER)


# Batches


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    saved: Saved, tmp_path: Path
) -> None:
    remember = tmp_path / "new" / "sizes.json"
    texts, seeds = TEXTS * 2 + TEXTS[:2], list(range(10))
    proposer = _load(saved(save_tiny_pipeline), remember=remember, images_per_message=16)
    expected = _pixels(proposer.draw(texts, seeds, SAMPLER))
    assert proposer.batch_size(SAMPLER) == 16
    with _room_for(proposer, images=3):
        ours = _pixels(proposer.draw(texts, seeds, SAMPLER))
        assert np.abs(ours - expected).max() <= 1
        assert proposer.batch_size(SAMPLER) == 2  # of 10 images, 10 and 5 failed
        assert proposer.effort.halvings == 2
        proposer.draw(texts, seeds, SAMPLER)
        assert proposer.effort.halvings == 2
    assert proposer.effort.images == 30
    assert proposer.effort.passes == 1 + 5 + 5
    other_size = SAMPLER.model_copy(update={"height": 16, "width": 16})
    assert proposer.batch_size(other_size) == 16

    later = _load(saved(save_tiny_pipeline), remember=remember, images_per_message=16)
    assert later.batch_size(SAMPLER) == 2
    assert (
        _load(saved(save_tiny_pipeline), remember=remember, batch_size=9).batch_size(SAMPLER) == 9
    )
    other_numbers = _load(saved(save_tiny_pipeline), remember=remember, dtype="bfloat16")
    assert other_numbers.batch_size(SAMPLER) == 32
    assert [path.name for path in remember.parent.iterdir()] == ["sizes.json"]


@pytest.mark.parametrize("content", ["{", "[]", "null", "\xff", '{"key": -1}'])
def test_a_broken_memory_of_sizes_is_ignored_and_replaced(
    saved: Saved, tmp_path: Path, content: str
) -> None:
    remember = tmp_path / "sizes.json"
    remember.write_bytes(content.encode("latin-1"))
    proposer = _load(saved(save_tiny_pipeline), remember=remember)
    with _room_for(proposer, images=1):
        assert len(proposer.draw(TEXTS, SEEDS, SAMPLER)) == 4
    assert list(json.loads(remember.read_text()).values()) == [1]


def test_a_picture_that_does_not_even_fit_alone_is_an_items_error(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline))
    size = SAMPLER.model_copy(update={"height": 16, "width": 48})
    with (
        _room_for(proposer, images=0),
        pytest.raises(ItemError, match=r"of 48x16 px fits into memory \(CUDA out of memory"),
    ):
        proposer.draw(TEXTS, SEEDS, size)


def test_what_the_processor_cannot_allocate_is_out_of_memory_too(saved: Saved) -> None:
    """A real failure of the allocator: more memory than any machine has."""
    import torch

    proposer = _load(saved(save_tiny_pipeline))

    def grab(module: Any, given: Any) -> None:
        if len(given[0]) > 2 * 2:
            torch.empty(2**50)

    hook = proposer._pipe.unet.register_forward_pre_hook(grab)
    assert len(proposer.draw(TEXTS, SEEDS, SAMPLER)) == 4
    hook.remove()
    assert proposer.batch_size(SAMPLER) == 2


def test_other_errors_halve_nothing(saved: Saved) -> None:
    proposer = _load(saved(save_tiny_pipeline))
    with pytest.raises(ValueError, match="divisible by 8"):
        proposer.draw(["a mug"], [1], SAMPLER.model_copy(update={"height": 15, "width": 16}))
    assert proposer.effort.halvings == 0


def test_a_failed_pass_leaves_no_tensor_behind(saved: Saved) -> None:
    import gc
    import weakref

    proposer = _load(saved(save_tiny_pipeline))
    tried: list[Any] = []
    alive: list[int] = []

    def watch(module: Any, given: Any) -> None:
        gc.collect()
        alive.append(sum(each() is not None for each in tried))
        tried.append(weakref.ref(given[0]))

    hook = proposer._pipe.unet.register_forward_pre_hook(watch)
    with _room_for(proposer, images=2):
        proposer.draw(TEXTS, SEEDS, SAMPLER)
    hook.remove()
    assert alive[:2] == [0, 0]


# Speed


def test_attention_is_pytorchs_own(saved: Saved) -> None:
    import torch

    for save in (save_tiny_pipeline, save_tiny_sd3):
        proposer = _load(saved(save))
        with torch.profiler.profile() as profile:
            proposer.draw(["a mug"], [1], SAMPLER)
        names = {event.key for event in profile.key_averages()}
        assert "aten::scaled_dot_product_attention" in names


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own
def test_a_compiled_denoiser_is_compiled_no_more_after_its_warm_up(saved: Saved) -> None:
    """By Dynamo alone: it decides what is compiled again, and C++ would take a minute more."""
    import torch

    proposer = _load(saved(save_tiny_pipeline), compile=True, batch_size=16)
    plain = _pixels(_load(saved(save_tiny_pipeline)).draw(TEXTS, SEEDS, SAMPLER))
    denoiser = proposer._pipe.unet
    assert denoiser._compiled_call_impl is not None
    denoiser.compile(backend="eager")
    ours = _pixels(proposer.draw(TEXTS, SEEDS, SAMPLER))
    assert np.abs(ours - plain).max() <= 1
    for size in (1, 2, 3, 16):
        proposer.draw(["a mug"] * size, range(size), SAMPLER)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.mul_(1.1)
    assert not np.array_equal(_pixels(proposer.draw(TEXTS, SEEDS, SAMPLER)), ours)
    assert proposer.effort.recompiles == 0
    denoiser.compile(backend="eager", dynamic=False)
    proposer.draw(["a mug"] * 5, range(5), SAMPLER)
    assert proposer.effort.recompiles > 0  # it would have been seen


def test_channels_last_changes_no_more_than_the_rounding(saved: Saved) -> None:
    import torch

    plain, last = (_load(saved(save_tiny_pipeline), channels_last=each) for each in (False, True))
    weight = last._pipe.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    ours, expected = (_pixels(each.draw(TEXTS, SEEDS, SAMPLER)) for each in (last, plain))
    assert np.abs(ours - expected).max() <= 1


def _load(folder: Path, *, remember: Path | None = None, **settings: Any) -> DiffusionProposer:
    config = ProposerConfig(model=str(folder), device="cpu", **settings)
    return DiffusionProposer.load(config, fingerprint(str(folder), "base"), remember=remember)


def _called_with_strings(proposer: DiffusionProposer, sampler: Sampler) -> np.ndarray:
    """What diffusers draws of TEXTS and SEEDS, left to itself."""
    import torch

    images = proposer._pipe(
        prompt=TEXTS,
        negative_prompt=[sampler.negative_prompt] * len(TEXTS),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=sampler.guidance_scale,
    ).images
    return np.stack([_array(image) for image in images])


def _overflow(vae: Any) -> None:
    """Let activations exceed float16's 65,504, as SDXL's do, and stay far below float32's limit."""
    import torch

    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(3e4)
        vae.decoder.conv_in.bias.mul_(3e4)


class _Louder:
    """The interface of Adapters, on a change to the text encoder that one line makes."""

    def __init__(self, text_encoder: Any) -> None:
        self.switches, self.text_key = 0, ""
        self._weights = list(text_encoder.parameters())

    def use(self, adapter: Adapter | None) -> None:
        import torch

        key = adapter.weights if adapter else ""
        if key == self.text_key:
            return
        with torch.no_grad():
            for weight in self._weights:
                weight.mul_(2.0 if adapter else 0.5)
        self.text_key, self.switches = key, self.switches + 1


@contextmanager
def _rows_through(module: Any) -> Iterator[list[int]]:
    """How many rows each call of a module takes."""
    rows: list[int] = []

    def note(module: Any, given: Any, named: Any) -> None:
        rows.append(len(given[0] if given else named["input_ids"]))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    hook.remove()


@contextmanager
def _room_for(proposer: DiffusionProposer, images: int) -> Iterator[None]:
    """A denoiser that runs out of memory above so many images; guided, each is two rows."""
    import torch

    def check(module: Any, given: Any) -> None:
        if len(given[0]) > 2 * images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = proposer._pipe.unet.register_forward_pre_hook(check)
    yield
    hook.remove()


def _pixels(drawings: list[Drawing]) -> np.ndarray:
    return np.stack([_array(drawing.image) for drawing in drawings])


def _array(image: Any) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)
