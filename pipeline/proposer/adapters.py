"""Specialists in the weights of one base pipeline, exchanged without loading or compiling again.

An adapter's low-rank product is added in place to the base's own parameters, always onto a pristine
copy of them: no drift gathers, drawing costs nothing more, and neither module nor parameter is ever
another object, so that a compiled denoiser has nothing to notice.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.proposer.lora_files import (
    AdapterFiles,
    check_adapter,
    check_card,
    check_kind,
    check_shapes,
    find,
    kind_of,
    part_files,
    part_shapes,
    read_lora,
)
from pipeline.types import Adapter, ModelRef

if TYPE_CHECKING:
    import torch

__all__ = ["AdapterFiles", "Adapters", "check_adapter"]

KEPT = 32  # loaded adapters
KEPT_BYTES = 2 * 2**30  # of their weights, in memory

Name = tuple[str, str]
"""Where a weight is: ("unet", "conv_in.weight")."""


@dataclass(frozen=True)
class Product:
    """A low-rank change of one weight: scaling * up @ down, over the weight's flattened inputs.

    down: (rank, inputs x kernel), up: (outputs, rank), both float32 on the CPU.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float

    @property
    def bytes(self) -> int:
        return int(self.down.nbytes + self.up.nbytes)

    def onto(self, weight: torch.Tensor, scale: float) -> torch.Tensor:
        """The sum in float32, as flat as `up @ down`, so that it is rounded only once, when kept.

        A k x k convolution's down is one too and its up is 1x1: as matrices they multiply alike.
        """
        down, up = self.down.to(weight.device), self.up.to(weight.device)
        return weight.float().flatten(1).addmm(up, down, alpha=self.scaling * scale)


Products = dict[Name, Product]


class Adapters:
    """The adapters of one pipeline, of which at most one is in its weights at a time."""

    def __init__(
        self,
        pipe: Any,
        base: ModelRef,
        folder_of: Callable[[Adapter], Path],
        *,
        kept: int = KEPT,
    ) -> None:
        """folder_of: where an adapter's files are, fetched and known to be what it names.

        kept: how many adapters' low-rank weights stay in memory.
        """
        self.switches = 0  # how often weights were changed
        self._pipe, self._base, self._folder_of = pipe, base, folder_of
        self._kept = kept
        self._in: tuple[str, float] | None = None  # weights and scale of the one that is in
        self._pristine: dict[Name, torch.Tensor] = {}  # of those that some adapter changed
        self._changed: set[Name] = set()
        self._loaded: OrderedDict[str, Products] = OrderedDict()  # the longest unused first
        self._same: dict[str, frozenset[Name]] = {}  # of whole pipelines: what is the base's own

    @property
    def text_key(self) -> str:
        """Whose text encoders are in: "" for the base's own, else the adapter's hash and scale."""
        if self._in is None or not any(part.startswith("text") for part, _ in self._changed):
            return ""
        weights, scale = self._in
        return f"{weights}:{scale!r}"

    def use(self, adapter: Adapter | None) -> None:
        """Puts an adapter into the weights, in place of what is in; None: the base alone.

        Raises ModelError if the adapter cannot be used here; then the base alone is in.
        """
        import torch

        wanted = (adapter.weights, adapter.scale) if adapter else None
        if wanted == self._in:
            return
        with torch.no_grad():
            try:
                if adapter is None:
                    self._restore(self._changed)
                else:
                    self._put(adapter)
            except BaseException:
                self._restore(self._changed)
                self._in = None
                raise
        self._in = wanted
        self.switches += 1

    def _put(self, adapter: Adapter) -> None:
        products = self._loaded.get(adapter.weights)
        if products is None:
            method, where = find(self._folder_of(adapter))
            check_card(where, adapter.name, self._base)
            if method == "full":
                self._put_pipeline(adapter, where)
                return
            products = self._load(adapter, where)
            self._keep(adapter.weights, products)
        self._loaded.move_to_end(adapter.weights)
        self._restore(self._changed - products.keys())
        for name, product in products.items():
            sums = product.onto(self._own(name), adapter.scale)
            self._write(name, sums)

    def _put_pipeline(self, adapter: Adapter, folder: Path) -> None:
        """Copies a whole pipeline's denoiser and text encoders, one tensor in memory at a time.

        What is only the base's own, rounded to how the specialist was saved, stays: text encoders
        that nobody trained are not another's.
        """
        from safetensors import SafetensorError, safe_open

        places = self._places_of(adapter, folder)
        self._restore(self._changed)
        same = self._same.get(adapter.weights, frozenset())
        found: set[Name] = set(same)
        files = {file for file, _, name in places if name not in same}
        for file in sorted(files):
            try:
                with safe_open(str(file), "pt") as opened:
                    for key, name in ((k, n) for f, k, n in places if f == file and n not in same):
                        tensor = opened.get_tensor(key)
                        if not bool(tensor.isfinite().all()):
                            raise ModelError(_not_finite(adapter, ".".join(name)))
                        if _same(self._tensor(name).cpu(), tensor):
                            found.add(name)
                        else:
                            self._own(name)
                            self._write(name, tensor)
            except (OSError, SafetensorError) as error:
                raise self._unfit(adapter, error) from error
        self._same[adapter.weights] = frozenset(found)

    def _places_of(self, adapter: Adapter, folder: Path) -> list[tuple[Path, str, Name]]:
        """File, key and weight of each tensor. Raises ModelError unless they are the base's."""
        places: list[tuple[Path, str, Name]] = []
        for part in self._parts():
            own = _bare(getattr(self._pipe, part)).state_dict(keep_vars=True)
            # a part that the specialist came without is the base's; of a denoiser there is one
            if part.startswith("text_encoder") and not (folder / part).is_dir():
                continue
            files, shapes = part_files(folder, part), part_shapes(folder, part)
            places_here = {_known(key, own): key for key in files}
            # of tied weights a file holds one
            held = {id(own[name]) for name in places_here if name in own}
            needed = {
                name: tuple(tensor.shape)
                for name, tensor in own.items()
                if name in places_here or id(tensor) not in held
            }
            its = {name: shapes[key] for name, key in places_here.items()}
            check_shapes(its, needed, part, adapter.name, self._base)
            places += [(files[key], key, (part, name)) for name, key in places_here.items()]
        return places

    def _load(self, adapter: Adapter, file: Path) -> Products:
        """An adapter's low-rank weights. Raises ModelError if it is for another base."""
        from safetensors import SafetensorError

        shapes = read_lora(file, adapter.name)
        denoiser = self._parts()[0]
        part = _bare(getattr(self._pipe, denoiser))
        kind = kind_of({**part.config, "_class_name": type(part).__name__})
        check_kind(shapes, adapter.name, self._base, kind)
        ghost, keys, alphas = _ghost_networks(self._pipe), list[str](), dict[str, float]()
        try:
            with _quiet():
                _load_into(ghost, self._pipe, file, keys, alphas)
        except (
            OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError,
            SafetensorError,
        ) as error:  # fmt: skip
            odd = _strangers(keys, ghost)
            raise (self._odd(adapter, odd, keys) if odd else self._unfit(adapter, error)) from error
        products: Products = {}
        for part_name, network in ghost.items():
            for path, layer in _lora_layers(network):
                name = (part_name, f"{path}.weight")
                products[name] = self._product(adapter, name, layer)
        if len(set(alphas.values())) > 1:
            products = self._scaled(adapter, products, alphas)
        # counted, since diffusers renames some keys again when it puts them on layers
        if len(keys) != 2 * len(products):
            raise self._odd(adapter, _strangers(keys, ghost) or keys, keys)
        return products

    def _scaled(self, adapter: Adapter, products: Products, alphas: dict[str, float]) -> Products:
        """Each layer with its own alpha, where a file of kohya's trainer has several.

        diffusers 0.42 gives attention layers the most frequent one, since it looks for theirs under
        a name that they do not have. A layer without one has its rank.
        """
        left = {_plain(key.removesuffix(".alpha")): alpha for key, alpha in alphas.items()}
        scaled: Products = {}
        for (part, path), product in products.items():
            rank = len(product.down)
            alpha = left.pop(_plain(f"{part}.{path.removesuffix('.weight')}"), float(rank))
            if not math.isfinite(alpha):
                raise ModelError(_not_finite(adapter, f"{part}.{path}"))
            scaled[part, path] = replace(product, scaling=alpha / rank)
        if left:
            raise self._odd(adapter, [f"{layer}.alpha" for layer in left], list(alphas))
        return scaled

    def _product(self, adapter: Adapter, name: Name, layer: Any) -> Product:
        place, weight = ".".join(name), self._tensor(name)
        if not weight.is_floating_point() or weight.is_meta:
            raise ModelError(
                f"the base {self._base.name!r} takes no adapters: {place} is {weight.dtype} on "
                f"{weight.device}, and would have to be a float in memory"
            )
        factors = [getattr(layer, each)[GHOST].weight.detach() for each in ("lora_A", "lora_B")
                   if GHOST in getattr(layer, each)]  # fmt: skip
        if len(factors) < 2 or any(factor.is_meta for factor in factors):
            raise ModelError(f"adapter {adapter.name!r} lacks one of the two factors of {place}")
        down, up = (factor.float().flatten(1) for factor in factors)
        scaling = float(layer.scaling[GHOST])
        if not (
            bool(down.isfinite().all()) and bool(up.isfinite().all()) and math.isfinite(scaling)
        ):
            raise ModelError(_not_finite(adapter, place))
        shape = (weight.shape[0], math.prod(weight.shape[1:]))
        if (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
            raise ModelError(  # a grouped convolution, say
                f"adapter {adapter.name!r} does not fit {place}: its factors are "
                f"{tuple(up.shape)} and {tuple(down.shape)}, and the weight is {shape}"
            )
        return Product(down.contiguous(), up.contiguous(), scaling)

    def _keep(self, weights: str, products: Products) -> None:
        self._loaded[weights] = products

        def held() -> int:
            return sum(each.bytes for some in self._loaded.values() for each in some.values())

        while len(self._loaded) > self._kept or (len(self._loaded) > 1 and held() > KEPT_BYTES):
            self._loaded.popitem(last=False)

    def _restore(self, names: set[Name]) -> None:
        for name in sorted(names):
            self._tensor(name).copy_(self._pristine[name])
            self._changed.discard(name)

    def _own(self, name: Name) -> torch.Tensor:
        """A pristine copy of the base's weight, made when it is first asked for."""
        if name not in self._pristine:
            self._pristine[name] = self._tensor(name).detach().clone()
        return self._pristine[name]

    def _write(self, name: Name, value: torch.Tensor) -> None:
        """value: of any dtype, and of the weight's shape or flattened."""
        self._changed.add(name)
        tensor = self._tensor(name)
        tensor.copy_(value.reshape(tensor.shape))

    def _tensor(self, name: Name) -> torch.Tensor:
        part, path = name
        module, _, last = path.rpartition(".")
        found: torch.Tensor = getattr(_bare(getattr(self._pipe, part)).get_submodule(module), last)
        return found

    def _parts(self) -> list[str]:
        """The networks that adapters change, the denoiser first."""
        import torch

        names = [n for n, p in self._pipe.components.items() if isinstance(p, torch.nn.Module)]
        denoiser = "transformer" if "transformer" in names else "unet"
        return [denoiser, *(name for name in names if name.startswith("text_encoder"))]

    def _odd(self, adapter: Adapter, odd: list[str], keys: list[str]) -> ModelError:
        return ModelError(
            f"adapter {adapter.name!r} does not fit the base {self._base.name!r}: {len(odd)} of "
            f"its {len(keys)} tensors are for no layer of it, such as {odd[0]}"
        )

    def _unfit(self, adapter: Adapter, error: Exception) -> ModelError:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return ModelError(
            f"adapter {adapter.name!r} does not fit the base {self._base.name!r}: {reason}"
        )


GHOST = "ghost"


def _ghost_networks(pipe: Any) -> dict[str, Any]:
    """The networks that take low-rank adapters, again, but without memory for their weights.

    diffusers reads every dialect of low-rank files, but only into a pipeline, whose layers it wraps
    and on which flags stay behind. So it gets one of the same layers whose weights are one zero,
    expanded: the real one is never touched, whatever goes wrong.
    """
    parts = {
        name: getattr(pipe, name, None) for name in getattr(pipe, "_lora_loadable_modules", ())
    }
    return {name: _ghost_of(_bare(part)) for name, part in parts.items() if part is not None}


def _load_into(
    networks: dict[str, Any],
    pipe: Any,
    file: Path,
    keys: list[str],
    alphas: dict[str, float],
) -> None:
    """Puts the adapter in a file on networks of a pipeline's kind; peft's layers wrap theirs.

    keys, alphas: get the file's, under the names that diffusers gives them.
    """
    import torch

    if not networks:
        raise ValueError(f"a {type(pipe).__name__} takes no low-rank adapters")
    ghost = copy.copy(pipe)
    ghost.__dict__.pop("_lora_scale", None)  # of the last drawing; it would become a part of alpha
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            # past __setattr__, which would write into the configuration that both share
            ghost.__dict__[name] = networks.get(name)
    read = ghost.lora_state_dict

    def read_and_note(*args: Any, **kwargs: Any) -> Any:
        found = read(*args, **kwargs)
        keys.extend(found[0])
        if len(found) == 3:  # other pipelines' readers multiply them into the weights
            alphas.update(found[1] or {})
        return found

    ghost.__dict__["lora_state_dict"] = read_and_note
    ghost.load_lora_weights(
        str(file), adapter_name=GHOST, use_safetensors=True, local_files_only=True
    )


def _ghost_of(network: Any) -> Any:
    import torch

    with torch.device("meta"):
        make = getattr(type(network), "from_config", type(network))  # diffusers', transformers'
        ghost = make(network.config)
    for module in ghost.modules():
        for name, each in module._parameters.items():
            if each is not None:
                zero = torch.zeros(()).expand(each.shape)
                module._parameters[name] = torch.nn.Parameter(zero, requires_grad=False)
        for name, each in module._buffers.items():
            if each is not None:
                module._buffers[name] = torch.zeros((), dtype=each.dtype).expand(each.shape)
    return ghost


def _lora_layers(network: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((n, module) for n, module in network.named_modules() if isinstance(module, LoraLayer))


def _strangers(keys: list[str], networks: dict[str, Any]) -> list[str]:
    """Those keys that name no layer of the networks."""
    layers = {
        f"{part}.{_plain(layer.replace('.base_layer', ''))}"
        for part, network in networks.items()
        for layer, _ in network.named_modules()
    }
    return [key for key in keys if _plain(key) not in layers]


def _plain(key: str) -> str:
    """The layer that a key is of, without what spellings differ in."""
    layer = re.split(r"[._]lora[._]", key)[0].replace(".processor", "").replace("text_model.", "")
    return re.sub(r"to_(\w+)$", r"\1_proj", layer.removesuffix(".0"))


def _same(own: torch.Tensor, saved: torch.Tensor) -> bool:
    """Is a saved weight the base's own, rounded to the dtype that either of them has?"""
    import torch

    return torch.equal(own.to(saved.dtype), saved) or torch.equal(own, saved.to(own.dtype))


def _bare(network: Any) -> Any:
    """The network itself, where torch.compile has wrapped it."""
    return getattr(network, "_orig_mod", network)


def _known(key: str, names: Any) -> str:
    """A file's key as this version of transformers names it: with or without a prefix of CLIP's."""
    prefix = "text_model."
    spellings = (key, key.removeprefix(prefix), prefix + key)
    return next((each for each in spellings if each in names), key)


def _not_finite(adapter: Adapter, place: str) -> str:
    return (
        f"adapter {adapter.name!r} is broken: its weights for {place} are not all numbers (NaN or "
        "infinite); train it again"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' notes on what is normal here, and their bars; errors are raised."""
    from transformers.utils import logging as of_transformers

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    levels = [logger.level for logger in loggers]
    bars = of_transformers.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            of_transformers.enable_progress_bar()  # type: ignore[no-untyped-call]
