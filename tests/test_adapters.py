"""Specialists in one pipeline's weights: what a switch changes, what it leaves, what is refused."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.models import fingerprint
from pipeline.proposer.adapters import Adapters, check_adapter
from pipeline.proposer.lora_files import LORA_FILE, LORA_LIMIT_BYTES
from pipeline.training.bases import denoiser_name, load_pipeline
from pipeline.training.lora import LoraSettings, add_adapters, save_adapters
from pipeline.types import Adapter, ModelRef
from tests.tiny import save_tiny_pipeline, save_tiny_sd3, save_tiny_xl

RANK, ALPHA = 2, 3.0
ALL = ("attention", "feed_forward", "convolutions")
PARTS = {"sd": 1, "xl": 2, "sd3": 2}  # text encoders that take adapters
DRIFT = 2e-4  # of pixels in [0, 1], between a product in the weights and one beside them


def few(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a few layers, which are quickly loaded."""
    return {k: v for k, v in weights.items() if k.startswith(("text_encoder.", "unet.mid_block."))}


class Place:
    """Three bases, and adapters by name; a folder of them is an adapter's when it is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pipes: dict[tuple[str, torch.dtype], Any] = {}
        self.bases = {
            "sd": fingerprint(str(save_tiny_pipeline(folder / "sd", text_length=48)), "base"),
            "xl": fingerprint(str(save_tiny_xl(folder / "more" / "xl")), "base"),
            "sd3": fingerprint(str(save_tiny_sd3(folder / "most" / "sd3")), "base"),
        }
        self.loras = {
            (kind, seed): self._lora(kind, seed)
            for kind, seeds in (("sd", (1, 2)), ("xl", (1,)), ("sd3", (1,)))
            for seed in seeds
        }
        self.small, self.other = (
            rewritten(folder / f"small-{seed}", self.lora("sd", seed), few) for seed in (1, 2)
        )

    def pipe(self, kind: str, dtype: torch.dtype = torch.float32) -> Any:
        if (kind, dtype) not in self._pipes:
            self._pipes[kind, dtype] = load_pipeline(self.bases[kind], dtype)
        return copy.deepcopy(self._pipes[kind, dtype])

    def lora(self, kind: str, seed: int = 1) -> Path:
        return self.loras[kind, seed]

    def _lora(self, kind: str, seed: int) -> Path:
        pipe = self.pipe(kind)
        settings = LoraSettings(rank=RANK, text_rank=RANK, lora_alpha=ALPHA, targets=ALL)
        encoders = add_adapters(pipe, settings, text_encoders=True)
        torch.manual_seed(seed)
        for part in (getattr(pipe, denoiser_name(pipe)), *encoders.values()):
            for name, parameter in part.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, std=0.15)
        return save_adapters(pipe, self.folder / f"{kind}-{seed}", torch.float32, encoders).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("adapters"))


def adapter(folder: Path, scale: float = 1.0) -> Adapter:
    """The adapter in a folder, by any name: the tests find it by its hash."""
    weights = "sha256:" + hashlib.sha256(str(folder).encode()).hexdigest()
    return Adapter(name=folder.name, weights=weights, scale=scale)


class Fetched:
    """Gives folders as a worker's cache would, and remembers for what it was asked."""

    def __init__(self, *folders: Path) -> None:
        self.asked: list[str] = []
        self._folders = {adapter(folder).weights: folder for folder in folders}

    def __call__(self, wanted: Adapter) -> Path:
        self.asked.append(wanted.name)
        return self._folders[wanted.weights]


def adapters(place: Place, pipe: Any, *folders: Path, kind: str = "sd") -> Adapters:
    return Adapters(pipe, place.bases[kind], Fetched(*folders))


def draw(pipe: Any) -> np.ndarray:
    images = pipe(
        "a hand",
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(1),
        height=32,
        width=32,
        output_type="np",
    ).images
    return np.asarray(images[0])


def state(pipe: Any) -> dict[str, torch.Tensor]:
    """A copy of every weight that an adapter could change."""
    return {
        f"{part}.{name}": tensor.clone()
        for part, network in networks(pipe).items()
        for name, tensor in network.state_dict().items()
    }


def objects(pipe: Any) -> dict[str, tuple[int, ...]]:
    """Which modules and parameters there are, and where the numbers of these lie."""
    found: dict[str, tuple[int, ...]] = {}
    for part, network in networks(pipe).items():
        for name, module in network.named_modules():
            found[f"{part}.{name}()"] = (id(module), id(type(module)), len(vars(module)))
        for name, parameter in network.named_parameters():
            found[f"{part}.{name}"] = (id(parameter), parameter.data_ptr())
    return found


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    return {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def refused(place: Place, folder: Path, *words: str, kind: str = "sd") -> str:
    """Says why an adapter is refused, once it is sure that nothing is left of the attempt."""
    pipe, good = place.pipe(kind), place.small if kind == "sd" else place.lora(kind)
    before, own = objects(pipe), state(pipe)
    some = adapters(place, pipe, folder, good, kind=kind)
    some.use(adapter(good))
    changed = state(pipe)
    with pytest.raises(ModelError) as caught:
        some.use(adapter(folder))
    line = str(caught.value)
    assert all(word in line for word in words), line
    assert "\n" not in line
    assert equal(state(pipe), own)
    assert objects(pipe) == before
    assert some.text_key == ""
    some.use(adapter(good))
    assert equal(state(pipe), changed)
    return line


def rewritten(
    to: Path, lora: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    """A folder with a changed copy of a file of weights, without its metadata."""
    to.mkdir(parents=True)
    save_file(change(load_file(lora / LORA_FILE)), to / LORA_FILE)
    return to


def uneven(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same layers, of which every third has a product of rank 1 only."""
    layers = sorted({key.partition(".lora_")[0] for key in weights})
    cut = {}
    for key, tensor in weights.items():
        rank = 1 if layers.index(key.partition(".lora_")[0]) % 3 == 0 else RANK
        cut[key] = tensor[:rank] if ".lora_A." in key else tensor[:, :rank].contiguous()
    return cut


def alpha_of(layer: str) -> float:
    return 1 + sum(map(ord, layer)) % 7 / 2


def kohya(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights in the dialect of kohya's trainer, each layer with an alpha of its own."""
    parts = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if any(key.startswith("text_encoder_2.") for key in weights):
        parts["text_encoder"] = "lora_te1"
    renamed = {}
    for key, tensor in weights.items():
        whole, _, factor = key.partition(".lora_")
        part, _, layer = whole.partition(".")
        if part != "unet" and not layer.startswith("text_model."):
            layer = f"text_model.{layer}"  # what CLIP's layers were called when kohya was written
        name = f"{parts[part]}_{layer.replace('.', '_')}"
        renamed[f"{name}.lora_{'down' if factor[0] == 'A' else 'up'}.weight"] = tensor
        renamed[f"{name}.alpha"] = torch.tensor(alpha_of(whole))
    return renamed


def by_hand(
    own: dict[str, torch.Tensor], lora: Path, scale: Callable[[str], float]
) -> dict[str, torch.Tensor]:
    """The base's weights with the products of a file added. scale: by a weight's name."""
    file = load_file(lora / LORA_FILE)
    sums = dict(own)
    for key, down in file.items():
        if ".lora_A." in key:
            up, name = file[key.replace("lora_A", "lora_B")], key.replace(".lora_A", "")
            product = (up.flatten(1) @ down.flatten(1)).reshape(own[name].shape)
            sums[name] = own[name] + scale(name) * product
    return sums


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[k], other[k], rtol=1e-5, atol=1e-6) for k in one | other)


# What a switch does


@pytest.mark.parametrize("kind", ["sd", "xl", "sd3"])
def test_drawn_like_the_adapter_beside_the_weights(place: Place, kind: str) -> None:
    pipe, beside, lora = place.pipe(kind), place.pipe(kind), place.lora(kind)
    base = draw(pipe)
    beside.load_lora_weights(lora)

    some = adapters(place, pipe, lora, kind=kind)
    some.use(adapter(lora))

    drawn = draw(pipe)
    assert np.abs(drawn - draw(beside)).max() < DRIFT
    assert np.abs(drawn - base).max() > 50 * DRIFT
    own, its = state(place.pipe(kind)), state(pipe)
    changed = {name.partition(".")[0] for name in own if not torch.equal(own[name], its[name])}
    assert len([part for part in changed if part.startswith("text_encoder")]) == PARTS[kind]
    assert some.text_key


def test_no_switch_leaves_a_trace(place: Place) -> None:
    pipe, one, other = place.pipe("sd"), place.lora("sd", 1), place.lora("sd", 2)
    some = adapters(place, pipe, one, other)
    base, own, before = draw(pipe), state(pipe), objects(pipe)

    some.use(adapter(one))
    first = state(pipe)
    some.use(adapter(other))
    assert not equal(state(pipe), first)
    some.use(adapter(one))
    assert equal(state(pipe), first)
    some.use(None)

    assert equal(state(pipe), own)
    assert np.array_equal(draw(pipe), base)
    assert objects(pipe) == before
    assert some.switches == 4


def test_what_is_in_already_is_not_put_in_again(place: Place) -> None:
    some = adapters(place, place.pipe("sd"), lora := place.small)
    some.use(None)
    assert some.switches == 0
    some.use(adapter(lora))
    some.use(adapter(lora).model_copy(update={"name": "again", "category": "pinch"}))
    assert some.switches == 1


def test_an_adapter_of_fewer_layers_gives_back_the_others(place: Place, tmp_path: Path) -> None:
    pipe, lora = place.pipe("sd"), place.lora("sd")
    few = rewritten(
        tmp_path / "few", lora, lambda all: {k: v for k, v in all.items() if "attn2.to_k" in k}
    )
    some = adapters(place, pipe, lora, few)
    own = state(pipe)
    some.use(adapter(lora))
    some.use(adapter(few))
    assert close(state(pipe), by_hand(own, few, lambda name: 1.0))
    assert some.text_key == ""


def test_the_scale_multiplies(place: Place) -> None:
    pipe, lora, scale = place.pipe("sd"), place.lora("sd"), -0.5
    own, some = state(pipe), adapters(place, pipe, lora)
    some.use(adapter(lora))
    some.use(adapter(lora, scale))
    assert close(state(pipe), by_hand(own, lora, lambda name: scale * ALPHA / RANK))
    assert some.switches == 2


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_files_of_kohya_with_ranks_and_alphas_by_layer(
    place: Place, tmp_path: Path, kind: str
) -> None:
    pipe = place.pipe(kind)
    plain = rewritten(tmp_path / "plain", place.lora(kind), uneven)
    file = rewritten(tmp_path / "kohya", plain, kohya)
    ranks = {k.replace(".lora_A", ""): len(v) for k, v in load_file(plain / LORA_FILE).items()}
    own, some = state(pipe), adapters(place, pipe, file, plain, kind=kind)
    some.use(adapter(plain))
    assert close(state(pipe), by_hand(own, plain, lambda name: 1.0))
    some.use(adapter(file))
    expected = by_hand(own, plain, lambda n: alpha_of(n.removesuffix(".weight")) / ranks[n])
    assert close(state(pipe), expected)


def test_files_of_older_diffusers(place: Place, tmp_path: Path) -> None:
    def older(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            key.replace(".to_q.lora_A", ".processor.to_q_lora.down")
            .replace(".to_q.lora_B", ".processor.to_q_lora.up"): tensor
            for key, tensor in weights.items()
            if ".to_q." in key
        }  # fmt: skip

    pipe, lora = place.pipe("sd"), place.lora("sd")
    file = rewritten(tmp_path / "older", lora, older)
    own, some = state(pipe), adapters(place, pipe, file)
    some.use(adapter(file))
    expected = by_hand(own, lora, lambda name: 1.0 if ".to_q." in name else 0.0)
    assert close(state(pipe), expected)


def test_half_precision_is_rounded_once(place: Place) -> None:
    pipe, lora = place.pipe("sd", torch.bfloat16), place.lora("sd")
    own, some = state(pipe), adapters(place, pipe, lora)
    some.use(adapter(lora))
    exact = by_hand({k: v.float() for k, v in own.items()}, lora, lambda name: ALPHA / RANK)
    unequal = sum(int((v != exact[k].bfloat16()).sum()) for k, v in state(pipe).items())
    assert unequal <= 2  # where the order of the float32 sum decides between two neighbours


def test_a_compiled_denoiser_is_not_compiled_again(place: Place) -> None:
    pipe, lora = place.pipe("sd"), place.lora("sd")
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        forward: Callable[..., Any] = graph.forward
        return forward

    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]
    block.compile(backend=backend)
    some = adapters(place, pipe, lora)
    base = draw(pipe)
    once = len(compiled)
    some.use(adapter(lora))
    drawn = draw(pipe)
    some.use(None)
    assert np.array_equal(draw(pipe), base)
    assert not np.array_equal(drawn, base)
    assert len(compiled) == once > 0


def test_a_wrapped_denoiser_in_another_memory_format(place: Place) -> None:
    pipe, lora = place.pipe("sd"), place.small
    pipe.unet.to(memory_format=torch.channels_last)
    own, unet = state(pipe), pipe.unet
    pipe.unet = torch.compile(unet, backend="eager")
    some = adapters(place, pipe, lora)
    some.use(adapter(lora))
    pipe.unet = unet
    assert close(state(pipe), by_hand(own, lora, lambda name: 1.0))
    kernel = unet.mid_block.resnets[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_an_earlier_drawing_s_lora_scale_is_not_mixed_in(place: Place) -> None:
    pipe, lora = place.pipe("sd"), place.small
    pipe._lora_scale = 0.5  # as diffusers leaves it after cross_attention_kwargs
    own, some = state(pipe), adapters(place, pipe, lora)
    some.use(adapter(lora))
    assert close(state(pipe), by_hand(own, lora, lambda name: 1.0))


def test_few_adapters_stay_in_memory(place: Place, tmp_path: Path) -> None:
    folders = [shutil.copytree(place.small, tmp_path / name) for name in ("a", "b", "c")]
    a, b, c = map(adapter, folders)
    fetched = Fetched(*folders)
    some = Adapters(place.pipe("sd"), place.bases["sd"], fetched, kept=2)
    for each in (a, b, a, c, a, b):
        some.use(each)
    assert fetched.asked == ["a", "b", "c", "b"]  # c drove out b, which was unused for longest


# Specialists of which all weights were trained


def trained_whole(place: Place, to: Path, *, text: bool = False) -> Path:
    """A pipeline with another denoiser, and another text encoder if `text`, saved in float16."""
    pipe = place.pipe("sd")
    torch.manual_seed(5)
    with torch.no_grad():
        for part in (pipe.unet, *([pipe.text_encoder] if text else [])):
            for parameter in part.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    pipe.to(torch.float16).save_pretrained(to / "pipeline")
    return to


def test_a_whole_denoiser_is_switched_like_any_other(place: Place, tmp_path: Path) -> None:
    pipe, lora, whole = place.pipe("sd"), place.lora("sd"), trained_whole(place, tmp_path / "whole")
    own, before = state(pipe), objects(pipe)
    some = adapters(place, pipe, lora, whole)
    some.use(adapter(lora))
    some.use(adapter(whole))

    saved = load_file(whole / "pipeline/unet/diffusion_pytorch_model.safetensors")
    its = state(pipe)
    assert all(torch.equal(its[f"unet.{name}"], saved[name].float()) for name in saved)
    # saved in half precision, yet nobody trained it: the base's own stays
    assert all(torch.equal(its[k], own[k]) for k in own if not k.startswith("unet."))
    assert some.text_key == ""
    some.use(adapter(lora))
    some.use(adapter(whole))
    assert equal(state(pipe), its)
    some.use(None)
    assert equal(state(pipe), own)
    assert objects(pipe) == before


def test_its_text_encoder_comes_along(place: Place, tmp_path: Path) -> None:
    pipe, whole = place.pipe("sd"), trained_whole(place, tmp_path / "whole", text=True)
    some = adapters(place, pipe, whole)
    some.use(adapter(whole))
    saved = load_file(whole / "pipeline/text_encoder/model.safetensors")
    its = pipe.text_encoder.state_dict()
    assert all(torch.equal(its[name], saved[name].float()) for name in saved)
    assert adapter(whole).weights in some.text_key


def test_a_whole_denoiser_of_another_base(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "more" / "xl", tmp_path / "whole" / "pipeline")
    refused(place, tmp_path / "whole", "whole", "another base", "unet.")


def test_a_whole_denoiser_that_is_broken_leaves_nothing(place: Place, tmp_path: Path) -> None:
    whole = trained_whole(place, tmp_path / "whole")
    file = whole / "pipeline/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["up_blocks.1.resnets.0.conv1.weight"][0] = float("nan")
    save_file(weights, file)
    refused(place, whole, "up_blocks.1.resnets.0.conv1.weight", "NaN")


# The text encoders' key


def test_text_encodings_are_kept_apart_by_weights_and_scale(place: Place) -> None:
    some = adapters(place, place.pipe("sd"), one := place.small, two := place.other)
    keys = [some.text_key]
    for each in (adapter(one), adapter(one, 0.5), adapter(two)):
        some.use(each)
        keys.append(some.text_key)
    some.use(None)
    assert len(set(keys)) == 4
    assert some.text_key == keys[0] == ""


# What is refused


def with_card(to: Path, lora: Path, base: ModelRef) -> Path:
    shutil.copytree(lora, to)
    (to / "card.json").write_text(json.dumps({"base": base.model_dump()}))
    return to


def test_a_card_of_another_base(place: Place, tmp_path: Path) -> None:
    other = ModelRef(name="their-base", weights="sha256:" + "ab" * 32)
    folder = with_card(tmp_path / "pinch", place.small, other)
    here = place.bases["sd"].weights[7:19]
    refused(place, folder, "'pinch'", "'their-base'", "abababababab", here)


def test_a_card_of_this_base_or_of_one_that_cannot_be_compared(
    place: Place, tmp_path: Path
) -> None:
    hub = ModelRef(name="owner/name", weights="hub:abc")
    own = with_card(tmp_path / "own", place.small, place.bases["sd"])
    from_hub = with_card(tmp_path / "hub", place.small, hub)
    some = adapters(place, place.pipe("sd"), own, from_hub)
    some.use(adapter(own))
    some.use(adapter(from_hub))
    assert some.switches == 2


@pytest.mark.parametrize(
    ("theirs", "kind", "words"),
    [
        ("xl", "sd", ("cross attention over 32 numbers", "cross attention over 16 numbers")),
        ("sd3", "sd", ("is for SD3", "cross attention over 16 numbers")),
        ("sd", "sd3", ("cross attention over 16 numbers", "is SD3")),
    ],
)
def test_an_adapter_of_another_kind(
    place: Place, theirs: str, kind: str, words: tuple[str, ...]
) -> None:
    refused(place, place.lora(theirs), "give one trained for this base", *words, kind=kind)


def test_public_kinds_have_names(place: Place, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    file = rewritten(tmp_path / "x", place.small, lambda _: {key: torch.zeros(4, 2048)})
    refused(place, file, "is for SDXL (cross attention over 2048 numbers)")


def test_layers_of_another_size(place: Place, tmp_path: Path) -> None:
    def wider(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: torch.cat([v, v]) if "conv1.lora_B" in k else v for k, v in weights.items()}

    refused(place, rewritten(tmp_path / "wide", place.small, wider), "'wide' does not fit")


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda key: key.replace("unet.", "elsewhere."), ("for no layer", "elsewhere.")),
        (lambda key: key.replace(".mid_block.", ".no_block."), ("for no layer", "no_block")),
        (lambda key: key.replace(".layers.0.", ".layers.7."), ("for no layer", "layers.7")),
        (lambda key: key.replace("text_encoder.", "text_encoder_2."), ("text_encoder_2",)),
    ],
)
def test_keys_that_fit_no_layer(
    place: Place, tmp_path: Path, rename: Callable[[str], str], words: tuple[str, ...]
) -> None:
    file = rewritten(
        tmp_path / "odd", place.small, lambda all: {rename(k): v for k, v in all.items()}
    )
    refused(place, file, "'odd'", *words)


def test_a_layer_with_one_of_its_two_factors(place: Place, tmp_path: Path) -> None:
    gone = "unet.mid_block.resnets.0.conv1.lora_B.weight"
    file = rewritten(
        tmp_path / "half", place.small, lambda all: {k: all[k] for k in all if k != gone}
    )
    refused(place, file, "'half' lacks one of the two factors of unet.mid_block.resnets.0.conv1")


def test_weights_that_are_no_numbers(place: Place, tmp_path: Path) -> None:
    def spoilt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["unet.mid_block.resnets.0.conv1.lora_A.weight"][1, 0, 0, 0] = float("inf")
        return weights

    file = rewritten(tmp_path / "spoilt", place.small, spoilt)
    refused(place, file, "'spoilt'", "unet.mid_block.resnets.0.conv1", "NaN")


def extra(key: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: weights | {key: torch.ones(2)}


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("unet.conv_in.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_conv_in.dora_scale", "DoRA"),
        ("lora_unet_conv_in.hada_w1_a", "LoHa"),
        ("lora_unet_conv_in.lokr_w1", "LoKr"),
    ],
)
def test_other_methods_are_named(place: Place, tmp_path: Path, key: str, method: str) -> None:
    file = rewritten(tmp_path / "other", place.small, extra(key))
    with pytest.raises(ModelError, match=method):
        check_adapter(file)
    refused(place, file, method)


def test_a_broken_file(place: Place, tmp_path: Path) -> None:
    cut = shutil.copytree(place.small, tmp_path / "cut") / LORA_FILE
    os.truncate(cut, cut.stat().st_size - 100)
    refused(place, cut.parent, "broken")
    for name, content in {
        "empty": b"",
        "text": b"<html>not found</html>",
        "huge": (2**60).to_bytes(8, "little"),
        "list": (2).to_bytes(8, "little") + b"[]",
        "deep": (60_000).to_bytes(8, "little") + b"[" * 60_000,
    }.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="broken"):
            check_adapter(tmp_path / f"{name}.safetensors")


def test_pickles_and_what_is_no_lora(place: Place, tmp_path: Path) -> None:
    pickle = shutil.copytree(place.small, tmp_path / "pickle")
    (pickle / "optimizer.bin").touch()
    with pytest.raises(ModelError, match="pickle"):
        check_adapter(pickle)
    with pytest.raises(ModelError, match="pickle"):
        check_adapter(pickle / "optimizer.bin")
    with pytest.raises(ModelError, match="give one, or a folder"):
        check_adapter(tmp_path / "nothing")
    with pytest.raises(ModelError, match="is no LoRA"):
        check_adapter(place.folder / "sd" / "unet")
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(LORA_LIMIT_BYTES + 1)  # of holes
    with pytest.raises(ModelError, match="whole model"):
        check_adapter(tmp_path / "large.safetensors")


# What is taken in


def test_an_adapter_is_what_its_bytes_are(place: Place, tmp_path: Path) -> None:
    folder = place.small
    found = check_adapter(folder, place.folder / "sd")
    content = (folder / LORA_FILE).read_bytes()
    assert found.method == "lora"
    assert found.weights == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert found.bytes == len(content)
    assert found.files == (folder / LORA_FILE,)
    other_name = Path(shutil.copy(folder / LORA_FILE, tmp_path / "renamed.safetensors"))
    assert (
        check_adapter(other_name).weights
        == found.weights
        == check_adapter(other_name.parent).weights
    )


def test_a_whole_pipeline_is_all_its_files(place: Place, tmp_path: Path) -> None:
    whole = trained_whole(place, tmp_path / "whole")
    found = check_adapter(whole, place.folder / "sd")
    assert found.method == "full"
    assert found.weights == fingerprint(str(whole / "pipeline"), "base").weights
    assert whole / "pipeline/unet/diffusion_pytorch_model.safetensors" in found.files
    assert found.bytes == sum(file.stat().st_size for file in found.files)


def test_another_base_is_refused_before_anything_is_loaded(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is for SD3"):
        check_adapter(place.lora("sd3"), place.folder / "sd")
    whole = trained_whole(place, tmp_path / "whole")
    with pytest.raises(ModelError, match="another base"):
        check_adapter(whole, place.folder / "more" / "xl")
    other = ModelRef(name="their-base", weights="sha256:" + "ab" * 32)
    with pytest.raises(ModelError, match="their-base"):
        check_adapter(with_card(tmp_path / "pinch", place.small, other), place.folder / "sd")


def test_checking_leaves_torch_asleep(place: Place) -> None:
    code = (
        "import sys, pathlib; from pipeline.proposer.adapters import check_adapter; "
        "check_adapter(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])); "
        "assert not {'torch', 'diffusers', 'peft', 'transformers'} & sys.modules.keys()"
    )
    folders = [str(place.small), str(place.folder / "sd")]
    subprocess.run([sys.executable, "-c", code, *folders], check=True)
