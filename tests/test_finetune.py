"""Fine-tuning on tiny random pipelines: what a batch holds, going on, bad datasets, the command."""

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.models import fingerprint
from pipeline.taxonomy import load_taxonomy
from pipeline.training import examples, finetune
from pipeline.training.bases import load_pipeline
from pipeline.training.buckets import BucketSettings, nearest_size
from pipeline.training.captioned import Captioned, open_dataset
from pipeline.training.card import Trained, read_card
from pipeline.training.examples import AT_ONCE, Examples, encode_examples
from pipeline.training.finetune import train
from pipeline.training.finetune_plan import FinetuneConfig, FinetunePlan, plan_finetuning
from pipeline.training.plans import configured
from pipeline.training.tables import Table
from pipeline.types import (
    BasePrompt,
    DetailedPrompt,
    Expansion,
    ModelRef,
    PromptBatch,
    Proposal,
    ProposalBatch,
    Record,
    Sampler,
    Thresholds,
)
from storage.cards import CardFacts, ExportFormat
from storage.datasets import Choice
from storage.export import export
from storage.folder import FolderStore
from storage.freezing import freeze
from storage.runs import RunFolder
from tests.tiny import a_record, a_run
from tests.training import SAMPLER, Onlooker, Stopped, equal, noise, weights
from workers import registry
from workers.cli.train import train as train_group
from workers.settings import settings

RUN = a_run(base_prompts=1)
SQUARE, WIDE, TALL = (32, 32), (64, 16), (16, 64)
FAST: dict[str, Any] = {
    "validation_images": 1,
    "lora.rank": 2,
    "loop.steps": 5,
    "loop.batch_size": 2,
    "loop.learning_rate": 1e-2,
    "loop.checkpoint_every": 2,
    "loop.validate_every": 100,
    "buckets.step_px": 16,
    "buckets.shortest_px": 16,
}


def png(seed: int, size: tuple[int, int] = SQUARE) -> bytes:
    noise(seed, size).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def accepted(images: list[bytes], run: Run = RUN) -> list[Record]:
    """A record of each image, "a hand 0" and so on."""
    prompts = (
        DetailedPrompt(
            id=DetailedPrompt.id_of("p", "a hand", n),
            base="a hand",
            index=n,
            text=f"a hand {n}",
            category="pinch",
        )
        for n in range(len(images))
    )
    return [
        a_record(
            Proposal(prompt=prompt, proposer=run.proposers[0], seed=1, sampler=Sampler()),
            0.9,
            0.9,
            image=image,
            run=run.name,
        )
        for prompt, image in zip(prompts, images, strict=True)
    ]


def exported(to: Path, images: list[bytes], form: ExportFormat = "hf") -> Path:
    """A dataset as `ppv export` writes it."""
    records = accepted(images)
    facts = CardFacts(
        run=RUN.name, version="0.1.0", created="2026-11-24", accepted=len(images), rejected=0,
        failed=0, categories=(), prompter="grammar", proposers=RUN.proposers,
        verifier=RUN.verifier_ref, thresholds=Thresholds(fidelity=0.5, alignment=0.5),
    )  # fmt: skip
    by_id = {record.id: image for record, image in zip(records, images, strict=True)}
    export(records, lambda record: by_id[record.id], to, form, facts)
    return to


class Academy:
    """A folder with a dataset of two shapes, in which pipelines are fine-tuned."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        shapes = [SQUARE] * 4 + [WIDE] * 3
        self.dataset = exported(folder / "new", [png(n, s) for n, s in enumerate(shapes)])
        self.replay = exported(folder / "old", [png(100 + n) for n in range(3)])

    def plan(self, base: ModelRef, *, replay: bool = False, **settings: Any) -> FinetunePlan:
        config = configured(FinetuneConfig, None, FAST | settings, SAMPLER)
        old = open_dataset(self.replay) if replay else None
        return plan_finetuning(open_dataset(self.dataset), base, config, old)

    def train(
        self, base: ModelRef, to: str = "out", stop_after: int | None = None, **settings: Any
    ) -> Trained:
        plan, onlooker = self.plan(base, **settings), Onlooker(stop_after)
        return train(plan, self.folder / to, self.cache, onlooker, cpu=True)

    def encoded(self, base: ModelRef, pictures: list[Captioned], name: str = "own") -> Examples:
        pipe = load_pipeline(base, torch.float32)
        sizes = (SQUARE, WIDE, TALL)
        return encode_examples(pipe, lambda: pictures, sizes, self.cache / name, keep_text=True)


@pytest.fixture
def academy(tmp_path: Path) -> Academy:
    return Academy(tmp_path)


def captioned(count: int, size: tuple[int, int] = SQUARE) -> list[Captioned]:
    def read(number: int) -> Callable[[], Image.Image]:
        return lambda: noise(number, size)

    return [Captioned(read(number), f"hand {number}") for number in range(count)]


# Buckets


def test_buckets_have_nearly_the_area_of_the_square() -> None:
    sizes = BucketSettings().sizes(1024)
    assert (1024, 1024) in sizes and (832, 1216) in sizes and (1216, 832) in sizes
    assert all(side % 64 == 0 for size in sizes for side in size)
    assert all(0.9 <= width * height / 1024**2 <= 1 for width, height in sizes)
    assert min(min(size) for size in sizes) == 512 and max(max(size) for size in sizes) == 2048
    assert nearest_size((3000, 2000), sizes) == (1216, 832)
    assert nearest_size((10, 4000), sizes) == (512, 2048)
    assert BucketSettings().sizes(64) == ((64, 64),)


def test_a_batch_is_of_one_bucket_and_every_picture_as_often_as_any_other(
    academy: Academy, base: ModelRef
) -> None:
    mixed = captioned(5) + captioned(3, WIDE) + captioned(1, (17, 70))
    found = academy.encoded(base, mixed)
    assert found.buckets == {TALL: 1, SQUARE: 5, WIDE: 3}
    seen: Counter[int] = Counter()
    for number in range(2 * 9):  # two rounds of all buckets' turns, 4 pictures each
        rows = found.dealt(7, number, 4)
        seen.update(rows)
        assert len({found.rows[row].bucket for row in rows}) == 1
        width, height = found.rows[rows[0]].bucket
        latents = found.batch(rows, torch.Generator())["latents"]
        assert latents.shape == (4, 4, height // 4, width // 4)
    assert seen == Counter(dict.fromkeys(range(9), 8))


def test_with_one_bucket_the_pictures_come_in_turn(academy: Academy, base: ModelRef) -> None:
    found = academy.encoded(base, captioned(5))
    dealt = [row for number in range(5) for row in found.dealt(3, number, 3)]
    assert all(sorted(dealt[start : start + 5]) == [0, 1, 2, 3, 4] for start in (0, 5, 10))
    assert dealt == examples.dealt(3, 5, 0, 15)
    assert dealt[:5] != dealt[5:10]


# Captions and replay


def test_a_caption_is_left_out_as_often_as_asked(academy: Academy, base: ModelRef) -> None:
    found = academy.encoded(base, captioned(4))
    empty = Table(academy.cache / "own", "text").read([0])[0]
    batches = [
        found.batch([0, 1, 2, 3] * 50, torch.Generator().manual_seed(seed), 0.3)
        for seed in range(5)
    ]
    texts = torch.cat([batch["text"] for batch in batches])
    share = float((texts == empty).flatten(1).all(1).float().mean())
    assert share == pytest.approx(0.3, abs=0.06)  # 4 deviations of 1,000 draws
    kept = found.batch([0, 1, 2, 3], torch.Generator())["text"]
    assert not any(torch.equal(row, empty) for row in kept)


def test_a_text_encoder_that_learns_reads_the_left_out_captions_too(
    academy: Academy, base: ModelRef
) -> None:
    pipe = load_pipeline(base, torch.float32)
    pictures = captioned(2)
    found = encode_examples(
        pipe, lambda: pictures, (SQUARE,), academy.cache / "own", keep_text=False
    )
    prompts = found.batch([0, 1] * 20, torch.Generator().manual_seed(1), 0.5)["prompts"]
    assert set(prompts) == {"", "hand 0", "hand 1"}


def test_replay_has_its_share_of_the_batches(
    academy: Academy, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = finetune.Examples.batch

    def spy(self: Examples, *given: Any) -> Any:
        seen.append(len(self))
        return real(self, *given)

    monkeypatch.setattr(finetune.Examples, "batch", spy)
    settings = {"loop.steps": 6, "replay_share": 0.5}
    trained = academy.train(base, replay=True, **settings)
    assert seen == [7, 3, 7, 3, 7, 3]  # the dataset has 7 pictures, the replayed one 3
    assert trained.card.replay and trained.card.replay.pictures == 3


# Memory, and what lies in files


def test_memory_holds_few_pictures_at_once(academy: Academy, base: ModelRef) -> None:
    alive, most = 0, 0

    class Held(Image.Image):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def read() -> Image.Image:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        picture = noise(alive)
        picture.__class__ = Held
        return picture

    academy.encoded(base, [Captioned(read, "hand")] * (4 * AT_ONCE))
    assert most <= 2 * AT_ONCE


def test_a_dataset_is_a_stream(academy: Academy) -> None:
    images = [png(n, (512, 512)) for n in range(200)]
    total = sum(map(len, images))
    data = open_dataset(exported(academy.folder / "large", images))
    del images
    before, most = _own_memory(), 0
    for each in data.captioned():
        each.read()
        most = max(most, _own_memory())
    assert total > 140e6
    assert most - before < total / 2


def _own_memory() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_rows_are_read_from_the_file_alone(tmp_path: Path) -> None:
    table = Table(tmp_path, "wide")
    for number in range(8):
        table.append(torch.full((1, 2, 3), number, dtype=torch.bfloat16))
    again = Table(tmp_path, "wide")
    assert len(again) == 8
    assert again.read([5, 0, 5])[:, 1, 2].tolist() == [5, 0, 5]
    assert again.read([1]).dtype == torch.bfloat16
    with (tmp_path / "wide.bin").open("ab") as file:
        file.write(b"half")  # of a row, as a power cut leaves it
    assert len(again) == 8
    again.cut(3)
    assert len(again) == 3


def test_encoding_that_was_cut_off_goes_on(academy: Academy, base: ModelRef) -> None:
    pictures = captioned(AT_ONCE) + captioned(4, WIDE)
    academy.encoded(base, pictures, "whole")
    reads = []

    def failing() -> Image.Image:
        raise Stopped

    with pytest.raises(Stopped):
        academy.encoded(base, [*pictures[:-1], Captioned(failing, "x")], "broken")
    with (academy.cache / "broken" / "rows.jsonl").open("a") as rows:
        rows.write('{"prompt": "hal')  # and a line that was being written
    Table(academy.cache / "broken", "latents-64x16").append(torch.zeros(1, 2, 4, 4, 16))

    def counted(each: Captioned) -> Captioned:
        return replace(each, read=lambda: (reads.append(each.prompt), each.read())[1])

    academy.encoded(base, [counted(each) for each in pictures], "broken")
    assert len(reads) == 4  # those that were there are not read again
    names = [path.name for path in (academy.cache / "whole").iterdir()]
    assert {"rows.jsonl", "latents-32x32.bin", "text.bin"} <= set(names)
    for name in names:
        whole, broken = (academy.cache / each / name for each in ("whole", "broken"))
        assert whole.read_bytes() == broken.read_bytes(), name


# Training and going on


@pytest.mark.parametrize("kind", ["base", "base_xl", "base_sd3"])
@pytest.mark.parametrize(
    ("stop_after", "settings"),
    [
        (1, {"replay": True, "replay_share": 0.4}),
        (3, {"method": "full", "save_dtype": "float32", "loop.ema_decay": 0.9}),
    ],
)
def test_a_finetuning_that_was_cut_off_ends_as_an_unbroken_one(
    academy: Academy,
    kind: str,
    stop_after: int,
    settings: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    base: ModelRef = request.getfixturevalue(kind)
    whole = academy.train(base, "whole", **settings)
    with pytest.raises(Stopped):
        academy.train(base, "broken", stop_after, **settings)
    assert read_card(academy.folder / "broken") is None
    broken = academy.train(base, "broken", **settings)
    assert broken.card.losses == whole.card.losses
    for path in sorted(whole.folder.rglob("*.safetensors")):
        twin = broken.folder / path.relative_to(whole.folder)
        assert twin.read_bytes() == path.read_bytes(), path.name
    assert whole.card.buckets == {"32x32": 4, "64x16": 3}


def test_an_adapter_and_whole_weights_change_what_is_drawn(
    academy: Academy, base: ModelRef
) -> None:
    adapter = weights(academy.train(base))
    assert any(value.abs().max() > 0 for key, value in adapter.items() if "lora_B" in key)
    full = academy.train(base, "full", method="full", text_encoder=True)
    ref = fingerprint(str(full.folder / "pipeline"), "base")
    own, other = (load_pipeline(each, torch.float32) for each in (ref, base))
    for part in ("unet", "text_encoder"):
        assert not equal(getattr(own, part).state_dict(), getattr(other, part).state_dict())


def test_another_dataset_is_another_training(academy: Academy, base: ModelRef) -> None:
    academy.train(base)
    academy.dataset = exported(academy.folder / "newer", [png(50), png(51)])
    with pytest.raises(InputError, match="holds another training"):
        academy.train(base)


def test_the_loss_falls_on_a_dataset_that_is_learned_by_heart(
    academy: Academy, base: ModelRef
) -> None:
    plain = []
    for red in (40, 120, 200):
        Image.new("RGB", SQUARE, (red, 30, 30)).save(file := io.BytesIO(), "PNG")
        plain.append(file.getvalue())
    academy.dataset = exported(academy.folder / "plain", plain)
    settings = {
        "loop.steps": 60, "loop.batch_size": 4, "lora.rank": 8, "caption_dropout": 0,
        "lora.targets": ("attention", "feed_forward", "convolutions"),
        "loop.checkpoint_every": 100,
    }  # fmt: skip
    onlooker = Onlooker()
    train(academy.plan(base, **settings), academy.folder / "out", academy.cache, onlooker, cpu=True)
    losses = [point.losses["loss"] for point in onlooker.points]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_recipes_that_ship_are_modest() -> None:
    for recipe in ("finetune", "miniature-finetune"):
        config = configured(FinetuneConfig, recipe, {"method": "full"}, SAMPLER)
        assert config.loop.learning_rate <= 1e-4
        assert config.caption_dropout == 0.1


# Bad datasets


def _no_prompts(folder: Path) -> None:
    path = folder / "train-00000.parquet"
    table = pyarrow.parquet.read_table(path).drop_columns(["prompt"])
    pyarrow.parquet.write_table(table, path)
    (folder / "SHA256SUMS").unlink()


def _an_empty_prompt(folder: Path) -> None:
    path = folder / "metadata.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"prompt": " "})
    path.write_text("\n".join(lines) + "\n")
    (folder / "SHA256SUMS").unlink()


def _one_more(folder: Path) -> None:
    (folder / "train-00001.parquet").write_bytes((folder / "train-00000.parquet").read_bytes())


@pytest.mark.parametrize(
    ("form", "spoil", "complaint"),
    [
        ("hf", lambda folder: (folder / "train-00000.parquet").unlink(), "parquet is missing"),
        ("hf", lambda folder: (folder / "SHA256SUMS").write_text("?"), "cannot be read"),
        ("hf", _one_more, "altered since its SHA256SUMS: train-00001.parquet was added"),
        ("hf", _no_prompts, "has no column 'prompt': there are image, id"),
        ("imagefolder", _an_empty_prompt, "picture 2 has no prompt, but ' '"),
        (
            "imagefolder",
            lambda folder: noise(9).save(next((folder / "images").iterdir())),
            "has other content; get it again",
        ),
    ],
)  # fmt: skip
def test_a_dataset_that_will_not_do_is_one_line(
    tmp_path: Path, form: ExportFormat, spoil: Callable[[Path], object], complaint: str
) -> None:
    folder = exported(tmp_path / "mine", [png(n) for n in range(3)], form)
    assert open_dataset(folder).pictures == 3
    spoil(folder)
    with pytest.raises(InputError) as refused:
        open_dataset(folder)
    assert complaint in str(refused.value)
    assert "mine" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_dataset_and_no_dataset_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset none is empty"):
        open_dataset(exported(tmp_path / "none", []))
    with pytest.raises(InputError, match=r"neither \.parquet files nor a metadata\.jsonl"):
        open_dataset(exported(tmp_path / "tar", [png(1)], "webdataset"))
    with pytest.raises(InputError, match="no dataset"):
        open_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("form", ["hf", "imagefolder"])
def test_a_corrupt_picture_is_named(academy: Academy, base: ModelRef, form: ExportFormat) -> None:
    whole = png(2)
    images = [png(0), png(1), whole[: len(whole) // 2]]
    academy.dataset = exported(academy.folder / "spoilt", images, form)
    with pytest.raises(InputError, match=r"dataset spoilt, picture 3: .*no readable picture"):
        academy.train(base)


def test_only_what_is_to_be_trained_on_is_read(tmp_path: Path) -> None:
    folder = exported(tmp_path / "mine", [png(n) for n in range(3)])
    (folder / "SHA256SUMS").unlink()
    (folder / "test-00000.parquet").write_bytes(b"not for us")
    assert open_dataset(folder).pictures == 3


# The command


@pytest.fixture
def ppv_finetune(
    academy: Academy, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """`ppv train finetune` on the tiny pipeline, in this process."""
    monkeypatch.chdir(academy.folder)
    monkeypatch.setenv("PPV_PROPOSER__MODEL", base.name)
    monkeypatch.setenv("PPV_PROPOSER__DEVICE", "cpu")
    monkeypatch.setenv("PPV_STORE_URL", f"file://{academy.folder}/store")
    monkeypatch.setenv("PPV_PROPOSER__SAMPLER__NUM_INFERENCE_STEPS", "1")
    settings.cache_clear()

    def run(*arguments: object) -> Any:
        small = ("finetune", "--to", "out", "--steps", "2", "--rank", "2", "--batch-size", "1")
        return CliRunner().invoke(train_group, [*small, *map(str, arguments)])

    yield run
    settings.cache_clear()


def frozen(store: FolderStore, images: list[bytes]) -> str:
    """A version of the dataset "hands" in the store, of a run whose records were accepted."""
    folder = RunFolder(store, RUN.name)
    folder.write(RUN)
    folder.write_input(PromptBatch(run=RUN.name, bases=(BasePrompt(text="a hand"),)))
    records = accepted(images)
    prompts = tuple(record.proposal.prompt for record in records)
    folder.write_expansion(BasePrompt(text="a hand"), Expansion(prompts=prompts))
    for record, image in zip(records, images, strict=True):
        folder.write_image(record.id, image)
    batch = ProposalBatch.of(
        RUN.name, RUN.proposers[0], Sampler(), [(prompt, 1) for prompt in prompts]
    )
    folder.write_records(batch, records)
    choice = Choice(test_share=0.0)
    manifest, _ = freeze(store, "hands", [RUN.name], choice, Path("scratch"))
    return manifest.reference


def test_a_dataset_of_the_store_becomes_a_proposer_by_name(
    academy: Academy, base: ModelRef, ppv_finetune: Any
) -> None:
    store = FolderStore(academy.folder / "store")
    reference = frozen(store, [png(n) for n in range(4)])
    result = ppv_finetune("--dataset", "hands", "--name", "better", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["card"]["dataset"]["name"] == reference
    assert answer["card"]["dataset"]["pictures"] == 4
    page = (academy.folder / "out" / "training.html").read_text()
    assert "Fine-tuning" in page and reference in page

    config = settings().proposer.model_copy(update={"adapter": "better"})
    (drawer,) = registry.proposers_of(config, load_taxonomy("miniature"), store)
    assert drawer.title == f"{base.name} + {answer['model']}"
    assert drawer.adapter and drawer.adapter.category == ""
    with pytest.raises(InputError, match=r"no model 'bettr' \(did you mean 'better'\?\)"):
        wrong = config.model_copy(update={"adapter": "bettr"})
        registry.proposers_of(wrong, load_taxonomy("miniature"), store)


def test_a_dataset_of_the_store_that_was_altered_is_refused(
    academy: Academy, ppv_finetune: Any
) -> None:
    reference = frozen(FolderStore(academy.folder / "store"), [png(n) for n in range(4)])
    (shard,) = (academy.folder / "store").rglob("train-*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    result = ppv_finetune("--dataset", reference)
    assert isinstance(result.exception, InputError)
    assert f"dataset {reference} is damaged: train-00000.parquet" in str(result.exception)
    assert not (academy.folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--dataset", "nothing"), "no dataset 'nothing'"),
        (("--dataset", "./nothing"), "no dataset 'nothing': give a folder, or NAME@VERSION"),
        (("--dataset", "new", "--replay", "./nothing"), "no dataset 'nothing'"),
        (("--dataset", "new", "--recipe", "non"), "no recipe 'non'"),
        (("--dataset", "new", "--caption-dropout", "1.5"), "'caption_dropout'"),
        (("--dataset", "new", "--name", "New"), "model name 'New'"),
        (("--dataset", "new", "--base", "nowhere"), "no model at"),
    ],
)
def test_wrong_input_is_one_line(
    ppv_finetune: Any, arguments: tuple[str, ...], complaint: str
) -> None:
    result = ppv_finetune(*arguments)
    assert isinstance(result.exception, InputError), result.output
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)


def test_killed_at_a_step_the_command_goes_on_to_the_same_weights(
    academy: Academy, ppv_finetune: Any
) -> None:
    recipe = academy.folder / "recipe.yaml"
    recipe.write_text(
        "loop: {checkpoint_every: 3, validate_every: 100, steps: 40}\nvalidation_images: 1\n"
        "buckets: {step_px: 16, shortest_px: 16}\nlora: {rank: 2}\n"
    )
    command = [sys.executable, "-c", "from workers.cli import main; main()", "train", "finetune"]
    options = ["--dataset", "new", "--recipe", str(recipe), "--method", "full", "--batch-size", "1"]
    killed = subprocess.Popen([*command, *options, "--to", "killed"], stderr=subprocess.DEVNULL)
    checkpoints = academy.folder / "killed" / "checkpoints"
    while not (checkpoints / "000009").exists():
        assert killed.poll() is None, "it ended before it could be killed"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (academy.folder / "killed" / "card.json").exists()

    cards = []
    for to in ("killed", "whole"):
        done = subprocess.run(
            [*command, *options, "--to", to, "--json"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        cards.append(json.loads(done.stdout))
        if to == "killed":
            assert "going on from step" in done.stderr
    assert cards[0]["card"]["losses"] == cards[1]["card"]["losses"]
    assert cards[0]["model"] == cards[1]["model"]  # a name of their weights' hash


def test_the_miniature_learns_and_draws_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(tmp_path / "hands", [png(n, (64, 64)) for n in range(6)])
    store = tmp_path / "store"
    environment = os.environ | {
        "PPV_STORE_URL": f"file://{store}",
        "PPV_STATE_DIR": str(tmp_path / "state"),
        "PPV_PROPOSER__SAMPLER__NUM_INFERENCE_STEPS": "2",
    }
    command = [sys.executable, "-c", "from workers.cli import main; main()"]
    options = ["--recipe", "miniature-finetune", "--steps", "3", "--batch-size", "4", "--json"]
    where = ["--dataset", str(folder), "--to", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "train", "finetune", *where, *options],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)["card"]
    assert (card["steps"], card["method"], card["buckets"]) == (3, "full", {"64x64": 6})

    from pipeline.config import ProposerConfig
    from pipeline.proposer.diffusion import DiffusionProposer

    config = ProposerConfig(adapter="hands", device="cpu")
    (drawer,) = registry.proposers_of(config, load_taxonomy("miniature"), FolderStore(store))
    proposer = DiffusionProposer.load(
        config,
        drawer.base,
        lambda adapter: registry.folder_of(adapter, FolderStore(store), tmp_path / "models"),
        tmp_path / "batch-sizes.json",
    )
    sampler = Sampler(num_inference_steps=2)
    own, tuned = (
        np.asarray(proposer.draw(["a hand"], [1], sampler, adapter)[0].image, int)
        for adapter in (None, drawer.adapter)
    )
    assert np.abs(own - tuned).max() > 0
