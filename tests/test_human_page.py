"""The comparing page: a real server, asked over HTTP and by a real browser's keys."""

import hashlib
import io
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from pipeline.choices import Answer, Answers, Choice, Study
from pipeline.config import PrompterConfig, ProposerConfig
from pipeline.errors import InputError
from pipeline.evaluation.pairing import Turn, turns
from pipeline.types import DetailedPrompt, ProposalBatch, ProposerRef, Sampler, digest
from storage.folder import FolderStore
from storage.runs import RunFolder
from storage.said import as_lines
from storage.studies import Studies
from tests.served import (
    PPV,
    Served,
    environment,
    opened,
    press,
    serving,
    settle,
)
from tests.tiny import a_record, a_run
from workers.comparing.work import Comparing, arms_in, make_study

HOSTILE = (
    "<script>window.hacked = 1</script> here",
    '"><img src=x onerror="window.hacked = 1"> a mug',
    "يد تمسك كوبًا أحمر \u202e reversed",
    "unbreakable" * 300,
)
ARMS = ("base", "tuned")
ANSWERED = "[aria-pressed='true']"


def runs_to_compare(place: Path, prompts: int, *, texts: Sequence[str] = ()) -> Path:
    """A run an arm, of the same prompts and seeds, and the models.json that names them."""
    store = FolderStore(place / "store")
    for arm in ARMS:
        folder = RunFolder(store, f"arm-{arm}")
        run = a_run(
            PrompterConfig(prompts_per_base=1),
            proposer=ProposerConfig(images_per_prompt=1),
            base_prompts=prompts,
        )
        folder.write(run.model_copy(update={"name": folder.name}))
        images = [
            (
                DetailedPrompt(
                    id=digest(["prompt", n]),
                    base=f"thing {n}",
                    index=0,
                    text=texts[n % len(texts)] if texts else f"thing{n} place{n} colour{n}",
                    category="",
                ),
                n,
            )
            for n in range(prompts)
        ]
        drawer = ProposerRef(name=arm, weights=f"sha256:{hashlib.sha256(arm.encode()).hexdigest()}")
        batch = ProposalBatch.of(folder.name, drawer, Sampler(), images)
        pictures = [a_picture(arm, n) for n in range(prompts)]
        folder.write_records(
            batch,
            [
                a_record(proposal, 1.0, 1.0, image=data, run=folder.name)
                for proposal, data in zip(batch.proposals, pictures, strict=True)
            ],
        )
        for proposal, data in zip(batch.proposals, pictures, strict=True):
            folder.write_image(proposal.id, data)
    arms = {arm: {"models": [{"run": f"arm-{arm}", "short": False}]} for arm in ARMS}
    models = place / "models.json"
    models.write_text(json.dumps({"arms": arms, "suites": {}}))
    return models


def a_picture(arm: str, number: int) -> bytes:
    file = io.BytesIO()
    colour = (number * 37 % 256, number * 91 % 256, 60 if arm == "base" else 200)
    Image.new("RGB", (64, 64), colour).save(file, "PNG", compress_level=1)
    return file.getvalue()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study lies that most tests answer, each going on where the one before ended."""
    place = tmp_path_factory.mktemp("shared")
    runs_to_compare(place, 60)
    return place


@pytest.fixture(scope="module")
def server(shared: Path) -> Iterator[Served]:
    with comparing(shared, "--models", "models.json", "--pairs", "60") as served:
        yield served


def comparing(place: Path, *options: str, annotator: str = "ann") -> AbstractContextManager[Served]:
    return serving(place, "evaluate", "human", "hands", "--annotator", annotator, *options)


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    with opened(browser, server) as page:
        yield page


def pair(page: Page) -> str:
    return str(page.locator(".pair").get_attribute("data-pair"))


def journal(place: Path, annotator: str = "ann") -> list[Choice]:
    path = place / "state" / "studies" / f"hands.{annotator}.jsonl"
    return [Choice.model_validate_json(line) for line in path.read_bytes().splitlines()]


def said(place: Path, pair_id: str) -> Answers:
    return {choice.pair: choice.answers for choice in journal(place)}.get(pair_id, Answers())


def study_in(place: Path) -> Study:
    return Studies(FolderStore(place / "store")).study("hands")


# By keys


def test_three_arrow_keys_answer_a_pair_and_bring_the_next(page: Page, shared: Path) -> None:
    first, ahead = pair(page), page.locator(".ahead img").first.get_attribute("id")

    press(page, "ArrowLeft")
    assert pair(page) == first
    assert page.locator(".due legend").text_content() == "Which shows better what the text says?"
    press(page, "ArrowDown")
    press(page, "ArrowRight")

    assert f"picture-{pair(page)}-left" == ahead
    answers = [choice.answers for choice in journal(shared) if choice.pair == first]
    assert answers == [
        Answers("left"),
        Answers("left", "tie"),
        Answers("left", "tie", "right"),
    ]


def test_the_record_says_what_was_shown_where(page: Page, shared: Path) -> None:
    first = pair(page)
    shown = page.locator(".frame img").evaluate_all("i => i.map((e) => e.src.split('/').pop())")

    press(page, "ArrowLeft", "ArrowLeft", "ArrowLeft")

    last = journal(shared)[-1]
    assert (last.pair, [last.left, last.right]) == (first, shown)
    asked = {each.id: each for each in study_in(shared).pairs}[first]
    assert set(shown) == {asked.one.id, asked.other.id}


def test_nothing_on_the_page_says_who_drew(page: Page, shared: Path) -> None:
    study = study_in(shared)
    seen = page.content()

    for word in (*ARMS, "arm-", "check", "seed"):
        assert word not in seen, word
    at_left = [turn.left.arm for turn in turns(study, digest(["hands", "ann"]))]
    assert 20 < at_left.count("base") < 46


def test_undo_goes_back_key_by_key_and_skip_can_be_undone(page: Page, shared: Path) -> None:
    first = pair(page)
    press(page, "ArrowLeft", "ArrowRight", "ArrowDown")
    second = pair(page)
    press(page, "x")
    assert pair(page) not in (first, second)

    press(page, "u")
    assert pair(page) == second
    press(page, "u")
    assert pair(page) == first
    assert page.locator(ANSWERED).count() == 2
    press(page, "ArrowRight")  # the third question is due
    assert said(shared, first) == Answers("left", "right", "right")
    press(page, "u", "u", "u")

    assert page.locator(ANSWERED).count() == 0
    assert not any(said(shared, first))


@pytest.mark.parametrize("pause_ms", [50, 0])
def test_no_key_is_lost_however_fast_they_come(page: Page, shared: Path, pause_ms: int) -> None:
    before = len(journal(shared))

    for _ in range(3):
        for key in ("ArrowLeft", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
            page.wait_for_timeout(pause_ms)

    settle(page)
    new = journal(shared)[before:]
    assert len(new) == 9
    last = {choice.pair: choice.answers for choice in new}
    assert list(last.values()) == [Answers("left", "tie", "right")] * 3


def test_an_earlier_question_can_be_answered_again_by_tab_and_enter(
    page: Page, shared: Path
) -> None:
    first = pair(page)
    press(page, "ArrowLeft", "ArrowLeft")
    page.locator(".question").first.locator("button").last.focus()
    press(page, "Enter")
    assert said(shared, first) == Answers("right", "left")

    press(page, "ArrowDown", "ArrowDown")

    assert said(shared, first) == Answers("right", "tie", "tie")
    assert pair(page) != first


def test_the_page_opened_twice_loses_nothing(page: Page, shared: Path) -> None:
    with page.context.expect_page() as other_tab:
        page.evaluate("window.open('/')")
    other = other_tab.value
    other.locator(".pair").wait_for()
    other.wait_for_load_state()  # its script listens to keys
    first = pair(page)
    assert pair(other) == first

    press(other, "ArrowLeft", "ArrowLeft", "ArrowLeft")
    press(page, "ArrowRight", "ArrowRight", "ArrowRight")  # all three are for the pair it shows

    assert said(shared, first) == Answers("right", "right", "right")
    assert pair(page) == pair(other) != first


# How it looks


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_no_width_scrolls_sideways(browser: Browser, server: Served, width: int) -> None:
    with opened(browser, server, viewport={"width": width, "height": 740}) as page:
        page.locator(".pair").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        left, right = (page.locator(".frame").nth(n).bounding_box() for n in range(2))
        assert left and right
        assert left["y"] == right["y"]  # side by side, even on a phone
        assert left["width"] == pytest.approx(right["width"], abs=1)


def test_on_a_phone_it_is_done_by_taps(browser: Browser, server: Served, shared: Path) -> None:
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
    with opened(browser, server, **phone) as page:
        first = pair(page)
        for question in range(3):
            button = page.locator(".question").nth(question).locator("button").first
            box = button.bounding_box()
            assert box and box["height"] >= 40
            assert box["y"] + box["height"] <= 740
            with page.expect_response(lambda response: response.request.method == "POST"):
                button.tap()
            settle(page)

        assert said(shared, first) == Answers("left", "left", "left")
        assert pair(page) != first


def test_assistive_technology_finds_its_way(page: Page) -> None:
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "Comparing hands · ppv"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("fieldset:not(:has(legend))").count() == 0
    assert page.locator("fieldset[aria-current=step]").count() == 1


# What goes wrong


def test_hostile_prompts_and_killed_servers(browser: Browser, tmp_path: Path) -> None:
    runs_to_compare(tmp_path, len(HOSTILE), texts=HOSTILE)
    small = {"width": 320, "height": 740}
    with (
        comparing(tmp_path, "--models", "models.json", "--checks", "0") as served,
        browser.new_context(viewport=small) as context,  # type: ignore[arg-type]
    ):
        page = context.new_page()
        page.goto(served.url)
        prompts = set()
        for _ in HOSTILE[1:]:
            prompts.add(page.locator(".prompt").text_content())
            assert page.locator(".prompt *").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= 320
            press(page, "ArrowLeft", "ArrowLeft", "ArrowLeft")
        prompts.add(page.locator(".prompt").text_content())
        assert page.evaluate("window.hacked") is None
        assert prompts == set(HOSTILE)
        press(page, "ArrowRight")
        half = pair(page)

        served.kill()
        page.keyboard.press("ArrowDown")
        page.locator("#trouble:visible").wait_for()
        assert "the last key was not kept" in str(page.locator("#trouble").text_content())

    assert said(tmp_path, half) == Answers("right")
    path = tmp_path / "state" / "studies" / "hands.ann.jsonl"
    with path.open("ab") as file:
        file.write(b'{"pair": "half a li')  # as if it had died while it wrote

    with comparing(tmp_path) as served, opened(browser, served) as page:  # its name is enough
        assert pair(page) == half
        assert page.locator(ANSWERED).count() == 1
        press(page, "ArrowDown", "ArrowDown")
        page.get_by_role("heading", name="Nothing is left").wait_for()
        assert "ended in half a line, which was dropped" in served.log.read_text()
    kept = Studies(FolderStore(tmp_path / "store")).read("hands")
    assert list(kept) == journal(tmp_path)


def test_pairs_whose_picture_is_gone_are_passed_over(browser: Browser, tmp_path: Path) -> None:
    runs_to_compare(tmp_path, 4)
    make_hands(tmp_path)
    order = turns(study_in(tmp_path), digest(["hands", "ann"]))
    image_of(tmp_path, order[0], "left").unlink()
    image_of(tmp_path, order[2], "right").write_bytes(b"no picture")
    with browser.new_context() as context, comparing(tmp_path) as served:
        page = context.new_page()
        page.goto(served.url)

        page.locator(f'[data-pair="{order[1].id}"]').wait_for()
        assert "which has a picture that is" in str(page.locator(".news").text_content())
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        page.locator(f'[data-pair="{order[3].id}"]').wait_for()

        assert "2 without their pictures" in str(page.locator(".counts").text_content())
        assert {choice.pair for choice in journal(tmp_path)} == {order[1].id}


def make_hands(place: Path, check_share: float = 0) -> Study:
    """The study as the command makes it."""
    arms = arms_in(place / "models.json")
    store = FolderStore(place / "store")
    return make_study(store, "hands", arms, [], pairs=100, check_share=check_share, seed=0)


def image_of(place: Path, turn: Turn, side: str) -> Path:
    it = turn.left if side == "left" else turn.right
    return place / "store" / "runs" / it.run / "images" / f"{it.id}.png"


def test_only_who_has_the_token_gets_in(server: Served, shared: Path) -> None:
    before = len(journal(shared))
    path = f"/pairs/{journal(shared)[0].pair}/answers/overall/left"

    assert server.ask("GET", "/").status == 200
    for method, where in (("GET", "/"), ("GET", "/next"), ("POST", path), ("POST", "/undo")):
        assert server.ask(method, where, Cookie="").status == 403
    assert server.ask("POST", path, Origin="http://evil.example").status == 403
    assert server.ask("GET", "/", Host="evil.example").status == 421
    assert server.ask("POST", f"/pairs/{'0' * 32}/answers/overall/left").status == 404
    assert server.ask("POST", path.replace("left", "best")).status == 400
    assert server.ask("GET", "/images/" + "0" * 32).status == 404
    assert len(journal(shared)) == before


# The study and its result


def test_several_people_and_a_careless_one(browser: Browser, tmp_path: Path) -> None:
    runs_to_compare(tmp_path, 40)
    study = make_hands(tmp_path, check_share=0.2)
    studies = Studies(FolderStore(tmp_path / "store"))
    for name, prefers in (("ann", "tuned"), ("bo", "tuned"), ("lefty", "")):
        choices = [choice_of(turn, name, prefers) for turn in turns(study, name)]
        studies.write_bytes("hands", name, as_lines(choices))

    told = evaluate_human(tmp_path, "hands", "--result")

    assert told.returncode == 0, told.stderr
    out = tmp_path / "ppv-out" / "hands"
    found = json.loads((out / "human.json").read_text())
    assert found["counted"] == ["ann", "bo"]
    overall = found["questions"]["overall"]
    assert overall["answers"] == 80
    wins = overall["arms"]["tuned"]["against"]["base"]
    assert (wins["won"], wins["tied"], wins["lost"]) == (60, 20, 0)
    assert overall["agreement"] == {"alpha": 1.0, "pairs": 40}
    assert overall["arms"]["tuned"]["strength"]["value"] > 2
    words = " ".join(told.stdout.split())
    assert "Which is better, all in all? 80 answers." in words
    assert "ann 50 10 of 10" in words
    assert "note: lefty is left out: they" in words
    with browser.new_context(viewport={"width": 375, "height": 740}) as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto((out / "human.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.locator("section").nth(2).locator("tbody tr").count() == 2
        assert "alpha 1.00" in str(page.locator("section .note").nth(2).text_content())
        assert page.locator("rect.one").first.bounding_box()
        assert complaints == []


def choice_of(turn: Turn, name: str, prefers: str) -> Choice:
    answer = answer_of(turn, prefers)
    return Choice(
        pair=turn.id,
        left=turn.left.id,
        right=turn.right.id,
        fidelity=answer,
        alignment=answer,
        overall=answer,
        annotator=name,
        at="2026-11-24T00:00:00.000000+00:00",
    )


def answer_of(turn: Turn, prefers: str) -> Answer:
    """Of somebody who prefers an arm, calls a fourth of the pairs a tie, and minds the checks."""
    if not prefers:
        return "left"
    if turn.pair.check:
        return "left" if turn.left == turn.pair.one else "right"
    if int(turn.pair.prompt.split()[0].removeprefix("thing")) % 4 == 0:
        return "tie"
    return "left" if turn.left.arm == prefers else "right"


def evaluate_human(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PPV, "evaluate", "human", *arguments],
        env=environment(place),
        cwd=place,
        capture_output=True,
        text=True,
    )


def test_a_study_is_frozen_and_found_again(tmp_path: Path) -> None:
    models = runs_to_compare(tmp_path, 4)
    study = make_hands(tmp_path)
    assert make_hands(tmp_path) == study

    store = FolderStore(tmp_path / "store")
    with pytest.raises(InputError, match=r"no study 'other' in .* \(there: hands\)"):
        Comparing(store, "other", tmp_path)
    with pytest.raises(InputError, match="nobody has compared anything in study 'hands' yet"):
        Comparing(store, "hands", tmp_path).result()
    with pytest.raises(InputError, match="study 'hands' is there and was made otherwise"):
        make_study(store, "hands", arms_in(models), [], pairs=3, check_share=0, seed=0)
    turned = dict(reversed(arms_in(models).items()))
    with pytest.raises(InputError, match="was made otherwise"):
        make_study(store, "hands", turned, [], pairs=100, check_share=0, seed=0)


def test_a_study_can_be_confined_to_a_suite(tmp_path: Path) -> None:
    models = runs_to_compare(tmp_path, 8)
    suite = tmp_path / "some.txt"
    suite.write_text("thing1 place1 colour1\nthing5 place5 colour5\n")

    study = make_study(
        FolderStore(tmp_path / "store"),
        "some",
        arms_in(models),
        [str(suite)],
        pairs=10,
        check_share=0,
        seed=0,
    )

    assert {pair.prompt for pair in study.pairs} == set(suite.read_text().splitlines())


def test_an_unfinished_arm_is_said(tmp_path: Path) -> None:
    models = runs_to_compare(tmp_path, 4)
    folder = RunFolder(FolderStore(tmp_path / "store"), "arm-tuned")
    folder.write(folder.read().model_copy(update={"base_prompts": 6}))

    study = make_hands(tmp_path)

    assert arms_in(models) == {"base": "arm-base", "tuned": "arm-tuned"}
    assert "arm 'tuned' was not finished" in study.notes[-1]
    assert "2 pictures" in study.notes[-1]


TWO = '{"arms": {"a": {"models": [{"run": "x"}]}, "b": {"models": [{"run": "y"}]}}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no models.json of `ppv evaluate models`: Invalid JSON"),
        ("[]", "is no models.json of `ppv evaluate models`: Input should be an object"),
        (TWO.replace('"b"', '"a"'), "arms: Dictionary should have at least 2 items"),
        (TWO.replace("x", "../x"), "arms.a.models.0.run: String should match"),
        (TWO.replace('"run": "x"', ""), "arms.a.models.0.run: Field required"),
        (TWO.replace('{"run": "x"}', ""), "arms.a.models: List should have at least 1 item"),
    ],
)
def test_what_is_no_models_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "models.json"
    path.write_text(text)

    with pytest.raises(InputError) as failed:
        arms_in(path)
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)
    with pytest.raises(InputError, match="No such file"):
        arms_in(tmp_path / "absent.json")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(TWO)
    for arguments, start in (
        (("hands", "--pairs", "5"), "--prompts, --pairs, --checks and --seed say how a study is"),
        (("hands", "--models", "models.json"), "no run 'x' in"),
    ):
        done = evaluate_human(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"ppv: {start}"), done.stderr
        assert done.stderr.count("\n") == 1
