"""The arms of a comparison of models: what each draws with, and its run in the store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import MINIATURE, OpinionsConfig, PrompterConfig, ProposerConfig
from pipeline.errors import InputError
from pipeline.evaluation.suites import Line, Suite
from pipeline.models import fingerprint
from pipeline.routing import SPECIALIST
from pipeline.shipped import nearest
from pipeline.specialists import shipped
from pipeline.types import BASE, digest
from storage.models import Models
from storage.objects import ObjectStore
from workers import dispatch, registry
from workers.pages.wording import visible
from workers.settings import Settings

ENSEMBLE = "ensemble"
SHORT = ":short"


@dataclass(frozen=True)
class Arm:
    """A model under a label; those of one label are measured together, such as a model that was
    trained from several seeds. short: it is given a suite's base prompts, not its detailed ones."""

    label: str
    proposer: ProposerConfig
    short: bool = False


def arms_of(texts: Sequence[str], settings: Settings, store: ObjectStore) -> list[Arm]:
    """Arms as they are given: [LABEL=]base, ensemble, a model of the store, a folder or a hub id.

    With ":short" behind it, an arm draws a suite's base prompts; A+B is one arm of two models.
    Raises InputError for fewer than two, for a label that stands there twice, and for a name that
    nothing has.
    """
    groups = [_group(text, settings, store) for text in texts]
    if len(groups) < 2:
        raise InputError(
            "a comparison needs two arms or more, such as: ppv evaluate models base ensemble"
        )
    labels = [group[0].label for group in groups]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two arms are called {label!r}: call one of them LABEL={label}")
    if len(groups[0]) > 1:
        raise InputError(
            f"arm {labels[0]!r} has {len(groups[0])} models, and the others are compared with it "
            "picture by picture: put an arm of one model first"
        )
    return [arm for group in groups for arm in group]


def _group(text: str, settings: Settings, store: ObjectStore) -> list[Arm]:
    label, equals, what = text.partition("=")
    if not equals or "/" in label:
        label, what = "", text
    several = [what] if Path(what.removesuffix(SHORT)).is_dir() else what.split("+")
    for one in several:
        if several.count(one) > 1:
            raise InputError(f"arm {text!r} has the model {one!r} twice: each counts once")
    arms = [_arm(one, settings, store) for one in several]
    label = visible(label) or "+".join(arm.label for arm in arms)
    return [replace(arm, label=label) for arm in arms]


def _arm(what: str, settings: Settings, store: ObjectStore) -> Arm:
    short = what.endswith(SHORT)
    what = what.removesuffix(SHORT)
    own = settings.proposer
    if what == BASE:
        chosen: dict[str, object] = {"route": BASE, "adapter": ""}
    elif what == ENSEMBLE:
        chosen = {"route": SPECIALIST, "adapter": ""}
    elif _is_model(what, store):
        chosen = {"route": BASE, "adapter": "", "model": what}
    else:
        registry.find(what, fingerprint(own.model, BASE), store)
        chosen = {"route": BASE, "adapter": what}
    label = (Path(what).name if "/" in what else what) + ("-short" if short else "")
    return Arm(visible(label), own.model_copy(update=chosen), short)


def _is_model(what: str, store: ObjectStore) -> bool:
    """Whether it is a folder or a hub id, and not one of the store's models.

    Raises InputError if nothing has that name.
    """
    if "/" in what:
        return True
    name = what.partition("@")[0]
    known = sorted({*Models(store).names(), *(specialist.name for specialist, _ in shipped())})
    if name in known:
        return False
    if Path(what).is_dir():
        return True
    others = nearest(name, [BASE, ENSEMBLE, *known])
    raise InputError(
        f"no arm {what!r}: an arm is base, ensemble, a model of the store, a folder or a hub id; "
        f"{others}"
    )


def settings_for(arm: Arm, settings: Settings, images_per_prompt: int) -> Settings:
    """With nothing of the prompter's and verifier's that would make other prompts, seeds or
    verdicts for the same suite."""
    prompter = PrompterConfig(
        kind="verbatim",
        taxonomy=settings.prompter.taxonomy,
        prompts_per_base=1,
        fit="proposer",  # what a verifier cannot read at once, it reads clause by clause
    )
    proposer = arm.proposer.model_copy(update={"images_per_prompt": images_per_prompt})
    none: dict[str, object] = {"opinions": OpinionsConfig(), "accept_if": {}}
    verifier = settings.verifier.model_copy(update=none)
    return settings.model_copy(
        update={"prompter": prompter, "proposer": proposer, "verifier": verifier}
    )


def run_name_of(store: ObjectStore, settings: Settings) -> str:
    """Of the run in which these settings draw, whatever the suites. Raises as new_run does."""
    run = dispatch.new_run(settings, "arm", store)
    if run.proposer.adapter:
        who = run.proposer.adapter.partition("@")[0]
    elif run.proposer.route != BASE:
        who = ENSEMBLE
    else:
        who = BASE if run.proposer.model == MINIATURE else "model"
    return f"arm-{who[:40]}-{digest(run.identity)[:12]}"


def lines_of(arm: Arm, suites: Sequence[Suite]) -> Iterator[tuple[str, Line]]:
    """What an arm is asked for, with the suite's name; nothing of one without short prompts, if it
    draws these."""
    for suite in suites:
        if suite.has_bases or not arm.short:
            yield from ((suite.name, line) for line in suite.lines)


def text_of(arm: Arm, line: Line) -> str:
    return line.base if arm.short else line.prompt
