"""`ppv evaluate verifier`: transformations, edits, figures worked by hand, command and page."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from bench.provider import Provider
from pipeline.config import VISION_SCORES
from pipeline.errors import InputError
from pipeline.evaluation.opinions import measure_opinions
from pipeline.evaluation.robustness import (
    COUNT,
    SEED,
    Curve,
    Report,
    chosen,
    evaluate,
    examples,
)
from pipeline.evaluation.robustness_card import (
    JSON,
    MARKDOWN,
    TITLE,
    into_card,
    limits,
    markdown,
    read_report,
    with_section,
)
from pipeline.evaluation.robustness_pictures import TRANSFORMATIONS, Transformation
from pipeline.evaluation.robustness_texts import edits, other_number, other_side, other_value
from pipeline.labels import Label
from pipeline.miniature.labels import save_labels
from pipeline.models import fingerprint
from pipeline.taxonomy import load_taxonomy
from pipeline.training.verifier_labels import Judged
from pipeline.training.verifier_negatives import wordings
from pipeline.types import ClauseScore, ModelRef, Thresholds, Verdict, digest
from pipeline.verifier.opinions import Heard
from tests.pages import quiet
from tests.tiny import save_tiny_clip, save_tiny_verifier
from tests.training import noise
from workers.cli import cli
from workers.cli import evaluate as commands
from workers.pages.robustness import write_robustness_page
from workers.settings import settings

TAXONOMY = load_taxonomy("miniature")
KNOWN = wordings(TAXONOMY)
TEXT = "a tan left hand in a power grasp around a red mug on a gray background"
BY_NAME = {each.name: each for each in TRANSFORMATIONS}
SIZES = [(64, 64), (90, 40), (40, 90), (8, 8)]


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


# Transformations


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", TRANSFORMATIONS, ids=lambda change: change.name)
def test_a_transformation_keeps_size_mode_and_the_picture_it_is_given(
    change: Transformation, size: tuple[int, int]
) -> None:
    before = noise(1, size)
    again = before.copy()
    for strength in change.strengths:
        after = change.apply(before, strength, rng())
        assert after.mode == "RGB"
        assert before.tobytes() == again.tobytes()
        if change.name == "crop":
            assert 0 < after.width <= size[0] and 0 < after.height <= size[1]
        elif change.name == "two hands":
            assert sorted((after.width / size[0], after.height / size[1])) == [1, 2]
            assert max(after.size) <= 2 * max(size)
        else:
            assert after.size == size
    assert after.tobytes() != before.tobytes()  # the strongest


@pytest.mark.parametrize(
    "name",
    [each.name for each in TRANSFORMATIONS if len(each.strengths) > 1 and each.name != "crop"],
)
def test_strengths_grow(name: str) -> None:
    change = BY_NAME[name]
    smooth = np.linspace(0, 255, 64)
    pixels = np.stack([smooth[:, None] + 0 * smooth, 0 * smooth[:, None] + smooth], axis=-1)
    before = Image.fromarray(np.dstack([pixels, pixels[..., 0] * 0.3 + 60]).astype(np.uint8))
    before.paste((200, 30, 30), (20, 24, 44, 40))
    far = [
        float(np.abs(np.asarray(change.apply(before, s, rng()), float) - before).mean())
        for s in change.strengths
    ]
    assert all(a < b for a, b in pairwise([0.0, *far])), far


def test_a_crop_keeps_the_middle() -> None:
    before = noise(1, (60, 40))
    after = BY_NAME["crop"].apply(before, 0.2, rng())
    assert after.size == (48, 32)
    assert after.tobytes() == before.crop((6, 4, 54, 36)).tobytes()


def test_a_flip_mirrors_the_picture_and_its_prompt() -> None:
    flip = BY_NAME["flip"]
    pixels = np.asarray(noise(1, (40, 30)))
    after = np.asarray(flip.apply(noise(1, (40, 30)), 1, rng()))
    assert np.array_equal(after, pixels[:, ::-1])
    assert flip.text("a Left hand, the thumb to the right") == (
        "a Right hand, the thumb to the left"
    )
    assert all(BY_NAME[name].text(TEXT) == TEXT for name in BY_NAME if name != "flip")


@pytest.mark.parametrize("size", [(100, 100), (200, 50)])
def test_an_occlusion_covers_its_share_of_the_middle(size: tuple[int, int]) -> None:
    occlusion = BY_NAME["occlusion"]
    for share in occlusion.strengths:
        after = np.asarray(occlusion.apply(Image.new("RGB", size, "red"), share, rng()))
        covered = (after != (255, 0, 0)).any(axis=-1)
        assert covered.mean() == pytest.approx(share, abs=0.02)
        assert np.array_equal(covered, covered[::-1, ::-1]) or covered[size[1] // 2, size[0] // 2]
    assert [held["fidelity"] for held in occlusion.holds] == ["open", "open", *["lost"] * 3]


def test_two_hands_are_the_picture_and_its_mirror_image() -> None:
    before = np.asarray(noise(1, (20, 30)))
    beside = np.asarray(BY_NAME["two hands"].apply(noise(1, (20, 30)), 1, rng()))
    assert np.array_equal(beside[:, :20], before)
    assert np.array_equal(beside[:, 20:], before[:, ::-1])
    below = np.asarray(BY_NAME["two hands"].apply(noise(1, (30, 20)), 1, rng()))
    assert np.array_equal(below[20:], np.asarray(noise(1, (30, 20)))[:, ::-1])
    assert BY_NAME["two hands"].holds == ({"fidelity": "kept", "alignment": "lost"},)


def test_noise_is_the_same_for_the_same_picture_and_seed() -> None:
    change = BY_NAME["noise"]
    one, again = (change.apply(noise(1), 0.1, np.random.default_rng([5, 7])) for _ in range(2))
    other = change.apply(noise(1), 0.1, np.random.default_rng([5, 8]))
    assert one.tobytes() == again.tobytes() != other.tobytes()


def test_grey_takes_all_colour_away_and_a_full_circle_changes_none() -> None:
    pixels = np.asarray(BY_NAME["grey"].apply(noise(1), 1, rng()))
    assert (pixels == pixels[..., :1]).all()
    turned = np.asarray(BY_NAME["hue"].apply(Image.new("RGB", (4, 4), (255, 0, 0)), 180, rng()))
    assert np.abs(turned[0, 0].astype(int) - (0, 255, 255)).max() < 5


# Edits


def test_an_edit_never_returns_the_same_text() -> None:
    chance = random.Random(4)
    texts = [
        TAXONOMY.describe(name, {"object": thing, **dict.fromkeys(TAXONOMY.attributes, "")}, n)
        for n, (name, category) in enumerate(TAXONOMY.categories.items())
        for thing in category.objects
    ]
    for text in [TEXT, "a hand", "HAND", "a red red mug", *texts]:
        for edit in edits(KNOWN):
            for _ in range(5):
                edited = edit.texts(text, chance)
                if edited is not None:
                    assert len(edited) == len(edit.labels)
                    assert len({text, *edited}) == len(edited) + 1, (edit.name, edited)


def test_an_edit_changes_one_attribute_and_nothing_else() -> None:
    said = KNOWN.said(TEXT)
    for name in said:
        for seed in range(10):
            edited = other_value(TEXT, name, KNOWN, random.Random(seed))
            assert edited
            now = KNOWN.said(edited)
            differ = {each for each in said if now[each] != said[each]}
            assert differ == {name}, edited


def test_edits_grow_by_one_attribute_each() -> None:
    several = edits(KNOWN)[-1]
    for seed in range(10):
        texts = several.texts(TEXT, random.Random(seed))
        assert texts
        before = KNOWN.said(TEXT)
        counts = [
            sum(KNOWN.said(text).get(name) != before[name] for name in before) for text in texts
        ]
        assert counts == [1, 2, 3]
    assert several.texts("a red mug", random.Random(0)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a hand", "two hands"),
        ("A tan left hand on a table", "Two tan left hands on a table"),
        ("a picture of a hand holding a mug", "a picture of two hands holding a mug"),
        ("someone's left hand wrapped around a mug", "someone's two hands wrapped around a mug"),
        ("close-up of two brown hands", "close-up of one brown hand"),
        ("both hands", "one hand"),
        ("a mug", None),
        ("a hand-painted mug", None),
        ("a hand and a hand", None),
        ("hands", None),
    ],
)
def test_the_number_of_hands_is_another(text: str, expected: str | None) -> None:
    assert other_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a left hand", "a right hand"),
        ("Right hand", "Left hand"),
        ("a left hand and a right one", None),
        ("a hand, upright", None),
    ],
)
def test_the_side_is_the_other_one(text: str, expected: str | None) -> None:
    assert other_side(text) == expected


def test_every_wording_of_a_taxonomy_is_edited_and_hand_and_number() -> None:
    assert [edit.name for edit in edits(KNOWN)] == [
        "skin", "color", "background", "object", "pose", "hand", "number", "several"
    ]  # fmt: skip
    grasp = edits(wordings(load_taxonomy("grasp")))
    assert {"hands", "hand", "number", "light"} <= {edit.name for edit in grasp}


# Figures


class Sees:
    """A verifier that believes a bright picture to be right, and its prompt if it says red."""

    def judge(
        self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
    ) -> list[Verdict]:
        self.most = max(getattr(self, "most", 0), len(images))
        return [
            self._verdict(float(np.asarray(image).mean()) / 255, "red" in prompt, thresholds)
            for image, prompt in zip(images, prompts, strict=True)
        ]

    def _verdict(self, bright: float, red: bool, thresholds: Thresholds) -> Verdict:
        alignment = 0.9 if red else 0.1
        clause = ClauseScore(text="x", fidelity=bright, alignment=alignment)
        return Verdict(
            fidelity=bright, alignment=alignment, clauses=(clause,), thresholds=thresholds
        )


def judged(folder: Path, count: int = 40, text: str = TEXT) -> list[Judged]:
    """Bright right ones and dark wrong ones, half of each with a prompt that is false."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(count):
        right, aligned = number % 2 == 0, number % 4 < 2
        level = 200 if right else 60
        Image.new("RGB", (32, 32), (level, level, level)).save(folder / f"{number}.png")
        items.append(
            Judged(
                picture=folder / f"{number}.png",
                sha256=f"{number:064x}",
                prompt=text if aligned else text.replace("red", "blue"),
                base=f"base {number // 4}",
                category="power",
                fidelity=right,
                alignment=aligned,
                reasons=(),
            )
        )
    return items


def reported(items: Sequence[Judged], judge: Any = None) -> Report:
    untouched, curves = evaluate(judge or Sees(), items, KNOWN, Thresholds(), seed=1)
    report = Report(
        verifier=ModelRef(name="sees", weights="sha256:" + "0" * 64),
        thresholds=Thresholds(),
        sources=("labels.jsonl",),
        pictures=len(items),
        labelled=len(items),
        base_prompts=10,
        right=10,
        wrong=30,
        seed=1,
        untouched=untouched,
        curves=curves,
    )
    return report.model_copy(update={"limits": tuple(limits(report))})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return reported(judged(tmp_path_factory.mktemp("seen")))


def curve(report: Report, name: str) -> Curve:
    return next(each for each in report.curves if each.name == name)


def test_untouched_pictures_are_what_the_labels_say(report: Report) -> None:
    untouched = report.untouched
    assert (untouched.auc["fidelity"].auc, untouched.auc["alignment"].auc) == (1, 1)
    assert (untouched.accepted.hits, untouched.accepted.n) == (10, 10)
    assert (untouched.wrong_accepted.hits, untouched.wrong_accepted.n) == (0, 30)
    assert untouched.means["fidelity"].value == pytest.approx(200 / 255)
    assert untouched.flipped.hits == 0 and untouched.fall == {}


def test_what_changes_nothing_flips_nothing(report: Report) -> None:
    for name in ("crop", "blur", "scale", "flip", "contrast"):
        for level in curve(report, name).levels:
            assert level.flipped.hits == 0 and level.n == 40
            assert level.fall["fidelity"].value == level.fall["alignment"].value == 0
    assert not any(sentence.lower().startswith("crop") for sentence in report.limits)


def test_an_edit_is_told_by_who_reads_it_and_by_no_other(report: Report) -> None:
    # "red" is all that it reads: another colour drops alignment, another object does not.
    color, thing = curve(report, "color").levels[0], curve(report, "object").levels[0]
    assert color.n == thing.n == 20  # those of true alignment
    assert color.told["alignment"].auc == 1 and color.accepted.hits == 0
    assert thing.told["alignment"].auc == 0.5
    assert (thing.accepted.hits, thing.accepted.n) == (10, 10)
    assert color.auc["fidelity"].auc == 1 and color.fall["fidelity"].value == 0
    said = " ".join(report.limits)
    assert "Another object cannot be told: 100% (72% to 100%) of the right pictures" in said
    assert "nother color" not in said


def test_what_covers_the_hand_must_not_be_accepted(report: Report) -> None:
    # A grey cover makes a picture of 200 darker: 0.5 of it leaves (200 + 127) / 2, still bright.
    occlusion = curve(report, "occlusion")
    assert [level.lost for level in occlusion.levels] == [False, False, True, True, True]
    assert occlusion.levels[0].told == {} and occlusion.levels[0].auc == {}
    last = occlusion.levels[-1]
    assert last.means["fidelity"].value == pytest.approx(163 / 255, abs=0.02)
    assert (last.accepted.hits, last.accepted.n) == (10, 10)
    assert last.told["fidelity"].auc == 1 and last.told["alignment"].auc == 0.5
    assert any(sentence.startswith("Occlusion (20%)") for sentence in report.limits)


def test_a_fall_is_worked_by_hand(tmp_path: Path) -> None:
    class Swaps(Sees):
        """Believes in one wrong picture as soon as a picture is not the size it was."""

        def judge(
            self, images: Sequence[Image.Image], prompts: Sequence[str], thresholds: Thresholds
        ) -> list[Verdict]:
            verdicts = super().judge(images, prompts, thresholds)
            low = self._verdict(0.1, True, thresholds)
            return [
                low if image.size != (32, 32) and verdict.fidelity > 0.5 and n < 4 else verdict
                for n, (image, verdict) in enumerate(zip(images, verdicts, strict=True))
            ]

    items = judged(tmp_path, 20)
    level = curve(reported(items, Swaps()), "crop").levels[0]
    # Two of the ten right pictures lie below all ten wrong ones: 20 of 100 pairs are lost.
    assert level.auc["fidelity"].auc == pytest.approx(0.8)
    assert level.fall["fidelity"].value == pytest.approx(0.2)
    assert level.fall["fidelity"].low < 0.2 < level.fall["fidelity"].high
    assert (level.flipped.hits, level.flipped.n) == (1, 20)  # the other one was rejected before
    assert (level.now_rejected, level.now_accepted) == (1, 0)


def test_prompts_with_nothing_to_edit_are_left_out_and_counted(tmp_path: Path) -> None:
    items = judged(tmp_path, 40, "red fingers")
    found = reported(items)
    number = curve(found, "number")
    assert (number.untouched.n, number.left_out) == (0, 20)
    assert number.levels[0].told["alignment"].auc is None
    assert "Another number of hands: unknown, since it was tried on no prompt." in found.limits
    assert curve(found, "color").left_out == 0


def test_batches_are_small_and_give_the_same_figures(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluation.robustness.AT_ONCE", 7)
    sees = Sees()
    assert reported(judged(tmp_path), sees).curves == report.curves
    assert sees.most == 7


def test_pictures_are_chosen_by_hash_and_not_by_order(tmp_path: Path) -> None:
    items = judged(tmp_path)
    some = chosen(items, 20, 5)
    assert chosen(items[::-1], 20, 5) == some != chosen(items, 20, 6)
    with pytest.raises(InputError, match="none of 20 labelled pictures is wrong"):
        chosen([item for item in items if item.fidelity and item.alignment] * 2, 20, 5)
    with pytest.raises(InputError, match="is right in both: give labels of accepted"):
        chosen([item for item in items if not item.fidelity], 20, 5)


# The card


def test_the_section_takes_the_place_of_the_old_one(report: Report) -> None:
    readme = "# A verifier\n\n## Operating point\n\n0.5\n"
    once = with_section(readme, report)
    assert once.startswith(readme.rstrip()) and once.count(TITLE) == 1
    assert with_section(once, report) == once
    between = once.replace(
        "## Operating point", f"{TITLE}\n\nan older one\n\n## Operating point", 1
    )
    between = between[: between.rindex(TITLE)]
    again = with_section(between, report)
    assert "an older one" not in again and again.count(TITLE) == 1
    assert again.index(TITLE) < again.index("## Operating point")


def test_figures_in_the_folder_leave_the_verifier_the_same_one(
    tmp_path: Path, report: Report
) -> None:
    folder = save_tiny_verifier(tmp_path / "vilt")
    shutil.copytree(folder, tmp_path / "other")
    into_card(report, tmp_path / "other")
    one, other = (fingerprint(str(tmp_path / name), "verifier") for name in ("vilt", "other"))
    assert one.weights == other.weights
    assert read_report(tmp_path / "other" / JSON) == report
    assert (tmp_path / "other" / MARKDOWN).read_text() == markdown(report)


def test_a_broken_report_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / JSON).write_text("{}")
    with pytest.raises(InputError, match="is no report of robustness") as refused:
        read_report(tmp_path / JSON)
    assert "\n" not in str(refused.value)


def test_markdown_has_a_row_for_every_strength(report: Report) -> None:
    text = markdown(report)
    levels = sum(len(each.levels) for each in report.curves)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == levels + 4 * 2 + 1  # four tables' heads, and the untouched
    assert all(sentence[:30] in text for sentence in report.limits)


# The command


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with its own state and store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPV_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PPV_STORE_URL", (tmp_path / "store").as_uri())
    monkeypatch.setenv("PPV_VERIFIER__DEVICE", "cpu")
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def invoke(*arguments: str) -> tuple[int, str]:
    """The exit code of `main`, and what was printed or complained about."""
    result = CliRunner().invoke(cli, ["evaluate", "verifier", *arguments], env={"COLUMNS": "140"})
    if isinstance(result.exception, InputError):
        return 2, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def drawn_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled renders."""
    folder = tmp_path_factory.mktemp("labels")
    save_labels(folder, seed=5, count=24, captions=2, drawn=[], judge=None)
    return folder / "labels.jsonl"


def test_the_shipped_verifier_is_tried_end_to_end(at: Path, drawn_world: Path) -> None:
    code, out = invoke("--labels", str(drawn_world), "--out", "new", "--count", "40")
    assert code == 0, out
    for said in (
        "Transformations that leave the labels true",
        "Transformations after which nothing must be accepted",
        "Prompts edited so that they are false",
        "What it cannot tell:",
        f"html  {Path('new') / 'robustness.html'}",
    ):
        assert said in out
    assert sorted(path.name for path in (at / "new").iterdir()) == [
        "ROBUSTNESS.md", "robustness.html", "robustness.json"
    ]  # fmt: skip
    found = read_report(at / "new" / "robustness.json")
    assert found.pictures == 40 and found.labelled > 40
    assert len(found.curves) == len(TRANSFORMATIONS) + len(edits(KNOWN))
    assert all(each.untouched.n == 40 for each in found.curves if each.kind != "edit")
    page = (at / "new" / "robustness.html").read_text("utf-8")
    assert page.count("<img ") == sum(1 + len(each.strengths) for each in TRANSFORMATIONS)


def test_a_verifier_with_random_weights_cannot_tell_its_edits(at: Path, drawn_world: Path) -> None:
    folder = save_tiny_verifier(at / "vilt")
    before = fingerprint(str(folder), "verifier").weights
    given = ("--labels", str(drawn_world), "--verifier", "vilt", "--count", "30")
    code, out = invoke(*given, "--json", "--into-card")
    assert code == 0, out
    said = json.loads(out[out.index("{") :])
    assert said["pictures"] == 30 and said["verifier"]["name"] == "vilt"
    assert said == json.loads((folder / JSON).read_text())
    assert said == json.loads((at / "ppv-out" / "verifier" / JSON).read_text())
    assert TITLE in (folder / "README.md").read_text()
    assert any("cannot be told" in sentence or "unknown" in sentence for sentence in said["limits"])
    assert before == said["verifier"]["weights"]


def test_second_opinions_are_measured_on_the_same_labels(
    at: Path, drawn_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_verifier(at / "vilt")
    save_tiny_clip(at / "clip")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    with Provider() as provider:
        monkeypatch.setenv("PPV_VERIFIER__OPINIONS__CLIP_SCORE", "clip")
        monkeypatch.setenv("PPV_VERIFIER__OPINIONS__VISION", "tiny")
        monkeypatch.setenv("PPV_VERIFIER__OPINIONS__VISION_BASE_URL", provider.url)
        settings.cache_clear()
        provider.control(next=["refusal"])
        given = ("--labels", str(drawn_world), "--verifier", "vilt", "--count", "20")
        code, out = invoke(*given, "--out", "new")
    assert code == 0, out
    assert "Second opinions" in out
    found = read_report(at / "new" / JSON).opinions
    assert found is not None and set(found.scores) == {"clip_score", *VISION_SCORES}
    assert found.scores["clip_score"].fidelity.n == 20
    assert found.scores["vision_fidelity"].fidelity.n == 19 and found.unheard == {"vision": 1}
    assert found.usage.requests == 20
    page = (at / "new" / "robustness.html").read_text("utf-8")
    assert "Second opinions" in page and "vision gave no answer to 1" in page
    assert "vision gave no answer to 1" in (at / "new" / MARKDOWN).read_text()


def test_an_opinion_that_is_the_truth_has_an_auc_of_one(tmp_path: Path) -> None:
    items = judged(tmp_path)

    class Oracle:
        def hear(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Heard]:
            return [Heard({"bright": float(image.getpixel((0, 0))[0])}) for image in images]

    said = measure_opinions([Oracle()], items).scores["bright"]
    assert said.fidelity.auc == 1.0 and said.fidelity.n == len(items)
    assert said.alignment.auc == 0.5  # brightness says nothing of the prompt


def test_the_same_call_gives_the_same_figures(at: Path, drawn_world: Path) -> None:
    save_tiny_verifier(at / "vilt")
    given = ("--labels", str(drawn_world), "--verifier", "vilt", "--count", "20", "--out")
    for name in ("one", "two"):
        assert invoke(*given, name)[0] == 0
    for file in (JSON, MARKDOWN, "robustness.html"):
        assert (at / "one" / file).read_bytes() == (at / "two" / file).read_bytes()


def a_label(number: int, **fields: Any) -> str:
    values: dict[str, Any] = {
        "id": digest([number]),
        "image": f"{number}.png",
        "prompt": TEXT,
        "base": f"base {number % 5}",
        "category": "power",
        "fidelity": number % 2 == 0,
        "alignment": number % 3 == 0,
        "annotator": "ann",
        "at": "2026-11-23T12:00:00+00:00",
    }
    return Label(**(values | fields)).model_dump_json() + "\n"


def labelled(folder: Path, count: int = 24, **fields: Any) -> str:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        noise(number).save(folder / f"{number}.png")
    file = folder / "labels.jsonl"
    file.write_text("".join(a_label(number, **fields) for number in range(count)))
    return str(file)


def test_what_cannot_be_measured_is_said_in_one_line(at: Path) -> None:
    save_tiny_verifier(at / "vilt")
    good = labelled(at / "good")
    one_class = labelled(at / "one-class", fidelity=True)
    cases = [
        ((), "give --labels FILE or --labels SET"),
        (("--labels", "gone.jsonl"), "no labels 'gone.jsonl'"),
        (("--labels", "nowhere"), "no labels 'nowhere': neither a file nor a set of labels"),
        (("--labels", one_class), "every label says yes of fidelity"),
        (("--labels", labelled(at / "few", 12)), "12 labelled pictures are too few"),
        (("--labels", good, "--verifier", "absent"), "no model at 'absent'"),
        (("--labels", good, "--verifier", "a/b", "--into-card"), "is a hub id"),
    ]
    for given, complaint in cases:
        code, line = invoke(*given)
        assert code == 2 and complaint in line, line
        assert "\n" not in line


def test_a_picture_that_is_gone_is_named(at: Path) -> None:
    file = labelled(at)
    (at / "7.png").unlink()
    code, line = invoke("--labels", file)
    assert code == 2 and "7.png: it is gone" in line and "\n" not in line


def test_a_folder_that_cannot_be_written_to_is_named(at: Path) -> None:
    save_tiny_verifier(at / "vilt")
    (at / "taken").write_text("a file")
    code, line = invoke("--labels", labelled(at), "--verifier", "vilt", "--out", "taken")
    assert code == 2 and "'taken' cannot be written to" in line and "\n" not in line


def test_the_commands_defaults_are_the_librarys() -> None:
    defaults = commands.verifier.__defaults__ or ()
    assert COUNT in defaults and SEED in defaults


# The page


HOSTILE = '<script>window.hacked = 1</script> </style> "><img src=x> {{ 7 * 7 }} \u202e'


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a verifier whose name and prompts are hostile."""
    folder = tmp_path_factory.mktemp("page")
    items = judged(folder, 40, f"{TEXT}, {HOSTILE}")
    found = reported(items)
    ref = ModelRef(name=HOSTILE, weights="sha256:" + "0" * 64)
    shown = examples(Sees(), items, KNOWN, Thresholds(), seed=1)
    to = folder / "robustness.html"
    write_robustness_page(found.model_copy(update={"verifier": ref}), shown, to)
    return to


@pytest.fixture
def page(browser: Browser, written: Path) -> Iterator[Page]:
    """The page, opened; the test fails if it complains or asks for anything but itself."""
    with quiet(browser, written) as page:
        yield page


def test_the_page_shows_limits_curves_and_every_strength(page: Page, report: Report) -> None:
    assert page.locator(".limits li").count() == len(report.limits)
    assert page.locator(".trial").count() == len(TRANSFORMATIONS) + 1  # several attributes
    assert page.locator(".panel svg").count() == 3 * (len(TRANSFORMATIONS) + 1)
    strengths = sum(len(each.strengths) for each in TRANSFORMATIONS)
    assert page.locator(".steps img").count() == strengths + len(TRANSFORMATIONS)
    assert page.locator(".edits tbody tr").count() == len(edits(KNOWN)) - 1
    color = page.locator(".edits tbody tr", has_text="Another color")
    assert color.locator("del").all_text_contents() == ["red"]
    assert color.locator("ins").count() == 1
    dots = page.locator(".trial", has_text="Occlusion").first.locator(".panel").first
    assert dots.locator("circle").count() == 2 * 6


def test_curves_stand_where_their_values_are(page: Page, report: Report) -> None:
    first = page.locator(".trial", has_text="Crop").first.locator(".panel").first
    cy = float(first.locator(".of-fidelity circle").first.get_attribute("cy") or "nan")
    mean = curve(report, "crop").untouched.means["fidelity"].value
    assert mean is not None and cy == pytest.approx(120 * (1 - mean), abs=0.1)


def test_texts_from_elsewhere_are_text(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator("script, img[src=x]").count() == 0
    assert any("<script>" in text for text in page.locator(".example").all_text_contents())


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways(page: Page, width: int, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 740})
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_assistive_technology_finds_its_way(page: Page) -> None:
    assert page.locator("h1").count() == 1
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("svg:not([aria-hidden]):not([role=img])").count() == 0
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    labels = page.locator("[aria-labelledby]").evaluate_all(
        "es => es.flatMap((e) => e.getAttribute('aria-labelledby').split(' '))"
    )
    assert [label for label in labels if page.locator(f"#{label}").count() != 1] == []
    levels = page.locator("h1, h2, h3, h4").evaluate_all("hs => hs.map((h) => +h.tagName[1])")
    assert all(below <= above + 1 for above, below in pairwise(levels))
