"""Taxonomies: those that ship say what they claim, and a wrong one is refused in one line."""

import re
from pathlib import Path

import pytest

from pipeline.errors import TaxonomyError
from pipeline.shipped import MAX_BYTES
from pipeline.taxonomy import RESERVED, SHIPPED, Taxonomy, load_taxonomy

NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))

GOOD = """
name: kitchen
version: 1
templates: ["a {hand} hand {action} a {object}"]
categories: {grip: {action: gripping, objects: [pan]}}
attributes: {hand: [left, right]}
"""

EXAMPLE = """
examples:
  - base: a pan
    category: grip
    object: pan
    attributes: {hand: left}
    text: a left hand gripping a pan
"""

# Feix et al. 2016, in the order of their numbers 1 to 33.
GRASP_TYPES = """
large_diameter small_diameter medium_wrap adducted_thumb light_tool prismatic_4_finger
prismatic_3_finger prismatic_2_finger palmar_pinch power_disk power_sphere precision_disk
precision_sphere tripod fixed_hook lateral index_finger_extension extension_type distal_type
writing_tripod tripod_variation parallel_extension adduction_grip tip_pinch lateral_tripod
sphere_4_finger quadpod sphere_3_finger stick palmar ring ventral inferior_pincer
"""


def read(tmp_path: Path, content: str | bytes) -> Taxonomy:
    path = tmp_path / "a.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_taxonomy(str(path))


def refusal(tmp_path: Path, content: str | bytes) -> str:
    """The message for a file that is refused: one line, which names the file."""
    with pytest.raises(TaxonomyError) as refused:
        read(tmp_path, content)
    message = str(refused.value)
    assert str(tmp_path / "a.yaml") in message
    assert len(message.splitlines()) == 1
    return message


def texts(taxonomy: Taxonomy) -> list[tuple[str, dict[str, str], str]]:
    """Each category and object in each template, and each attribute value, with what is claimed."""
    scenes = [(name, thing) for name, each in taxonomy.categories.items() for thing in each.objects]
    width = max(len(shares) for shares in taxonomy.attributes.values())
    made = []
    for row in range(max(width, len(scenes))):
        category, thing = scenes[row % len(scenes)]
        values = {name: list(each)[row % len(each)] for name, each in taxonomy.attributes.items()}
        values["object"] = thing
        made += [
            (category, values, taxonomy.describe(category, values, variant))
            for variant in range(len(taxonomy.templates))
        ]
    return made


# Those that ship


def test_the_miniatures_world_and_the_grasp_literature_ship() -> None:
    assert {"miniature", "grasp"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_text_shows_every_attribute_its_object_and_its_pose(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert taxonomy.name == name
    for category, values, text in texts(taxonomy):
        assert all(value in text for value in values.values())
        assert taxonomy.categories[category].action in text


@pytest.mark.parametrize("name", NAMES)
def test_no_text_says_a_before_a_vowel_or_leaves_a_brace(name: str) -> None:
    for _, _, text in texts(load_taxonomy(name)):
        assert not re.search(r"\ba [aeiou]|[{}]|  ", text), text


@pytest.mark.parametrize("name", NAMES)
def test_every_example_shows_exactly_what_it_claims(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert len(taxonomy.examples) >= 2
    for example in taxonomy.examples:
        assert example.object in taxonomy.categories[example.category].objects
        for attribute, claimed in example.attributes.items():
            assert re.search(rf"\b{claimed}\b", example.text)
            others = set(taxonomy.attributes[attribute]) - {claimed}
            assert not [each for each in others if re.search(rf"\b{each}\b", example.text)]
        assert re.search(rf"\b{example.object}\b", example.text)


@pytest.mark.parametrize("name", NAMES)
def test_no_objects_name_stands_within_anothers(name: str) -> None:
    # "a bottle cap" would ask for a bottle
    objects = load_taxonomy(name).objects
    within = [
        (one, other)
        for one in objects
        for other in objects
        if one != other and re.search(rf"\b{one}\b", other)
    ]
    assert within == []


def test_grasp_has_the_33_types_of_its_source() -> None:
    taxonomy = load_taxonomy("grasp")
    assert len(taxonomy.categories) == 33
    assert set(taxonomy.categories) == set(GRASP_TYPES.split())
    for named in ("Feix", "The GRASP Taxonomy of Human Grasp Types", "46(1), 2016"):
        assert named in taxonomy.source


def test_every_grasp_says_its_place_in_the_matrix() -> None:
    place = re.compile(r"(Power|Intermediate|Precision), (palm|pad|side), thumb (ab|ad)ducted: ")
    counts: dict[str, int] = {}
    for category in load_taxonomy("grasp").categories.values():
        found = place.match(category.note)
        assert found, category.note
        counts[found[1]] = counts.get(found[1], 0) + 1
        possible = {"Power": "palm pad", "Intermediate": "side", "Precision": "pad side"}[found[1]]
        assert found[2] in possible.split()
        assert 3 <= len(category.objects) <= 6
    assert counts == {"Power": 15, "Intermediate": 6, "Precision": 12}


def test_no_two_grasps_are_worded_alike() -> None:
    actions = [category.action for category in load_taxonomy("grasp").categories.values()]
    assert len(set(actions)) == len(actions)


def test_a_grasps_text_is_short_enough_for_a_vilt_in_nearly_every_scene() -> None:
    # 40 tokens at 0.75 words each
    lengths = [len(text.split()) for _, _, text in texts(load_taxonomy("grasp"))]
    assert sum(length <= 30 for length in lengths) >= 0.99 * len(lengths)


# Those of one's own


def test_a_taxonomy_of_ones_own_is_used(tmp_path: Path) -> None:
    taxonomy = read(tmp_path, GOOD + EXAMPLE)
    said = taxonomy.describe("grip", {"object": "pan", "hand": "left"})
    assert said == "a left hand gripping a pan" == taxonomy.examples[0].text


def test_a_list_means_equal_shares_and_a_mapping_its_own(tmp_path: Path) -> None:
    content = GOOD.replace("[left, right]", "{left: 1, right: 2.5}")
    assert read(tmp_path, GOOD).attributes == {"hand": {"left": 1.0, "right": 1.0}}
    assert read(tmp_path, content).attributes == {"hand": {"left": 1.0, "right": 2.5}}


def test_a_category_has_a_share_of_one_unless_it_says_so(tmp_path: Path) -> None:
    content = GOOD.replace("objects: [pan]", "objects: {pan: 3, pot: 1}, share: 2")
    assert read(tmp_path, GOOD).categories["grip"].share == 1.0
    grip = read(tmp_path, content).categories["grip"]
    assert grip.share == 2.0 and grip.objects == {"pan": 3.0, "pot": 1.0}


def test_templates_take_each_their_turn_and_may_show_braces(tmp_path: Path) -> None:
    content = GOOD.replace('{object}"]', '{object}", "{{{object}}} in a {hand} hand"]')
    taxonomy = read(tmp_path, content)
    said = [taxonomy.describe("grip", {"object": "pan", "hand": "left"}, each) for each in range(3)]
    assert said == ["a left hand gripping a pan", "{pan} in a left hand", said[0]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("version: 2026-13-45", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("- a\n- b\n", "at its top level"),
        ("", "at its top level"),
        (GOOD.replace("objects: [pan]", "objects: []"), "at categories.grip.objects"),
        (GOOD.replace("version: 1", "version: new"), "at version"),
        (GOOD + "colour: red\n", "at colour"),
        (GOOD.replace('["a {hand} hand {action} a {object}"]', "[]"), "at templates"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    assert reason in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("a {hnd} hand", "names the unknown attribute 'hnd': did you mean 'hand'?"),
        ("a {foot}", "names the unknown attribute 'foot': known are action, object, hand"),
        ("a {}", "names the unknown attribute ''"),
        ("a {hand.upper}", "names the unknown attribute 'hand.upper'"),
        ("a {hand!r}", "write {hand} and no more"),
        ("a {hand:>9}", "write {hand} and no more"),
        ("a {hand", "cannot be filled"),
        ("a hand}", "cannot be filled"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(
    tmp_path: Path, template: str, reason: str
) -> None:
    message = refusal(tmp_path, GOOD.replace("a {hand} hand {action} a {object}", template))
    assert reason in message and repr(template) in message


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ("category: grip", "category: gripp", "unknown category 'gripp': did you mean 'grip'?"),
        ("{hand: left}", "{hnd: left}", "unknown attribute 'hnd': did you mean 'hand'?"),
        ("{hand: left}", "{hand: lefd}", "unknown hand 'lefd': did you mean 'left'?"),
        ("{hand: left}", "{hand: xyz}", "unknown hand 'xyz': known are left, right"),
        ("{hand: left}", "{}", "lacks the attribute 'hand'"),
        ("    object: pan\n", "", "at examples.0.object"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(
    tmp_path: Path, right: str, wrong: str, reason: str
) -> None:
    content = GOOD + EXAMPLE.replace(right, wrong)
    assert content != GOOD + EXAMPLE
    assert reason in refusal(tmp_path, content)


@pytest.mark.parametrize("name", [*RESERVED, "Hand", "left hand", "9th", "_hand", "h" * 33, "''"])
def test_an_attribute_takes_no_word_of_ours_and_no_odd_one(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, GOOD.replace("attributes: {hand:", f"attributes: {{{name}:"))
    assert f"attribute {name.strip(chr(39))!r}: use a word of a-z" in message


@pytest.mark.parametrize("share", ["0", "-1", ".nan", ".inf", "much", "null"])
@pytest.mark.parametrize(
    ("right", "wrong", "where"),
    [
        ("[left, right]", "{left: 1, right: SHARE}", "at attributes.hand.right"),
        ("[pan]", "{pan: SHARE}", "at categories.grip.objects.pan"),
        ("[pan]", "[pan], share: SHARE", "at categories.grip.share"),
    ],
)
def test_a_share_is_a_number_above_zero(
    tmp_path: Path, right: str, wrong: str, where: str, share: str
) -> None:
    assert where in refusal(tmp_path, GOOD.replace(right, wrong.replace("SHARE", share)))


def test_a_value_that_stands_twice_in_a_list_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.replace("[left, right]", "[left, right, left]"))
    assert "at attributes.hand" in message and "give it a share instead" in message


@pytest.mark.parametrize("value", ["yes", "1", "null", "[left]", "{left: 1}"])
def test_a_value_that_yaml_reads_as_something_else_wants_quotes(tmp_path: Path, value: str) -> None:
    message = refusal(tmp_path, GOOD.replace("[left, right]", f"[left, {value}]"))
    assert "at attributes.hand" in message and "put it in quotes" in message
    if not value.startswith(("[", "{")):
        quoted = GOOD.replace("[left, right]", f"[left, '{value}']")
        assert set(read(tmp_path, quoted).attributes["hand"]) == {"left", value}


def test_line_breaks_of_a_file_stay_out_of_the_message(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD + '"new\\nkey": 1\n')
    assert "new key" in message


def test_a_file_over_a_megabyte_is_refused_unread(tmp_path: Path) -> None:
    fits = GOOD + "#" * (MAX_BYTES - len(GOOD))
    assert read(tmp_path, fits).name == "kitchen"
    assert f"larger than {MAX_BYTES:,} bytes" in refusal(tmp_path, fits + "#")


@pytest.mark.parametrize(
    "tagged",
    [
        "!!python/object/apply:pathlib.Path.touch [FILE]",
        "!!python/object/new:pathlib.Path [FILE]",
        "!!python/object:pathlib.Path {}",
        "!!python/name:os.system",
    ],
)
def test_yaml_that_would_build_python_objects_is_refused(tmp_path: Path, tagged: str) -> None:
    touched = tmp_path / "touched"
    content = GOOD.replace("name: kitchen", f"name: {tagged.replace('FILE', str(touched))}")
    message = refusal(tmp_path, content)
    assert "cannot be read" in message and "python/" in message
    assert not touched.exists()


def test_a_missing_taxonomy_names_those_that_ship() -> None:
    with pytest.raises(TaxonomyError, match=r"'miniatur': neither a file nor .*grasp, miniature"):
        load_taxonomy("miniatur")


def test_a_folder_is_no_taxonomy(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="cannot be read") as refused:
        load_taxonomy(str(tmp_path))
    assert str(tmp_path) in str(refused.value)


def test_a_name_that_ships_wins_over_a_file_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grasp").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_taxonomy("grasp").name == "grasp"
    assert load_taxonomy("./grasp").name == "kitchen"


def test_a_misspelt_key_names_the_nearest_one(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.replace("attributes:", "atributes:"))
    assert "at atributes: unknown; did you mean 'attributes'?" in message
