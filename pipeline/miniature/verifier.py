"""`python -m pipeline.miniature verifier`: how the miniature's verifier is made and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.models import WEIGHTS

app = typer.Typer(help=__doc__, no_args_is_help=True)

Seed = Annotated[int, typer.Option(help="Determines pictures, weights and order.")]
Threads = Annotated[int, typer.Option(help="Processor cores to use.")]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the verifier.")],
    seed: Seed = 11,
    steps: Annotated[int | None, typer.Option(help="Train this many steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train this long, instead of steps.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for the checkpoint.")] = Path(".work/verifier"),
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint.")] = False,
    renders: Annotated[int, typer.Option(help="Renders to train on.")] = 12_000,
    cache: Annotated[Path, typer.Option(help="Folder that keeps rendered pictures.")] = Path(
        ".work/renders"
    ),
    drawn: Annotated[
        Path | None, typer.Option(help="Folder of drawn pictures, labelled by a teacher.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Verifier folder to go on from, instead of random weights.")
    ] = None,
    look_steps: Annotated[
        int, typer.Option(help="Steps at first that train the image side alone.")
    ] = 1000,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 1.2e-3,
    threads: Threads = 1,
) -> None:
    """Trains from scratch on renders, or goes on with drawn pictures mixed in."""
    import torch

    from pipeline.miniature.loop import Budget
    from pipeline.miniature.verifier_data import drawn as read_drawn
    from pipeline.miniature.verifier_data import rendered
    from pipeline.miniature.verifier_training import (
        Settings,
        calibrate,
        new_network,
        save,
    )
    from pipeline.miniature.verifier_training import train as run
    from pipeline.verifier.network import ViltVerifier

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    network = ViltVerifier.from_pretrained(start) if start else new_network()
    torch.nn.Module.to(network, torch.float32)
    pools = [rendered(seed, renders, cache)]
    if drawn is not None:
        pools.append(read_drawn(drawn, keep=range(7)))
    settings = Settings(
        seed=seed,
        look_steps=0 if start else look_steps,
        learning_rate=learning_rate,
        drawn_share=0.25 if drawn is not None else 0.0,
    )
    run(network, pools, settings, Budget(minutes, steps), work / "checkpoint.pt", resume)
    apart = read_drawn(drawn, keep=range(7, 10)) if drawn else rendered(seed + 1, 2000, cache)
    calibrate(network, apart, seed)
    save(network, out)


@app.command()
def draw(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    seed: Seed = 21,
    count: Annotated[
        int, typer.Option(help="Pictures to draw, each of a prompt of its own.")
    ] = 1000,
    held_out: Annotated[bool, typer.Option(help="Of prompts that nothing was trained on.")] = False,
    base: Annotated[Path, typer.Option(help="Folder of the pipeline.")] = WEIGHTS / "base",
    threads: Threads = 1,
) -> None:
    """Draws pictures by the base model, for training or for measuring."""
    import torch

    from pipeline.miniature.verifier_drawn import draw_prompts

    torch.set_num_threads(threads)
    draw_prompts(out, base, seed, count, held_out)


@app.command()
def label(
    folder: Annotated[Path, typer.Argument(help="Folder that `draw` wrote.")],
    teacher: Annotated[
        Path, typer.Option(help="A judge trained with a seed of its own, not the judge itself.")
    ],
    threads: Threads = 1,
) -> None:
    """Writes what a teacher sees in drawn pictures beside them, for training."""
    import torch

    from pipeline.miniature.judge import load_judge
    from pipeline.miniature.verifier_drawn import label_drawn

    torch.set_num_threads(threads)
    label_drawn(folder, load_judge(teacher))


@app.command()
def measure(
    folder: Annotated[Path, typer.Argument(help="The verifier's folder.")],
    seed: Seed = 5,
    count: Annotated[int, typer.Option(help="Renders to judge.")] = 1000,
    drawn: Annotated[
        Path | None, typer.Option(help="Folder that `draw --held-out` wrote, judged as well.")
    ] = None,
    judge: Annotated[Path, typer.Option(help="The judge that is right.")] = WEIGHTS / "judge",
    eye: Annotated[
        Path | None, typer.Option(help="Pictures that `sheet` wrote and people labelled.")
    ] = None,
    labels: Annotated[Path, typer.Option(help="Their labels.")] = WEIGHTS / "eye_labels.jsonl",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here as well.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Prints how good a verifier is: on held-out renders, drawn pictures, and by eye."""
    import torch

    from pipeline.miniature.judge import load_judge
    from pipeline.miniature.verifier_measure import by_eye, load, on_drawn, on_renders

    torch.set_num_threads(threads)
    verifier = load(folder)
    tables = {}
    if count:
        tables["held-out renders, by exact truth"] = on_renders(verifier, seed, count)
    if drawn is not None:
        tables["drawn pictures of held-out prompts, by the judge"] = on_drawn(
            verifier, load_judge(judge), drawn
        )
    if eye is not None:
        tables["drawn pictures, by eye"] = by_eye(verifier, labels, eye)
    for title, table in tables.items():
        typer.echo(title)
        for name, value in table.items():
            typer.echo(f"  {name:34} {value:.3f}")
    if json_file is not None:
        json_file.write_text(json.dumps(tables, indent=2) + "\n")
