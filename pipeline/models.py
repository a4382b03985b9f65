"""Where a model's files are, that they are safe to load, and what they are.

A model is named by "miniature", by a folder, or by a hub id. Only safetensors are loaded: a
folder that holds pickled weights is refused before any library opens it.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from pipeline.config import MINIATURE
from pipeline.errors import ModelError, ModelNotHere, ServiceError
from pipeline.types import ModelRef

WEIGHTS = Path(__file__).parent / "miniature" / "weights"
PICKLES = {".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth"}
SAID_OF_IT = {"robustness.json"}
"""Files in a model's folder that loading never reads: they may come later, and are not hashed."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def folder_of(name: str, part: str) -> Path | None:
    """The folder that a model's name stands for; None for a hub id.

    part: which of the miniature's models is meant, "base" or "verifier".
    Raises ModelError for a folder that is missing, that holds a pickle, or no safetensors.
    """
    folder = WEIGHTS / part if name == MINIATURE else Path(name).expanduser()
    if name and folder.is_dir():
        check_folder(folder)
        return folder
    if HUB_ID.fullmatch(name) and not folder.exists():
        return None
    raise ModelError(
        f"no model at {name!r}: give a folder with safetensors weights, a hub id such as "
        f"'stabilityai/stable-diffusion-xl-base-1.0', or {MINIATURE!r}"
    )


def check_folder(folder: Path) -> None:
    """Raises ModelError unless the folder holds safetensors and no pickled weights."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    pickles = sorted(path.name for path in files if path.suffix in PICKLES)
    if pickles:
        raise ModelError(
            f"model folder {str(folder)!r} holds a pickle ({pickles[0]}), which can run code when "
            "loaded: convert it to safetensors"
        )
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(f"model folder {str(folder)!r} holds no safetensors weights")


def fingerprint(name: str, part: str) -> ModelRef:
    """What a model's weights are: a hash over a folder's files, or the commit of a hub id.

    Raises ModelError as folder_of does, ServiceError where a hub id cannot be looked up.
    """
    folder = folder_of(name, part)
    if folder is not None:
        return ModelRef(name=name, weights=f"sha256:{_hash_of(folder)}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return ModelRef(name=name, weights=f"hub:{HfApi().model_info(name, timeout=20).sha}")
    except RepositoryNotFoundError as error:
        raise ModelError(f"no model {name!r} on the hub, nor a folder of that name") from error
    except Exception as error:  # whatever the hub's HTTP library of the day raises
        raise _hub_away(name, error) from error


def local(name: str, ref: ModelRef | None, part: str) -> Path:
    """The folder with a model's files on this machine.

    ref: the weights that a run was made for; without it, whatever the name stands for.
    Raises as `location` and `fetch` do.
    """
    if ref is None:
        folder = folder_of(name, part)
        return folder or fetch(name, None)
    where, revision = location(ref, part)
    return Path(where) if Path(where).is_dir() else fetch(where, revision)


def location(ref: ModelRef, part: str) -> tuple[str, str | None]:
    """What from_pretrained is called with: a path or hub id, and the commit.

    Raises ModelNotHere as `installed` does, and if this machine's folder holds other weights than
    those the run was made for: a picture must come from the model that its record names.
    """
    folder = installed(ref, part)
    if folder is None:
        return ref.name, ref.weights.removeprefix("hub:")
    found = f"sha256:{_hash_of(folder)}"
    if found != ref.weights:
        raise ModelNotHere(
            f"model {ref.name!r} has weights {found[:15]}... here, but the run was made with "
            f"{ref.weights[:15]}...: install the same weights, or start a new run"
        )
    return str(folder), None


def installed(ref: ModelRef, part: str) -> Path | None:
    """The folder that a run's model has here; None for a hub id.

    Raises ModelNotHere if there is none that can be used: where the run was made, there was one.
    """
    try:
        return folder_of(ref.name, part)
    except ModelError as error:
        raise ModelNotHere(str(error)) from None


def fetch(hub_id: str, revision: str | None) -> Path:
    """The folder with a hub model's files, from the local cache where they are there.

    Raises ModelNotHere for a hub id that this machine's token does not find, ServiceError where the
    hub cannot be asked.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    files = ["*.json", "*.txt", "*.safetensors"]
    try:
        try:
            folder = Path(
                snapshot_download(
                    hub_id, revision=revision, allow_patterns=files, local_files_only=True
                )
            )
            check_folder(folder)
        except (OSError, ModelError):
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
            check_folder(folder)
    except RepositoryNotFoundError as error:
        raise ModelNotHere(f"no model {hub_id!r} on the hub, nor a folder of that name") from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise _hub_away(hub_id, error) from error
    return folder


def fetch_file(ref: ModelRef, file: str) -> Path | None:
    """One file of a hub model, at the commit that a run is made for; None if it has no such file.

    Raises ServiceError where the hub cannot be asked.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(ref.name, file, revision=ref.weights.removeprefix("hub:")))
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError, but of a hub that is away
        raise _hub_away(ref.name, error) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # whatever the hub's HTTP library of the day raises
        raise _hub_away(ref.name, error) from error


def _hub_away(hub_id: str, error: Exception) -> ServiceError:
    return ServiceError(
        f"the hub cannot be asked for {hub_id!r}: {_first_line(error)}; "
        "give a folder instead to work offline"
    )


@lru_cache(maxsize=16)
def _hash_of(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that loading reads."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.name in SAID_OF_IT:
            continue
        if path.is_file() and path.suffix in {".safetensors", ".json", ".txt", ".model"}:
            whole.update(str(path.relative_to(folder)).encode() + b"\0")
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
