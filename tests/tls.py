"""Certificates that tests make, and a Redis that shows one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from tests.conftest import REDIS_PASSWORD, _free_port, _wait_for_port


@dataclass(frozen=True)
class Certificate:
    """Files of a server: its certificate, its key, and its CA's certificate."""

    chain: Path
    key: Path
    ca: Path


class Authority:
    """A CA of a test's own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._ca = folder, trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def certificate(self, name: str, *, expired: bool = False) -> Certificate:
        """For a host of this name or address."""
        ended = datetime.now(UTC) - timedelta(days=1) if expired else None
        issued = self._ca.issue_cert(name, not_after=ended)
        stem = f"{name}-expired" if expired else name
        chain, key = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        issued.private_key_pem.write_to_path(str(key))
        for each in issued.cert_chain_pems:
            each.write_to_path(str(chain), append=True)
        return Certificate(chain, key, self.file)


def program(name: str) -> str:
    """Skips the test where there is none of this name, and says so."""
    if found := shutil.which(name):
        return found
    reason = f"NO {name.upper()}: TLS is not tested (Debian: apt-get install {name})"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def redis_process(config: Path, port: int) -> Iterator[None]:
    """Debian's Redis: the embedded one was built without TLS."""
    server = program("redis-server")
    process = subprocess.Popen([server, config], stdout=subprocess.DEVNULL, text=True)
    try:
        _wait_for_port(process, port)
        yield
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class SecureRedis:
    """A Redis with a password that speaks TLS alone."""

    port: int

    @property
    def url(self) -> str:
        return f"rediss://:{REDIS_PASSWORD}@127.0.0.1:{self.port}/0"


@contextmanager
def secure_redis(folder: Path, certificate: Certificate) -> Iterator[SecureRedis]:
    folder.mkdir(parents=True)
    port = _free_port()
    config = folder / "redis.conf"
    config.write_text(
        f"bind 127.0.0.1\nport 0\ntls-port {port}\ntls-auth-clients no\n"
        f"tls-cert-file {certificate.chain}\ntls-key-file {certificate.key}\n"
        f'requirepass {REDIS_PASSWORD}\nsave ""\ndir {folder}\n'
    )
    with redis_process(config, port):
        yield SecureRedis(port)
