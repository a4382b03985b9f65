"""Who draws a detailed prompt, and how its proposals are cut into batches."""

from collections import Counter
from typing import Any

import pytest

from pipeline.config import ProposerConfig, Run
from pipeline.errors import InputError
from pipeline.routing import check_routes, specialised, who_draws
from pipeline.taxonomy import load_taxonomy
from pipeline.types import Adapter, DetailedPrompt, Proposal, ProposerRef, digest
from tests.tiny import a_run
from workers.canvas import batches

TAXONOMY = load_taxonomy("miniature")


def config(route: Any = "base", **settings: Any) -> ProposerConfig:
    return ProposerConfig(route=route, **settings)


def run_of(route: Any, specialists: tuple[str, ...] = ("pinch", "hook"), **settings: Any) -> Run:
    """A run whose base has these specialists."""
    run = a_run(proposer=config(route, **settings))
    refs = [run.proposers[0]]
    for name in specialists:
        adapter = Adapter(name=name, weights=f"sha256:{digest(name) * 2}", category=name)
        refs.append(ProposerRef.of(run.proposers[0], adapter))
    return run.model_copy(update={"proposers": tuple(refs)})


def prompt(category: str, number: int = 0) -> DetailedPrompt:
    id = digest([category, number])
    return DetailedPrompt(id=id, base="a", index=0, text=f"{category} {number}", category=category)


def labels(run: Run, category: str, image: int = 0) -> list[str]:
    return [ref.label for ref in who_draws(run, prompt(category), image)]


def test_the_base_draws_all_unless_told_otherwise() -> None:
    assert labels(run_of("base", ()), "pinch") == ["base"]


def test_a_specialist_draws_its_own_category_and_the_base_what_has_none() -> None:
    run = run_of("specialist")
    assert labels(run, "pinch") == ["pinch"]
    assert labels(run, "hook") == ["hook"]
    assert labels(run, "power") == ["base"]
    assert run.proposals_per_prompt == 2


def test_the_ensemble_draws_everything_on_the_same_seeds() -> None:
    run = run_of("all")
    assert labels(run, "power") == ["base", "pinch", "hook"]
    assert run.proposals_per_prompt == 6
    proposals = [each for batch in batches(run, [prompt("power")]) for each in batch.proposals]
    assert len(proposals) == run.proposals_per_prompt
    seeds = Counter(each.seed for each in proposals)
    assert set(seeds.values()) == {3}


def test_shares_are_kept_and_fall_the_same_way_again() -> None:
    run = run_of({"base": 1, "specialist": 3})
    prompts = [prompt("pinch", n) for n in range(1000)]
    drawn = Counter(who_draws(run, each, image)[0].label for each in prompts for image in range(2))
    assert drawn == Counter(
        who_draws(run, each, image)[0].label for each in prompts for image in range(2)
    )
    assert sorted(drawn) == ["base", "pinch"]
    assert abs(drawn["base"] / 2000 - 0.25) < 0.04  # four standard errors


def test_a_share_may_name_another_categorys_specialist() -> None:
    run = run_of({"hook": 1, "base": 0})
    assert {labels(run, "power", image)[0] for image in range(20)} == {"hook"}
    assert specialised(config({"hook": 1, "pinch": 0}), TAXONOMY) == ["hook"]


@pytest.mark.parametrize(
    ("route", "specialists", "complaint"),
    [
        ({"pich": 1}, {}, "proposer.route names 'pich': did you mean 'pinch'"),
        ({"base": 0}, {}, "at least one share must be above 0"),
        ("specialist", {"hok": "x"}, "no category 'hok': did you mean 'hook'"),
    ],
)
def test_a_route_that_cannot_be_is_one_line(route: Any, specialists: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check_routes(config(route, specialists=specialists), TAXONOMY)


def test_batches_have_one_proposer_and_nearly_one_size() -> None:
    run = run_of("specialist", images_per_message=8, images_per_prompt=1)
    prompts = [prompt("pinch" if n % 3 else "hook", n) for n in range(51)]
    cut = list(batches(run, prompts))
    sizes = {label: [] for label in ("pinch", "hook")}  # type: dict[str, list[int]]
    for batch in cut:
        sizes[batch.proposer.label].append(len(batch.proposals))
        assert {each.prompt.category for each in batch.proposals} == {batch.proposer.label}
    assert sizes == {"pinch": [6, 7, 7, 7, 7], "hook": [5, 6, 6]}
    drawn = [each.prompt.id for batch in cut for each in batch.proposals]
    assert sorted(drawn) == sorted(each.id for each in prompts)


def test_another_adapter_token_or_scale_is_another_proposal() -> None:
    base, pinch, hook = run_of("all").proposers
    assert pinch.adapter
    refs = [base, pinch, hook]
    refs += [
        ProposerRef.of(base, pinch.adapter.model_copy(update={"token": "sks"})),
        ProposerRef.of(base, pinch.adapter.model_copy(update={"scale": 0.5})),
    ]
    sampler = run_of("all").proposer.sampler
    ids = {
        Proposal(prompt=prompt("pinch"), proposer=ref, seed=1, sampler=sampler).id for ref in refs
    }
    assert len(ids) == len(refs)
