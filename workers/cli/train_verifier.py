"""`ppv train verifier`: a verifier from labels, calibrated, with its card."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workers.cli import options
from workers.cli.label_sources import label_sources
from workers.cli.watching import watching

if TYPE_CHECKING:
    from pipeline.training.verifier_card import TrainedVerifier
    from pipeline.training.verifier_plan import VerifierPlan


def verifier(
    labels: Annotated[
        list[str],
        typer.Option(help="A JSONL file of labels, or a set in the store; may be repeated."),
    ],
    to: Annotated[Path, typer.Option(help="Folder for the verifier and its card.")],
    test: Annotated[
        list[str] | None,
        typer.Option(
            help="Labels, likewise, to measure on and never to learn from; by default a share of "
            "the base prompts."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="What is trained: a verifier, or a ViLT such as dandelin/vilt-b32-mlm, as a "
            "folder or hub id; by default verifier.model."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Settings: a YAML file, or the name of one that ships.")
    ] = None,
    target_precision: Annotated[
        float | None,
        typer.Option(help="Thresholds: accept most, and this share of it right; 0.95 by default."),
    ] = None,
    target_acceptance: Annotated[
        float | None,
        typer.Option(help="Thresholds: accept at least this share, and the best of it."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the optimizer, at most.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures, on each device.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Validations without a better one until the end.")
    ] = None,
    negatives: Annotated[
        float | None,
        typer.Option(help="Share of right pictures that get a false text beside their own."),
    ] = None,
    corrupted: Annotated[
        float | None, typer.Option(help="Share of faultless hands that are spoilt.")
    ] = None,
    only_training: Annotated[
        list[str] | None,
        typer.Option(help="An annotator to learn from and not to measure on; may be repeated."),
    ] = None,
    mixed_precision: Annotated[
        Literal["auto", "no", "fp16", "bf16"] | None,
        typer.Option(help="auto: bf16 where a GPU has it."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of splits, new heads, order and noise.")] = None,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Train a verifier on accepted and rejected pictures, calibrate it and choose its thresholds.

    Base prompts are parted into training, validation, calibration and test. The same call again
    goes on where the last one stopped. On several GPUs: accelerate launch $(which ppv) train ...
    """
    from pipeline.models import fingerprint
    from pipeline.taxonomy import load_taxonomy
    from pipeline.training.verifier_plan import configured_verifier, plan_verifier
    from workers.settings import settings

    here = settings()
    taxonomy = load_taxonomy(here.prompter.taxonomy)
    config = configured_verifier(
        recipe,
        {
            "target_precision": target_precision,
            "target_acceptance": target_acceptance,
            "patience": patience,
            "negatives": negatives,
            "corrupted": corrupted,
            "only_training": only_training or None,
            "loop.steps": steps,
            "loop.batch_size": batch_size,
            "loop.learning_rate": learning_rate,
            "loop.mixed_precision": mixed_precision,
            "loop.seed": seed,
        },
    )
    ref = fingerprint(base or here.verifier.model, "verifier")
    names = [*labels, *(test or [])]
    with label_sources(names, here.state_dir) as sources:
        tested = sources[len(labels) :]
        plan = plan_verifier(sources[: len(labels)], taxonomy, ref, config, tested)
    trained = _train(plan, to, cpu=here.verifier.device == "cpu")
    if trained is not None:
        _say(trained, as_json=as_json)


def _train(plan: "VerifierPlan", to: Path, *, cpu: bool) -> "TrainedVerifier | None":
    """The verifier and its pictures; None in all processes but the first."""
    import transformers.utils.logging
    from accelerate import PartialState  # type: ignore[import-untyped]

    from pipeline.training.verifier import train
    from workers.pages.verifier import draw_verifier

    logging: Any = transformers.utils.logging  # without types
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    agreed = plan.agreed
    for head, ties in agreed.ties.items():
        if ties:
            print(
                f"note: {ties:,} pictures are left out of {head}: as many annotators say yes as no",
                file=sys.stderr,
            )
    with watching("verifier", "pairs") as watch:
        trained = train(plan, to, watch, cpu=cpu)
    if not PartialState().is_main_process:
        return None
    draw_verifier(trained.card, to)
    return trained


def _say(trained: "TrainedVerifier", *, as_json: bool) -> None:
    card, to = trained.card, trained.folder
    line = toml_of(to)
    if as_json:
        said = {"folder": str(to), "new": trained.new, "toml": line, "card": card.model_dump()}
        print(json.dumps(said))
        return
    figures = {
        "fidelity, AUC": card.fidelity_auc,
        "alignment, AUC": card.alignment_auc,
        "ECE": card.ece,
        "precision": card.precision,
        "recall": card.recall,
        "acceptance": card.acceptance,
    }
    for name, value in figures.items():
        print(f"{name:16} {'not defined' if value is None else f'{value:.3f}'}")
    why = card.thresholds.chosen_by
    print(f"on {card.measured.n:,} pictures of the test part; thresholds for {why}")
    print(f"verifier  {to}\ncard      {to / 'README.md'}\n\nInto ppv.toml:\n{line}")


def toml_of(folder: Path) -> str:
    """What makes runs judge with this verifier, at its operating point."""
    return f"[verifier]\nmodel = {json.dumps(str(folder))}"
