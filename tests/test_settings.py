"""The configuration: who wins, what is refused with which words, and what is never written down."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import InputError
from storage.folder import FolderStore
from tests.tiny import save_weights
from workers.broker import Broker
from workers.dispatch import open_run
from workers.settings import Settings, load_settings, override


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    for variable in [each for each in os.environ if each.startswith("PPV_")]:
        monkeypatch.delenv(variable)


def refusal() -> str:
    with pytest.raises(InputError) as refused:
        load_settings()
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    return message


def test_flag_beats_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().proposer.batch_size == "auto"
    Path("ppv.toml").write_text("[proposer]\nbatch_size = 4\nimages_per_prompt = 3\n")
    assert load_settings().proposer.batch_size == 4
    monkeypatch.setenv("PPV_PROPOSER__BATCH_SIZE", "8")
    assert load_settings().proposer.batch_size == 8
    override("proposer.batch_size=16")
    assert load_settings().proposer.batch_size == 16
    assert load_settings().proposer.images_per_prompt == 3


def test_deep_keys_are_reached_by_flag_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPV_VERIFIER__THRESHOLDS__FIDELITY", "0.9")
    monkeypatch.setenv("PPV_PROPOSER__SAMPLER__GUIDANCE_SCALE", "")  # so that it is put back
    override("proposer.sampler.guidance_scale = 7.5")
    settings = load_settings()
    assert settings.verifier.thresholds.fidelity == 0.9
    assert settings.proposer.sampler.guidance_scale == 7.5


@pytest.mark.parametrize(
    ("variable", "value", "route"),
    [
        ("PPV_PROPOSER__ROUTE", "specialist", "specialist"),
        ("PPV_PROPOSER__ROUTE", '{"base": 1, "specialist": 3}', {"base": 1, "specialist": 3}),
        ("PPV_PROPOSER__ROUTE__PINCH", "2", {"pinch": 2}),
    ],
)
def test_a_route_is_a_word_or_a_table_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, route: object
) -> None:
    monkeypatch.setenv(variable, value)
    assert load_settings().proposer.route == route


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PPV_PROPOSER__SPECIALISTS", '{"pinch": "my-pinch"}'),
        ("PPV_PROPOSER__SPECIALISTS__PINCH", "my-pinch"),
    ],
)
def test_specialists_are_named_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert load_settings().proposer.specialists == {"pinch": "my-pinch"}


def test_the_file_has_words_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ppv.toml").write_text('[proposer]\nroute = "all"\nspecialists = { Pinch = "my-pinch" }\n')
    assert load_settings().proposer.route == "all"
    assert load_settings().proposer.specialists == {"Pinch": "my-pinch"}
    Path("ppv.toml").write_text("[proposer.route]\nbase = 1\nspecialist = 3\n")
    assert load_settings().proposer.route == {"base": 1, "specialist": 3}
    monkeypatch.setenv("PPV_PROPOSER__ROUTE", "")  # so that it is put back
    override("proposer.route=all")
    assert load_settings().proposer.route == "all"


def test_a_flag_adds_entries_to_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPV_PROPOSER__SPECIALISTS", '{"hook": "a", "power": "a"}')
    monkeypatch.setenv("PPV_PROPOSER__SPECIALISTS__PINCH", "a")
    monkeypatch.setenv("PPV_PROPOSER__SPECIALISTS__TRIPOD", "a")
    for entry in ("pinch=b", "Pinch=c", "hook=d=e"):
        override(f"proposer.specialists.{entry}")
    assert load_settings().proposer.specialists == {
        "pinch": "b", "Pinch": "c", "hook": "d=e", "power": "a", "tripod": "a",
    }  # fmt: skip


@pytest.mark.parametrize("word", ["all", '"all"', ""])
def test_a_table_from_flags_takes_the_place_of_a_word(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("PPV_PROPOSER__ROUTE", word)
    override("proposer.route.base=1")
    override("proposer.route.specialist=3")
    assert load_settings().proposer.route == {"base": 1, "specialist": 3}


@pytest.mark.parametrize(
    ("variable", "right"),
    [
        ("PPV_BROKR_URL", "PPV_BROKER_URL"),
        ("PPV_PROPOSERS__MODEL", "PPV_PROPOSER__MODEL"),
        ("PPV_PROPOSER__BATCHSIZE", "proposer.batch_size"),
        ("PPV_PROPOSER__SAMPLER__GUIDANCE", "proposer.sampler.guidance_scale"),
        ("PPV_S3__SECRET", "s3.secret_key"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, variable: str, right: str
) -> None:
    for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"):
        monkeypatch.setenv(f"PPV_S3__{name}", "host")
    monkeypatch.setenv(variable, "hunter2")
    message = refusal()
    assert f"did you mean {right!r}" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("toml", "right"),
    [
        ('brocker_url = "x"', "broker_url"),
        ("[verifier.threshold]\nfidelity = 0.5", "verifier.thresholds"),
        ("[dispatch]\nstall = 1", "dispatch.stall_s"),
    ],
)
def test_a_misspelt_key_of_the_file_is_refused_with_the_nearest(toml: str, right: str) -> None:
    Path("ppv.toml").write_text(toml)
    assert f"did you mean {right!r}" in refusal()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("proposer.batchsize=8", "did you mean 'proposer.batch_size'"),
        ("proposer.batch_size", "write it as key=value"),
        ("zzzzzz=1", "known are broker_url"),
        ("proposer.specialist.pinch=a", r"did you mean 'proposer\.specialists'"),
        ("proposer.specialists.pinch.more=a", r"did you mean 'proposer\.specialists'"),
        ("proposer.device.name=a", r"did you mean 'proposer\.device'"),
    ],
)
def test_a_wrong_assignment_is_refused(assignment: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        override(assignment)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "PPV_PROPOSER__BATCH_SIZE",
            "many",
            "key 'proposer.batch_size': Input should be a valid integer, or 'auto'",
        ),
        ("PPV_PROPOSER__BATCH_SIZE", "0", "'proposer.batch_size': Input should be greater than or"),
        ("PPV_PROPOSER__IMAGES_PER_PROMPT", "many", "'proposer.images_per_prompt': Input should"),
        (
            "PPV_PROPOSER__ROUTE",
            "al",
            "key 'proposer.route': Input should be 'base', 'specialist' or 'all', or a valid dict",
        ),
        ("PPV_PROPOSER__ROUTE", '{"base": -1}', "'proposer.route.base': Input should be greater"),
        ("PPV_PROPOSER__SPECIALISTS", '{"pinch": 1}', "'proposer.specialists.pinch': Input should"),
        ("PPV_PROMPTER__KIND", "gpt", "'grammar', 'openai' or 'verbatim'"),
        ("PPV_PROPOSER__DEVICE", "gpu", "'proposer.device'"),
        ("PPV_VERIFIER__THRESHOLDS__FIDELITY", "1.5", "less than or equal to 1"),
        ("PPV_PROPOSER", "{", "proposer"),
        ("PPV_S3__ENDPOINT", "http://host:9000", "'s3.access_key': Field required"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert words in refusal()


@pytest.mark.parametrize("content", [b"[proposer\n", b"batch = \xff\n", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_refused_by_name(content: bytes) -> None:
    Path("ppv.toml").write_bytes(content)
    assert "ppv.toml" in refusal()


def test_no_error_repeats_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPV_BROKER_URL", "redis://:hunter2@host/0")
    monkeypatch.setenv("PPV_S3__ENDPOINT", "http://user:hunter2@host")
    monkeypatch.setenv("PPV_S3__ACCESS_KEY", "hunter2")
    monkeypatch.setenv("PPV_S3__SECRET_KEY", "hunter2")
    assert "hunter2" not in refusal()
    monkeypatch.setenv("PPV_S3", '{"secret_key": "hunter2"')
    assert "hunter2" not in refusal()


def test_secrets_show_neither_in_print_nor_in_the_frozen_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broker: Broker
) -> None:
    for variable, value in {
        "PPV_BROKER_URL": "redis://:hunter2@host/0",
        "PPV_S3__ENDPOINT": "http://host",
        "PPV_S3__ACCESS_KEY": "somebody",
        "PPV_S3__SECRET_KEY": "hunter3",
        "OPENAI_API_KEY": "hunter4",
    }.items():
        monkeypatch.setenv(variable, value)
    settings = _settings(tmp_path)
    store = FolderStore(tmp_path / "store")
    open_run(store, broker, settings, "a")
    frozen = store.get("runs/a/run.json").decode()
    assert json.loads(frozen)["proposer"]["model"] == str(tmp_path / "base")
    assert "hunter" not in frozen + repr(settings) + str(settings.model_dump())


def test_a_run_goes_on_only_under_its_own_configuration(tmp_path: Path, broker: Broker) -> None:
    store, settings = FolderStore(tmp_path / "store"), _settings(tmp_path)
    first = open_run(store, broker, settings, "a").read()
    assert open_run(store, broker, settings, "a").read() == first
    other = settings.proposer.model_copy(update={"images_per_prompt": 3})
    with pytest.raises(InputError, match=r"proposer\.images_per_prompt is 2 there and 3 now"):
        open_run(store, broker, settings.model_copy(update={"proposer": other}), "a")


def test_of_two_that_make_a_run_at_once_one_is_told_what_the_other_made(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowStore(FolderStore):
        def put(self, key: str, data: bytes) -> None:
            time.sleep(0.5)
            super().put(key, data)

    store, settings = SlowStore(tmp_path / "store"), _settings(tmp_path)
    other = settings.proposer.model_copy(update={"images_per_prompt": 3})
    both = settings, settings.model_copy(update={"proposer": other})
    with ThreadPoolExecutor() as threads:
        opened = [threads.submit(open_run, store, broker, each, "both") for each in both]
        errors = [each.exception() for each in opened]
    assert sorted(map(type, errors), key=str) == [type(None), InputError], errors


def test_a_run_goes_on_only_with_its_own_weights(tmp_path: Path, broker: Broker) -> None:
    store, settings = FolderStore(tmp_path / "store"), _settings(tmp_path)
    open_run(store, broker, settings, "a")
    other = settings.verifier.model_copy(update={"model": str(save_weights(tmp_path / "b", 2))})
    with pytest.raises(InputError, match="exists with another configuration: verifier"):
        open_run(store, broker, settings.model_copy(update={"verifier": other}), "a")


def _settings(folder: Path) -> Settings:
    settings = load_settings()
    base, verifier = save_weights(folder / "base"), save_weights(folder / "verifier", 1)
    return settings.model_copy(
        update={
            "proposer": settings.proposer.model_copy(update={"model": str(base)}),
            "verifier": settings.verifier.model_copy(update={"model": str(verifier)}),
        }
    )


@pytest.mark.parametrize("variable", ["PPV_BROKER_URL", "PPV_REDIS_URL"])
@pytest.mark.parametrize("url", ["rediss://:pass-word@host/0", "amqps://ppv:pass-word@host//"])
def test_no_address_turns_the_verification_of_certificates_off(
    variable: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"{url}?ssl_cert_reqs=none")
    message = refusal()
    assert variable.removeprefix("PPV_").lower() in message
    assert "pass-word" not in message
    monkeypatch.setenv(variable, url)
    load_settings()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read: No such file"), ("no PEM", "no CA certificates")],
)
def test_a_ca_file_that_is_none_is_refused_by_its_name(
    content: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("PPV_TLS_CA", "ca.pem")
    message = refusal()
    assert "tls_ca" in message
    assert "'ca.pem'" in message
    assert reason in message


@pytest.mark.parametrize("url", ["https://ppv:hunter2@host/v1", "https://host/v1?key=hunter2"])
def test_an_endpoint_is_named_without_a_key_for_it_is_frozen_with_the_run(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPV_PROMPTER__BASE_URL", url)
    assert "hunter2" not in refusal()
