"""Redis, S3 and RabbitMQ by TLS, by configuration alone; certificates have to hold.

Every server here is a real one, and shows a certificate that the test's own CA signed.
"""

import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pytest_httpserver import HTTPServer

from pipeline.errors import ServiceError
from storage.objects import open_store
from storage.s3 import S3Config
from tests.conftest import REDIS_PASSWORD, RcloneServer, _free_port
from tests.place import Place, until
from tests.rabbitmq import PASSWORD, RabbitServer
from tests.tiny import save_tiny_pipeline, save_tiny_verifier
from tests.tls import Authority, Certificate, SecureRedis, secure_redis
from workers.broker import Broker

BASES = ["a hand with a red mug"]
OTHERWISE = "127.1"  # the same host, by a name that its certificate does not have

FLOWER_OPTIONS = """
import os, runpy
os.environ["FLOWER_BASIC_AUTH"] = "somebody:something"
print(runpy.run_path("workers/flowerconfig.py")["broker_api"])
"""

Ask = Callable[[str, Path | None], None]
"""Asks the server at a host of this name, trusting the CA in this file."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that signed nobody's certificate."""
    return Authority(tmp_path_factory.mktemp("tls") / "other")


@pytest.fixture(scope="module")
def good(authority: Authority) -> Certificate:
    return authority.certificate("127.0.0.1")


@pytest.fixture(scope="module")
def redis(good: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureRedis]:
    with secure_redis(tmp_path_factory.mktemp("tls") / "redis", good) as server:
        yield server


@pytest.fixture(scope="module")
def s3(good: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Config]:
    server = RcloneServer(tmp_path_factory.mktemp("tls-s3"), good)
    server.start()
    yield server.config
    server.kill()


@pytest.fixture
def place(
    tmp_path: Path,
    authority: Authority,
    redis: SecureRedis,
    s3: S3Config,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    """Where the fleet's services are reached by TLS alone."""
    monkeypatch.setenv("PPV_BROKER_URL", redis.url)
    monkeypatch.setenv("PPV_STORE_URL", "s3://secure")
    monkeypatch.setenv("PPV_S3__ENDPOINT", s3.endpoint)
    monkeypatch.setenv("PPV_S3__ACCESS_KEY", s3.access_key)
    monkeypatch.setenv("PPV_S3__SECRET_KEY", s3.secret_key.get_secret_value())
    monkeypatch.setenv("PPV_TLS_CA", str(authority.file))
    save_tiny_pipeline(tmp_path / "base", text_length=200)
    save_tiny_verifier(tmp_path / "verifier")
    place = Place(tmp_path, tmp_path, BASES)
    yield place
    place.clear()


def test_a_run_goes_by_tls_from_its_base_prompt_to_its_report(place: Place) -> None:
    ended = place.ppv("run", "bases.txt", "--run", "secure", "--out", "out")
    assert ended.code == 0, ended.err
    status = place.status("secure")
    assert (status["expected"], status["missing"], status["failed"]) == (8, 0, 0)
    assert not (place.folder / ".ppv" / "embedded.json").exists(), "a service was started here"
    assert (place.folder / "out" / "report.html").exists()


def test_flower_counts_the_queues_of_a_redis_behind_tls(place: Place) -> None:
    port = _free_port()
    command = (sys.executable, "-m", "celery", "--app=workers", "flower", f"--port={port}")
    flower = place.spawn(*command)
    try:
        password = place.folder / ".ppv" / "flower-password"
        until(lambda: password.exists() and _listens(port), "Flower")
        asked = f"http://127.0.0.1:{port}/api/queues/length"
        login = ("ppv", password.read_text())
        # Flower gives Redis a second, which busy cores may need more than once.
        until(lambda: '"messages": 0' in httpx.get(asked, auth=login).text, "a queue's length", 60)
    finally:
        flower.kill()
        flower.communicate()


def test_a_worker_refuses_a_broker_whose_ca_it_does_not_know(
    place: Place, other: Authority, redis: SecureRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPV_TLS_CA", str(other.file))
    log = place.folder / "worker.log"
    celery = (sys.executable, "-m", "celery", "--app=workers", "worker", "--queues=prompt")
    worker = place.spawn("sh", "-c", f'exec "$0" "$@" 2>{log}', *celery)
    try:
        until(lambda: log.exists() and "Trying again" in log.read_text(), "its refusal", 60)
    finally:
        worker.kill()
        worker.communicate()
    text = log.read_text()
    assert "certificate verify failed" in text, text
    assert f"127.0.0.1:{redis.port}" in text
    assert REDIS_PASSWORD not in text
    assert " ready." not in text


def _listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthcheck").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def rabbit(good: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(tmp_path_factory.mktemp("tls-rabbitmq"), good)
    server.start()
    yield server
    server.end()


def of_redis(url: str) -> Ask:
    def ask(host: str, ca: Path | None) -> None:
        with closing(Broker(url.replace("127.0.0.1", host), tls_ca=ca)) as broker:
            broker.ping()

    return ask


def of_s3(config: S3Config) -> Ask:
    def ask(host: str, ca: Path | None) -> None:
        endpoint = config.endpoint.replace("127.0.0.1", host)
        open_store("s3://asked", config.model_copy(update={"endpoint": endpoint}), ca)

    return ask


def of_rabbit(url: str, shared: str) -> Ask:
    def ask(host: str, ca: Path | None) -> None:
        with closing(Broker(url.replace("127.0.0.1", host), shared, ca)) as broker:
            broker.ping()

    return ask


@pytest.fixture(params=["redis", "s3", "rabbitmq"])
def ask(request: pytest.FixtureRequest) -> tuple[Ask, int]:
    """How to ask one of the servers, and its port."""
    if request.param == "redis":
        redis: SecureRedis = request.getfixturevalue("redis")
        return of_redis(redis.url), redis.port
    if request.param == "s3":
        config: S3Config = request.getfixturevalue("s3")
        return of_s3(config), urlsplit(config.endpoint).port or 0
    rabbit: RabbitServer = request.getfixturevalue("rabbit")
    return of_rabbit(rabbit.url, request.getfixturevalue("redis_url")), rabbit.port


def refusal(ask: Ask, host: str, ca: Path | None) -> str:
    """What is said of a connection that must not come about: one line, without a secret."""
    with pytest.raises(ServiceError) as refused:
        ask(host, ca)
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert not [word for word in (REDIS_PASSWORD, PASSWORD) if word in said]
    return said


def test_a_certificate_that_holds_is_taken(ask: tuple[Ask, int], authority: Authority) -> None:
    ask[0]("127.0.0.1", authority.file)


@pytest.mark.parametrize("named", [True, False], ids=["of another", "of the system"])
def test_an_unknown_ca_is_refused_with_the_setting_that_names_one(
    ask: tuple[Ask, int], other: Authority, named: bool
) -> None:
    said = refusal(ask[0], "127.0.0.1", other.file if named else None)
    assert f"127.0.0.1:{ask[1]}" in said
    assert "certificate" in said
    assert "PPV_TLS_CA" in said


def test_a_certificate_of_another_host_is_refused(
    ask: tuple[Ask, int], authority: Authority
) -> None:
    said = refusal(ask[0], OTHERWISE, authority.file)
    assert f"{OTHERWISE}:{ask[1]}" in said
    assert f"certificate is not valid for {OTHERWISE!r}" in said


def test_an_expired_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    expired = authority.certificate("127.0.0.1", expired=True)
    with secure_redis(tmp_path / "redis", expired) as redis:
        assert "certificate has expired" in refusal(
            of_redis(redis.url), "127.0.0.1", authority.file
        )
    server = RcloneServer(tmp_path / "s3", expired)
    server.start()
    try:
        assert "certificate has expired" in refusal(
            of_s3(server.config), "127.0.0.1", authority.file
        )
    finally:
        server.kill()


def test_a_server_without_tls_is_said_to_have_none(
    s3_server: S3Config, authority: Authority
) -> None:
    config = s3_server.model_copy(update={"endpoint": s3_server.endpoint.replace("http", "https")})
    assert "does not speak TLS" in refusal(of_s3(config), "127.0.0.1", authority.file)


def test_a_server_with_tls_is_not_reached_without(redis: SecureRedis, s3: S3Config) -> None:
    said = refusal(of_redis(redis.url.replace("rediss://", "redis://")), "127.0.0.1", None)
    assert f"redis://127.0.0.1:{redis.port}" in said
    plain = s3.model_copy(update={"endpoint": s3.endpoint.replace("https", "http")})
    assert plain.endpoint in refusal(of_s3(plain), "127.0.0.1", None)


def test_a_store_behind_tls_leads_nobody_to_a_place_without(
    good: Certificate, authority: Authority, s3: S3Config, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/asked").respond_with_data("")
    plain = httpserver.url_for("/asked")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(good.chain, good.key)
    with HTTPServer(host="127.0.0.1", ssl_context=context) as secure:
        secure.expect_request("/asked").respond_with_data("", 307, headers={"Location": plain})
        config = s3.model_copy(update={"endpoint": f"https://127.0.0.1:{secure.port}"})
        said = refusal(of_s3(config), "127.0.0.1", authority.file)
    assert "without TLS" in said
    assert not httpserver.log, "it was asked all the same"


def test_flower_asks_a_rabbitmq_behind_tls_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPV_BROKER_URL", f"amqps://ppv:{PASSWORD}@rabbit.example//")
    asked = (sys.executable, "-c", FLOWER_OPTIONS)
    options = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert options.strip() == "https://rabbit.example:15671/api/"
