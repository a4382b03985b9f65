"""A real RabbitMQ of a test's own, on loopback, with its files in one folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.tls import Certificate

PASSWORD = "rabbit-pass-word"


class RabbitServer:
    """Erlang's name server and the broker, as child processes; the broker can be killed."""

    def __init__(self, folder: Path, certificate: "Certificate | None" = None) -> None:
        self.port, self._epmd_port, dist_port = _free_ports(3)
        scheme, listeners = ("amqps", "ssl") if certificate else ("amqp", "tcp")
        self.url = f"{scheme}://ppv:{PASSWORD}@127.0.0.1:{self.port}//"
        self._folder = folder
        (folder / "rabbitmq.conf").write_text(
            f"listeners.{listeners}.1 = 127.0.0.1:{self.port}\n"
            + (f"listeners.tcp = none\n{_tls(certificate)}" if certificate else "")
            + f"default_user = ppv\ndefault_pass = {PASSWORD}\n"
        )
        (folder / "plugins").write_text("[].")
        self._environment = os.environ | {
            "HOME": str(folder),  # where its cookie goes
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._epmd = self._start_child(_program("epmd"), "-port", str(self._epmd_port))

    def start(self, deadline_s: float = 60) -> None:
        # Debian's wrapper wants root or its own user; this is what it calls.
        inner = next(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmq-server"), None)
        self._broker = self._start_child(str(inner or _program("rabbitmq-server")))
        end = time.monotonic() + deadline_s
        while not _answers(self.port):
            assert self._broker.poll() is None, (self._folder / "out").read_text()
            assert time.monotonic() < end, (self._folder / "out").read_text()
            time.sleep(0.05)

    def kill(self, deadline_s: float = 30) -> None:
        os.killpg(self._broker.pid, signal.SIGKILL)
        self._broker.wait()
        # That was the shell; what it ran may answer for a moment longer.
        end = time.monotonic() + deadline_s
        while _answers(self.port):
            assert time.monotonic() < end, f"killed, and still on port {self.port}"
            time.sleep(0.05)

    def end(self) -> None:
        self.kill()
        self._epmd.kill()
        self._epmd.wait()

    def _start_child(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self._folder / "out").open("ab") as out:
            return subprocess.Popen(
                command,
                cwd=self._folder,  # where it leaves what it could not write when it was killed
                env=self._environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


def _tls(certificate: "Certificate") -> str:
    return (
        f"ssl_options.certfile = {certificate.chain}\nssl_options.keyfile = {certificate.key}\n"
        f"ssl_options.cacertfile = {certificate.ca}\nssl_options.verify = verify_none\n"
    )


def _program(name: str) -> str:
    """Skips the test where there is no RabbitMQ, and says so."""
    if found := shutil.which(name):
        return found
    reason = "NO RABBITMQ: no run goes through one (Debian: apt-get install rabbitmq-server)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
