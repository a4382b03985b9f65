"""A verifier from labels: ViLT and its heads fine-tuned, calibrated, and measured for its card.

<to>/model.safetensors, config.json, ...    what pipeline.verifier.Verifier loads
<to>/operating_point.json                   from which scores on it accepts
<to>/mistakes/, README.md                   for people
<to>/curve.json                             the losses
<to>/card.json                              written last
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.config import VerifierConfig
from pipeline.errors import InputError, ModelError
from pipeline.evaluation.verifier import measure, mistakes
from pipeline.models import location
from pipeline.training.card import CURVE
from pipeline.training.denoising import Batch
from pipeline.training.devices import Accelerator, new_accelerator, peak_memory_bytes
from pipeline.training.examples import dealt
from pipeline.training.loop import Loop, Watch, check_owner
from pipeline.training.verifier_card import (
    LabelSet,
    PartSize,
    TrainedVerifier,
    Validation,
    VerifierCard,
    keep_mistakes,
    read_verifier_card,
    write_verifier_card,
)
from pipeline.training.verifier_examples import Examples
from pipeline.training.verifier_guide import questions
from pipeline.training.verifier_loss import Judging, class_weights
from pipeline.training.verifier_measuring import (
    calibrate,
    choose,
    judged,
    made_aucs,
    other_points,
    validated,
)
from pipeline.training.verifier_plan import VerifierPlan
from pipeline.types import ModelRef, digest
from pipeline.verifier import Verifier
from pipeline.verifier.network import ViltVerifier

CHECKPOINTS = "checkpoints"
BEST, VALIDATIONS = "best.safetensors", "validations.json"  # beside the checkpoints


def train(plan: VerifierPlan, to: Path, watch: Watch, *, cpu: bool = False) -> TrainedVerifier:
    """Trains a verifier into the folder `to`, or goes on where an earlier call was cut off.

    Raises InputError if the folder holds another training, TrainingDiverged if the loss is no
    number; the last good checkpoint stays.
    """
    config = plan.config
    # A public ViLT has parts that no batch of its own reads, such as its mask token.
    accelerator = new_accelerator(config.loop.mixed_precision, cpu=cpu, some_unused=True)
    how = {
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
    }
    identity, of_card = plan.identity | how, digest(plan.card_identity | how)

    def note(line: str) -> None:
        if accelerator.is_main_process:
            watch.noted(line)

    done = read_verifier_card(to)
    if done is not None:
        if done.identity != of_card:
            raise InputError(f"{str(to)!r} holds another training: give another folder")
        note(f"{to} is trained already")
        _forget_checkpoints(to, accelerator)
        return TrainedVerifier(to, done, new=False)

    if to.exists() and not to.is_dir():
        raise InputError(f"{str(to)!r} is a file: give a folder")
    check_owner(to / CHECKPOINTS, identity)
    torch.manual_seed(config.loop.seed)  # of new heads
    verifier = load_base(plan.base, plan.kind)
    items = plan.parts["train"]
    asked = questions(plan.known, items)
    examples = Examples(items, verifier, config, asked)
    module = Judging(verifier.network, config, class_weights(items, config), asked)
    loop = Loop(accelerator, module, config.loop, to / CHECKPOINTS, identity)
    if loop.step:
        note(f"going on from step {loop.step}")

    def batch_of(place: int, generator: torch.Generator) -> Batch:
        size = config.loop.batch_size
        rows = dealt(config.loop.seed, len(examples), place * size, size)
        return examples.batch(rows, generator)

    def validate(step: int) -> bool:
        with accelerator.autocast():
            found = validated(plan, verifier, step)
        enough = _keep_best(verifier.network, found, to / CHECKPOINTS, config.patience)
        scores = (found.fidelity_auc, found.alignment_auc, found.made_auc)
        note(f"step {step}: AUC of fidelity, alignment, made-up texts: {_said(scores)}")
        write_curve()
        return enough

    def write_curve() -> None:
        lines = json.dumps([asdict(point) for point in loop.points])
        (to / CURVE).write_text(lines + "\n")

    try:
        loop.run(batch_of, watch, validate)
    finally:
        if accelerator.is_main_process and to.is_dir():
            write_curve()
    if accelerator.is_main_process:
        _finish(plan, verifier, loop, accelerator, to, of_card)
    accelerator.wait_for_everyone()
    card = read_verifier_card(to)
    assert card is not None
    return TrainedVerifier(to, card, new=True)


def load_base(ref: ModelRef, kind: str) -> Verifier:
    """The base on the CPU in float32; a public ViLT's heads are new. Raises ModelError."""
    if kind == "vilt_verifier":
        return Verifier.load(VerifierConfig(model=ref.name, device="cpu", dtype="float32"), ref)
    from transformers import BertTokenizer
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    where, revision = location(ref, "verifier")
    processors: Any = ViltImageProcessorPil  # its types are lost on mypy
    at: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        network = ViltVerifier.from_backbone(where, **at)
        tokenizer = BertTokenizer.from_pretrained(where, **at)
        processor = processors.from_pretrained(where, **at)
    except Exception as error:  # transformers, safetensors and torch each raise their own
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"ViLT backbone {ref.name!r} cannot be loaded: {reason}") from error
    module: nn.Module = network  # whose `float` has types
    module.float()
    return Verifier(ref.name, network, tokenizer, processor)


# Along the way


def _keep_best(
    network: ViltVerifier, found: Validation, folder: Path, patience: int | None
) -> bool:
    """Keeps the weights if none were better before; True if there was no better one for long.

    The list is cut at this step first: a training that goes on repeats its last validation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [each for each in _validations(folder) if each.step < found.step]
    best = max((each.better for each in earlier), default=None)
    if best is None or found.better > best:
        partial = folder / f".{BEST}.partial"
        state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, partial, {"step": str(found.step)})
        partial.replace(folder / BEST)
    every = [*earlier, found]
    partial = folder / f".{VALIDATIONS}.partial"
    partial.write_text(json.dumps([each.model_dump() for each in every]) + "\n")
    partial.replace(folder / VALIDATIONS)
    since = len(every) - 1 - _best_of(every)
    return patience is not None and since >= patience


def _validations(folder: Path) -> list[Validation]:
    path = folder / VALIDATIONS
    if not path.exists():
        return []
    return [Validation.model_validate(each) for each in json.loads(path.read_text("utf-8"))]


def _best_of(every: Sequence[Validation]) -> int:
    """The place of the best, the first of equals."""
    return max(range(len(every)), key=lambda n: (*every[n].better, -n))


# The end


def _finish(
    plan: VerifierPlan,
    verifier: Verifier,
    loop: Loop,
    accelerator: Accelerator,
    to: Path,
    identity: str,
) -> None:
    """Calibrates the best weights, saves them, and measures what was saved."""
    config = plan.config
    validations = _validations(to / CHECKPOINTS)
    best = validations[_best_of(validations)].step
    network = verifier.network
    network.load_state_dict(load_file(to / CHECKPOINTS / BEST))
    cast(nn.Module, network).train(False)
    shift = config.calibrate == "platt"
    calibration = calibrate(verifier, plan.parts["calibration"], with_shift=shift)
    _save(verifier, to, getattr(torch, config.save_dtype))

    device = accelerator.device.type
    device = device if device in ("cpu", "cuda", "mps") else "auto"
    saved = Verifier.load(VerifierConfig(model=str(to.resolve()), device=device, dtype="float32"))
    known = judged(saved, plan.parts["calibration"])
    point = choose(known, config)
    thresholds = point.thresholds
    tested = plan.parts["test"]
    rows = judged(saved, tested)
    measured = measure(rows, thresholds)
    last = loop.points[-max(1, len(loop.points) // 10) :]
    card = VerifierCard(
        fidelity_auc=measured.fidelity.auc,
        alignment_auc=measured.alignment.auc,
        ece=measured.ece,
        precision=measured.decisions.precision.value,
        recall=measured.decisions.recall.value,
        acceptance=measured.decisions.acceptance.value,
        thresholds=thresholds,
        reached=point.reached,
        other_points=other_points(known, rows),
        measured=measured,
        made=made_aucs(saved, tested, rows, plan.known),
        calibration=calibration,
        mistakes=keep_mistakes(mistakes(rows, thresholds), to),
        splits={
            name: PartSize(pictures=len(some), base_prompts=plan.bases[name])
            for name, some in plan.parts.items()
        },
        label_sets=tuple(
            LabelSet(name=source.short, labels=len(source.labels), hash=source.hash)
            for source in plan.sources
        ),
        annotators=plan.agreed.annotators,
        chosen=plan.agreed.chosen,
        disagreements=plan.agreed.disagreements,
        ties=plan.agreed.ties,
        base=plan.base,
        kind=plan.kind,
        config=config.model_dump(mode="json"),
        steps=loop.step,
        best_step=best,
        validations=tuple(validations),
        losses={n: round(sum(p.losses[n] for p in last) / len(last), 6) for n in last[-1].losses},
        pairs_per_s=round(loop.examples_per_s, 3),
        peak_memory_bytes=peak_memory_bytes(),
        device=str(accelerator.device),
        mixed_precision=str(accelerator.mixed_precision),
        processes=accelerator.num_processes,
        versions={
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "accelerate", "numpy")
        },
        identity=identity,
    )
    write_verifier_card(card, to)
    shutil.rmtree(to / CHECKPOINTS)


def _save(verifier: Verifier, to: Path, dtype: torch.dtype) -> None:
    from transformers import ViltProcessor

    module: nn.Module = verifier.network  # whose `to` has types
    module.to(dtype)
    verifier.network.save_pretrained(to)
    module.to(torch.float32)
    processors: Any = ViltProcessor
    processors(verifier.processor, verifier.tokenizer).save_pretrained(to)


def _forget_checkpoints(to: Path, accelerator: Accelerator) -> None:
    """Of a training that was cut off after its last word."""
    if accelerator.is_main_process:
        shutil.rmtree(to / CHECKPOINTS, ignore_errors=True)


def _said(aucs: Sequence[float | None]) -> str:
    return ", ".join("-" if each is None else f"{each:.3f}" for each in aucs)
