"""The command line as a newcomer meets it: exit codes, one line on standard error, no traceback."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from storage.folder import FolderStore
from storage.runs import RunFolder, run_names
from storage.s3 import S3Config
from tests.conftest import REDIS_PASSWORD
from tests.tiny import save_weights

Result = subprocess.CompletedProcess[str]
Ppv = Callable[..., Result]

NOWHERE = {
    "PPV_BROKER_URL": "redis://:hunter2@127.0.0.1:1/0",
    "PPV_S3__ENDPOINT": "http://127.0.0.1:1",
    "PPV_S3__ACCESS_KEY": "anybody",
    "PPV_S3__SECRET_KEY": "hunter3",
    "PPV_STORE_URL": "s3://bucket",
}
"""Services that cannot be reached."""


@pytest.fixture
def ppv(tmp_path: Path) -> Ppv:
    """Runs `ppv` in an empty folder with nothing configured but what is given."""
    home = tmp_path / "home"
    home.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PPV_", "OPENAI_"))}

    def ppv(*arguments: object, env: Mapping[str, str] | None = None, stdin: str = "") -> Result:
        command = [Path(sys.executable).with_name("ppv"), *map(str, arguments)]
        return subprocess.run(
            command, cwd=home, env={**clean, **(env or {})}, input=stdin, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip

    return ppv


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> dict[str, str]:
    """A Redis, an empty folder store, and models that nobody loads."""
    return {
        "PPV_BROKER_URL": redis_url,
        "PPV_STORE_URL": (tmp_path / "store").as_uri(),
        "PPV_PROPOSER__MODEL": str(save_weights(tmp_path / "base")),
        "PPV_VERIFIER__MODEL": str(save_weights(tmp_path / "verifier", 1)),
    }


def complaint(result: Result, code: int) -> str:
    """The one line with which a command ended."""
    assert result.returncode == code, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("ppv: ")
    for secret in ("hunter2", "hunter3", REDIS_PASSWORD):
        assert secret not in result.stdout + result.stderr
    return result.stderr


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Wrong input: exit code 2, before anything is started or written


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "empty.txt holds no base prompt: write one a line"),
        ("latin.txt", "un café".encode("latin-1"), "line 1 is not UTF-8 (byte 0xe9"),
        ("long.txt", b"x" * 10_000, "line 1 has 10,000 characters"),
        ("bell.txt", b"a \x07 mug", "control character U+0007"),
        ("table.csv", b"text\na mug\n", "no column 'prompt' (columns: text)"),
        ("broken.jsonl", b'{"prompt": \n', "line 1 is broken JSON"),
        ("a.pdf", b"a mug", "use .txt, .jsonl or .csv"),
    ],
)
def test_a_wrong_file_ends_the_run_before_it_begins(
    ppv: Ppv, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in complaint(ppv("run", tmp_path / name), 2)
    assert left_in(tmp_path / "home") == []


def test_a_missing_file_is_named(ppv: Ppv, tmp_path: Path) -> None:
    line = complaint(ppv("enqueue", "nothing.txt", "--run", "a", env=NOWHERE), 2)
    assert "nothing.txt cannot be read: No such file" in line


@pytest.mark.parametrize(
    "command",
    [
        ("run", "-", "--run", "../x"),
        ("run", "-", "--run", "x" * 300),
        ("enqueue", "-", "--run", "a/b"),
        ("status", ".."),
        ("resume", "UPPER"),
        ("report", ".hidden"),
    ],
)
def test_a_wrong_run_name_is_refused_and_writes_nothing(
    ppv: Ppv, tmp_path: Path, command: tuple[str, ...]
) -> None:
    line = complaint(ppv(*command, stdin="a mug\n"), 2)
    assert "use 1 to 64 of a-z, 0-9" in line and len(line) < 250
    assert left_in(tmp_path) == ["home"]


def test_lines_before_a_broken_one_stay_enqueued(
    ppv: Ppv, tmp_path: Path, services: dict[str, str]
) -> None:
    good = "".join(f'"mug {number}"\n' for number in range(16))
    result = ppv("enqueue", "-", "--run=broken", "--format=jsonl", stdin=good + "{", env=services)
    assert "standard input, line 17 is broken JSON" in complaint(result, 2)
    batches = list(RunFolder(FolderStore(tmp_path / "store"), "broken").inputs())
    assert [base.text for batch in batches for base in batch.bases] == [
        f"mug {number}" for number in range(16)
    ]


def test_duplicates_and_known_ones_are_sent_once_and_reported(
    ppv: Ppv, tmp_path: Path, services: dict[str, str]
) -> None:
    lines = "يد تمسك كوبًا\na hand 👋🏽\na  hand 👋🏽\n\na key\n"
    first = ppv("enqueue", "-", "--run=twice", stdin=lines, env=services)
    assert "3 base prompts enqueued in run twice; 1 duplicates and 0 that" in first.stderr
    again = ppv("enqueue", "-", "--run=twice", stdin=lines + "a mug\n", env=services)
    assert "1 base prompts enqueued in run twice; 1 duplicates and 3 that" in again.stderr
    folder = RunFolder(FolderStore(tmp_path / "store"), "twice")
    kept = {base.text for batch in folder.inputs() for base in batch.bases}
    assert kept == {"يد تمسك كوبًا", "a hand 👋🏽", "a key", "a mug"}
    assert folder.read().base_prompts == 4


def test_the_store_holds_no_secret(ppv: Ppv, tmp_path: Path, services: dict[str, str]) -> None:
    secrets = {"OPENAI_API_KEY": "sk-hunter2", "PPV_S3__SECRET_KEY": "hunter3"}
    s3 = {"PPV_S3__ENDPOINT": "http://127.0.0.1:1", "PPV_S3__ACCESS_KEY": "hunter4"}
    env = services | secrets | s3
    result = ppv("enqueue", "-", "--run=secret", stdin="a mug\n", env=env)
    assert result.returncode == 0, result.stderr
    written = [path.read_text() for path in (tmp_path / "store").rglob("*.json*")]
    assert any("prompter" in text for text in written)
    for secret in ("hunter", REDIS_PASSWORD):
        assert not any(secret in text for text in written)


# Wrong models


def test_a_missing_model_folder_is_named(
    ppv: Ppv, tmp_path: Path, services: dict[str, str]
) -> None:
    env = services | {"PPV_PROPOSER__MODEL": "/no/such/model"}
    line = complaint(ppv("enqueue", "-", "--run=a", stdin="a mug", env=env), 2)
    assert "no model at '/no/such/model': give a folder" in line
    assert run_names(FolderStore(tmp_path / "store")) == []


def test_a_model_folder_with_a_pickle_is_refused(
    ppv: Ppv, tmp_path: Path, services: dict[str, str]
) -> None:
    (tmp_path / "verifier" / "training_args.bin").write_bytes(b"\x80\x04.")
    line = complaint(ppv("enqueue", "-", "--run=a", stdin="a mug", env=services), 2)
    assert "holds a pickle (training_args.bin)" in line
    assert run_names(FolderStore(tmp_path / "store")) == []


def test_a_hub_that_cannot_be_reached_is_a_service(ppv: Ppv, services: dict[str, str]) -> None:
    hub = {"HF_ENDPOINT": "http://127.0.0.1:1", "PPV_PROPOSER__MODEL": "nobody/nothing"}
    result = ppv("enqueue", "-", "--run=a", stdin="a mug", env=services | hub)
    assert "the hub cannot be asked for 'nobody/nothing'" in complaint(result, 3)


# Services that are away: exit code 3, with the address, without the password


@pytest.mark.parametrize("command", [("enqueue", "-", "--run=a"), ("run", "-"), ("cancel", "a")])
def test_an_unreachable_broker_is_named_without_its_password(
    ppv: Ppv, services: dict[str, str], command: tuple[str, ...]
) -> None:
    env = services | {"PPV_BROKER_URL": NOWHERE["PPV_BROKER_URL"]}
    result = ppv(*command, stdin="a mug", env=env)
    assert "no broker answers at redis://127.0.0.1:1/0" in complaint(result, 3)


def test_a_wrong_broker_password_is_said_to_be_wrong(ppv: Ppv, services: dict[str, str]) -> None:
    url = services["PPV_BROKER_URL"].replace(REDIS_PASSWORD, "hunter2")
    result = ppv("enqueue", "-", "--run=a", stdin="a mug", env=services | {"PPV_BROKER_URL": url})
    line = complaint(result, 3)
    assert "refused the password: check PPV_BROKER_URL" in line
    assert url.rpartition("@")[2] in line


@pytest.mark.parametrize("url", ["redis://:hunter2/x@host:6379/0", "hunter2@host", "http://host"])
def test_a_broker_address_that_is_none_is_not_repeated(ppv: Ppv, url: str) -> None:
    result = ppv("enqueue", "-", "--run=a", stdin="a mug", env={"PPV_BROKER_URL": url})
    assert "write redis://:password@host:port/0" in complaint(result, 2)


def test_an_unreachable_store_is_named(ppv: Ppv) -> None:
    line = complaint(ppv("status", env=NOWHERE), 3)
    assert "http://127.0.0.1:1" in line


def test_a_wrong_s3_key_is_said_to_be_wrong(ppv: Ppv, s3_server: S3Config) -> None:
    env = {
        "PPV_STORE_URL": "s3://objects",
        "PPV_S3__ENDPOINT": s3_server.endpoint,
        "PPV_S3__ACCESS_KEY": s3_server.access_key,
        "PPV_S3__SECRET_KEY": "hunter2",
    }
    line = complaint(ppv("status", env=env), 3)
    assert s3_server.endpoint in line and "PPV_S3__SECRET_KEY" in line


def test_no_services_at_all_says_how_to_have_them(ppv: Ppv) -> None:
    line = complaint(ppv("enqueue", "-", "--run=a", stdin="a mug"), 3)
    assert "set PPV_BROKER_URL" in line and "`ppv up`" in line


# Wrong configuration: exit code 2


def test_a_misspelt_key_is_refused_wherever_it_stands(ppv: Ppv, tmp_path: Path) -> None:
    flag = ppv("status", "--set", "proposer.bach_size=8")
    assert "'proposer.batch_size'" in complaint(flag, 2)
    variable = ppv("status", env={"PPV_BROKER_URI": "redis://hunter2"})
    assert "PPV_BROKER_URL" in complaint(variable, 2)
    (tmp_path / "home" / "ppv.toml").write_text("[proposer]\nbach_size = 8\n")
    assert "'proposer.batch_size'" in complaint(ppv("status"), 2)
    assert left_in(tmp_path / "home") == ["ppv.toml"]


# What importing costs


@pytest.mark.parametrize(
    ("module", "asleep"),
    [
        ("workers.cli", ["celery", "minio", "pydantic_settings", "torch", "openai"]),
        ("workers.prompt", ["torch", "diffusers", "transformers"]),
        ("workers.describing", ["torch", "diffusers", "openai", "datasketch"]),
        ("workers.propose", ["torch", "diffusers", "transformers"]),
        ("storage.runs", ["torch", "minio", "celery"]),
        ("storage.objects", ["torch", "minio", "celery"]),
        ("pipeline.proposer.diffusion", ["torch", "diffusers"]),
    ],
)
def test_importing_loads_nothing_heavy(module: str, asleep: list[str], redis_url: str) -> None:
    code = f"import sys, {module}; print(*(set({asleep!r}) & set(sys.modules)))"
    env = {**os.environ, "PPV_BROKER_URL": redis_url}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == []
