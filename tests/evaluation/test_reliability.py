from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from siamese_sat.errors import InputError
from siamese_sat.evaluation.reliability import FLOOR, calibration_error, detection_reliability, reliability


@pytest.mark.parametrize(
    ("scores", "hits", "expected"),
    [
        ([0.1, 0.3, 0.5, 0.9, 1.0], [0, 1, 0, 1, 1], (2 * 0.3 + 3 * abs(2.4 / 3 - 2 / 3)) / 5),
        ([0.0, 1.0], [0, 1], 0.0),
        ([1.0, 1.0], [0, 0], 1.0),
    ],
)
def test_reliability(scores: Sequence[float], hits: Sequence[int], expected: float) -> None:
    table = reliability(scores, hits, bins=2)
    assert table["bin"].tolist() == [0.25, 0.75] and table["count"].sum() == len(scores)
    assert calibration_error(table) == pytest.approx(expected)


def test_reliability_of_an_empty_bin() -> None:
    table = reliability([0.95], [True])
    assert table["count"].tolist() == [0] * 9 + [1]
    assert table["precision"].isna().sum() == 9 and table["mean_score"].iloc[-1] == 0.95
    with pytest.raises(InputError, match="between 0 and 1"):
        reliability([1.2], [True])


def test_places_that_nobody_looks_at_do_not_count() -> None:
    scores, hits = [0.9, 0.7, 0.2, FLOOR] + [0.01] * 1000, [1, 0, 0, 0] + [0] * 1000
    table = detection_reliability(scores, hits)
    assert table["count"].sum() == 4
    assert calibration_error(table) == pytest.approx((0.1 + 0.7 + 0.2 + 0.05) / 4)
    assert calibration_error(reliability(scores, hits)) < 0.02, "which is why"


def test_scores_that_are_no_probabilities_have_no_reliability() -> None:
    table = detection_reliability([3.0, 0.5], [True, True])
    assert len(table) == 10
    assert table["count"].sum() == 0
    assert math.isnan(calibration_error(table))
