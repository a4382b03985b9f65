"""What `ppv evaluate verifier` does: changes labelled pictures and prompts, and measures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.progress import track
from rich.table import Table
from rich.text import Text

from pipeline.config import EndpointConfig, VerifierConfig
from pipeline.errors import InputError
from pipeline.evaluation.opinions import OpinionsMeasured, measure_opinions
from pipeline.evaluation.robustness import (
    Curve,
    Kind,
    Level,
    Report,
    Tile,
    chosen,
    evaluate,
    examples,
)
from pipeline.evaluation.robustness_card import into_card, limits, write_card
from pipeline.evaluation.verifier import HEADS, Ranking
from pipeline.models import fingerprint, folder_of
from pipeline.taxonomy import Taxonomy
from pipeline.training.verifier_labels import Judged, Source, agree
from pipeline.training.verifier_negatives import wordings
from pipeline.verifier import Verifier
from pipeline.verifier.operating_point import operating_point
from pipeline.verifier.opinions import Opinion, load_models
from workers.cli.show import console
from workers.pages.charts import share
from workers.pages.robustness import write_robustness_page
from workers.pages.wording import count, visible
from workers.seeing import vision_alone

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.evaluation.verifier import Share

NOTHING = "-"


@dataclass(frozen=True)
class Evaluated:
    """The figures of a verifier, and pictures to look at."""

    report: Report
    examples: dict[str, list[Tile]]


def evaluate_verifier(
    sources: Sequence[Source],
    taxonomy: Taxonomy,
    config: VerifierConfig,
    endpoint: EndpointConfig,
    count: int,
    seed: int,
) -> Evaluated:
    """Every transformation and edit of so many labelled pictures, and the second opinions on them.

    endpoint: for an opinion that is asked for there. Raises InputError for labels that
    nothing can be measured on, ModelError for a verifier that cannot be loaded.
    """
    ref = fingerprint(config.model, "verifier")
    thresholds = operating_point(config, ref)
    labelled = agree(sources).items
    items = chosen(labelled, count, seed)
    verifier, known = _load(config), wordings(taxonomy)
    opinions = _opinions(config, endpoint)
    untouched, curves = evaluate(verifier, items, known, thresholds, seed, _watched)
    right = [item.fidelity and item.alignment for item in items]
    wrong = [item.fidelity is False or item.alignment is False for item in items]
    report = Report(
        verifier=ref,
        thresholds=thresholds,
        sources=tuple(source.short for source in sources),
        pictures=len(items),
        labelled=len(labelled),
        base_prompts=len({item.base for item in items}),
        right=sum(map(bool, right)),
        wrong=sum(wrong),
        seed=seed,
        untouched=untouched,
        curves=curves,
        opinions=measure_opinions(opinions, items) if opinions else None,
    )
    report = report.model_copy(update={"limits": tuple(limits(report))})
    return Evaluated(report, examples(verifier, items, known, thresholds, seed))


def card_folder(model: str) -> Path:
    """The verifier's own folder. Raises InputError for a hub id, which has none here."""
    folder = folder_of(model, "verifier")
    if folder is None:
        raise InputError(
            f"verifier {model!r} is a hub id, whose card is not on this machine: give a folder, or "
            "leave --into-card out"
        )
    return folder


def write(evaluated: Evaluated, out: Path, card: Path | None) -> dict[str, Path]:
    """The page and the figures into a folder, and if asked into the verifier's card."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_robustness_page(evaluated.report, evaluated.examples, out / "robustness.html")
        write_card(evaluated.report, out)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written to: {error.strerror}") from None
    paths = {
        "html": out / "robustness.html",
        "json": out / "robustness.json",
        "md": out / "ROBUSTNESS.md",
    }
    if card is not None:
        into_card(evaluated.report, card)
        paths["card"] = card / "README.md"
    return paths


def tables(report: Report) -> Iterator[Table]:
    """One of each kind of change."""
    yield _table(
        report,
        "benign",
        "Transformations that leave the labels true; in %: verdicts that flip, accepted",
        ("fidelity AUC", "alignment AUC", "flip", "of right", "of wrong"),
        _benign,
    )
    yield _table(
        report,
        "destroying",
        "Transformations after which nothing must be accepted; right pictures accepted, in %",
        ("n", "before", "after", "fidelity told", "alignment told"),
        _destroying,
    )
    yield _table(
        report,
        "edit",
        "Prompts edited so that they are false; right pictures accepted, in %",
        ("n", "before", "after", "told"),
        _edit,
    )
    if report.opinions:
        yield _of_opinions(report.opinions)


def _of_opinions(measured: OpinionsMeasured) -> Table:
    table = Table(
        "",
        "fidelity AUC",
        "alignment AUC",
        title="Second opinions, on the same pictures untouched",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name, each in measured.scores.items():
        table.add_row(name, _auc(each.fidelity), _auc(each.alignment))
    for name, many in measured.unheard.items():
        table.add_row(name, f"unheard of {many:,}", "")
    return table


def _load(config: VerifierConfig) -> Verifier:
    import transformers.utils.logging as logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return Verifier.load(config)


def _opinions(config: VerifierConfig, limits: EndpointConfig) -> list[Opinion]:
    """Those that are configured."""
    opinions = load_models(config, {})
    if config.opinions.vision:
        opinions.append(vision_alone(config, limits))
    return opinions


def _watched(batches: Sequence[Sequence[Judged]]) -> "Iterable[Sequence[Judged]]":
    """With a bar on a terminal, and a line before it all in a pipe."""
    terminal = console.is_terminal
    if not terminal:
        console.print(f"changing and judging {count(sum(map(len, batches)))} pictures")
    return track(batches, "judge", console=console, transient=True, disable=not terminal)


def _table(
    report: Report,
    kind: Kind,
    title: str,
    names: Sequence[str],
    cells: Callable[[Curve, Level], Iterator[str]],
) -> Table:
    """A row a strength. Narrow: a terminal has 80 columns."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    table.add_column("strength", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    if kind == "benign":
        table.add_row("untouched", "", *cells(report.curves[0], report.untouched))
    for curve in report.curves:
        if curve.kind == kind:
            for level in curve.levels:
                title = curve.title if level is curve.levels[0] else ""
                table.add_row(Text(visible(title)), level.label, *cells(curve, level))
    return table


def _benign(curve: Curve, level: Level) -> Iterator[str]:
    for head in HEADS:
        yield _auc(level.auc.get(head))
    for each in (level.flipped, level.accepted, level.wrong_accepted):
        yield _share(each)


def _destroying(curve: Curve, level: Level) -> Iterator[str]:
    yield count(level.n)
    yield _share(curve.untouched.accepted)
    yield _share(level.accepted)
    for head in HEADS:
        yield _auc(level.told.get(head))


def _edit(curve: Curve, level: Level) -> Iterator[str]:
    yield count(level.n)
    yield _share(curve.untouched.accepted)
    yield _share(level.accepted)
    yield _auc(level.told["alignment"])


def _auc(ranking: Ranking | None) -> str:
    if ranking is None or ranking.auc is None:
        return NOTHING
    return f"{ranking.auc:.2f}\n{ranking.low:.2f}-{ranking.high:.2f}"


def _share(found: "Share") -> str:
    if found.value is None:
        return NOTHING
    low, high = share(found.low), share(found.high)
    return f"{share(found.value)}\n{low}-{high}".replace("%", "")
