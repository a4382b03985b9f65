"""`ppv doctor`: what works here, and what to do about what does not."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from pipeline.errors import InputError, ModelError, PpvError, ServiceError
from workers.cli import options

if TYPE_CHECKING:
    from workers.broker import Broker

_REFUSALS_SHOWN = 5

Check = tuple[str, Callable[[], str]]


def doctor(set_: options.Set = None) -> None:
    """Check broker, store, models, GPU and key, and say what to do about each that fails.

    The store check writes, reads and deletes an object. Exits like any command: 2 for something
    wrong in the configuration, 3 for a service that cannot be reached.
    """
    from workers.settings import settings

    settings()  # a wrong configuration ends here, in one line
    worst = 0
    for name, check in _checks():
        try:
            print(f"ok    {name}: {check()}")
        except PpvError as error:
            worst = max(worst, 3 if isinstance(error, ServiceError) else 2)
            print(f"FAIL  {name}: {error}")
    raise typer.Exit(worst)


def _checks() -> Iterator[Check]:
    yield "broker", _broker
    yield "store", _store
    yield "proposer", lambda: _model("proposer")
    yield "verifier", lambda: _model("verifier")
    yield "device", _device
    yield "prompter", _prompter


def _broker() -> str:
    from workers.cli.session import session

    with session() as here:
        here.broker.ping()
        kind = "embedded" if here.children else "answers"
        return f"{here.broker.addresses} ({kind}){_refused(here.broker)}"


def _refused(broker: "Broker") -> str:
    """What workers refused last, a line each."""
    from workers.refusal import Refusals

    refusals = Refusals(broker)
    if not (count := refusals.count()):
        return ""
    latest = (
        f"\n        {each.at} {each.queue or '?'}: {each.reason}"
        for each in refusals.latest(_REFUSALS_SHOWN)
    )
    return f"\n      workers refused {count} messages, the last ones:{''.join(latest)}"


def _store() -> str:
    from storage.objects import check_use
    from workers.cli.session import open_for_reading

    with open_for_reading() as store:
        check_use(store)
        return f"{store.address} (wrote, read and deleted an object)"


def _model(stage: str) -> str:
    from pipeline.models import fingerprint
    from workers.settings import settings

    if stage == "proposer":
        ref = fingerprint(settings().proposer.model, "base")
    else:
        ref = fingerprint(settings().verifier.model, "verifier")
    return f"{ref.name} ({ref.weights[:19]})"


def _device() -> str:
    try:
        import torch
    except ModuleNotFoundError:
        raise ModelError(
            "no torch is installed here: prompts can be made, not drawn or judged"
        ) from None

    from pipeline.devices import device_of, dtype_of
    from workers.settings import settings

    config = settings().proposer
    device = device_of(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {dtype_of(config.dtype, device)}".replace("torch.", "")


def _prompter() -> str:
    from pipeline.taxonomy import load_taxonomy
    from workers.settings import settings

    config = settings()
    prompter, taxonomy = config.prompter, load_taxonomy(config.prompter.taxonomy)
    if prompter.kind != "openai":
        return f"{prompter.kind}, taxonomy {taxonomy.name}"
    from pipeline.prompter.endpoint import Endpoint
    from pipeline.prompter.instructions import load_instructions
    from pipeline.prompter.prices import load_price

    instructions = load_instructions(prompter.instructions)
    price = load_price(config.endpoint.prices, prompter.model)
    endpoint = Endpoint(prompter, config.endpoint.timeout_s)
    known = endpoint.models()
    if known and not any(name in (prompter.model, f"{prompter.model}:latest") for name in known):
        raise InputError(f"{endpoint.address} has no model {prompter.model!r}: set prompter.model")
    cost = f"${price.input:g} and ${price.output:g} a million" if price else "price not known"
    return (
        f"openai {prompter.model} at {endpoint.address} ({cost}), taxonomy {taxonomy.name}, "
        f"instructions {instructions.name}"
    )
