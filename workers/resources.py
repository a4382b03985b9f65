"""What a worker works with: store, broker and models, each loaded once, when first needed."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import ProposerConfig, Run, VerifierConfig
from pipeline.types import Adapter, ModelRef
from storage.objects import ObjectStore
from storage.patient import PatientStore, patiently
from storage.runs import RunFolder
from workers import metrics, registry
from workers.broker import Broker
from workers.embedded import broker_of, store_of
from workers.flight import Flight
from workers.settings import settings

if TYPE_CHECKING:
    from pipeline.proposer.diffusion import Proposer
    from pipeline.verifier.opinions import Opinion
    from pipeline.verifier.vilt import Verifier
    from workers.describing import Describer

STORE_PATIENCE_S = 60.0  # after which a message is handed back, to be sent again later


@lru_cache(maxsize=1)
def broker() -> Broker:
    return broker_of(settings())


@lru_cache(maxsize=1)
def store() -> ObjectStore:
    """Waited for in place, but not until the message in hand is taken for a dead worker's."""
    patience_s = min(STORE_PATIENCE_S, settings().dispatch.visibility_timeout_s / 2)
    return PatientStore(patiently(lambda: store_of(settings()), patience_s), patience_s)


@lru_cache(maxsize=64)
def folder(run: str) -> RunFolder:
    return RunFolder(store(), run)


@lru_cache(maxsize=64)
def run(name: str) -> Run:
    """A run's configuration; frozen, so it is read once."""
    config = folder(name).reread()
    metrics.expect(config)
    return config


@lru_cache(maxsize=64)
def flight(run: str) -> Flight:
    return Flight(broker(), run)


def describer(name: str) -> "Describer":
    """Made anew when what is not frozen of a run changes: how it may use its endpoint."""
    now = folder(name).read()
    limits = now.model_dump_json(include={"endpoint", "price", "retried"})
    return _describer(name, now.prompter_digest, limits)


@lru_cache(maxsize=16)
def _describer(name: str, prompter: str, limits: str) -> "Describer":
    from workers.describing import Describer

    return Describer(folder(name), folder(name).read(), broker())


@lru_cache(maxsize=1)
def threads() -> ThreadPoolExecutor:
    """For reads and writes that wait on the store.

    One a core: beyond that they only take turns with the model's own thread on the GIL.
    """
    return ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2))


@lru_cache(maxsize=1)
def askers() -> ThreadPoolExecutor:
    """For base prompts that wait on an endpoint: all of a message at once."""
    return ThreadPoolExecutor(max_workers=settings().dispatch.bases_per_message)


# Models are kept one at a time: two would hardly fit on one GPU.


def proposer(config: ProposerConfig, base: ModelRef) -> "Proposer":
    """The same one for runs that differ only in who draws what, and how much of it."""
    others = {"adapter", "route", "specialists", "images_per_prompt"}
    return _proposer(config.model_dump_json(exclude=others), base)


@lru_cache(maxsize=1)
def _proposer(config: str, base: ModelRef) -> "Proposer":
    from pipeline.proposer.diffusion import DiffusionProposer

    quiet()
    state = settings().state_dir
    return DiffusionProposer.load(
        ProposerConfig.model_validate_json(config), base, adapter_folder, state / "batch-sizes.json"
    )


def warm_up() -> None:
    """Load and compile the configured proposer, which runs under these settings will ask for."""
    from pipeline.models import fingerprint

    config = settings().proposer
    proposer(config, fingerprint(config.model, "base")).warm_up(config.sampler)


def adapter_folder(adapter: Adapter) -> Path:
    """Where an adapter's files are on this machine; fetched from the store if need be."""
    return registry.folder_of(adapter, store(), settings().state_dir / "models")


def verifier(config: VerifierConfig, ref: ModelRef) -> "Verifier":
    """The same one for runs that differ only in what they accept."""
    others = {"thresholds", "opinions", "accept_if"}
    return _verifier(config.model_dump_json(exclude=others), ref)


@lru_cache(maxsize=1)
def _verifier(config: str, ref: ModelRef) -> "Verifier":
    from pipeline.verifier.vilt import Verifier

    quiet()
    return Verifier.load(VerifierConfig.model_validate_json(config), ref)


def opinions(name: str) -> "list[Opinion]":
    """Those that a run asks for beside its verifier's."""
    config, refs = run(name).verifier, run(name).opinion_refs
    found: list[Opinion] = []
    if config.opinions.models:
        used = {"device", "dtype", "opinions"}
        found += _opinion_models(
            config.model_dump_json(include=used), tuple(sorted(refs.items(), key=lambda of: of[0]))
        )
    if config.opinions.vision:
        now = folder(name).read()
        found.append(_vision(name, now.model_dump_json(include={"endpoint", *_PAID})))
    return found


_PAID = {"vision_price", "retried"}  # of a run, what is not frozen


@lru_cache(maxsize=1)
def _opinion_models(config: str, refs: tuple[tuple[str, ModelRef], ...]) -> "list[Opinion]":
    from pipeline.verifier.opinions import load_models

    quiet()
    return load_models(VerifierConfig.model_validate_json(config), dict(refs))


@lru_cache(maxsize=16)
def _vision(name: str, limits: str) -> "Opinion":
    """Made anew when what is not frozen of a run changes."""
    from workers.seeing import vision_of

    return vision_of(folder(name), folder(name).read(), broker())


def quiet() -> None:
    """Keep loading bars and advice out of a worker's log; what is cut off is on record anyway."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
