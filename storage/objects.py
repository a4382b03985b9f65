"""The store as the rest of the project sees it: bytes under keys, and what can go wrong.

PpvError
├── InputError
│   └── BadKey            a key that no store takes, or one that is a folder of other keys
├── ServiceError
│   └── StoreError            the store answered, and not as it should
│       ├── StoreUnreachable      nobody answers at its address
│       ├── StoreDenied           it refuses the key, or the folder's permissions do
│       ├── StoreFull             no room: what was written before stays
│       └── BucketMissing         no such bucket, and no right to make it
└── ObjectNotFound        nothing whole lies under the key
"""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

from pipeline.errors import InputError, PpvError, ServiceError

if TYPE_CHECKING:
    from storage.s3 import S3Config


class BadKey(InputError):
    """A key that no store takes, or one that is a folder of other keys."""


class StoreError(ServiceError):
    """The store answered, and not as it should; the message names its address and the reason."""


class StoreUnreachable(StoreError):
    """Nobody answers at the store's address."""


class StoreDenied(StoreError):
    """The store refuses the access key, or the folder's permissions do."""


class StoreFull(StoreError):
    """There is no room for this object; what was written before stays whole."""


class BucketMissing(StoreError):
    """The bucket does not exist, and this access key may not make it."""


class ObjectNotFound(PpvError, LookupError):
    """Nothing whole lies under this key."""


class ObjectStore(Protocol):
    """Bytes under keys. Safe to share between threads, not between processes: open it after a fork.

    An object is whole or absent: whatever dies in the middle of a put, no later get gives a part
    of it. Of puts to one key at the same time, one value stays; a key that is being replaced may
    look absent for an instant. There are no conditional writes.

    No key may be a folder of other keys ("a" beside "a/b"): FolderStore raises BadKey, S3 proper
    takes both, and rclone fails after some seconds and shows neither until it starts again.

    Every verb raises BadKey, and StoreError or one of its kinds.
    """

    address: str  # for messages: where it is, never a secret

    def put(self, key: str, data: bytes) -> None:
        """Replaces what was there."""

    def get(self, key: str) -> bytes:
        """Raises ObjectNotFound."""

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that begin with the prefix, as a stream, in any order.

        The prefix is compared letter by letter: "runs/a" also finds "runs/ab/x", "runs/a/" does
        not. Keys put or deleted meanwhile may be named or not.
        """

    def folders(self, key: str) -> Iterator[str]:
        """The parts that follow "key/" in the keys of two parts or more below it, in any order.

        One answer for a folder, however many objects lie in it.
        """

    def delete(self, key: str) -> None:
        """An absent key is fine."""


def check_use(store: ObjectStore) -> None:
    """Write, read and delete an object. Raises StoreError if any of that does not work."""
    key, data = f"doctor/{secrets.token_hex(8)}", secrets.token_bytes(4096)
    store.put(key, data)
    try:
        whole = store.get(key) == data
    except ObjectNotFound:
        whole = False
    store.delete(key)
    if not whole:
        raise StoreError(f"{store.address} gave back other bytes than were written")
    if store.exists(key):
        raise StoreError(f"{store.address} did not delete {key!r}: check its permissions")


KEY_BYTES = 512
# A store that keeps objects as files, as rclone does, has 255 bytes for a name and adds to it.
PART_BYTES = 200

# Names that begin with a dot are the stores' own: half-written files of FolderStore and of rclone.
_PART = r"[^/\\.\x00-\x1f\x7f-\x9f][^/\\\x00-\x1f\x7f-\x9f]*"
_KEY = re.compile(f"{_PART}(/{_PART})*")


def check_key(key: str) -> str:
    """The key itself. Raises BadKey if it is not one that every store takes.

    Parts are separated by '/'. No part is empty, begins with a dot, or holds a backslash or a
    control character; a part has at most 200 bytes of UTF-8, a key 512.
    """
    if not _KEY.fullmatch(key):
        raise BadKey(
            f"key {_shown(key)}: use parts separated by '/', none of them empty, beginning with "
            "'.', or with a backslash or a control character"
        )
    try:
        sizes = [len(part.encode()) for part in key.split("/")]
    except UnicodeEncodeError:
        raise BadKey(f"key {_shown(key)}: it holds a lone surrogate, which is no text") from None
    if max(sizes) > PART_BYTES or sum(sizes) + len(sizes) - 1 > KEY_BYTES:
        raise BadKey(
            f"key {_shown(key)}: at most {KEY_BYTES} bytes of UTF-8, {PART_BYTES} in each part"
        )
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself: empty, or a key, or a key and '/'. Raises BadKey."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def is_key(name: str) -> bool:
    """Whether a name found in a store can be one of our objects."""
    try:
        check_key(name)
    except BadKey:
        return False
    return True


def _shown(key: str) -> str:
    return ascii(key if len(key) <= 80 else f"{key[:77]}...")


def open_store(url: str, s3: "S3Config | None" = None, tls_ca: Path | None = None) -> ObjectStore:
    """The store at file:///folder or s3://bucket/prefix; s3 says where the bucket's server is.

    tls_ca: a file of CA certificates that count beside the system's.

    A folder or bucket that is absent is made. Raises InputError for any other address, and
    StoreError or one of its kinds if the store cannot be used.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "file" and rest.startswith("/"):
        from storage.folder import FolderStore

        return FolderStore(Path(unquote(rest)))
    if scheme == "s3" and "@" not in rest and (bucket := rest.partition("/")[0]):
        if s3 is None:
            raise InputError(
                f"store URL {url!r}: an S3 store also needs PPV_S3__ENDPOINT, PPV_S3__ACCESS_KEY "
                "and PPV_S3__SECRET_KEY"
            )
        from storage.s3 import S3Store

        return S3Store(s3, bucket, rest.partition("/")[2].strip("/"), tls_ca)
    shown = f"{scheme}://{rest.rpartition('@')[2]}" if separator else url  # never a password
    raise InputError(f"store URL {shown!r}: use file:///folder or s3://bucket/prefix")
