"""What trainings of pipelines share: who watches, a page, a place in the store's models."""

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.cli.watching import watching

if TYPE_CHECKING:
    from pipeline.training.card import Card, Trained

PAGE = "training.html"
_WARNINGS_SHOWN = 20


def hush() -> None:
    """Keeps advice and loading bars of libraries away; called before models' code is imported."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def carry_out(
    train: "Callable[..., Trained]",
    name: str,
    to: Path,
    title: str,
    doubts: Sequence[str] = (),
    *,
    as_json: bool,
) -> None:
    """Trains into the folder `to`, writes the page, even if the training fails, and keeps it all.

    train: takes `to` and `watch`. name: what runs will call it. title: what is trained.
    """
    from accelerate import PartialState  # type: ignore[import-untyped]

    from pipeline.errors import PpvError
    from workers.pages.training import write_training_page

    for doubt in doubts[:_WARNINGS_SHOWN]:
        print(f"note: {doubt}", file=sys.stderr)
    if (more := len(doubts) - _WARNINGS_SHOWN) > 0:
        print(f"note: ... and {more} more", file=sys.stderr)
    try:
        with watching(title) as watch:
            trained = train(to=to, watch=watch)
    except PpvError as error:
        if (to / "curve.json").exists() and not (to / "card.json").exists():
            write_training_page(to, to / PAGE, str(error))
        raise
    if not PartialState().is_main_process:
        return
    write_training_page(to, to / PAGE)
    card = trained.card
    reference = _register(name, to, card)
    if as_json:
        said: dict[str, Any] = {"folder": str(to), "model": reference, "new": trained.new}
        print(json.dumps(said | {"card": card.model_dump()}))
        return
    losses = ", ".join(f"{name} {value:.4f}" for name, value in card.losses.items())
    print(
        f"{title}: {card.steps:,} steps, {losses}; {card.images_per_s:.2f} images/s, "
        f"peak memory {card.peak_memory_bytes / 2**20:,.0f} MiB\n"
        f"adapter  {to}\npage     {to / PAGE}\nmodel    {reference}"
    )


def _register(name: str, folder: Path, card: "Card") -> str:
    """Keeps it in the store's models; how runs name it."""
    from pipeline.specialists import describe
    from storage.models import Models
    from workers.cli.session import open_for_reading

    made = datetime.now(UTC).isoformat(timespec="seconds")
    token = str(card.config.get("token", ""))
    specialist = describe(folder, name, made, card.category, token, card.base)
    with open_for_reading() as store:
        Models(store).add(specialist, folder)
    return specialist.reference
