"""`ppv train`: make models of one's own from pictures."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from workers.cli import options
from workers.cli.train_finetune import finetune
from workers.cli.train_verifier import verifier
from workers.cli.training import carry_out, hush

train = typer.Typer(help="Train models from pictures.", no_args_is_help=True)
train.command()(finetune)
train.command()(verifier)


@train.command()
def proposer(
    to: Annotated[Path, typer.Option(help="Folder for the adapter, its card and its page.")],
    category: Annotated[
        str | None, typer.Option(help="The hand-pose category, of the configured taxonomy.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What runs will call it in the store's models; by default its category. "
            "With --all: what stands before each category."
        ),
    ] = None,
    instances: Annotated[
        Path | None,
        typer.Option(help="Folder of its pictures; NAME.txt beside a picture is its caption."),
    ] = None,
    all_: Annotated[
        Path | None,
        typer.Option("--all", metavar="DIR", help="A folder of pictures for each category in DIR."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="What is trained: a folder or hub id; by default proposer.model."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Settings: a YAML file, or the name of one that ships.")
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
    token: Annotated[str | None, typer.Option(help='A rare word; "sks" by default.')] = None,
    instance_prompt: Annotated[
        str | None,
        typer.Option(help="May hold {token}, {action}, {category} and {caption}."),
    ] = None,
    class_prompt: Annotated[
        list[str] | None, typer.Option(help="What must not be forgotten; may be repeated.")
    ] = None,
    class_images: Annotated[int | None, typer.Option(min=1, help="How many to draw.")] = None,
    prior_loss_weight: Annotated[
        float | None, typer.Option(min=0, help="Of the class images; 0: none.")
    ] = None,
    mixed_precision: Annotated[
        Literal["auto", "no", "fp16", "bf16"] | None,
        typer.Option(help="auto: bf16 where a GPU has it."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and noise.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where class images are kept; state_dir by default.")
    ] = None,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Train a specialist of one category by DreamBooth, or with --all one for each.

    It lands in the store's models, from where runs draw with it: --set proposer.route=specialist.
    The pictures are checked before any model is loaded. The same call again goes on where the last
    one stopped. On several GPUs: accelerate launch $(which ppv) train ...
    """
    from pipeline.errors import InputError
    from pipeline.models import fingerprint
    from pipeline.taxonomy import load_taxonomy
    from pipeline.training.categories import category_folders, check_category
    from workers.cli.session import open_for_reading
    from workers.settings import settings

    if all_ is None and (category is None or instances is None):
        raise InputError("give --category and --instances, or --all with a folder of folders")
    if all_ is not None and (category is not None or instances is not None):
        raise InputError("--all takes the place of --category and --instances: give one or other")
    here = settings()
    taxonomy = load_taxonomy(here.prompter.taxonomy)
    if all_ is not None:
        folders = category_folders(all_, taxonomy)
    else:
        assert category is not None and instances is not None
        folders = {check_category(category, taxonomy): instances}
    ref = fingerprint(base or here.proposer.model, "base")

    hush()
    from pipeline.training.dreambooth import train
    from pipeline.training.dreambooth_plan import DreamBoothConfig, plan_training
    from pipeline.training.plans import configured

    config = configured(
        DreamBoothConfig,
        recipe,
        {
            "method": method,
            "text_encoder": text_encoder,
            "token": token,
            "instance_prompt": instance_prompt,
            "class_prompts": class_prompt or None,
            "class_images": class_images,
            "prior_loss_weight": prior_loss_weight,
            "gradient_checkpointing": gradient_checkpointing,
            "lora.rank": rank,
            "loop.steps": steps,
            "loop.batch_size": batch_size,
            "loop.learning_rate": learning_rate,
            "loop.mixed_precision": mixed_precision,
            "loop.seed": seed,
        },
        here.proposer.sampler,
    )
    plans = [plan_training(n, path, taxonomy, ref, config) for n, path in folders.items()]
    names = [_name(plan.category, name, many=all_ is not None) for plan in plans]
    with open_for_reading():
        pass  # a store that is away ends this before hours are spent
    for plan, each in zip(plans, names, strict=True):
        carry_out(
            partial(train, plan, cache=cache or here.state_dir, cpu=here.proposer.device == "cpu"),
            each,
            to / plan.category if all_ is not None else to,
            plan.category,
            plan.instances.warnings,
            as_json=as_json,
        )


def _name(category: str, name: str | None, *, many: bool) -> str:
    from pipeline.specialists import check_model_name

    return check_model_name(f"{name}-{category}" if name and many else name or category)
