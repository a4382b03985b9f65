"""People's comparisons in the store.

studies/<study>.json                what everybody is asked, frozen
studies/<study>.<annotator>.jsonl   what one annotator chose
"""

from pydantic import ValidationError

from pipeline.choices import Choice, Study
from pipeline.errors import InputError
from storage.objects import ObjectNotFound, ObjectStore
from storage.runs import check_run_name
from storage.said import Sayings

_END = ".json"


class Studies(Sayings[Choice]):
    """The studies of a store, and what was chosen in them."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, "studies", Choice)

    def find(self, name: str) -> Study | None:
        """None if there is no such study. Raises InputError for one that cannot be read."""
        key = self._study_key(name)
        try:
            return Study.model_validate_json(self.store.get(key))
        except ObjectNotFound:
            return None
        except ValidationError:
            raise InputError(
                f"{self.store.address}/{key} is no study that this version reads: give another name"
            ) from None

    def study(self, name: str) -> Study:
        """Raises InputError if there is none."""
        study = self.find(name)
        if study is None:
            known = ", ".join(self.names()[:8]) or "none"
            raise InputError(
                f"no study {name!r} in {self.store.address} (there: {known}): make it with "
                "--models FILE"
            )
        return study

    def names(self) -> list[str]:
        keys = self.store.list("studies/")
        return sorted(
            key.rpartition("/")[2].removesuffix(_END) for key in keys if key.endswith(_END)
        )

    def write(self, name: str, study: Study) -> None:
        self.store.put(self._study_key(name), study.model_dump_json(indent=1).encode())

    def _study_key(self, name: str) -> str:
        return f"studies/{check_run_name(name)}{_END}"
