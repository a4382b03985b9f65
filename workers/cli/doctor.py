"""`ppv doctor`: what works here, and what to do about what does not."""

import os
import secrets
from collections.abc import Callable, Iterator

import typer

from pipeline.errors import InputError, ModelError, PpvError, ServiceError
from workers.cli import options

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
        return f"{here.broker.address} ({kind})"


def _store() -> str:
    from workers.cli.session import open_for_reading

    with open_for_reading() as store:
        key, data = f"doctor/{secrets.token_hex(8)}", secrets.token_bytes(4096)
        store.put(key, data)
        whole = store.get(key) == data
        store.delete(key)
        if not whole:
            raise ServiceError(f"{store.address} gave back other bytes than were written")
        if store.exists(key):
            raise ServiceError(f"{store.address} did not delete {key!r}: check its permissions")
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
    import torch

    from pipeline.proposer.diffusion import device_of, dtype_of
    from workers.settings import settings

    config = settings().proposer
    device = device_of(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"proposer.device is {config.device!r}, but torch {torch.__version__} sees no GPU: "
            "install a CUDA build of torch, or set proposer.device=cpu"
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {dtype_of(config.dtype, device)}".replace("torch.", "")


def _prompter() -> str:
    from pipeline.taxonomy import load_taxonomy
    from workers.settings import settings

    config = settings().prompter
    taxonomy = load_taxonomy(config.taxonomy)
    if config.kind == "openai":
        if not os.environ.get("OPENAI_API_KEY"):
            raise InputError("the openai prompter needs a key: set OPENAI_API_KEY")
        return f"openai {_openai_model(config.model)}, taxonomy {taxonomy.name}"
    return f"grammar, taxonomy {taxonomy.name}"


def _openai_model(model: str) -> str:
    """The model, if the endpoint has it."""
    import openai

    client = openai.OpenAI(timeout=10, max_retries=0)
    try:
        known = [each.id for each in client.models.list()]
    except openai.AuthenticationError:
        raise InputError(f"{client.base_url} refuses the key: check OPENAI_API_KEY") from None
    except openai.OpenAIError as error:
        raise ServiceError(f"no answer from {client.base_url}: {error}") from None
    if known and model not in known:
        raise InputError(f"{client.base_url} has no model {model!r}: set prompter.model")
    return f"{model} at {client.base_url}"
