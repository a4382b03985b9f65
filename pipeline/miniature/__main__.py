"""`python -m pipeline.miniature`: how the miniature's weights are made and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import MINIATURE

WEIGHTS = Path(__file__).parent / "weights"

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

Seed = Annotated[int, typer.Option(help="Determines pictures, weights and order.")]
Out = Annotated[Path, typer.Option(help="Folder for checkpoints and results.")]
Minutes = Annotated[float | None, typer.Option(help="Train this long, by the clock.")]
Steps = Annotated[int | None, typer.Option(help="Train this many steps, instead of minutes.")]
Resume = Annotated[bool, typer.Option(help="Go on from the checkpoint in the folder.")]
Cache = Annotated[Path, typer.Option(help="Folder that keeps rendered pictures.")]
Base = Annotated[Path, typer.Option(help="Folder of the base pipeline.")]
JudgeFolder = Annotated[Path, typer.Option("--judge", help="Folder of the judge.")]
SamplingSteps = Annotated[int, typer.Option(help="Denoising steps of each picture.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")]
HeldOut = Annotated[bool, typer.Option(help="Of prompts that nothing was trained on.")]
Count = Annotated[int, typer.Option(help="How many pictures to train on.")]


@app.command()
def vae(
    out: Out,
    seed: Seed = 1,
    minutes: Minutes = None,
    steps: Steps = None,
    resume: Resume = False,
    cache: Cache = Path(".work/renders"),
    count: Count = 24_000,
) -> None:
    """Trains the autoencoder."""
    from pipeline.miniature.loop import Budget
    from pipeline.miniature.vae import train_vae

    train_vae(seed, out, Budget(minutes, steps), resume, cache, count)


@app.command()
def base(
    out: Out,
    seed: Seed = 1,
    minutes: Minutes = None,
    steps: Steps = None,
    resume: Resume = False,
    cache: Cache = Path(".work/renders"),
    count: Count = 24_000,
    hand_fault_rate: Annotated[float, typer.Option(help="Share of hands with a fault.")] = 0.3,
    export: Annotated[Path, typer.Option(help="Where the pipeline goes.")] = WEIGHTS / "base",
    start: Annotated[Path | None, typer.Option(help="Checkpoint to begin from.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 1e-3,
) -> None:
    """Trains text encoder and UNet on the autoencoder in the same folder; exports a pipeline."""
    from pipeline.miniature.base import train_base
    from pipeline.miniature.loop import Budget

    budget = Budget(minutes, steps)
    train_base(
        seed, out, budget, resume, cache, count, hand_fault_rate, export, start, learning_rate
    )


@app.command()
def judge(
    out: Out,
    seed: Seed = 777,
    minutes: Minutes = None,
    steps: Steps = None,
    resume: Resume = False,
    cache: Cache = Path(".work/renders"),
    count: Count = 36_000,
    vae_folder: Annotated[
        Path, typer.Option(help="Autoencoder whose round trips it must bear.")
    ] = WEIGHTS / "base" / "vae",
) -> None:
    """Trains a judge; with another seed, an independent one."""
    from pipeline.miniature.judge_training import train_judge
    from pipeline.miniature.loop import Budget

    train_judge(seed, out, Budget(minutes, steps), resume, cache, count, vae_folder)


@app.command()
def refine(
    out: Out,
    seed: Seed = 1,
    minutes: Minutes = None,
    steps: Steps = None,
    resume: Resume = False,
    cache: Cache = Path(".work/renders"),
    count: Count = 24_000,
    export: Annotated[Path, typer.Option(help="Where the autoencoder goes.")] = WEIGHTS
    / "base"
    / "vae",
) -> None:
    """Trains the autoencoder's decoder further; its latents, and so the UNet, stay as they are."""
    from pipeline.miniature.loop import Budget
    from pipeline.miniature.vae import refine_decoder

    refine_decoder(seed, out, Budget(minutes, steps), resume, cache, count, export)


@app.command("render")
def render_sheet(
    out: Annotated[Path, typer.Option(help="Folder for the sheets.")],
    seed: Seed = 1,
    count: Count = 50,
    hand_fault_rate: Annotated[float, typer.Option(help="Share of hands with a fault.")] = 0.3,
) -> None:
    """Renders scenes to numbered sheets with their captions."""
    from pipeline.miniature.drawing import save_sheets
    from pipeline.miniature.render import render
    from pipeline.miniature.scenes import sample

    examples = list(sample(seed, count, hand_fault_rate))
    images = [render(example.scene) for example in examples]
    save_sheets(out, images, examples, [example.scene.seed for example in examples])


@app.command()
def instances(
    out: Annotated[Path, typer.Option(help="Folder for a folder of each category.")],
    seed: Seed = 21,
    each: Annotated[int, typer.Option(min=1, help="Pictures of each category.")] = 48,
) -> None:
    """Renders faultless pictures with captions, to train specialists: ppv train proposer --all."""
    from pipeline.miniature.specialists import save_instances

    save_instances(out, seed, each)


@app.command("verifier")
def untrained_verifier(
    out: Annotated[Path, typer.Option(help="Folder for the verifier.")], seed: Seed = 11
) -> None:
    """Writes a verifier with random weights: ppv train verifier --base."""
    from pipeline.miniature.verifier import save_untrained

    save_untrained(out, seed)


@app.command()
def draw(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    seed: Seed = 21,
    count: Annotated[int, typer.Option(min=1, help="Pictures, each of its own prompt.")] = 1000,
    held_out: HeldOut = False,
    base: Annotated[str, typer.Option(help="What draws: a folder or a hub id.")] = MINIATURE,
) -> None:
    """Draws pictures by the base and its specialists, for `labels`."""
    import torch

    from pipeline.miniature.drawn import draw_prompts

    torch.set_num_threads(1)  # two on busy cores wait for each other
    draw_prompts(out, seed, count, held_out=held_out, model=base)


@app.command()
def labels(
    out: Annotated[Path, typer.Option(help="Folder for labels.jsonl and the pictures.")],
    seed: Seed = 31,
    count: Annotated[int, typer.Option(min=0, help="Renders, with faults and without.")] = 4000,
    captions: Annotated[int, typer.Option(min=1, help="Of each picture, some of them wrong.")] = 2,
    drawn: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of `draw`, or a run's in a store; may be repeated."),
    ] = None,
    held_out: HeldOut = False,
    judge: JudgeFolder = WEIGHTS / "judge",
) -> None:
    """Labels of renders, and of drawn pictures by a judge, for ppv train verifier."""
    from pipeline.miniature.judge import load_judge
    from pipeline.miniature.labels import save_labels

    loaded = load_judge(judge) if drawn else None
    said = save_labels(out, seed, count, captions, drawn or [], loaded, held_out=held_out)
    typer.echo(", ".join(f"{name} {many:,}" for name, many in said.items()))


@app.command("eye-labels")
def eye_labels(
    out: Annotated[Path, typer.Option(help="Folder for labels.jsonl and the pictures.")],
    pictures: Annotated[Path, typer.Option(help="Folder where `sheet` wrote the pictures.")],
    labels: Annotated[Path, typer.Option(help="Answers made by eye.")] = WEIGHTS
    / "eye_labels.jsonl",
) -> None:
    """Labels made by eye, as ppv train verifier and ppv evaluate verifier read them."""
    from pipeline.miniature.labels import save_labels_by_eye

    typer.echo(f"eye {save_labels_by_eye(out, labels, pictures):,}")


@app.command()
def ship(
    folder: Annotated[Path, typer.Argument(help="Where `ppv train proposer --all` wrote.")],
) -> None:
    """Puts trained specialists among those that come with the project."""
    from pipeline.miniature.specialists import ship as put

    for specialist in put(folder):
        typer.echo(f"{specialist.reference}, {specialist.size_bytes / 1e6:.2f} MB")


@app.command()
def sheet(
    out: Annotated[Path, typer.Option(help="Folder for pictures, captions and sheets.")],
    seed: Seed = 5,
    count: Count = 100,
    base: Base = WEIGHTS / "base",
    sampling_steps: SamplingSteps = 16,
    guidance: Guidance = 2.0,
) -> None:
    """Draws held-out captions to numbered sheets, for labels by eye."""
    from pipeline.miniature.drawing import draw, held_out_captions, save_sheets, seeds_for

    examples, seeds = held_out_captions(seed, count), seeds_for(seed, count)
    images = draw(base, [e.caption for e in examples], seeds, sampling_steps, guidance)
    save_sheets(out, images, examples, seeds)


@app.command()
def evaluate(
    seed: Seed = 900,
    count: Annotated[int, typer.Option(help="Pictures to draw; 0: judge only.")] = 256,
    each: Annotated[int, typer.Option(help="Renders of each fault, for the judge.")] = 200,
    base: Base = WEIGHTS / "base",
    judge: JudgeFolder = WEIGHTS / "judge",
    sampling_steps: SamplingSteps = 16,
    guidance: Guidance = 2.0,
    json_file: JsonFile = None,
) -> None:
    """The judge on held-out renders, and the base model by the judge."""
    from pipeline.miniature.evaluate import as_lines, base_by_judge, judge_on_renders
    from pipeline.miniature.judge import load_judge

    loaded = load_judge(judge)
    tables = {"judge on held-out renders": judge_on_renders(loaded, seed, each)}
    if count:
        tables["base on held-out captions, by the judge"] = base_by_judge(
            loaded, base, seed, count, sampling_steps, guidance
        )
    for title, table in tables.items():
        typer.echo("\n".join(as_lines(title, table)))
    if json_file:
        json_file.write_text(json.dumps(tables, indent=2) + "\n")


@app.command()
def agreement(
    pictures: Annotated[Path, typer.Option(help="Folder where `sheet` wrote the pictures.")],
    labels: Annotated[Path, typer.Option(help="Labels made by eye.")] = WEIGHTS
    / "eye_labels.jsonl",
    judge: JudgeFolder = WEIGHTS / "judge",
    json_file: JsonFile = None,
) -> None:
    """The judge against labels made by eye."""
    from pipeline.miniature.evaluate import agreement as measure
    from pipeline.miniature.evaluate import as_lines
    from pipeline.miniature.judge import load_judge

    table = measure(load_judge(judge), labels, pictures)
    typer.echo("\n".join(as_lines("judge and eye", table)))
    if json_file:
        json_file.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    app()
