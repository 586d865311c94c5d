from __future__ import annotations

import numpy as np
import pytest

from siamese_sat.search.score import ALONE, ASKED, FALLBACK, ScoreCurve, fit_curve


@pytest.mark.parametrize("curve", [ScoreCurve(), ScoreCurve(0.4), ScoreCurve(0.02, 2.5)])
def test_the_curve(curve: ScoreCurve) -> None:
    assert curve(np.array(curve.threshold)) == pytest.approx(0.3)
    raw = np.linspace(0, 1, 201)
    found = curve(raw)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()
    assert found[-1] < 1
    assert (curve(np.array([-0.5, -1e-9])) == 0).all()
    assert curve(raw.reshape(3, 67)).shape == (3, 67)


def test_the_curve_by_hand() -> None:
    # Twice the threshold: odds of 3/7 times 2^6.
    odds = 3 / 7 * 64
    assert ScoreCurve(0.2)(np.array(0.4)) == pytest.approx(odds / (1 + odds))
    assert ScoreCurve(0.2, 1.0)(np.array(0.1)) == pytest.approx(3 / 17)


@pytest.mark.parametrize("curve", [ScoreCurve(), ScoreCurve(0.4), ScoreCurve(0.02, 2.5)])
def test_raw_is_the_reverse(curve: ScoreCurve) -> None:
    for probability in (0.01, 0.3, 0.5, 0.99):
        assert curve(np.array(curve.raw(probability))) == pytest.approx(probability)
    assert curve.raw(0.3) == pytest.approx(curve.threshold)
    assert curve.raw(0) == 0
    assert curve.raw(1) == float("inf")


NONE = np.empty(0)
# 99 % of these lie below 0.099 by linear interpolation between order statistics.
BACKGROUND = np.arange(101) / 1000
ALIKE = np.array([0.9, 0.396, 0.1])  # median 0.396


def test_a_part_of_what_alike_exemplars_score() -> None:
    assert ASKED == 0.6
    assert fit_curve(ALIKE, BACKGROUND).threshold == pytest.approx(0.6 * 0.396)
    assert fit_curve(ALIKE[::-1], BACKGROUND[::-1]) == fit_curve(ALIKE, BACKGROUND)


def test_what_is_ordinary_where_exemplars_are_hardly_alike() -> None:
    assert fit_curve(ALIKE / 4, BACKGROUND).threshold == pytest.approx(0.099)
    # A thing that recurs in the scenes is no part of what is ordinary.
    some = np.concatenate([BACKGROUND.repeat(10), [0.9, 0.95]])
    assert fit_curve(ALIKE, some).threshold == pytest.approx(0.6 * 0.396)


def test_a_single_exemplar_has_the_background_alone() -> None:
    assert fit_curve(NONE, BACKGROUND).threshold == pytest.approx(0.099 * ALONE)
    assert ALONE == 1.3


def test_scenes_too_small_to_sample_have_the_exemplars_alone() -> None:
    assert fit_curve(ALIKE, NONE).threshold == pytest.approx(0.6 * 0.396)


def test_nothing_known() -> None:
    assert fit_curve(NONE, NONE) == ScoreCurve(FALLBACK)


@pytest.mark.parametrize("left_out", [NONE, np.array([-0.2, -0.1]), np.array([0.0, 0.0])])
@pytest.mark.parametrize("background", [NONE, np.array([-0.3, -0.1]), np.zeros(5)])
def test_scores_below_zero_leave_a_threshold_above_it(left_out: np.ndarray, background: np.ndarray) -> None:
    curve = fit_curve(left_out, background)
    assert curve.threshold > 0
    assert np.isfinite(curve(np.array([0.0, 0.5, 1.0]))).all()
