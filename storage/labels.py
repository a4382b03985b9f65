"""People's labels in the store: labels/<set>.<annotator>.jsonl."""

from pipeline.labels import Label
from storage.objects import ObjectStore
from storage.runs import RunFolder
from storage.said import Sayings


def picture_key(folder: RunFolder, proposal_id: str) -> str:
    """Where a label says that the picture of a run's proposal lies."""
    return f"runs/{folder.name}/{folder.image_key(proposal_id)}"


class LabelSets(Sayings[Label]):
    """The label sets of a store."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, "labels", Label)
