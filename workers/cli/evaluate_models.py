"""What `ppv evaluate models` does: every arm draws the suites' prompts, as a run, and is measured.

An arm is a run of its own under a name that follows from what draws, so that the same call again
goes on where the last one stopped, and one arm's pictures serve any comparison.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.progress import track
from rich.table import Table
from rich.text import Text

from pipeline.config import MINIATURE, OpinionsConfig, ProposerConfig
from pipeline.errors import InputError, ModelError, ServiceError
from pipeline.evaluation.bootstrap import RESAMPLES, SEED
from pipeline.evaluation.models import (
    BY_NAME,
    METRICS,
    Against,
    Comparison,
    Estimate,
    Metric,
    SuiteFigures,
    clearly,
    shown_metrics,
)
from pipeline.evaluation.suites import Line, Suite
from pipeline.models import fingerprint
from pipeline.prompter.plan import named_in
from pipeline.routing import SPECIALIST
from pipeline.shipped import nearest
from pipeline.specialists import shipped
from pipeline.taxonomy import Taxonomy
from pipeline.types import BASE, BasePrompt, digest
from pipeline.verifier.opinions import freeze
from storage.models import Models
from storage.objects import ObjectStore
from storage.progress import Tally, records
from storage.runs import RunFolder
from workers import dispatch, registry
from workers.cli.evaluate_proposers import list_failed
from workers.cli.ground_truth import judge_of, with_truth
from workers.cli.session import Session
from workers.cli.show import console, showing
from workers.fleet import Crew, Watch
from workers.pages.charts import share
from workers.pages.models import Gallery, write_models_page
from workers.pages.wording import count, visible
from workers.settings import Settings

ENSEMBLE = "ensemble"
SHORT = ":short"

_NOTHING = "-"


@dataclass(frozen=True)
class Arm:
    """A model under a label. short: it is given a suite's base prompts, not its detailed ones."""

    label: str
    proposer: ProposerConfig
    short: bool = False


@dataclass(frozen=True)
class Options:
    """How arms are compared."""

    images_per_prompt: int = 2
    clip_score: str = ""  # a CLIP, as a folder or hub id; "": none
    preference: str = ""
    resamples: int = RESAMPLES
    seed: int = SEED


@dataclass(frozen=True)
class Drawn:
    """Where an arm's pictures are."""

    arm: Arm
    folder: RunFolder
    tally: Tally


@dataclass(frozen=True)
class Evaluated:
    """What came out. skipped: metrics that were asked for and could not be had, and why."""

    arms: list[Drawn]
    suites: dict[str, SuiteFigures]
    galleries: dict[str, Gallery]
    options: Options
    skipped: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every metric was measured on every picture."""
        return not self.skipped and not any(d.tally.failed or d.tally.missing for d in self.arms)


# Arms


def arms_of(texts: Sequence[str], settings: Settings, store: ObjectStore) -> list[Arm]:
    """Arms as they are given: [LABEL=]base, ensemble, a model of the store, a folder or a hub id.

    With ":short" behind it, an arm draws a suite's base prompts. Raises InputError for fewer than
    two, for a label that stands there twice, and for a name that nothing has.
    """
    arms = [_arm(text, settings, store) for text in texts]
    if len(arms) < 2:
        raise InputError(
            "a comparison needs two arms or more, such as: ppv evaluate models base ensemble"
        )
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two arms are called {label!r}: call one of them LABEL={label}")
    return arms


def _arm(text: str, settings: Settings, store: ObjectStore) -> Arm:
    label, equals, what = text.partition("=")
    if not equals or "/" in label:
        label, what = "", text
    short = what.endswith(SHORT)
    what = what.removesuffix(SHORT)
    own = settings.proposer
    if what == BASE:
        chosen: dict[str, object] = {"route": BASE, "adapter": ""}
    elif what == ENSEMBLE:
        chosen = {"route": SPECIALIST, "adapter": ""}
    elif Path(what).is_dir() or "/" in what:
        chosen = {"route": BASE, "adapter": "", "model": what}
    else:
        _check_is_there(what, own.model, store)
        chosen = {"route": BASE, "adapter": what}
    label = label or (Path(what).name if "/" in what else what) + ("-short" if short else "")
    return Arm(visible(label), own.model_copy(update=chosen), short)


def _check_is_there(reference: str, model: str, store: ObjectStore) -> None:
    name = reference.partition("@")[0]
    known = sorted({*Models(store).names(), *(specialist.name for specialist, _ in shipped())})
    if name not in known:
        others = nearest(name, [BASE, ENSEMBLE, *known])
        raise InputError(
            f"no arm {reference!r}: an arm is base, ensemble, a model of the store, a folder or a "
            f"hub id; {others}"
        )
    registry.find(reference, fingerprint(model, BASE), store)


# Drawing


def evaluate_models(
    here: Session, arms: Sequence[Arm], suites: Sequence[Suite], options: Options
) -> Evaluated:
    """Have every arm draw every suite, as far as that is not done yet, and measure the pictures.

    Raises InputError, before anything is drawn, for an arm that cannot draw a suite.
    """
    for arm in arms:
        if not any(_lines_of(arm, suites)):
            raise InputError(
                f"arm {arm.label!r} draws short prompts, and suite {suites[0].name!r} has none: "
                'give .jsonl lines {"prompt": ..., "base": ...}'
            )
    opinions, skipped = _opinions(options)
    folders = {
        arm.label: _open(here, _settings_for(arm, here.settings, opinions, options)) for arm in arms
    }
    asked: dict[str, dict[str, None]] = {}  # prompts of each run, each once, in order
    for arm in arms:
        texts = asked.setdefault(folders[arm.label].name, {})
        texts |= {_text(arm, line): None for _, line in _lines_of(arm, suites)}
    tallies = {}
    with Crew(here.settings, here.children) as crew:
        for folder in {folder.name: folder for folder in folders.values()}.values():
            tallies[folder.name] = _draw(here, folder, list(asked[folder.name]), crew)
    drawn = [Drawn(arm, folders[arm.label], tallies[folders[arm.label].name]) for arm in arms]
    for name in tallies:
        list_failed(RunFolder(here.store, name))
    return _measure(drawn, suites, options, skipped)


def _opinions(options: Options) -> tuple[OpinionsConfig, dict[str, str]]:
    """The further metrics whose weights can be had, and why the others cannot."""
    there, skipped = {}, {}
    for name in ("clip_score", "preference"):
        if model := getattr(options, name):
            try:
                freeze(OpinionsConfig(**{name: model}))
            except (ModelError, ServiceError) as error:
                skipped[name] = str(error)
            else:
                there[name] = model
    return OpinionsConfig(**there), skipped


def _settings_for(
    arm: Arm, settings: Settings, opinions: OpinionsConfig, options: Options
) -> Settings:
    prompter = settings.prompter.model_copy(update={"kind": "verbatim", "prompts_per_base": 1})
    proposer = arm.proposer.model_copy(update={"images_per_prompt": options.images_per_prompt})
    verifier = settings.verifier.model_copy(update={"opinions": opinions, "accept_if": {}})
    return settings.model_copy(
        update={"prompter": prompter, "proposer": proposer, "verifier": verifier}
    )


def _open(here: Session, settings: Settings) -> RunFolder:
    """The run in which these settings draw, whatever the suites; made now if there is none."""
    run = dispatch.new_run(settings, "arm", here.store)
    if run.proposer.adapter:
        who = run.proposer.adapter.partition("@")[0]
    elif run.proposer.route != BASE:
        who = ENSEMBLE
    else:
        who = BASE if run.proposer.model == MINIATURE else "model"
    name = f"arm-{who[:40]}-{digest(run.identity)[:12]}"
    return dispatch.open_run(here.store, settings, name)


def _lines_of(arm: Arm, suites: Sequence[Suite]) -> Iterator[tuple[str, Line]]:
    """What an arm is asked for, with the suite's name; nothing of one without short prompts, if it
    draws these."""
    for suite in suites:
        if suite.has_bases or not arm.short:
            yield from ((suite.name, line) for line in suite.lines)


def _text(arm: Arm, line: Line) -> str:
    return line.base if arm.short else line.prompt


def _draw(here: Session, folder: RunFolder, texts: Sequence[str], crew: Crew) -> Tally:
    console.print(f"[dim]{folder.name}: {count(len(texts))} prompts[/]")
    with showing() as show:
        watch = Watch(folder, here.settings, here.broker, crew, show)
        counts = dispatch.enqueue(
            folder,
            (BasePrompt(text=text) for text in texts),
            here.broker,
            here.settings.dispatch,
            while_waiting=watch.look,
        )
        if counts.known:  # an earlier call was cut off, and its messages may be gone
            watch.doubt()
        return watch.until_done()


# Measuring


def _measure(
    drawn: Sequence[Drawn], suites: Sequence[Suite], options: Options, skipped: dict[str, str]
) -> Evaluated:
    labels = [each.arm.label for each in drawn]
    comparisons = {suite.name: Comparison(labels) for suite in suites}
    galleries = {suite.name: Gallery(suite, labels) for suite in suites}
    unjudged: dict[str, int] = {}
    for at, each in enumerate(drawn):
        run = each.folder.read()
        lines = _lines(each.arm, suites, run.taxonomy)
        mine = (r for r in records(each.folder) if r.proposal.prompt.base in lines)
        judge = judge_of(run)
        judged = with_truth(mine, each.folder, judge)
        for record, its_truth in track(
            judged, f"measure {each.arm.label}", console=console, transient=True,
            disable=not console.is_terminal,
        ):  # fmt: skip
            if judge is not None and its_truth is None:
                unjudged[each.arm.label] = unjudged.get(each.arm.label, 0) + 1
            for suite, line, category in lines[record.proposal.prompt.base]:
                comparisons[suite].add(at, line.prompt, record, category, its_truth)
                galleries[suite].add(at, line, record, its_truth)
    notes = list(_notes(drawn, unjudged, galleries, options))
    figures = {
        name: comparison.figures(options.resamples, options.seed)
        for name, comparison in comparisons.items()
    }
    return Evaluated(list(drawn), figures, galleries, options, skipped, notes)


def _lines(
    arm: Arm, suites: Sequence[Suite], taxonomy: Taxonomy
) -> dict[str, list[tuple[str, Line, str]]]:
    """Where each text that the arm drew stands: suite, line and the category of its prompt."""
    lines: dict[str, list[tuple[str, Line, str]]] = {}
    for suite, line in _lines_of(arm, suites):
        category, _ = named_in(line.prompt, taxonomy)
        lines.setdefault(_text(arm, line), []).append((suite, line, category))
    return lines


def _notes(
    drawn: Sequence[Drawn],
    unjudged: Mapping[str, int],
    galleries: Mapping[str, Gallery],
    options: Options,
) -> Iterator[str]:
    """What the figures leave out."""
    for label, number in unjudged.items():
        yield (
            f"no ground truth of {count(number)} pictures by {label}: they cannot be read, or are "
            "not of the drawn world's size"
        )
    sizes: dict[str, set[tuple[int, int]]] = {}
    for each in drawn:
        for gallery in galleries.values():
            sizes.setdefault(each.arm.label, set()).update(
                gallery.sizes(each.arm.label, each.folder)
            )
    first = drawn[0].arm.label
    for label, found in sizes.items():
        if found and sizes[first] and found != sizes[first]:
            yield (
                f"{label} draws {_pixels(found)} and {first} {_pixels(sizes[first])}: what tells "
                "sizes apart may tell these models apart"
            )
    for each in drawn:
        if each.tally.failed:
            yield (
                f"{each.arm.label}: {count(each.tally.failed)} proposals failed; see "
                f"`ppv report {each.folder.name}`"
            )
        if each.tally.missing:
            yield (
                f"{each.arm.label}: {count(each.tally.missing)} proposals are missing; the same "
                "call again goes on"
            )
    if not options.clip_score:
        yield "CLIPScore was not asked for: give --clip-score MODEL, a CLIP"
    if not options.preference:
        yield "no preference score was asked for: give --preference MODEL, such as PickScore's"


def _pixels(sizes: set[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sorted(sizes))


# What is written and shown


def write(evaluated: Evaluated, out: Path) -> dict[str, Path]:
    """The page and the figures, in this folder; their paths by what they are."""
    out.mkdir(parents=True, exist_ok=True)
    paths = {kind: out / f"models.{kind}" for kind in ("html", "json")}
    write_models_page(
        [(each.arm.label, each.folder) for each in evaluated.arms],
        evaluated.suites,
        evaluated.galleries,
        [*(f"{BY_NAME[n].title}: skipped, {why}" for n, why in evaluated.skipped.items()),
         *evaluated.notes],
        paths["html"],
    )  # fmt: skip
    paths["json"].write_text(json.dumps(as_json(evaluated), indent=1) + "\n", "utf-8")
    return paths


def as_json(evaluated: Evaluated) -> dict[str, object]:
    """What programs may read."""
    return {
        "arms": {
            each.arm.label: {
                "run": each.folder.name,
                "short": each.arm.short,
                "proposers": [ref.title for ref in each.folder.read().proposers],
                "weights": [ref.hashes for ref in each.folder.read().proposers],
            }
            for each in evaluated.arms
        },
        "metrics": {metric.name: metric.title for metric in METRICS},
        "suites": {name: asdict(figures) for name, figures in evaluated.suites.items()},
        "skipped": evaluated.skipped,
        "notes": evaluated.notes,
        "images_per_prompt": evaluated.options.images_per_prompt,
        "resamples": evaluated.options.resamples,
        "seed": evaluated.options.seed,
    }


def tables(evaluated: Evaluated) -> Iterator[Table]:
    """A table a suite: arms by metric, each with its interval and the difference from the first."""
    for name, suite in evaluated.suites.items():
        shown = shown_metrics(suite)
        table = Table(
            title=f"{name}: {count(suite.prompts)} prompts",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("", no_wrap=True)
        for metric in shown:
            table.add_column(metric.title, justify="right")
        first = next(iter(suite.arms))
        for label, arm in suite.arms.items():
            cells = []
            for metric in shown:
                found = arm.metrics.get(metric.name)
                against = arm.against.get(first, {}).get(metric.name)
                cells.append(_cell(metric, found, against))
            table.add_row(Text(label), *cells)
        yield table


def _cell(metric: Metric, found: Estimate | None, against: Against | None) -> str:
    if found is None:
        return _NOTHING
    words = [_figure(metric, found.value)]
    if found.low is not None and found.high is not None:
        words.append(f"{_figure(metric, found.low)} to {_figure(metric, found.high)}")
    if against:
        colour = {"better": "green", "worse": "red", "": "dim"}[clearly(metric, against)]
        words.append(f"[{colour}]{_signed(metric, against.difference)}[/]")
    return "\n".join(words)


def _figure(metric: Metric, value: float) -> str:
    return share(value) if metric.unit == "share" else f"{value:.3f}"


def _signed(metric: Metric, value: float) -> str:
    return f"{100 * value:+.1f}" if metric.unit == "share" else f"{value:+.3f}"
