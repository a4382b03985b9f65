"""The files of an adapter: which they are, that they are safe and whole, and for what base.

All of it is read from the headers of safetensors files; no weight is loaded, and no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.errors import ModelError
from pipeline.models import PICKLES, _hash_of, check_folder
from pipeline.types import ModelRef

LORA_FILE = "pytorch_lora_weights.safetensors"
PIPELINE = "pipeline"  # the folder of the whole pipeline, where all weights were trained
CARD = "card.json"
LORA_LIMIT_BYTES = 4 * 2**30
HEADER_LIMIT_BYTES = 64 * 2**20  # of JSON; SDXL's own has 0.2 MB

Method = Literal["lora", "full"]
Shapes = dict[str, tuple[int, ...]]

LOW_RANK = re.compile(r"lora_(A|B|down|up)\.|lora\.(down|up)\.|lora_linear_layer\.")
UNSUPPORTED = {
    "lora_magnitude_vector": "DoRA",
    "dora_scale": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoRA of Tucker's form",
    "oft_": "OFT",
}
"""Parts of keys that tell other methods from plain low-rank products."""

FIRST_FACTOR = r"(lora_A|lora_down|lora\.down|lora_linear_layer\.down)"
CROSS_ATTENTION = re.compile(rf"attn2[._](processor\.)?to_[kv][._]{FIRST_FACTOR}")
TRANSFORMERS = {
    "Flux": re.compile(r"single_transformer_blocks|double_blocks|single_blocks"),
    "SD3": re.compile(r"joint_blocks|attn[._]add_[kqv]_proj|attn[._]to_add_out"),
    "": re.compile(r"^transformer\.|^lora_transformer_|^diffusion_model\.layers"),
}
UNETS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
"""By how many numbers of a text's encoding the cross attention reads."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that can be taken in.

    weights: "sha256:..." of the file of low-rank weights, or over the files of a whole pipeline.
    folder: where `files` lie, at any depth.
    """

    method: Method
    weights: str
    bytes: int
    folder: Path
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Kind:
    """What kind of denoiser an adapter is for. Empty or None: its file does not tell."""

    net: Literal["unet", "transformer"]
    transformer: str = ""
    width: int | None = None  # of what a UNet's cross attention reads

    def __str__(self) -> str:
        if self.net == "transformer":
            return self.transformer or "a diffusion transformer"
        reads = f"cross attention over {self.width} numbers"
        name = UNETS.get(self.width or 0)
        if name:
            return f"{name} ({reads})"
        return f"a UNet with {reads}" if self.width else "a UNet"

    def fits(self, other: Kind) -> bool:
        mine, its = self.transformer or self.width, other.transformer or other.width
        return self.net == other.net and (mine == its or not mine or not its)


def check_adapter(path: Path, base_folder: Path | None = None) -> AdapterFiles:
    """What the adapter at a path is, and that it can be used; reads headers, and hashes.

    path: a .safetensors file, a folder that holds one, or one of a whole pipeline.
    base_folder: the base that it is for, where that is at hand.
    Raises ModelError for a pickle, a broken file, another method or another base.
    """
    method, where = find(path)
    name = path.name
    if method == "lora":
        shapes = read_lora(where, name)
        folder, files, weights = where.parent, [where], _sha256(where)
    else:
        shapes = part_shapes(where, denoiser_in(where))
        folder, weights = where, _hash_of(where)
        files = sorted(file for file in where.rglob("*") if file.is_file())
    if base_folder is not None:
        base = ModelRef(name=base_folder.name, weights=f"sha256:{_hash_of(base_folder)}")
        check_card(where, name, base)
        part = denoiser_in(base_folder)
        if method == "lora":
            check_kind(shapes, name, base, kind_of(_config(base_folder / part)))
        else:
            check_shapes(shapes, part_shapes(base_folder, part), part, name, base)
    total = sum(file.stat().st_size for file in files)
    return AdapterFiles(method, f"sha256:{weights}", total, folder, tuple(files))


def weights_of(path: Path) -> str:
    """The hash by which an adapter's weights are named. Raises ModelError as `find` does."""
    method, where = find(path)
    return f"sha256:{_sha256(where) if method == 'lora' else _hash_of(where)}"


def find(path: Path) -> tuple[Method, Path]:
    """The file of low-rank weights, or the folder of a whole pipeline. Raises ModelError."""
    _refuse_pickles([path])
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(f"adapter file {str(path)!r} is not of safetensors: give one that is")
        return "lora", path
    for folder in (path / PIPELINE, path):
        if (folder / "model_index.json").is_file():
            check_folder(folder)
            return "full", folder
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else []
    _refuse_pickles(files)
    found = [file for file in files if file.suffix == ".safetensors"]
    found = [file for file in found if file.name == LORA_FILE] or found
    if len(found) != 1:
        raise ModelError(
            f"no adapter at {str(path)!r}: {len(found)} .safetensors files are there; give one, or "
            f"a folder with {LORA_FILE} or with a whole pipeline"
        )
    return "lora", found[0]


def read_lora(file: Path, name: str) -> Shapes:
    """The shapes in a file of low-rank weights. Raises ModelError for a file of anything else."""
    size = file.stat().st_size
    if size > LORA_LIMIT_BYTES:
        raise ModelError(
            f"adapter {name!r} has {size / 2**30:.1f} GiB, and low-rank weights at most "
            f"{LORA_LIMIT_BYTES / 2**30:g}: is it a whole model?"
        )
    shapes = read_shapes(file)
    for key in shapes:
        for part, method in UNSUPPORTED.items():
            if part in key:
                raise ModelError(
                    f"adapter {name!r} is a {method} ({key!r}), which cannot be used: give a LoRA"
                )
    if not any(LOW_RANK.search(key) for key in shapes):
        first = next(iter(shapes), "nothing at all")
        raise ModelError(f"adapter {name!r} is no LoRA: its file holds {first!r}, no lora_A or _B")
    return shapes


def read_shapes(file: Path) -> Shapes:
    """The tensors of a safetensors file. Raises ModelError if it is broken or cut off."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size - 8, HEADER_LIMIT_BYTES):
            raise ModelError(f"{str(file)!r} is broken: it is no safetensors file, or cut off")
        text = opened.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        shapes = {key: tuple(map(int, value["shape"])) for key, value in header.items()}
        end = max((int(value["data_offsets"][1]) for value in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise ModelError(f"{str(file)!r} is broken: its header cannot be read") from None
    if end != size - 8 - length:
        raise ModelError(
            f"{str(file)!r} is broken: it has {size:,} bytes of {8 + length + end:,}: fetch it "
            "again"
        )
    return shapes


def part_files(folder: Path, part: str) -> dict[str, Path]:
    """The file of each tensor of a pipeline's part. Raises ModelError where two hold the same."""
    files: dict[str, Path] = {}
    for file in sorted((folder / part).glob("*.safetensors")):
        for key in read_shapes(file):
            if key in files:
                raise ModelError(
                    f"{str(file)!r} and {files[key].name!r} hold the same weights: keep one of them"
                )
            files[key] = file
    return files


def part_shapes(folder: Path, part: str) -> Shapes:
    files = sorted((folder / part).glob("*.safetensors"))
    return {key: shape for file in files for key, shape in read_shapes(file).items()}


def denoiser_in(folder: Path) -> str:
    """The name of a saved pipeline's denoiser. Raises ModelError if it has none."""
    for part in ("unet", "transformer"):
        if any((folder / part).glob("*.safetensors")):
            return part
    raise ModelError(f"the pipeline in {str(folder)!r} has no unet or transformer in safetensors")


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Of a base, by its denoiser's configuration."""
    name = str(config.get("_class_name"))
    if "Transformer" in name:
        return Kind("transformer", transformer=name.partition("Transformer")[0])
    width = config.get("cross_attention_dim")
    widths = set(width) if isinstance(width, list | tuple) else {width}
    return Kind("unet", width=widths.pop() if len(widths) == 1 else None)


def kind_for(shapes: Shapes) -> Kind | None:
    """The kind of base that low-rank weights are for; None if their names do not tell."""
    for key, shape in shapes.items():
        if CROSS_ATTENTION.search(key) and len(shape) > 1 and not key.startswith("transformer."):
            return Kind("unet", width=shape[1])
    for name, pattern in TRANSFORMERS.items():
        if any(pattern.search(key) for key in shapes):
            return Kind("transformer", transformer=name)
    if any(key.startswith(("unet.", "lora_unet_")) for key in shapes):
        return Kind("unet")
    return None


def check_kind(shapes: Shapes, name: str, base: ModelRef, kind: Kind) -> None:
    """Raises ModelError if low-rank weights are for another kind of base than this."""
    its = kind_for(shapes)
    if its is not None and not its.fits(kind):
        raise ModelError(
            f"adapter {name!r} is for {its}, and the base {base.name!r} is {kind}: give one "
            "trained for this base"
        )


def check_card(where: Path, name: str, base: ModelRef) -> None:
    """Raises ModelError if a card beside the weights says that they were trained on another base.

    A folder's hash and a hub's commit cannot be compared, so those pass.
    """
    for folder in (where, where.parent):
        try:
            card = json.loads((folder / CARD).read_bytes())
            trained_on = ModelRef.model_validate(card["base"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            continue  # no card, or somebody else's
        scheme = trained_on.weights.partition(":")[0]
        if base.weights.startswith(f"{scheme}:") and base.weights != trained_on.weights:
            raise ModelError(
                f"adapter {name!r} was trained on base {_short(trained_on)}, and this run's base "
                f"is {_short(base)}: give an adapter of this base, or the base of this adapter"
            )


def check_shapes(shapes: Shapes, own: Shapes, part: str, name: str, base: ModelRef) -> None:
    """Raises ModelError unless the weights of a whole network are those of the base's."""
    for key in own.keys() | shapes.keys():
        its, ours = shapes.get(key), own.get(key)
        if its != ours:
            raise ModelError(
                f"adapter {name!r} is for another base than {base.name!r}: {_size(its)} as "
                f"{part}.{key}, and the base has {_size(ours)}"
            )


def _refuse_pickles(files: Iterable[Path]) -> None:
    for file in files:
        if file.suffix in PICKLES:
            raise ModelError(
                f"adapter file {str(file)!r} is a pickle, which can run code when loaded: convert "
                "it to safetensors"
            )


def _size(shape: Iterable[int] | None) -> str:
    return "nothing" if shape is None else "x".join(map(str, shape)) or "one number"


def _short(ref: ModelRef) -> str:
    scheme, _, value = ref.weights.partition(":")
    return f"{ref.name!r} ({scheme}:{value[:12]}...)"


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
