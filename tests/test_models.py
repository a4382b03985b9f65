"""Models by name: what is refused, and how weights are told apart."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.config import ProposerConfig
from pipeline.errors import ModelError
from pipeline.models import fingerprint, folder_of, location
from pipeline.proposer.diffusion import DiffusionProposer
from tests.tiny import save_tiny_pipeline, save_weights


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a b/c", "nothing", "", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused_with_what_would_do(name: str) -> None:
    with pytest.raises(ModelError, match="give a folder with safetensors") as refused:
        fingerprint(name, "base")
    assert repr(name) in str(refused.value)


def test_a_hub_id_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder_of("dandelin/vilt-b32-mlm", "verifier") is None
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "dandelin" / "vilt-b32-mlm")
    assert folder_of("dandelin/vilt-b32-mlm", "verifier") == Path("dandelin/vilt-b32-mlm")


@pytest.mark.parametrize("name", ["model.bin", "deep/er/model.ckpt", "x.pt", "x.pth", "x.pkl"])
def test_a_folder_that_holds_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    pickle = save_weights(tmp_path) / name
    pickle.parent.mkdir(parents=True, exist_ok=True)
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="holds a pickle"):
        fingerprint(str(tmp_path), "base")


@pytest.mark.parametrize("place", ["part", "pipeline", "auto_map"])
def test_python_that_a_model_brings_is_not_run(tmp_path: Path, place: str) -> None:
    """At the three places at which diffusers and transformers look for it."""
    folder, ran = save_tiny_pipeline(tmp_path / "base"), tmp_path / "ran"
    index = json.loads((folder / "model_index.json").read_text())
    code = f"open({str(ran)!r}, 'w')\nfrom diffusers import UNet2DConditionModel\n"
    if place == "part":
        index["unet"] = ["theirs", "UNet2DConditionModel"]
        (folder / "unet" / "theirs.py").write_text(code)
    elif place == "pipeline":
        index["_class_name"] = ["theirs", "StableDiffusionPipeline"]
        (folder / "theirs.py").write_text(code)
    else:
        config = folder / "text_encoder" / "config.json"
        mapped = {"AutoModel": "theirs.Theirs", "AutoConfig": "theirs.Theirs"}
        config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": mapped}))
        (folder / "text_encoder" / "theirs.py").write_text(code)
    (folder / "model_index.json").write_text(json.dumps(index))
    ref = fingerprint(str(folder), "base")
    with suppress(ModelError):
        DiffusionProposer.load(ProposerConfig(model=str(folder), device="cpu"), ref)
    assert not ran.exists()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no safetensors"):
        fingerprint(str(tmp_path), "base")


def test_equal_weights_have_one_fingerprint_wherever_they_lie(tmp_path: Path) -> None:
    first, second = save_weights(tmp_path / "a"), save_weights(tmp_path / "b")
    assert _weights(first) == _weights(second)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "deep/vocab.txt"])
def test_one_changed_byte_changes_the_fingerprint(tmp_path: Path, name: str) -> None:
    first = save_weights(tmp_path / "a")
    (first / "deep").mkdir()
    (first / "config.json").write_text('{"layers": 1}')
    (first / "deep" / "vocab.txt").write_text("mug\n")
    second = Path(shutil.copytree(first, tmp_path / "b"))
    data = bytearray((second / name).read_bytes())
    data[-2] ^= 1
    (second / name).write_bytes(data)
    assert _weights(first) != _weights(second)


def test_weights_other_than_the_runs_are_refused(tmp_path: Path) -> None:
    ref = fingerprint(str(save_weights(tmp_path / "a")), "base")
    assert location(ref, "base") == (str(tmp_path / "a"), None)
    other = fingerprint(str(save_weights(tmp_path / "b", 1)), "base")
    with pytest.raises(ModelError, match="but the run was made with"):
        location(ref.model_copy(update={"weights": other.weights}), "base")


def _weights(folder: Path) -> str:
    return fingerprint(str(folder), "base").weights
