"""Taxonomies and the grammar prompter: always the same, spread evenly, true to the base prompt."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import PrompterConfig
from pipeline.errors import PromptFailed, TaxonomyError
from pipeline.prompter import load_prompter
from pipeline.taxonomy import Taxonomy, load_taxonomy
from pipeline.types import BasePrompt, DetailedPrompt
from tests.tiny import a_run

TAXONOMY = load_taxonomy("miniature")


def expand(text: str, count: int = 4, taxonomy: Taxonomy = TAXONOMY) -> tuple[DetailedPrompt, ...]:
    run = a_run(PrompterConfig(prompts_per_base=count), taxonomy)
    return load_prompter(run).expand(BasePrompt(text=text))


def test_as_many_prompts_as_asked_for_each_with_an_id_of_its_own() -> None:
    prompts = expand("a hand holding a mug", 20)
    assert [prompt.index for prompt in prompts] == list(range(20))
    assert len({prompt.id for prompt in prompts}) == 20
    assert expand("a hand holding a mug", 20) == prompts


def test_another_process_says_the_same() -> None:
    code = "from tests.test_prompter import expand; print(*expand('a mug and a key', 9), sep='|')"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert said == {"|".join(map(str, expand("a mug and a key", 9))) + "\n"}


def test_words_of_the_base_prompt_are_kept() -> None:
    for prompt in expand("a left hand with a RED mug", 24):
        assert prompt.attributes["object"] == "mug"
        assert prompt.attributes["color"] == "red"
        assert prompt.attributes["hand"] == "left"
        assert prompt.category in ("power", "platform")
        assert all(value in prompt.text for value in ("left", "red", "mug"))


def test_what_the_base_prompt_leaves_open_is_spread_evenly() -> None:
    prompts = expand("a mug", 24)
    for name, values in TAXONOMY.attributes.items():
        for start in range(0, 24 - len(values) + 1, len(values)):
            seen = [each.attributes[name] for each in prompts[start : start + len(values)]]
            assert sorted(seen) == sorted(values)
    categories = [prompt.category for prompt in prompts]
    assert categories.count("power") == categories.count("platform") == 12


def test_a_category_alone_draws_each_of_its_objects() -> None:
    objects = {prompt.attributes["object"] for prompt in expand("a hook grasp", 2)}
    assert objects == {"bag", "bucket"}


def test_an_object_in_a_pose_of_no_such_pair_is_drawn_as_asked() -> None:
    prompts = expand("a tripod grasp of a bucket", 3)
    assert {(each.category, each.attributes["object"]) for each in prompts} == {
        ("tripod", "bucket")
    }


def test_plurals_are_known_and_parts_of_words_are_not() -> None:
    assert expand("two brushes")[0].attributes["object"] == "brush"
    with pytest.raises(PromptFailed):
        expand("a monkey in a boxcar")


def test_an_unknown_object_is_refused_with_what_is_known() -> None:
    with pytest.raises(PromptFailed, match="'a violin' names neither") as refused:
        expand("a violin")
    assert "mug" in str(refused.value) and "platform" in str(refused.value)


def test_ids_change_with_what_shapes_the_prompts_and_with_nothing_else() -> None:
    first = expand("a mug")
    newer = TAXONOMY.model_copy(update={"version": TAXONOMY.version + 1})
    assert {each.id for each in first}.isdisjoint(each.id for each in expand("a mug", 4, newer))
    assert first[0].id != expand("a mug", 5)[0].id
    assert first[0].id != expand("a  mug")[0].id
    run = a_run(PrompterConfig())
    other = run.model_copy(update={"name": "other", "versions": {}, "base_prompts": 9})
    assert run.prompter_digest == other.prompter_digest
    assert load_prompter(other).expand(BasePrompt(text="a mug")) == first


# Taxonomies


GOOD = """
name: kitchen
version: 1
templates: ["a {hand} hand {action} a {object}"]
categories: {grip: {action: gripping, objects: [pan]}}
attributes: {hand: [left, right]}
"""


def test_a_taxonomy_of_ones_own_is_used(tmp_path: Path) -> None:
    (tmp_path / "kitchen.yaml").write_text(GOOD)
    taxonomy = load_taxonomy(str(tmp_path / "kitchen.yaml"))
    texts = {prompt.text for prompt in expand("a pan", 2, taxonomy)}
    assert texts == {"a left hand gripping a pan", "a right hand gripping a pan"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("- a\n- b\n", "at its top level"),
        ("", "at its top level"),
        (GOOD.replace("{hand}", "{foot}"), "names foot; known are action, hand, object"),
        (GOOD.replace("objects: [pan]", "objects: []"), "at categories.grip.objects"),
        (GOOD.replace("version: 1", "version: new"), "at version"),
        (GOOD + "colour: red\n", "at colour"),
    ],
)
def test_a_wrong_taxonomy_is_refused_in_one_line(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TaxonomyError) as refused:
        load_taxonomy(str(path))
    message = str(refused.value)
    assert reason in message and str(path) in message
    assert len(message.splitlines()) == 1


def test_a_missing_taxonomy_names_those_that_ship() -> None:
    with pytest.raises(TaxonomyError, match=r"'miniatur': neither a file nor .*miniature"):
        load_taxonomy("miniatur")
