"""Each form of export is read back by the library that it is for."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.types import (
    DetailedPrompt,
    ModelRef,
    Proposal,
    ProposerRef,
    Record,
    Sampler,
    Thresholds,
)
from storage.cards import CardFacts, CategoryCount, ExportFormat, render_card
from storage.export import ExportSummary, ImageDamaged, export
from storage.objects import ObjectNotFound
from tests.tiny import a_record

FORMATS: list[ExportFormat] = ["hf", "webdataset", "imagefolder"]
PROPOSER = ProposerRef(name="base", weights="sha256:" + "a" * 64)
VERIFIER = ModelRef(name="vilt", weights="sha256:" + "b" * 64)


def _png(n: int, pixels: int = 8) -> bytes:
    noise = hashlib.shake_128(str(n).encode()).digest(3 * pixels**2)
    file = io.BytesIO()
    Image.frombytes("RGB", (pixels, pixels), noise).save(file, "PNG")
    return file.getvalue()


def _record(n: int, image: bytes) -> Record:
    text = f'a hand, "手" no. {n}\nholding\ta mug | 🖐'
    prompt = DetailedPrompt(
        id=DetailedPrompt.id_of("p", "a hand holding a mug", n),
        base="a hand holding a mug",
        index=n,
        text=text,
        category=("power grasp", "test")[n % 2],  # a category may have the name of a split
        attributes={"object": "mug"},
    )
    proposal = Proposal(prompt=prompt, proposer=PROPOSER, seed=2**63 - 1 - n, sampler=Sampler())
    return a_record(proposal, 0.75, 0.1 + 0.5, image=image, run="demo")


class Run:
    """Records with their pictures; `image_of` is what a store would do."""

    def __init__(self, size: int, pixels: int = 8) -> None:
        pictures = [_png(n, pixels) for n in range(size)]
        self.records = [_record(n, png) for n, png in enumerate(pictures)]
        self.images = {r.id: png for r, png in zip(self.records, pictures, strict=True)}

    def image_of(self, record: Record) -> bytes:
        return self.images[record.id]

    def export(self, to: Path, format: ExportFormat, **options: Any) -> ExportSummary:
        return export(self.records, self.image_of, to, format, _facts(), **options)


def _facts(**changes: Any) -> CardFacts:
    facts = CardFacts(
        run="demo",
        version="0.1.0",
        created="2026-11-23",
        accepted=7,
        rejected=3,
        failed=1,
        categories=(
            CategoryCount(category="power grasp", accepted=4, rejected=1),
            CategoryCount(category="a | b", accepted=3, rejected=2),
            CategoryCount(category="never judged", accepted=0, rejected=0),
        ),
        prompter="grammar",
        proposers=(PROPOSER,),
        verifier=VERIFIER,
        thresholds=Thresholds(fidelity=0.5, alignment=0.55),
    )
    return facts.model_copy(update=changes)


def _read(folder: Path, code: str, caches: Path) -> Any:
    """What a reader's own process makes of the folder: `code` prints JSON, given `folder`."""
    prelude = (
        "import hashlib, io, json, sys\n"
        "folder = sys.argv[1]\n"
        "def sha(image):\n"
        "    return hashlib.sha256(image).hexdigest()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, folder],
        env={
            **os.environ,
            "HF_HOME": str(caches),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOAD_HF = """
from datasets import Image, load_dataset
splits = load_dataset(folder)
assert list(splits) == ["train"], splits
data = splits["train"]
assert isinstance(data.features["image"], Image), data.features
assert all(row["image"].size == (8, 8) for row in data)
rows = data.cast_column("image", Image(decode=False))
print(json.dumps([{**row, "image": sha(row["image"]["bytes"])} for row in rows]))
"""
LOAD_EMPTY_HF = """
from datasets import load_dataset
data = load_dataset(folder, split="train", streaming=True)
print(json.dumps([list(data), list(data.features)]))
"""
LOAD_IMAGEFOLDER = """
from datasets import Image, load_dataset
splits = load_dataset("imagefolder", data_dir=folder)
assert list(splits) == ["train"], splits
assert [row["image"].size for row in splits["train"]] == [(8, 8)] * len(splits["train"])
by_itself = load_dataset(folder)["train"]
assert by_itself.features == splits["train"].features and len(by_itself) == len(splits["train"])
rows = splits["train"].cast_column("image", Image(decode=False))
def sha_of(path):
    return sha(open(path, "rb").read())
print(json.dumps([{**row, "image": sha_of(row["image"]["path"])} for row in rows]))
"""
LOAD_WEBDATASET = """
import glob
import webdataset
shards = sorted(glob.glob(folder + "/train-*.tar"))
pictures = [s["png"].size for s in webdataset.WebDataset(shards, shardshuffle=False).decode("pil")]
assert pictures == [(8, 8)] * len(pictures)
def text_of(s):
    return {"id": s["__key__"], "prompt": s["txt"].decode(), "record": s["json"].decode()}
raw = webdataset.WebDataset(shards, shardshuffle=False)
samples = [{**text_of(s), "image": sha(s["png"])} for s in raw]
from datasets import load_dataset
assert len(load_dataset(folder)["train"]) == len(samples)
print(json.dumps({"shards": len(shards), "samples": samples}))
"""


@pytest.mark.parametrize(("format", "load"), [("hf", LOAD_HF), ("imagefolder", LOAD_IMAGEFOLDER)])
def test_datasets_reads_every_picture_and_column_back(
    format: ExportFormat, load: str, tmp_path: Path
) -> None:
    run = Run(7)
    summary = run.export(tmp_path / "dataset", format)
    rows = {row["id"]: row for row in _read(tmp_path / "dataset", load, tmp_path / "hf")}
    assert summary.images == len(rows) == 7
    for record in run.records:
        row = rows[record.id]
        provenance = row.pop("provenance")
        assert row == {
            "image": record.image_sha256,
            "id": record.id,
            "prompt": record.proposal.prompt.text,
            "base_prompt": "a hand holding a mug",
            "category": record.proposal.prompt.category,
            "fidelity": record.verdict.fidelity,
            "alignment": record.verdict.alignment,
            "seed": record.proposal.seed,
            "proposer": PROPOSER.name,
            "proposer_weights": PROPOSER.weights,
            "verifier": VERIFIER.name,
        }
        assert Record.model_validate_json(provenance) == record


def test_webdataset_reads_every_picture_prompt_and_record_back(tmp_path: Path) -> None:
    run = Run(7)
    summary = run.export(tmp_path / "dataset", "webdataset", shard_bytes=3000)
    read = _read(tmp_path / "dataset", LOAD_WEBDATASET, tmp_path / "hf")
    assert read["shards"] == summary.files > 1
    assert [sample["id"] for sample in read["samples"]] == [record.id for record in run.records]
    for sample, record in zip(read["samples"], run.records, strict=True):
        assert sample["image"] == record.image_sha256
        assert sample["prompt"] == record.proposal.prompt.text
        assert Record.model_validate_json(sample["record"]) == record


def test_large_exports_are_cut_into_shards_that_load_as_one(tmp_path: Path) -> None:
    run = Run(250)
    summary = run.export(tmp_path / "dataset", "hf", shard_bytes=10_000)
    assert summary.files == 3  # 100 rows, 100, and 50
    rows = _read(tmp_path / "dataset", LOAD_HF, tmp_path / "hf")
    assert [row["id"] for row in rows] == [record.id for record in run.records]


def test_nothing_accepted_gives_an_empty_dataset_with_its_columns(tmp_path: Path) -> None:
    summary = Run(0).export(tmp_path / "dataset", "hf")
    assert summary.images == 0
    rows, columns = _read(tmp_path / "dataset", LOAD_EMPTY_HF, tmp_path / "hf")
    assert rows == []
    assert {"image", "prompt", "category", "provenance"} < set(columns)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_accepted_is_said_on_the_card(format: ExportFormat, tmp_path: Path) -> None:
    Run(0).export(tmp_path / "dataset", format)
    assert "This dataset is empty" in (tmp_path / "dataset/README.md").read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_sums_name_every_file_and_the_same_records_make_the_same_bytes(
    format: ExportFormat, tmp_path: Path
) -> None:
    run = Run(5)
    for name in ("one", "two"):
        run.export(tmp_path / name, format)
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "SHA256SUMS").read_bytes() == (two / "SHA256SUMS").read_bytes()
    lines = (one / "SHA256SUMS").read_text().splitlines()
    sums = {name: expected for expected, name in (line.split("  ") for line in lines)}
    files = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    assert files == set(sums) | {"SHA256SUMS", ".ppv-export.json"}
    for name, expected in sums.items():
        assert hashlib.sha256((one / name).read_bytes()).hexdigest() == expected


# Whole or not at all


@pytest.mark.parametrize("format", FORMATS)
def test_an_earlier_export_is_replaced_whatever_its_format(
    format: ExportFormat, tmp_path: Path
) -> None:
    to = tmp_path / "dataset"
    Run(3).export(to, "imagefolder")
    Run(2).export(to, format)
    assert json.loads((to / ".ppv-export.json").read_text())["images"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_that_is_not_the_judged_one_stops_the_export_and_leaves_the_former(
    format: ExportFormat, tmp_path: Path
) -> None:
    to = tmp_path / "dataset"
    run = Run(5)
    run.export(to, format)
    before = (to / "SHA256SUMS").read_bytes()
    damaged = run.records[3].id
    run.images[damaged] = _png(99)
    with pytest.raises(ImageDamaged, match=damaged):
        run.export(to, format)
    assert (to / "SHA256SUMS").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_picture_that_is_gone_names_its_proposal(tmp_path: Path) -> None:
    def gone(record: Record) -> bytes:
        raise ObjectNotFound("no object")

    run = Run(1)
    with pytest.raises(ImageDamaged, match=run.records[0].id):
        export(run.records, gone, tmp_path / "dataset", "hf", _facts())


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Record]:
        yield run.records[0]
        raise KeyboardInterrupt

    run = Run(2)
    with pytest.raises(KeyboardInterrupt):
        export(interrupted(), run.image_of, tmp_path / "dataset", "imagefolder", _facts())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_does_not_get_into_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".dataset.partial"
    (left / "images").mkdir(parents=True)
    (left / "images/old.png").write_bytes(b"old")
    Run(1).export(tmp_path / "dataset", "imagefolder")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    assert len(list((tmp_path / "dataset/images").iterdir())) == 1


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path) -> None:
    def slow() -> Iterator[Record]:
        yield run.records[0]
        with pytest.raises(InputError, match="another export"):
            run.export(tmp_path / "dataset", "imagefolder")
        yield run.records[1]

    run = Run(2)
    export(slow(), run.image_of, tmp_path / "dataset", "imagefolder", _facts())
    assert len(list((tmp_path / "dataset/images").iterdir())) == 2


def test_a_folder_that_no_export_made_is_refused_untouched(tmp_path: Path) -> None:
    to = tmp_path / "dataset"
    to.mkdir()
    (to / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no export made"):
        Run(1).export(to, "hf")
    assert (to / "thesis.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [to]


def test_an_export_that_someone_added_files_to_is_refused_untouched(tmp_path: Path) -> None:
    to = tmp_path / "dataset"
    Run(1).export(to, "imagefolder")
    (to / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="added"):
        Run(1).export(to, "imagefolder")
    assert (to / "notes.txt").read_text() == "mine"


def test_a_file_is_refused_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        Run(1).export(tmp_path / "file", "hf")
    (tmp_path / "100% empty").mkdir()
    assert Run(1).export(tmp_path / "100% empty", "webdataset").files == 1


@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_the_number_of_records(
    format: ExportFormat, tmp_path: Path
) -> None:
    record, image = _record(0, png := _png(0, pixels=64)), png

    def peak(size: int) -> int:
        records = (record.model_copy(update={"id": f"{n:032x}"}) for n in range(size))
        tracemalloc.start()
        export(records, lambda _: image, tmp_path / str(size), format, _facts(), 2**20)
        peaked = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peaked

    peak(1)  # imports the libraries
    assert peak(800) < peak(200) * 1.2 + 2**20


# The card


def test_the_card_says_how_the_dataset_was_made() -> None:
    card = render_card(_facts(), "hf", images=7)
    for said in (
        "| Proposals rejected | 3 |",
        "| power grasp | 4 | 1 | 80.0% |",
        r"| a \| b | 3 | 2 | 60.0% |",
        "| never judged | 0 | 0 | - |",
        PROPOSER.weights,
        VERIFIER.weights,
        "grammar",
        "alignment at least 0.55",
        "2312.15247",
        "estimates",
        "No license was given",
    ):
        assert said in card, said


@pytest.mark.parametrize("format", FORMATS)
def test_the_cards_head_is_yaml_whatever_the_title(format: ExportFormat) -> None:
    yaml = pytest.importorskip("yaml")
    title = 'Hands: "best" \\ of #1\n---'
    card = render_card(_facts(title=title, license="cc-by-4.0"), format, images=70_000)
    head = yaml.safe_load(card.split("\n---\n")[0])
    assert head["pretty_name"] == title
    assert head["license"] == "cc-by-4.0"
    assert head["size_categories"] == ["10K<n<100K"]
    assert "license_name" not in head
    assert "No license was given" not in card


def test_importing_the_export_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'datasets', 'pyarrow', 'webdataset', 'jinja2', 'PIL'}"
    code = f"import sys, storage.export; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
