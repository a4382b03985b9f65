"""Docker for bench.containers: the engine that is there, or one of our own with local stand-ins.

The stand-ins are for a machine that reaches Debian's and Python's packages, but no registry: a
base from debootstrap under the name that docker/Dockerfile asks for, and the servers on top of it.
Needs root, and Debian's docker.io, docker-compose and debootstrap.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATE = ROOT / ".work" / "containers"  # kept: a second start builds little

BASE = "python:3.11.15-slim-bookworm"
SERVERS = {
    "redis": "redis:8.2.3-alpine",
    "s3": "chrislusf/seaweedfs:4.48",
    "prometheus": "prom/prometheus:v3.13.3",
}
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Engine:
    """A Docker engine and the commands that talk to it."""

    docker: list[str]
    compose: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, stdin: str = "", check: bool = True) -> str:
        """What `docker COMMAND` prints. Exits, with what it said, if it fails."""
        return self._run([*self.docker, *command], stdin, check)

    def run_compose(self, *command: str, stdin: str = "", check: bool = True) -> str:
        return self._run([*self.compose, *command], stdin, check)

    def logs(self, container: str, since: str = "0") -> str:
        """What a container said so far, to either stream. since: a time as Docker writes it."""
        command = [*self.docker, "logs", "--since", since, container]
        together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        env = os.environ | self.environment
        return subprocess.run(command, text=True, env=env, **together).stdout

    def _run(self, command: list[str], stdin: str, check: bool) -> str:
        env = os.environ | self.environment
        ended = subprocess.run(command, input=stdin, capture_output=True, text=True, env=env)
        if check and ended.returncode:
            sys.exit(f"{' '.join(command)}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        return ended.stdout


@contextmanager
def engine(standins: bool) -> Iterator[Engine]:
    """The engine that `docker` reaches, or an own one that has stand-ins for every image."""
    if not standins:
        docker, compose = [_program("docker")], [_program("docker"), "compose"]
        if subprocess.run([*compose, "version"], capture_output=True).returncode:
            compose = [_program("docker-compose")]
        yield Engine(docker, compose, {"DOCKER_BUILDKIT": "1"})
        return
    if os.geteuid() != 0:
        sys.exit("--standins starts a Docker engine, which needs root")
    # Debian's own client: a newer one earlier on the PATH may lack what BuildKit here needs.
    environment = {"DOCKER_HOST": f"unix://{STATE}/docker.sock", "DOCKER_BUILDKIT": "1"}
    own = Engine(["/usr/bin/docker"], ["/usr/bin/docker-compose"], environment)
    STATE.mkdir(parents=True, exist_ok=True)
    command = [
        _program("dockerd"),
        "--host",
        environment["DOCKER_HOST"],
        "--pidfile",
        f"{STATE}/pid",
    ]
    command += ["--data-root", f"{STATE}/data", "--exec-root", f"{STATE}/exec"]
    with (STATE / "dockerd.log").open("w") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_up(own, daemon)
        _make_base(own)
        for target, name in SERVERS.items():
            file = ROOT / "bench" / "standins.Dockerfile"
            own.run("build", "-q", "--target", target, "-t", name, "-", stdin=file.read_text())
        yield own
    finally:
        daemon.terminate()
        daemon.wait(60)


def _program(name: str) -> str:
    return shutil.which(name) or sys.exit(f"no {name} here")


def _wait_until_up(own: Engine, daemon: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not own.run("version", "--format", "{{.Server.Version}}", check=False).strip():
        if daemon.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"dockerd did not start: see {STATE}/dockerd.log")
        time.sleep(0.2)


def _make_base(own: Engine) -> None:
    """Debian with Python, and with the certificates and wheels that pip uses here."""
    if own.run("images", "-q", BASE):
        return
    tree = STATE / "base"
    shutil.rmtree(tree, ignore_errors=True)
    packages = "--include=python3,python3-pip,python3-venv,ca-certificates"
    subprocess.run(
        [_program("debootstrap"), "--variant=minbase", packages, "bookworm", str(tree)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    next(tree.glob("usr/lib/python3*/EXTERNALLY-MANAGED")).unlink()
    for name in ("python", "pip"):
        (tree / "usr/local/bin" / name).symlink_to(f"/usr/bin/{name}3")
    shutil.copy(_CERTIFICATES, tree / _CERTIFICATES.relative_to("/"))
    settings = f"[global]\ncert = {_CERTIFICATES}\n"
    asked = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    wheels = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    if wheels:
        shutil.copytree(wheels, tree / "wheels")
        settings += "find-links = /wheels\n"
    (tree / "etc/pip.conf").write_text(settings)
    shutil.rmtree(tree / "var/cache/apt/archives")
    packed = subprocess.Popen([_program("tar"), "-C", tree, "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(
        [*own.docker, "import", "-", BASE],
        check=True,
        stdin=packed.stdout,
        stdout=subprocess.DEVNULL,
        env=os.environ | own.environment,
    )
    shutil.rmtree(tree)
