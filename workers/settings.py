"""The only reader of the environment: one typed object, from flags, PPV_ variables and ppv.toml."""

import difflib
import os
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipeline.config import EndpointConfig, PrompterConfig, ProposerConfig, VerifierConfig
from pipeline.errors import InputError
from storage.s3 import S3Config

PREFIX = "PPV_"
FILE = Path("ppv.toml")


class DispatchConfig(BaseModel, extra="forbid", frozen=True):
    """How much is under way at once, and how long a worker may hold it."""

    bases_per_message: Annotated[int, Field(ge=1, le=1024)] = 16
    max_prompt_messages: Annotated[int, Field(ge=1)] = 16  # waiting in the prompt queue
    max_image_messages: Annotated[int, Field(ge=1)] = 64  # waiting in propose and verify together
    visibility_timeout_s: Annotated[int, Field(ge=10)] = 1800  # 3 times the longest batch or more
    stall_s: Annotated[float, Field(gt=0)] = 20.0  # nothing new for so long: look for lost work


class Settings(BaseSettings):
    """Everything that can be configured. Flag, then environment, then ppv.toml, then default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        toml_file=FILE,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # a value may be a password
    )

    broker_url: SecretStr = SecretStr("")  # redis://...; empty: embedded Redis
    store_url: str = ""  # s3://bucket/prefix or file:///folder; empty: embedded S3
    s3: S3Config | None = None
    state_dir: Path = Path(".ppv")  # what the embedded services keep
    prompter: PrompterConfig = PrompterConfig()
    endpoint: EndpointConfig = EndpointConfig()
    proposer: ProposerConfig = ProposerConfig()
    verifier: VerifierConfig = VerifierConfig()
    dispatch: DispatchConfig = DispatchConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def override(assignment: str) -> None:
    """Take "proposer.batch_size=8" from a flag: it wins over environment and file.

    It is put into the environment, so that this process and the workers that it starts agree.
    Raises InputError for an unknown key.
    """
    key, equals, value = assignment.partition("=")
    key = key.strip()
    if not equals:
        raise InputError(f"--set {assignment!r}: write it as key=value")
    if key not in (known := list(_keys())):
        raise InputError(f"unknown configuration key {key!r}{_nearest(key, known)}")
    os.environ[PREFIX + key.replace(".", "__").upper()] = value


def load_settings() -> Settings:
    """The settings, read now. Raises InputError in one line, with the nearest right key."""
    _check_variables()
    try:
        return Settings()
    except ValidationError as error:
        raise InputError(_one_line(error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{FILE} is no TOML: {error}") from None
    except ValueError as error:  # a nested variable that is no JSON
        reason = " ".join(str(error).split())
        raise InputError(f"the configuration cannot be read: {reason}") from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()


def _check_variables() -> None:
    """Raises InputError for a PPV_ variable that sets nothing."""
    top = {name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        name = variable.upper()
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).split("__")[0] not in top:
            known = [PREFIX + key.replace(".", "__").upper() for key in _keys()]
            raise InputError(f"unknown variable {variable}{_nearest(name, known)}")


def _keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Every key of the configuration, with dots."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = S3Config if name == "s3" else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_input=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown configuration key {key!r}{_nearest(key, list(_keys()))}"
    return f"configuration key {key!r}: {first['msg']}"


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known)}"
