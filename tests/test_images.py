"""The images and the compose files: linted, locked, and what the light image goes without."""

import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from pipeline.errors import ServiceError
from tests.conftest import REDIS_PASSWORD, _free_port
from tests.tls import program, redis_process
from workers.broker import Broker

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = sorted(DOCKER.glob("compose*.yaml"))
REQUIREMENTS = runpy.run_path(str(DOCKER / "requirements.py"))

# What python -c runs where the libraries that the light image lacks cannot be imported.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({lacking!r}))
sys.argv = ["ppv", *sys.argv[1:]]
from {module} import main
main()
"""


def run(program: str, *arguments: str | Path) -> str:
    """What a linter of the environment says; it must be content."""
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_dockerfile_passes_hadolint() -> None:
    run("hadolint", DOCKER / "Dockerfile")


def test_the_compose_files_pass_their_schema() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE)


def services(file: str = "compose.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / file).read_text())["services"]
    return found


@pytest.mark.parametrize("name", services())
def test_a_service_is_locked_and_pinned(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if service["image"] not in ("ppv-light", "ppv-gpu"):  # whose user and check are their own
        _, _, tag = service["image"].partition(":")
        assert tag.count(".") >= 1, "an exact version"
        assert service["healthcheck"]["test"]
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_no_password_stands_in_a_file() -> None:
    for name, service in services().items():
        for variable, value in (service.get("environment") or {}).items():
            if value is not None and any(word in variable for word in ("PASSWORD", "KEY", "AUTH")):
                assert "${" in value, f"{name}: {variable}"


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    script = shutil.copy(DOCKER / "secrets.sh", tmp_path)
    subprocess.run([script], check=True, capture_output=True)
    env = tmp_path / ".env"
    assert env.stat().st_mode & 0o077 == 0
    pairs = dict(line.split("=", 1) for line in env.read_text().splitlines() if line)
    asked = set(pairs) - {"COMPOSE_PROJECT_NAME", "PPV_STORE_URL", "PPV_S3__ENDPOINT"}
    assert len({pairs[name] for name in asked}) == len(asked), "two are the same"
    assert all(len(pairs[name]) >= 32 for name in asked)
    before = env.read_text()
    again = subprocess.run([script], capture_output=True, text=True)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert env.read_text() == before


def test_with_tls_every_client_has_the_ca_and_an_address_that_wants_it() -> None:
    clients = {
        name
        for name, service in services().items()
        if "PPV_BROKER_URL" in (service.get("environment") or {})
    }
    secured = services("compose.tls.yaml")
    assert len(clients) >= 5
    for name in clients:
        environment = secured[name]["environment"]
        assert environment["PPV_BROKER_URL"].startswith("rediss://"), name
        (mounted,) = secured[name]["volumes"]
        assert mounted.split(":")[1:] == [environment["PPV_TLS_CA"], "ro"]
        if "PPV_S3__ENDPOINT" in services()[name]["environment"]:
            assert environment["PPV_S3__ENDPOINT"].startswith("https://"), name


def test_with_tls_redis_and_the_store_alone_are_open_to_other_machines() -> None:
    secured = services("compose.tls.yaml")
    opened = {name: service["ports"] for name, service in secured.items() if "ports" in service}
    assert opened == {"redis": ["6379:6379"], "s3": ["8333:8333"]}
    certificate = ["-s3.cert.file=/tls/s3.pem", "-s3.key.file=/tls/s3.key"]
    assert secured["s3"]["command"] == services()["s3"]["command"] + certificate
    keys = [each for service in secured.values() for each in service["volumes"] if "key" in each]
    assert len(keys) == 2
    assert not [each for each in keys if "ca.key" in each]


def test_redis_with_the_certificates_that_the_script_makes(tmp_path: Path) -> None:
    program("openssl")
    script, tls = shutil.copy(DOCKER / "tls.sh", tmp_path), tmp_path / "tls"
    refused = subprocess.run([script, "a b"], capture_output=True, text=True)
    assert (refused.returncode, "no name of a machine: a b" in refused.stderr) == (2, True)
    subprocess.run([script, "fleet.example", "10.1.2.3"], check=True, capture_output=True)
    assert tls.stat().st_mode & 0o077 == 0
    assert (tls / "ca.key").stat().st_mode & 0o077 == 0
    before = (tls / "ca.pem").read_bytes(), (tls / "redis.pem").read_bytes()
    subprocess.run([script, "fleet.example"], check=True, capture_output=True)
    after = (tls / "ca.pem").read_bytes(), (tls / "redis.pem").read_bytes()
    assert after[0] == before[0], "workers know this CA"
    assert after[1] != before[1]

    port = _free_port()
    plain = (DOCKER / "redis.conf").read_text().replace("dir /data", f"dir {tmp_path}")
    (tmp_path / "plain.conf").write_text(f"{plain}\nrequirepass {REDIS_PASSWORD}\n")
    secure = (DOCKER / "redis.tls.conf").read_text().replace("6379", str(port))
    secure = secure.replace("/tls/", f"{tls}/").replace("/etc/redis/", f"{tmp_path}/")
    (tmp_path / "redis.conf").write_text(secure)
    with redis_process(tmp_path / "redis.conf", port):
        for host in ("127.0.0.1", "localhost"):
            url = f"rediss://:{REDIS_PASSWORD}@{host}:{port}/0"
            with closing(Broker(url, tls_ca=tls / "ca.pem")) as broker:
                broker.ping()
        plain_url = f"redis://:{REDIS_PASSWORD}@127.0.0.1:{port}/0"
        with closing(Broker(plain_url)) as broker, pytest.raises(ServiceError):
            broker.ping()


def test_nothing_that_the_light_image_has_brings_torch_along() -> None:
    seen: set[str] = set()
    todo = REQUIREMENTS["requirements"]("light", ROOT / "pyproject.toml")
    while todo:
        requirement = Requirement(todo.pop())
        extras = {"extra": ""}, *({"extra": extra} for extra in requirement.extras)
        if requirement.name in seen or not _counts(requirement, {"extra": ""}):
            continue
        seen.add(requirement.name)
        for line in importlib.metadata.requires(requirement.name) or ():
            if any(_counts(Requirement(line), extra) for extra in extras):
                todo.append(line.partition(";")[0])
    assert "celery" in seen
    assert not seen & REQUIREMENTS["LIGHT_LACKS"]


def _counts(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def test_the_gpu_image_has_all_that_the_package_asks_for() -> None:
    asked = REQUIREMENTS["requirements"]("gpu", ROOT / "pyproject.toml")
    assert {Requirement(each).name for each in asked} >= REQUIREMENTS["LIGHT_LACKS"]


def light(folder: Path, module: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """The exit code and all output of a command that runs with the light image's libraries."""
    lacking = {name.replace("-", "_") for name in REQUIREMENTS["LIGHT_LACKS"]}
    script = WITHOUT.format(lacking=lacking, module=module)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_light_image_enqueues_and_says_what_it_cannot_do(
    tmp_path: Path, redis_url: str
) -> None:
    (tmp_path / "bases.txt").write_text("a hand with a red mug\n")
    place = {"PPV_BROKER_URL": redis_url, "PPV_STORE_URL": f"file://{tmp_path}/store"}
    code, said = light(tmp_path, "workers.cli", "enqueue", "bases.txt", "--run", "light", **place)
    assert code == 0, said
    code, said = light(tmp_path, "workers.cli", "status", "light", "--json", **place)
    assert '"missing": 8' in said, said
    code, said = light(tmp_path, "workers.cli", "doctor", **place)
    assert (code, "no torch is installed here" in said) == (2, True), said
    code, said = light(tmp_path, "workers.cli", "train", "proposer", "--help", **place)
    assert "Traceback" not in said


def test_a_light_worker_refuses_a_queue_that_it_could_only_fail(
    tmp_path: Path, redis_url: str
) -> None:
    place = {"PPV_BROKER_URL": redis_url, "PPV_STORE_URL": f"file://{tmp_path}/store"}
    worker = ("--app=workers", "worker", "--queues=propose")
    code, said = light(tmp_path, "celery.__main__", *worker, **place)
    assert code != 0
    assert "no torch, so it serves the prompt queue only" in said
