"""From which scores on a run accepts: as configured, else as its verifier's training found.

A verifier's folder says the latter in operating_point.json: {fidelity, alignment, chosen_by}.
"""

from pathlib import Path

from pydantic import ValidationError

from pipeline.config import VerifierConfig
from pipeline.errors import ModelError
from pipeline.models import fetch_file, folder_of
from pipeline.types import ModelRef, Thresholds

FILE = "operating_point.json"
CONFIGURED, DEFAULT = "configuration", "default"


def operating_point(config: VerifierConfig, ref: ModelRef) -> Thresholds:
    """The thresholds that a run is frozen with, and by what they were chosen.

    One that is configured alone leaves the other as it comes with the verifier.
    Raises ModelError for a file that says no operating point, ServiceError where a hub id cannot
    be asked.
    """
    own = _own(ref) or Thresholds(chosen_by=DEFAULT)
    if config.thresholds is None:
        return own
    configured = {"chosen_by": CONFIGURED} | config.thresholds.model_dump(exclude_unset=True)
    return own.model_copy(update=configured)


def _own(ref: ModelRef) -> Thresholds | None:
    """What comes with the verifier, if anything does."""
    folder = folder_of(ref.name, "verifier")
    file = folder / FILE if folder else fetch_file(ref, FILE)
    return read(file) if file and file.exists() else None


def read(file: Path) -> Thresholds:
    """Raises ModelError, in one line."""
    try:
        return Thresholds.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}" if first else error
        raise ModelError(
            f"{str(file)!r} is no operating point ({said}): it holds fidelity and alignment, each "
            "from 0 to 1, and chosen_by"
        ) from None
