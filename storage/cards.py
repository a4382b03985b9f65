"""The dataset card: what a dataset is, how it was made, and how far to trust it."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.config import Run
from pipeline.types import Frozen, ModelRef, ProposerRef, RunName, Thresholds, Usage
from storage.likeness import BITS
from storage.progress import Tally

if TYPE_CHECKING:
    from storage.datasets import Manifest

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


class RunFacts(CardFacts):
    """What the card of a dataset says of each of its runs."""

    missing: Count  # proposals that were neither judged nor given up when it was frozen
    usage: Usage  # what its prompts cost


def facts_of(run: Run, tally: Tally) -> CardFacts:
    """What a card says of a run."""
    return CardFacts(
        run=run.name,
        version=importlib.metadata.version("ppv"),
        created=run.created_at[:10],
        accepted=tally.accepted,
        rejected=tally.rejected,
        failed=tally.failed,
        categories=tuple(
            CategoryCount(category=name, accepted=counts.accepted, rejected=counts.rejected)
            for name, counts in sorted(tally.by_category.items())
        ),
        prompter=run.prompter_ref.name,
        proposers=run.proposers,
        verifier=run.verifier_ref,
        thresholds=run.thresholds,
        accept_if=run.verifier.accept_if,
    )


def render_card(facts: CardFacts, format: ExportFormat, images: int) -> str:
    """Markdown with the YAML head that the Hugging Face Hub and `load_dataset` read."""
    return _render(
        "card.md.j2",
        facts=facts,
        license=facts.license,
        format=format,
        images=images,
        splits=["train"] if images or format == "hf" else [],
        title=facts.title or f"Verified hand-object pictures of run {facts.run}",
        size=_size_category(images),
    )


def render_dataset_card(manifest: "Manifest") -> str:
    """The same for a frozen dataset, which may have several runs and splits."""
    images = sum(manifest.pictures.values())
    return _render(
        "dataset.md.j2",
        manifest=manifest,
        license=manifest.license,
        format="hf",
        images=images,
        splits=[split for split, count in manifest.pictures.items() if count],
        title=manifest.title or f"Verified hand-object pictures: {manifest.name}",
        bits=BITS,
        size=_size_category(images),
        acceptance=_acceptance(manifest.runs),
        models=_models(manifest.runs),
        objects=_largest(manifest.composition.objects),
        proposers=_largest(manifest.composition.proposers),
        usd=sum_usd(manifest.runs),
    )


def sum_usd(runs: tuple[RunFacts, ...]) -> float | None:
    """What the runs paid to language models; None if a price is not known."""
    return sum((run.usage for run in runs), Usage()).usd


def _acceptance(runs: tuple[RunFacts, ...]) -> list[CategoryCount]:
    """How each category fared in all runs together."""
    accepted: dict[str, int] = {}
    rejected: dict[str, int] = {}
    for each in (category for run in runs for category in run.categories):
        accepted[each.category] = accepted.get(each.category, 0) + each.accepted
        rejected[each.category] = rejected.get(each.category, 0) + each.rejected
    return [
        CategoryCount(category=name, accepted=accepted[name], rejected=rejected[name])
        for name in sorted(accepted)
    ]


def _models(runs: tuple[RunFacts, ...]) -> dict[str, Any]:
    """Every prompter, proposer, and verifier with its operating point, once."""
    return {
        "prompters": sorted({run.prompter for run in runs}),
        "proposers": sorted({(p.title, p.hashes) for run in runs for p in run.proposers}),
        "verifiers": sorted({_judged_by(run) for run in runs}),
    }


def _judged_by(run: RunFacts) -> tuple[str, str, str]:
    """The verifier's name and weights, and what it took to be accepted."""
    at = run.thresholds
    chosen = f" ({at.chosen_by})" if at.chosen_by else ""
    needed = [f"fidelity at least {at.fidelity:g}, alignment at least {at.alignment:g}{chosen}"]
    needed += [f"{name} at least {least:g}" for name, least in sorted(run.accept_if.items())]
    return run.verifier.name, run.verifier.weights, ", ".join(needed)


def _largest(counts: Mapping[str, Mapping[Any, int]], most: int = 30) -> dict[str, Any]:
    """The rows of a table with the largest counts, and how many are left out."""
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rest = ordered[most:]
    return {
        "rows": ordered[:most],
        "more": len(rest),
        "in_more": sum(sum(splits.values()) for _, splits in rest),
    }


def _render(template: str, **values: Any) -> str:
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
    return environment.get_template(template).render(values)


def _cell(text: str) -> str:
    """Text that stays within its cell of a table, and is no markup."""
    flat = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in r"\`*_|[]<>#" else letter for letter in flat)


def _size_category(images: int) -> str:
    """The Hub's words for sizes."""
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M")]
    return next((name for bound, name in bounds if images < bound), "n>1M")
