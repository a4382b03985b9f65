"""Token budgets: measured as the models themselves read, and cut without losing a letter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Run
from pipeline.errors import ModelError
from pipeline.models import WEIGHTS, fingerprint
from pipeline.prompter.budget import Budget, Reader, budget_of
from pipeline.types import ProposerRef
from tests.describing import words
from tests.tiny import a_run

LONG = (
    "A dark left hand holds a red mug, its thumb along the rim, in front of a beige wall. "
    "Soft light falls from the left; the fingers are relaxed and the mug is half full."
)


def of(base: str = "miniature", verifier: str = "miniature") -> Run:
    refs = {
        "proposers": (ProposerRef.of(fingerprint(base, "base")),),
        "verifier_ref": fingerprint(verifier, "verifier"),
    }
    return a_run().model_copy(update=refs)


def test_texts_are_counted_as_the_models_count_them() -> None:
    from transformers import BertTokenizer, CLIPTokenizer

    readings = budget_of(of()).measure(LONG)
    clip = CLIPTokenizer.from_pretrained(WEIGHTS / "base" / "tokenizer")
    bert = BertTokenizer.from_pretrained(WEIGHTS / "verifier")
    assert readings["proposer"].tokens == len(clip(LONG, verbose=False).input_ids) > 32
    assert readings["verifier"].tokens == len(bert(LONG, verbose=False).input_ids)
    assert readings["proposer"].limit == clip.model_max_length
    config = json.loads((WEIGHTS / "verifier" / "config.json").read_text())
    assert readings["verifier"].limit == config["max_position_embeddings"] == 40


def test_measuring_loads_no_torch() -> None:
    code = (
        "import sys; from tests.test_budget import of; from pipeline.prompter.budget import *; "
        "budget_of(of()).measure('a mug'); print('torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "False\n"


def test_of_several_text_encoders_the_most_patient_reads() -> None:
    short, long = Reader(lambda text: len(text.split()), 3), Reader(lambda text: len(text), 50)
    budget = Budget({"proposer": (short, long)}, ("proposer",))
    assert budget.measure("one two three four")["proposer"] == long.read("one two three four")
    assert budget.fits("one two three four")


def test_the_stage_that_leaves_out_most_is_named() -> None:
    budget = words(proposer=12, verifier=8)
    excess = budget.excess(budget.measure("one two three four five six seven eight"))
    assert excess is not None and (excess.tokens, excess.limit, excess.unread) == (10, 8, 2)
    assert budget.excess(budget.measure("one two")) is None


@pytest.mark.parametrize("limit", range(3, 40))
def test_a_cut_keeps_every_letter_and_what_is_kept_fits(limit: int) -> None:
    budget = words(verifier=limit)
    kept, cut = budget.cut(LONG)
    assert kept + cut == LONG
    assert kept and (budget.fits(kept) or limit < 3)


def test_a_cut_ends_with_a_clause_where_one_is_near() -> None:
    assert words(verifier=21).cut(LONG)[0].endswith("in front of a beige wall.")
    assert words(verifier=20).cut(LONG)[0].endswith("along the rim")
    assert words(verifier=10).cut(LONG)[0] == "A dark left hand holds a red mug"


def test_a_word_that_is_too_long_is_cut_anywhere() -> None:
    budget = Budget({"proposer": (Reader(len, 10),)}, ("proposer",))
    assert budget.cut("x" * 25) == ("x" * 10, "x" * 15)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{}", "has no tokenizer"),
        ('{"tokenizer": ["transformers", "os.system"]}', "names the tokenizer 'os.system'"),
        ('{"tokenizer": ["transformers", "NoTokenizer"]}', "names the tokenizer 'NoTokenizer'"),
        ('{"tokenizer": ["transformers", "CLIPTokenizer"]}', "cannot be loaded"),
        ("no JSON", "no diffusers pipeline"),
    ],
)
def test_a_model_without_a_usable_tokenizer_is_refused(
    tmp_path: Path, index: str, reason: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"-")
    (tmp_path / "model_index.json").write_text(index)
    run = a_run().model_copy(update={"proposers": (ProposerRef(name=str(tmp_path), weights="-"),)})
    with pytest.raises(ModelError, match=reason):
        budget_of(run)
