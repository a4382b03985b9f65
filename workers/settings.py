"""The only reader of the environment: one typed object, from flags, PPV_ variables and ppv.toml."""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipeline.config import EndpointConfig, PrompterConfig, ProposerConfig, VerifierConfig
from pipeline.errors import InputError
from storage.certificates import trusting
from storage.s3 import S3Config

PREFIX = "PPV_"
FILE = Path("ppv.toml")

Kind = tuple[Any, ...]
"""The types of which a value must be one."""


class DispatchConfig(BaseModel, extra="forbid", frozen=True):
    """How much is under way at once, and how long a worker may hold it."""

    bases_per_message: Annotated[int, Field(ge=1, le=1024)] = 16
    in_flight: Annotated[int, Field(ge=1)] = 4096
    """Proposals under way at once, from their base prompts on; runs share them. A worker holds two
    messages of proposer.images_per_message, so large fleets want some 200 for each."""
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

    # redis[s]://... or amqp[s]://...; empty: embedded Redis
    broker_url: SecretStr = SecretStr("")
    redis_url: SecretStr = SecretStr("")  # beside an amqp:// broker; empty: embedded Redis
    store_url: str = ""  # s3://bucket/prefix or file:///folder; empty: embedded S3
    s3: S3Config | None = None
    tls_ca: Path | None = None  # CA certificates (PEM) of your own, for rediss, amqps and https
    state_dir: Path = Path(".ppv")  # what the embedded services keep
    prompter: PrompterConfig = PrompterConfig()
    endpoint: EndpointConfig = EndpointConfig()
    proposer: ProposerConfig = ProposerConfig()
    verifier: VerifierConfig = VerifierConfig()
    dispatch: DispatchConfig = DispatchConfig()

    @field_validator("broker_url", "redis_url")
    @classmethod
    def _without_options(cls, url: SecretStr) -> SecretStr:
        """Options in an address win over all others: "?ssl_cert_reqs=none" would end all trust."""
        if urlsplit(url.get_secret_value()).query:
            raise ValueError("no ?options behind an address; in a password, write %3F for ?")
        return url

    @field_validator("tls_ca")
    @classmethod
    def _with_certificates(cls, ca: Path | None) -> Path | None:
        trusting(ca)
        return ca

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

    It is put into the environment, so that this process and the workers that it starts agree. A
    table takes single entries too: "proposer.specialists.pinch=my-pinch".
    Raises InputError for an unknown key.
    """
    key, equals, value = assignment.partition("=")
    key = key.strip()
    if not equals:
        raise InputError(f"--set {assignment!r}: write it as key=value")
    table, _, entry = key.rpartition(".")
    if entry and table in _tables():
        # As JSON: in the name of a variable of its own, an entry would lose its capitals.
        os.environ.pop(_variable(key), None)
        key, value = table, json.dumps(_entries(table) | {entry: value})
    if key not in (known := list(_keys())):
        raise InputError(f"unknown configuration key {key!r}{_nearest(key, known)}")
    os.environ[_variable(key)] = value


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
            known = [_variable(key) for key in _keys()]
            raise InputError(f"unknown variable {variable}{_nearest(name, known)}")


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", "__").upper()


def _entries(table: str) -> dict[str, object]:
    """What the environment says of a table as a whole, if it names its entries."""
    try:
        entries = json.loads(os.environ.get(_variable(table), ""))
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}


def _keys() -> Iterator[str]:
    """Every key of the configuration, with dots."""
    return (key for key, _ in _fields())


def _tables() -> list[str]:
    """The keys whose values may be tables of anybody's entries."""
    return [key for key, kind in _fields() if any(map(_is_table, kind))]


def _fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Kind]]:
    """Every key with its types."""
    for name, field in model.model_fields.items():
        kind = _members(field.annotation)
        yield prefix + name, kind
        for inner in kind:
            if _is_model(inner):
                yield from _fields(inner, f"{prefix}{name}.")


def _members(annotation: Any) -> Kind:
    """The types of which a value must be one, but for None."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(each for each in get_args(annotation) if each is not NoneType)
    return (annotation,)


def _is_table(annotation: Any) -> bool:
    origin: Any = get_origin(annotation)
    return origin is dict


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _one_line(error: ValidationError) -> str:
    errors = error.errors(include_input=False)
    key = _key_of(errors[0]["loc"])
    if errors[0]["type"] == "extra_forbidden":
        return f"unknown configuration key {key!r}{_nearest(key, list(_keys()))}"
    # Where a value may be of several types, each of them says why it is not. The one that says it
    # of a part of the value came closest.
    said: dict[str, list[str]] = {}
    for each in errors:
        if f"{(place := _key_of(each['loc']))}.".startswith(f"{key}."):
            said.setdefault(place, []).append(each["msg"].partition(", unable to ")[0])
    key = max(said, key=len)
    first, *others = said[key]
    rest = "".join(f", or {other.removeprefix('Input should be ')}" for other in others)
    return f"configuration key {key!r}: {first}{rest}"


def _key_of(loc: tuple[int | str, ...]) -> str:
    """The key at fault, without the tags by which pydantic tells the types of a value apart."""
    parts, kind = [], _members(Settings)
    for part in loc:
        if len(kind) > 1:  # the part is such a tag; what may follow is an entry of a table
            kind = ()
            continue
        parts.append(str(part))
        fields = kind[0].model_fields if kind and _is_model(kind[0]) else {}
        kind = _members(fields[part].annotation) if part in fields else ()
    return ".".join(parts)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known)}"
