"""Which adapter a name stands for, and where its files are on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import ProposerConfig
from pipeline.errors import ModelError
from pipeline.models import fingerprint
from pipeline.routing import check_routes, specialised
from pipeline.shipped import nearest
from pipeline.specialists import Specialist, check_model_name, shipped
from pipeline.taxonomy import Taxonomy
from pipeline.training.card import CARD
from pipeline.types import BASE, Adapter, ModelRef, ProposerRef
from storage.models import Models
from storage.objects import ObjectStore


def proposers_of(
    config: ProposerConfig, taxonomy: Taxonomy, store: ObjectStore
) -> tuple[ProposerRef, ...]:
    """The base, with its own adapter if there is one, and after it every specialist that may draw
    under the configured route.

    Raises InputError for a route that cannot be, ModelError for a specialist that is not there.
    """
    check_routes(config, taxonomy)
    base = fingerprint(config.model, BASE)
    own = find(config.adapter, base, store).adapter("") if config.adapter else None
    refs = [ProposerRef.of(base, own)]
    weights: set[str] = set()
    for category in specialised(config, taxonomy):
        name = config.specialists.get(category, category)
        if name == BASE:
            continue
        adapter = find(name, base, store, category).adapter(category)
        if config.route != "all" or adapter.weights not in weights:
            refs.append(ProposerRef.of(base, adapter))
        weights.add(adapter.weights)
    return tuple(refs)


def find(reference: str, base: ModelRef, store: ObjectStore, category: str = "") -> Specialist:
    """NAME@VERSION, or the newest NAME that this base can draw with; those of the store first.

    category: whose specialist it is to be; "": nobody's. Raises ModelError with what there is
    instead.
    """
    setting = f"proposer.specialists.{category}" if category else "proposer.adapter"
    name, _, version = reference.partition("@")
    if "/" in reference or name.endswith(".safetensors"):
        raise ModelError(
            f"{setting} is the path {reference!r}, which no other machine "
            f"has: ppv models add {reference} --name NAME, and give that name"
        )
    check_model_name(name)
    there = list(_all(name, store))
    chosen = [each for each in there if not version or each.version.startswith(version)]
    for each in chosen:
        if each.suits(base):
            return each
    if chosen:
        other = chosen[0].base
        assert other is not None
        raise ModelError(
            f"{chosen[0].reference} was trained on {other.name!r} ({other.weights[:19]}), and the "
            f"base here is {base.name!r} ({base.weights[:19]}): train it on this one, or set "
            f"{setting} to another"
        )
    if there:
        versions = ", ".join(each.version for each in there)
        raise ModelError(f"no version {version!r} of the model {name!r}: there are {versions}")
    known = sorted({*Models(store).names(), *(specialist.name for specialist, _ in shipped())})
    others = f" ({nearest(name, known)})" if known else ""
    if not category:
        raise ModelError(
            f"no model {name!r}{others}: train one (ppv train finetune), add one (ppv models add), "
            "or leave proposer.adapter empty"
        )
    raise ModelError(
        f"no specialist {name!r} for category {category!r}{others}: train one (ppv train proposer "
        f"--category {category}), add one (ppv models add), or set "
        f"proposer.specialists.{category}={BASE}"
    )


def folder_of(adapter: Adapter, store: ObjectStore, cache: Path) -> Path:
    """The folder of an adapter's files on this machine, fetched if they are not there yet.

    Raises ModelNotHere if they are nowhere, StoreError if the store does not answer.
    """
    for specialist, folder in shipped():
        if specialist.weights == adapter.weights:
            return folder
    to = cache / adapter.name / adapter.version
    if not to.is_dir():
        to.parent.mkdir(parents=True, exist_ok=True)
        Models(store).fetch(adapter, to)
    return to


def card_of(adapter: Adapter, store: ObjectStore) -> dict[str, Any]:
    """What its training wrote of it; nothing of an adapter that has no card, or a broken one."""
    ours = [folder for each, folder in shipped() if each.weights == adapter.weights]
    file = ours[0] / CARD if ours else None
    data = file.read_bytes() if file and file.exists() else Models(store).card(adapter)
    try:
        card = json.loads(data or b"{}")
    except ValueError:
        return {}
    return card if isinstance(card, dict) else {}


def _all(name: str, store: ObjectStore) -> Iterator[Specialist]:
    yield from Models(store).versions(name)
    yield from (specialist for specialist, _ in shipped() if specialist.name == name)
