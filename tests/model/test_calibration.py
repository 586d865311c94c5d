from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from siamese_sat.model import calibration
from siamese_sat.model.calibration import (
    Calibration,
    PairSimilarity,
    class_thresholds,
    fit_calibration,
    pair_similarity,
)


def pairs(n: int, slope: float, intercept: float, seed: int = 0) -> PairSimilarity:
    """Cosines whose pairs are of one class with probability sigmoid(slope * s + intercept)."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-1, 1, n)
    same = rng.random(n) < 1 / (1 + np.exp(-(slope * s + intercept)))
    return PairSimilarity(s[same], s[~same])


def test_recovers_a_known_logistic() -> None:
    drawn = pairs(60_000, 8.0, -3.0)
    found = fit_calibration(drawn)
    assert found.kind == "logistic"
    assert found.slope == pytest.approx(8.0, rel=0.05)
    # Both kinds weigh alike, so the drawn odds are taken out of the intercept.
    odds = np.log(len(drawn.different) / len(drawn.same))
    assert found.intercept == pytest.approx(-3.0 + odds, abs=0.15)


def test_kinds_weigh_alike_however_many_there_are() -> None:
    drawn = pairs(20_000, 6.0, -2.0)
    often = PairSimilarity(drawn.same, np.tile(drawn.different, 20))
    once, more = fit_calibration(drawn), fit_calibration(often)
    assert more.slope == pytest.approx(once.slope, rel=0.01)
    assert more.intercept == pytest.approx(once.intercept, abs=0.02)


@pytest.mark.parametrize(("same", "different"), [(19, 500), (500, 19), (0, 0)])
def test_below_20_pairs_of_either_kind_it_falls_back(
    same: int, different: int, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = pairs(5000, 8.0, 0.0)
    with caplog.at_level(logging.WARNING):
        found = fit_calibration(PairSimilarity(drawn.same[:same], drawn.different[:different]))
    assert found == Calibration(0.5, 0.5, "linear")
    assert f"there are {same} and {different}" in caplog.text
    torch.testing.assert_close(found(torch.tensor([-1.0, 0.0, 0.5, 1.0])), torch.tensor([0.0, 0.5, 0.75, 1.0]))


def test_20_pairs_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    drawn = pairs(5000, 8.0, 0.0)
    assert fit_calibration(PairSimilarity(drawn.same[:20], drawn.different[:20])).kind == "logistic"
    assert not caplog.records


def test_inverted_similarity_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    drawn = pairs(5000, 8.0, 0.0)
    with caplog.at_level(logging.WARNING):
        assert fit_calibration(PairSimilarity(drawn.different, drawn.same)) == Calibration()
    assert "no more alike" in caplog.text


def test_scores_are_the_sigmoid_and_rise() -> None:
    cosine = torch.linspace(-1, 1, 21).reshape(3, 7)
    scores = Calibration(8.0, -3.0, "logistic")(cosine)
    assert scores.shape == (3, 7)
    assert (scores.flatten().diff() > 0).all()
    assert float(Calibration(8.0, -3.0, "logistic")(torch.tensor(0.375))) == pytest.approx(0.5)
    assert Calibration(8.0, -3.0, "logistic").to_dict() == {"slope": 8.0, "intercept": -3.0, "kind": "logistic"}


def angles(*degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_pairs_by_hand_background_with_itself_left_out() -> None:
    # a 0, a 60, background 90, background 180.
    embeddings, labels = angles(0, 60, 90, 180), torch.tensor([0, 0, 1, 1])
    found = pair_similarity(embeddings, labels, background=1)
    np.testing.assert_allclose(found.same, [0.5], atol=1e-9)
    expected = [np.cos(np.deg2rad(d)) for d in (90, 180, 30, 120)]
    np.testing.assert_allclose(np.sort(found.different), np.sort(expected), atol=1e-9)
    both = pair_similarity(embeddings, labels, background=None)
    np.testing.assert_allclose(np.sort(both.same), [0, 0.5], atol=1e-9)


def test_very_many_pairs_are_sampled_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_PAIRS", 50)
    embeddings, labels = angles(*range(40)), torch.arange(40) % 2
    one, two, other = (pair_similarity(embeddings, labels, None, seed) for seed in (1, 1, 2))
    assert len(one.same) == len(one.different) == 50
    np.testing.assert_array_equal(one.same, two.same)
    assert not np.array_equal(one.same, other.same)


def test_thresholds_by_hand() -> None:
    scores = torch.tensor(
        [
            # class 0: F1 after each of its ranks: 2/4, 4/5, 4/6, 6/7, ... the best cut is below 0.6.
            [0.9, 0.1],
            [0.8, 0.2],
            [0.6, 0.3],
            [0.7, 0.9],  # of class 1, but scored 0.7 as class 0
            [0.2, 0.8],
        ]
    )
    found = class_thresholds(scores, torch.tensor([0, 0, 0, 1, 1]), 2, default=0.33)
    assert found[0] == pytest.approx((0.6 + 0.2) / 2)
    assert found[1] == 0.33, "two chips are too few to set a threshold"


def test_threshold_drops_what_costs_more_than_it_finds() -> None:
    # 3 true at 0.9, 0.8, 0.1; 5 false between: cutting at 2 gives 4/5, taking all 6/11.
    scores = torch.tensor([[0.9], [0.8], [0.5], [0.5], [0.4], [0.4], [0.3], [0.1]])
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 0])
    assert class_thresholds(scores, labels, 1)[0] == pytest.approx((0.8 + 0.5) / 2)


def test_threshold_never_parts_equal_scores() -> None:
    # Two of three true chips share 0.9 with six false ones: F1 there is 4/11, of everything 6/12.
    scores = torch.tensor([[0.9]] * 8 + [[0.1]])
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0])
    assert class_thresholds(scores, labels, 1)[0] == pytest.approx(0.05)
