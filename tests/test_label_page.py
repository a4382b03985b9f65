"""The labelling page: a real server, asked over HTTP and by a real browser's keys."""

import http.client
import io
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from pipeline.labels import Said, last_said
from storage.folder import FolderStore
from storage.labels import LabelSets
from tests.labelling import a_run_to_label, journal, labelling, ppv_label
from tests.served import Served, opened, press, settle, wait_until

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1"> a mug',
    "{{ 7 * 7 }} </main></body><b>bold</b>",
    "يد تمسك كوبًا أحمر \u202e reversed",
    "unbreakable" * 400,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run lies that most tests label, each going on where the one before ended."""
    place = tmp_path_factory.mktemp("shared")
    a_run_to_label(place / "store", 460)
    return place


@pytest.fixture(scope="module")
def server(shared: Path) -> Iterator[Served]:
    with labelling(shared) as command:
        yield command


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    with opened(browser, server) as page:
        yield page


def picture(page: Page) -> str:
    return str(page.locator(".desk").get_attribute("data-picture"))


def go(page: Page, key: str, there: str) -> None:
    """To another page of the three, until it shows this and listens to keys."""
    with page.expect_navigation():  # until it is loaded
        page.keyboard.press(key)
    page.locator(there).first.wait_for()


# By keys


def test_two_keys_answer_a_picture_and_bring_the_next(page: Page, shared: Path) -> None:
    first, ahead = picture(page), page.locator(".ahead img").first.get_attribute("id")

    press(page, "a")
    assert picture(page) == first
    assert page.locator('[data-key="a"]').get_attribute("aria-pressed") == "true"
    press(page, "l")

    assert f"picture-{picture(page)}" == ahead
    said = [label.said for label in journal(shared) if label.id == first]
    assert said == [Said(True, None), Said(True, False)]


def test_reasons_by_number_and_one_key_for_the_rest(page: Page, shared: Path) -> None:
    first = picture(page)

    press(page, "1", "3", "1", "6", "Enter")

    assert picture(page) != first
    label = last_said(journal(shared))["ann", first]
    assert label.said == Said(False, False, ("fused_fingers", "wrong_object"))
    assert label.chosen in ("random", "unsure")


def test_undo_goes_back_key_by_key(page: Page, shared: Path) -> None:
    first = picture(page)
    press(page, "s", "k")
    second = picture(page)
    press(page, "x")
    assert picture(page) != second

    press(page, "u")
    assert picture(page) == second
    press(page, "u")
    assert picture(page) == first
    assert page.locator('[data-key="s"]').get_attribute("aria-pressed") == "true"
    press(page, "u")

    assert page.locator('#desk [aria-pressed="true"]').count() == 0
    assert ("ann", first) not in last_said(journal(shared))


@pytest.mark.parametrize("pause_ms", [50, 0])
def test_no_key_is_lost_however_fast_they_come(page: Page, shared: Path, pause_ms: int) -> None:
    before = len(journal(shared))

    for _ in range(5):
        for key in "aksl":
            page.keyboard.press(key)
            page.wait_for_timeout(pause_ms)
        page.keyboard.press("Enter")
        page.wait_for_timeout(pause_ms)
        if pause_ms == 0:  # no more may wait than a hand has fingers and some
            settle(page)

    settle(page)
    new = journal(shared)[before:]
    assert len(new) == 25
    assert len({label.id for label in new}) == 15
    whole = [label.said for label in last_said(new).values()]
    assert whole == [Said(True, True), Said(False, False), Said(True, True)] * 5


def test_a_keyboard_of_other_letters_works_by_place(page: Page, shared: Path) -> None:
    first = picture(page)
    page.evaluate(
        """() => { for (const [key, code] of [["ф", "KeyA"], ["л", "KeyK"]])
        document.body.dispatchEvent(new KeyboardEvent("keydown", {key, code, bubbles: true})); }"""
    )
    settle(page)

    assert last_said(journal(shared))["ann", first].said == Said(True, True)


def test_a_button_that_has_the_focus_is_pressed_by_enter(page: Page, shared: Path) -> None:
    first = picture(page)
    page.locator('[data-key="s"]').focus()
    press(page, "Enter")

    assert picture(page) == first
    assert last_said(journal(shared))["ann", first].said == Said(False, None)
    press(page, "u")


def test_a_sweep_marks_by_keys_and_sends_the_rest(page: Page, shared: Path) -> None:
    go(page, "g", ".cell")
    cells = page.locator(".cell")
    cells.last.wait_for()
    assert cells.count() == 100
    ids = [str(id).removeprefix("cell-") for id in cells.evaluate_all("c => c.map((e) => e.id)")]
    loaded = "[...document.querySelectorAll('.cell img')].every((i) => i.naturalWidth)"
    wait_until(lambda: page.evaluate(loaded))

    page.keyboard.press("ArrowRight")
    press(page, "Space")
    page.keyboard.press("ArrowRight")
    press(page, "Space")
    page.keyboard.press("ArrowRight")
    press(page, "Space", "Space")  # and not, after all
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.id")
    marked = journal(shared)[-4:]
    press(page, "Enter")

    assert [label.id for label in marked] == [ids[0], ids[1], ids[2], ids[2]]
    assert [label.fidelity for label in marked] == [False, False, False, None]
    assert below == f"cell-{ids[page.evaluate(COLUMNS)]}"
    sent = last_said(journal(shared))
    assert [sent["ann", id].fidelity for id in ids[:5]] == [False, False, True, True, True]
    assert sent["ann", ids[7]].alignment is None
    assert sent["ann", ids[7]].chosen == "grid"
    assert page.locator(".news").text_content() == "98 hands are right, 2 are marked."
    assert page.locator(f"#cell-{ids[0]}").count() == 0

    press(page, "u")
    assert page.locator(".cell").count() == 98
    assert ("ann", ids[7]) not in last_said(journal(shared))


COLUMNS = "[...document.querySelectorAll('.cell')].filter((c, _, all) => \
c.getBoundingClientRect().top === all[0].getBoundingClientRect().top).length"


def test_the_page_opened_twice_loses_nothing(page: Page, shared: Path) -> None:
    with page.context.expect_page() as other_tab:
        page.evaluate("window.open('/')")
    other = other_tab.value
    other.locator(".desk").wait_for()
    other.wait_for_load_state()  # its script listens to keys
    first = picture(page)
    assert picture(other) == first

    press(page, "a", "k")
    press(other, "s", "l")  # the same picture: what was said last counts
    assert last_said(journal(shared))["ann", first].said == Said(False, False)
    second = picture(page)
    assert picture(other) == second != first
    press(other, "Enter")
    press(page, "a", "l")

    assert last_said(journal(shared))["ann", second].said == Said(True, False)
    assert picture(page) == picture(other) not in (first, second)


# How it looks


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_no_width_scrolls_sideways(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, server: Served, width: int
) -> None:
    with opened(browser, server, viewport={"width": width, "height": 740}) as page:
        for key, there in (("o", ".desk"), ("g", ".cell"), ("d", ".done")):
            go(page, key, there)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_all_is_in_reach(browser: Browser, tmp_path: Path) -> None:
    a_run_to_label(tmp_path / "store", 4)
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
    with labelling(tmp_path) as server, opened(browser, server, **phone) as page:
        first = picture(page)
        for key in ("a", "s", "k", "l", "enter"):
            box = page.locator(f'[data-key="{key}"]').bounding_box()
            assert box
            assert box["height"] >= 40
        page.locator('[data-key="enter"]').tap()
        page.wait_for_function("(id) => document.querySelector('.desk').dataset.picture !== id",
                               arg=first)  # fmt: skip

        assert last_said(journal(tmp_path))["ann", first].said == Said(True, True)


def test_assistive_technology_finds_its_way(page: Page) -> None:
    for key, there in (("o", ".desk"), ("g", ".cell"), ("d", ".done")):
        go(page, key, there)
        assert page.locator("h1").count() == 1
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.title() == "Labels of demo · ppv"
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        assert page.locator("fieldset:not(:has(legend))").count() == 0
        assert page.locator("nav [aria-current=page]").count() == 1


def test_hostile_prompts_are_text(browser: Browser, tmp_path: Path) -> None:
    a_run_to_label(tmp_path / "store", len(HOSTILE), texts=HOSTILE)
    small = {"width": 320, "height": 740}
    with labelling(tmp_path) as command, opened(browser, command, viewport=small) as page:
        prompts = set()
        for _ in HOSTILE:
            prompts.add(page.locator(".prompt").text_content())
            assert page.locator(".prompt *").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= 320
            press(page, "Enter")
        assert page.evaluate("window.hacked") is None
        assert set(HOSTILE[:4]) <= prompts
        page.get_by_role("heading", name="Nothing is left").wait_for()
        press(page, "u")
        assert page.locator(".desk").count() == 1


# What goes wrong


def test_a_killed_server_has_lost_no_key(browser: Browser, tmp_path: Path) -> None:
    a_run_to_label(tmp_path / "store", 8)
    with browser.new_context() as context, labelling(tmp_path) as command:
        page = context.new_page()
        page.goto(command.url)
        press(page, "Enter", "s")
        half = picture(page)
        command.kill()
        page.keyboard.press("k")
        page.locator("#trouble:visible").wait_for()
        assert "the last key was not kept" in str(page.locator("#trouble").text_content())

    path = tmp_path / "state" / "labels" / "demo.ann.jsonl"
    assert [label.said for label in journal(tmp_path)] == [Said(True, True), Said(False, None)]
    with path.open("ab") as file:
        file.write(b'{"id": "half a li')  # as if it had died while it wrote

    with labelling(tmp_path) as command, opened(browser, command) as page:
        assert picture(page) == half
        assert page.locator('[data-key="s"]').get_attribute("aria-pressed") == "true"
        press(page, "k")
    assert "ended in half a line, which was dropped" in command.log.read_text()
    kept = LabelSets(FolderStore(tmp_path / "store")).read("demo")
    assert list(kept) == journal(tmp_path)
    assert len(journal(tmp_path)) == 3


def test_an_ended_server_has_put_all_in_the_store(browser: Browser, tmp_path: Path) -> None:
    a_run_to_label(tmp_path / "store", 8)
    sets = LabelSets(FolderStore(tmp_path / "store"))
    with labelling(tmp_path) as command, opened(browser, command) as page:
        press(page, "Enter")
        wait_until(lambda: len(list(sets.read("demo"))) == 1)  # soon after the key
        press(page, "Enter", "Enter")
        second = ppv_label(tmp_path, "--annotator", "ann")
        command.process.send_signal(signal.SIGINT)
        command.process.wait(timeout=20)
        assert len(list(sets.read("demo"))) == 3

    assert second.returncode == 2
    assert "is in use: end the other command" in second.stderr
    assert command.process.returncode == 130
    assert "Traceback" not in command.log.read_text()


def test_pictures_that_are_gone_are_passed_over(browser: Browser, tmp_path: Path) -> None:
    records = a_run_to_label(tmp_path / "store", 8)
    images = tmp_path / "store" / "runs" / "demo" / "images"
    with browser.new_context() as context, labelling(tmp_path, "--random-share", "0") as command:
        page = context.new_page()
        (images / f"{records[0].id}.png").unlink()
        (images / f"{records[2].id}.png").write_bytes(b"no picture")
        page.goto(command.url)

        page.locator(f'[data-picture="{records[1].id}"]').wait_for()
        news = str(page.locator(".news").text_content())
        assert re.match(r"Passed over: picture \w{32}, which is (gone|broken)", news)
        page.keyboard.press("Enter")
        page.locator(f'[data-picture="{records[3].id}"]').wait_for()
        go(page, "g", ".cell")

        assert page.locator(".cell").count() == 5
        assert "2 gone or broken" in str(page.locator(".counts").text_content())
        assert [label.id for label in journal(tmp_path)] == [records[1].id]


def test_odd_pictures_are_shown_and_broken_ones_named(browser: Browser, tmp_path: Path) -> None:
    records = a_run_to_label(tmp_path / "store", 8)
    odd = [
        encoded(Image.new("L", (64, 64), 90)),
        encoded(Image.new("I;16", (64, 64), 40_000)),
        encoded(Image.new("RGBA", (64, 64), (200, 0, 0, 60))),
        encoded(Image.new("RGB", (1, 64), (0, 90, 0))),
        encoded(Image.new("RGB", (300, 200), (0, 90, 0)), "JPEG"),
        encoded(Image.effect_noise((64, 64), 90))[:2000],
        b"",
    ]
    for record, data in zip(records, odd, strict=False):
        (tmp_path / "store" / "runs" / "demo" / record.image).write_bytes(data)
    widths, news = {}, []
    with browser.new_context() as context, labelling(tmp_path, "--random-share", "0") as command:
        page = context.new_page()
        page.goto(command.url)
        page.locator(f'[data-picture="{records[0].id}"]').wait_for()
        for _ in range(5):
            wait_until(lambda: page.evaluate(SHOWN_PX) > 0)
            widths[picture(page)] = page.evaluate(SHOWN_PX)
            press(page, "Enter")
            news += page.locator(".news").all_text_contents()
        page.locator(f'[data-picture="{records[7].id}"]').wait_for()

        assert [widths[record.id] for record in records[:5]] == [64, 64, 64, 1, 300]
        assert "2 gone or broken" in str(page.locator(".counts").text_content())
        news += page.locator(".news").all_text_contents()
        assert any(f"Passed over: picture {records[5].id}, which is broken" in n for n in news)


SHOWN_PX = "document.querySelector('.frame img').naturalWidth"


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_an_empty_prompt_is_called_so(browser: Browser, tmp_path: Path) -> None:
    a_run_to_label(tmp_path / "store", 2, texts=[" "])
    with labelling(tmp_path) as command, opened(browser, command) as page:
        assert page.locator(".prompt").text_content() == "The prompt is empty."
        press(page, "Enter")
        assert journal(tmp_path)[0].prompt == " "


def test_two_annotators_see_how_far_they_agree_and_where_not(
    browser: Browser, tmp_path: Path
) -> None:
    a_run_to_label(tmp_path / "store", 8)
    with labelling(tmp_path, annotator="ann") as command, opened(browser, command) as page:
        for key in "sasasasa":
            press(page, key, "Enter")
    with (
        labelling(tmp_path, "--overlap", "1", annotator="bo") as command,
        opened(browser, command) as page,
    ):
        assert "0 of 0 alike" in str(page.locator(".agreement").text_content())
        assert page.locator('#desk [aria-pressed="true"]').count() == 0
        go(page, "d", "h2:has-text('No disagreement')")
        go(page, "o", ".desk")
        hers = {label.id: label.said for label in last_said(journal(tmp_path)).values()}
        for number in range(8):
            said = hers[picture(page)].fidelity
            if number == 0:
                said = not said  # once otherwise
                differs = picture(page)
            press(page, "a" if said else "s", "Enter")

        # 7 of 8 alike, both say yes to about half: kappa is (7/8 - 1/2) / (1 - 1/2) = 3/4.
        line = str(page.locator(".agreement").text_content())
        assert re.search(r"with ann:\s*fidelity κ 0\.75\s*\(7 of 8 alike\)", line), line
        go(page, "d", ".disputed")
        assert page.locator(".disputed li").count() == 1
        page.locator(".disputed a").focus()
        page.keyboard.press("Enter")
        page.locator(".desk").wait_for()
        assert picture(page) == differs
        assert {label.chosen for label in journal(tmp_path, "bo")} == {"overlap"}


# Who may ask


@pytest.fixture
def ask(server: Served) -> Callable[..., http.client.HTTPResponse]:
    return server.ask


def test_only_who_has_the_token_gets_in(
    server: Served, ask: Callable[..., http.client.HTTPResponse]
) -> None:
    token = urlsplit(server.url).query

    exchanged = ask("GET", f"/?{token}", Cookie="")
    cookie = str(exchanged.getheader("set-cookie"))

    assert exchanged.status == 303
    assert exchanged.getheader("location") == "/"
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert ask("GET", "/").status == 200
    for path in ("/", "/?token=wrong", "/?token=", "/grid", "/files/desk.js", "/nowhere"):
        assert ask("GET", path, Cookie="").status == 403, path
        assert ask("GET", path, Cookie="ppv=x; ppv-1=y").status == 403, path
    assert ask("GET", f"/grid?{token}", Cookie="").status == 403


def test_other_names_and_other_pages_are_refused(
    server: Served, ask: Callable[..., http.client.HTTPResponse], shared: Path
) -> None:
    before = len(journal(shared))
    port = urlsplit(server.url).port
    path = f"/pictures/{journal(shared)[0].id}/rest"

    assert ask("GET", "/", Host="evil.example").status == 421
    assert ask("GET", "/", Host=f"evil.example:{port}").status == 421
    assert ask("GET", "/", Host="").status in (400, 421)
    assert ask("GET", "/", Host=f"localhost:{port}").status == 200
    assert ask("POST", path, Origin="").status == 403
    assert ask("POST", path, Origin="null").status == 403
    assert ask("POST", path, Origin="http://evil.example").status == 403
    assert ask("POST", path, Origin=f"http://127.0.0.1:{port + 1 if port else 1}").status == 403
    assert ask("POST", path, Content_Length="99999999").status == 413
    assert ask("POST", path, Content_Length="", Transfer_Encoding="chunked").status == 411
    assert ask("POST", path, Cookie="").status == 403
    assert len(journal(shared)) == before


def test_only_what_the_run_holds_is_served(ask: Callable[..., http.client.HTTPResponse]) -> None:
    for path in (
        "/images/" + "0" * 32,
        "/images/..%2f..%2frun",
        "/images/../run.json",
        "/thumbnails/" + "f" * 32,
        "/files/label.py",
        "/docs",
        "/openapi.json",
    ):
        assert ask("GET", path).status in (400, 404), path
    assert ask("POST", f"/pictures/{'0' * 32}/rest").status == 404
    assert ask("POST", f"/pictures/{'0' * 32}/answers/beauty/yes").status == 400
    policy = str(ask("GET", "/").getheader("content-security-policy"))
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("0.0.0.0", "give the one address of this machine"),  # noqa: S104
        ("example.org", "give an address, such as 127.0.0.1"),
    ],
)
def test_a_host_that_is_no_address_of_this_machine_is_refused(
    shared: Path, host: str, message: str
) -> None:
    done = ppv_label(shared, "--annotator", "zoe", "--host", host)

    assert done.returncode == 2
    assert message in done.stderr


# Many


@pytest.mark.slow
def test_of_ten_thousand_pictures_the_page_holds_four_and_memory_stays_flat(
    browser: Browser, tmp_path: Path
) -> None:
    a_run_to_label(tmp_path / "store", 10_000)
    with labelling(tmp_path) as command, opened(browser, command) as page:
        press(page, "Enter", "s", "k")
        ids = re.findall(r"picture-([0-9a-f]{32})", page.content())
        assert len(ids) == 4
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(command.url).port)
        cookies = "; ".join(f"{c['name']}={c['value']}" for c in page.context.cookies())
        headers = {"Cookie": cookies, "Origin": command.origin, "Content-Length": "0"}

        def label_next(id: str) -> str:
            connection.request("POST", f"/pictures/{id}/rest", headers=headers)
            found = re.search(
                r'data-picture="([0-9a-f]{32})"', connection.getresponse().read().decode()
            )
            assert found
            return found[1]

        id = ids[0]
        for _ in range(200):
            id = label_next(id)
        warm = command.resident_bytes
        for _ in range(800):
            id = label_next(id)
        grown = command.resident_bytes - warm
        connection.close()

    print(f"resident: {warm / 1e6:.0f} MB, and {grown / 1e6:.1f} more after 800 labels")
    assert grown < 16e6
    assert len(last_said(journal(tmp_path))) == 1002
