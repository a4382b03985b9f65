"""Comparing by people: which pairs, in which order, and what is made of their choices."""

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from pipeline.choices import QUESTIONS, Answer, Answers, Choice, Question, Request, Study
from pipeline.errors import InputError
from pipeline.evaluation.agreement import alpha
from pipeline.evaluation.human import annotator_of, leans, result_of
from pipeline.evaluation.pairing import Picture, study_of, turns
from pipeline.evaluation.strengths import connected, strengths
from pipeline.types import digest

ALL = np.array([True])


def a_request(*arms: str, pairs: int = 100, check_share: float = 0.1) -> Request:
    runs = {arm: f"arm-{arm}" for arm in arms}
    return Request(arms=runs, pairs=pairs, check_share=check_share, seed=7)


def drawn_by(arm: str, prompts: int, seeds: int = 2, *, accepted: bool = True) -> list[Picture]:
    """Its pictures of prompts that share no word."""
    return [
        Picture(digest([arm, p, s]), f"thing{p} place{p}", s, digest([arm, p, s, "x"]), accepted)
        for p in range(prompts)
        for s in range(seeds)
    ]


def a_study(*arms: str, prompts: int = 40, pairs: int = 100, check_share: float = 0.1) -> Study:
    request = a_request(*arms, pairs=pairs, check_share=check_share)
    return study_of(request, {arm: drawn_by(arm, prompts) for arm in arms})


def chosen(
    study: Study, annotator: str, choose: Callable[[str, str, Question], Answer]
) -> list[Choice]:
    """What somebody says who sees the arms of left and right, or of a check "asked" and "other"."""
    choices = []
    for turn in turns(study, annotator):
        left, right = turn.left.arm, turn.right.arm
        if turn.pair.check:
            left = "asked" if turn.left == turn.pair.one else "other"
            right = "other" if left == "asked" else "asked"
        answers = Answers(*(choose(left, right, question) for question in QUESTIONS))
        choices.append(
            Choice(
                pair=turn.id,
                left=turn.left.id,
                right=turn.right.id,
                annotator=annotator,
                at="2026-11-24T00:00:00.000000+00:00",
                **answers._asdict(),
            )
        )
    return choices


def by_strength(strength: dict[str, float], nu: float, seed: int) -> Callable[..., Answer]:
    """Somebody who chooses as Davidson's model says, and passes every check."""
    rng = random.Random(seed)

    def choose(left: str, right: str, _: Question) -> Answer:
        if {left, right} == {"asked", "other"}:
            return "left" if left == "asked" else "right"
        a, b = math.exp(strength[left]), math.exp(strength[right])
        (answer,) = rng.choices(("left", "tie", "right"), (a, nu * math.sqrt(a * b), b))
        return answer

    return choose


# Which pairs


def test_every_two_arms_are_compared_equally_often_and_each_prompt_first_once() -> None:
    study = a_study("base", "tuned", "ensemble", pairs=90)

    pairs = [pair for pair in study.pairs if not pair.check]
    matches = Counter((pair.one.arm, pair.other.arm) for pair in pairs)
    assert matches == dict.fromkeys(combinations(("base", "tuned", "ensemble"), 2), 30)
    for match in matches:
        prompts = [pair.prompt for pair in pairs if (pair.one.arm, pair.other.arm) == match]
        assert len(set(prompts)) == 30
    assert study.notes == ()


def test_only_pictures_of_one_prompt_and_seed_are_paired() -> None:
    pictures = {"a": drawn_by("a", 8), "b": drawn_by("b", 12)}
    asked = {each.id: each.asked for some in pictures.values() for each in some}

    study = study_of(a_request("a", "b", check_share=0), pictures)

    assert len(study.pairs) == 16
    assert all(asked[pair.one.id] == asked[pair.other.id] for pair in study.pairs)
    assert study.notes == ("the arms have pictures for 16 of 100 pairs",)


def test_the_study_is_the_same_however_the_records_came() -> None:
    pictures = {arm: drawn_by(arm, 20) for arm in ("a", "b")}
    shuffled = {arm: random.Random(1).sample(some, len(some)) for arm, some in pictures.items()}

    assert study_of(a_request("a", "b"), pictures) == study_of(a_request("a", "b"), shuffled)


def test_the_same_picture_twice_is_not_asked_about() -> None:
    here = drawn_by("a", 3)
    there = [each if each.prompt == "thing0 place0" else other
             for each, other in zip(here, drawn_by("b", 3), strict=True)]  # fmt: skip

    study = study_of(a_request("a", "b", check_share=0), {"a": here, "b": there})

    assert (len(study.pairs), study.alike) == (4, 2)
    with pytest.raises(InputError, match="the very same pictures"):
        study_of(a_request("a", "b"), {"a": here, "b": here})


def test_arms_that_drew_different_prompts_cannot_be_compared() -> None:
    pictures = {"a": drawn_by("a", 3), "short": [], "b": drawn_by("b", 3)}
    with pytest.raises(InputError, match="arms 'a' and 'short' have no picture of the same prompt"):
        study_of(a_request("a", "short", "b"), pictures)
    with pytest.raises(InputError, match="two arms or more"):
        study_of(a_request("a"), pictures)


def test_a_check_has_an_accepted_picture_beside_one_of_another_prompt() -> None:
    pictures = {"a": drawn_by("a", 30), "b": drawn_by("b", 30, accepted=False)}
    prompts = {each.id: each.prompt for some in pictures.values() for each in some}

    study = study_of(a_request("a", "b", pairs=45), pictures)

    checks = [pair for pair in study.pairs if pair.check]
    assert len(checks) == 5
    for check in checks:
        assert check.one.arm == check.other.arm == "a"  # the verifier accepted none of b's
        assert prompts[check.one.id] == check.prompt
        assert not set(prompts[check.other.id].split()) & set(check.prompt.split())


def test_what_checks_cannot_be_had_is_said() -> None:
    alike = [
        Picture(digest([arm, p]), f"a hand with a mug {p}", 0, digest([arm, p, "x"]), True)
        for arm in ("a", "b")
        for p in range(40)
    ]
    study = study_of(a_request("a", "b"), {"a": alike[:40], "b": alike[40:]})

    assert not any(pair.check for pair in study.pairs)
    assert "0 of 4 attention checks could be made" in study.notes[-1]


# In which order


def test_each_annotator_has_an_order_and_sides_of_their_own() -> None:
    study = a_study("a", "b", pairs=80)
    ann, bo = turns(study, "ann"), turns(study, "bo")

    assert turns(study, "ann") == ann
    assert {turn.id for turn in ann} == {turn.id for turn in bo} == {p.id for p in study.pairs}
    assert [turn.id for turn in ann] != [turn.id for turn in bo]
    at_left = sum(turn.left == turn.pair.one for turn in ann)
    assert 30 < at_left < 60  # of 89
    there = {turn.id: turn.left for turn in bo}
    assert 20 < sum(turn.left == there[turn.id] for turn in ann) < 70


def test_checks_come_evenly_among_the_pairs() -> None:
    places = [i for i, turn in enumerate(turns(a_study("a", "b", pairs=80), "ann"))
              if turn.pair.check]  # fmt: skip

    assert len(places) == 9
    assert all(
        i * 80 / 9 - 1 <= place - i <= (i + 1) * 80 / 9 + 1 for i, place in enumerate(places)
    )


# Strengths


def test_of_two_the_strength_is_the_log_odds_of_their_wins() -> None:
    # Two things have as many free numbers as outcomes: the likelihood is highest where the model
    # gives each outcome its share, so that a - b is the logarithm of wins over losses, whatever the
    # ties; here of 30.5 over 12.5, with half a count in every cell.
    ((first, second),) = strengths(np.array([[[30.0, 10.0, 12.0]]]), 2, ALL)

    assert first == 0
    assert second == pytest.approx(math.log(12.5 / 30.5))


def test_a_tie_counts_for_both_alike() -> None:
    # 20 wins to 10 and no tie, by way of a third that ties with both: it lies half way.
    counts = np.array([[[200.0, 0.0, 100.0], [0.0, 1e4, 0.0], [0.0, 1e4, 0.0]]])
    ((first, second, third),) = strengths(counts, 3, np.array([True] * 3))

    assert (first, second / 2) == (0, pytest.approx(third))
    assert second < -0.01


def test_many_comparisons_give_back_the_strengths_behind_them() -> None:
    truth, nu = np.array([0, 0.7, -0.4, 1.5]), 0.6
    rng = np.random.default_rng(3)
    counts = []
    for one, other in combinations(range(4), 2):
        a, b = truth[[one, other]]
        shares = np.array([math.exp(a), nu * math.exp((a + b) / 2), math.exp(b)])
        counts.append(rng.multinomial(20_000, shares / shares.sum()))

    found = strengths(np.array([counts], dtype=float), 4, np.array([True] * 6))

    assert found[0] == pytest.approx(truth, abs=0.03)


def test_who_always_wins_is_strong_and_not_infinitely_so() -> None:
    counts = np.array([[[0.0, 0.0, 1e6]], [[0.0, 0.0, 3.0]]])
    found = strengths(counts, 2, ALL)

    assert found[:, 1] == pytest.approx([math.log(2e6 + 1), math.log(7)])


def test_things_that_nothing_connects_have_no_common_scale() -> None:
    # Of four: 0-1, 0-2, 0-3, 1-2, 1-3, 2-3.
    assert connected(4, np.array([True, False, False, True, False, True]))
    assert not connected(4, np.array([True, False, False, False, False, True]))


# Agreement


def test_alpha_is_what_krippendorff_works_out() -> None:
    # His example of 2011: four observers, twelve units, five values; nobody compares the last one.
    units = [[1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
             [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3]]  # fmt: skip
    counts = np.array([[unit.count(value) for value in range(1, 6)] for unit in units], dtype=float)

    assert alpha(counts, np.arange(1.0, 6.0)) == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_nothing_or_of_one_same_answer_is_not_known() -> None:
    values = np.array([1.0, 0.0, -1.0])
    assert alpha(np.zeros((0, 3)), values) is None
    assert alpha(np.array([[1.0, 0, 0], [0, 1.0, 0]]), values) is None
    assert alpha(np.array([[2.0, 0, 0], [3.0, 0, 0]]), values) is None
    assert alpha(np.array([[2.0, 0, 0], [0, 0, 2.0]]), values) == 1


# The result


def test_a_study_gives_back_who_is_better_and_how_far_people_agree() -> None:
    truth = {"base": 0.0, "tuned": 1.2, "ensemble": 0.5}
    study = a_study(*truth, prompts=150, pairs=600)
    choices = [
        line
        for seed, name in enumerate(("ann", "bo"))
        for line in chosen(study, name, by_strength(truth, 0.5, seed))
    ]

    result = result_of(study, choices, resamples=300)

    overall = result.questions["overall"]
    assert (overall.answers, overall.prompts) == (1200, 150)
    for arm, strength in truth.items():
        found = overall.arms[arm].strength
        assert found is not None
        if arm == "base":
            assert found.value == 0
            continue
        assert found.low is not None and found.high is not None
        assert found.low < strength < found.high
        assert found.high - found.low < 0.8
    tuned = overall.arms["tuned"].against["base"]
    assert tuned.won + tuned.tied + tuned.lost == 400
    assert tuned.share.value == pytest.approx((tuned.won + tuned.tied / 2) / 400)
    mirrored = overall.arms["base"].against["tuned"]
    assert (mirrored.won, mirrored.tied, mirrored.lost) == (tuned.lost, tuned.tied, tuned.won)
    # Both chose by the same chances, each anew: they agree somewhat, by what the arms differ in.
    agreement = overall.agreement
    assert agreement.pairs == 600
    assert agreement.alpha is not None and 0 < agreement.alpha < 0.4
    assert result.counted == ("ann", "bo")
    assert {it.why_not for it in result.annotators.values()} == {""}
    assert {(it.checks, it.passed) for it in result.annotators.values()} == {(67, 67)}


def test_wins_are_counted_as_one_does_by_hand() -> None:
    study = a_study("a", "b", prompts=6, pairs=6, check_share=0)
    winners = iter(["a", "a", "tie", "b", "a", "tie"])

    def choose(left: str, right: str, question: Question) -> Answer:
        if question != "overall":
            return "tie"
        winner = next(winners)
        return "tie" if winner == "tie" else "left" if winner == left else "right"

    result = result_of(study, chosen(study, "ann", choose), resamples=200)

    wins = result.questions["overall"].arms["a"].wins
    assert wins is not None
    assert (wins.won, wins.tied, wins.lost) == (3, 2, 1)
    assert wins.share.value == pytest.approx(4 / 6)
    assert wins.share.low is not None and wins.share.low < 4 / 6
    assert result.questions["overall"].ties == 2
    # Ties alone: nobody is stronger, and there is no spread to tell an interval by.
    strength = result.questions["fidelity"].arms["b"].strength
    assert strength is not None
    assert (strength.value, strength.low) == (pytest.approx(0), None)


def test_what_always_wins_has_no_interval() -> None:
    study = a_study("a", "b", prompts=40, pairs=60)  # of some prompts two pairs

    def choose(left: str, right: str, question: Question) -> Answer:
        return "left" if left in ("a", "asked") else "right"

    won = result_of(study, chosen(study, "ann", choose)).questions["overall"].arms["b"]

    assert won.strength is not None and won.wins is not None
    assert won.strength.value == pytest.approx(-math.log(121))
    assert (won.strength.low, won.wins.share.low) == (None, None)
    assert won.wins.share.value == 0


def test_who_answers_all_left_or_fails_the_checks_is_left_out() -> None:
    study = a_study("a", "b", prompts=60, pairs=60)
    honest = by_strength({"a": 0.0, "b": 1.0}, 0.3, seed=1)
    choices = [
        *chosen(study, "ann", honest),
        *chosen(study, "lefty", lambda left, right, q: "left"),
        *chosen(study, "tired", lambda left, right, q: "tie"),
    ]

    result = result_of(study, choices, resamples=200)
    of_all = result_of(study, choices, everybody=True, resamples=200)

    assert result.counted == ("ann",)
    assert result.questions["overall"].answers == 60
    lefty, tired = result.annotators["lefty"], result.annotators["tired"]
    assert lefty.left["overall"] == 67 and lefty.right["overall"] == 0
    assert lefty.why_not
    assert tired.why_not == "passed 0 of 7 attention checks, fewer than 75%"
    assert of_all.counted == ("ann", "lefty", "tired")
    assert of_all.questions["overall"].answers == 180


def test_without_checks_all_left_is_still_seen() -> None:
    study = a_study("a", "b", pairs=40, check_share=0)
    found = annotator_of(
        chosen(study, "lefty", lambda left, right, q: "left"), {p.id: p for p in study.pairs}
    )

    assert found.why_not == (
        "chose the left picture in 40 of 40 answers about fidelity that are no tie, though sides "
        "are by chance"
    )


def test_a_lean_is_told_from_chance() -> None:
    # Hoeffding: 2 exp(-2 n (share - 1/2)^2), so that 16 of 16 give 2 exp(-8) = .00067.
    assert leans(16, 16) and not leans(15, 15)
    assert not leans(60, 100) and leans(70, 100)
    assert not leans(0, 0)


def test_the_last_choice_counts_and_what_is_taken_back_does_not() -> None:
    study = a_study("a", "b", pairs=8, check_share=0)
    choices = chosen(study, "ann", lambda left, right, q: "tie")
    again = [choices[0].model_copy(update={"overall": "left"}),
             choices[1].model_copy(update=dict.fromkeys(QUESTIONS))]  # fmt: skip

    nothing = [line.model_copy(update={"annotator": "bo"} | dict.fromkeys(QUESTIONS))
               for line in choices]  # fmt: skip

    result = result_of(study, [*choices, *again, *nothing])

    overall = result.questions["overall"]
    assert (overall.answers, overall.ties) == (7, 6)
    assert list(result.annotators) == ["ann"]


def test_a_study_that_nobody_answered_has_no_figures() -> None:
    overall = result_of(a_study("a", "b"), []).questions["overall"]

    assert overall.answers == 0
    assert overall.arms["a"].strength is None
    assert overall.arms["a"].wins is None
