"""One contract over both stores, and what is special to each: half-written, refused, full."""

import hashlib
import io
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio import Minio
from pydantic import SecretStr, ValidationError
from pytest_httpserver import HTTPServer
from werkzeug import Response

from pipeline.errors import InputError
from storage.folder import FolderStore
from storage.objects import (
    BadKey,
    BucketMissing,
    ObjectNotFound,
    ObjectStore,
    StoreDenied,
    StoreError,
    StoreUnreachable,
    open_store,
)
from storage.patient import PatientStore
from storage.s3 import SEAL, S3Config
from tests.conftest import RcloneServer


@pytest.fixture(params=["folder", "patient", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param != "s3":
        store = open_store((tmp_path / "store").as_uri())
        return PatientStore(store, 1) if request.param == "patient" else store
    s3: S3Config = request.getfixturevalue("s3_server")
    return open_store(f"s3://objects/{secrets.token_hex(4)}", s3)


def _verbs(store: ObjectStore, key: str) -> list[Callable[[], object]]:
    """Each verb that takes a key, on this one."""
    return [
        lambda: store.put(key, b""),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
    ]


def _dump(config: S3Config) -> dict[str, str]:
    return {**config.model_dump(), "secret_key": config.secret_key.get_secret_value()}


# The contract


def test_what_was_put_is_got(store: ObjectStore) -> None:
    store.put("runs/a/run.json", b"{}")
    assert store.get("runs/a/run.json") == b"{}"
    assert store.exists("runs/a/run.json")


def test_a_second_put_replaces_the_first(store: ObjectStore) -> None:
    store.put("a", b"a long first value")
    store.put("a", b"short")
    assert store.get("a") == b"short"


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("a/empty", b"")
    assert store.exists("a/empty")
    assert store.get("a/empty") == b""
    assert list(store.list("a/")) == ["a/empty"]


@pytest.mark.parametrize(
    "key",
    [
        "手/mug + 100%.txt",
        "ünï/שלום",
        "emoji/🖐.png",
        "a b/&?#=",
        "dots/a..b",
        "x" * 200,
        "/".join(["y" * 100] * 5),
    ],
)
def test_keys_are_text_not_file_names(store: ObjectStore, key: str) -> None:
    store.put(key, key.encode())
    assert store.get(key) == key.encode()
    assert list(store.list("")) == [key]
    store.delete(key)
    assert not store.exists(key)


def test_five_megabytes_come_back(store: ObjectStore) -> None:
    data = secrets.token_bytes(5 * 2**20 + 1)
    store.put("large", data)
    assert store.get("large") == data


def test_a_missing_object_is_said_to_be_missing(store: ObjectStore) -> None:
    store.put("a/b", b"")
    for key in ("nothing", "a", "a/b/c"):
        assert not store.exists(key)
        with pytest.raises(ObjectNotFound, match=key):
            store.get(key)
    assert list(store.list("nothing/")) == []


def test_a_deleted_object_is_gone_and_may_be_deleted_again(store: ObjectStore) -> None:
    store.put("a/b/c", b"1")
    store.delete("a/b/c")
    store.delete("a/b/c")
    store.delete("never/there")
    assert not store.exists("a/b/c")
    assert list(store.list("")) == []


def test_a_prefix_is_compared_letter_by_letter(store: ObjectStore) -> None:
    for key in ("runs/a/1", "runs/a/deep/2", "runs/ab/3", "other/runs/a/4"):
        store.put(key, b"")
    assert sorted(store.list("runs/a/")) == ["runs/a/1", "runs/a/deep/2"]
    assert sorted(store.list("runs/a")) == ["runs/a/1", "runs/a/deep/2", "runs/ab/3"]
    assert sorted(store.list("runs/a/1")) == ["runs/a/1"]
    assert len(list(store.list(""))) == 4


def test_more_objects_than_one_answer_holds_are_all_listed(store: ObjectStore) -> None:
    keys = [f"runs/a/images/{n:04}.png" for n in range(1200)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: store.put(key, b"x"), keys))
    assert sorted(store.list("runs/a/")) == keys


def test_folders_are_named_once_and_objects_are_not_folders(store: ObjectStore) -> None:
    for key in ("runs/a/run.json", "runs/a/images/1.png", "runs/b/run.json", "runs/file", "run/c"):
        store.put(key, b"x")
    assert sorted(store.folders("runs")) == ["a", "b"]
    assert list(store.folders("nowhere")) == []


BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    "./a",
    ".hidden",
    "a\nb",
    "a\0",
    "a\x7f",
    "a\\b",
]
TOO_LONG = ["é" * 101, "/".join(["y" * 100] * 6)]


@pytest.mark.parametrize("key", [*BAD_KEYS, *TOO_LONG, "no text \ud800"])
def test_a_bad_key_is_refused_by_every_verb(store: ObjectStore, key: str) -> None:
    for verb in _verbs(store, key):
        with pytest.raises(BadKey):
            verb()


@pytest.mark.parametrize("prefix", ["/", "../", "a//", ".hidden", "a/./"])
def test_a_bad_prefix_is_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(BadKey):
        list(store.list(prefix))


def test_an_emptied_folder_leaves_its_name_free(store: ObjectStore) -> None:
    store.put("a/b/c", b"1")
    store.delete("a/b/c")
    store.put("a/b", b"2")
    assert store.get("a/b") == b"2"


def test_of_puts_at_the_same_time_one_whole_value_stays(store: ObjectStore) -> None:
    values = [bytes([n]) * (1000 + 30_000 * n) for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda value: store.put("same", value), values))
    assert store.get("same") in values
    assert list(store.list("")) == ["same"]


def test_an_object_read_while_it_is_replaced_is_one_value_or_the_other(store: ObjectStore) -> None:
    values = [b"a" * 1000, b"b" * 200_000]
    store.put("same", values[0])
    stop = threading.Event()

    def replace() -> None:
        turn = 0
        while not stop.is_set():
            store.put("same", values[turn := 1 - turn])
            time.sleep(0.005)

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(replace) for _ in range(2)]
        try:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                try:
                    assert store.get("same") in values
                except ObjectNotFound:
                    continue  # rclone takes the old one away an instant before the new one is there
        finally:
            stop.set()
        for writer in writers:
            writer.result()


# Half-written


def _client(config: S3Config) -> Minio:
    """A client that keeps none of the store's precautions."""
    return Minio(
        endpoint=config.host,
        access_key=config.access_key,
        secret_key=config.secret_key.get_secret_value(),
        secure=False,
        region=config.region,
    )


def _put_half(server: RcloneServer, bucket: str, key: str, size: int) -> socket.socket:
    """Begins a put of `size` bytes, sends half of them, and leaves the connection open."""
    url = urlsplit(
        _client(server.config).get_presigned_url(
            method="PUT", bucket_name=bucket, object_name=key, expires=timedelta(hours=1)
        )
    )
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {size}"
    connection.sendall(f"{head}\r\n\r\n".encode() + b"h" * (size // 2))
    _wait_until(lambda: any(server.objects.rglob(".rclone_temp*")))
    return connection


def _wait_until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_client_that_dies_in_a_put_leaves_nothing(own_s3_server: RcloneServer) -> None:
    store = open_store("s3://objects", own_s3_server.config)
    store.put("old", b"value")
    for key in ("new", "old"):
        _put_half(own_s3_server, "objects", key, 2_000_000).close()
    _wait_until(lambda: not any(own_s3_server.objects.rglob(".rclone_temp*")))
    assert not store.exists("new")
    with pytest.raises(ObjectNotFound):
        store.get("new")
    assert store.get("old") == b"value"
    assert list(store.list("")) == ["old"]


def test_a_server_killed_in_a_put_keeps_what_was_whole(own_s3_server: RcloneServer) -> None:
    store = open_store("s3://objects", own_s3_server.config)
    store.put("old", b"value")
    for key in ("new", "old"):
        connection = _put_half(own_s3_server, "objects", key, 2_000_000)
        own_s3_server.kill()
        connection.close()
        own_s3_server.start()
        assert store.get("old") == b"value"
        assert list(store.list("")) == ["old"]
        assert not store.exists("new")


def test_a_server_that_shows_half_an_object_is_not_believed(s3_server: S3Config) -> None:
    store = open_store("s3://objects/half", s3_server)
    whole = b"value" * 1000
    _client(s3_server).put_object(
        bucket_name="objects",
        object_name="half/a",
        data=io.BytesIO(whole[:2500]),
        length=2500,
        metadata={SEAL: f"{len(whole)}-{hashlib.sha256(whole).hexdigest()}"},
    )
    with pytest.raises(ObjectNotFound, match="half-written"):
        store.get("a")
    assert not store.exists("a")
    store.put("a", whole)
    assert store.get("a") == whole


def test_objects_outlive_a_server_that_forgets_their_seals(own_s3_server: RcloneServer) -> None:
    store = open_store("s3://objects", own_s3_server.config)
    store.put("a", b"value")
    own_s3_server.kill()
    own_s3_server.start()
    assert store.get("a") == b"value"
    assert store.exists("a")


def test_a_half_written_file_is_no_object(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from storage.folder import FolderStore\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "FolderStore(Path(sys.argv[1])).put('a/b', b'new')"
    )
    store = FolderStore(tmp_path)
    store.put("a/b", b"old")
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path)]).returncode == -9
    assert len(list((tmp_path / "a").iterdir())) == 2  # it was caught in the act
    assert list(store.list("")) == ["a/b"]
    assert store.get("a/b") == b"old"


# Refused, unreachable, full


def test_a_key_that_is_a_folder_of_others_is_refused_and_harms_none(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", b"first")
    store.put("c", b"first")
    for key in ("a", "c/d"):
        with pytest.raises(BadKey, match="folder"):
            store.put(key, b"second")
    assert (store.get("a/b"), store.get("c")) == (b"first", b"first")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]


def test_a_wrong_secret_is_said_to_be_wrong(s3_server: S3Config) -> None:
    wrong = s3_server.model_copy(update={"secret_key": SecretStr("never-the-secret")})
    with pytest.raises(StoreDenied, match="PPV_S3__SECRET_KEY") as denied:
        open_store("s3://objects", wrong)
    assert "never-the-secret" not in str(denied.value)
    assert s3_server.endpoint in str(denied.value)


def test_an_unknown_access_key_is_refused(s3_server: S3Config) -> None:
    with pytest.raises(StoreDenied):
        open_store("s3://objects", s3_server.model_copy(update={"access_key": "nobody-we-know"}))


def test_nobody_listening_is_said_within_seconds(s3_server: S3Config) -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(StoreUnreachable, match=endpoint):
            open_store("s3://objects", s3_server.model_copy(update={"endpoint": endpoint}))
        assert time.monotonic() - start < 10


def test_a_server_that_goes_away_is_said_to_be_unreachable(own_s3_server: RcloneServer) -> None:
    store = open_store("s3://objects", own_s3_server.config)
    store.put("a", b"value")
    own_s3_server.kill()
    for verb in _verbs(store, "a"):
        with pytest.raises(StoreUnreachable, match=own_s3_server.config.endpoint):
            verb()
    with pytest.raises(StoreUnreachable):
        list(store.list(""))
    own_s3_server.start()
    assert store.get("a") == b"value"


def test_a_patient_store_waits_for_a_server_to_come_back(own_s3_server: RcloneServer) -> None:
    store = PatientStore(open_store("s3://objects", own_s3_server.config), 30)
    own_s3_server.kill()
    with ThreadPoolExecutor() as threads:
        put = threads.submit(store.put, "a", b"value")
        with pytest.raises(TimeoutError):
            put.result(1)
        own_s3_server.start()
        put.result(30)
    for verb in _verbs(store, "a"):
        own_s3_server.kill()
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(verb)
            own_s3_server.start()
            waiting.result(30)


def test_a_patient_store_gives_up_when_its_patience_is_over(own_s3_server: RcloneServer) -> None:
    store = PatientStore(open_store("s3://objects", own_s3_server.config), 0.5)
    own_s3_server.kill()
    start = time.monotonic()
    with pytest.raises(StoreUnreachable, match=own_s3_server.config.endpoint):
        store.put("a", b"value")
    assert 0.4 < time.monotonic() - start < 15
    own_s3_server.start()


def test_https_to_a_plain_server_says_how_to_write_the_endpoint(s3_server: S3Config) -> None:
    bare = S3Config.model_validate({**_dump(s3_server), "endpoint": s3_server.host})
    assert bare.secure
    start = time.monotonic()
    with pytest.raises(StoreUnreachable, match=f"http://{s3_server.host}"):
        open_store("s3://objects", bare)
    assert time.monotonic() - start < 10


def test_an_internal_error_that_passes_is_tried_again(
    httpserver: HTTPServer, s3_server: S3Config
) -> None:
    statuses = iter([500, 503, 200])
    error = "<Error><Code>InternalError</Code></Error>"
    httpserver.expect_request("/objects", method="HEAD").respond_with_data("")
    httpserver.expect_request("/objects/a", method="PUT").respond_with_handler(
        lambda _: Response(error, status=next(statuses), content_type="text/xml")
    )
    config = s3_server.model_copy(update={"endpoint": httpserver.url_for("").rstrip("/")})
    open_store("s3://objects", config).put("a", b"value")
    assert list(statuses) == []


def test_an_object_that_the_server_names_twice_is_listed_once(
    httpserver: HTTPServer, s3_server: S3Config
) -> None:
    httpserver.expect_request("/objects", method="HEAD").respond_with_data("")
    listed = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in ("a", "b", "b", "c"))
    xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"
    httpserver.expect_request("/objects", method="GET").respond_with_data(
        f'<ListBucketResult xmlns="{xmlns}"><Name>objects</Name>{listed}</ListBucketResult>',
        content_type="application/xml",
    )
    config = s3_server.model_copy(update={"endpoint": httpserver.url_for("").rstrip("/")})
    assert list(open_store("s3://objects", config).list("")) == ["a", "b", "c"]


def test_a_web_server_is_no_store(httpserver: HTTPServer, s3_server: S3Config) -> None:
    httpserver.expect_request("/objects").respond_with_data("<html>welcome", status=400)
    endpoint = httpserver.url_for("").rstrip("/")
    with pytest.raises(StoreError, match=endpoint):
        open_store("s3://objects", s3_server.model_copy(update={"endpoint": endpoint}))


def test_a_bucket_that_may_not_be_made_is_said_to_be_missing(
    httpserver: HTTPServer, s3_server: S3Config
) -> None:
    httpserver.expect_request("/objects", method="HEAD").respond_with_data("", status=404)
    httpserver.expect_request("/objects", method="PUT").respond_with_data(
        "<Error><Code>AccessDenied</Code></Error>", status=403, content_type="application/xml"
    )
    config = s3_server.model_copy(update={"endpoint": httpserver.url_for("").rstrip("/")})
    with pytest.raises(BucketMissing, match="objects"):
        open_store("s3://objects", config)


@pytest.mark.parametrize(
    "endpoint",
    ["", "ftp://host", "http://user:pass-word@host", "http://host/path", "http://host?a", "h:port"],
)
def test_a_bad_endpoint_is_refused_and_not_repeated(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="endpoint") as refused:
        S3Config.model_validate({"endpoint": endpoint, "access_key": "a", "secret_key": "b"})
    assert "pass-word" not in str(refused.value)


@pytest.mark.parametrize(
    ("endpoint", "host", "secure"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1:9000", False),
        ("https://s3.example.org/", "s3.example.org", True),
        ("s3.example.org:443", "s3.example.org:443", True),
    ],
)
def test_an_endpoint_without_scheme_means_https(endpoint: str, host: str, secure: bool) -> None:
    config = S3Config.model_validate({"endpoint": endpoint, "access_key": "a", "secret_key": "b"})
    assert (config.host, config.secure) == (host, secure)


@pytest.mark.parametrize(
    "url",
    ["", "relative/folder", "file://folder", "http://host/bucket", "s3://", "s3://objects/../x", "s3://UP_PER"],
)  # fmt: skip
def test_an_address_that_is_no_store_is_refused_in_one_line(url: str, s3_server: S3Config) -> None:
    with pytest.raises(InputError) as refused:
        open_store(url, s3_server)
    assert "\n" not in str(refused.value)


def test_an_address_with_a_password_is_refused_without_it(s3_server: S3Config) -> None:
    with pytest.raises(InputError) as refused:
        open_store("s3://user:pass-word@objects/prefix", s3_server)
    assert "pass-word" not in str(refused.value)


def test_s3_without_its_keys_says_which_are_missing() -> None:
    with pytest.raises(InputError, match="PPV_S3__ENDPOINT"):
        open_store("s3://objects")


def test_a_file_is_no_folder_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InputError, match="not a folder"):
            open_store(path.as_uri())


def test_a_folder_address_may_hold_blanks_and_other_letters(tmp_path: Path) -> None:
    store = open_store((tmp_path / "my données #1").as_uri())
    store.put("a", b"")
    assert (tmp_path / "my données #1/a").exists()


FILL_UP = """
import sys
from pathlib import Path
from storage.folder import FolderStore
from storage.objects import StoreFull

folder = Path(sys.argv[1])
store = FolderStore(folder)
store.put("a/small", b"s" * 1000)
store.put("a/large", b"old")
for key in ("a/large", "b/large"):
    try:
        store.put(key, b"l" * 1_000_000)
    except StoreFull as full:
        assert folder.as_uri() in str(full), full
    else:
        raise AssertionError("it was not full")
assert store.get("a/small") == b"s" * 1000
assert store.get("a/large") == b"old"
assert sorted(store.list("")) == ["a/large", "a/small"]
files = [path for path in folder.rglob("*") if path.is_file()]
assert len(files) == 2, files
store.put("a/after", b"s" * 1000)
"""


def test_a_full_disk_keeps_what_was_written_and_no_remainder(tmp_path: Path) -> None:
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    tiny = 'mount -t tmpfs -o size=256k none "$1"; shift; exec "$@"'
    try:
        subprocess.run([*mount, tiny, "sh", tmp_path, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NO FULL DISK TESTED: a tmpfs cannot be mounted here ({error})")
    fill = [*mount, tiny, "sh", str(tmp_path), sys.executable, "-c", FILL_UP, str(tmp_path)]
    subprocess.run(fill, check=True, timeout=60)


def test_a_limit_on_file_sizes_counts_as_full(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    subprocess.run([sys.executable, "-c", f"{limit}\n{FILL_UP}", tmp_path], check=True, timeout=60)
