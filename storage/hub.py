"""A frozen dataset as a repository of the Hugging Face hub.

Files go from the store to the hub one at a time, and one commit then shows them all: neither disk
nor memory holds more than a shard, the repository never shows half a version, and a push that was
cut off does not send again what the hub has. The version becomes a tag, so that
`load_dataset(repo, revision=VERSION)` reads it whatever is pushed later.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import InputError, PpvError, ServiceError
from storage.datasets import LIST, MANIFEST, SHARD, Datasets, File, Manifest

_OURS = re.compile(rf"(train|test)-\d{{5}}({re.escape(SHARD)}|{re.escape(LIST)})")


def push(
    datasets: Datasets,
    manifest: Manifest,
    repo: str,
    *,
    private: bool = False,
    saw: Callable[[File], object] = lambda file: None,
) -> str:
    """Makes the dataset repository hold this version, and returns its address.

    The token is the hub library's own: HF_TOKEN, or that of `hf auth login`. Shards of another
    version that lie there are deleted in the same commit; other files stay. private: of a
    repository that is made now.
    Raises InputError if the hub refuses the name or the token, ServiceError if it fails,
    DatasetDamaged.
    """
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
        constants,
        get_token,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if repo.count("/") != 1:
        raise InputError(f"repository {repo!r}: write USER/NAME")
    if get_token() is None:
        raise InputError("no token for the hub: set HF_TOKEN to one that may write there")
    disable_progress_bars()
    api = HfApi()
    with _explained(repo, constants.ENDPOINT):
        address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        there = set(api.list_repo_files(repo, repo_type="dataset"))
        changes: list[CommitOperationAdd | CommitOperationDelete] = []
        for file in manifest.files:
            addition = CommitOperationAdd(file.path, datasets.fetch(manifest, file))
            api.preupload_lfs_files(repo, [addition], repo_type="dataset")  # frees its memory
            changes.append(addition)
            saw(file)
        data = manifest.model_dump_json(indent=1).encode()
        changes.append(CommitOperationAdd(MANIFEST, data))
        wanted = {file.path for file in manifest.files}
        changes += [
            CommitOperationDelete(path) for path in sorted(there - wanted) if _OURS.fullmatch(path)
        ]
        commit = api.create_commit(
            repo, changes, commit_message=manifest.reference, repo_type="dataset"
        )
        api.create_tag(
            repo,
            tag=manifest.version,
            revision=commit.oid,
            repo_type="dataset",
            exist_ok=True,
        )
    return str(address)


@contextmanager
def _explained(repo: str, endpoint: str) -> Iterator[None]:
    """Turns what the hub and its library say into our errors; they never hold the token."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except PpvError:
        raise
    except HFValidationError as error:
        raise InputError(f"repository {repo!r}: {' '.join(str(error).split())}") from None
    except Exception as error:  # whatever the hub's HTTP library of the day raises
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        said = " ".join(str(cause).split())[:300]
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (401, 403):
            raise InputError(
                f"the hub at {endpoint} refuses: set HF_TOKEN to a token that may write to {repo} "
                f"({said})"
            ) from None
        raise ServiceError(f"the hub at {endpoint}: {said or type(cause).__name__}") from None
