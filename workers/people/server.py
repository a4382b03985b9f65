"""Where the page is served: an address of this machine, with a token."""

import secrets
import socket
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from pipeline.errors import InputError
from workers.people.guard import Guard


class PageServer:
    """Listens from the start, so that its address is known; answers while `run` runs."""

    def __init__(self, host: str, port: int) -> None:
        """port: 0 for a free one. Raises InputError if nobody can listen there."""
        self.host, self._token = host, secrets.token_urlsafe(24)
        self.loopback, self._names = _names(host)
        try:
            self._socket = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot listen at {host}, port {port}: {error}") from None
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """With the token: for the annotator alone."""
        return f"http://{self._names[0]}:{self.port}/?token={self._token}"

    def run(self, app: FastAPI) -> None:
        """Until Ctrl-C or SIGTERM."""
        hosts = frozenset(f"{name}:{self.port}" for name in self._names)
        # Cookies know no ports: servers beside one another need names of their own.
        guarded = Guard(app, self._token, hosts, f"ppv-{self.port}")
        config = uvicorn.Config(
            guarded,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=128,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[self._socket])

    def close(self) -> None:
        self._socket.close()


def _names(host: str) -> tuple[bool, list[str]]:
    """Whether this is the machine's own loopback, and by which names it may be called.

    Raises InputError for what is no address, and for one that stands for all of them: then nobody
    knows what the Host header may say.
    """
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        raise InputError(f"--host {host!r}: give an address, such as 127.0.0.1") from None
    if address.is_unspecified:
        raise InputError(f"--host {host}: give the one address of this machine to listen at")
    name = f"[{host}]" if address.version == 6 else host
    return address.is_loopback, [name, "localhost"] if address.is_loopback else [name]
