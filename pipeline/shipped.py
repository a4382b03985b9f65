"""YAML files that shape a run: those that ship, by name, and the user's own, by path."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 1024 * 1024


def read_yaml(
    model: type[M], source: str, folder: Path, what: str, error: type[InputError] = InputError
) -> M:
    """The file that ships in `folder` under the name `source`, else the one at that path.

    what: how messages call it, "taxonomy". Raises `error`, in one line, for a file that is missing,
    too large, no YAML, or does not fit the model.
    """
    path = folder / f"{source}.yaml"
    if not re.fullmatch(r"[\w-]+", source) or not path.exists():
        path = Path(source)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(f"{what} {source!r} is larger than {MAX_BYTES:,} bytes")
        return model.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except FileNotFoundError:
        shipped = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise error(
            f"no {what} {source!r}: neither a file nor one that ships ({shipped})"
        ) from None
    except ValidationError as reasons:
        flaws = reasons.errors()  # a misspelt key first: one that is missing may be that one
        first = next((flaw for flaw in flaws if flaw["type"] == "extra_forbidden"), flaws[0])
        where = ".".join(map(str, first["loc"])) or "its top level"
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            said = f"unknown; {nearest(where, model.model_fields)}"
        message = " ".join(f"{where}: {said}".split())
        raise error(f"{what} {source!r}, at {message}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as reason:
        # ValueError: no UTF-8, or a date that does not exist; RecursionError: a thousand brackets
        raise error(f"{what} {source!r} cannot be read: {' '.join(str(reason).split())}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """How a message about an unknown name ends: with the one that was meant, else with all."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"
