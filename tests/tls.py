"""Certificates that tests make, and a Redis that shows them."""

import os
import shutil
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

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


class SecureRedis(AbstractContextManager["SecureRedis"]):
    """A Redis with a password that speaks TLS alone. The embedded one was built without TLS."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self._folder, self._certificate = folder, certificate
        self.port = _free_port()
        self.url = f"rediss://:{REDIS_PASSWORD}@127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        server = shutil.which("redis-server")
        if server is None:
            reason = "NO REDIS WITH TLS: none is spoken to (Debian: apt-get install redis-server)"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        self._folder.mkdir(parents=True)
        (config := self._folder / "redis.conf").write_text(
            f"bind 127.0.0.1\nport 0\ntls-port {self.port}\ntls-auth-clients no\n"
            f"tls-cert-file {self._certificate.chain}\ntls-key-file {self._certificate.key}\n"
            f'requirepass {REDIS_PASSWORD}\nsave ""\ndir {self._folder}\n'
        )
        self._process = subprocess.Popen([server, config], stdout=subprocess.DEVNULL, text=True)
        _wait_for_port(self._process, self.port)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
