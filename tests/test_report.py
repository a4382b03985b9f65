"""The report: what it counts and chooses, and how it behaves in a real browser."""

import base64
import hashlib
import io
import random
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from pipeline.config import VerifierConfig
from pipeline.types import (
    DetailedPrompt,
    Failure,
    Proposal,
    ProposerRef,
    Record,
    Sampler,
    Thresholds,
    digest,
)
from storage.objects import ObjectNotFound
from storage.progress import Tally
from tests.pages import quiet
from tests.tiny import a_record, a_run
from workers.pages.report import Choice, Troubles, data_uri, margin, write_report
from workers.pages.wording import percent, score, visible

MODEL = ProposerRef(name="miniature", weights="sha256:" + "0123456789abcdef" * 4)
THRESHOLDS = Thresholds(fidelity=0.6, alignment=0.5)
RUN = a_run(base_prompts=1).model_copy(
    update={
        "name": "demo",
        "proposers": (MODEL,),
        "verifier": VerifierConfig(thresholds=THRESHOLDS),
        "verifier_ref": MODEL,
        "created_at": "2026-11-23T16:20:09+00:00",
    }
)
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1"> a mug',
    "{{ 7 * 7 }} </style></script><b>bold</b>",
    "يد تمسك كوبًا أحمر \u202e reversed",
    "a hand 👋🏽 holding \x00\x1b\x07 a mug",
    "unbreakable" * 400,
)


def judged(
    number: int,
    fidelity: float,
    alignment: float,
    category: str = "power",
    text: str = "a hand holding a mug",
    clauses: int = 1,
) -> Record:
    prompt = DetailedPrompt(
        id=digest(["prompt", number]), base="a mug", index=0, text=text, category=category
    )
    proposal = Proposal(prompt=prompt, proposer=MODEL, seed=number, sampler=Sampler())
    return a_record(
        proposal, fidelity, alignment, thresholds=THRESHOLDS, clauses=clauses, run=RUN.name
    )


def a_picture(side_px: int = 64, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px // 2), (200, 120, 40)).save(file, kind)
    return file.getvalue()


def any_picture(_: Record) -> bytes:
    return a_picture()


def many(count: int) -> list[Record]:
    rng = random.Random(1)
    return [
        judged(i, rng.random(), rng.random(), rng.choice(("power", "pinch", "hook")))
        for i in range(count)
    ]


# Words and numbers


def test_a_score_below_its_threshold_never_reads_as_reaching_it() -> None:
    assert score(0.4999) == "0.49"
    assert score(0.29) == "0.29"  # 0.29 * 100 is 28.999... in binary
    assert score(1.0) == "1.00"


def test_a_rate_of_all_is_all() -> None:
    assert percent(999, 1000) == "99%"
    assert percent(1000, 1000) == "100%"
    assert percent(0, 0) == "\N{EN DASH}"


def test_control_characters_become_visible() -> None:
    assert visible("a\x00b\x1bc\nd\x9fe") == "a\u2400b\u241bc d\ufffde"


def test_the_page_says_the_numbers_of_the_run(tmp_path: Path) -> None:
    records = [
        judged(0, 0.6, 0.5),  # on both thresholds: accepted
        judged(1, 0.5, 0.9),
        judged(2, 0.9, 0.4),
        judged(3, 0.1, 0.1),
        judged(4, 0.9, 0.9, category="hook"),
    ]

    page = written(tmp_path, records, tally=Tally(expected=12, failed=3))

    numbers = dict(re.findall(r"<dt>(\w+)</dt><dd>([\d,]+)</dd></div>", page))
    assert numbers == {
        "expected": "12", "accepted": "2", "rejected": "3", "failed": "3", "missing": "4"
    }  # fmt: skip
    assert "<strong>40%</strong>" in page
    assert "2 reach both thresholds" in page
    assert "1 miss only the first, 1 only the second, 1 both" in page


def test_a_run_without_records_has_a_page(tmp_path: Path) -> None:
    page = written(tmp_path, [], tally=Tally())

    assert "No proposal has been judged yet." in page
    assert "Nothing." in page


# The choice of pictures


def test_few_records_are_all_shown() -> None:
    records = many(20)
    choice = Choice(20)
    for record in records:
        choice.add(record)

    assert {r.id for r in choice.records()} == {r.id for r in records}


def test_the_choice_is_bounded_and_the_same_in_any_order() -> None:
    records = many(400)
    chosen = []
    for seed in (1, 2):
        random.Random(seed).shuffle(records)
        choice = Choice(60)
        for record in records:
            choice.add(record)
        chosen.append([record.id for record in choice.records()])

    assert len(chosen[0]) == len(set(chosen[0])) == 60
    assert chosen[0] == chosen[1]


def test_each_category_shows_its_best_its_nearest_and_its_worst() -> None:
    records = many(400)
    choice = Choice(60)
    for record in records:
        choice.add(record)
    chosen = {record.id for record in choice.records()}

    for category in ("power", "pinch", "hook"):
        here = [r for r in records if r.proposal.prompt.category == category]
        by_margin = sorted(here, key=lambda r: margin(r.verdict))
        nearest = min(here, key=lambda r: abs(margin(r.verdict)))
        assert {by_margin[0].id, by_margin[-1].id, nearest.id} <= chosen


def test_rare_categories_are_all_there() -> None:
    choice = Choice(60)
    for record in many(400):
        choice.add(record)
    for i in range(40):
        choice.add(judged(1000 + i, 0.9, 0.9, category=f"rare {i}"))
    categories = [record.proposal.prompt.category for record in choice.records()]

    assert len(set(categories)) == 43
    assert len(categories) == 58  # a frequent one has a share of 2: 2 best, 2 nearest, 2 worst


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    alive: weakref.WeakValueDictionary[int, Record] = weakref.WeakValueDictionary()
    most = 0

    def stream() -> Iterator[Record]:
        nonlocal most
        for i in range(2000):
            record = judged(i, i % 97 / 97, i % 89 / 89)
            alive[i] = record
            most = max(most, len(alive))
            yield record

    page = written(tmp_path, stream(), tally=Tally(expected=2000), pictures=12)

    assert most < 60
    assert page.count("<figure>") == 12
    assert "12 of 2,000 proposals" in page


def test_only_pictures_that_are_shown_are_fetched(tmp_path: Path) -> None:
    fetched: list[str] = []

    def image_of(record: Record) -> bytes:
        fetched.append(record.id)
        return a_picture()

    write_report(RUN, many(100), [], Tally(), image_of, tmp_path / "r.html", pictures=9)

    assert len(fetched) == len(set(fetched)) == 9


# Pictures in the page


def test_a_small_png_is_embedded_as_it_is() -> None:
    picture = a_picture(128)

    assert data_uri(picture) == f"data:image/png;base64,{base64.b64encode(picture).decode()}"


@pytest.mark.parametrize(("side_px", "kind"), [(1024, "PNG"), (64, "BMP")])
def test_other_pictures_become_thumbnails(side_px: int, kind: str) -> None:
    head, data = str(data_uri(a_picture(side_px, kind))).split(",")

    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
        assert max(thumbnail.size) == min(side_px, 256)


def test_a_missing_or_broken_picture_leaves_its_place(tmp_path: Path) -> None:
    def image_of(record: Record) -> bytes:
        if record.proposal.seed == 0:
            raise ObjectNotFound("gone")
        return (b"", b"no picture", a_picture()[:60], a_picture())[record.proposal.seed - 1]

    page = written(tmp_path, [judged(i, 0.9, 0.9) for i in range(5)], image_of=image_of)

    assert page.count("picture missing") == 4
    assert page.count("data:image/png") == 1


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("the old page")

    def image_of(_: Record) -> bytes:
        raise ConnectionError("the store went away")

    with pytest.raises(ConnectionError):
        written(tmp_path, many(3), image_of=image_of)

    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "the old page"


# Failures


def test_failures_are_counted_by_their_error_and_listed_up_to_a_bound() -> None:
    troubles = Troubles()
    for i in reversed(range(3000)):
        error = "OutOfMemory\nlong tail" if i % 3 else f"unique {i}"
        troubles.add(
            Failure(id=digest(i), stage="propose", subject=f"{i:05}", error=error, tries=3)
        )

    assert troubles.total == 3000
    assert troubles.reasons()[0] == ("propose", "OutOfMemory", 2000)
    assert sum(times for _, _, times in troubles.reasons()) == 3000
    assert troubles.reasons()[-1][1] == "other errors"
    assert [f.subject for f in troubles.listed()] == [f"{i:05}" for i in range(100)]


# In general


def test_importing_the_report_loads_neither_torch_nor_pillow() -> None:
    code = "import sys, workers.pages.report; print({'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_the_policy_names_exactly_what_is_inlined(tmp_path: Path) -> None:
    page = written(tmp_path, many(2))

    policy = page.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src &#39;none&#39;; img-src data:;")
    for tag in ("style", "script"):
        (inlined,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        sha = base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{sha}&#39;" in policy
    assert "unsafe" not in policy


def test_text_has_contrast_enough_in_light_and_dark() -> None:
    css = (Path(__file__).parents[1] / "workers/pages/report.css").read_text("utf-8")
    for scheme in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        color = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
        for text in ("ink", "quiet", "accepted", "alarm"):
            for ground in ("paper", "sheet"):
                assert contrast(color[text], color[ground]) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two #rrggbb colours."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


# In a browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every hostile prompt, 6 accepted and 6 rejected ones in two categories."""
    records = [
        judged(
            i,
            fidelity=0.2 + 0.7 * (i % 2),
            alignment=0.8,
            category="power" if i < 8 else "pinch <i>grasp</i>",
            text=HOSTILE[i % len(HOSTILE)],
            clauses=1 + i % 3,
        )
        for i in range(12)
    ]
    failures = [
        Failure(id=digest(text), stage="propose", subject=text, error=text, tries=2)
        for text in HOSTILE
    ]
    to = tmp_path_factory.mktemp("report") / "report.html"
    write_report(RUN, records, failures, Tally(expected=20, failed=6), any_picture, to)
    return to


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report, opened; the test fails if it complains or asks for anything but itself."""
    with quiet(browser, report) as page:
        yield page


def shown(page: Page) -> int:
    return page.locator("figure:visible img").count()


def test_hostile_prompts_are_text(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1
    assert page.locator(".prompt *, .errors b, .errors img, h3 i").count() == 0
    prompts = page.locator(".prompt").all_text_contents()
    for text in HOSTILE[:4]:
        assert text in prompts
    assert any("\u2400\u241b\u2407" in prompt for prompt in prompts)


def test_verdict_buttons_filter_the_pictures(page: Page) -> None:
    assert shown(page) == 12
    page.get_by_role("button", name="Rejected").click()
    assert shown(page) == 6
    assert page.locator("output").text_content() == "6 shown"
    page.get_by_role("combobox", name="Category").select_option("power")
    assert shown(page) == 4
    page.get_by_role("button", name="All").click()
    assert shown(page) == 8


def test_pictures_are_sorted_within_their_category(page: Page) -> None:
    first = page.locator(".category").first.locator(".card").first
    assert "accepted" in str(first.get_attribute("class"))
    page.get_by_role("combobox", name="Order").select_option("worst first")
    assert "rejected" in str(first.get_attribute("class"))


def test_the_keyboard_reaches_the_filters(page: Page) -> None:
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.verdict") == "rejected":
            break
    page.keyboard.press("Enter")

    assert shown(page) == 6
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_command_that_draws_it_again_can_be_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    card = page.locator(".card").first
    card.locator("summary").click()
    card.get_by_role("button", name="Copy command").click()
    card.get_by_role("button", name="Copied").wait_for()

    copied = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"ppv reproduce demo [0-9a-f]{32}", copied)


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_no_width_scrolls_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")

    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_assistive_technology_finds_its_way(page: Page) -> None:
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "demo · ppv report"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("svg:not([aria-hidden]):not([role=img])").count() == 0
    labels = page.locator("[aria-labelledby]").evaluate_all(
        "es => es.flatMap((e) => e.getAttribute('aria-labelledby').split(' '))"
    )
    assert [label for label in labels if page.locator(f"#{label}").count() != 1] == []
    levels = page.locator("h1, h2, h3, h4").evaluate_all("hs => hs.map((h) => +h.tagName[1])")
    assert all(below <= above + 1 for above, below in pairwise(levels))


def test_without_scripts_it_is_the_whole_page(browser: Browser, report: Path) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(report.as_uri())

        assert shown(page) == 12
        assert page.locator(".filters").is_hidden()
        assert page.locator(".copy").first.is_hidden()


def written(
    folder: Path,
    records: list[Record] | Iterator[Record],
    tally: Tally | None = None,
    image_of: Callable[[Record], bytes] = any_picture,
    pictures: int = 240,
) -> str:
    to = folder / "report.html"
    write_report(RUN, records, [], tally or Tally(), image_of, to, pictures=pictures)
    return to.read_text("utf-8")
