"""The files that shape a language model's work: what it is told, and what it costs."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.prompter.instructions import fill, load_instructions
from pipeline.prompter.prices import Price, load_price, usage_of
from pipeline.types import Usage

PRICES = """
batch_discount: 0.25
models:
  small: { input: 1, output: 4 }
  small-2: { input: 2, output: 8 }
  free: { input: 0, output: 0 }
"""

INSTRUCTIONS = """
name: mine
version: 3
system: "Write about {categories}."
shorter: "{tokens} of {limit}"
different: again
invalid: "{reason}"
"""


def write(tmp_path: Path, content: str) -> str:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    return str(path)


# What it is told


def test_the_shipped_instructions_have_room_for_what_is_filled_in() -> None:
    shipped = load_instructions("default")
    assert "{categories}" in shipped.system
    assert "{tokens}" in shipped.shorter and "{limit}" in shipped.shorter
    assert "{reason}" in shipped.invalid


def test_instructions_of_ones_own_are_read(tmp_path: Path) -> None:
    assert load_instructions(write(tmp_path, INSTRUCTIONS)).version == 3


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ("different: again", "different: ''", "at different"),
        ("different: again\n", "", "at different"),
        ("version: 3", "version: 3\nsytem: x", "at sytem"),
        ("name: mine", "name: [", "cannot be read"),
        ("name: mine", "name: !!python/name:os.system", "cannot be read"),
    ],
)
def test_instructions_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, right: str, wrong: str, reason: str
) -> None:
    path = write(tmp_path, INSTRUCTIONS.replace(right, wrong))
    with pytest.raises(InputError) as refused:
        load_instructions(path)
    message = str(refused.value)
    assert reason in message and f"instructions {path!r}" in message
    assert len(message.splitlines()) == 1


def test_missing_instructions_name_those_that_ship() -> None:
    with pytest.raises(InputError, match=r"no instructions 'defalt': .*\(default\)"):
        load_instructions("defalt")


def test_a_filled_text_is_changed_nowhere_else() -> None:
    text = 'answer {"prompts": [{}]} with {words} words, {words}, {other}, {{words}}, %s {0}'
    filled = 'answer {"prompts": [{}]} with 25 words, 25, {other}, {25}, %s {0}'
    assert fill(text, words=25) == filled
    assert fill(text) == text
    assert fill(text, absent="x") == text


def test_what_is_filled_in_may_hold_braces() -> None:
    assert fill("because {reason}", reason="'{reason}' is no {object}") == (
        "because '{reason}' is no {object}"
    )


# What it costs


def test_a_price_is_for_a_million_tokens_and_less_in_a_batch() -> None:
    price = Price(input=2.0, output=8.0, batch_discount=0.25)
    assert price.of(500_000, 250_000) == pytest.approx(1.0 + 2.0)
    assert price.of(500_000, 250_000, batch=True) == pytest.approx(0.75 * 3.0)


def test_a_model_has_its_own_price_and_the_files_discount(tmp_path: Path) -> None:
    path = write(tmp_path, PRICES)
    assert load_price(path, "small") == Price(input=1, output=4, batch_discount=0.25)


def test_a_dated_snapshot_has_its_models_price() -> None:
    snapshot, model = load_price("default", "gpt-4o-mini-2024-07-18"), "gpt-4o-mini"
    assert snapshot is not None
    assert snapshot == load_price("default", model)
    assert snapshot != load_price("default", "gpt-4o")


def test_the_longest_name_that_begins_a_snapshot_wins(tmp_path: Path) -> None:
    path = write(tmp_path, PRICES.replace("small-2:", "small-2025:"))
    price = load_price(path, "small-2025-2026-01-01")
    assert price is not None and price.input == 2


@pytest.mark.parametrize("model", ["smaller", "small-large", "smal", "my-small", "Small", ""])
def test_an_unknown_model_has_no_price(tmp_path: Path, model: str) -> None:
    assert load_price(write(tmp_path, PRICES), model) is None


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ("input: 1", "input: -1", "at models.small.input"),
        ("input: 1", "input: .nan", "at models.small.input"),
        ("input: 1", "input: cheap", "at models.small.input"),
        ("0.25", "1.5", "at batch_discount"),
        ("models:", "modells:", "at modells: unknown; did you mean 'models'?"),
        ("input: 1", "input: [", "cannot be read"),
    ],
)
def test_prices_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, right: str, wrong: str, reason: str
) -> None:
    path = write(tmp_path, PRICES.replace(right, wrong, 1))
    with pytest.raises(InputError) as refused:
        load_price(path, "small")
    message = str(refused.value)
    assert reason in message and f"prices {path!r}" in message
    assert len(message.splitlines()) == 1


def test_missing_prices_name_those_that_ship() -> None:
    with pytest.raises(InputError, match=r"no prices 'mine': .*\(default\)"):
        load_price("mine", "small")


def test_an_answer_costs_dollars_nothing_or_who_knows(tmp_path: Path) -> None:
    path = write(tmp_path, PRICES)
    paid = usage_of(load_price(path, "small"), 1000, 500)
    assert paid.usd == pytest.approx(0.003)
    assert usage_of(load_price(path, "free"), 1000, 500).usd == 0.0
    assert usage_of(load_price(path, "unheard-of"), 1000, 500) == Usage(
        requests=1, input_tokens=1000, output_tokens=500, usd=None
    )
