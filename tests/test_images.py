"""The images and the compose files: linted, locked, and what the light image goes without."""

import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

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


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
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
