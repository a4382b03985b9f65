"""Commands that serve a page to one person, and a browser that has it open."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PPV = [sys.executable, "-c", "from workers.cli import main; main()"]


class Served:
    """A running command that serves a page."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    @property
    def origin(self) -> str:
        return self.url.partition("/?")[0]

    @property
    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
        """One request with exactly these headers; its cookie unless another is given."""
        address = urlsplit(self.url)
        asked = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        defaults = {
            "Host": address.netloc,
            "Cookie": f"ppv-{address.port}={address.query.removeprefix('token=')}",
        }
        if method == "POST":
            defaults |= {"Origin": self.origin, "Content-Length": "0"}
        asked.putrequest(method, path, skip_host=True)
        for name, value in {**defaults, **named}.items():
            if value:
                asked.putheader(name, value)
        asked.endheaders()
        response = asked.getresponse()
        response.read()
        asked.close()
        return response


def environment(place: Path) -> dict[str, str]:
    """Of a command whose store and state lie below this folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PPV_")}
    store = (place / "store").as_uri()
    return {**kept, "PPV_STORE_URL": store, "PPV_STATE_DIR": str(place / "state")}


@contextmanager
def serving(place: Path, *command: str, deadline_s: float = 60) -> Iterator[Served]:
    """`ppv` with this command, up until the block ends."""
    log = place / f"served-{time.monotonic_ns()}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*PPV, *command],
            env=environment(place),
            cwd=place,
            stdout=out,
            stderr=out,
            text=True,
            # A shell's background job ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        end = time.monotonic() + deadline_s
        while not (found := re.findall(r"open (http://\S+)\n", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield Served(process, found[0], log)
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def opened(browser: "Browser", command: Served, **context: object) -> "Iterator[Page]":
    """The page in a browser of its own; it may complain of nothing and ask nobody else."""
    with browser.new_context(**context) as own:  # type: ignore[arg-type]
        page = own.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(command.url)
        page.locator("#desk").wait_for()
        yield page
        assert [u for u in requested if not u.startswith((command.origin, "data:"))] == []
        assert complaints == []


def press(page: "Page", *keys: str) -> None:
    """Each key, as soon as the one before has been answered."""
    for key in keys:
        with page.expect_response(lambda response: response.request.method == "POST"):
            page.keyboard.press(key)
        settle(page)


def settle(page: "Page") -> None:
    """Until no key waits for its answer."""
    wait_until(lambda: page.evaluate("waiting.length === 0 && underWay === 0"))


def wait_until(true: Callable[[], bool], deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
