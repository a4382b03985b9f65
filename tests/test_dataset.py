"""Frozen datasets, on a real S3 server: what is chosen, kept, found damaged, and pushed."""

import hashlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.types import (
    BasePrompt,
    DetailedPrompt,
    PromptBatch,
    ProposalBatch,
    ProposerRef,
    Record,
    Sampler,
)
from storage.cards import render_dataset_card
from storage.datasets import Choice, Datasets, Manifest, changes, copy_to, entries_of, verify
from storage.export import ImageDamaged
from storage.freezing import freeze
from storage.likeness import NEAR, Gallery, fingerprint
from storage.objects import ObjectStore, StoreError
from storage.runs import RunFolder
from storage.s3 import S3Config, S3Store
from tests.hub import Hub, serving
from tests.place import PPV
from tests.tiny import a_record, a_run

PROPOSER = ProposerRef(name="tiny", weights="sha256:" + "0" * 64)
ALL = Choice(test_share=0.0)
CATEGORIES = ("pinch", "power", "hook")


def picture(name: str, pixels: int = 64) -> bytes:
    """A blurred pattern that no other name has, and whose likes are like it."""
    noise = hashlib.shake_128(name.encode()).digest(3 * 8 * 8)
    return _png(Image.frombytes("RGB", (8, 8), noise).resize((pixels, pixels)))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Shelf:
    """Runs in a store, made without drawing or judging."""

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        self.store, self.scratch = store, scratch
        self.images: dict[str, bytes] = {}

    def add_run(
        self,
        name: str,
        bases: Sequence[str],
        each: int = 2,
        categories: Sequence[str] = CATEGORIES,
        rejected: Sequence[int] = (),
        pictures: Sequence[bytes] = (),
        thing: str = "mug",
    ) -> list[Record]:
        """A finished run with so many pictures of each base prompt; gives its records.

        The category goes by the base prompt's place. rejected: the seeds of those that were.
        """
        folder = RunFolder(self.store, name)
        run = a_run(base_prompts=len(bases)).model_copy(update={"name": name})
        folder.write(run)
        folder.write_input(PromptBatch(run=name, bases=tuple(BasePrompt(text=b) for b in bases)))
        prompts = [
            DetailedPrompt(
                id=DetailedPrompt.id_of("p", base, 0),
                base=base,
                index=0,
                text=f"{base}, in detail",
                category=categories[place % len(categories)],
                attributes={"object": thing},
            )
            for place, base in enumerate(bases)
        ]
        batch = ProposalBatch.of(
            name, PROPOSER, Sampler(), [(p, seed) for p in prompts for seed in range(each)]
        )
        records = []
        for place, proposal in enumerate(batch.proposals):
            image = pictures[place] if pictures else picture(proposal.id)
            score = 0.1 if proposal.seed in rejected else 0.9
            records.append(a_record(proposal, score, 0.8, image=image, run=name))
            folder.write_image(proposal.id, image)
            self.images[proposal.id] = image
        folder.write_records(batch, records)
        return records

    def freeze(self, *runs: str, choice: Choice = ALL, **options: Any) -> Manifest:
        manifest, _ = freeze(self.store, "hands", runs, choice, self.scratch, **options)
        return manifest

    @property
    def datasets(self) -> Datasets:
        return Datasets(self.store)

    def ids(self, manifest: Manifest) -> set[str]:
        return {entry.id for entry in self.datasets.entries(manifest)}

    def key(self, manifest: Manifest, path: str) -> str:
        return self.datasets.key(manifest.name, manifest.version, path)


@pytest.fixture
def shelf(s3_server: S3Config, tmp_path: Path) -> Shelf:
    store = S3Store(s3_server, bucket=f"datasets-{secrets.token_hex(6)}")
    return Shelf(store, tmp_path / "scratch")


def bases(count: int, word: str = "mug") -> list[str]:
    return [f"a hand holding {word} {n}" for n in range(count)]


# What is in it


def test_every_accepted_proposal_is_in_it_once_with_its_picture_and_record(shelf: Shelf) -> None:
    one = shelf.add_run("one", bases(3), each=3, rejected=[1])
    two = shelf.add_run("two", bases(4)[2:], each=3, categories=CATEGORIES[2:], rejected=[1])
    manifest = shelf.freeze("one", "two", choice=Choice())
    examples = {
        example.id: example
        for split in ("train", "test")
        for example in shelf.datasets.examples(manifest, split)  # type: ignore[arg-type]
    }
    accepted = {r.id: r for r in (*two, *one) if r.verdict.accepted}  # of both, that of "one"
    assert len(examples) == sum(manifest.pictures.values()) == len(accepted) == 8
    assert manifest.left_out.repeated == 2
    for id, record in accepted.items():
        assert examples[id].record == record
        assert examples[id].image == shelf.images[id]
        assert examples[id].prompt == record.proposal.prompt.text
        assert examples[id].base_prompt == record.proposal.prompt.base
    for entry in shelf.datasets.entries(manifest):
        assert entry.image_sha256 == accepted[entry.id].image_sha256


def test_the_same_input_is_the_same_version_and_changes_nothing(shelf: Shelf) -> None:
    shelf.add_run("one", bases(3))
    shelf.add_run("two", bases(3, "key"))
    first, new = freeze(shelf.store, "hands", ["one", "two"], ALL, shelf.scratch)
    assert new
    shelf.store.put(shelf.key(first, "README.md"), b"seen")
    second, new = freeze(shelf.store, "hands", ["two", "one", "two"], ALL, shelf.scratch)
    assert (second, new) == (first, False)
    assert shelf.store.get(shelf.key(first, "README.md")) == b"seen"
    other = shelf.freeze("one", "two", license="cc0-1.0")
    assert other.version != first.version
    assert not list(shelf.scratch.iterdir())


def test_large_datasets_are_cut_into_shards_with_a_list_each(shelf: Shelf) -> None:
    shelf.add_run("one", bases(125))
    choice = ALL.model_copy(update={"near_duplicates": None})
    manifest = shelf.freeze("one", choice=choice, shard_bytes=10_000)
    shards = manifest.shards("train")
    assert [shard.pictures for shard in shards] == [100, 100, 50]
    listed = [e for file in manifest.lists("train") for e in _listed(shelf, manifest, file.path)]
    assert [e.id for e in listed] == sorted(shelf.images)
    assert [e.shard for e in listed] == [s.path for s in shards for _ in range(s.pictures)]


def test_nothing_accepted_is_said_and_nothing_frozen(shelf: Shelf) -> None:
    shelf.add_run("one", bases(2), rejected=[0, 1])
    with pytest.raises(InputError, match="none of one accepted any picture"):
        shelf.freeze("one")
    assert shelf.datasets.names() == []


LOAD = """
import hashlib, json, sys
from datasets import Image, load_dataset
splits = load_dataset(sys.argv[1])
said = {}
for name, data in splits.items():
    assert all(row["image"].size == (64, 64) for row in data)
    raw = data.cast_column("image", Image(decode=False))
    said[name] = {row["id"]: hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in raw}
print(json.dumps(said))
"""


def test_load_dataset_reads_both_splits_of_a_fetched_version(shelf: Shelf, tmp_path: Path) -> None:
    shelf.add_run("one", bases(12))
    manifest = shelf.freeze("one", choice=Choice(test_share=0.4))
    assert all(manifest.pictures.values())
    for _ in range(2):  # a copy takes the place of a copy
        copy_to(shelf.datasets, manifest, tmp_path / "copy", lambda file: None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "copy"],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    entries = list(shelf.datasets.entries(manifest))
    assert said == {
        split: {e.id: e.image_sha256 for e in entries if e.split == split}
        for split in ("train", "test")
    }
    for line in (tmp_path / "copy/SHA256SUMS").read_text().splitlines():
        expected, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / "copy" / name).read_bytes()).hexdigest() == expected


# What is chosen


def test_pictures_of_a_base_prompt_stand_on_one_side_now_and_later(shelf: Shelf) -> None:
    choice = Choice(test_share=0.3)
    shelf.add_run("one", bases(20))
    before = _sides(shelf, shelf.freeze("one", choice=choice))
    again = [base.upper().replace(" ", "  ") for base in bases(20)]  # the same words
    shelf.add_run("two", [*again, *bases(20, "key")])
    after = _sides(shelf, shelf.freeze("one", "two", choice=choice))
    assert {"train", "test"} == set(before.values())
    for base, side in before.items():
        assert after[base] == after[base.upper().replace(" ", "  ")] == side


def test_categories_are_cut_to_a_number_a_quota_or_the_smallest(shelf: Shelf) -> None:
    shelf.add_run("one", bases(6), categories=["pinch"])  # 12 pictures
    shelf.add_run("two", bases(4, "key"), categories=["power"])  # 8
    shelf.add_run("three", bases(2, "bag"), categories=["hook"])  # 4

    def counts(**choice: Any) -> list[int]:
        manifest = shelf.freeze("one", "two", "three", choice=Choice(test_share=0.0, **choice))
        found = manifest.composition.categories
        assert manifest.left_out.surplus == 24 - manifest.pictures["train"]
        return [found.get(name, {}).get("train", 0) for name in ("pinch", "power", "hook")]

    assert counts() == [12, 8, 4]
    assert counts(per_category=6) == [6, 6, 4]
    assert counts(balance=True) == [4, 4, 4]
    assert counts(balance=True, quota=9) == [3, 3, 3]
    assert sum(counts(quota=10)) == 10
    with pytest.raises(InputError, match="balanced quota of 2 has none for each of 3"):
        counts(balance=True, quota=2)


def test_a_further_run_changes_few_of_the_chosen(shelf: Shelf) -> None:
    choice = Choice(quota=30, test_share=0.0)
    shelf.add_run("one", bases(40))
    before = shelf.ids(shelf.freeze("one", choice=choice))
    shelf.add_run("two", bases(3, "key"))
    after = shelf.ids(shelf.freeze("one", "two", choice=choice))
    assert len(before) == len(after) == 30
    assert len(before - after) <= 6  # as many as the second run has
    seeded = shelf.ids(shelf.freeze("one", choice=choice.model_copy(update={"seed": 1})))
    assert seeded != before


def test_near_duplicates_of_a_category_and_object_are_left_out(shelf: Shelf) -> None:
    image = Image.open(io.BytesIO(picture("x")))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90, subsampling=0)
    again, other = _png(Image.open(jpeg)), picture("y")
    pictures = [_png(image), again, other]
    shelf.add_run("one", bases(1), each=3, categories=["pinch"], pictures=pictures)
    shelf.add_run("two", bases(1, "key"), each=1, categories=["hook"], pictures=pictures)
    shelf.add_run("three", bases(1, "bag"), each=1, categories=["pinch"], pictures=[again])
    shelf.add_run("four", bases(1, "box"), 1, ["pinch"], pictures=[again], thing="bag")

    every = ("one", "two", "three", "four")
    found = shelf.freeze(*every, choice=Choice(near_duplicates=NEAR, test_share=0.0))
    assert found.left_out.near_duplicates == 2
    assert found.composition.categories == {"hook": {"train": 1}, "pinch": {"train": 3}}
    assert found.composition.objects == {"bag": {"train": 1}, "mug": {"train": 3}}
    kept = shelf.freeze(*every, choice=Choice(near_duplicates=None, test_share=0.0))
    assert sum(kept.pictures.values()) == 6


def test_a_balance_counts_what_near_duplicates_leave(shelf: Shelf) -> None:
    same = [picture("x")] * 3
    shelf.add_run("one", bases(1), each=3, categories=["pinch"], pictures=same)
    shelf.add_run("two", bases(1, "key"), each=3, categories=["hook"])
    choice = Choice(balance=True, near_duplicates=NEAR, test_share=0.0)
    found = shelf.freeze("one", "two", choice=choice)
    assert found.composition.categories == {"hook": {"train": 1}, "pinch": {"train": 1}}


def test_likeness_tells_colours_apart_and_repeats_not() -> None:
    red = Image.new("RGB", (64, 64), "grey")
    blue = red.copy()
    red.paste((220, 40, 44), (20, 12, 44, 50))
    blue.paste((38, 86, 220), (20, 12, 44, 50))
    small = red.resize((48, 48))
    gallery = Gallery(NEAR)
    assert gallery.take(("pinch",), fingerprint(_png(red)))
    assert not gallery.take(("pinch",), fingerprint(_png(small)))
    assert gallery.take(("pinch",), fingerprint(_png(blue)))
    assert gallery.take(("hook",), fingerprint(_png(red)))
    for n in range(40):  # more than the first room
        assert gallery.take(("pinch",), fingerprint(picture(str(n))))
    assert not gallery.take(("pinch",), fingerprint(picture("39")))


# What is damaged


@pytest.mark.parametrize("choice", [ALL, ALL.model_copy(update={"near_duplicates": NEAR})])
@pytest.mark.parametrize("harm", ["gone", "altered"])
def test_a_run_whose_picture_is_gone_or_altered_makes_no_dataset(
    harm: str, choice: Choice, shelf: Shelf
) -> None:
    record = shelf.add_run("one", bases(3))[4]
    key = f"runs/one/images/{record.id}.png"
    shelf.store.delete(key) if harm == "gone" else shelf.store.put(key, picture("other"))
    with pytest.raises(ImageDamaged, match=rf"{record.id} of run 'one'"):
        shelf.freeze("one", choice=choice)
    assert shelf.datasets.versions("hands") == []


def test_what_a_cut_off_freezing_wrote_is_taken_up(shelf: Shelf) -> None:
    shelf.add_run("one", bases(125))
    choice = ALL.model_copy(update={"near_duplicates": None})
    options: dict[str, Any] = {"choice": choice, "shard_bytes": 10_000}
    whole = shelf.freeze("one", **options)
    for file in (*whole.files, "manifest.json"):
        shelf.store.delete(shelf.key(whole, getattr(file, "path", "manifest.json")))

    store = shelf.store
    shelf.store = _Failing(store, puts=5)  # type: ignore[assignment]
    with pytest.raises(StoreError, match="away"):
        shelf.freeze("one", **options)
    assert Datasets(store).versions("hands") == []
    shard = shelf.key(whole, "train-00001.parquet")
    store.put(shard, store.get(shelf.key(whole, "train-00000.parquet")))  # altered meanwhile
    shelf.store = watched = _Failing(store, puts=99)  # type: ignore[assignment]
    taken = shelf.freeze("one", **options)
    assert taken.files == whole.files
    assert watched.read_images == 150 + 24  # those of the last two shards, and of the strip


def test_verify_names_every_missing_and_altered_object_and_picture(shelf: Shelf) -> None:
    shelf.add_run("one", bases(150))
    choice = ALL.model_copy(update={"near_duplicates": None})
    manifest = shelf.freeze("one", choice=choice, shard_bytes=10_000)
    assert list(verify(shelf.datasets, manifest)) == []

    def path(name: str) -> str:
        return shelf.key(manifest, name)

    first, last = path("train-00000.parquet"), path("train-00002.parquet")
    victim = _listed(shelf, manifest, "train-00000.jsonl.gz")[7].id
    data = bytearray(shelf.store.get(first))
    data[data.index(shelf.images[victim]) + 60] ^= 1
    shelf.store.put(first, bytes(data))
    shelf.store.delete(path("train-00001.parquet"))
    shelf.store.put(last, shelf.store.get(last)[:-20])
    shelf.store.put(path("README.md"), b"another card")
    shelf.store.delete(path("strip.png"))

    flaws = list(verify(shelf.datasets, manifest))
    problems = {(f.file, f.id): f.problem for f in flaws}
    assert "altered" in problems.pop(("train-00000.parquet", None))
    assert problems.pop(("train-00000.parquet", victim))
    assert problems.pop(("train-00001.parquet", None)) == "is missing"
    assert problems.pop(("train-00002.parquet", None))
    assert "altered" in problems.pop(("README.md", None))
    assert problems.pop(("strip.png", None)) == "is missing"
    assert problems == {}

    with pytest.raises(InputError, match=r"train-00000.parquet is not what was frozen"):
        list(shelf.datasets.examples(manifest, "train"))
    repaired = shelf.freeze("one", choice=choice, shard_bytes=10_000, again=True)
    assert repaired.version == manifest.version
    assert list(verify(shelf.datasets, repaired)) == []


# What is said of it


def test_a_difference_names_what_was_added_removed_and_changed(shelf: Shelf) -> None:
    one = shelf.add_run("one", bases(4))
    old = shelf.freeze("one")
    two = shelf.add_run("two", [*bases(4)[1:], "a key"])
    taken = RunFolder(shelf.store, "two")
    moved = [r.model_copy(update={"unread_tokens": 3}) for r in two[:2]] + two[2:]
    batch = next(taken.record_batches())
    lines = "".join(f"{r.model_dump_json()}\n" for r in moved)
    shelf.store.put(f"runs/two/records/{batch}.jsonl", lines.encode())
    new = shelf.freeze("two")

    found = changes(shelf.datasets.entries(old), shelf.datasets.entries(new))
    by_kind: dict[str, set[str]] = {"added": set(), "removed": set(), "changed": set()}
    for change in found:
        by_kind[change.kind].add(change.id)
    ids = {r.id for r in one}
    assert by_kind["removed"] == ids - {r.id for r in two} and len(by_kind["removed"]) == 2
    assert by_kind["added"] == {r.id for r in two} - ids and len(by_kind["added"]) == 2
    assert by_kind["changed"] == ids & {r.id for r in two}  # all of another run


def test_the_card_says_what_is_in_it_and_how_it_was_made(shelf: Shelf) -> None:
    yaml = pytest.importorskip("yaml")
    shelf.add_run("one", bases(12), each=3, rejected=[1])
    manifest = shelf.freeze("one", choice=Choice(test_share=0.3, quota=20), license="cc-by-4.0")
    card = shelf.store.get(shelf.key(manifest, "README.md")).decode()
    assert card == render_dataset_card(manifest)
    head = yaml.safe_load(card.split("\n---\n")[0])
    assert head["license"] == "cc-by-4.0"
    assert head["configs"][0]["data_files"] == [
        {"split": "train", "path": "train-*.parquet"},
        {"split": "test", "path": "test-*.parquet"},
    ]
    for said in (
        f"version `{manifest.version}`",
        "24 of 36 proposals",
        "| Paid to language models | $0.00 |",
        "| mug | ",
        "At most 20 in all",
        "4 accepted pictures are beyond that",
        "30% of them",
        "| Prompter | grammar | |",
        "| Proposer | tiny |",
        "fidelity at least 0.5, alignment at least 0.5",
        "| one | 2026-11-23 | 24 | 12 | 0 | ",
        "| hook | 8 | 4 | 66.7% |",
        "![Pictures of each category](strip.png)",
        f"ppv dataset verify {manifest.reference}",
        "Known limits",
    ):
        assert said in card, said
    assert "what it rejected" not in card
    strip = Image.open(io.BytesIO(shelf.store.get(shelf.key(manifest, "strip.png"))))
    assert strip.height > 3 * 96


def test_an_unverified_dataset_has_what_was_rejected_and_says_so(shelf: Shelf) -> None:
    records = shelf.add_run("one", bases(4), each=3, rejected=[1, 2])
    manifest = shelf.freeze("one", choice=Choice(test_share=0.0, verdicts="any"))
    assert shelf.ids(manifest) == {record.id for record in records}
    assert manifest.version != shelf.freeze("one").version
    card = shelf.store.get(shelf.key(manifest, "README.md")).decode()
    assert "what it rejected is here, too" in card and "Whatever the verdict" in card
    assert "reach both thresholds" not in card and "accepted by a verifier that" not in card


def test_names_that_are_not_there_are_answered_with_the_nearest(shelf: Shelf) -> None:
    shelf.add_run("harvest", bases(2))
    with pytest.raises(InputError, match="did you mean 'harvest'"):
        shelf.freeze("harvets")
    with pytest.raises(InputError, match="there is none"):
        shelf.datasets.find("hands")
    version = shelf.freeze("harvest").version
    with pytest.raises(InputError, match="did you mean 'hands'"):
        shelf.datasets.find("hnads@1")
    with pytest.raises(InputError, match=f"no version 'x' of 'hands'.*{version}"):
        shelf.datasets.find("hands@x")
    with pytest.raises(InputError, match="dataset name 'A/b'"):
        shelf.datasets.find("A/b")
    assert shelf.datasets.find(f"hands@{version[:5]}").version == version


# How large it may be


def test_memory_does_not_grow_with_the_number_of_records() -> None:
    def peak_mb(records: int) -> float:
        code = (
            "import json; from bench.dataset import measure; "
            f"print(json.dumps(measure({records}, False, 2**22)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["pictures"] == records
        return float(said["peak_mb"])

    assert peak_mb(20_000) < peak_mb(2_000) + 25  # their pictures and records are 160 MB


# The command line and the hub


class Shop:
    """A user's folder whose store is the shelf's."""

    def __init__(self, shelf: Shelf, config: S3Config, folder: Path) -> None:
        assert isinstance(shelf.store, S3Store)
        bucket = shelf.store.address.removeprefix("s3://").partition("/")[0]
        self.folder = folder
        folder.mkdir()
        self.environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PPV_STORE_URL": f"s3://{bucket}",
            "PPV_S3__ENDPOINT": config.endpoint,
            "PPV_S3__ACCESS_KEY": config.access_key,
            "PPV_S3__SECRET_KEY": config.secret_key.get_secret_value(),
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # the stand-in speaks LFS
        }
        self.environment.pop("HF_TOKEN", None)

    def dataset(self, *command: str, code: int = 0, **environment: str) -> tuple[str, str]:
        done = subprocess.run(
            [PPV, "dataset", *command],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr


@pytest.fixture
def shop(shelf: Shelf, s3_server: S3Config, tmp_path: Path) -> Shop:
    return Shop(shelf, s3_server, tmp_path / "shop")


def test_the_commands_build_list_compare_and_verify(shelf: Shelf, shop: Shop) -> None:
    shelf.add_run("one", bases(12))
    shelf.add_run("two", bases(2, "key"))
    built = ("build", "hands", "--runs", "one", "--split", "0.3")
    first = json.loads(shop.dataset(*built, "--json")[0])
    assert first["new"] and sum(first["pictures"].values()) == 24
    out, said = shop.dataset(*built)
    assert out.strip() == f"dataset  {first['dataset']}" and "there already" in said
    second = json.loads(shop.dataset(*built, "--runs", "two", "--balance", "--json")[0])

    listed = json.loads(shop.dataset("list", "--json")[0])
    assert {each["dataset"] for each in listed} == {first["dataset"], second["dataset"]}
    told = json.loads(shop.dataset("diff", first["dataset"], second["dataset"], "--json")[0])
    assert told["added"]["count"] - told["removed"]["count"] == (
        sum(second["pictures"].values()) - 24
    )
    assert shop.dataset("diff", first["dataset"], second["dataset"])[0].count("@") == 2

    assert "as it was frozen" in shop.dataset("verify", first["dataset"])[0]
    name, _, version = first["dataset"].partition("@")
    shelf.store.delete(f"datasets/{name}/{version}/train-00000.parquet")
    out, _ = shop.dataset("verify", first["dataset"], "--json", code=1)
    assert json.loads(out)["flaws"] == [
        {"file": "train-00000.parquet", "problem": "is missing", "id": None}
    ]
    to = str(shop.folder / "copy")
    _, said = shop.dataset("fetch", first["dataset"], "--to", to, code=2)
    assert "train-00000.parquet is missing" in said and said.count("\n") == 1
    assert not Path(to).exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("build", "hands", "--runs", "won"), "did you mean 'one'?"),
        (("build", "Hands", "--runs", "one"), "dataset name 'Hands'"),
        (("build", "hands", "--runs", "one", "--quota", "3", "--per-category", "3"), "one of them"),
        (("verify", "hands"), "no dataset 'hands'"),
    ],
)
def test_a_wrong_call_is_one_line(
    command: tuple[str, ...], said: str, shelf: Shelf, shop: Shop
) -> None:
    shelf.add_run("one", bases(1))
    _, error = shop.dataset(*command, code=2)
    assert said in error and error.count("\n") == 1


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub(token=f"hf_{secrets.token_hex(16)}")) as hub:
        yield hub


def test_a_push_puts_a_version_on_the_hub_and_takes_the_former_away(
    shelf: Shelf, shop: Shop, hub: Hub
) -> None:
    shelf.add_run("one", bases(125))
    choice = Choice(near_duplicates=None, test_share=0.3)
    large = shelf.freeze("one", choice=choice, shard_bytes=10_000)
    small = shelf.freeze("one", choice=choice.model_copy(update={"quota": 10, "test_share": 0.0}))
    push = ("push", "--repo", "me/hands", "--private")
    access = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token}

    out, error = shop.dataset(*push, large.reference, **access)
    assert f"{large.reference} is at {hub.url}/datasets/me/hands" in out
    assert hub.token not in out + error
    assert hub.private == {"me/hands": True}
    for file in large.files:
        assert hub.files["me/hands"][file.path] == shelf.datasets.fetch(large, file)
    uploads = hub.uploads
    shop.dataset(*push, large.reference, **access)
    assert hub.uploads == uploads  # the hub has it all

    hub.files["me/hands"]["NOTES.md"] = b"mine"
    shop.dataset(*push, small.reference, **access)
    left = {".gitattributes", "NOTES.md", "manifest.json", *(file.path for file in small.files)}
    assert set(hub.files["me/hands"]) == left
    assert set(hub.tags["me/hands"]) == {large.version, small.version}


def test_a_push_that_the_hub_refuses_or_nobody_answers_is_one_line(
    shelf: Shelf, shop: Shop, hub: Hub
) -> None:
    shelf.add_run("one", bases(1))
    reference = shelf.freeze("one").reference
    push = ("push", reference, "--repo", "me/hands")
    _, error = shop.dataset(*push, code=2, HF_ENDPOINT=hub.url)
    assert "set HF_TOKEN" in error and error.count("\n") == 1
    _, error = shop.dataset(*push, code=2, HF_ENDPOINT=hub.url, HF_TOKEN="hf_wrong")
    assert "set HF_TOKEN" in error and "hf_wrong" not in error and error.count("\n") == 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    _, error = shop.dataset(*push, code=3, HF_ENDPOINT=nobody, HF_TOKEN=hub.token)
    assert nobody in error and error.count("\n") == 1
    wrong = ("push", reference, "--repo", "hands")
    _, error = shop.dataset(*wrong, code=2, HF_ENDPOINT=nobody, HF_TOKEN=hub.token)
    assert "write USER/NAME" in error


class _Failing:
    """A store that goes away after so many puts, and counts the pictures read from it."""

    def __init__(self, store: ObjectStore, puts: int) -> None:
        self._store, self._puts = store, puts
        self.read_images = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes) -> None:
        if not self._puts:
            raise StoreError("store away")
        self._puts -= 1
        self._store.put(key, data)

    def get(self, key: str) -> bytes:
        self.read_images += "/images/" in key
        return self._store.get(key)


def _listed(shelf: Shelf, manifest: Manifest, path: str) -> list[Any]:
    return entries_of(shelf.store.get(shelf.key(manifest, path)))


def _sides(shelf: Shelf, manifest: Manifest) -> dict[str, str]:
    """The split of each base prompt; fails if one is in both."""
    sides: dict[str, str] = {}
    for split in ("train", "test"):
        for example in shelf.datasets.examples(manifest, split):  # type: ignore[arg-type]
            assert sides.setdefault(example.base_prompt, split) == split
    return sides
