"""What `ppv evaluate models` does: every arm draws the suites' prompts, as a run, and is measured.

An arm is a run of its own under a name that follows from what draws, so that the same call again
goes on where the last one stopped, and one arm's pictures serve any comparison.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from pipeline.config import LOADED, OpinionsConfig, Run
from pipeline.errors import InputError
from pipeline.evaluation.bootstrap import RESAMPLES, SEED
from pipeline.evaluation.models import BY_NAME, METRICS, Comparison, SuiteFigures, figures_of
from pipeline.evaluation.suites import Line, Suite
from pipeline.prompter.plan import named_in
from pipeline.taxonomy import Taxonomy, load_taxonomy
from pipeline.types import BASE, BasePrompt
from storage.progress import Tally
from storage.runs import RunFolder
from storage.samples import draw_samples
from workers import dispatch
from workers.cli.arms import Arm as Arm
from workers.cli.arms import arms_of as arms_of
from workers.cli.arms import lines_of, run_name_of, settings_for, text_of
from workers.cli.evaluate_proposers import list_failed
from workers.cli.model_metrics import Measured, Metrics
from workers.cli.session import Session
from workers.cli.show import console
from workers.cli.work import feed
from workers.fleet import Crew
from workers.pages.atomic import replacing
from workers.pages.models import Gallery, write_models_page
from workers.pages.wording import count


@dataclass(frozen=True)
class Options:
    """How arms are compared."""

    images_per_prompt: int = 2
    clip_score: str = ""  # this and the next two: a model, as a folder or hub id; "": none
    preference: str = ""
    image_reward: str = ""
    reference: Path | None = None  # a folder of pictures, for FID and KID
    features: str = ""  # the CLIP that compares with it; "": the judge, in the drawn world
    resamples: int = RESAMPLES
    seed: int = SEED

    @property
    def scores(self) -> OpinionsConfig:
        """The models that score pictures one by one."""
        return OpinionsConfig(**{name: getattr(self, name) for name in LOADED})


@dataclass(frozen=True)
class Drawn:
    """Where the pictures of an arm, or of one of its models, are."""

    arm: Arm
    folder: RunFolder
    run: Run
    tally: Tally


@dataclass(frozen=True)
class Evaluated:
    """What came out. drawn: those of one arm stand together.

    skipped: metrics that were asked for and could not be had, and why. lacking: pictures of which
    something could not be measured.
    """

    drawn: list[Drawn]
    suites: dict[str, SuiteFigures]
    galleries: dict[str, Gallery]
    options: Options
    skipped: dict[str, str]
    notes: list[str] = field(default_factory=list)
    lacking: int = 0

    @property
    def complete(self) -> bool:
        """Whether every metric was measured on every picture."""
        undrawn = any(each.tally.failed or each.tally.missing for each in self.drawn)
        return not self.skipped and not self.lacking and not undrawn

    @property
    def folders(self) -> dict[str, RunFolder]:
        """Of each arm's first model, by label."""
        return _firsts(self.drawn)


# Drawing


def evaluate_models(
    here: Session, arms: Sequence[Arm], suites: Sequence[Suite], options: Options
) -> Evaluated:
    """Have every arm draw every suite, as far as that is not done yet, and measure the pictures.

    Raises InputError, before anything is drawn, for an arm that cannot draw a suite, for suites of
    one name, and for a reference that pictures cannot be compared with.
    """
    _check_suites(arms, suites)
    metrics = Metrics(
        options.scores,
        options.reference,
        options.features,
        load_taxonomy(here.settings.prompter.taxonomy),
        here.settings.verifier,
    )
    for metric, why in metrics.skipped.items():
        console.print(f"{BY_NAME[metric].title} will be skipped: {why}", markup=False)
    draws = [settings_for(arm, here.settings, options.images_per_prompt) for arm in arms]
    names = [run_name_of(here.store, each) for each in draws]  # of all, before one is kept
    for each, name in zip(draws, names, strict=True):
        dispatch.open_run(here.store, here.broker, each, name)
    asked: dict[str, dict[str, None]] = {}  # prompts of each run, each once, in order
    for arm, name in zip(arms, names, strict=True):
        texts = asked.setdefault(name, {})
        texts |= {text_of(arm, line): None for _, line in lines_of(arm, suites)}
    folders = {name: RunFolder(here.store, name) for name in asked}
    with Crew(here.settings, here.children) as crew:
        tallies = {name: _draw(here, folders[name], list(asked[name]), crew) for name in asked}
    for folder in folders.values():
        list_failed(folder)
    drawn = [
        Drawn(arm, folders[name], folders[name].read(), tallies[name])
        for arm, name in zip(arms, names, strict=True)
    ]
    return _measure(drawn, suites, options, metrics)


def _check_suites(arms: Sequence[Arm], suites: Sequence[Suite]) -> None:
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two suites are called {name!r}: rename one of the files")
    for arm in arms:
        if not any(lines_of(arm, suites)):
            raise InputError(
                f"arm {arm.label!r} draws short prompts, and suite {names[0]!r} has none: "
                'give .jsonl lines {"prompt": ..., "base": ...}'
            )


def _draw(here: Session, folder: RunFolder, texts: Sequence[str], crew: Crew) -> Tally:
    console.print(f"[dim]{folder.name}: {count(len(texts))} prompts[/]")
    _, tally = feed(here, folder, (BasePrompt(text=text) for text in texts), crew)
    return tally


# Measuring


@dataclass
class _Doubts:
    """What is to be known of one arm's pictures. cut, by_base: prompts."""

    lacking: int = 0
    cut: set[str] = field(default_factory=set)
    by_base: set[str] = field(default_factory=set)

    def add(self, item: Measured) -> None:
        prompt = item.record.proposal.prompt
        self.lacking += item.lacks
        if prompt.cut:
            self.cut.add(prompt.base)
        if item.record.proposal.proposer.label == BASE:
            self.by_base.add(prompt.base)


def _measure(
    drawn: Sequence[Drawn], suites: Sequence[Suite], options: Options, metrics: Metrics
) -> Evaluated:
    labels = list(_firsts(drawn))
    comparisons = {suite.name: Comparison(labels) for suite in suites}
    galleries = {suite.name: Gallery(suite, labels) for suite in suites}
    metrics.load()
    doubts = []
    for at, (_, models) in enumerate(groupby(drawn, lambda each: each.arm.label)):
        distances = {}
        if metrics.reference:
            distances = {suite.name: metrics.reference.fresh() for suite in suites}
        for each in models:
            lines = _lines(each.arm, suites, each.run.taxonomy)
            doubt = _Doubts()
            for part in _watched(metrics.measure(each.folder, set(lines)), each):
                features: dict[str, list[Tensor]] = {}
                for item in part:
                    figures = figures_of(item.record, item.truth, item.scores)
                    for suite, line, category in lines[item.record.proposal.prompt.base]:
                        comparisons[suite].add(at, line.prompt, item.record, category, figures)
                        galleries[suite].add(at, line, item.record, item.truth)
                        if item.features is not None:
                            features.setdefault(suite, []).append(item.features)
                    doubt.add(item)
                for suite, rows in features.items():
                    distances[suite].add(torch.stack(rows))
            doubts.append(doubt)
        for suite, distance in distances.items():
            comparisons[suite].add_whole(at, distance.figures(options.seed), distance.others)
    return Evaluated(
        drawn=list(drawn),
        suites={
            name: c.figures(options.resamples, options.seed) for name, c in comparisons.items()
        },
        galleries=galleries,
        options=options,
        skipped=metrics.skipped,
        notes=[
            *dict.fromkeys(_notes(drawn, doubts, options, metrics)),
            *_sizes(_firsts(drawn), galleries),
        ],
        lacking=sum(doubt.lacking for doubt in doubts),
    )


def _firsts(drawn: Sequence[Drawn]) -> dict[str, RunFolder]:
    """The folder of each arm's first model, by label."""
    folders: dict[str, RunFolder] = {}
    for each in drawn:
        folders.setdefault(each.arm.label, each.folder)
    return folders


def _watched(parts: Iterator[list[Measured]], drawn: Drawn) -> Iterable[list[Measured]]:
    """With a bar on a terminal, and a line before it all in a pipe."""
    words = f"measure {drawn.arm.label}"
    if not console.is_terminal:
        console.print(words, markup=False)
    return track(parts, words, console=console, transient=True, disable=not console.is_terminal)


def _lines(
    arm: Arm, suites: Sequence[Suite], taxonomy: Taxonomy
) -> dict[str, list[tuple[str, Line, str]]]:
    """Where each text that the arm drew stands: suite, line and the category of its prompt."""
    lines: dict[str, list[tuple[str, Line, str]]] = {}
    for suite, line in lines_of(arm, suites):
        category, _ = named_in(line.prompt, taxonomy)
        lines.setdefault(text_of(arm, line), []).append((suite, line, category))
    return lines


def _notes(
    drawn: Sequence[Drawn], doubts: Sequence[_Doubts], options: Options, metrics: Metrics
) -> Iterator[str]:
    """What the figures leave out."""
    models = Counter(each.arm.label for each in drawn)
    for label, several in models.items():
        if several > 1:
            yield f"{label}: {several} models measured together; the pictures are the first one's"
    for each, doubt in zip(drawn, doubts, strict=True):
        label, tally = each.arm.label, each.tally
        if doubt.lacking:
            yield (
                f"{label}: {count(doubt.lacking)} pictures lack ground truth or scores, since they "
                "cannot be read or, as for the judge of the drawn world, are not 64x64"
            )
        if doubt.cut:
            yield (
                f"{label}: {count(len(doubt.cut))} prompts are longer than it reads, and were cut"
            )
        if each.arm.proposer.route != BASE and doubt.by_base:
            yield (
                f"{label}: {count(len(doubt.by_base))} prompts name no category that has a "
                "specialist, and were drawn by the base"
            )
        if tally.failed:
            yield (
                f"{label}: {count(tally.failed)} proposals failed; see "
                f"`ppv report {each.folder.name}`"
            )
        if tally.missing:
            yield f"{label}: {count(tally.missing)} proposals are missing; the same call goes on"
    if metrics.reference:
        yield (
            f"FID and KID are to {count(metrics.reference.reference)} pictures of "
            f"{str(options.reference)!r} by the features of {metrics.features_by}: to be compared "
            "here only, and FID between arms of as many pictures only"
        )
    asked = {**options.scores.models, **({"fid": ""} if options.reference else {})}
    if others := [option for name, option in _OPTIONS.items() if name not in asked]:
        yield f"not asked for: {', '.join(others)}"


_OPTIONS = {
    "clip_score": "CLIPScore (--clip-score)",
    "preference": "a preference score such as PickScore (--preference)",
    "image_reward": "ImageReward (--image-reward)",
    "fid": "FID and KID (--reference)",
}


def _sizes(folders: Mapping[str, RunFolder], galleries: Mapping[str, Gallery]) -> Iterator[str]:
    """The arms that draw another size than the first."""
    sizes = {
        label: frozenset().union(*(each.sizes(label, folder) for each in galleries.values()))
        for label, folder in folders.items()
    }
    first = next(iter(folders))
    for label, found in sizes.items():
        if found and sizes[first] and found != sizes[first]:
            yield (
                f"{label} draws {_pixels(found)} and {first} {_pixels(sizes[first])}: what tells "
                "sizes apart may tell these models apart; proposer.sampler.height and width set one"
            )


def _pixels(sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sorted(sizes))


# What is written and shown


def write(evaluated: Evaluated, out: Path) -> dict[str, Path]:
    """The page, the first suite's pictures and the figures, in this folder; their paths by kind."""
    out.mkdir(parents=True, exist_ok=True)
    paths = {kind: out / f"models.{kind}" for kind in ("html", "png", "json")}
    write_models_page(
        list(evaluated.folders.items()),
        evaluated.suites,
        evaluated.galleries,
        [*(f"{BY_NAME[n].title}: skipped, {why}" for n, why in evaluated.skipped.items()),
         *evaluated.notes],
        paths["html"],
    )  # fmt: skip
    first = next(iter(evaluated.galleries.values()))
    with replacing(paths["png"]) as file:
        file.write(draw_samples(first.rows(evaluated.folders)))
    with replacing(paths["json"]) as file:
        file.write(json.dumps(as_json(evaluated), indent=1).encode() + b"\n")
    return paths


def as_json(evaluated: Evaluated) -> dict[str, object]:
    """What programs may read."""
    return {
        "arms": {
            label: {"models": [_model(each) for each in evaluated.drawn if each.arm.label == label]}
            for label in evaluated.folders
        },
        "metrics": {metric.name: metric.title for metric in METRICS},
        "suites": {name: asdict(figures) for name, figures in evaluated.suites.items()},
        "skipped": evaluated.skipped,
        "notes": evaluated.notes,
        "images_per_prompt": evaluated.options.images_per_prompt,
        "resamples": evaluated.options.resamples,
        "seed": evaluated.options.seed,
    }


def _model(drawn: Drawn) -> dict[str, object]:
    return {
        "run": drawn.folder.name,
        "short": drawn.arm.short,
        "proposers": [ref.title for ref in drawn.run.proposers],
        "weights": [ref.hashes for ref in drawn.run.proposers],
    }
