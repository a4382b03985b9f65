"""`ppv train proposer`: the prompts it learns, the papers it leaves, and its command line."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.errors import InputError
from pipeline.training.card import read_card
from pipeline.training.categories import category_folders
from pipeline.training.dreambooth import train
from pipeline.training.dreambooth_plan import DreamBoothConfig
from pipeline.training.lora import WEIGHTS
from pipeline.training.plans import configured
from pipeline.types import ModelRef
from tests.training import SAMPLER, TAXONOMY, Onlooker, Studio, pictures
from workers.cli.train import train as train_group
from workers.pages.training import write_training_page
from workers.settings import settings

# Prompts, cards and pages


def test_prompts_come_from_the_taxonomy_or_the_captions(studio: Studio, base: ModelRef) -> None:
    plan = studio.plan(base)
    assert set(plan.prompts) == {"a sks hand in a pinch grasp holding an object"}
    assert plan.class_prompts == ("a hand in a pinch grasp holding an object",)
    (studio.instances / "1.txt").write_text("a hand with a key")
    assert studio.plan(base).prompts[1] == "sks a hand with a key"
    bare = studio.plan(base, token="", prior_loss_weight=0)
    assert bare.prompts[1] == "a hand with a key"
    own = studio.plan(base, instance_prompt="{token} {category} in {action}, {caption}")
    assert own.prompts[1] == "sks pinch in in a pinch grasp holding, a hand with a key"


def test_without_a_token_the_class_is_of_other_categories(studio: Studio, base: ModelRef) -> None:
    prompts = ["a hand {action} an object", "a hand in a hook grasp"]
    assert studio.plan(base, token="", class_prompts=prompts).class_prompts == (prompts[1],)
    assert len(studio.plan(base, class_prompts=prompts).class_prompts) == 2
    with pytest.raises(InputError, match="without a token the class prompts cannot be of 'pinch'"):
        studio.plan(base, token="")


def test_the_recipe_of_the_miniature_suits_every_category() -> None:
    config = configured(DreamBoothConfig, "miniature", {"loop.steps": 7}, SAMPLER)
    assert config.loop.steps == 7
    assert config.loop.batch_size > 1
    for category in TAXONOMY.categories.values():
        assert any(category.action in prompt for prompt in config.class_prompts)


def test_a_prompt_that_is_too_long_is_noted(studio: Studio, base: ModelRef) -> None:
    (studio.instances / "1.txt").write_text("a" * 60)  # one token a letter, of 48
    onlooker = Onlooker()
    train(studio.plan(base), studio.folder / "out", studio.cache, onlooker, cpu=True)
    (note,) = (line for line in onlooker.notes if "does not read the end of" in line)
    assert note.endswith("sks " + "a" * 60)


def test_the_card_says_what_it_was_made_of(studio: Studio, base: ModelRef) -> None:
    trained = studio.train(base)
    card = read_card(trained.folder)
    assert card == trained.card
    assert card.base == base
    assert card.steps == 2
    assert [len(sha256) for sha256 in card.instances.values()] == [64] * 3
    assert card.images_per_s > 0
    assert card.peak_memory_bytes > 2**20
    readme = (trained.folder / "README.md").read_text()
    assert base.weights in readme
    assert readme.startswith('---\nlibrary_name: "diffusers"')


def test_the_page_holds_curve_and_grids_and_asks_no_network(studio: Studio, base: ModelRef) -> None:
    trained = studio.train(base, validation_images=2, **{"loop.validate_every": 1})
    grids = sorted((trained.folder / "validation").iterdir())
    assert [grid.name for grid in grids] == ["000000", "000001", "000002"]
    assert len(list(grids[0].glob("*.png"))) == 2
    write_training_page(trained.folder, to := studio.folder / "page.html")
    page = to.read_text()
    assert page.count("data:image/png;base64,") == 6
    assert page.count("<polyline") == 3
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page


def test_a_folder_of_folders_holds_categories(studio: Studio) -> None:
    pictures(studio.folder / "all" / "pinch", 2)
    pictures(studio.folder / "all" / "hook", 2)
    assert list(category_folders(studio.folder / "all", TAXONOMY)) == ["hook", "pinch"]
    pictures(studio.folder / "all" / "hooks", 2)
    with pytest.raises(InputError, match="did you mean 'hook'"):
        category_folders(studio.folder / "all", TAXONOMY)
    with pytest.raises(InputError, match="holds no folders"):
        category_folders(studio.instances, TAXONOMY)
    with pytest.raises(InputError, match="no folder"):
        category_folders(studio.folder / "nowhere", TAXONOMY)


# The command


@pytest.fixture
def ppv_train(
    studio: Studio, base: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """`ppv train proposer` on the tiny pipeline, in this process."""
    monkeypatch.chdir(studio.folder)
    monkeypatch.setenv("PPV_PROPOSER__MODEL", base.name)
    monkeypatch.setenv("PPV_PROPOSER__DEVICE", "cpu")
    settings.cache_clear()
    small = ("--steps", "2", "--class-images", "2", "--rank", "2")

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(train_group, ["proposer", *small, *map(str, arguments)])

    yield run
    settings.cache_clear()


def test_the_command_trains_all_and_writes_pages(studio: Studio, ppv_train: Any) -> None:
    for name in ("pinch", "hook"):
        pictures(studio.folder / "all" / name, 2)
    result = ppv_train("--all", studio.folder / "all", "--to", "out")
    assert result.exit_code == 0, result.output
    for name in ("pinch", "hook"):
        assert (studio.folder / "out" / name / WEIGHTS).exists()
        assert "<polyline" in (studio.folder / "out" / name / "training.html").read_text()
    assert "images/s, peak memory" in result.stdout
    assert "pinch: step 2 of 2: loss" in result.stderr


def test_the_command_answers_programs(studio: Studio, ppv_train: Any) -> None:
    given = ("--category", "pinch", "--instances", studio.instances, "--to", "out", "--json")
    answer = json.loads(ppv_train(*given).stdout)
    assert answer["new"]
    assert answer["card"]["category"] == "pinch"
    assert not json.loads(ppv_train(*given).stdout)["new"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give --category and --instances, or --all"),
        (("--category", "pinch", "--instances", "pinch", "--all", "x"), "give one or other"),
        (("--category", "pich", "--instances", "pinch"), "did you mean 'pinch'"),
        (("--category", "pinch", "--instances", "nowhere"), "no folder 'nowhere'"),
        (("--category", "pinch", "--instances", "pinch", "--base", "nowhere"), "no model at"),
        (("--category", "pinch", "--instances", "pinch", "--recipe", "non"), "no recipe 'non'"),
        (
            ("--category", "pinch", "--instances", "pinch", "--mixed-precision", "fp16"),
            "'fp16' needs a GPU",
        ),
    ],
)
def test_wrong_input_is_one_line(
    ppv_train: Any, arguments: tuple[str, ...], complaint: str
) -> None:
    result = ppv_train(*arguments, "--to", "out")
    assert isinstance(result.exception, InputError)
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, workers.cli.train; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
