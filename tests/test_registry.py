"""Specialists in the store: kept, found by name, fetched whole, refused where they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ProposerConfig
from pipeline.errors import InputError, ModelError
from pipeline.specialists import Specialist, check_model_name, describe
from pipeline.taxonomy import load_taxonomy
from pipeline.types import ModelRef
from storage.folder import FolderStore
from storage.models import Models
from tests.tiny import save_lora, save_tiny_pipeline
from workers import registry

TAXONOMY = load_taxonomy("miniature")
OTHER = ModelRef(name="other", weights="sha256:" + "9" * 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("base") / "sd")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def kept(
    store: FolderStore, folder: Path, name: str, made: str = "2026-11-23", **more: Any
) -> Specialist:
    specialist = describe(folder, name, made, **more)
    Models(store).add(specialist, folder)
    return specialist


def found(store: FolderStore, base: Path, **settings: Any) -> list[str]:
    config = ProposerConfig(model=str(base), **settings)
    return [ref.title for ref in registry.proposers_of(config, TAXONOMY, store)]


def test_the_same_weights_again_are_the_same_version(
    store: FolderStore, base: Path, tmp_path: Path
) -> None:
    folder = save_lora(base, tmp_path / "a")
    first = kept(store, folder, "mine", "2026-11-01")
    kept(store, folder, "mine", "2026-11-02")
    assert Models(store).versions("mine") == [first]
    other = kept(store, save_lora(base, tmp_path / "b", seed=1), "mine", "2026-11-03")
    assert Models(store).versions("mine") == [other, first]


def test_a_name_means_its_newest_version_unless_one_is_named(
    store: FolderStore, base: Path, tmp_path: Path
) -> None:
    old = kept(store, save_lora(base, tmp_path / "a"), "pinch", "2026-11-01")
    new = kept(store, save_lora(base, tmp_path / "b", seed=1), "pinch", "2026-11-02")
    all_base = dict.fromkeys(TAXONOMY.categories, "base")
    for reference, specialist in (("pinch", new), (old.reference, old)):
        titles = found(store, base, route="specialist", specialists=all_base | {"pinch": reference})
        assert titles == [str(base), f"{base} + {specialist.reference}"]


def test_under_the_base_route_no_specialist_is_looked_for(store: FolderStore, base: Path) -> None:
    assert found(store, base) == [str(base)]


def test_one_adapter_for_two_categories_draws_once_in_the_ensemble(
    store: FolderStore, base: Path, tmp_path: Path
) -> None:
    kept(store, save_lora(base, tmp_path / "a"), "mine")
    names = dict.fromkeys(TAXONOMY.categories, "base") | {"pinch": "mine", "hook": "mine"}
    assert len(found(store, base, route="all", specialists=names)) == 2
    assert len(found(store, base, route="specialist", specialists=names)) == 3


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pich", "no specialist 'pich' for category 'pinch' (did you mean 'pinch'?): train one"),
        ("pinch@0000", "no version '0000' of the model 'pinch': there are "),
        ("a/b.safetensors", "ppv models add a/b.safetensors --name NAME"),
        ("Pinch", "model name 'Pinch': use 1 to 64"),
    ],
)
def test_a_specialist_that_is_not_there_is_one_line(
    store: FolderStore, base: Path, tmp_path: Path, name: str, complaint: str
) -> None:
    kept(store, save_lora(base, tmp_path / "a"), "pinch")
    with pytest.raises(InputError) as error:
        found(store, base, route={"pinch": 1}, specialists={"pinch": name})
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_specialist_of_another_base_is_named_so(
    store: FolderStore, base: Path, tmp_path: Path
) -> None:
    kept(store, save_lora(base, tmp_path / "a"), "pinch", base=OTHER)
    with pytest.raises(ModelError, match=r"was trained on 'other' \(sha256:9+\), and the base"):
        found(store, base, route={"pinch": 1})


def test_what_is_fetched_is_what_was_kept(store: FolderStore, base: Path, tmp_path: Path) -> None:
    folder = save_lora(base, tmp_path / "a")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state.safetensors").write_bytes(b"of a training that goes on")
    (folder / "page.html").write_text("for people")
    specialist = kept(store, folder, "mine")
    adapter = specialist.adapter("pinch")
    there = registry.folder_of(adapter, store, tmp_path / "cache")
    assert [file.name for file in there.iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert describe(there, "mine", "").weights == specialist.weights
    assert "page.html" in specialist.files and len(specialist.files) == 2


def test_weights_that_were_changed_in_the_store_are_refused(
    store: FolderStore, base: Path, tmp_path: Path
) -> None:
    specialist = kept(store, save_lora(base, tmp_path / "a"), "mine")
    key = f"models/mine/{specialist.version}/pytorch_lora_weights.safetensors"
    store.put(key, store.get(key)[:-1] + b"x")
    with pytest.raises(ModelError, match="is not the file that was kept"):
        registry.folder_of(specialist.adapter("pinch"), store, tmp_path / "cache")
    assert not (tmp_path / "cache" / "mine" / specialist.version).exists()


def test_weights_that_were_changed_together_with_their_hash_are_refused(
    store: FolderStore, base: Path, tmp_path: Path
) -> None:
    specialist = kept(store, save_lora(base, tmp_path / "a"), "mine")
    other = kept(store, save_lora(base, tmp_path / "b", seed=7), "other")
    (weights,) = specialist.files
    folder = f"models/mine/{specialist.version}"
    store.put(f"{folder}/{weights}", store.get(f"models/other/{other.version}/{weights}"))
    changed = specialist.model_copy(update={"files": other.files})
    store.put(f"{folder}/model.json", changed.model_dump_json().encode())
    with pytest.raises(ModelError, match="are not those of its name"):
        registry.folder_of(specialist.adapter("pinch"), store, tmp_path / "cache")
    assert list((tmp_path / "cache" / "mine").iterdir()) == []


def test_a_model_writes_nothing_outside_its_folder(
    store: FolderStore, base: Path, tmp_path: Path
) -> None:
    specialist = kept(store, save_lora(base, tmp_path / "a"), "mine")
    for path in ("../../../out.json", "/out.json"):
        changed = specialist.model_copy(update={"files": {path: "0" * 64} | specialist.files})
        key = f"models/mine/{specialist.version}/model.json"
        store.put(key, changed.model_dump_json().encode())
        with pytest.raises(InputError, match="key"):
            registry.folder_of(specialist.adapter("pinch"), store, tmp_path / "cache")


def test_half_a_specialist_is_none(store: FolderStore, base: Path, tmp_path: Path) -> None:
    specialist = kept(store, save_lora(base, tmp_path / "a"), "mine")
    store.delete(f"models/mine/{specialist.version}/model.json")
    assert Models(store).versions("mine") == []


@pytest.mark.parametrize("name", ["base", "", "../x", "a/b", "x" * 65, ".a"])
def test_a_name_that_cannot_be_a_key_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="model name"):
        check_model_name(name)


def test_the_six_that_ship_fit_the_base_that_ships(store: FolderStore) -> None:
    config = ProposerConfig(route="all")
    refs = registry.proposers_of(config, TAXONOMY, store)
    assert [ref.label for ref in refs] == ["base", *TAXONOMY.categories]
    for ref in refs[1:]:
        assert ref.adapter
        folder = registry.folder_of(ref.adapter, store, Path("unused"))
        assert describe(folder, ref.label, "").weights == ref.adapter.weights
        assert (folder / "pytorch_lora_weights.safetensors").stat().st_size < 1_000_000
        card = json.loads((folder / "card.json").read_text())
        assert card["base"]["weights"] == ref.weights
