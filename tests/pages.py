"""Pages that were written to files, in a real browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page


@contextmanager
def quiet(browser: Browser, file: Path) -> Iterator[Page]:
    """The page, opened; the test fails if it complains or asks for anything but itself."""
    with browser.new_context() as context:
        page = context.new_page()
        requested: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(file.as_uri())
        yield page
        assert [u for u in requested if not u.startswith("data:")] == [file.as_uri()]
        assert complaints == []
