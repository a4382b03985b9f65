"""`ppv train finetune`: a proposer that has learned from a dataset."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workers.cli import options
from workers.cli.training import carry_out, hush

if TYPE_CHECKING:
    from pipeline.training.captioned import Dataset
    from storage.objects import ObjectStore


def finetune(
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME@VERSION|DIR",
            help="One of the store's, or a folder that `ppv export` wrote.",
        ),
    ],
    to: Annotated[Path, typer.Option(help="Folder for what is trained, its card and its page.")],
    name: Annotated[
        str | None,
        typer.Option(
            help="What runs will call it in the store's models; the dataset's name by default."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="What is trained: a folder or hub id; by default proposer.model."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Settings: a YAML file, or the name of one that ships.")
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="NAME@VERSION|DIR",
            help="Pictures like those that the base has learned from, so that it forgets nothing.",
        ),
    ] = None,
    replay_share: Annotated[float | None, typer.Option(help="Of the batches.")] = None,
    caption_dropout: Annotated[
        float | None, typer.Option(help="Share of captions left out, for guidance.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the optimizer.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="On each device.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of the adapter.")] = None,
    method: Annotated[
        Literal["lora", "full"] | None, typer.Option(help="An adapter, or all weights.")
    ] = None,
    text_encoder: Annotated[
        bool | None, typer.Option("--text-encoder", help="Train the text encoders, too.")
    ] = None,
    mixed_precision: Annotated[
        Literal["auto", "no", "fp16", "bf16"] | None,
        typer.Option(help="auto: bf16 where a GPU has it."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory, more time.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and noise.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where encoded pictures are kept; state_dir by default.")
    ] = None,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Fine-tune a proposer on a dataset of accepted pictures, by an adapter or as a whole.

    It lands in the store's models, from where runs draw with it: --set proposer.adapter=NAME.
    The same call again goes on where the last one stopped. On several GPUs: accelerate launch
    $(which ppv) train ...
    """
    from pipeline.models import fingerprint
    from pipeline.specialists import check_model_name
    from workers.cli.session import open_for_reading
    from workers.settings import settings

    here = settings()
    known_as = check_model_name(name or Path(dataset).name.partition("@")[0])
    ref = fingerprint(base or here.proposer.model, "base")
    with open_for_reading() as store:  # one that is away ends this before hours are spent
        learned = _dataset(dataset, store)
        replayed = _dataset(replay, store) if replay else None

    hush()
    from pipeline.training.finetune import train
    from pipeline.training.finetune_plan import DEFAULT_RECIPE, FinetuneConfig, plan_finetuning
    from pipeline.training.plans import configured

    config = configured(
        FinetuneConfig,
        recipe or DEFAULT_RECIPE,
        {
            "method": method,
            "text_encoder": text_encoder,
            "gradient_checkpointing": gradient_checkpointing,
            "caption_dropout": caption_dropout,
            "replay_share": replay_share,
            "lora.rank": rank,
            "loop.steps": steps,
            "loop.batch_size": batch_size,
            "loop.learning_rate": learning_rate,
            "loop.mixed_precision": mixed_precision,
            "loop.seed": seed,
        },
        here.proposer.sampler,
    )
    plan = plan_finetuning(learned, ref, config, replayed)
    cpu = here.proposer.device == "cpu"
    carry_out(
        partial(train, plan, cache=cache or here.state_dir, cpu=cpu),
        known_as,
        to,
        known_as,
        as_json=as_json,
    )


def _dataset(name: str, store: "ObjectStore") -> "Dataset":
    """A folder, or one of the store's, brought here; checked.

    Raises InputError for one that is not there, or not what was frozen.
    """
    from pipeline.training.captioned import open_dataset
    from workers.datasets import bring
    from workers.settings import settings

    if Path(name).is_dir() or Path(name).name != name:
        return open_dataset(Path(name))
    folder, reference = bring(name, store, settings().state_dir / "datasets")
    return open_dataset(folder, reference)
