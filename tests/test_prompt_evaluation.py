"""What prompters reach: figures worked by hand, and the commands that show them."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.config import PrompterConfig, Run, VerifierConfig
from pipeline.errors import InputError
from pipeline.evaluation import prompts as figures
from pipeline.evaluation.prompts import (
    Coverage,
    Histogram,
    PromptMetrics,
    TextSample,
    acceptance,
    arm,
    distinct,
    pairwise_distance,
    self_bleu,
    variation_by_chance,
    wanted_shares,
    words,
)
from pipeline.taxonomy import Taxonomy
from pipeline.types import (
    BasePrompt,
    DetailedPrompt,
    Expansion,
    Failure,
    Proposal,
    ProposalBatch,
    ProposerRef,
    Reading,
    Sampler,
    Thresholds,
    Usage,
)
from storage.folder import FolderStore
from storage.runs import RunFolder
from tests import tiny
from workers import settings
from workers.cli import cli
from workers.cli.evaluate_prompts import HUMAN, compare, read_human
from workers.pages import charts

TAXONOMY = Taxonomy.model_validate(
    {
        "name": "two",
        "version": 1,
        "templates": ["{action} a {color} {object}"],
        "categories": {
            "power": {"action": "gripping", "objects": {"mug": 3, "hammer": 1}, "share": 3},
            "pinch": {"action": "pinching", "objects": ["key", "mug"]},
        },
        "attributes": {"color": {"red": 1, "blue": 1, "green": 2}},
    }
)
MODEL = ProposerRef(name="tiny", weights="sha256:" + "0" * 64)
SAMPLER = Sampler()


def a_run(name: str, taxonomy: Taxonomy = TAXONOMY, **prompter: Any) -> Run:
    return tiny.a_run(PrompterConfig(**prompter), taxonomy).model_copy(update={"name": name})


def a_prompt(
    text: str,
    base: str = "a mug",
    index: int = 0,
    category: str = "power",
    by: str = "",
    **more: Any,
) -> DetailedPrompt:
    return DetailedPrompt(
        id=DetailedPrompt.id_of(by, base, index),
        base=base,
        index=index,
        text=text,
        category=category,
        **more,
    )


# Coverage


def test_wanted_shares_are_conditional_on_nothing() -> None:
    wanted = wanted_shares(TAXONOMY)
    assert wanted["category"] == {"power": 0.75, "pinch": 0.25}
    # mug: 3/4 of the power grasps and half of the pinches
    assert wanted["object"] == {"mug": 0.6875, "hammer": 0.1875, "key": 0.125}
    assert wanted["color"] == {"red": 0.25, "blue": 0.25, "green": 0.5}


def test_coverage_is_the_distance_to_the_wanted_shares() -> None:
    coverage = Coverage(TAXONOMY)
    for category, thing, color in (
        ("power", "mug", "red"),
        ("power", "Mug ", "blue"),
        ("power", "teapot", "green"),
        ("pinch", "key", "green"),
    ):
        coverage.add(a_prompt("x", category=category, attributes={"object": thing, "color": color}))
    reach = coverage.reach()
    assert reach["category"].distance == 0
    assert reach["color"].distance == 0
    of_objects = reach["object"]
    # mug 2/4, hammer 0, key 1/4, other 1/4: half of 0.1875 + 0.1875 + 0.125 + 0.25
    assert of_objects.distance == pytest.approx(0.375)
    assert of_objects.never_reached == 1
    assert list(of_objects.values) == ["mug", "hammer", "key", "other"]
    assert [cell.count for cell in of_objects.values.values()] == [2, 0, 1, 1]
    assert of_objects.others == {"teapot": 1}


def test_random_draws_miss_the_target_by_chance() -> None:
    # two draws of a coin: 2-0 (distance 1/2) half of the time, else 1-1
    assert variation_by_chance([0.5, 0.5], 2) == pytest.approx(0.25)
    # one draw: the shares of all that it is not
    assert variation_by_chance([0.75, 0.25], 1) == pytest.approx(0.75 * 0.25 + 0.25 * 0.75)
    assert variation_by_chance([1.0], 5) == 0
    assert variation_by_chance([0.01] * 100, 10**7) < 0.002


def test_what_a_prompt_does_not_say_does_not_count() -> None:
    coverage = Coverage(TAXONOMY)
    coverage.add(a_prompt("x", category="", attributes={"color": "red"}))
    reach = coverage.reach()
    assert reach["category"].distance is None and reach["category"].counted == 0
    assert reach["color"].distance == 0.75
    assert reach["object"].never_reached == 3


def test_a_value_called_other_stays_apart() -> None:
    taxonomy = TAXONOMY.model_copy(update={"attributes": {"color": {"other": 1.0}}})
    coverage = Coverage(taxonomy)
    coverage.add(a_prompt("x", attributes={"color": "other"}))
    coverage.add(a_prompt("x", attributes={"color": "mauve"}))
    values = coverage.reach()["color"].values
    assert [(cell.wanted, cell.count) for cell in values.values()] == [(1.0, 1), (0.0, 1)]


def test_names_that_a_language_model_makes_up_take_bounded_memory() -> None:
    coverage = Coverage(TAXONOMY)
    for number in range(1_500):
        coverage.add(a_prompt("x", attributes={"object": f"thing {number} {'x' * 5_000}"}))
    reach = coverage.reach()["object"]
    assert reach.values["other"].count == 1_500
    assert len(reach.others) == 1_000
    assert max(map(len, reach.others)) <= 80


# Length


def test_quantiles_are_numpys() -> None:
    import numpy as np

    values = [3, 9, 4, 4, 12, 7, 30]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    spread = histogram.spread()
    assert spread is not None
    assert spread.mean == pytest.approx(69 / 7)
    assert (spread.median, spread.max) == (7, 30)
    assert spread.p95 == pytest.approx(np.quantile(values, 0.95))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A close-up, of Anna's hand.", ["a", "close-up", "of", "anna's", "hand"]),
        ("mug\N{EM DASH}red / \N{LEFT DOUBLE QUOTATION MARK}old\N{RIGHT DOUBLE QUOTATION MARK}",
         ["mug", "red", "old"]),
        ("हाथ में कप", ["हाथ", "में", "कप"]),
        (" ... ", []),
    ],
)  # fmt: skip
def test_words_come_without_the_punctuation_around_them(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_violations_are_counted_by_stage() -> None:
    short, long = Reading(tokens=10, limit=77), Reading(tokens=50, limit=40)
    metrics = PromptMetrics(TAXONOMY)
    metrics.add(
        [
            a_prompt("one", index=0, readings={"proposer": short, "verifier": long}),
            a_prompt("two", index=1, readings={"proposer": short}, cut=", and more"),
            a_prompt("three", index=2, repeats=True),
        ]
    )
    assert dict(metrics.over_budget) == {"proposer": 0, "verifier": 1}
    assert metrics.over_shares() == {"proposer": 0, "verifier": 1}
    assert (metrics.cut, metrics.repeats, metrics.prompts) == (1, 1, 3)
    assert metrics.limits == {"proposer": 77, "verifier": 40}


# Diversity


def test_distinct_n_is_the_share_of_different_ngrams() -> None:
    texts = ["a red mug", "a red key"]
    assert distinct(texts, 1) == 4 / 6  # a, red, mug, key
    assert distinct(texts, 2) == 3 / 4  # a red, red mug, red key
    assert distinct(texts, 3) == 1
    assert distinct(["a mug"], 3) is None


def test_self_bleu_is_one_of_copies_and_zero_of_strangers() -> None:
    assert self_bleu(["a hand holds a mug"] * 3) == pytest.approx(1)
    assert self_bleu(["a hand holds a mug", "eight dogs were sleeping there"]) == 0
    assert self_bleu(["a hand holds a mug"]) is None


def test_self_bleu_of_two_texts_worked_by_hand() -> None:
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; lengths are equal
    by_hand = math.prod((4 / 5, 3 / 4, 2 / 3, 1 / 2)) ** 0.25
    assert self_bleu(["A hand holds one mug.", "a hand holds one key"]) == pytest.approx(by_hand)


def test_distance_within_a_base_prompt_is_that_of_word_trigrams() -> None:
    # {abc, bcd} and {abc, bce} share one of three; both are strangers to {xyz}
    assert pairwise_distance(["a b c d", "a b c e", "x y z"]) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert pairwise_distance(["a mug", "A mug!"]) == 0
    assert pairwise_distance(["a mug"]) is None
    assert pairwise_distance(["same"] * 200) == 0


def test_a_sample_does_not_depend_on_the_order() -> None:
    def sample(numbers: Sequence[int]) -> TextSample:
        sample = TextSample(size=10)
        for number in numbers:
            sample.add(str(number), f"text {number}")
        return sample

    forward, backward = sample(range(100)), sample(range(99, -1, -1))
    assert len(forward) == 10
    assert forward.first(10) == backward.first(10)
    assert forward.first(4) == forward.first(10)[:4]
    assert len(set(forward.first(10))) == 10


def test_acceptance_has_wilsons_interval() -> None:
    found = acceptance(8, 10)
    assert found is not None and found.share == 0.8
    assert found.low == pytest.approx(0.490, abs=1e-3)
    assert found.high == pytest.approx(0.943, abs=1e-3)
    assert acceptance(0, 0) is None


def test_importing_the_metrics_loads_nothing_heavy() -> None:
    heavy = {"torch", "torchmetrics", "matplotlib", "numpy"}
    modules = "pipeline.evaluation.prompts, workers.pages.charts, workers.cli.evaluate"
    code = f"import sys, {modules}; print(*({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


# Runs in a store


BASES = ("a mug", "a key", "a hammer")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    """An empty store, the one that commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPV_STORE_URL", (tmp_path / "store").as_uri())
    settings.settings.cache_clear()
    return FolderStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def _forget_settings() -> Any:
    yield
    settings.settings.cache_clear()


def prompted(store: FolderStore, run: Run, bases: Sequence[str] = BASES) -> RunFolder:
    """A run with two prompts of each base prompt, of which the second is too long."""
    folder = RunFolder(store, run.name)
    folder.write(run)
    for base in bases:
        prompts = tuple(
            a_prompt(
                f"{run.name} hand {index} gripping {base} that is red and old",
                base,
                index,
                by=run.prompter_digest,
                attributes={"object": base[2:], "color": ("red", "blue")[index]},
                readings={"proposer": Reading(tokens=20 + 60 * index, limit=77)},
                cut="!" * index,
            )
            for index in range(2)
        )
        usage = Usage(requests=1, input_tokens=100, output_tokens=50, usd=0.25)
        folder.write_expansion(
            BasePrompt(text=base), Expansion(prompts=prompts, usage=usage, dropped=("again",))
        )
    return folder


def judge(folder: RunFolder, base: str, *scores: float) -> None:
    """Verdicts of as many proposals of the base prompt's first detailed prompt."""
    run = folder.read()
    expansion = folder.read_expansion(BasePrompt(text=base))
    assert expansion is not None
    proposals = [
        Proposal(prompt=expansion.prompts[0], proposer=MODEL, seed=seed, sampler=SAMPLER)
        for seed in range(len(scores))
    ]
    batch = ProposalBatch.of(
        run.name, MODEL, SAMPLER, [(each.prompt, each.seed) for each in proposals]
    )
    pairs = zip(proposals, scores, strict=True)
    folder.write_records(
        batch, [tiny.a_record(each, score, score, run=run.name) for each, score in pairs]
    )


def invoke(*arguments: str) -> tuple[int, str]:
    """The exit code of `main`, and what was printed or complained about."""
    result = CliRunner().invoke(cli, arguments, env={"COLUMNS": "120"})
    if isinstance(result.exception, InputError):
        return 2, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


# ppv prompts stats


def test_stats_say_what_was_reached_and_spent(store: FolderStore) -> None:
    folder = prompted(store, a_run("alpha"))
    in_vain = Usage(requests=2, input_tokens=10, output_tokens=5, usd=0.05)
    folder.write_failure(
        Failure(id="f" * 32, stage="prompt", subject="a", error="no", tries=2, usage=in_vain)
    )
    code, out = invoke("prompts", "stats", "alpha", "--json")
    assert code == 0
    said = json.loads(out)
    assert (said["run"], said["prompts"], said["base_prompts"]) == ("alpha", 6, 3)
    assert (said["dropped"], said["repeats"], said["cut"]) == (3, 0, 3)
    assert said["over_budget"] == {"proposer": 3}
    assert said["tokens"]["proposer"] == {"mean": 50, "median": 50, "p95": 80, "max": 80}
    assert said["usage"] == {
        "requests": 5, "input_tokens": 310, "output_tokens": 155, "usd": pytest.approx(0.8)
    }  # fmt: skip
    assert said["coverage"]["category"]["distance"] == 0.25
    red = said["coverage"]["color"]["values"]["red"]
    assert red == {"wanted": 0.25, "reached": 0.5, "count": 3}


def test_stats_print_a_table_for_each_attribute(store: FolderStore) -> None:
    prompted(store, a_run("alpha"))
    code, out = invoke("prompts", "stats", "alpha")
    assert code == 0
    for said in (
        "color: distance 0.50 (random draws: 0.23)",
        "1 never reached",
        "6 prompts of 3 base prompts",
        "near-duplicates: 3 dropped, 0 kept",
        "cut to fit: 3 (50%)",
        "limit 77; over it: 3 (50%)",
        "spent: 3 requests, 300 tokens in, 150 out, $0.75",
    ):
        assert said in out


def test_stats_show_the_most_distant_of_many_values(store: FolderStore) -> None:
    many = {"color": {f"[c]{number}[/c]": float(number) for number in range(1, 31)}}
    prompted(store, a_run("alpha", TAXONOMY.model_copy(update={"attributes": many})), ["a mug"])
    code, out = invoke("prompts", "stats", "alpha")
    assert code == 0
    assert "30 never reached; 19 nearer ones left out; other: red (1), blue (1)" in out
    assert "[c]30[/c]" in out and "[c]2[/c]" not in out


def test_stats_of_a_run_without_prompts_say_so(store: FolderStore) -> None:
    RunFolder(store, "empty").write(a_run("empty"))
    code, line = invoke("prompts", "stats", "empty")
    assert code == 2
    assert line == "run 'empty' has no detailed prompts yet: see `ppv status empty`"
    assert "no run 'absent'" in invoke("prompts", "stats", "absent")[1]


def test_stats_draw_what_was_reached(store: FolderStore, tmp_path: Path) -> None:
    prompted(store, a_run("alpha"))
    picture = tmp_path / "new" / "coverage.png"
    assert invoke("prompts", "stats", "alpha", "--to", str(picture))[0] == 0
    with Image.open(picture) as image:
        assert image.width > 1000
    code, line = invoke("prompts", "stats", "alpha", "--to", "coverage.pdf")
    assert code == 2 and ".png or .svg" in line


# ppv evaluate prompts


def test_prompters_are_compared_on_what_all_have(store: FolderStore) -> None:
    ours = prompted(store, a_run("alpha"))
    theirs = prompted(store, a_run("beta", kind="openai", model="gpt"), [*BASES[:2], "a pen"])
    judge(ours, "a mug", 0.9, 0.9, 0.1, 0.9)
    judge(ours, "a hammer", 0.1, 0.1)  # not one that both have
    code, out = invoke("evaluate", "prompts", "alpha", "beta", "--json")
    assert code == 0
    said = json.loads(out)
    assert (said["common"], said["notes"]) == (2, [])
    alpha, beta = said["arms"]
    assert (alpha["name"], beta["name"]) == ("grammar", "openai gpt")
    assert (alpha["base_prompts"], alpha["prompts"], alpha["sampled_texts"]) == (3, 4, 4)
    assert (alpha["acceptance"]["accepted"], alpha["acceptance"]["judged"]) == (3, 4)
    assert beta["acceptance"] is None
    assert alpha["over_budget"] == {"proposer": 0.5}
    assert alpha["usage"]["usd"] == 0.5
    assert theirs.read_expansion(BasePrompt(text="a pen")) is not None
    assert alpha["words"] == {"mean": 11, "median": 11, "p95": 11, "max": 11}
    assert alpha["distinct"]["1"] == 13 / 44


def test_the_table_names_every_arm(store: FolderStore) -> None:
    for name in ("alpha", "beta"):
        prompted(store, a_run(name))
    code, out = invoke("evaluate", "prompts", "alpha", "beta")
    assert code == 0
    assert "grammar (alpha)" in out and "grammar (beta)" in out
    assert "prompters on the 3 base prompts that all of them have" in out
    assert "acceptance" not in out  # nobody has any


def test_notes_say_what_cannot_be_compared(store: FolderStore) -> None:
    prompted(store, a_run("alpha"))
    other = TAXONOMY.model_copy(update={"name": "three"})
    strict = VerifierConfig(thresholds=Thresholds(fidelity=0.9))
    prompted(store, a_run("beta", other).model_copy(update={"verifier": strict}))
    notes = compare(store, ["alpha", "beta"]).notes
    assert "coverage is against run alpha's (two)" in notes[0]
    assert "differ in proposer, verifier or thresholds" in notes[1]


def human_file(folder: Path, *lines: object) -> Path:
    file = folder / "human.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def test_peoples_prompts_are_one_more_arm(store: FolderStore, tmp_path: Path) -> None:
    prompted(store, a_run("alpha"))
    file = human_file(
        tmp_path,
        {"base": " a  mug", "text": "an old hand grips a mug"},
        {"base": "a mug", "text": "a mug in a child's hand", "category": "power"},
        {"base": "a boat", "text": "a boat"},
    )
    comparison = compare(
        store,
        ["alpha"],
        read_human(file),
        lambda run: lambda text: {"proposer": Reading(tokens=len(text), limit=20)},
    )
    assert comparison.common == 1
    prompter, people = comparison.arms
    assert (people.name, people.run, people.base_prompts, people.prompts) == (HUMAN, None, 2, 2)
    assert people.tokens["proposer"].max == 23
    assert people.over_budget == {"proposer": 1}
    assert people.coverage["category"].counted == 1
    assert people.coverage["object"].distance is None
    assert (people.cut, people.repeats, people.acceptance, people.usage) == (None,) * 4
    assert prompter.sampled_texts == people.sampled_texts == 2


def test_peoples_prompts_are_read_by_the_first_runs_models(
    store: FolderStore, tmp_path: Path
) -> None:
    miniature = ProposerRef(name="miniature", weights=MODEL.weights)
    run = a_run("alpha").model_copy(update={"proposers": (miniature,), "verifier_ref": miniature})
    prompted(store, run)
    human = read_human(human_file(tmp_path, {"base": "a mug", "text": "a hand holding a mug"}))
    people = compare(store, ["alpha"], human).arms[1]
    assert sorted(people.tokens) == ["proposer", "verifier"]
    assert people.tokens["verifier"].max == 7  # five words, with a token before and one after


def test_without_the_runs_models_people_are_compared_in_words(
    store: FolderStore, tmp_path: Path
) -> None:
    prompted(store, a_run("alpha"))
    file = human_file(tmp_path, {"base": "a mug", "text": "a hand"})
    code, out = invoke("evaluate", "prompts", "alpha", "--human", str(file))
    assert code == 0
    assert "note: people's prompts are not measured in tokens: no model at 'tiny'" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: Invalid JSON"),
        ('{"base": "a mug"}', "line 2: text: Field required; a line is"),
        ('{"base": "a mug", "text": " "}', "line 2: text: String should have at least 1"),
        ('{"base": "a mug", "text": "x", "colour": 1}', "line 2: colour: Extra inputs"),
        ("\xff", "line 2: Invalid JSON"),
    ],
)
def test_a_bad_line_of_people_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "human.jsonl"
    file.write_bytes(b'{"base": "a mug", "text": "x"}\n' + line.encode("latin-1"))
    with pytest.raises(InputError) as error:
        read_human(file)
    assert f"{file}, {words}" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_compared_is_said_in_one_line(store: FolderStore, tmp_path: Path) -> None:
    prompted(store, a_run("alpha"), ["a mug"])
    prompted(store, a_run("beta"), ["a key"])
    none = invoke("evaluate", "prompts", "alpha", "beta")
    assert none[0] == 2
    assert none[1].endswith("alpha has 1, beta has 1, none in common")
    for arguments in (["alpha"], [], ["--human", str(tmp_path / "absent")]):
        code, line = invoke("evaluate", "prompts", *arguments)
        assert code == 2 and "two runs, or a run and --human FILE" in line
    assert "given twice" in invoke("evaluate", "prompts", "alpha", "alpha")[1]
    missing = invoke("evaluate", "prompts", "alpha", "--human", str(tmp_path / "absent"))
    assert "absent cannot be read: No such file" in missing[1]


# Pictures


def some_arms(count: int) -> list[figures.Arm]:
    metrics = PromptMetrics(TAXONOMY)
    reading = Reading(tokens=20, limit=77)
    metrics.add([a_prompt("a hand", index=i, readings={"proposer": reading}) for i in range(2)])
    return [
        arm(f"prompter {i} " + "$x_" * 30, f"run-{i}", 1, metrics, sampled_texts=0,
            acceptance=acceptance(i, count))
        for i in range(count)
    ]  # fmt: skip


def draw_coverage(to: Path) -> None:
    coverage = Coverage(TAXONOMY)
    coverage.add(a_prompt("x", attributes={"object": "$\\frac{1$ 杯"}))
    charts.draw_coverage("coverage", "of nothing", coverage.reach(), to)


def draw_comparison(to: Path) -> None:
    charts.draw_comparison("comparison", "of nothing", some_arms(2), to)


@pytest.mark.parametrize("draw", [draw_coverage, draw_comparison])
@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_figures_are_the_same_bytes(
    tmp_path: Path, draw: Callable[[Path], None], ending: str
) -> None:
    files = [tmp_path / f"{number}{ending}" for number in range(2)]
    for file in files:
        draw(file)
    one, other = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert one == other
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("count", [1, 2, 6, 20])
def test_pictures_grow_with_what_they_show(tmp_path: Path, count: int) -> None:
    charts.draw_comparison("comparison", "", some_arms(count), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        rows = 2  # of panels; what no arm has is left out
        assert image.height > rows * count * charts.ARM_IN * charts.DPI


def test_nothing_covered_is_drawn_too(tmp_path: Path) -> None:
    charts.draw_coverage("coverage", "", Coverage(TAXONOMY).reach(), tmp_path / "a.svg")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_a_picture_that_cannot_be_written_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        draw_comparison(tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        draw_comparison(tmp_path / "a.jpg")


def test_shares_never_round_to_nothing() -> None:
    assert [charts.share(value) for value in (0, 0.0004, 0.012, 0.0996, 0.5, 1)] == [
        "0%", "<0.1%", "1.2%", "10%", "50%", "100%"
    ]  # fmt: skip


def test_long_names_lose_their_middle() -> None:
    assert charts.shorten("prismatic four-finger", 11) == "prism…inger"
    assert charts.shorten("short", 11) == "short"
