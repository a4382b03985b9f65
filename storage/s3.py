"""Objects in a bucket, through the minio client.

S3 promises that a put is whole or nothing, and servers keep the promise unevenly. What rclone 1.75
does, by experiment, and what follows from it:

- The client dies in the middle of a put, or the server is killed: the object stays absent, or
  stays what it was. Nothing to do.
- An object is read while it is written anew: of 300 reads, 27 came as complete answers with a torn
  body (one value's length, another's bytes), others as a 500 or with a body that breaks off. So
  every object carries a seal, its length and SHA-256, as user metadata, and `get` reads again
  until they fit. It costs one SHA-256 of each body at either end: 0.14 ms for 200 KB.
- Metadata is gone when the server starts again, and for moments while an object is written anew;
  the ETag may then be that of the torn body. So an object without a seal is held against its ETag,
  where that looks like an MD5, and believed only if it was not written just now or stays the same.
- Of several puts of one key at the same time, some get a 500, which passes: it is tried again.
"""

import hashlib
import io
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from pydantic import ConfigDict, Field, SecretStr, field_validator
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    MaxRetryError,
    ProtocolError,
    ResponseError,
)

from pipeline.errors import InputError
from pipeline.types import Frozen
from storage.certificates import PLAIN, trouble_of, trusting
from storage.objects import (
    BucketMissing,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
    check_key,
    check_prefix,
    is_key,
)

SEAL = "ppv-whole"  # the name of the seal among an object's user metadata
# Pauses before a body that does not fit is read again; the last is longer than the second in which
# Last-Modified counts, so that an object being written anew shows another one.
REREAD_AFTER_S = (0.02, 0.1, 0.5, 1.1)

_MIN_PART_BYTES = 5 * 2**20  # the smallest that the client takes


class S3Config(Frozen):
    """Where an S3 server is, and who we are to it."""

    # An endpoint that is refused may hold a password, so errors do not repeat it.
    model_config = ConfigDict(hide_input_in_errors=True)

    endpoint: str  # http://127.0.0.1:9000, or s3.example.org[:port], which means https
    access_key: Annotated[str, Field(min_length=1)]
    secret_key: Annotated[SecretStr, Field(min_length=1)]
    region: str = "us-east-1"

    @field_validator("endpoint")
    @classmethod
    def _with_scheme(cls, endpoint: str) -> str:
        url = endpoint if "://" in endpoint else f"https://{endpoint}"
        parts = urlsplit(url.rstrip("/"))
        bare = parts.scheme in ("http", "https") and not (parts.path or parts.query)
        if not bare or parts.fragment or not parts.hostname or "@" in parts.netloc:
            raise ValueError("use http://host:port, https://host, or host:port, and nothing more")
        _ = parts.port  # raises ValueError if it is not a number up to 65535
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def host(self) -> str:
        """host or host:port"""
        return urlsplit(self.endpoint).netloc

    @property
    def secure(self) -> bool:
        return self.endpoint.startswith("https:")


class S3Store:
    """Each object one in the bucket, its key below the prefix.

    Safe to share between threads; a process that forks must not share it with its children.
    An object has at most 5 GiB: it is put in one request, which servers take whole or not at all.
    """

    def __init__(
        self, config: S3Config, bucket: str, prefix: str = "", tls_ca: Path | None = None
    ) -> None:
        """Makes the bucket if it is absent and we may.

        tls_ca: a file of CA certificates that count beside the system's.
        """
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self.address = f"s3://{bucket}/{self._prefix} at {config.endpoint}"
        self._host = config.host
        self._client = Minio(
            endpoint=config.host,
            access_key=config.access_key,
            secret_key=config.secret_key.get_secret_value(),
            secure=config.secure,
            region=config.region,
            http_client=_http(trusting(tls_ca) if config.secure else None),
        )
        try:
            self._open_bucket()
        except ValueError as error:  # the client's own check of the name
            raise InputError(f"store {self.address}: {error}") from None

    def put(self, key: str, data: bytes) -> None:
        with self._explained():
            self._client.put_object(
                bucket_name=self._bucket,
                object_name=self._name(key),
                data=io.BytesIO(data),
                length=len(data),
                metadata={SEAL: _seal(data)},
                part_size=max(len(data), _MIN_PART_BYTES),
            )

    def get(self, key: str) -> bytes:
        name = self._name(key)
        before: tuple[str | None, ...] = ()
        with self._explained():
            for pause_s in (*REREAD_AFTER_S, None):
                try:
                    body, headers = self._read(name)
                except ProtocolError:  # the body broke off
                    if pause_s is None:
                        raise
                except S3Error as error:
                    if error.code == "NoSuchKey":
                        raise self._not_found(key) from None
                    raise
                else:
                    seal = headers.get(f"x-amz-meta-{SEAL}")
                    if seal == _seal(body) if seal else _at_rest(headers) and _fits(body, headers):
                        return body
                    # Nothing changes here: no MD5 is what this server has for an ETag.
                    now = (headers.get("etag"), headers.get("last-modified"), _seal(body))
                    if pause_s is None and not seal and now == before:
                        return body
                    before = now
                if pause_s is not None:
                    time.sleep(pause_s)
        raise self._not_found(key, "; what lies there is half-written")

    def exists(self, key: str) -> bool:
        name = self._name(key)
        with self._explained():
            try:
                found = self._client.stat_object(bucket_name=self._bucket, object_name=name)
            except S3Error as error:
                if error.code == "NoSuchKey":
                    return False
                raise
        seal = (found.metadata or {}).get(f"x-amz-meta-{SEAL}")
        if not seal or seal.startswith(f"{found.size}-"):
            return True
        try:  # half-written, or being written anew: its body tells
            self.get(key)
        except ObjectNotFound:
            return False
        return True

    def list(self, prefix: str) -> Iterator[str]:
        start = self._prefix + check_prefix(prefix)
        last = None
        with self._explained():
            for found in self._client.list_objects(
                bucket_name=self._bucket, prefix=start, recursive=True
            ):
                key = (found.object_name or "").removeprefix(self._prefix)
                # rclone names an object twice, one after the other, after puts at the same time.
                if key != last and is_key(key):
                    yield key
                last = key

    def folders(self, key: str) -> Iterator[str]:
        start = f"{self._name(key)}/"
        with self._explained():
            for found in self._client.list_objects(
                bucket_name=self._bucket, prefix=start, recursive=False
            ):
                name = (found.object_name or "").removeprefix(start)
                if name.endswith("/") and is_key(name[:-1]):
                    yield name[:-1]

    def delete(self, key: str) -> None:
        with self._explained():
            self._client.remove_object(bucket_name=self._bucket, object_name=self._name(key))

    def _open_bucket(self) -> None:
        with self._explained():
            if self._client.bucket_exists(bucket_name=self._bucket):
                return
            try:
                self._client.make_bucket(bucket_name=self._bucket)
            except S3Error as error:
                if not self._client.bucket_exists(bucket_name=self._bucket):  # nor made by another
                    raise BucketMissing(
                        f"store {self.address}: there is no such bucket, and it cannot be made "
                        f"({error.code}): make it, or name another"
                    ) from error

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _read(self, name: str) -> tuple[bytes, Mapping[str, str]]:
        response = self._client.get_object(bucket_name=self._bucket, object_name=name)
        try:
            return response.read(), response.headers
        finally:
            response.release_conn()

    def _not_found(self, key: str, why: str = "") -> ObjectNotFound:
        return ObjectNotFound(f"no object {key!r} in {self.address}{why}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what client and server say into the store's errors."""
        where = f"store {self.address}"
        try:
            yield
        except S3Error as error:
            said = f"{error.code}: {error.message}"
            if error.code == "NoSuchBucket":
                raise BucketMissing(f"{where}: there is no such bucket") from error
            if error.response.status in (401, 403):
                raise StoreDenied(
                    f"{where}: refused ({said}): check PPV_S3__ACCESS_KEY, PPV_S3__SECRET_KEY, and "
                    "what they may do there"
                ) from error
            if error.response.status == 507 or error.code == "XMinioStorageFull":
                raise StoreFull(f"{where}: no space left ({said})") from error
            raise StoreError(f"{where}: {said}") from error
        except MaxRetryError as error:
            if isinstance(error.reason, ResponseError):
                raise StoreError(f"{where}: keeps failing: {error.reason}") from error
            raise StoreUnreachable(f"{where}: cannot be reached: {self._reason(error)}") from error
        except HTTPError as error:
            raise StoreUnreachable(f"{where}: the connection broke: {error}") from error
        except MinioException as error:
            raise StoreError(f"{where}: no S3 server's answer: {str(error)[:200]}") from error

    def _reason(self, error: MaxRetryError) -> str:
        reason = str(error.reason)
        trouble = trouble_of(reason)
        if trouble == PLAIN:
            return f"{PLAIN}; for plain http, the endpoint is http://{self._host}"
        return trouble or reason.rpartition(": ")[2]


class _Pool(urllib3.PoolManager):
    """The client reads an error's code only from application/xml; rclone says text/xml.

    From https, no redirect leads to plain http: each comes by here too.
    """

    def urlopen(self, method: str, url: str, *args: Any, **options: Any) -> BaseHTTPResponse:
        if self.connection_pool_kw["ssl_context"] and not url.startswith("https://"):
            raise LocationValueError(f"it redirects to {url.partition('?')[0]}, without TLS")
        response = super().urlopen(method, url, *args, **options)
        if response.headers.get("content-type", "").startswith("text/xml"):
            response.headers["content-type"] = "application/xml"
        return response


def _http(tls: ssl.SSLContext | None) -> urllib3.PoolManager:
    """Connections that never hang: at most 10 s to find nobody there, 3 minutes for silence."""
    return _Pool(
        ssl_context=tls,
        maxsize=16,  # kept open for as many threads; more are opened and closed as needed
        timeout=urllib3.Timeout(connect=5, read=60),
        retries=urllib3.Retry(
            total=8,
            connect=1,
            read=2,
            redirect=3,
            status=5,
            other=1,
            status_forcelist=(500, 502, 503, 504),
            allowed_methods=None,  # whatever we send may be sent twice
            backoff_factor=0.1,
            backoff_jitter=0.1,
            respect_retry_after_header=False,  # it may ask for an hour
        ),
    )


def _seal(data: bytes) -> str:
    return f"{len(data)}-{hashlib.sha256(data).hexdigest()}"


def _at_rest(headers: Mapping[str, str]) -> bool:
    """False if the object was written in the two seconds before the server's answer, or may be."""
    try:
        answered, written = (
            parsedate_to_datetime(headers[name]) for name in ("date", "last-modified")
        )
    except (KeyError, ValueError):
        return False
    return (answered - written).total_seconds() >= 2


def _fits(body: bytes, headers: Mapping[str, str]) -> bool:
    """False if the ETag looks like an MD5, and is another body's."""
    etag = headers.get("etag", "").strip('"')
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    return etag == md5 or not re.fullmatch(r"[0-9a-f]{32}", etag)
