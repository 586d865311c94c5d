from __future__ import annotations

from collections.abc import Sequence

import pytest

from siamese_sat.errors import InputError
from siamese_sat.evaluation.reliability import calibration_error, reliability


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
