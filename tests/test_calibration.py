"""Calibration and operating points: figures worked by hand, and scores whose truth is known."""

import math

import numpy as np
import pytest

from pipeline.verifier.calibration import (
    LEAST_SCALE,
    Bin,
    OperatingPoint,
    auc,
    auc_interval,
    cross_entropy,
    ece,
    fit_scaling,
    for_acceptance,
    for_precision,
    logit,
    reliability,
    sigmoid,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def yes_no(text: str) -> np.ndarray:
    """ "++-" is yes, yes, no."""
    return np.array([letter == "+" for letter in text])


def drawn(scale: float, shift: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and answers that are yes with the chance that the scaled logits say."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0.5, 3, count)
    return logits, rng.random(count) < sigmoid(scale * logits + shift)


# Scaling


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    logits, truth = drawn(1 / temperature, 0.0)
    found = fit_scaling(logits, truth, with_shift=False)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.shift == 0


def test_a_known_shift_is_found_again() -> None:
    logits, truth = drawn(0.5, -1.0)
    found = fit_scaling(logits, truth, with_shift=True)
    assert (found.scale, found.shift) == pytest.approx((0.5, -1.0), abs=0.06)


def test_scaling_lowers_the_cross_entropy() -> None:
    logits, truth = drawn(0.25, 0.0, 500)
    found = fit_scaling(logits, truth, with_shift=False)
    after = cross_entropy(sigmoid(found(logits)), truth)
    assert after < cross_entropy(sigmoid(logits), truth)
    for scale in (found.scale - 0.05, found.scale + 0.05):
        assert after < cross_entropy(sigmoid(scale * logits), truth)


def test_answers_that_are_wholly_parted_keep_the_scale_finite() -> None:
    found = fit_scaling(array(-3, -2, 2, 3), yes_no("--++"), with_shift=True)
    assert 1 < found.scale < 5


def test_a_head_worse_than_chance_is_never_turned_round() -> None:
    logits, truth = drawn(-2.0, 0.0, 2000)
    assert fit_scaling(logits, truth, with_shift=True).scale == LEAST_SCALE


def test_scores_of_zero_and_one_have_finite_logits() -> None:
    assert np.isfinite(logit(array(0.0, 1.0))).all()
    assert logit(array(0.2)) == pytest.approx(math.log(0.25))


# Reliability


def test_ece_worked_by_hand() -> None:
    # 0.1 and 0.3 in the lower half, of which none is right: |0 - 0.2|; 0.6, 0.7 and 0.8 in the
    # upper, of which two are: |2/3 - 0.7|
    bins = reliability(array(0.1, 0.3, 0.6, 0.7, 0.8), yes_no("--++-"), bins=2)
    assert bins == [
        Bin(0.0, 0.5, 2, pytest.approx(0.2), 0.0),
        Bin(0.5, 1.0, 3, pytest.approx(0.7), pytest.approx(2 / 3)),
    ]
    assert ece(bins) == pytest.approx(2 / 5 * 0.2 + 3 / 5 * (0.7 - 2 / 3))


def test_a_score_on_an_edge_belongs_above_it_and_one_to_the_last_bin() -> None:
    bins = reliability(array(0.0, 0.5, 1.0), yes_no("-++"), bins=2)
    assert [(each.n, each.low) for each in bins] == [(1, 0.0), (2, 0.5)]


def test_bins_of_equal_numbers_never_part_equal_scores() -> None:
    bins = reliability(array(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), yes_no("---+++"), 3, equal_mass=True)
    assert [each.n for each in bins] == [2, 2, 2]
    tied = reliability(array(*[0.5] * 6), yes_no("---+++"), 3, equal_mass=True)
    assert [each.n for each in tied] == [6]
    assert ece(tied) == 0


def test_scores_that_say_the_truth_have_little_calibration_error() -> None:
    logits, truth = drawn(1.0, 0.0)
    for mass in (False, True):
        assert ece(reliability(sigmoid(logits), truth, equal_mass=mass)) < 0.015
        assert ece(reliability(sigmoid(4 * logits), truth, equal_mass=mass)) > 0.1


# Ranking


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ((0.1, 0.4, 0.35, 0.8), "--++", 0.75),  # 3 of 4 pairs
        ((0.5, 0.5), "+-", 0.5),
        ((0.1, 0.5, 0.5, 0.9), "--++", 3.5 / 4),
        ((0.9, 0.1), "-+", 0.0),
        ((0.1, 0.2), "++", None),
    ],
)
def test_auc_counts_pairs(scores: tuple[float, ...], truth: str, expected: float | None) -> None:
    assert auc(array(*scores), yes_no(truth)) == expected


def test_pictures_of_one_base_prompt_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 40)
    truth = np.repeat(base + rng.normal(0, 1, 40) > 0, 10)
    scores = np.repeat(base, 10)
    found = auc(scores, truth)
    alone = auc_interval(scores, truth, [str(n) for n in range(400)])
    together = auc_interval(scores, truth, [str(n // 10) for n in range(400)])
    assert found is not None
    assert alone is not None
    assert together is not None
    assert together[0] < alone[0] < found < alone[1] < together[1]
    assert auc_interval(scores, truth, ["a"] * 400) == pytest.approx((found, found))
    assert auc_interval(scores, truth | True, ["a"] * 400) is None


# Operating points: the best two are right, the third is a faulty hand, the fourth another object

FIDELITY = array(0.9, 0.8, 0.4, 0.7, 0.2)
ALIGNMENT = array(0.9, 0.6, 0.9, 0.3, 0.1)
RIGHT = yes_no("++---")


def accepted(point: OperatingPoint, fidelity: np.ndarray, alignment: np.ndarray) -> list[int]:
    at = point.thresholds
    return np.flatnonzero((fidelity >= at.fidelity) & (alignment >= at.alignment)).tolist()


def test_a_target_precision_accepts_the_most_that_reaches_it() -> None:
    point = for_precision(FIDELITY, ALIGNMENT, RIGHT, 1.0)
    assert accepted(point, FIDELITY, ALIGNMENT) == [0, 1]
    assert point.reached
    # two of three are enough: either wrong one may come along, both may not
    looser = for_precision(FIDELITY, ALIGNMENT, RIGHT, 0.6)
    assert len(accepted(looser, FIDELITY, ALIGNMENT)) == 3
    assert len(accepted(for_precision(FIDELITY, ALIGNMENT, RIGHT, 0.4), FIDELITY, ALIGNMENT)) == 5


def test_the_lower_end_of_the_interval_asks_for_more() -> None:
    # two of two right: after Wilson at least 0.342
    assert for_precision(FIDELITY, ALIGNMENT, RIGHT, 0.34, lower=True).reached
    point = for_precision(FIDELITY, ALIGNMENT, RIGHT, 0.35, lower=True)
    assert not point.reached
    assert "not reached" in point.thresholds.chosen_by
    assert accepted(point, FIDELITY, ALIGNMENT) == [0, 1]


def test_a_target_acceptance_takes_the_most_precise_of_enough() -> None:
    for target, expected in ((0.2, 1), (0.4, 2), (0.6, 3), (1.0, 5)):
        point = for_acceptance(FIDELITY, ALIGNMENT, RIGHT, target)
        assert len(accepted(point, FIDELITY, ALIGNMENT)) == expected
    assert accepted(for_acceptance(FIDELITY, ALIGNMENT, RIGHT, 0.4), FIDELITY, ALIGNMENT) == [0, 1]


def test_thresholds_are_short_numbers_that_their_own_score_reaches() -> None:
    scores = array(0.123456, 0.98765432)
    point = for_precision(scores, scores, yes_no("-+"), 1.0)
    assert (point.thresholds.fidelity, point.thresholds.alignment) in {
        (0.9876, 0.1234),
        (0.1234, 0.9876),
        (0.9876, 0.9876),
    }


def test_nothing_right_is_no_error_and_not_reached() -> None:
    point = for_precision(FIDELITY, ALIGNMENT, yes_no("-----"), 0.5)
    assert not point.reached
