"""What `ppv evaluate prompts` compares: runs of different prompters, and people's prompts."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError
from rich.table import Table
from rich.text import Text

from pipeline.config import Run
from pipeline.errors import InputError, ModelError, ServiceError
from pipeline.evaluation.prompts import Acceptance, Arm, PromptMetrics, Spread, acceptance, arm
from pipeline.types import BasePrompt, DetailedPrompt, Frozen, Reading, Usage
from storage.objects import ObjectStore
from storage.progress import records
from storage.runs import RunFolder
from storage.seen import Seen
from workers.inputs import MAX_CHARACTERS
from workers.pages.charts import share
from workers.pages.wording import count, dollars, visible

HUMAN = "human"
"""The arm of prompts that people wrote."""

Measure = Callable[[str], dict[str, Reading]]
"""How the models of a run read a text, by stage."""

MeasureOf = Callable[[Run], Measure]

_MAX_LINE_BYTES = 64 * 1024
_NOTHING = "-"

_Stripped = StringConstraints(strip_whitespace=True, min_length=1)


@dataclass(frozen=True)
class Comparison:
    """Arms on the base prompts that all of them have."""

    common: int  # so many base prompts
    arms: list[Arm]
    notes: list[str]  # what makes some of the figures incomparable


# People's prompts


class HumanPrompt(Frozen):
    """A line of the file: a description that a person wrote for a base prompt."""

    base: Annotated[str, _Stripped, Field(max_length=MAX_CHARACTERS)]
    text: Annotated[str, _Stripped]
    category: str = ""
    attributes: dict[str, str] = {}


def read_human(file: Path) -> dict[str, list[DetailedPrompt]]:
    """By the base prompt's id. What people write fits into memory.

    Raises InputError, with the line, for what is no such prompt, and for a file without any.
    """
    prompts: dict[str, list[DetailedPrompt]] = {}
    for line in _human_lines(file):
        text = unicodedata.normalize("NFC", " ".join(line.base.split()))  # as base prompts are read
        base = BasePrompt(text=text)
        of_base = prompts.setdefault(base.id, [])
        of_base.append(
            DetailedPrompt(
                id=DetailedPrompt.id_of(HUMAN, base.text, len(of_base)),
                base=base.text,
                index=len(of_base),
                text=line.text,
                category=line.category,
                attributes=line.attributes,
            )
        )
    if not prompts:
        raise InputError(f'{file} holds no prompt: write {{"base": ..., "text": ...}} a line')
    return prompts


def _human_lines(file: Path) -> Iterator[HumanPrompt]:
    try:
        with file.open("rb") as lines:
            number = 0
            while line := lines.readline(_MAX_LINE_BYTES):
                number += 1
                if len(line) == _MAX_LINE_BYTES:
                    raise InputError(
                        f"{file}, line {number} is longer than {_MAX_LINE_BYTES:,} bytes"
                    )
                if line.strip():
                    yield _human_line(line.removeprefix(b"\xef\xbb\xbf"), f"{file}, line {number}")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None


def _human_line(line: bytes, where: str) -> HumanPrompt:
    try:
        return HumanPrompt.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        reason = f"{field}: {first['msg']}" if field else first["msg"]
        raise InputError(
            f'{where}: {reason}; a line is {{"base": ..., "text": ...}}, if you like with '
            '"category" and "attributes"'
        ) from None


# The comparison


def compare(
    store: ObjectStore,
    runs: Sequence[str],
    human: dict[str, list[DetailedPrompt]] | None = None,
    measure_of: MeasureOf | None = None,
) -> Comparison:
    """The figures of each run's prompter, and of people's prompts, on what all of them have.

    human: as read_human gives it. measure_of: by default the tokenizers of a run's models; people's
    prompts are measured as the first run's would be. Coverage is against the first run's taxonomy.
    Raises InputError for a run that is not there, and where there is nothing in common.
    """
    folders = [RunFolder(store, name) for name in runs]
    configurations = [folder.read() for folder in folders]
    taxonomy = configurations[0].taxonomy
    names = _arm_names(configurations)
    with ExitStack() as stack:
        common, sizes = _common(folders, human, stack)
        if not len(common):
            labels = [*runs, *([HUMAN] if human else [])]
            had = ", ".join(
                f"{label} has {count(size)}" for label, size in zip(labels, sizes, strict=True)
            )
            raise InputError(f"no base prompt has prompts in every arm: {had}, none in common")
        arms = []
        for folder in folders:
            metrics, usage = PromptMetrics(taxonomy), Usage()
            for expansion in folder.expansions():
                if BasePrompt(text=expansion.prompts[0].base).id in common:
                    metrics.add(expansion.prompts)
                    usage += expansion.usage
            arms.append((metrics, _acceptance(folder, common), usage))
        people, notes = PromptMetrics(taxonomy), _notes(configurations)
        if human:
            try:
                measure = (measure_of or _tokenizers)(configurations[0])
            except (ModelError, ServiceError) as error:  # runs are read on other machines too
                measure = _unmeasured
                notes.append(f"people's prompts are not measured in tokens: {error}")
            for base_id, prompts in human.items():
                if base_id in common:
                    people.add([_read_by(measure, prompt) for prompt in prompts])
        together = len(common)
    measured = [metrics for metrics, _, _ in arms] + ([people] if human else [])
    texts = min(len(metrics.sample) for metrics in measured)
    compared = [
        arm(name, run, size, metrics, sampled_texts=texts, acceptance=accepted, usage=usage)
        for name, run, size, (metrics, accepted, usage) in zip(
            names, runs, sizes, arms, strict=False
        )
    ]
    if human:
        compared.append(arm(HUMAN, None, sizes[-1], people, sampled_texts=texts))
    return Comparison(together, compared, notes)


def _tokenizers(run: Run) -> Measure:
    from pipeline.prompter.budget import budget_of

    return budget_of(run).measure


def _unmeasured(text: str) -> dict[str, Reading]:
    return {}


def _read_by(measure: Measure, prompt: DetailedPrompt) -> DetailedPrompt:
    return prompt.model_copy(update={"readings": measure(prompt.text)})


def _arm_names(runs: Sequence[Run]) -> list[str]:
    """The prompters' names, and the runs' too where prompters are called the same."""
    names = [run.prompter_ref.name for run in runs]
    times = Counter([*names, HUMAN])
    return [
        f"{name} ({run.name})" if times[name] > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def _common(
    folders: Sequence[RunFolder], human: dict[str, list[DetailedPrompt]] | None, stack: ExitStack
) -> tuple[Seen, list[int]]:
    """The ids of the base prompts that every arm has, and how many each arm has."""
    common: Seen | None = None
    sizes = []
    arms: list[Iterator[str]] = [folder.prompted_ids() for folder in folders]
    if human is not None:
        arms.append(iter(human))
    for ids in arms:
        both, size = stack.enter_context(Seen()), 0
        for base_id in ids:
            size += 1
            if common is None or base_id in common:
                both.add([base_id])
        common = both
        sizes.append(size)
    assert common is not None
    return common, sizes


def _acceptance(folder: RunFolder, common: Seen) -> Acceptance | None:
    """Of the proposals of the common base prompts; None if none of them was judged."""
    accepted = judged = 0
    for record in records(folder):
        if BasePrompt(text=record.proposal.prompt.base).id in common:
            judged += 1
            accepted += record.verdict.accepted
    return acceptance(accepted, judged)


def _notes(runs: Sequence[Run]) -> list[str]:
    first = runs[0]
    notes = []
    if any(run.taxonomy != first.taxonomy for run in runs):
        notes.append(
            f"the runs' taxonomies differ: coverage is against run {first.name}'s "
            f"({first.taxonomy.name})"
        )
    if any(_judged_by(run) != _judged_by(first) for run in runs):
        notes.append(
            "the runs differ in proposer, verifier or thresholds too: acceptance does not compare "
            "their prompters alone"
        )
    return notes


def _judged_by(run: Run) -> tuple[object, ...]:
    """What acceptance depends on beside the prompts."""
    return run.proposers, run.proposer.sampler, run.verifier_ref, run.thresholds


# The table


def table(comparison: Comparison) -> Table:
    """A row a figure, a column an arm."""
    arms = comparison.arms
    table = Table(
        title=f"prompters on the {count(comparison.common)} base prompts that all of them have",
        title_justify="left",
    )
    table.add_column("")
    for each in arms:
        table.add_column(Text(visible(each.name)), justify="right", overflow="fold")
    for section in _sections(arms):
        table.add_section()
        for name, values in section:
            if any(value != _NOTHING for value in values):
                table.add_row(name, *(Text(value) for value in values))
    return table


Row = tuple[str, list[str]]


def _sections(arms: Sequence[Arm]) -> Iterator[list[Row]]:
    yield [
        ("run", [arm.run or _NOTHING for arm in arms]),
        ("base prompts it has", [count(arm.base_prompts) for arm in arms]),
        ("detailed prompts compared", [count(arm.prompts) for arm in arms]),
    ]
    yield list(_lengths(arms))
    texts, bleu_texts = arms[0].sampled_texts, arms[0].self_bleu_texts
    yield [
        *(
            (f"distinct-{n}, of {count(texts)} texts", [_number(arm.distinct[n]) for arm in arms])
            for n in ("1", "2", "3")
        ),
        (f"self-BLEU, of {count(bleu_texts)} texts", [_number(arm.self_bleu) for arm in arms]),
        ("distance within a base prompt", [_number(arm.within_base) for arm in arms]),
    ]
    yield [
        ("distance to the target, mean", [_number(arm.distance) for arm in arms]),
        *(
            (f"  {attribute}", [_number(arm.coverage[attribute].distance) for arm in arms])
            for attribute in arms[0].coverage
        ),
    ]
    yield [
        *(
            (f"over budget, {stage}", [_share(arm.over_budget.get(stage)) for arm in arms])
            for stage in _stages(arms)
        ),
        ("cut to fit", [_share(arm.cut) for arm in arms]),
        ("near-duplicates kept", [_share(arm.repeats) for arm in arms]),
    ]
    yield [
        ("proposals judged", [count(a.judged) if (a := arm.acceptance) else "-" for arm in arms]),
        ("acceptance", [_share(a.share) if (a := arm.acceptance) else "-" for arm in arms]),
        ("  95% interval", [_interval(arm.acceptance) for arm in arms]),
        ("spent", [dollars(arm.usage.usd) if arm.usage else _NOTHING for arm in arms]),
    ]


def _lengths(arms: Sequence[Arm]) -> Iterator[Row]:
    spreads = {"words": [arm.words for arm in arms]}
    for stage in _stages(arms):
        spreads[f"tokens, {stage}"] = [arm.tokens.get(stage) for arm in arms]
    for name, of_arms in spreads.items():
        yield f"{name}: mean", [_spread(spread, "mean") for spread in of_arms]
        yield "  median / 95% / longest", [_spread(spread, "rest") for spread in of_arms]


def _stages(arms: Sequence[Arm]) -> list[str]:
    return sorted({stage for arm in arms for stage in arm.tokens})


def _spread(spread: Spread | None, part: str) -> str:
    if spread is None:
        return _NOTHING
    if part == "mean":
        return f"{spread.mean:.1f}"
    return f"{spread.median:.4g} / {spread.p95:.4g} / {spread.max}"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return _NOTHING if value is None else share(value)


def _interval(found: Acceptance | None) -> str:
    return f"{share(found.low)} to {share(found.high)}" if found else _NOTHING
