"""What the propose worker adds to a bare diffusers loop, and what adapters cost.

    python -m bench.proposer [--json FILE]

1. worker_vs_loop: one propose worker on Redis and S3, as `ppv run` starts it, beside a loop that
   calls the diffusers pipeline and puts its pictures into the same store; same model, prompts,
   batch and steps. A loop that keeps nothing stands beside them.
2. adapters_vs_one: the same worker, six specialists in random order as prompts come, cut into
   batches by adapter, beside one specialist alone.
3. In this process: batches that mix long and short prompts beside short ones; and the three ways
   to draw with many adapters: switched in the weights (what the product does), switched in peft's
   layers, and mixed within a batch by peft, one adapter a picture.

What is compared runs in turns, forwards and backwards by turns, and each figure is of all turns
together, so that a drift of the machine's speed falls on all sides alike; the ratio of each turn is
printed beside it, for on a shared machine they differ. Models are loaded and warm before a clock
starts.
"""

import io
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.config import ProposerConfig, Run
from pipeline.models import folder_of
from pipeline.specialists import shipped
from pipeline.taxonomy import load_taxonomy
from pipeline.types import Adapter, DetailedPrompt, ProposalBatch, Sampler, digest
from storage.objects import ObjectStore
from workers import canvas, dispatch
from workers.embedded import broker_of, services, store_of
from workers.fleet import celery_worker
from workers.settings import Settings, load_settings

BATCH = 32
PROMPTS_AT_ONCE = 64  # the detailed prompts of one prompt message
LONG = ", with every crease of the skin and each nail to be seen, in plain and even light"

out = Console()


def main(
    images: Annotated[int, typer.Option(help="Of each turn.")] = 128,
    turns: Annotated[int, typer.Option(help="Of each side of a comparison.")] = 6,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measure, print a table, and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PPV_STATE_DIR"] = folder
        os.environ["PPV_PROPOSER__BATCH_SIZE"] = str(BATCH)
        settings = load_settings()
        with services(settings), worker(settings):
            rates = beside_the_loop(settings, images, turns)
            rates |= many_adapters(settings, images, turns)
        rates |= in_process(settings.proposer, images, turns)
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "worker_vs_loop": rates["worker"] / rates["loop"],
        "worker_vs_drawing_alone": rates["worker"] / rates["loop that keeps nothing"],
        "adapters_vs_one": rates["six adapters"] / rates["one adapter"],
        "mixed_lengths_vs_short": rates["long and short prompts"] / rates["short prompts"],
        "switched_vs_mixed": rates["switched in the weights"] / rates["mixed within a batch"],
        "images_per_s": rates,
    }
    show(figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


@contextmanager
def worker(settings: Settings) -> Iterator[None]:
    """A propose worker; nobody verifies what it draws."""
    with celery_worker(settings, "propose"):
        yield


def beside_the_loop(settings: Settings, images: int, turns: int) -> dict[str, float]:
    """Images a second of the loop and of the worker, with the base alone."""
    pipe = bare_pipeline(settings.proposer.model)
    prompts = _prompts(images, ["power"])
    sampler = settings.proposer.sampler
    store = store_of(settings)
    _loop(pipe, prompts[:BATCH], sampler, store)
    _through_the_worker(settings, "warm-up", prompts[:BATCH])
    return in_turns(
        images,
        turns,
        {
            "loop that keeps nothing": lambda turn: _loop(pipe, prompts, sampler, None),
            "loop": lambda turn: _loop(pipe, prompts, sampler, store),
            "worker": lambda turn: _through_the_worker(settings, f"loop-{turn}", prompts),
        },
    )


def many_adapters(settings: Settings, images: int, turns: int) -> dict[str, float]:
    """Images a second of the worker with one specialist, and with six in random order."""
    names = list(load_taxonomy("miniature").categories)
    one, six = _prompts(images, names[:1]), _prompts(images, names)
    routed = settings.model_copy(
        update={"proposer": settings.proposer.model_copy(update={"route": "specialist"})}
    )
    _through_the_worker(routed, "warm-up-six", six[:PROMPTS_AT_ONCE])
    return in_turns(
        images,
        turns,
        {
            "one adapter": lambda turn: _through_the_worker(routed, f"one-{turn}", one),
            "six adapters": lambda turn: _through_the_worker(routed, f"six-{turn}", six),
        },
    )


def in_process(config: ProposerConfig, images: int, turns: int) -> dict[str, float]:
    """Images a second of one process: prompts of mixed lengths, and ways to change adapters."""
    from pipeline.models import fingerprint
    from pipeline.proposer.diffusion import DiffusionProposer

    base = fingerprint(config.model, "base")
    folders = {each.weights: folder for each, folder in shipped()}
    adapters = [each.adapter(each.category) for each, _ in shipped()]
    proposer = DiffusionProposer.load(config, base, lambda adapter: folders[adapter.weights])
    layers = bare_pipeline(config.model)
    for adapter in adapters:
        layers.load_lora_weights(folders[adapter.weights], adapter_name=adapter.name)
    prompts = _prompts(images, [adapter.name for adapter in adapters])
    texts = [prompt.text for prompt in prompts]
    mixed = [text + LONG if n % 2 else text for n, text in enumerate(texts)]
    sampler = config.sampler

    def draw(texts: Sequence[str], adapter_of: Callable[[int], Adapter | None]) -> None:
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            seeds = range(start, start + len(some))
            proposer.draw(some, seeds, sampler, adapter_of(start // BATCH))

    def of_batch(number: int) -> Adapter:
        return adapters[number % len(adapters)]

    def in_layers(turn: int) -> None:
        for number, start in enumerate(range(0, images, BATCH)):
            layers.set_adapters(of_batch(number).name)
            _bare(layers, texts[start : start + BATCH], start, sampler)

    def within_a_batch(turn: int) -> None:
        for start in range(0, images, BATCH):
            some = prompts[start : start + BATCH]
            with mixing(layers.unet, [prompt.category for prompt in some]):
                _bare(layers, [prompt.text for prompt in some], start, sampler)

    draw(mixed[:BATCH], of_batch)
    _bare(layers, texts[:BATCH], 0, sampler)
    rates = in_turns(
        images,
        turns,
        {
            "short prompts": lambda turn: draw(texts, lambda number: None),
            "long and short prompts": lambda turn: draw(mixed, lambda number: None),
            "switched in the weights": lambda turn: draw(texts, of_batch),
            "switched in peft's layers": in_layers,
            "mixed within a batch": within_a_batch,
        },
    )
    effort = proposer.effort
    out.print(
        f"in this process: {1000 * effort.switches / effort.images:.0f} switches and "
        f"{1000 * effort.recompiles / effort.images:.0f} recompiles per 1,000 images, at one "
        f"adapter a batch of {BATCH}; a switch takes {_switch_ms(proposer, adapters):.1f} ms"
    )
    return rates


def in_turns(
    images: int, turns: int, sides: dict[str, Callable[[int], object]]
) -> dict[str, float]:
    """Images a second of each side, all of whose turns are taken together."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides) if turn % 2 == 0 else reversed(sides):
            started = time.monotonic()
            sides[name](turn)
            seconds[name].append(time.monotonic() - started)
    rates = {name: images * turns / sum(each) for name, each in seconds.items()}
    first = seconds[next(iter(sides))]
    for name, rate in rates.items():
        ratios = [one / other for one, other in zip(first, seconds[name], strict=True)]
        out.print(
            f"{name}: {rate:.2f} images/s; of the first side's rate, turn by turn, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    return rates


def bare_pipeline(model: str) -> Any:
    """As diffusers' own documentation loads it."""
    import diffusers.utils.logging
    import torch
    import transformers.utils.logging
    from diffusers import AutoPipelineForText2Image

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    folder = folder_of(model, "base")
    pipe: Any = AutoPipelineForText2Image.from_pretrained(
        folder or model, use_safetensors=True, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def mixing(unet: Any, names: Sequence[str]) -> Iterator[None]:
    """Has each picture of a batch drawn with its own adapter, as peft's layers can."""
    from peft.tuners.lora import LoraLayer

    twice = [*names, *names]  # guidance: without the prompts, then with them

    def told(module: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        return arguments, keywords | {"adapter_names": twice}

    # peft chooses by sample only in evaluation, and with every adapter active
    unet.set_adapters(sorted(set(names)))
    hooks = [
        module.register_forward_pre_hook(told, with_kwargs=True)
        for module in unet.modules()
        if isinstance(module, LoraLayer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def show(figures: dict[str, Any]) -> None:
    table = Table("", "images/s", title=f"the propose worker, {figures['machine']}")
    for name, rate in figures["images_per_s"].items():
        table.add_row(name, f"{rate:.2f}")
    out.print(table)
    for name in (
        "worker_vs_loop",
        "worker_vs_drawing_alone",
        "adapters_vs_one",
        "mixed_lengths_vs_short",
        "switched_vs_mixed",
    ):
        out.print(f"{name} {figures[name]:.3f}")


def _switch_ms(proposer: Any, adapters: Sequence[Adapter]) -> float:
    """The median time of putting another adapter into the weights."""
    taken = []
    for number in range(5 * len(adapters)):
        started = time.monotonic()
        proposer.adapters.use(adapters[number % len(adapters)])
        taken.append(time.monotonic() - started)
    return 1000 * statistics.median(taken)


def _prompts(count: int, categories: Sequence[str]) -> list[DetailedPrompt]:
    """Detailed prompts of these categories in random order."""
    taxonomy, rng = load_taxonomy("miniature"), random.Random(1)
    prompts = []
    for number in range(count):
        category = rng.choice(categories)
        attributes = {name: rng.choice(list(of)) for name, of in taxonomy.attributes.items()}
        attributes["object"] = rng.choice(list(taxonomy.categories[category].objects))
        prompts.append(
            DetailedPrompt(
                id=digest([number, list(categories)]),
                base=f"a hand, number {number}",
                index=0,
                text=taxonomy.describe(category, attributes, number),
                category=category,
            )
        )
    return prompts


def _loop(
    pipe: Any, prompts: Sequence[DetailedPrompt], sampler: Sampler, store: ObjectStore | None
) -> None:
    for start in range(0, len(prompts), BATCH):
        texts = [prompt.text for prompt in prompts[start : start + BATCH]]
        images = _bare(pipe, texts, start, sampler)
        for number, image in enumerate(images, start):
            if store is not None:
                png = io.BytesIO()
                image.save(png, "PNG", compress_level=1)
                store.put(f"loop/{number}.png", png.getvalue())


def _bare(pipe: Any, texts: list[str], seed: int, sampler: Sampler) -> list[Image.Image]:
    import torch

    drawn: list[Image.Image] = pipe(
        texts,
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=sampler.guidance_scale,
        generator=[torch.Generator().manual_seed(seed + n) for n in range(len(texts))],
    ).images
    return drawn


def _through_the_worker(settings: Settings, name: str, prompts: list[DetailedPrompt]) -> None:
    """Sends them as prompt messages would, and waits until every picture is stored.

    That is so when the messages lie in the verify queue, where nobody takes them.
    """
    folder = dispatch.open_run(store_of(settings), broker_of(settings), settings, name)
    run = folder.read()
    batches = list(_batches(run, [_of_run(run, prompt) for prompt in prompts]))
    with closing(broker_of(settings)) as broker:
        waiting = broker.depths()["verify"]
        canvas.send_proposals(batches)
        while broker.depths()["verify"] < waiting + len(batches):
            time.sleep(0.02)
    stored = sum(1 for _ in folder.image_ids())
    if stored != len(prompts):
        raise SystemExit(f"{stored} pictures stored of {len(prompts)}: look into the worker's log")


def _of_run(run: Run, prompt: DetailedPrompt) -> DetailedPrompt:
    """By the id that the run gives it: workers refuse others."""
    id = DetailedPrompt.id_of(run.prompter_digest, prompt.base, prompt.index)
    return prompt.model_copy(update={"id": id})


def _batches(run: Run, prompts: list[DetailedPrompt]) -> Iterator[ProposalBatch]:
    """One picture of each prompt, cut as the prompt worker cuts them."""
    single = run.model_copy(
        update={"proposer": run.proposer.model_copy(update={"images_per_prompt": 1})}
    )
    for start in range(0, len(prompts), 2 * PROMPTS_AT_ONCE):
        yield from canvas.batches(single, prompts[start : start + 2 * PROMPTS_AT_ONCE])


if __name__ == "__main__":
    typer.run(main)
