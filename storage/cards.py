"""The dataset card: what a dataset is, how it was made, and how far to trust it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.types import Frozen, ModelRef, ProposerRef, RunName, Thresholds

ExportFormat = Literal["hf", "webdataset", "imagefolder"]

Count = Annotated[int, Field(ge=0)]


class CategoryCount(Frozen):
    """How one hand-pose category fared before the verifier."""

    category: str
    accepted: Count
    rejected: Count

    @property
    def acceptance(self) -> float | None:
        """In [0, 1]; None if nothing was judged."""
        judged = self.accepted + self.rejected
        return self.accepted / judged if judged else None


class CardFacts(Frozen):
    """What the card says of the run; the rest it takes from the export itself."""

    run: RunName
    version: str  # of this project, which made the dataset
    created: str  # a date, 2026-11-23
    accepted: Count
    rejected: Count
    failed: Count  # proposals given up
    categories: tuple[CategoryCount, ...]
    prompter: str  # its kind, and its model where it has one: "grammar", "openai gpt-4o-mini"
    proposers: tuple[ProposerRef, ...]
    verifier: ModelRef
    thresholds: Thresholds
    accept_if: dict[str, float] = {}  # what second opinions had to reach
    title: str = ""  # empty: made from the run's name
    license: str = "other"  # an identifier that the Hugging Face Hub knows


def render_card(facts: CardFacts, format: ExportFormat, images: int) -> str:
    """Markdown with the YAML head that the Hugging Face Hub and `load_dataset` read."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is Markdown, which `cell` escapes
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.j2").render(
        facts=facts,
        format=format,
        images=images,
        title=facts.title or f"Verified hand-object pictures of run {facts.run}",
        size=_size_category(images),
    )


def _cell(text: str) -> str:
    """Text that stays within its cell of a table, and is no markup."""
    flat = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in r"\`*_|[]<>#" else letter for letter in flat)


def _size_category(images: int) -> str:
    """The Hub's words for sizes."""
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M")]
    return next((name for bound, name in bounds if images < bound), "n>1M")
